//! One node without threads: the real worker core, engine and journal, with everything that is on its way between them in the
//! hands of whoever simulates.
//!
//! In: requests, and the word on what moves next. Out: replies, announcements, what the journal holds. This is the worker's
//! shell and the engine's thread, taken apart: where those carry an effect out at once, a node keeps it until it is told to.
//! Deliberately not here: what to do next ([`crate::world`]), what is right ([`crate::oracle`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use holdfast_engine::{Command, Engine, EngineConfig, NextPoll};
use holdfast_journal::{AppendFuture, Journal, JournalError, MemoryJournal, NewEntry};
use holdfast_types::{Limits, Precision, SessionId, SessionState, TenantId, TimeUs};
use holdfast_worker::core::{
    Channel, CoreSettings, Effect, Input, Reply, Request, RequestId, ServedModel, Ticket, WorkerCore,
};
use holdfast_worker::language::Language;
use holdfast_worker_api::{Caller, ModelInfo};

use crate::alphabet::Alphabet;
use crate::device::{DeviceShape, Faults, SimDevice};

/// Name of the one model that a node serves.
pub const MODEL: &str = "alphabet";

/// The journal's secret in every world.
const SECRET: [u8; 32] = [7; 32];

/// What a node is made of.
#[derive(Debug, Clone)]
pub struct NodeSettings {
    /// The device.
    pub device: DeviceShape,
    /// The engine.
    pub engine: EngineConfig,
    /// Sessions at rest that stay loaded.
    pub sessions_loaded: usize,
    /// Events that stay in memory, per session.
    pub recent_events: usize,
    /// Most tokens of a context.
    pub context_limit: u32,
}

/// An answer of the core.
pub type Answer = (RequestId, Result<Reply, holdfast_types::Failure>);

/// A batch that was handed to the journal.
struct Handed {
    ticket: Ticket,
    session: SessionId,
    future: AppendFuture,
    done: Option<Result<(), JournalError>>,
}

/// See the module.
pub struct Node {
    settings: NodeSettings,
    language: Arc<dyn Language>,
    journal: MemoryJournal,
    core: WorkerCore,
    engine: Engine,
    faults: Faults,
    inbox: Vec<Input>,
    commands: Vec<Command>,
    reports: VecDeque<Vec<holdfast_engine::Effect>>,
    appends: VecDeque<Handed>,
    purges: VecDeque<(TenantId, SessionId, AppendFuture)>,
    loads: VecDeque<(TenantId, SessionId, bool)>,
    attentions: VecDeque<TimeUs>,
    answers: Vec<Answer>,
    announced: Vec<Channel>,
    /// What the core should not have asked for.
    problems: Vec<String>,
    drained: bool,
    /// Lives of the process so far.
    lives: u64,
    /// The engine did nothing in its last poll.
    engine_idle: bool,
    now: TimeUs,
}

impl Node {
    /// A node with an empty journal.
    pub fn new(settings: NodeSettings, now: TimeUs) -> Self {
        let language: Arc<dyn Language> = Arc::new(Alphabet::new(settings.context_limit));
        let faults = Faults::default();
        let device = SimDevice::new(settings.device, faults.clone());
        let core = core(&settings, &language, &device);
        let engine = Engine::new(Box::new(device), settings.engine);
        Self {
            settings,
            language,
            journal: MemoryJournal::stepped(SECRET),
            core,
            engine,
            faults,
            inbox: Vec::new(),
            commands: Vec::new(),
            reports: VecDeque::new(),
            appends: VecDeque::new(),
            purges: VecDeque::new(),
            loads: VecDeque::new(),
            attentions: VecDeque::new(),
            answers: Vec::new(),
            announced: Vec::new(),
            problems: Vec::new(),
            drained: false,
            lives: 1,
            engine_idle: false,
            now,
        }
    }

    /// The process dies and starts again: what the journal has committed is all there is. With `power`, commits that were only
    /// safe against the process's death are gone as well.
    pub fn crash(&mut self, power: bool) {
        self.journal = if power { self.journal.lose_power() } else { self.journal.crash() };
        let device = SimDevice::new(self.settings.device, self.faults.clone());
        self.core = core(&self.settings, &self.language, &device);
        self.engine = Engine::new(Box::new(device), self.settings.engine);
        self.inbox.clear();
        self.commands.clear();
        self.reports.clear();
        self.appends.clear();
        self.purges.clear();
        self.loads.clear();
        self.attentions.clear();
        self.answers.clear();
        self.announced.clear();
        self.drained = false;
        self.engine_idle = false;
        self.lives += 1;
    }

