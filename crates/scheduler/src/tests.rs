//! Admission against a plain model, and flows against another: what is kept in sums and orders is walked here.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use holdfast_types::{DeviceDescription, KvGroup, SampledToken, SequenceId, SequenceOutput, StepOutput, StepPlan};
use proptest::prelude::*;

use crate::fair::FairShare;
use crate::scheduler::Waiting;
use crate::{Abandon, Costs, JobId, Scheduler, SchedulerConfig};

#[path = "../tests/harness/mod.rs"]
mod harness;

use harness::with_window;

const COSTS: Costs = Costs { step_us: 50.0, row_us: 10.0 };
/// Longest log, in tokens, with all that it samples.
const TOKENS_MAX: u32 = 40;

#[derive(Debug, Clone)]
enum Act {
    Submit { flow: u64, family: u32, tokens: u32, samples: bool, transient: bool },
    Remove { pick: usize },
    Step { rows: u32, fate: Fate },
    Reset { spare: u32, window: Option<u32> },
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    Computed,
    Abandoned(Abandon),
}

fn act() -> impl Strategy<Value = Act> {
    let fate = prop_oneof![
        8 => Just(Fate::Computed),
        1 => Just(Fate::Abandoned(Abandon::NotRun)),
        1 => Just(Fate::Abandoned(Abandon::Faulted)),
    ];
    prop_oneof![
        8 => (0_u64..4, 0_u32..3, 1_u32..30, prop::bool::weighted(0.8), prop::bool::weighted(0.2)).prop_map(
            |(flow, family, tokens, samples, transient)| Act::Submit { flow, family, tokens, samples, transient }
        ),
        2 => any::<usize>().prop_map(|pick| Act::Remove { pick }),
        16 => (1_u32..40, fate).prop_map(|(rows, fate)| Act::Step { rows, fate }),
        1 => (0_u32..8, window()).prop_map(|(spare, window)| Act::Reset { spare, window }),
    ]
}

fn window() -> impl Strategy<Value = Option<u32>> {
    prop::option::of(1..TOKENS_MAX)
}

/// Two KV groups, the second perhaps with a window; a log of [`TOKENS_MAX`] tokens and the copy of a block fit alone.
fn device(block_tokens: u32, spare: u32, slots: u32, window: Option<u32>) -> DeviceDescription {
    let device = harness::device(block_tokens, TOKENS_MAX.div_ceil(block_tokens) + 1 + spare, slots, 64);
    match window {
        Some(window) => with_window(device, window, harness::window_blocks(window, block_tokens) + 1 + spare),
        None => {
            let all = KvGroup { blocks: device.kv_groups[0].blocks + spare, ..device.kv_groups[0].clone() };
            DeviceDescription { kv_groups: vec![device.kv_groups[0].clone(), all], ..device }
        }
    }
}

/// Who is admitted next: of all who wait the first by (service of its flow, arrival), if its log fits beside what each running job
/// still needs.
fn next_by_walk(scheduler: &Scheduler) -> Option<JobId> {
    let order = |waiting: &&Waiting| (scheduler.served(waiting.task.job.flow), waiting.task.arrival);
    let first = scheduler.waiting.values().min_by_key(order)?;
    let mut demand: Vec<u32> = scheduler.kv.demand(&first.chain, first.task.job.log.len() as u32).collect();
    for running in scheduler.running.iter() {
        let missing = scheduler.kv.missing(&running.holding, running.task.job.log.len() as u32);
        demand.iter_mut().zip(missing).for_each(|(sum, blocks)| *sum += blocks);
    }
    let fits = (0..).zip(demand).all(|(group, blocks)| blocks <= scheduler.kv.available(group));
    let room = scheduler.running.is_empty() || fits;
    (room && !scheduler.slots_free.is_empty()).then_some(first.task.job.id)
}

fn answer(plan: &StepPlan) -> StepOutput {
    let asked = plan.sequences.iter().filter(|sequence| !sequence.outputs.is_empty());
    let sequences = asked.map(|sequence| {
        let position = sequence.start + sequence.inputs.len() as u32;
        let sample = SampledToken { id: position % 1000, position, logprobs: Vec::new() };
        SequenceOutput { slot: sequence.slot, samples: vec![sample], logits: Vec::new() }
    });
    StepOutput { id: plan.id, sequences: sequences.collect(), device_time_us: 100, modelled: None }
}

/// A scheduler and the lengths of the logs it was given.
struct World {
    scheduler: Scheduler,
    tokens: BTreeMap<JobId, u32>,
    submitted: u64,
}

impl World {
    fn submit(&mut self, flow: u64, family: u32, tokens: u32, samples: bool, transient: bool) {
        self.submitted += 1;
        let mut job = harness::job(self.submitted, flow, (0..tokens).map(|i| family * 100 + i));
        job.transient = transient;
        job.sampling = job.sampling.filter(|_| samples);
        if self.scheduler.submit(job).is_ok() {
            self.tokens.insert(JobId(self.submitted), tokens);
        }
    }

    fn remove(&mut self, job: JobId) {
        assert!(self.tokens.remove(&job).is_some() && self.scheduler.remove(job));
        self.scheduler.forget(SequenceId(job.0));
    }

