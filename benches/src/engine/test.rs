//! One test of the matrix, and what it gave.
//!
//! In: a device. Out: tokens per second, and which part of the machine's limits that is. Deliberately not here: which tests there
//! are, and in which order they run.

use anyhow::Context as _;
use serde_json::{Value, json};

use super::device::DeviceBench;
use super::peer::PeerTest;
use super::work::Work;
use crate::statistics::{Summary, ratios};

/// Steps of a decode that warm its test up.
const WARM_UP_STEPS: u32 = 2;

/// What one test does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Prefill,
    Decode,
}

/// One cell of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Test {
    pub(crate) kind: Kind,
    pub(crate) tokens: u32,
    pub(crate) depth: u32,
    pub(crate) batch: u32,
}

/// A test and what it gave, one sample for each repetition.
pub(crate) struct Measured {
    pub(crate) test: Test,
    pub(crate) shares_history: bool,
    pub(crate) tokens_per_s: Vec<f64>,
    pub(crate) peer_tokens_per_s: Vec<f64>,
}

impl Test {
    pub(crate) fn name(self) -> String {
        let Self { tokens, depth, batch, .. } = self;
        match self.kind {
            Kind::Prefill => format!("prefill {tokens} at {depth}"),
            Kind::Decode => format!("decode {tokens} at {depth}, batch {batch}"),
        }
    }

    pub(crate) fn warm_up(self, bench: &mut DeviceBench, chunk: u32) -> anyhow::Result<()> {
        let tokens = self.tokens.min(if self.kind == Kind::Prefill { chunk } else { WARM_UP_STEPS });
        Self { tokens, ..self }.run(bench).map(drop)
    }

    /// Runs it once; tokens per second of the whole batch.
    pub(crate) fn run(self, bench: &mut DeviceBench) -> anyhow::Result<f64> {
        let spent = match self.kind {
            Kind::Prefill => bench.prefill(self.tokens, self.depth),
            Kind::Decode => bench.decode(self.tokens, self.depth, self.batch),
        };
        let spent = spent.with_context(|| self.name())?;
        Ok(self.tokens_in_all() / spent.as_secs_f64())
    }

    pub(crate) fn tokens_in_all(self) -> f64 {
        f64::from(self.tokens) * f64::from(self.batch)
    }

    /// `llama-bench` knows no batches of sequences.
    pub(crate) fn for_peer(self) -> Option<PeerTest> {
        let Self { kind, tokens, depth: d, batch } = self;
        (batch == 1).then_some(match kind {
            Kind::Prefill => PeerTest { p: tokens, n: 0, d },
            Kind::Decode => PeerTest { p: 0, n: tokens, d },
        })
    }

    /// Part of the peak that the matrices' arithmetic has, at so many tokens per second.
    pub(crate) fn fraction_of_peak(self, tokens_per_s: f64, work: &Work, peak_gops: f64) -> f64 {
        let operations = match self.kind {
            Kind::Prefill => work.prefill_operations(self.tokens, self.depth),
            Kind::Decode => work.decode_operations(self.tokens, self.depth, self.batch),
        };
        operations * tokens_per_s / self.tokens_in_all() / (peak_gops * 1e9)
    }

    /// Part of the rate at which memory can be read. A prefill reads the weights once for many tokens, which says nothing.
    pub(crate) fn fraction_of_bandwidth(self, tokens_per_s: f64, work: &Work, read_gb_per_s: f64) -> Option<f64> {
        let bytes = work.decode_bytes(self.tokens, self.depth, self.batch);
        (self.kind == Kind::Decode).then(|| bytes * tokens_per_s / self.tokens_in_all() / (read_gb_per_s * 1e9))
    }
}

impl Measured {
    pub(crate) fn median(&self) -> f64 {
        Summary::of(&self.tokens_per_s).median
    }

    /// Ours over the peer's, repetition by repetition; `None` without a peer.
    pub(crate) fn ratio(&self) -> Option<Summary> {
        (!self.peer_tokens_per_s.is_empty()).then(|| Summary::of(&ratios(&self.tokens_per_s, &self.peer_tokens_per_s)))
    }

    pub(crate) fn to_json(&self, work: &Work, peak_gops: f64, read_gb_per_s: f64) -> Value {
        let Test { kind, tokens, depth, batch } = self.test;
        let median = self.median();
        let mut all = json!({
            "kind": if kind == Kind::Prefill { "prefill" } else { "decode" },
            "p": if kind == Kind::Prefill { tokens } else { 0 },
            "n": if kind == Kind::Decode { tokens } else { 0 },
            "d": depth,
            "b": batch,
            "shares_history": self.shares_history,
            "tokens_per_s": Summary::of(&self.tokens_per_s),
            "fraction_of_peak": self.test.fraction_of_peak(median, work, peak_gops),
            "fraction_of_bandwidth": self.test.fraction_of_bandwidth(median, work, read_gb_per_s),
        });
        if let Some(ratio) = self.ratio() {
            all["peer_tokens_per_s"] = json!(Summary::of(&self.peer_tokens_per_s));
            all["ratio"] = json!(ratio);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use holdfast_backend_neuron::WeightFormat;
    use holdfast_model::random::MicroShape;

    #[test]
    fn fractions_are_of_the_limits() {
        let model = MicroShape::default().build().unwrap();
        let work = Work::new(model.config(), WeightFormat::F32);
        let test = Test { kind: Kind::Decode, tokens: 2, depth: 8, batch: 4 };
        let bytes = work.decode_bytes(2, 8, 4);
        // Eight tokens in one second read `bytes`; at 10 GB/s they could be read in a part of it.
        let fraction = test.fraction_of_bandwidth(8.0, &work, 10.0).unwrap();
        assert!((fraction - bytes / 10e9).abs() < 1e-12);
        let fraction = test.fraction_of_peak(16.0, &work, 5.0);
        assert!((fraction - 2.0 * work.decode_operations(2, 8, 4) / 5e9).abs() < 1e-12);
        let prefill = Test { kind: Kind::Prefill, tokens: 10, depth: 0, batch: 1 };
        assert_eq!(prefill.fraction_of_bandwidth(8.0, &work, 10.0), None);
    }
}