    /// Lets time pass.
    pub fn advance(&mut self, us: u64) {
        self.now += us;
    }

    /// The time.
    pub fn now(&self) -> TimeUs {
        self.now
    }

    /// The journal, for reading and for faults.
    pub fn journal(&self) -> &MemoryJournal {
        &self.journal
    }

    /// What the device is to suffer.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The core, for reading.
    pub fn core(&self) -> &WorkerCore {
        &self.core
    }

    /// The engine, for reading.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// How the node was made.
    pub fn settings(&self) -> &NodeSettings {
        &self.settings
    }

    /// The text side of its model.
    pub fn language(&self) -> &Arc<dyn Language> {
        &self.language
    }

    /// Lives of the process so far.
    pub fn lives(&self) -> u64 {
        self.lives
    }

    /// Puts a request where the core will take it.
    pub fn ask(&mut self, id: RequestId, request: Request, entropy: u128) {
        self.inbox.push(Input::Request { id, caller: Caller::default(), request: Box::new(request), entropy });
    }

    /// A turn's stream was dropped.
    pub fn disconnect(&mut self, session: SessionId, turn: holdfast_types::TurnNumber) {
        self.inbox.push(Input::Disconnected { tenant: TenantId::default(), session, turn });
    }

    /// A completion's stream was dropped.
    pub fn drop_completion(&mut self, completion: u64) {
        self.inbox.push(Input::CompletionDropped { completion });
    }

    /// Begins a shutdown.
    pub fn drain(&mut self) {
        self.inbox.push(Input::Drain);
    }

    /// Whether the shutdown is over.
    pub fn is_drained(&self) -> bool {
        self.drained
    }

    /// The core takes what has arrived.
    pub fn poll_core(&mut self) {
        let inputs = std::mem::take(&mut self.inbox);
        for effect in self.core.poll(self.now, inputs) {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Reply { id, result } => self.answers.push((id, result)),
            Effect::Append { ticket, batch } => {
                let Some(session) = batch.entries.first().map(|entry| entry.session.clone()) else { return };
                let future = self.journal.append(batch);
                self.appends.push_back(Handed { ticket, session, future, done: None });
            }
            Effect::Compile { ticket, work } => {
                work.run();
                self.inbox.push(Input::Compiled { ticket });
            }
            Effect::Engine { command, .. } => self.commands.push(command),
            Effect::Load { tenant, session, count } => self.loads.push_back((tenant, session, count)),
            Effect::Attention { before_us } => self.attentions.push_back(before_us),
            Effect::Purge { tenant, session } => {
                let head = self.journal.head(&tenant, &session).ok().flatten();
                if head.is_some_and(|head| head.state != SessionState::Deleting) {
                    self.problems.push(format!("{session} is to be purged before its deletion is committed"));
                }
                if self.purges.iter().any(|(_, other, _)| *other == session) {
                    self.problems.push(format!("{session} is to be purged twice"));
                }
                let future = self.journal.purge(tenant.clone(), session.clone());
                self.purges.push_back((tenant, session, future));
            }
            Effect::Announce { channel } => {
                if !self.announced.contains(&channel) {
                    self.announced.push(channel);
                }
            }
            Effect::Drained => self.drained = true,
        }
    }

    /// One step of the engine, with every command that has arrived.
    pub fn poll_engine(&mut self) {
        let commands = std::mem::take(&mut self.commands);
        let quiet = commands.is_empty();
        let effects = self.engine.poll(self.now, commands);
        self.engine_idle = quiet && effects.is_empty() && !self.engine.has_work();
        if !effects.is_empty() {
            self.reports.push_back(effects);
        }
    }

    /// The core hears the oldest report of the engine. False when there is none.
    pub fn deliver_report(&mut self) -> bool {
        let report = self.reports.pop_front();
        report.map(|effects| self.inbox.push(Input::Engine { effects })).is_some()
    }

    /// The journal commits the `most` oldest batches. Returns how many there were.
    pub fn commit(&mut self, most: usize) -> usize {
        self.journal.commit(most)
    }

