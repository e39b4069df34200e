//! A device that costs nothing: no weights, no KV, and a word for every row that asks for one.
//!
//! In: the plans of any device. Out: one sample for each row that is to have one, drawn from a list of printable tokens by slot and
//! position. It checks nothing and keeps nothing, so that what a step takes is the runtime's own time. Deliberately not here:
//! anything that a product path may use.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_backend::{Backend, BackendError, BlockCopy, CopyDone, CopyTicket, StepTicket};
use holdfast_model::ModelText;
use holdfast_types::{
    DeviceDescription, Digest, KvGroup, LateInputs, NumericsClass, Precision, SampledToken, SequenceOutput, SlotId,
    StepLimits, StepOutput, StepPlan, TokenId,
};

/// Tokens of one block; nothing is in it, but the books are kept as for a real device.
const BLOCK_TOKENS: u32 = 16;
/// Most rows of a step.
const STEP_ROWS: u32 = 4_096;
/// Most tokens of a sequence.
const CONTEXT: u32 = 32_768;

/// See the module's documentation.
pub(crate) struct NoopDevice {
    description: DeviceDescription,
    words: Vec<TokenId>,
    /// Of the step that is open.
    answer: Option<StepOutput>,
    work: Arc<Work>,
}

/// What a device was asked for, for whoever counts; it only grows.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub(crate) steps: AtomicU64,
    pub(crate) rows: AtomicU64,
    pub(crate) samples: AtomicU64,
}

impl NoopDevice {
    /// A device with room for `sequences` of 1,024 tokens each. `words`: what it samples, below `vocab_size`; never empty.
    pub(crate) fn new(sequences: u32, vocab_size: u32, words: Vec<TokenId>, work: Arc<Work>) -> Self {
        Self { description: describe(sequences, vocab_size), words, answer: None, work }
    }

    fn word(&self, slot: SlotId, position: u32) -> TokenId {
        let place = slot.0.wrapping_mul(0x85EB_CA77) ^ position.wrapping_mul(0x9E37_79B1);
        self.words[(place >> 8) as usize % self.words.len()]
    }

    fn answer(&self, plan: &StepPlan) -> StepOutput {
        let sequences = plan.sequences.iter().filter(|sequence| !sequence.outputs.is_empty()).map(|sequence| {
            let sample = |row: u32| {
                let position = sequence.start + row + 1;
                SampledToken { id: self.word(sequence.slot, position), position, logprobs: Vec::new() }
            };
            let samples = sequence.outputs.iter().map(|output| sample(output.row)).collect();
            SequenceOutput { slot: sequence.slot, samples, logits: Vec::new() }
        });
        // What making this answer takes is the harness's time, not a device's: the cost model is told of none.
        StepOutput { id: plan.id, sequences: sequences.collect(), device_time_us: 0, modelled: None }
    }
}

/// What the device says of itself.
pub(crate) fn describe(sequences: u32, vocab_size: u32) -> DeviceDescription {
    DeviceDescription {
        name: "noop:0".to_owned(),
        backend: "noop".to_owned(),
        numerics_class: NumericsClass::new("noop/r1"),
        weights: Digest::default(),
        kv_layout: "none".to_owned(),
        block_tokens: BLOCK_TOKENS,
        kv_groups: vec![KvGroup {
            layers: vec![0],
            window: None,
            blocks: sequences * 1_024 / BLOCK_TOKENS + CONTEXT / BLOCK_TOKENS,
            bytes_per_block: u64::from(BLOCK_TOKENS),
        }],
        slots: sequences,
        limits: StepLimits { rows: STEP_ROWS, sequences, context: CONTEXT, in_flight: 1 },
        vocab_size,
        precisions: vec![Precision::Native],
        price_usd_per_hour: None,
        modelled: None,
        epoch: 1,
    }
}

