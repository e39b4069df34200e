//! What a worker says to an engine and what it hears back.

use std::fmt;

use holdfast_kv::ChainDomain;
use holdfast_types::{
    Failure, LogToken, Precision, SampledToken, SamplingParams, SequenceId, TimeUs, TokenId, TokenMask, Usage,
};

/// Names one run of one sequence; drawn by the worker, never reused within a process, so that a late effect of a cancelled
/// run is never taken for one of the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(pub u64);

/// A command; taken between steps only.
#[derive(Debug, Clone)]
pub enum Command {
    /// Compute what is new in a sequence's log and, if asked, sample. A sequence has at most one run at a time.
    Run(Box<Run>),
    /// End a run at the next step boundary; answered by [`Effect::Finished`] with [`FinishReason::Cancelled`], unless the run
    /// has ended already.
    Cancel {
        /// Which run.
        run: RunId,
    },
    /// The sequence will not come back (session deleted or unloaded): forget its partial block. Its full blocks stay in the
    /// residency index until they are evicted.
    Forget {
        /// Which sequence.
        sequence: SequenceId,
    },
}

/// A run: one generation of a turn, or a prefill.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its name.
    pub run: RunId,
    /// The sequence whose log this is.
    pub sequence: SequenceId,
    /// The whole token log, old and new. Never empty.
    pub log: Vec<LogToken>,
    /// Positions below this had their KV computed in an earlier run; computing them again counts as recomputed.
    pub computed_before: u32,
    /// Under which secret its blocks are keyed, per position range.
    pub domain: ChainDomain,
    /// Runs of one flow share a fair part of the device; the worker gives each session a flow of its own.
    pub flow: u64,
    /// When the turn was accepted: queue time and time to first token count from here.
    pub accepted_us: TimeUs,
    /// Nothing of its KV is wanted again: what it leaves on the device is evicted before anything that a session left.
    pub transient: bool,
    /// Tokens at the end of the log that this run's generation sampled before it was interrupted. They are its output, so
    /// they are no part of the input that usage and progress tell of. 0 for a generation that begins; less than the log.
    pub resumed: u32,
    /// What to sample; `None` computes all but the last token of the log and stops (prefill).
    pub sample: Option<SampleRequest>,
}

/// How a run samples and when it stops.
#[derive(Debug, Clone)]
pub struct SampleRequest {
    /// The sampler's settings.
    pub params: SamplingParams,
    /// Draws are keyed by (seed, position in the log).
    pub seed: u64,
    /// Most tokens to sample, at least 1.
    pub max_tokens: u32,
    /// Sampling one of these ends the run; it is reported as sampled.
    pub stop_tokens: Vec<TokenId>,
    /// Precision of the sampled tokens' KV.
    pub precision: Precision,
    /// Says before each sample which tokens may be drawn, where something is held to a form. It stands behind the log's end.
    pub guide: Option<Box<dyn TokenGuide>>,
    /// Tokens sampled earlier in the same turn, oldest first, for the penalties.
    pub sampled_before: Vec<TokenId>,
}

/// Holds what a run samples to a form. A function of what it was made for and the tokens that it took: two that took the same say
/// the same. The engine asks it beside the device's work, at most once for each token.
pub trait TokenGuide: fmt::Debug + Send {
    /// The tokens that may come next, at least one: those that end the run exactly where what was sampled is whole.
    ///
    /// # Errors
    /// Why it cannot go on; the run fails with it.
    fn mask(&mut self) -> Result<TokenMask, Failure>;
    /// Takes the token that was sampled; never one that ended the run.
    ///
    /// # Errors
    /// As for `mask`.
    fn accept(&mut self, token: TokenId) -> Result<(), Failure>;
    /// The same guide, to go its own way from here.
    fn fork(&self) -> Box<dyn TokenGuide>;
}

impl Clone for Box<dyn TokenGuide> {
    fn clone(&self) -> Self {
        self.fork()
    }
}

/// What an engine reports.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// How much of a run's input is there; sent when the run is admitted and after each of its prefill steps.
    Progress {
        /// Which run.
        run: RunId,
        /// Tokens whose KV is there.
        done: u32,
        /// Tokens of the log.
        total: u32,
    },
    /// Tokens were sampled, in order of position.
    Sampled {
        /// Which run.
        run: RunId,
        /// The tokens.
        tokens: Vec<SampledToken>,
    },
    /// The run ended. In the same batch of effects as its last `Sampled`.
    Finished {
        /// Which run.
        run: RunId,
        /// Why.
        reason: FinishReason,
        /// What it used. `duration_us` and `kv_byte_seconds` are filled as far as the engine knows them.
        usage: Box<Usage>,
    },
    /// The run failed; nothing more of it follows.
    Failed {
        /// Which run.
        run: RunId,
        /// Why.
        failure: Failure,
        /// What it used.
        usage: Box<Usage>,
    },
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token was sampled.
    StopToken,
    /// `max_tokens` were sampled.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// It was cancelled.
    Cancelled,
    /// A prefill computed everything.
    Prefilled,
}
