//! The plain vocabulary of Holdfast: ids, items, token runs, turns, events, usage, step plans, device descriptions,
//! limits and the closed list of error reasons.
//!
//! Everything here is data: no IO, no async, no clock, no randomness. Every other crate speaks these words, so a word is
//! added here only when two crates need it.
#![forbid(unsafe_code)]

mod device;
mod error;
mod event;
mod ids;
mod item;
mod limits;
mod modelled;
mod plan;
mod sampling;
mod session;
mod token;
mod turn;
mod usage;

pub use device::{DeviceDescription, KvGroup, NumericsClass, StepLimits};
pub use error::{Failure, FailureDetail, Reason, ReasonKind};
pub use event::{Event, EventKind, TokenRange};
pub use ids::{IdError, ItemNumber, Principal, SequenceId, SessionId, TenantId, TurnNumber};
pub use item::{Item, ItemContent, ItemState, NumberedItem, Part, Role};
pub use limits::Limits;
pub use modelled::{ChipName, ModelledChip, ModelledStep, ModelledUsage, NotAChip};
pub use plan::{
    BlockId, BlockMove, KvDestination, LateInputs, OutputRequest, RowInput, RowOutput, SampledToken, SequenceOutput,
    SequenceStep, SlotChange, SlotId, SlotSampling, StepId, StepOutput, StepPlan, TableChange, TokenLogprob, TokenMask,
};
pub use sampling::{Constraint, GenerationSettings, SamplingOverrides, SamplingParams};
pub use session::{
    Digest, ModelRevision, NumericsPolicy, ReasoningEffort, ReasoningRetention, SessionConfig, SessionState, Sharing,
    Tool,
};
pub use token::{LogToken, Origin, Precision, TokenId, TokenRun};
pub use turn::{
    GenerationRecord, OnBusy, OnDisconnect, RequiredCall, StopReason, ToolChoice, Turn, TurnState, UnresolvedCalls,
};
pub use usage::{CachedTokens, KvByteSeconds, PrecisionTokens, Usage};

/// Microseconds since the Unix epoch. Time enters the house as an argument; nothing in the pure crates reads a clock.
pub type TimeUs = u64;
