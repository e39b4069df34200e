//! One device: scheduler + kv + backend, as a state machine.
#![forbid(unsafe_code)]

mod command;

pub use command::{Command, Effect, FinishReason, Run, RunId, SampleRequest};
