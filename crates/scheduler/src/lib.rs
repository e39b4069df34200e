//! Which tokens run in the next step: [`Scheduler::admit`], [`Scheduler::plan`], [`Scheduler::apply`].
//!
//! In: jobs (token logs to compute), what a step may cost, what a step gave. Out: [`holdfast_types::StepPlan`]s and what each
//! job gained. Deliberately not here: when a run ends and why, usage, devices, time (the engine). Pure and synchronous: the same
//! calls give the same plans.
//!
//! There is no prefill phase and no decode phase: a job has tokens that are not computed yet, and a step computes some of them
//! for some jobs.
//!
//! - `job`: what is asked for, [`Job`], and what happened, [`Advance`].
//! - `fair`: the virtual counters that share a device out among flows, and who is next.
//! - `choose`: which jobs run how many rows within a budget, [`Costs`].
//! - `running`: the jobs that run, and the blocks they still take.
//! - `scheduler`: the state, [`Scheduler`]; `plan`: how a step is put together and taken back.
#![forbid(unsafe_code)]

/// The tests' harness knows the crate by its name.
#[cfg(test)]
extern crate self as holdfast_scheduler;

mod choose;
mod fair;
mod job;
mod plan;
mod running;
mod scheduler;
#[cfg(test)]
mod tests;

pub use choose::Costs;
pub use job::{Admitted, Advance, ApplyError, Job, JobId, JobSampling, Unfit};
pub use plan::{Abandon, SampleRow, Step};
pub use scheduler::{Scheduler, SchedulerConfig};
