//! How a step is put together, and what becomes of it: done, or taken back.
//!
//! In: the running jobs and a budget. Out: a [`StepPlan`] and, once the device has answered, what each job gained. Deliberately not
//! here: who is admitted (`scheduler.rs`) and who is chosen (`choose.rs`).
//!
//! Blocks are reserved for the step and committed or cancelled with it. Whoever is told of a table change is the device, in
//! the plan; a plan that did not happen was never told, so it is said again in the next. Entries that are behind a sliding
//! window are not mentioned any more, though their blocks may be others' by then.

use std::collections::BTreeMap;

use holdfast_kv::Growth;
use holdfast_types::{
    KvDestination, OutputRequest, Precision, RowInput, RowOutput, SampledToken, SequenceStep, SlotChange, SlotId,
    SlotSampling, StepId, StepOutput, StepPlan, TableChange, TokenId,
};

use crate::choose::{Budget, Candidate, choose};
use crate::running::{Running, Told};
use crate::scheduler::{Task, distinct};
use crate::{Advance, ApplyError, Costs, JobId, Scheduler};

/// Service units of a sampled token; an input token is one (the weights of the VTC paper's evaluation).
const SAMPLED_TOKEN_CHARGE: u64 = 2;

/// A step to submit.
#[derive(Debug)]
pub struct Step {
    /// What the device is told.
    pub plan: StepPlan,
    /// The rows that sample, in the plan's order: where token masks go.
    pub samples: Vec<SampleRow>,
    /// Jobs in it, in the plan's order.
    pub jobs: Vec<JobId>,
    /// Rows in it.
    pub rows: u32,
}

/// A row that samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleRow {
    /// Whose.
    pub job: JobId,
    /// Its slot.
    pub slot: SlotId,
    /// The row, within the slot's part of the step.
    pub row: u32,
}

/// Why a step has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abandon {
    /// Nothing of it happened.
    NotRun,
    /// Its rows failed; its slot changes and copies stand.
    Faulted,
}

/// The step that was planned and neither applied nor abandoned.
#[derive(Debug)]
pub(crate) struct OpenStep {
    id: StepId,
    parts: Vec<Part>,
    /// How many of the closing slots the device is told of.
    closes: usize,
}

impl OpenStep {
    pub(crate) fn growths(&self) -> impl Iterator<Item = &Growth> {
        self.parts.iter().map(|part| &part.growth)
    }
}

/// One job's share of the open step.
#[derive(Debug)]
struct Part {
    job: JobId,
    slot: SlotId,
    start: u32,
    rows: u32,
    precision: Precision,
    samples: bool,
    growth: Growth,
}

impl Scheduler {
    /// Puts the next step together, of at most `rows_max` rows: chooses jobs, finds blocks for their rows (preempting, newest first,
    /// where there are too few) and says all of it as a plan. `None` when no running job has anything to compute.
    ///
    /// # Panics
    /// If the last step was neither applied nor abandoned.
    pub fn plan(&mut self, costs: &Costs, rows_max: u32) -> Option<Step> {
        self.assert_between_steps();
        let parts = loop {
            let chosen = self.choose(costs, rows_max);
            if chosen.is_empty() {
                return None;
            }
            let parts = self.find_blocks(chosen);
            // Empty when all that were chosen had to make room for older ones; those are chosen next.
            if !parts.is_empty() {
                break parts;
            }
        };
        self.last_step.0 += 1;
        let mut plan = StepPlan { id: self.last_step, slots: Vec::new(), copies: Vec::new(), sequences: Vec::new() };
        plan.slots.extend(self.slots_closing.iter().map(|&slot| SlotChange::Close { slot }));
        for part in &parts {
            self.say(part, &mut plan);
        }
        let sampling = parts.iter().filter(|part| part.samples);
        let samples = sampling.map(|part| SampleRow { job: part.job, slot: part.slot, row: part.rows - 1 }).collect();
        let jobs = parts.iter().map(|part| part.job).collect();
        let rows = parts.iter().map(|part| part.rows).sum();
        self.open = Some(OpenStep { id: plan.id, parts, closes: self.slots_closing.len() });
        Some(Step { plan, samples, jobs, rows })
    }

