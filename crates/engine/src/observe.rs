//! What is recorded of steps: a span and the device's metrics.
//!
//! In: steps as they begin and end. Out: spans under the names of `holdfast_telemetry::names`, [`DeviceMetrics`]. Deliberately not
//! here: the spans of runs (the worker's, which it shares through [`RunSpans`]).
//!
//! A step computes for a whole batch, so it has one span, whatever the batch's size: the child of its oldest run's span, linked
//! to those of some of the others. Nothing is allocated for a step while spans are off.

use std::time::Duration;

use holdfast_scheduler::Step;
use holdfast_telemetry::{DeviceMetrics, Metrics, RunSpans, names};
use holdfast_types::StepOutput;
use tracing::{Level, Span};

/// Records the steps of one engine; see [`Engine::observe`](crate::Engine::observe).
#[derive(Debug)]
pub struct StepObserver {
    device: String,
    metrics: DeviceMetrics,
    runs: RunSpans,
    /// Preemptions of the scheduler that were recorded.
    preemptions: u64,
}

impl StepObserver {
    /// Records under the name of a device. `runs` is shared with the worker that names the runs.
    pub fn new(device: &str, metrics: &Metrics, runs: RunSpans) -> Self {
        Self { device: device.to_owned(), metrics: metrics.device(device), runs, preemptions: 0 }
    }

    /// The span of a step that is about to be submitted; disabled while spans of steps are off.
    pub(crate) fn begin(&self, step: &Step) -> Span {
        if !tracing::span_enabled!(Level::DEBUG) {
            return Span::none();
        }
        let runs = self.runs.of(step.jobs.iter().map(|job| job.0));
        let (oldest, others) = match runs.split_first() {
            Some((oldest, others)) => (oldest.id(), others),
            None => (None, &[][..]),
        };
        // Signed: the exporter writes unsigned numbers as text.
        let span = tracing::debug_span!(
            parent: oldest,
            names::SPAN_STEP,
            { names::DEVICE } = self.device,
            { names::STEP_ID } = step.plan.id.0 as i64,
            { names::ROWS } = i64::from(step.rows),
            { names::SEQUENCES } = step.jobs.len() as i64,
        );
        for other in others {
            span.follows_from(other);
        }
        span
    }

    /// The step was collected; `preemptions` is the scheduler's total.
    pub(crate) fn end(&mut self, step: &Step, output: &StepOutput, preemptions: u64) {
        let duration = Duration::from_micros(output.device_time_us);
        self.metrics.step(step.jobs.len() as u64, u64::from(step.rows), duration);
        if let Some(modelled) = &output.modelled {
            let duration = Duration::from_nanos(modelled.chip_time_ns);
            self.metrics.step_modelled(duration, modelled.padding, modelled.programs_made.into());
        }
        let new = preemptions.saturating_sub(self.preemptions);
        self.preemptions = preemptions;
        if new > 0 {
            self.metrics.preempted(new);
        }
    }
}
