//! The state machine: commands in, one step of the device, effects out.
//!
//! In: [`Command`]s and the time. Out: [`Effect`]s. Deliberately not here: threads and clocks (`shell.rs`).
//!
//! Each [`Engine::poll`] takes commands (a cancelled run's place is free before the next step is planned), admits, and runs one
//! step: plan, submit, collect, apply. What it answers to each failure of the device:
//!
//! | failure | answer |
//! |---|---|
//! | `Rejected` | a defect of ours: the step's runs fail with `INTERNAL`, the engine lives on |
//! | `OutOfMemory` | the next step is half as large; a step of one row that does not fit fails its run |
//! | `Fault` | the step's runs fail with `DEVICE_FAULT`; its slot changes are taken to stand |
//! | `Lost` | the pool is empty and every run is parked until the device answers an empty step again; those that were hit compute again, each at most `losses_max` times, then `DEVICE_LOST` |
//! | an output that does not answer its plan | like `Fault`, with `INTERNAL` |
//!
//! **A device that is away.** After `Lost` nothing is admitted and nothing planned; a step of nothing is tried, at once and then after
//! pauses that grow ([`Engine::next_poll`]), until it succeeds. A device that answers it is back, with whatever it says it is now.
//! Runs wait for as long as it takes, are taken and cancelled meanwhile, and failed tries count as nobody's loss.
//!
//! A run whose [`crate::TokenGuide`] fails fails alone: its row was computed, its sample is left aside.
//!
//! **The end of a log.** A run samples from the row of its last log token, so that row is always computed, even when everything is
//! found: at most all but the last token is taken from the cache. A prefill (no sampling) computes all but the last token. The last
//! token that a run samples is not computed; the next run does it. Over a conversation the rows computed are the log's length
//! less one, each exactly once.

use std::collections::BTreeMap;

use holdfast_backend::sampler::SlotSampler;
use holdfast_backend::{Backend, BackendError, StepTicket};
use holdfast_scheduler::{
    Abandon, Admitted, Advance, Job, JobId, JobSampling, Scheduler, SchedulerConfig, Step, Unfit,
};
use holdfast_types::{
    DeviceDescription, Failure, LateInputs, Reason, SequenceId, SlotSampling, StepId, StepOutput, StepPlan, TimeUs,
};

use crate::cost::CostModel;
use crate::observe::StepObserver;
use crate::run::{RunState, Share, modelled_shares, shares};
use crate::{BlockUse, Command, Effect, EngineSnapshot, FinishReason, Run, RunId};

/// Settings of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineConfig {
    /// How steps are filled.
    pub scheduler: SchedulerConfig,
    /// How often one run computes again after the device was lost before it fails.
    pub losses_max: u32,
}

impl Default for EngineConfig {
    /// The scheduler's defaults; three losses.
    fn default() -> Self {
        Self { scheduler: SchedulerConfig::default(), losses_max: 3 }
    }
}

/// The pause after the first try of a device that is away; it doubles with each further one.
const AWAY_PAUSE_US: u64 = 10_000;
/// ... up to this: what a session waits at most after its device is back.
const AWAY_PAUSE_MAX_US: u64 = 1_000_000;
/// The step of nothing that a device which is away is tried with; the scheduler counts from 1.
const AWAY_STEP: StepId = StepId(0);

/// When an engine wants its next poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextPoll {
    /// At once: there is work.
    Now,
    /// At this time, or when there is a command: the device is away.
    At(TimeUs),
    /// When there is a command.
    OnCommand,
}

/// The device is away.
#[derive(Debug, Clone, Copy)]
struct Away {
    /// When it is tried again.
    next_us: TimeUs,
    /// The pause after that.
    pause_us: u64,
}

/// One device and everything that runs on it. Owned by one caller, who polls it while it has work.
pub struct Engine {
    backend: Box<dyn Backend>,
    device: DeviceDescription,
    config: EngineConfig,
    scheduler: Scheduler,
    runs: BTreeMap<RunId, RunState>,
    sequences: BTreeMap<SequenceId, RunId>,
    costs: CostModel,
    /// Most rows of a step: less than the device's limit after it ran out of memory, growing back with every step that fits.
    rows_max: u32,
    /// The device was lost and has not answered since.
    away: Option<Away>,
    totals: EngineSnapshot,
    observer: Option<StepObserver>,
}

