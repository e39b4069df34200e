//! One run: where it ends, what it is held to, and its account of usage.
//!
//! In: what was found and computed for it. Out: [`Usage`], exactly as that type documents it. Deliberately not here: when things
//! happen (`engine.rs`). `reasoning_tokens` is the worker's to fill: an engine does not know reasoning from text.

use std::collections::BTreeMap;

use holdfast_kv::Found;
use holdfast_scheduler::{JobId, Step};
use holdfast_types::{
    DeviceDescription, Failure, ModelledUsage, Precision, SampledToken, SequenceId, StepOutput, TimeUs, TokenId,
    TokenMask, Usage,
};

use crate::{FinishReason, Run, SampleRequest};

const NANOSECONDS_PER_HOUR: f64 = 3.6e12;

/// A run's share of a step.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Share {
    /// Of its measured time.
    pub(crate) device_time_us: u64,
    /// Of its modelled time, as the device apportioned it.
    pub(crate) modelled: Option<ModelledUsage>,
}

/// What the engine remembers of a run.
#[derive(Debug)]
pub(crate) struct RunState {
    pub(crate) sequence: SequenceId,
    sample: Option<SampleRequest>,
    /// The mask of the next sample, once it was asked for.
    mask: Option<TokenMask>,
    /// The latest sample, which its guide is to take before the next mask: with it beside the device's work.
    untaken: Option<TokenId>,
    /// Tokens of the log when it came.
    pub(crate) log: u32,
    /// Those of them that are input: without what its generation sampled before it was interrupted.
    pub(crate) input: u32,
    /// Times that the device was lost under it.
    pub(crate) losses: u32,
    /// The most input that was reported as done.
    pub(crate) reported: Option<u32>,
    account: Account,
}

/// The account. Every position is settled once, when it is first found or computed; what is computed below `settled` later is a
/// repeat.
#[derive(Debug)]
struct Account {
    usage: Usage,
    accepted_us: TimeUs,
    computed_before: u32,
    settled: u32,
    started: bool,
    held_bytes: u64,
    held_since_us: TimeUs,
}

impl RunState {
    pub(crate) fn new(run: &mut Run, context_limit: u32) -> Self {
        let usage = Usage { context_limit: u64::from(context_limit), ..Usage::default() };
        let account = Account {
            usage,
            accepted_us: run.accepted_us,
            computed_before: run.computed_before,
            settled: 0,
            started: false,
            held_bytes: 0,
            held_since_us: 0,
        };
        let log = run.log.len() as u32;
        let input = log.saturating_sub(run.resumed);
        let sample = run.sample.take();
        Self {
            sequence: run.sequence,
            sample,
            mask: None,
            untaken: None,
            log,
            input,
            losses: 0,
            reported: None,
            account,
        }
    }

    /// Tokens of the log now.
    pub(crate) fn log_tokens(&self) -> u32 {
        self.log + self.account.usage.output_tokens as u32
    }

    /// Whether its samples wait for masks.
    pub(crate) fn is_guided(&self) -> bool {
        self.sample.as_ref().is_some_and(|sample| sample.guide.is_some())
    }

    /// The mask of its next sample, if it is held to a form. Asked again before the next sample, it is not computed again.
    ///
    /// # Errors
    /// What its guide says; the run is to fail with it.
    pub(crate) fn mask(&mut self) -> Result<Option<TokenMask>, Failure> {
        let Some(guide) = self.sample.as_mut().and_then(|sample| sample.guide.as_mut()) else { return Ok(None) };
        if let Some(token) = self.untaken.take() {
            guide.accept(token)?;
        }
        if self.mask.is_none() {
            self.mask = Some(guide.mask()?);
        }
        Ok(self.mask.clone())
    }

    /// What was there of its log when it was admitted, first or again.
    pub(crate) fn found(&mut self, found: &Found) -> u64 {
        let account = &mut self.account;
        let before = account.usage.cached.total();
        let mut from = account.settled;
        for span in &found.spans {
            let until = span.until.min(self.input);
            let tokens = u64::from(until.saturating_sub(from));
            if span.computed_by == self.sequence {
                account.usage.cached.device += tokens;
            } else {
                account.usage.cached.shared += tokens;
            }
            from = from.max(until);
        }
        account.settled = from;
        account.usage.cached.total() - before
    }

    /// Its first step begins; later calls change nothing.
    pub(crate) fn start(&mut self, now: TimeUs) {
        if !self.account.started {
            self.account.started = true;
            self.account.usage.queue_time_us = now.saturating_sub(self.account.accepted_us);
        }
    }

