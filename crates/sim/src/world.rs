//! One simulated world: agents, a node, an oracle, and a seed that says what happens next.
//!
//! In: a seed. Out: what the world saw, or a violation that names the seed and the last actions. Deliberately not here: any rule
//! of what is right ([`crate::oracle`], [`crate::replay`]).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use fastrand::Rng;
use holdfast_engine::{EngineConfig, SchedulerConfig};
use holdfast_journal::Body;
use holdfast_types::{Reason, SessionId, TimeUs, TurnState};
use holdfast_worker::core::{Request, RequestId};

use crate::clients::Agent;
use crate::device::{DeviceShape, Mishap, WindowShape};
use crate::followers::Dropped;
use crate::node::{Node, NodeSettings};
use crate::oracle::{Oracle, Record};
use crate::replay;
use crate::trace::Trace;

/// When a world begins: 2026-11-20 in UTC, near noon.
pub const BEGINNING_US: TimeUs = 1_795_176_000_000_000;

/// Rounds that a world may need to come to rest.
const SETTLE_ROUNDS: u32 = 1_000;

/// A defect planted on purpose: a test that the oracle notices it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// A start after a crash finds less than was committed.
    LoseCommitted,
    /// A sample depends on the other sequences of its step.
    BatchDependent,
}

/// What a world went through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Actions.
    pub actions: u64,
    /// Crashes of the process and losses of power.
    pub crashes: u64,
    /// Mishaps of the device.
    pub mishaps: u64,
    /// Entries committed.
    pub entries: u64,
    /// Events checked against what was committed.
    pub events: u64,
    /// Acknowledgements checked.
    pub acknowledged: u64,
    /// Times that a run lost its blocks to an older one.
    pub preemptions: u64,
    /// Sessions whose bytes were removed.
    pub purged: u64,
    /// Turns that ended: completed, incomplete, cancelled, failed.
    pub ended: [u64; 4],
    /// Turns that went on where another ended early.
    pub continued: u64,
    /// Cuts of the log.
    pub rebased: u64,
    /// Answers to tool calls, as batches.
    pub results: u64,
    /// Stateless completions read to their end.
    pub completions: u64,
    /// Digest over the actions.
    pub digest: u64,
}

impl Summary {
    fn count(&mut self, record: &Record) {
        self.entries += record.entries().len() as u64;
        self.purged += u64::from(record.is_purged());
        for entry in record.entries() {
            match &entry.body {
                Body::TurnAccepted { request, .. } => self.continued += u64::from(request.continue_last),
                Body::ToolResults { .. } => self.results += 1,
                Body::Rebase { .. } => self.rebased += 1,
                Body::TurnEnded { state: TurnState::Completed, .. } => self.ended[0] += 1,
                Body::TurnEnded { state: TurnState::Incomplete, .. } => self.ended[1] += 1,
                Body::TurnEnded { state: TurnState::Cancelled, .. } => self.ended[2] += 1,
                Body::TurnEnded { state: TurnState::Failed, .. } => self.ended[3] += 1,
                _ => {}
            }
        }
    }
}

impl std::ops::AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.actions += other.actions;
        self.crashes += other.crashes;
        self.mishaps += other.mishaps;
        self.entries += other.entries;
        self.events += other.events;
        self.acknowledged += other.acknowledged;
        self.preemptions += other.preemptions;
        self.purged += other.purged;
        self.ended.iter_mut().zip(other.ended).for_each(|(sum, more)| *sum += more);
        self.continued += other.continued;
        self.rebased += other.rebased;
        self.results += other.results;
        self.completions += other.completions;
        self.digest = self.digest.rotate_left(1) ^ other.digest;
    }
}