impl Engine {
    /// An engine over a device.
    pub fn new(backend: Box<dyn Backend>, config: EngineConfig) -> Self {
        let device = backend.describe().clone();
        Self {
            scheduler: Scheduler::new(&device, config.scheduler),
            rows_max: device.limits.rows,
            runs: BTreeMap::new(),
            sequences: BTreeMap::new(),
            costs: CostModel::default(),
            away: None,
            totals: EngineSnapshot::default(),
            observer: None,
            backend,
            device,
            config,
        }
    }

    /// Records every step from now on.
    pub fn observe(&mut self, observer: StepObserver) {
        self.observer = Some(observer);
    }

    /// What the device is.
    pub fn device(&self) -> &DeviceDescription {
        &self.device
    }

    /// Most tokens that a log may reach here.
    pub fn context_limit(&self) -> u32 {
        self.scheduler.context_limit()
    }

    /// Whether any run waits or runs.
    pub fn has_work(&self) -> bool {
        self.scheduler.has_work()
    }

    /// When a poll without commands would do anything.
    pub fn next_poll(&self) -> NextPoll {
        match self.away {
            _ if !self.has_work() => NextPoll::OnCommand,
            Some(away) => NextPoll::At(away.next_us),
            None => NextPoll::Now,
        }
    }

    /// Takes commands and runs at most one step. `now` never goes back.
    pub fn poll(&mut self, now: TimeUs, commands: Vec<Command>) -> Vec<Effect> {
        let mut effects = Vec::new();
        for command in commands {
            self.take(command, now, &mut effects);
        }
        let mut end = now;
        if self.has_work() && self.is_present(now) {
            self.follow_epoch(now, &mut effects);
            self.admit(now, &mut effects);
            end = self.step(now, &mut effects);
        }
        for (run, state) in &mut self.runs {
            state.hold(self.scheduler.held_bytes(JobId(run.0)), end);
        }
        effects
    }

    /// Ends every run with [`Reason::RuntimeDraining`]: the worker goes on from its journal elsewhere or later.
    pub fn drain(&mut self, now: TimeUs) -> Vec<Effect> {
        let mut effects = Vec::new();
        for run in self.runs.keys().copied().collect::<Vec<_>>() {
            self.fail(run, Failure::new(Reason::RuntimeDraining, "the runtime is shutting down"), now, &mut effects);
        }
        effects
    }

    /// Gauges and totals.
    pub fn snapshot(&self) -> EngineSnapshot {
        let running = self.scheduler.running().len() as u32;
        let mut blocks = BlockUse::default();
        for group in 0..self.scheduler.kv_groups() {
            let counts = self.scheduler.block_counts(group);
            blocks.total += counts.total;
            blocks.used += counts.used;
            blocks.cached += counts.cached;
            blocks.free += counts.free;
        }
        let (waiting, preemptions) = (self.scheduler.waiting() as u32, self.scheduler.preemptions());
        EngineSnapshot { running, waiting, blocks, preemptions, ..self.totals }
    }

    /// Checks every invariant of scheduler, cache and runs. Returns what is wrong.
    pub fn audit(&self) -> Vec<String> {
        let mut problems = self.scheduler.audit();
        for run in self.runs.keys().filter(|run| !self.scheduler.contains(JobId(run.0))) {
            problems.push(format!("{run:?} is known and not scheduled"));
        }
        let scheduled = self.scheduler.running().len() + self.scheduler.waiting();
        if scheduled != self.runs.len() || self.sequences.len() != self.runs.len() {
            problems.push(format!(
                "{scheduled} jobs for {} runs of {} sequences",
                self.runs.len(),
                self.sequences.len()
            ));
        }
        problems
    }

    fn take(&mut self, command: Command, now: TimeUs, effects: &mut Vec<Effect>) {
        match command {
            Command::Run(run) => self.begin(*run, now, effects),
            Command::Cancel { run } => self.finish(run, FinishReason::Cancelled, now, effects),
            Command::Forget { sequence } => {
                if let Some(&run) = self.sequences.get(&sequence) {
                    self.finish(run, FinishReason::Cancelled, now, effects);
                }
                self.scheduler.forget(sequence);
            }
        }
    }