    /// The open step was computed: blocks are committed, full ones become resident, samples join their logs.
    ///
    /// # Errors
    /// [`ApplyError`] when the output does not answer the plan; the step is still open then and has to be abandoned.
    ///
    /// # Panics
    /// If no step is open.
    pub fn apply(&mut self, output: &StepOutput) -> Result<Vec<Advance>, ApplyError> {
        let Some(open) = self.open.take() else { panic!("a step is planned before it is applied") };
        let mut samples = match answers(&open, output, self.device.vocab_size) {
            Ok(samples) => samples,
            Err(problem) => {
                let step = open.id.0;
                self.open = Some(open);
                return Err(ApplyError { step, problem });
            }
        };
        self.slots_closing.drain(..open.closes);
        let mut advances = Vec::with_capacity(open.parts.len());
        for part in open.parts {
            let Part { job, start, rows, precision, growth, .. } = part;
            let sampled = samples.remove(&job);
            self.running.change(&mut self.kv, job, |kv, running| {
                kv.commit(&mut running.holding, growth);
                running.computed = start + rows;
                running.task.last_step = open.id.0;
                let entries = (0..kv.groups()).map(|group| running.holding.table(group).end()).collect();
                let changed = kv.seal(&mut running.holding, &running.task.job.log, running.computed);
                running.told = Told::Open { entries, changed };
                if let (Some(sampled), Some(sampling)) = (&sampled, &running.task.job.sampling) {
                    let token = holdfast_types::LogToken { id: sampled.id, precision: sampling.precision };
                    running.task.job.log.push(token);
                    self.fair.charge(running.task.job.flow, SAMPLED_TOKEN_CHARGE);
                }
            });
            advances.push(Advance { job, start, rows, precision, sampled });
        }
        Ok(advances)
    }

    /// The open step has no result: its blocks are free again, its jobs are where they were. Returns them.
    ///
    /// # Panics
    /// If no step is open.
    pub fn abandon(&mut self, how: Abandon) -> Vec<JobId> {
        let Some(open) = self.open.take() else { panic!("a step is planned before it is abandoned") };
        if how == Abandon::Faulted {
            self.slots_closing.drain(..open.closes);
        }
        let mut jobs = Vec::with_capacity(open.parts.len());
        for part in open.parts {
            self.kv.cancel(part.growth);
            if how == Abandon::Faulted {
                self.running.change(&mut self.kv, part.job, |kv, running| {
                    if matches!(running.told, Told::Nothing) {
                        running.told = Told::Open { entries: vec![0; kv.groups()], changed: Vec::new() };
                    }
                });
            }
            jobs.push(part.job);
        }
        jobs
    }

    fn choose(&self, costs: &Costs, rows_max: u32) -> Vec<(JobId, u32)> {
        let chunk = self.kv.step_rows();
        let candidate = |running: &Running| {
            let rest = &running.task.job.log[running.computed as usize..running.task.target() as usize];
            let first = rest.first()?;
            // No chunk is longer than `chunk`: looking further would cost a long log its length in every step.
            let uniform = rest.iter().take(chunk as usize).take_while(|token| token.precision == first.precision);
            Some(Candidate {
                job: running.task.job.id,
                remaining: rest.len() as u32,
                uniform: uniform.count() as u32,
                served: self.fair.served(running.task.job.flow),
                last_step: running.task.last_step,
                arrival: running.task.arrival,
            })
        };
        let candidates: Vec<Candidate> = self.running.iter().filter_map(candidate).collect();
        let budget = Budget {
            rows: self.device.rows.min(rows_max).max(1),
            sequences: self.device.sequences,
            chunk,
            timed_rows: costs.rows_within(self.config.step_budget_us),
        };
        choose(&candidates, budget)
    }

    /// Reserves blocks for the chosen jobs, oldest first. A job that finds too few takes those of the newest running job that is
    /// newer than itself, or makes room for the older ones by waiting itself.
    fn find_blocks(&mut self, mut chosen: Vec<(JobId, u32)>) -> Vec<Part> {
        let arrival = |scheduler: &Self, job: &JobId| scheduler.running.get(*job).map(|running| running.task.arrival);
        let order: BTreeMap<JobId, usize> = chosen.iter().enumerate().map(|(place, (job, _))| (*job, place)).collect();
        chosen.sort_by_key(|(job, _)| arrival(self, job));
        let mut parts = Vec::with_capacity(chosen.len());
        for (job, rows) in chosen {
            // One that was chosen may have been preempted for an older one meanwhile.
            while let Some(running) = self.running.get(job) {
                match self.kv.reserve(&running.holding, running.computed + rows) {
                    Ok(growth) => {
                        parts.push(part(running, rows, growth));
                        break;
                    }
                    Err(shortage) => {
                        let newest = self.running.iter().max_by_key(|running| running.task.arrival);
                        let victim = newest.map_or(job, |newest| newest.task.job.id);
                        assert!(self.running.len() > 1, "{job:?} was admitted because it fits alone: {shortage}");
                        self.preempt(victim);
                    }
                }
            }
        }
        parts.sort_by_key(|part| order.get(&part.job));
        parts
    }