/// Tokens that show as they are sampled: whole letters of ASCII, so that no text is held back and no turn ends early.
///
/// # Errors
/// When the tokenizer has none.
pub(crate) fn words(text: &ModelText) -> anyhow::Result<Vec<TokenId>> {
    let shows = |id: &TokenId| {
        let bytes = text.token_bytes(*id);
        let letters = bytes.strip_prefix(b" ").unwrap_or(bytes);
        !letters.is_empty() && letters.iter().all(u8::is_ascii_lowercase)
    };
    let stops = text.stop_tokens();
    let words: Vec<TokenId> =
        (0..text.vocab_size()).filter(|id| !text.is_special(*id) && !stops.contains(id) && shows(id)).collect();
    anyhow::ensure!(!words.is_empty(), "the tokenizer has no token of plain letters");
    Ok(words)
}

impl Backend for NoopDevice {
    fn describe(&self) -> &DeviceDescription {
        &self.description
    }

    fn submit(&mut self, plan: &StepPlan) -> Result<StepTicket, BackendError> {
        let answer = self.answer(plan);
        let rows: usize = plan.sequences.iter().map(|sequence| sequence.inputs.len()).sum();
        self.work.steps.fetch_add(1, Ordering::Relaxed);
        self.work.rows.fetch_add(rows as u64, Ordering::Relaxed);
        self.work.samples.fetch_add(answer.sequences.len() as u64, Ordering::Relaxed);
        self.answer = Some(answer);
        Ok(StepTicket(plan.id))
    }

    fn collect(&mut self, step: StepTicket, _late: &LateInputs) -> Result<StepOutput, BackendError> {
        let answer = self.answer.take().filter(|answer| answer.id == step.0);
        answer.ok_or_else(|| BackendError::Rejected(format!("step {} is not open", step.0.0)))
    }

    fn begin_copy(&mut self, _copy: BlockCopy) -> Result<CopyTicket, BackendError> {
        Err(BackendError::Rejected("this device holds no KV".to_owned()))
    }

    fn poll_copies(&mut self) -> Vec<CopyDone> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use holdfast_model::{Model, ModelSource};
    use holdfast_types::{KvDestination, OutputRequest, RowInput, RowOutput, SequenceStep, StepId};

    use super::*;

    fn plan(id: u64, outputs: &[&[u32]]) -> StepPlan {
        let sequence = |(slot, rows): (u32, &&[u32])| SequenceStep {
            slot: SlotId(slot),
            start: 10,
            inputs: vec![RowInput::Token(1); 4],
            precision: Precision::Native,
            destination: KvDestination::Pool,
            outputs: rows.iter().map(|row| RowOutput { row: *row, request: OutputRequest::Sample }).collect(),
        };
        let sequences = (0..).zip(outputs).map(sequence).collect();
        StepPlan { id: StepId(id), slots: Vec::new(), copies: Vec::new(), sequences }
    }

    #[test]
    fn who_asks_is_answered_at_the_right_position() {
        let work = Arc::<Work>::default();
        let mut device = NoopDevice::new(4, 100, vec![7, 8, 9], Arc::clone(&work));
        let ticket = device.submit(&plan(1, &[&[3], &[], &[1, 2]])).unwrap();
        let output = device.collect(ticket, &LateInputs::default()).unwrap();
        let said: Vec<_> = output.sequences.iter().map(|sequence| (sequence.slot.0, &sequence.samples)).collect();
        assert_eq!(said.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [0, 2], "who asked for nothing is left out");
        let positions: Vec<_> = said.iter().flat_map(|(_, samples)| samples.iter()).map(|one| one.position).collect();
        assert_eq!(positions, [14, 12, 13]);
        assert!(said.iter().flat_map(|(_, samples)| samples.iter()).all(|one| (7..10).contains(&one.id)));
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        assert_eq!((count(&work.steps), count(&work.rows), count(&work.samples)), (1, 12, 2));
        assert!(device.collect(StepTicket(StepId(1)), &LateInputs::default()).is_err(), "a step is collected once");
    }

    #[test]
    fn words_are_text_that_ends_nothing() {
        let model = Model::load(&ModelSource::resolve("pebble").unwrap()).unwrap();
        let text = model.text();
        let words = words(text).unwrap();
        assert!(words.len() > 26, "{} words", words.len());
        assert!(words.iter().all(|id| !text.is_special(*id) && !text.stop_tokens().contains(id)));
        assert!(words.iter().all(|id| std::str::from_utf8(text.token_bytes(*id)).is_ok_and(|t| !t.trim().is_empty())));
    }
}