    fn begin(&mut self, mut run: Run, now: TimeUs, effects: &mut Vec<Effect>) {
        let id = run.run;
        let checked = self.check(&run);
        let context_limit = self.context_limit();
        let sampling = run.sample.as_ref().map(|sample| JobSampling {
            params: sample.params.clone(),
            seed: sample.seed,
            precision: sample.precision,
            sampled_before: sample.sampled_before.clone(),
        });
        let state = RunState::new(&mut run, context_limit);
        if let Err(failure) = checked {
            let usage = Box::new(state.settle(now));
            effects.push(Effect::Failed { run: id, failure, usage });
            return;
        }
        if sampling.is_some() && state.log == context_limit {
            let usage = Box::new(state.settle(now));
            effects.push(Effect::Finished { run: id, reason: FinishReason::ContextFull, usage });
            return;
        }
        let Run { sequence, log, domain, flow, transient, .. } = run;
        match self.scheduler.submit(Job { id: JobId(id.0), sequence, log, domain, flow, transient, sampling }) {
            Ok(()) => {
                self.sequences.insert(sequence, id);
                self.runs.insert(id, state);
            }
            Err(unfit) => {
                let usage = Box::new(state.settle(now));
                effects.push(Effect::Failed { run: id, failure: does_not_fit(unfit), usage });
            }
        }
    }

    /// What a worker must have seen to. A run that breaks it fails by itself instead of taking a whole step with it.
    fn check(&self, run: &Run) -> Result<(), Failure> {
        let defect = |what: String| Err(Failure::new(Reason::Internal, format!("run {}: {what}", run.run.0)));
        if self.runs.contains_key(&run.run) {
            return defect("the id is in use".to_owned());
        }
        if let Some(other) = self.sequences.get(&run.sequence) {
            return defect(format!("its sequence {} has run {}", run.sequence.0, other.0));
        }
        if run.resumed as usize >= run.log.len() || !run.domain.is_well_formed() {
            return defect("it has no input, or a domain with holes".to_owned());
        }
        let sampled = run.sample.iter().map(|sample| sample.precision);
        let mut precisions = run.log.iter().map(|token| token.precision).chain(sampled);
        if let Some(other) = precisions.find(|precision| !self.device.precisions.contains(precision)) {
            return defect(format!("the device does not compute {other:?}"));
        }
        let before = run.sample.iter().flat_map(|sample| &sample.sampled_before);
        let mut tokens = run.log.iter().map(|token| &token.id).chain(before);
        if let Some(foreign) = tokens.find(|token| **token >= self.device.vocab_size) {
            return defect(format!("token {foreign} is not in the vocabulary"));
        }
        if let Some(sample) = &run.sample {
            if sample.max_tokens == 0 {
                return defect("it may not sample anything".to_owned());
            }
            let (params, seed) = (sample.params.clone(), sample.seed);
            let slot = SlotSampling { params, seed, context: Vec::new(), sampled: Vec::new() };
            if let Err(error) = SlotSampler::new(&slot, self.device.vocab_size) {
                return defect(error.to_string());
            }
        }
        Ok(())
    }

    fn admit(&mut self, now: TimeUs, effects: &mut Vec<Effect>) {
        loop {
            let mut freed = false;
            for Admitted { job, found } in self.scheduler.admit() {
                let run = RunId(job.0);
                let Some(state) = self.runs.get_mut(&run) else { continue };
                self.totals.cached_tokens += state.found(&found);
                state.hold(self.scheduler.held_bytes(job), now);
                report_progress(run, state, found.tokens, effects);
                if self.scheduler.is_complete(job) {
                    self.finish(run, FinishReason::Prefilled, now, effects);
                    freed = true;
                }
            }
            if !freed {
                return;
            }
        }
    }

    /// One step. Returns the time at its end.
    fn step(&mut self, now: TimeUs, effects: &mut Vec<Effect>) -> TimeUs {
        let Some(step) = self.scheduler.plan(&self.costs.costs(), self.rows_max) else { return now };
        let span = self.observer.as_ref().map_or_else(tracing::Span::none, |observer| observer.begin(&step));
        let _entered = span.enter();
        for job in &step.jobs {
            if let Some(state) = self.runs.get_mut(&RunId(job.0)) {
                state.start(now);
            }
        }
        let mut unguided = BTreeMap::new();
        match self.compute(&step, &mut unguided) {
            Ok(output) => {
                if let Some(observer) = &mut self.observer {
                    observer.end(&step, &output, self.scheduler.preemptions());
                }
                self.apply(&step, &output, &unguided, now, effects)
            }
            Err((error, how)) => {
                tracing::debug!(%error, "step failed");
                self.recover(&step, error, how, now, effects);
                now
            }
        }
    }

