//! The state of the scheduler: jobs that wait, jobs that run, slots, and the KV cache.
//!
//! In: jobs, and the device's description. Out: who was admitted and what was found of their logs. Deliberately not here: how
//! a step is put together (`plan.rs`), whose turn it is (`fair.rs`) and what the running jobs still need (`running.rs`).
//!
//! # Lifecycle of a job
//!
//! ```text
//! submit ──▶ waiting ──admit──▶ running ──remove──▶ gone
//!               ▲ │                │
//!               │ └────remove──────│──▶ gone
//!               └──preempt, reset──┘     (its blocks are released, its log is kept; what is still there is found again)
//! ```
//!
//! - A running job has a slot and holds blocks; a waiting one has neither.
//! - Who waits is admitted in order of (service of its flow, arrival), and nobody overtakes the first who waits: it is admitted when
//!   its log fits beside what the running jobs still need, or when nothing runs.
//! - An admission takes time with the logarithm of the number of jobs, and with the length of its own log; finding no room for the
//!   first who waits takes the logarithm of both. With sliding windows both take besides what a window holds, in blocks, and the
//!   log's length in windows.
//! - The running job that arrived first is never preempted, and alone it always fits ([`Scheduler::fits`]): something always moves,
//!   and everybody is the oldest one day.

use std::collections::BTreeMap;

use holdfast_kv::{Chain, KvCache, PoolCounts};
use holdfast_types::{DeviceDescription, SlotId, StepId, TokenId};

use crate::fair::FairShare;
use crate::plan::OpenStep;
use crate::running::{Running, RunningJobs, Told};
use crate::{Admitted, Job, JobId, Unfit};

/// How a scheduler fills its steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Most rows of one prefill in one step, at least 1.
    pub prefill_chunk_tokens: u32,
    /// A step is filled with prefill up to this much predicted time.
    pub step_budget_us: u64,
}

impl Default for SchedulerConfig {
    /// Chunks of 256 tokens, steps of a tenth of a second: who reads along waits no longer than that for the next token.
    fn default() -> Self {
        Self { prefill_chunk_tokens: 256, step_budget_us: 100_000 }
    }
}

/// See the crate's and the module's documentation.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: SchedulerConfig,
    pub(crate) device: Shape,
    pub(crate) kv: KvCache,
    pub(crate) fair: FairShare,
    pub(crate) waiting: BTreeMap<JobId, Waiting>,
    pub(crate) running: RunningJobs,
    pub(crate) slots_free: Vec<SlotId>,
    /// Slots that are free here and that the device has not been told of.
    pub(crate) slots_closing: Vec<SlotId>,
    pub(crate) open: Option<OpenStep>,
    pub(crate) last_step: StepId,
    arrivals: u64,
    preemptions: u64,
}

/// What the scheduler has to know of the device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) rows: u32,
    pub(crate) sequences: u32,
    pub(crate) vocab_size: u32,
    context: u32,
}

/// A job, wherever it is in its life.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) job: Job,
    pub(crate) arrival: u64,
    /// Tokens of the log when it was submitted.
    pub(crate) input: u32,
    pub(crate) last_step: u64,
    is_charged: bool,
}

impl Task {
    /// Tokens to compute before it has nothing to do.
    pub(crate) fn target(&self) -> u32 {
        self.job.log.len() as u32 - u32::from(self.job.sampling.is_none())
    }
}

#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) task: Task,
    pub(crate) chain: Chain,
}

impl Scheduler {
    /// A scheduler for a device, with everything free.
    pub fn new(device: &DeviceDescription, config: SchedulerConfig) -> Self {
        assert!(config.prefill_chunk_tokens > 0, "a prefill chunk has at least one row");
        assert!(
            device.slots > 0 && device.limits.rows > 0 && device.limits.sequences > 0,
            "a device computes something"
        );
        let kv = KvCache::new(device, config.prefill_chunk_tokens);
        Self {
            config,
            device: shape(device),
            fair: FairShare::default(),
            waiting: BTreeMap::new(),
            running: RunningJobs::new(&kv),
            kv,
            slots_free: all_slots(device),
            slots_closing: Vec::new(),
            open: None,
            last_step: StepId(0),
            arrivals: 0,
            preemptions: 0,
        }
    }

    /// Most tokens that a log may reach here: the device's context, or the pools when they hold less. A KV group with a sliding window
    /// holds a log of any length, if it holds its window.
    pub fn context_limit(&self) -> u32 {
        self.device.context.min(self.kv.capacity_tokens())
    }