/// Something that must not be.
#[derive(Debug, Clone)]
pub struct Violation {
    /// The world's seed.
    pub seed: u64,
    /// What is wrong.
    pub problem: String,
    /// The last actions.
    pub trace: Trace,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {}", self.seed, self.problem)?;
        writeln!(f, "the last of {} actions:\n{}", self.trace.count(), self.trace)?;
        write!(f, "again: SIM_SEED={} cargo test -p holdfast-sim --test crash replay -- --nocapture", self.seed)
    }
}

/// Runs the world of a seed to its end.
///
/// # Errors
/// The first thing that is wrong. A panic of the parts counts as one.
pub fn run(seed: u64, plant: Option<Plant>) -> Result<Summary, Box<Violation>> {
    let trace = RefCell::new(Trace::default());
    let result = catch_unwind(AssertUnwindSafe(|| World::new(seed, plant, &trace).run()));
    let violation = |problem| Box::new(Violation { seed, problem, trace: trace.borrow().clone() });
    match result {
        Ok(result) => result.map_err(violation),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Err(violation(format!("panic: {}", text.unwrap_or("of an unknown kind"))))
        }
    }
}

/// What may happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Act,
    PollCore,
    PollEngine,
    Report,
    Commit,
    Deliver,
    Read,
    Follow,
    Unfollow,
    Advance,
    Mishap,
    Crash,
    PowerLoss,
    Drain,
    JournalFailure,
    Audit,
}

/// Every action with its usual weight; each world multiplies the weights by numbers of its own, so that worlds differ in
/// what is common and what is rare ("swarm testing", Groce et al., ISSTA 2012).
const ACTIONS: [(Action, u32); 16] = [
    (Action::Act, 120),
    (Action::PollCore, 200),
    (Action::PollEngine, 220),
    (Action::Report, 140),
    (Action::Commit, 120),
    (Action::Deliver, 160),
    (Action::Read, 80),
    (Action::Follow, 60),
    (Action::Unfollow, 6),
    (Action::Advance, 30),
    (Action::Mishap, 7),
    (Action::Crash, 5),
    (Action::PowerLoss, 2),
    (Action::Drain, 2),
    (Action::JournalFailure, 2),
    (Action::Audit, 8),
];

struct World<'a> {
    rng: Rng,
    node: Node,
    oracle: Oracle,
    agents: Vec<Agent>,
    /// Per agent, how many of its acknowledgements were checked.
    checked: Vec<usize>,
    owners: BTreeMap<RequestId, usize>,
    next_id: u64,
    weights: Vec<(Action, u32)>,
    actions: u32,
    plant: Option<Plant>,
    /// The node may refuse for a while: it is draining, or its journal failed.
    excused: bool,
    /// Devices have failed in this world.
    unlucky: bool,
    trace: &'a RefCell<Trace>,
    summary: Summary,
}

impl<'a> World<'a> {
    fn new(seed: u64, plant: Option<Plant>, trace: &'a RefCell<Trace>) -> Self {
        let mut rng = Rng::with_seed(seed);
        let context = 64 + 16 * rng.u32(..4);
        let block_tokens = [2, 4, 8][rng.usize(..3)];
        let least = context.div_ceil(block_tokens);
        let spare = if rng.bool() { least / 3 } else { 2 * least };
        let mut windows = Rng::with_seed(!seed);
        let shape = DeviceShape {
            blocks: least + rng.u32(..=spare),
            window: windows
                .bool()
                .then(|| WindowShape::few(windows.u32(1..=context / 4), block_tokens, windows.u32(..=least + spare))),
            block_tokens,
            slots: rng.u32(1..=4),
            rows: rng.u32(2..=40),
            context,
        };
        let scheduler = SchedulerConfig { prefill_chunk_tokens: rng.u32(1..=32), step_budget_us: rng.u64(1..=4_000) };
        let settings = NodeSettings {
            device: shape,
            engine: EngineConfig { scheduler, losses_max: 3 },
            sessions_loaded: rng.usize(1..=4),
            recent_events: [2, 8, 64][rng.usize(..3)],
            context_limit: context,
        };
        let node = Node::new(settings, BEGINNING_US);
        if plant == Some(Plant::BatchDependent) {
            node.faults().make_batch_dependent();
        }
        let oracle = Oracle::new(node.core().languages());
        let count = rng.usize(1..=4);
        let agents: Vec<_> = (0..count)
            .filter_map(|i| {
                let session = SessionId::parse(&format!("session-{i}")).ok()?;
                Some(Agent::new(session, rng.u64(..), rng.u32(4..=16)))
            })
            .collect();
        let factor = |rng: &mut Rng| [0, 1, 1, 2, 4][rng.usize(..5)];
        let weights = ACTIONS.iter().map(|&(action, weight)| {
            let vital = !matches!(
                action,
                Action::Mishap | Action::Crash | Action::PowerLoss | Action::Drain | Action::JournalFailure
            );
            (action, weight * factor(&mut rng).max(u32::from(vital)))
        });
        let weights = weights.collect();
        Self {
            checked: vec![0; agents.len()],
            actions: rng.u32(200..1_500),
            rng,
            node,
            oracle,
            agents,
            owners: BTreeMap::new(),
            next_id: 0,
            weights,
            plant,
            excused: false,
            unlucky: false,
            trace,
            summary: Summary::default(),
        }
    }