    /// Submits and collects, with the masks of guided runs computed in between, beside the device's work. A run whose guide fails is
    /// put into `unguided`: its sample is to be left aside. An error comes with what became of the step.
    fn compute(
        &mut self,
        step: &Step,
        unguided: &mut BTreeMap<RunId, Failure>,
    ) -> Result<StepOutput, (BackendError, Abandon)> {
        let became = |error: BackendError| {
            let how = if matches!(error, BackendError::Fault(_)) { Abandon::Faulted } else { Abandon::NotRun };
            (error, how)
        };
        let ticket = self.backend.submit(&step.plan).map_err(became)?;
        if step.samples.iter().any(|sample| self.runs.get(&RunId(sample.job.0)).is_some_and(RunState::is_guided)) {
            self.backend.start(&ticket);
        }
        let mut late = LateInputs::default();
        for sample in &step.samples {
            let run = RunId(sample.job.0);
            match self.runs.get_mut(&run).map_or(Ok(None), RunState::mask) {
                Ok(mask) => late.masks.extend(mask.map(|mask| (sample.slot, sample.row, mask))),
                Err(failure) => drop(unguided.insert(run, failure)),
            }
        }
        self.backend.collect(ticket, &late).map_err(|error| {
            // A refused mask leaves the step open on the device; it is collected without masks, so that the next can be submitted.
            let refused = matches!(error, BackendError::Rejected(_));
            if refused && self.backend.collect(StepTicket(step.plan.id), &LateInputs::default()).is_ok() {
                return (error, Abandon::Faulted);
            }
            became(error)
        })
    }

    fn apply(
        &mut self,
        step: &Step,
        output: &StepOutput,
        unguided: &BTreeMap<RunId, Failure>,
        now: TimeUs,
        effects: &mut Vec<Effect>,
    ) -> TimeUs {
        let end = now + output.device_time_us;
        let advances = match self.scheduler.apply(output) {
            Ok(advances) => advances,
            Err(error) => {
                for job in self.scheduler.abandon(Abandon::Faulted) {
                    self.fail(RunId(job.0), Failure::new(Reason::Internal, error.to_string()), end, effects);
                }
                return end;
            }
        };
        self.costs.observe(step.rows, output.device_time_us);
        self.rows_max = self.rows_max.saturating_add(self.rows_max / 8 + 1).min(self.device.limits.rows);
        self.totals.steps += 1;
        self.totals.step_rows = step.rows;
        self.totals.step_sequences = step.jobs.len() as u32;
        self.totals.step_time_us = output.device_time_us;
        self.totals.device_time_us += output.device_time_us;
        self.totals.computed_rows += u64::from(step.rows);
        self.totals.modelled_time_ns += output.modelled.as_ref().map_or(0, |modelled| modelled.chip_time_ns);
        let shared = shares(output.device_time_us, advances.iter().map(|advance| (advance.job, advance.rows)));
        let modelled = modelled_shares(step, output, &self.device);
        for advance in advances {
            let device_time_us = shared.get(&advance.job).copied().unwrap_or(0);
            let share = Share { device_time_us, modelled: modelled.get(&advance.job).copied() };
            match unguided.get(&RunId(advance.job.0)) {
                Some(failure) => {
                    self.advance(Advance { sampled: None, ..advance }, share, end, effects);
                    self.fail(RunId(advance.job.0), failure.clone(), end, effects);
                }
                None => self.advance(advance, share, end, effects),
            }
        }
        end
    }

    fn advance(&mut self, advance: Advance, share: Share, end: TimeUs, effects: &mut Vec<Effect>) {
        let Advance { job, start, rows, precision, sampled } = advance;
        let run = RunId(job.0);
        let Some(state) = self.runs.get_mut(&run) else { return };
        state.computed(start, rows, precision, share);
        self.totals.input_rows += u64::from((start + rows).min(state.input).saturating_sub(start));
        report_progress(run, state, start + rows, effects);
        let mut ends = self.scheduler.is_complete(job).then_some(FinishReason::Prefilled);
        if let Some(token) = sampled {
            self.totals.sampled_tokens += 1;
            ends = state.sampled(&token, end);
            effects.push(Effect::Sampled { run, tokens: vec![token] });
        }
        if let Some(reason) = ends {
            self.finish(run, reason, end, effects);
        }
    }