    /// Whether a log of `tokens` tokens can run when nothing else does.
    ///
    /// # Errors
    /// [`Unfit`] with the limit it breaks.
    pub fn fits(&self, tokens: u32) -> Result<(), Unfit> {
        match (self.device.context, self.kv.capacity_tokens()) {
            (limit, _) if tokens > limit => Err(Unfit::Context { tokens, limit }),
            (_, limit) if tokens > limit => Err(Unfit::Pool { tokens, limit }),
            _ => Ok(()),
        }
    }

    /// Takes a job; it waits until it is admitted.
    ///
    /// # Errors
    /// [`Unfit`] when its log can never run here.
    ///
    /// # Panics
    /// If the id is in use or the log is empty.
    pub fn submit(&mut self, job: Job) -> Result<(), Unfit> {
        assert!(!job.log.is_empty() && !self.contains(job.id), "{:?} is empty or here already", job.id);
        let input = job.log.len() as u32;
        self.fits(input)?;
        self.arrivals += 1;
        let (id, arrival) = (job.id, self.arrivals);
        self.fair.enter(job.flow, arrival, id);
        let chain = self.kv.chain(&job.log, job.domain.clone());
        let task = Task { job, arrival, input, last_step: 0, is_charged: false };
        self.waiting.insert(id, Waiting { task, chain });
        Ok(())
    }

    /// Gives slots to jobs that wait, first come first served among equals, while there is room.
    pub fn admit(&mut self) -> Vec<Admitted> {
        self.assert_between_steps();
        std::iter::from_fn(|| self.admit_next()).collect()
    }

    /// Admits the first who waits, if there is room.
    pub(crate) fn admit_next(&mut self) -> Option<Admitted> {
        let (job, slot) = (self.fair.next()?, *self.slots_free.last()?);
        let Some(first) = self.waiting.get(&job) else { panic!("{job:?} is next and does not wait") };
        if !self.running.is_empty() && !self.has_room_for(first) {
            return None;
        }
        let Waiting { mut task, chain } = self.waiting.remove(&job)?;
        self.slots_free.pop();
        self.fair.run(task.job.flow, task.arrival);
        let (holding, found) = self.kv.attach(task.job.sequence, chain, &task.job.log);
        let holding = if task.job.transient { holding.into_transient() } else { holding };
        if !task.is_charged {
            // As in the paper: the input is charged when it is let in, so that one flow does not take every slot at once.
            self.fair.charge(task.job.flow, u64::from(task.target() - found.tokens));
            task.is_charged = true;
        }
        let running = Running { task, holding, computed: found.tokens, slot, told: Told::Nothing };
        self.running.insert(&self.kv, running);
        Some(Admitted { job, found })
    }

    /// A job is over, for whatever reason. What it computed stays in the cache. Returns whether it was here.
    pub fn remove(&mut self, job: JobId) -> bool {
        self.assert_between_steps();
        let task = if let Some(waiting) = self.waiting.remove(&job) {
            waiting.task
        } else if let Some((task, _)) = self.stop(job) {
            task
        } else {
            return false;
        };
        self.fair.leave(task.job.flow, task.arrival);
        true
    }

    /// A sequence will not come back: its partial block is freed.
    pub fn forget(&mut self, sequence: holdfast_types::SequenceId) {
        self.kv.forget(sequence);
    }

    /// The device lost everything and came back, perhaps changed: the pool is empty, every job waits. Returns the jobs that do not
    /// fit any more; they are gone.
    pub fn reset(&mut self, device: &DeviceDescription) -> Vec<(JobId, Unfit)> {
        self.open = None;
        self.device = shape(device);
        self.kv = KvCache::new(device, self.config.prefill_chunk_tokens);
        self.slots_free = all_slots(device);
        self.slots_closing.clear();
        let running = std::mem::replace(&mut self.running, RunningJobs::new(&self.kv)).into_tasks();
        let waiting = std::mem::take(&mut self.waiting).into_values().map(|waiting| waiting.task);
        let mut gone = Vec::new();
        for task in running.chain(waiting).collect::<Vec<_>>() {
            if let Err(unfit) = self.fits(task.job.log.len() as u32) {
                self.fair.leave(task.job.flow, task.arrival);
                gone.push((task.job.id, unfit));
                continue;
            }
            let chain = self.kv.chain(&task.job.log, task.job.domain.clone());
            self.wait(task, chain);
        }
        gone
    }

    /// Whether a job waits or runs.
    pub fn contains(&self, job: JobId) -> bool {
        self.waiting.contains_key(&job) || self.running.get(job).is_some()
    }

    /// Whether any job waits or runs.
    pub fn has_work(&self) -> bool {
        !self.waiting.is_empty() || !self.running.is_empty()
    }