    fn run(mut self) -> Result<Summary, String> {
        for _ in 0..self.actions {
            let action = self.choose();
            self.perform(action)?;
            if !self.agents.iter().any(|agent| agent.has_plans() || agent.is_waiting()) && !self.node.is_busy() {
                break;
            }
        }
        self.settle()?;
        self.judge()?;
        self.summary.mishaps = self.node.faults().happened().into();
        self.summary.preemptions += self.node.engine().snapshot().preemptions;
        let trace = self.trace.borrow();
        self.summary.actions = trace.count();
        self.summary.digest = trace.digest();
        Ok(self.summary)
    }

    fn note(&self, line: impl Into<String>) {
        self.trace.borrow_mut().note(line.into());
    }

    fn choose(&mut self) -> Action {
        let total: u32 = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut at = self.rng.u32(..total);
        for &(action, weight) in &self.weights {
            if at < weight {
                return action;
            }
            at -= weight;
        }
        Action::PollCore
    }

    fn perform(&mut self, action: Action) -> Result<(), String> {
        match action {
            Action::Act => {
                let at = self.rng.usize(..self.agents.len());
                self.act(at, false);
            }
            Action::PollCore => self.poll_core()?,
            Action::PollEngine => self.poll_engine(),
            Action::Report => {
                if self.node.deliver_report() {
                    self.note("report");
                }
            }
            Action::Commit => {
                let most = self.rng.usize(1..=4);
                self.commit(most)?;
            }
            Action::Deliver => {
                let nth = self.rng.usize(..4);
                if self.node.deliver_commit(nth) {
                    self.note(format!("deliver a commit of session {nth}"));
                }
            }
            Action::Read => {
                if self.node.serve_read() {
                    self.note("the journal answers");
                }
            }
            Action::Follow => {
                let at = self.rng.usize(..self.agents.len());
                let count = self.agents[at].followers();
                if count > 0 {
                    let nth = self.rng.usize(..count);
                    self.follow(at, nth);
                }
            }
            Action::Unfollow => {
                let at = self.rng.usize(..self.agents.len());
                let count = self.agents[at].followers();
                if count > 0 {
                    let nth = self.rng.usize(..count);
                    if let Some(dropped) = self.agents[at].unfollow(nth) {
                        self.note(format!("agent {at} drops its stream of {dropped:?}"));
                        match dropped {
                            Dropped::Turn(turn) => self.node.disconnect(self.agents[at].session.clone(), turn),
                            Dropped::Completion(completion) => self.node.drop_completion(completion),
                        }
                    }
                }
            }
            Action::Advance => {
                let us = if self.rng.u8(..8) == 0 { 2_000_000 } else { self.rng.u64(1..20_000) };
                self.note(format!("{us} us pass"));
                self.node.advance(us);
            }
            Action::Mishap => self.mishap(),
            Action::Crash => self.crash(false)?,
            Action::PowerLoss => self.crash(true)?,
            Action::Drain => {
                self.note("drain");
                self.excused = true;
                self.node.drain();
            }
            Action::JournalFailure => {
                self.note("the journal fails");
                self.excused = true;
                self.node.journal().fail_pending("the simulation");
            }
            Action::Audit => self.audit()?,
        }
        if self.node.is_drained() {
            self.note("drained");
            self.crash(false)?;
        }
        Ok(())
    }