    fn recover(&mut self, step: &Step, error: BackendError, how: Abandon, now: TimeUs, effects: &mut Vec<Effect>) {
        let message = error.to_string();
        let reason = match error {
            BackendError::Lost(_) => return self.start_over(message, now, effects),
            BackendError::OutOfMemory(_) if step.rows > 1 => {
                self.rows_max = step.rows / 2;
                self.scheduler.abandon(how);
                return;
            }
            BackendError::OutOfMemory(_) => Reason::OutOfMemory,
            BackendError::Rejected(_) => Reason::Internal,
            BackendError::Fault(_) => Reason::DeviceFault,
        };
        for job in self.scheduler.abandon(how) {
            self.fail(RunId(job.0), Failure::new(reason, message.clone()), now, effects);
        }
    }

    /// The device lost everything: what ran computes again when it is back, unless it went through this too often.
    fn start_over(&mut self, message: String, now: TimeUs, effects: &mut Vec<Effect>) {
        tracing::warn!(error = %message, "device lost");
        self.totals.device_losses += 1;
        self.away = Some(Away { next_us: now, pause_us: AWAY_PAUSE_US });
        let hit: Vec<RunId> = self.scheduler.running().map(|job| RunId(job.0)).collect();
        self.reset(now, effects);
        for run in hit {
            let Some(state) = self.runs.get_mut(&run) else { continue };
            state.losses += 1;
            if state.losses > self.config.losses_max {
                self.fail(run, Failure::new(Reason::DeviceLost, message.clone()), now, effects);
            }
        }
    }

    /// Whether there is a device to plan for; one that is away is tried when it is time.
    fn is_present(&mut self, now: TimeUs) -> bool {
        let Some(away) = self.away else { return true };
        if now < away.next_us {
            return false;
        }
        let nothing = StepPlan { id: AWAY_STEP, slots: Vec::new(), copies: Vec::new(), sequences: Vec::new() };
        let tried = self.backend.submit(&nothing);
        match tried.and_then(|ticket| self.backend.collect(ticket, &LateInputs::default())) {
            Ok(_) => {
                tracing::info!(epoch = self.backend.describe().epoch, "device is back");
                self.away = None;
            }
            Err(error) => {
                tracing::debug!(%error, "device is away");
                let pause_us = (2 * away.pause_us).min(AWAY_PAUSE_MAX_US);
                self.away = Some(Away { next_us: now + away.pause_us, pause_us });
            }
        }
        self.away.is_none()
    }

    /// A device in another life than the one that was planned for has lost everything.
    fn follow_epoch(&mut self, now: TimeUs, effects: &mut Vec<Effect>) {
        if self.backend.describe().epoch != self.device.epoch {
            self.reset(now, effects);
        }
    }

    fn reset(&mut self, now: TimeUs, effects: &mut Vec<Effect>) {
        self.device = self.backend.describe().clone();
        self.rows_max = self.device.limits.rows;
        let gone = self.scheduler.reset(&self.device);
        let context_limit = self.context_limit();
        for state in self.runs.values_mut() {
            state.set_context_limit(context_limit);
        }
        for (job, unfit) in gone {
            self.fail(RunId(job.0), does_not_fit(unfit), now, effects);
        }
    }

    fn finish(&mut self, run: RunId, reason: FinishReason, now: TimeUs, effects: &mut Vec<Effect>) {
        if let Some(usage) = self.end(run, now) {
            effects.push(Effect::Finished { run, reason, usage });
        }
    }

    fn fail(&mut self, run: RunId, failure: Failure, now: TimeUs, effects: &mut Vec<Effect>) {
        if let Some(usage) = self.end(run, now) {
            effects.push(Effect::Failed { run, failure, usage });
        }
    }

    fn end(&mut self, run: RunId, now: TimeUs) -> Option<Box<holdfast_types::Usage>> {
        let state = self.runs.remove(&run)?;
        self.sequences.remove(&state.sequence);
        self.scheduler.remove(JobId(run.0));
        Some(Box::new(state.settle(now)))
    }
}

/// Progress is about the input and only ever rises: repeats after a preemption are not news.
fn report_progress(run: RunId, state: &mut RunState, done: u32, effects: &mut Vec<Effect>) {
    let done = done.min(state.input);
    if state.reported.is_none_or(|reported| done > reported) {
        state.reported = Some(done);
        effects.push(Effect::Progress { run, done, total: state.input });
    }
}

fn does_not_fit(unfit: Unfit) -> Failure {
    match unfit {
        Unfit::Context { .. } => Failure::new(Reason::ContextOverflow, unfit.to_string()),
        Unfit::Pool { .. } => Failure::new(Reason::OutOfMemory, unfit.to_string()),
    }
}