    /// Whether a running job has nothing left to compute: a prefill that is done.
    pub fn is_complete(&self, job: JobId) -> bool {
        self.running.get(job).is_some_and(|running| running.computed >= running.task.target())
    }

    /// Jobs that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Jobs that run, in order of their ids.
    pub fn running(&self) -> impl ExactSizeIterator<Item = JobId> + '_ {
        self.running.ids()
    }

    /// Bytes of KV that a running job holds; 0 for any other.
    pub fn held_bytes(&self, job: JobId) -> u64 {
        self.running.get(job).map_or(0, |running| self.kv.bytes(&running.holding))
    }

    /// Blocks of one KV group by state.
    pub fn block_counts(&self, group: usize) -> PoolCounts {
        self.kv.counts(group)
    }

    /// KV groups of the device.
    pub fn kv_groups(&self) -> usize {
        self.kv.groups()
    }

    /// Times that a running job lost its blocks to an older one.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Tokens served to a flow by its virtual counter: input once, each sampled token twice.
    pub fn served(&self, flow: u64) -> u64 {
        self.fair.served(flow)
    }

    /// Checks every invariant. Returns what is wrong.
    pub fn audit(&self) -> Vec<String> {
        let holdings = self.running.iter().map(|running| &running.holding);
        let growths = self.open.iter().flat_map(OpenStep::growths);
        let mut problems = self.kv.audit(holdings, growths);
        let mut slots: Vec<SlotId> = self.running.iter().map(|running| running.slot).collect();
        slots.extend(&self.slots_free);
        let owned = slots.len();
        slots.sort_unstable();
        slots.dedup();
        if slots.len() != owned {
            problems.push(format!("{} slots have two owners", owned - slots.len()));
        }
        if self.slots_closing.iter().any(|slot| !slots.contains(slot)) {
            problems.push("a slot is closing that nobody knows".to_owned());
        }
        let mut missing = vec![0; self.kv.groups()];
        for running in self.running.iter() {
            if running.computed > running.task.target() {
                problems.push(format!("{:?} computed beyond its log", running.task.job.id));
            }
            missing.iter_mut().zip(running.missing(&self.kv)).for_each(|(sum, blocks)| *sum += blocks);
        }
        if self.running.missing() != missing {
            problems.push(format!("running jobs miss {missing:?} blocks, not {:?}", self.running.missing()));
        }
        if !self.fair.is_ordered() {
            problems.push("flows stand in a wrong order".to_owned());
        }
        if !self.has_work() && self.fair.len() > 0 {
            problems.push(format!("{} flows are remembered though nothing waits or runs", self.fair.len()));
        }
        problems
    }

    /// Takes the blocks and the slot of a running job; it waits for both.
    pub(crate) fn preempt(&mut self, job: JobId) {
        let Some((task, chain)) = self.stop(job) else { panic!("{job:?} does not run") };
        self.preemptions += 1;
        self.wait(task, chain);
    }

    pub(crate) fn assert_between_steps(&self) {
        assert!(self.open.is_none(), "jobs come and go between steps only");
    }

    fn wait(&mut self, task: Task, chain: Chain) {
        self.fair.wait(task.job.flow, task.arrival, task.job.id);
        self.waiting.insert(task.job.id, Waiting { task, chain });
    }

    fn stop(&mut self, job: JobId) -> Option<(Task, Chain)> {
        let Running { task, holding, computed, slot, told } = self.running.remove(&self.kv, job)?;
        let chain = self.kv.release(holding, &task.job.log, computed);
        self.slots_free.push(slot);
        if matches!(told, Told::Open { .. }) {
            self.slots_closing.push(slot);
        }
        Some((task, chain))
    }

    /// Whether a job that waits fits beside what the running ones still need for the logs they have.
    fn has_room_for(&self, waiting: &Waiting) -> bool {
        let demand = self.kv.demand(&waiting.chain, waiting.task.job.log.len() as u32);
        let blocks = demand.zip(self.running.missing()).map(|(new, missing)| new + missing);
        blocks.enumerate().all(|(group, blocks)| blocks <= self.kv.available(group))
    }
}

/// Distinct tokens in rising order.
pub(crate) fn distinct(tokens: impl Iterator<Item = TokenId>) -> Vec<TokenId> {
    let mut tokens: Vec<TokenId> = tokens.collect();
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

fn shape(device: &DeviceDescription) -> Shape {
    let limits = device.limits;
    Shape { rows: limits.rows, sequences: limits.sequences, vocab_size: device.vocab_size, context: limits.context }
}

fn all_slots(device: &DeviceDescription) -> Vec<SlotId> {
    (0..device.slots).rev().map(SlotId).collect()
}