    /// Says one job's part in the plan.
    fn say(&self, part: &Part, plan: &mut StepPlan) {
        let Some(running) = self.running.get(part.job) else { panic!("{:?} was chosen because it runs", part.job) };
        let slot = part.slot;
        if matches!(running.told, Told::Nothing) {
            plan.slots.push(SlotChange::Open { slot, sampling: Box::new(slot_sampling(&running.task)) });
        }
        for group in 0..self.kv.groups() {
            let told = match &running.told {
                Told::Nothing => 0,
                Told::Open { entries, changed } => {
                    for replaced in changed.iter().filter(|replaced| replaced.group == group) {
                        plan.slots.push(table(slot, group, replaced.index, vec![replaced.block]));
                    }
                    entries[group]
                }
            };
            let (first, held) = running.holding.table(group).since(told);
            let fresh: Vec<_> = held.iter().chain(part.growth.blocks(group)).copied().collect();
            if !fresh.is_empty() {
                plan.slots.push(table(slot, group, first, fresh));
            }
        }
        plan.copies.extend(running.holding.copies(&part.growth));
        let rows = &running.task.job.log[part.start as usize..(part.start + part.rows) as usize];
        let last = part.samples.then_some(RowOutput { row: part.rows - 1, request: OutputRequest::Sample });
        plan.sequences.push(SequenceStep {
            slot,
            start: part.start,
            inputs: rows.iter().map(|token| RowInput::Token(token.id)).collect(),
            precision: part.precision,
            destination: KvDestination::Pool,
            outputs: last.into_iter().collect(),
        });
    }
}

fn part(running: &Running, rows: u32, growth: Growth) -> Part {
    let start = running.computed;
    let reaches_end = start + rows == running.task.job.log.len() as u32;
    Part {
        job: running.task.job.id,
        slot: running.slot,
        start,
        rows,
        precision: running.task.job.log[start as usize].precision,
        samples: reaches_end && running.task.job.sampling.is_some(),
        growth,
    }
}

fn table(slot: SlotId, group: usize, first: u32, blocks: Vec<holdfast_types::BlockId>) -> SlotChange {
    SlotChange::Table(TableChange { slot, group: group as u16, first, blocks })
}

/// What a slot that is opened now has to know: the settings, and the past as far as penalties ask for it.
fn slot_sampling(task: &Task) -> SlotSampling {
    let Some(sampling) = &task.job.sampling else {
        return SlotSampling { params: Default::default(), seed: 0, context: Vec::new(), sampled: Vec::new() };
    };
    let params = sampling.params.clone();
    let counts_context = params.repetition_penalty != 1.0;
    let counts_sampled = params.frequency_penalty != 0.0 || params.presence_penalty != 0.0;
    let log = || task.job.log.iter().map(|token| token.id);
    let mut sampled: BTreeMap<TokenId, u32> = BTreeMap::new();
    if counts_context || counts_sampled {
        for token in sampling.sampled_before.iter().copied().chain(log().skip(task.input as usize)) {
            *sampled.entry(token).or_default() += 1;
        }
    }
    SlotSampling {
        params,
        seed: sampling.seed,
        context: if counts_context { distinct(log()) } else { Vec::new() },
        sampled: sampled.into_iter().collect(),
    }
}

/// Matches samples to the jobs that asked for one; anything missing, foreign or misplaced is a defect of the backend.
fn answers(open: &OpenStep, output: &StepOutput, vocab_size: u32) -> Result<BTreeMap<JobId, SampledToken>, String> {
    if output.id != open.id {
        return Err(format!("it is of step {}", output.id.0));
    }
    let asked: Vec<&Part> = open.parts.iter().filter(|part| part.samples).collect();
    if asked.len() != output.sequences.len() {
        return Err(format!("{} sequences asked for samples, {} answered", asked.len(), output.sequences.len()));
    }
    let mut samples = BTreeMap::new();
    for (part, answer) in asked.into_iter().zip(&output.sequences) {
        let [sample] = answer.samples.as_slice() else {
            return Err(format!("{:?} has {} samples, not one", answer.slot, answer.samples.len()));
        };
        if answer.slot != part.slot || sample.position != part.start + part.rows || sample.id >= vocab_size {
            return Err(format!("{:?} sampled token {} at {}", answer.slot, sample.id, sample.position));
        }
        samples.insert(part.job, sample.clone());
    }
    Ok(samples)
}
