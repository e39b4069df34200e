//! What a scheduler is asked to do and what it says of it.

use holdfast_kv::{ChainDomain, Found};
use holdfast_types::{LogToken, Precision, SampledToken, SamplingParams, SequenceId, TokenId};

/// Names a job; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub u64);

/// Tokens to compute, and perhaps to go on from. A sequence has at most one job at a time.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// Whose log this is.
    pub sequence: SequenceId,
    /// The whole log; never empty.
    pub log: Vec<LogToken>,
    /// Under which secrets its blocks are keyed.
    pub domain: ChainDomain,
    /// Jobs of one flow share one virtual counter.
    pub flow: u64,
    /// Its sequence will not come back: what it leaves in the cache is evicted before anything else.
    pub transient: bool,
    /// How it samples. `None` computes all but the last token of the log and is then complete.
    pub sampling: Option<JobSampling>,
}

/// How a job samples.
#[derive(Debug, Clone)]
pub struct JobSampling {
    /// The sampler's settings.
    pub params: SamplingParams,
    /// Draws are keyed by (seed, position).
    pub seed: u64,
    /// Precision of the sampled tokens' KV.
    pub precision: Precision,
    /// Tokens sampled earlier in the same turn, oldest first.
    pub sampled_before: Vec<TokenId>,
}

/// A job that got a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// Which.
    pub job: JobId,
    /// What was there of its log.
    pub found: Found,
}

/// What one step gave one job.
#[derive(Debug, Clone, PartialEq)]
pub struct Advance {
    /// Which.
    pub job: JobId,
    /// Position of the first row.
    pub start: u32,
    /// Rows computed.
    pub rows: u32,
    /// Their precision.
    pub precision: Precision,
    /// What was sampled, if the rows reached the end of the log.
    pub sampled: Option<SampledToken>,
}

/// Why a log can never run here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Longer than the device's context.
    #[error("the log has {tokens} tokens, the context of the device holds {limit}")]
    Context {
        /// Tokens of the log.
        tokens: u32,
        /// Most that fit.
        limit: u32,
    },
    /// Its KV does not fit the pool even when nothing else is there.
    #[error("the log has {tokens} tokens, the KV pool holds {limit}")]
    Pool {
        /// Tokens of the log.
        tokens: u32,
        /// Most that fit.
        limit: u32,
    },
}

/// A step's output that does not answer its plan: a defect of the backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the output of step {step} does not answer its plan: {problem}")]
pub struct ApplyError {
    /// The step that was planned.
    pub step: u64,
    /// What is wrong.
    pub problem: String,
}
