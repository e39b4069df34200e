//! One device: scheduler + kv + backend, as a state machine, and the thread that drives it.
//!
//! In: [`Command`]s from a worker. Out: [`Effect`]s. Deliberately not here: sessions, text, journals (the worker), kernels (the
//! backend), and clocks: time is an argument of [`Engine::poll`].
//!
//! ```text
//! commands ──▶ admit ──▶ plan ──▶ backend.submit ──▶ backend.collect ──▶ apply ──▶ effects
//! ```
//!
//! - `command`: what goes in and comes out.
//! - `engine`: the state machine, [`Engine`]; `run`: one run's limits and its account of usage; `cost`: what steps cost.
//! - `shell`: the thread, [`EngineThread`]; `snapshot`: what gauges show; `observe`: what is recorded of steps, [`StepObserver`].
//! - `testing`: a device whose tokens are a hash of every cell they can see, for tests and simulations.
#![forbid(unsafe_code)]

mod command;
mod cost;
mod engine;
mod observe;
mod run;
mod shell;
mod snapshot;
pub mod testing;

pub use command::{Command, Effect, FinishReason, Run, RunId, SampleRequest, TokenGuide};
pub use engine::{Engine, EngineConfig, NextPoll};
pub use holdfast_scheduler::SchedulerConfig;
pub use observe::StepObserver;
pub use shell::{Clock, EffectSink, EngineHandle, EngineThread, SendError};
pub use snapshot::{BlockUse, EngineSnapshot};