    /// The core hears of the oldest commit of the `nth` session that has one: in order within a session, in any order among
    /// sessions. False when nothing is committed.
    pub fn deliver_commit(&mut self, nth: usize) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        let mut heads: Vec<(SessionId, usize)> = Vec::new();
        for (at, handed) in self.appends.iter_mut().enumerate() {
            if heads.iter().any(|(session, _)| *session == handed.session) {
                continue;
            }
            if handed.done.is_none()
                && let Poll::Ready(result) = handed.future.as_mut().poll(&mut context)
            {
                handed.done = Some(result.map(|_| ()));
            }
            if handed.done.is_some() {
                heads.push((handed.session.clone(), at));
            }
        }
        let Some((_, at)) = heads.get(nth % heads.len().max(1)) else { return self.deliver_purge() };
        let Some(Handed { ticket, done: Some(result), .. }) = self.appends.remove(*at) else { return false };
        self.inbox.push(Input::Committed { ticket, result });
        true
    }

    fn deliver_purge(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        let Some((_, _, future)) = self.purges.front_mut() else { return false };
        let Poll::Ready(result) = future.as_mut().poll(&mut context) else { return false };
        let Some((tenant, session, _)) = self.purges.pop_front() else { return false };
        self.inbox.push(Input::Purged { tenant, session, result: result.map(|_| ()) });
        true
    }

    /// The journal answers the oldest question: a session to load, or who needs attention. False when none was asked.
    pub fn serve_read(&mut self) -> bool {
        if let Some((tenant, session, count)) = self.loads.pop_front() {
            let read = self.journal.read(&tenant, &session, 0, usize::MAX);
            let entries = read.map(|entries| entries.into_iter().map(|entry| entry.entry).collect::<Vec<NewEntry>>());
            let tenant_sessions = if count { self.journal.count(&tenant).ok() } else { None };
            self.inbox.push(Input::Loaded { tenant, session, entries, tenant_sessions });
            return true;
        }
        if let Some(before_us) = self.attentions.pop_front() {
            let heads = self.journal.attention(before_us, usize::MAX).unwrap_or_default();
            self.inbox.push(Input::Attention { heads });
            return true;
        }
        false
    }

    /// Answers since the last call.
    pub fn answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }

    /// Channels announced since the last call.
    pub fn announced(&mut self) -> Vec<Channel> {
        std::mem::take(&mut self.announced)
    }

    /// Whether anything is on its way between the parts, or an engine has work.
    pub fn is_busy(&self) -> bool {
        !self.inbox.is_empty()
            || !self.commands.is_empty()
            || !self.reports.is_empty()
            || !self.appends.is_empty()
            || !self.purges.is_empty()
            || !self.loads.is_empty()
            || !self.attentions.is_empty()
            || !self.engine_idle
    }

    /// Moves everything once, in the plainest order; time passes until a device that is away is tried again. Returns whether anything is
    /// left to move.
    pub fn turn_over(&mut self) -> bool {
        if let NextPoll::At(time) = self.engine.next_poll() {
            self.now = self.now.max(time);
        }
        self.poll_core();
        while self.serve_read() {}
        self.poll_engine();
        while self.deliver_report() {}
        self.commit(usize::MAX);
        while self.deliver_commit(0) {}
        self.is_busy()
    }

    /// What is wrong with the device's memory, and what the core should not have asked for; nothing when all is well.
    pub fn audit(&self) -> Vec<String> {
        self.engine.audit().into_iter().chain(self.problems.iter().cloned()).collect()
    }
}

fn core(settings: &NodeSettings, language: &Arc<dyn Language>, device: &SimDevice) -> WorkerCore {
    let (weights, tokenizer, template) = language.revision();
    let description = device.describe_now();
    let info = ModelInfo {
        name: MODEL.to_owned(),
        architecture: "hash".to_owned(),
        parameters: 0,
        context_limit: settings.context_limit,
        vocab_size: language.vocab_size(),
        weights,
        tokenizer,
        template,
        numerics_class: description.numerics_class.clone(),
        tools: true,
        speech: holdfast_worker_api::ModelSpeech::default(),
        device: description.name.clone(),
        kv_blocks: (settings.device.blocks, 0),
        kv_bytes_per_token: 0,
        is_default: true,
    };
    let core_settings = CoreSettings {
        limits: Limits { queued_turns_per_session: 3, ..Limits::default() },
        build: "sim".to_owned(),
        sessions_loaded: settings.sessions_loaded,
        requests_waiting: 64,
        recent_events: settings.recent_events,
        attention_interval_us: 1_000_000,
        secret: SECRET,
    };
    let model = ServedModel { info, language: language.clone(), precision: Precision::Native };
    WorkerCore::new(core_settings, vec![model])
}