    fn new_id(&mut self, owner: usize) -> RequestId {
        self.next_id += 1;
        let id = RequestId(self.next_id);
        self.owners.insert(id, owner);
        id
    }

    fn ask(&mut self, id: RequestId, request: Request) {
        let entropy = self.rng.u128(..);
        self.node.ask(id, request, entropy);
    }

    fn act(&mut self, at: usize, finishing: bool) -> bool {
        let id = self.new_id(at);
        let Some((request, name)) = self.agents[at].act(id, finishing) else { return false };
        self.note(format!("agent {at} asks: {name}"));
        self.ask(id, request);
        true
    }

    fn follow(&mut self, at: usize, nth: usize) {
        let id = self.new_id(at);
        if let Some(request) = self.agents[at].follow(nth, id) {
            self.note(format!("agent {at} follows"));
            self.ask(id, request);
        }
    }

    fn poll_core(&mut self) -> Result<(), String> {
        self.note("poll the core");
        self.node.poll_core();
        self.hear()
    }

    fn hear(&mut self) -> Result<(), String> {
        self.node.announced();
        for (id, result) in self.node.answers() {
            let Some(at) = self.owners.remove(&id) else { return Err(format!("{id:?} was answered twice")) };
            let agent = &mut self.agents[at];
            if let Err(failure) = &result
                && matches!(failure.reason, Reason::Internal | Reason::JournalCorrupt | Reason::RequestIdReused)
            {
                return Err(format!("agent {at} got {failure}"));
            }
            let history = self.oracle.record(&agent.session).map(|record| record.events()).unwrap_or_default();
            let Some(heard) = agent.hear(id, &result, self.excused, history) else { continue };
            let events = heard.map_err(|problem| format!("agent {at}: {problem}"))?;
            self.oracle.check_events(&agent.session, &events)?;
            self.summary.events += events.len() as u64;
            for acknowledged in &agent.acknowledged()[self.checked[at]..] {
                self.oracle.check_acknowledged(&agent.session, acknowledged)?;
            }
            self.checked[at] = agent.acknowledged().len();
            for completion in agent.finished() {
                self.summary.completions += 1;
                self.node.drop_completion(completion);
            }
        }
        Ok(())
    }

    fn poll_engine(&mut self) {
        self.node.poll_engine();
        let steps = self.node.engine().snapshot();
        self.note(format!("poll the engine: step {}, {} rows", steps.steps, steps.step_rows));
    }

    fn commit(&mut self, most: usize) -> Result<(), String> {
        let count = self.node.commit(most);
        if count > 0 {
            self.note(format!("commit {count}"));
            self.read_journal()?;
        }
        Ok(())
    }

    fn read_journal(&mut self) -> Result<(), String> {
        for agent in &self.agents {
            self.oracle.read(self.node.journal(), &agent.session)?;
        }
        Ok(())
    }

