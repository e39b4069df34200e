//! Sessions on one node.
//!
//! In: requests in worker-api's words, effects of engines, commits of the journal. Out: replies and event streams, batches for
//! the journal, runs for engines. Deliberately not here: protobuf (the gateway's), devices (the engine's), storage (the
//! journal's), how a model's text works (the model crate's).
//!
//! - [`fold`]: the pure fold of a session's journal to its state and numbered events; live and replay are the same code.
//! - [`core`]: the state machine over sessions, `poll(now, inputs) -> effects`.
//! - the shell, [`LocalWorker`]: one task that owns the core; a clock, randomness, streams.
//! - [`guiding`]: what a turn's constraint and tool choice let its generations say.
//! - [`language`]: what all of them ask of a model's text side.
#![forbid(unsafe_code)]

pub mod core;
pub mod fold;
pub mod guiding;
pub mod language;
mod model_language;
mod shell;

pub use model_language::{TextOfModel, speech_of};
pub use shell::{Clock, Device, Entropy, LocalWorker, WorkerInbox, WorkerPort, WorkerSettings};