    /// Rows were computed for it, with its share of the step.
    pub(crate) fn computed(&mut self, start: u32, rows: u32, precision: Precision, share: Share) {
        let Account { usage, settled, computed_before, .. } = &mut self.account;
        let end = start + rows;
        let between = |low: u32, high: u32| u64::from(end.min(high).saturating_sub(start.max(low)));
        let old = (*computed_before).min(self.input).max(*settled);
        usage.preempted_tokens += between(0, *settled);
        usage.recomputed_tokens += between(*settled, old);
        usage.computed_tokens += between(old, self.input.max(*settled));
        *settled = (*settled).max(end);
        let by_precision = match precision {
            Precision::Native => &mut usage.by_precision.native,
            Precision::Int8 => &mut usage.by_precision.int8,
            Precision::Int4 => &mut usage.by_precision.int4,
        };
        *by_precision += u64::from(rows);
        usage.device_time_us += share.device_time_us;
        match (&mut usage.modelled, &share.modelled) {
            (Some(sum), Some(share)) => *sum += share,
            (sum, share) => *sum = sum.or(*share),
        }
    }

    /// A token was sampled at `now`. Returns why the run ends with it, if it does.
    pub(crate) fn sampled(&mut self, token: &SampledToken, now: TimeUs) -> Option<FinishReason> {
        let usage = &mut self.account.usage;
        usage.output_tokens += 1;
        if usage.output_tokens == 1 {
            // 0 means that nothing was sampled.
            usage.time_to_first_token_us = now.saturating_sub(self.account.accepted_us).max(1);
        }
        let Some(sample) = &mut self.sample else { return None };
        self.mask = None;
        if sample.stop_tokens.contains(&token.id) {
            return Some(FinishReason::StopToken);
        }
        if usage.output_tokens >= u64::from(sample.max_tokens) {
            return Some(FinishReason::MaxTokens);
        }
        if u64::from(self.log) + usage.output_tokens >= usage.context_limit {
            return Some(FinishReason::ContextFull);
        }
        self.untaken = Some(token.id);
        None
    }

    /// From `now` on it holds `bytes` of KV; what it held until now is accounted for. A block that several hold counts for each.
    pub(crate) fn hold(&mut self, bytes: u64, now: TimeUs) {
        let account = &mut self.account;
        let seconds = now.saturating_sub(account.held_since_us) as f64 / 1e6;
        account.usage.kv_byte_seconds.device += account.held_bytes as f64 * seconds;
        account.held_bytes = bytes;
        account.held_since_us = now;
    }

    /// The device is a new one: its limit counts from now on.
    pub(crate) fn set_context_limit(&mut self, context_limit: u32) {
        self.account.usage.context_limit = u64::from(context_limit);
    }

    /// What it used, at its end.
    pub(crate) fn settle(mut self, now: TimeUs) -> Usage {
        self.hold(0, now);
        let context_used = u64::from(self.log_tokens());
        let Account { mut usage, accepted_us, started, .. } = self.account;
        usage.input_tokens = usage.cached.total() + usage.computed_tokens + usage.recomputed_tokens;
        usage.duration_us = now.saturating_sub(accepted_us);
        if !started {
            usage.queue_time_us = usage.duration_us;
        }
        usage.context_used = context_used;
        usage
    }
}

/// Shares `total` out by `rows`, to the last unit.
pub(crate) fn shares<K: Ord + Copy>(total: u64, rows: impl Iterator<Item = (K, u32)> + Clone) -> BTreeMap<K, u64> {
    let all: u128 = rows.clone().map(|(_, rows)| u128::from(rows)).sum();
    let mut before = 0_u128;
    let upto = |rows: u128| (u128::from(total) * rows / all.max(1)) as u64;
    rows.map(|(key, rows)| {
        let start = before;
        before += u128::from(rows);
        (key, upto(before) - upto(start))
    })
    .collect()
}

/// What a step would have taken of the chip that the device stands for, for each of its jobs.
pub(crate) fn modelled_shares(
    step: &Step,
    output: &StepOutput,
    device: &DeviceDescription,
) -> BTreeMap<JobId, ModelledUsage> {
    let Some((modelled, chip)) = output.modelled.as_ref().zip(device.modelled.as_ref()) else { return BTreeMap::new() };
    let usd_per_ns = chip.usd_per_hour.map(|price| price / NANOSECONDS_PER_HOUR);
    let used = |chip_time_ns: u64| ModelledUsage {
        chip: chip.chip,
        chip_time_ns,
        cost_usd: usd_per_ns.map(|price| price * chip_time_ns as f64),
    };
    step.jobs.iter().zip(&modelled.shares_ns).map(|(job, share)| (*job, used(*share))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        let rows = [(1, 3_u32), (2, 1), (3, 3)];
        let shared = shares(100, rows.iter().copied());
        assert_eq!(shared.values().sum::<u64>(), 100);
        assert_eq!(shared[&1], 42);
        assert_eq!(shares(7, [(1, 0_u32)].into_iter())[&1], 0);
    }
}