    fn step(&mut self, rows: u32, fate: Fate) {
        let Some(step) = self.scheduler.plan(&COSTS, rows) else { return };
        assert_eq!(self.scheduler.audit(), Vec::<String>::new());
        match fate {
            Fate::Abandoned(how) => drop(self.scheduler.abandon(how)),
            Fate::Computed => {
                for advance in self.scheduler.apply(&answer(&step.plan)).unwrap() {
                    let tokens = self.tokens.get_mut(&advance.job).unwrap();
                    *tokens += u32::from(advance.sampled.is_some());
                    if *tokens == TOKENS_MAX || self.scheduler.is_complete(advance.job) {
                        self.remove(advance.job);
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn whoever_a_walk_over_all_jobs_would_admit_is_admitted(
        acts in prop::collection::vec(act(), 1..150),
        (block_tokens, spare, slots, chunk, window) in (1_u32..8, 0_u32..20, 1_u32..7, 1_u32..30, window()),
    ) {
        let config = SchedulerConfig { prefill_chunk_tokens: chunk, step_budget_us: 400 };
        let scheduler = Scheduler::new(&device(block_tokens, spare, slots, window), config);
        let mut world = World { scheduler, tokens: BTreeMap::new(), submitted: 0 };
        for act in acts {
            match act {
                Act::Submit { flow, family, tokens, samples, transient } => {
                    world.submit(flow, family, tokens, samples, transient);
                }
                Act::Remove { pick } if !world.tokens.is_empty() => {
                    let job = *world.tokens.keys().nth(pick % world.tokens.len()).unwrap();
                    world.remove(job);
                }
                Act::Remove { .. } => {}
                Act::Step { rows, fate } => world.step(rows, fate),
                Act::Reset { spare, window } => {
                    let mut smaller = device(block_tokens, spare, slots, window);
                    smaller.limits.context = TOKENS_MAX - spare;
                    for (job, _) in world.scheduler.reset(&smaller) {
                        world.tokens.remove(&job);
                    }
                }
            }
            prop_assert_eq!(world.scheduler.audit(), Vec::<String>::new());
            loop {
                let expected = next_by_walk(&world.scheduler);
                prop_assert_eq!(world.scheduler.admit_next().map(|admitted| admitted.job), expected);
                prop_assert_eq!(world.scheduler.audit(), Vec::<String>::new());
                if expected.is_none() {
                    break;
                }
            }
        }
    }

    /// Flows by their numbers: (served, arrivals of the jobs that wait and of those that run).
    #[test]
    fn flows_are_served_as_a_walk_over_all_of_them_would(
        acts in prop::collection::vec((0_u64..5, 0_u8..5, 0_u64..20), 1..200),
    ) {
        let mut fair = FairShare::default();
        let mut model: BTreeMap<u64, (u64, Vec<u64>, Vec<u64>)> = BTreeMap::new();
        for (arrival, (flow, act, tokens)) in (1..).zip(acts) {
            let active = |(_, waiting, running): &(u64, Vec<u64>, Vec<u64>)| !waiting.is_empty() || !running.is_empty();
            let floor = model.values().filter(|flow| active(flow)).map(|flow| flow.0).min();
            match (act, model.get_mut(&flow)) {
                (0 | 1, _) => {
                    fair.enter(flow, arrival, JobId(arrival));
                    let entry = model.entry(flow).or_default();
                    if !active(entry) {
                        entry.0 = entry.0.max(floor.unwrap_or(0));
                    }
                    entry.1.push(arrival);
                }
                (2, Some((_, waiting, running))) if !waiting.is_empty() => {
                    running.push(waiting.remove(tokens as usize % waiting.len()));
                    fair.run(flow, *running.last().unwrap());
                }
                (3, Some((_, waiting, running))) if !running.is_empty() => {
                    waiting.push(running.remove(tokens as usize % running.len()));
                    fair.wait(flow, *waiting.last().unwrap(), JobId(*waiting.last().unwrap()));
                }
                (4, Some((_, waiting, running))) if tokens % 2 == 0 => {
                    let jobs = if running.is_empty() { waiting } else { running };
                    let Some(gone) = jobs.pop() else { continue };
                    fair.leave(flow, gone);
                    match model.values().filter(|flow| active(flow)).map(|flow| flow.0).min() {
                        Some(floor) => model.retain(|_, flow| active(flow) || flow.0 > floor),
                        None => model.clear(),
                    }
                }
                (4, Some(entry)) if active(entry) => {
                    fair.charge(flow, tokens);
                    entry.0 += tokens;
                }
                _ => {}
            }
            let waiting = model.values().flat_map(|flow| flow.1.iter().map(|arrival| (flow.0, *arrival)));
            prop_assert_eq!(fair.next(), waiting.min().map(|(_, arrival)| JobId(arrival)));
            prop_assert_eq!(fair.len(), model.len());
            for flow in 0..5 {
                prop_assert_eq!(fair.served(flow), model.get(&flow).map_or(0, |flow| flow.0));
            }
        }
    }
}