    fn mishap(&mut self) {
        let shape = self.node.settings().device;
        let least = shape.context.div_ceil(shape.block_tokens);
        // Sometimes it comes back too small for one full context.
        let floor = if self.rng.u8(..6) == 0 { least / 2 } else { least };
        let blocks = self.rng.u32(floor..=shape.blocks.max(least));
        let mishap = match self.rng.u8(..6) {
            0 => Mishap::LostAtSubmit(blocks),
            1 => Mishap::LostAtCollect(blocks),
            2 => Mishap::Fault,
            3 => Mishap::FaultAtSubmit,
            4 => Mishap::Away(self.rng.u32(1..=6)),
            _ => Mishap::OutOfMemory,
        };
        self.unlucky = true;
        self.note(format!("next step: {mishap:?}"));
        self.node.faults().next(mishap);
    }

    fn crash(&mut self, power: bool) -> Result<(), String> {
        self.note(if power { "power fails" } else { "crash" });
        self.summary.crashes += 1;
        self.summary.preemptions += self.node.engine().snapshot().preemptions;
        self.read_journal()?;
        self.node.crash(power || self.plant == Some(Plant::LoseCommitted));
        self.oracle.check_survival(self.node.journal(), power)?;
        self.excused = false;
        self.owners.clear();
        for at in 0..self.agents.len() {
            let last = self.oracle.record(&self.agents[at].session).map_or(0, |record| record.events().len() as u64);
            let id = self.new_id(at);
            if let Some((request, name)) = self.agents[at].reconnect(id, last) {
                self.note(format!("agent {at} asks again: {name}"));
                self.ask(id, request);
            }
        }
        Ok(())
    }

    fn audit(&self) -> Result<(), String> {
        match self.node.audit().first() {
            Some(problem) => Err(format!("audit: {problem}")),
            None => Ok(()),
        }
    }

    /// Nothing more goes wrong, and everything comes to rest: calls are answered, turns end, followers catch up.
    fn settle(&mut self) -> Result<(), String> {
        self.note("settle");
        self.node.faults().clear();
        if self.excused {
            self.crash(false)?;
        }
        for _ in 0..SETTLE_ROUNDS {
            let mut moved = self.agents.iter().any(Agent::is_waiting);
            for at in 0..self.agents.len() {
                moved |= self.act(at, true);
                let behind = if self.has_caught_up(&self.agents[at]) { 0 } else { self.agents[at].followers() };
                for _ in 0..behind {
                    self.follow(at, 0);
                }
            }
            self.node.advance(1_000);
            let busy = self.node.turn_over();
            self.read_journal()?;
            self.hear()?;
            if !moved
                && !busy
                && !self.agents.iter().any(Agent::is_waiting)
                && self.agents.iter().all(|agent| self.has_caught_up(agent))
            {
                return Ok(());
            }
        }
        let waiting: Vec<_> = self.agents.iter().map(|agent| agent.describe()).collect();
        Err(format!("no rest after {SETTLE_ROUNDS} rounds: {waiting:?}, engine {:?}", self.node.engine().snapshot()))
    }

    fn has_caught_up(&self, agent: &Agent) -> bool {
        let last = self.oracle.record(&agent.session).map_or(0, |record| record.events().len() as u64);
        agent.has_caught_up(last)
    }

    /// At rest, everything is looked at once more.
    fn judge(&mut self) -> Result<(), String> {
        self.audit()?;
        let blocks = self.node.engine().snapshot().blocks;
        if blocks.used != 0 || blocks.cached + blocks.free != blocks.total {
            return Err(format!("blocks leaked: {blocks:?}"));
        }
        self.oracle.check_rest(self.node.journal(), self.unlucky)?;
        for agent in &self.agents {
            let Some(record) = self.oracle.record(&agent.session) else { continue };
            self.summary.count(record);
            self.summary.acknowledged += agent.acknowledged().len() as u64;
            for acknowledged in agent.acknowledged() {
                self.oracle.check_acknowledged(&agent.session, acknowledged)?;
            }
            let device = self.node.engine().device();
            replay::check(record.entries(), &**self.node.language(), device)
                .map_err(|problem| format!("{}: {problem}", agent.session))?;
        }
        Ok(())
    }
}
