//! The state machine over sessions: `poll(now, inputs) -> effects`.
//!
//! In: requests, commits, what engines report, entries that were read, time as an argument. Out: replies, batches for the
//! journal, commands for engines. Deliberately not here: a clock, randomness, threads, streams (the shell's).
//!
//! Invariants: computing starts at once, but no reply and no event leaves before its entry is committed; a session is
//! loaded at most once; one run per session at a time; what is loaded is bounded, except by turns in progress, which have
//! their own bound.

mod check;
mod compile;
mod completion;
mod message;
mod read;
mod retention;
mod run;
mod session;
mod turn;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use holdfast_engine::RunId;
use holdfast_journal::{JournalError, NewEntry, SessionHead};
use holdfast_kv::DomainSecret;
use holdfast_types::{
    Failure, FailureDetail, Limits, Precision, Reason, SequenceId, SessionId, SessionState, Sharing, TenantId, TimeUs,
    TurnNumber,
};
use holdfast_worker_api::{Caller, ModelInfo};

use crate::fold::{Languages, SessionFold};
use crate::guiding::ModelGuides;
use crate::language::Language;

pub use message::{Channel, Effect, EventBatch, Input, ReadEvents, Reply, Request, RequestId, Stats, Ticket};
pub(crate) use read::page_size;
use read::{deleted, not_found};
use session::Session;

/// A device as the core sees it: the model it holds and how that model speaks.
#[derive(Clone)]
pub struct ServedModel {
    /// What clients are told; `context_limit` is the limit in force.
    pub info: ModelInfo,
    /// Its text side.
    pub language: Arc<dyn Language>,
    /// The precision that tokens are computed with.
    pub precision: Precision,
}

/// What does not change in a core's life.
#[derive(Clone)]
pub struct CoreSettings {
    /// Limits in force.
    pub limits: Limits,
    /// Version and source revision, for the record.
    pub build: String,
    /// Most sessions at rest that stay loaded.
    pub sessions_loaded: usize,
    /// Most requests that wait for one session to be loaded.
    pub requests_waiting: usize,
    /// Events of a session that stay in memory; older ones are folded again on demand.
    pub recent_events: usize,
    /// Microseconds between two looks for sessions that expire, or that wait for their client past a turn's deadline and are
    /// not loaded: both may happen so much late.
    pub attention_interval_us: u64,
    /// The journal's secret, from which sharing domains derive theirs.
    pub secret: [u8; 32],
}

/// Names a loaded session or a completion; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Slot(u64);

/// A request on its way.
struct Asked {
    id: RequestId,
    caller: Caller,
    request: Request,
    entropy: u128,
    /// It has stepped aside for what it needs compiled.
    compiled: bool,
}

/// A session by name: on its way into memory, or there.
enum Named {
    Loading(Vec<Asked>),
    Ready(Slot),
}

/// What all sessions share.
struct Shared {
    settings: CoreSettings,
    models: Vec<ServedModel>,
    /// One for each model.
    guides: Vec<ModelGuides>,
    languages: Languages,
    now: TimeUs,
    effects: Vec<Effect>,
    counter: u64,
    /// Sessions that wait for a commit, or for a generation's grammar.
    tickets: HashMap<Ticket, Slot>,
    runs: HashMap<RunId, Slot>,
    deadlines: BTreeSet<(TimeUs, Slot)>,
    /// Sessions per tenant, of tenants that have made one since the start.
    tenants: HashMap<TenantId, u64>,
    /// Turns that wait or run, as of the request in hand.
    turns_in_progress: u32,
    tokens_sampled: u64,
    draining: bool,
}

impl Shared {
    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn next_sequence(&mut self) -> SequenceId {
        SequenceId(self.next())
    }

    fn reply(&mut self, id: RequestId, result: Result<Reply, Failure>) {
        self.effects.push(Effect::Reply { id, result });
    }

    fn model(&self, name: &str) -> Result<usize, Failure> {
        let found = match name {
            "" => self.models.iter().position(|model| model.info.is_default),
            name => self.models.iter().position(|model| model.info.name == name),
        };
        found.ok_or_else(|| {
            let served: Vec<_> = self.models.iter().map(|model| model.info.name.as_str()).collect();
            let message = format!("no model {name:?} is served; served are: {}", served.join(", "));
            Failure::resource(Reason::ModelNotFound, format!("models/{name}"), message)
        })
    }

    /// The secret that a session's blocks are keyed under.
    fn domain(&self, tenant: &TenantId, private: Option<&str>) -> DomainSecret {
        let mut hasher = blake3::Hasher::new_derive_key("holdfast 1 sharing domain");
        hasher.update(&self.settings.secret);
        for part in [tenant.as_str()].into_iter().chain(private) {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        DomainSecret(*hasher.finalize().as_bytes())
    }

    fn session_domain(&self, fold: &SessionFold) -> DomainSecret {
        let private = (fold.config().sharing == Sharing::Private).then(|| fold.session().as_str());
        self.domain(fold.tenant(), private)
    }
}

/// Sessions on one node. Owned by one thread, which feeds it inputs and carries out its effects in order.
pub struct WorkerCore {
    shared: Shared,
    names: HashMap<(TenantId, SessionId), Named>,
    slots: HashMap<Slot, Session>,
    /// Sessions that ended in a reply to a deletion, which waits for their purge.
    purging: HashMap<(TenantId, SessionId), Vec<(RequestId, holdfast_worker_api::Session)>>,
    /// Requests that wait for what they need compiled.
    compiling: HashMap<Ticket, Asked>,
    attention_due: TimeUs,
    drained: bool,
}

impl WorkerCore {
    /// A core over these models. Sessions with turns in progress are looked for at the first poll.
    pub fn new(settings: CoreSettings, models: Vec<ServedModel>) -> Self {
        let languages = languages(&models);
        let shared = Shared {
            settings,
            guides: models.iter().map(|model| ModelGuides::new(&*model.language)).collect(),
            models,
            languages,
            now: 0,
            effects: Vec::new(),
            counter: 0,
            tickets: HashMap::new(),
            runs: HashMap::new(),
            deadlines: BTreeSet::new(),
            tenants: HashMap::new(),
            turns_in_progress: 0,
            tokens_sampled: 0,
            draining: false,
        };
        Self {
            shared,
            names: HashMap::new(),
            slots: HashMap::new(),
            purging: HashMap::new(),
            compiling: HashMap::new(),
            attention_due: 0,
            drained: false,
        }
    }

    /// Takes inputs in order and says what is to be done, in order. `now` never goes back.
    pub fn poll(&mut self, now: TimeUs, inputs: Vec<Input>) -> Vec<Effect> {
        self.shared.now = now.max(self.shared.now);
        for input in inputs {
            self.take(input);
        }
        self.end_overdue_turns();
        if self.shared.now >= self.attention_due && !self.shared.draining {
            self.attention_due = self.shared.now.saturating_add(self.shared.settings.attention_interval_us);
            self.shared.effects.push(Effect::Attention { before_us: self.shared.now });
        }
        self.unload();
        let still = self.compiling.is_empty() && self.slots.values().all(Session::is_still);
        if self.shared.draining && !self.drained && still {
            self.drained = true;
            self.shared.effects.push(Effect::Drained);
        }
        std::mem::take(&mut self.shared.effects)
    }

    /// When the core wants to be polled again although nothing happened.
    pub fn wake_at(&self) -> TimeUs {
        self.shared.deadlines.first().map_or(self.attention_due, |(at, _)| self.attention_due.min(*at))
    }

    /// How languages are found: for folding journals outside of the core.
    pub fn languages(&self) -> Languages {
        self.shared.languages.clone()
    }

    /// What a run is for while it runs: whose turn, and which generation of it.
    pub fn turn_of(&self, run: RunId) -> Option<(Channel, TurnNumber, u32)> {
        let session = self.slots.get(self.shared.runs.get(&run)?)?;
        let progress = session.fold.current()?;
        Some((session.channel(), progress.number, progress.generation))
    }

    /// Figures for gauges.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats {
            turns_in_progress: self.slots.values().map(Session::turns_underway).sum(),
            tokens_sampled: self.shared.tokens_sampled,
            draining: self.shared.draining,
            ..Stats::default()
        };
        for session in self.slots.values().filter(|session| !session.is_completion()) {
            match session.fold().state() {
                SessionState::Idle | SessionState::Suspended => stats.sessions_idle += 1,
                SessionState::Running => stats.sessions_running += 1,
                SessionState::RequiresAction => stats.sessions_requires_action += 1,
                SessionState::Deleting => stats.sessions_deleting += 1,
            }
        }
        stats
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Request { id, caller, request, entropy } => {
                self.request(Asked { id, caller, request: *request, entropy, compiled: false })
            }
            Input::Committed { ticket, result } => self.committed(ticket, result),
            Input::Compiled { ticket } => self.compiled(ticket),
            Input::Engine { effects } => self.engine(effects),
            Input::Loaded { tenant, session, entries, tenant_sessions } => {
                self.loaded((tenant, session), entries, tenant_sessions);
            }
            Input::Attention { heads } => heads.into_iter().for_each(|head| self.attend(head)),
            Input::Purged { tenant, session, result } => self.purged((tenant, session), result),
            Input::Disconnected { tenant, session, turn } => {
                if let Some(Named::Ready(slot)) = self.names.get(&(tenant, session))
                    && let Some(loaded) = self.slots.get_mut(slot)
                {
                    loaded.disconnected(&mut self.shared, turn);
                }
            }
            Input::CompletionDropped { completion } => self.drop_completion(completion),
            Input::Drain => {
                self.shared.draining = true;
                self.slots.values_mut().for_each(|session| session.pause(&mut self.shared));
            }
        }
    }

    fn request(&mut self, asked: Asked) {
        // What is about no session that has a name yet; of the others it depends on the session.
        let asked = if asked.request.session().is_none() { self.compile_first(None, asked) } else { Some(asked) };
        let Some(Asked { id, caller, request, entropy, compiled }) = asked else { return };
        if let Request::Generate(request) = request {
            return self.generate(id, &caller, request, entropy);
        }
        if let Request::ReadCompletion { completion, from, limit } = request {
            let result = match self.slots.get(&Slot(completion)) {
                Some(session) => Ok(Reply::Events(session.read_completion(from, limit))),
                None => Err(Failure::new(Reason::Internal, "the completion is gone")),
            };
            return self.shared.reply(id, result);
        }
        let request = match request {
            Request::CountTokens(count) if count.session.is_none() => {
                let result = self.shared.count_new(&count).map(Reply::Count);
                return self.shared.reply(id, result);
            }
            Request::CreateSession(mut create) => {
                create.session = Some(self.shared.session_id(&caller, &create, entropy));
                Request::CreateSession(create)
            }
            other => other,
        };
        let Some(session) = request.session().cloned() else { return };
        let key = (caller.tenant.clone(), session);
        let asked = Asked { id, caller, request, entropy, compiled };
        match self.names.get_mut(&key) {
            Some(Named::Ready(slot)) => {
                let slot = *slot;
                self.dispatch(Some(slot), asked);
            }
            Some(Named::Loading(waiting)) => {
                let limit = self.shared.settings.requests_waiting;
                if waiting.len() < limit {
                    waiting.push(asked);
                } else {
                    let message = format!("{limit} requests wait for session {} to be read; retry", key.1);
                    let failure = Failure::new(Reason::QueueFull, message).with(FailureDetail::RetryAfter { ms: 100 });
                    self.shared.reply(id, Err(failure));
                }
            }
            None => self.load(key, vec![asked]),
        }
    }

    fn load(&mut self, key: (TenantId, SessionId), waiting: Vec<Asked>) {
        let count = !self.shared.tenants.contains_key(&key.0);
        self.shared.effects.push(Effect::Load { tenant: key.0.clone(), session: key.1.clone(), count });
        self.names.insert(key, Named::Loading(waiting));
    }

    fn loaded(
        &mut self,
        key: (TenantId, SessionId),
        entries: Result<Vec<NewEntry>, JournalError>,
        tenant_sessions: Option<u64>,
    ) {
        let Some(Named::Loading(waiting)) = self.names.remove(&key) else { return };
        if let Some(count) = tenant_sessions {
            self.shared.tenants.entry(key.0.clone()).or_insert(count);
        }
        let entries = match entries {
            Err(JournalError::NotFound { .. }) => Ok(Vec::new()),
            other => other,
        };
        let folded = entries.map_err(|error| journal_failure(&error)).and_then(|entries| {
            if entries.is_empty() { Ok(None) } else { Session::load(&mut self.shared, &entries).map(Some) }
        });
        match folded {
            Err(failure) => {
                for asked in waiting {
                    self.shared.reply(asked.id, Err(failure.clone()));
                }
            }
            Ok(session) => {
                if let Some(session) = session {
                    let slot = session.slot();
                    self.slots.insert(slot, session);
                    self.names.insert(key.clone(), Named::Ready(slot));
                    self.settle(&key);
                }
                for asked in waiting {
                    let slot = match self.names.get(&key) {
                        Some(Named::Ready(slot)) => Some(*slot),
                        _ => None,
                    };
                    self.dispatch(slot, asked);
                }
            }
        }
    }

    /// What a session that was just loaded, or whose time has come, is due to do by itself.
    fn settle(&mut self, key: &(TenantId, SessionId)) {
        let Some(Named::Ready(slot)) = self.names.get(key) else { return };
        let Some(session) = self.slots.get_mut(slot) else { return };
        if session.fold().is_deleted() {
            session.purge(&mut self.shared);
        } else if session.fold().expires_us().is_some_and(|at| at <= self.shared.now) {
            session.delete(&mut self.shared, &Caller::default());
        } else {
            session.end_overdue(&mut self.shared);
            session.resume(&mut self.shared);
        }
    }

    fn attend(&mut self, head: SessionHead) {
        let key = (head.tenant, head.session);
        match self.names.get(&key) {
            Some(Named::Ready(_)) => {
                // A deleted session waits for its purge; to settle it again would ask for a second one.
                let expired = |session: &Session| {
                    !session.fold().is_deleted() && session.fold().expires_us().is_some_and(|at| at <= self.shared.now)
                };
                if self.ready(&key).is_some_and(expired) {
                    self.settle(&key);
                }
            }
            Some(Named::Loading(_)) => {}
            None => self.load(key, Vec::new()),
        }
    }

    fn ready(&self, key: &(TenantId, SessionId)) -> Option<&Session> {
        match self.names.get(key) {
            Some(Named::Ready(slot)) => self.slots.get(slot),
            _ => None,
        }
    }

    fn dispatch(&mut self, slot: Option<Slot>, asked: Asked) {
        let Some(asked) = self.compile_first(slot, asked) else { return };
        let Asked { id, caller, request, entropy, .. } = asked;
        if matches!(request, Request::StartTurn(_)) {
            self.count_turns();
        }
        let shared = &mut self.shared;
        let mut session = slot.and_then(|slot| self.slots.get_mut(&slot));
        if let Some(session) = &mut session {
            session.touch(shared.now);
            if !session.fold().is_deleted() && session.fold().expires_us().is_some_and(|at| at <= shared.now) {
                session.delete(shared, &Caller::default());
            }
        }
        match (session, request) {
            (None, Request::CreateSession(create)) => {
                if let Some(session) = Session::create(shared, id, &caller, create) {
                    let key = session.key();
                    self.names.insert(key, Named::Ready(session.slot()));
                    self.slots.insert(session.slot(), session);
                }
            }
            (Some(session), Request::CreateSession(create)) => session.created_again(shared, id, &create),
            (Some(session), Request::ReadEvents(read)) => session.read_events(shared, id, &read),
            (None, request) => {
                let failure = request.session().map_or_else(|| Failure::new(Reason::Internal, "no session"), not_found);
                shared.reply(id, Err(failure));
            }
            (Some(session), _) if session.fold().is_deleted() => {
                let failure = not_found(session.fold().session());
                session.reply(shared, id, Err(failure));
            }
            (Some(session), Request::DeleteSession { etag, .. }) => {
                if let Err(failure) = session.check_etag(etag.as_deref()) {
                    return session.reply(shared, id, Err(failure));
                }
                session.delete(shared, &caller);
                let key = session.key();
                let shown = session.show(shared);
                self.purging.entry(key).or_default().push((id, shown));
            }
            (Some(session), Request::StartTurn(request)) => session.start_turn(shared, id, &caller, request, entropy),
            (Some(session), Request::SubmitToolResults(request)) => session.submit(shared, id, &caller, request),
            (Some(session), Request::CancelTurn(request)) => session.cancel_turn(shared, id, request.turn),
            (Some(session), Request::AppendItems(request)) => session.append_items(shared, id, &caller, request),
            (Some(session), Request::UpdateSession(request)) => session.update(shared, id, &caller, request),
            (Some(session), request) => {
                let result = session.read(shared, request);
                session.reply(shared, id, result);
            }
        }
    }

    fn count_turns(&mut self) {
        self.shared.turns_in_progress = self.slots.values().map(Session::turns_underway).sum();
    }

    fn committed(&mut self, ticket: Ticket, result: Result<(), JournalError>) {
        let Some(slot) = self.shared.tickets.remove(&ticket) else { return };
        let Some(session) = self.slots.get_mut(&slot) else { return };
        match result {
            Ok(()) => {
                session.committed(&mut self.shared, ticket);
                if session.is_purge_due() {
                    session.purge(&mut self.shared);
                }
            }
            Err(error) => {
                let failure = journal_failure(&error);
                let key = session.key();
                session.abandon(&mut self.shared, &failure);
                self.slots.remove(&slot);
                self.names.remove(&key);
                for (id, _) in self.purging.remove(&key).unwrap_or_default() {
                    self.shared.reply(id, Err(failure.clone()));
                }
            }
        }
    }

    fn purged(&mut self, key: (TenantId, SessionId), result: Result<(), JournalError>) {
        // A name that is being loaded has requests waiting: they are answered when the journal has.
        if let Some(&Named::Ready(slot)) = self.names.get(&key) {
            self.names.remove(&key);
            if let Some(mut session) = self.slots.remove(&slot) {
                session.abandon(&mut self.shared, &deleted(&key.1));
            }
        }
        if result.is_ok()
            && let Some(count) = self.shared.tenants.get_mut(&key.0)
        {
            *count = count.saturating_sub(1);
        }
        let now = self.shared.now;
        for (id, mut shown) in self.purging.remove(&key).unwrap_or_default() {
            shown.purge_time_us = result.is_ok().then_some(now);
            self.shared.reply(id, Ok(Reply::Session(Box::new(shown))));
        }
    }

    fn engine(&mut self, effects: Vec<holdfast_engine::Effect>) {
        let mut touched: Vec<(Slot, Vec<holdfast_engine::Effect>)> = Vec::new();
        for effect in effects {
            let Some(slot) = self.shared.runs.get(&run::run_of(&effect)).copied() else { continue };
            match touched.iter_mut().find(|(other, _)| *other == slot) {
                Some((_, list)) => list.push(effect),
                None => touched.push((slot, vec![effect])),
            }
        }
        for (slot, effects) in touched {
            if let Some(session) = self.slots.get_mut(&slot) {
                session.engine(&mut self.shared, effects);
            }
        }
    }

    fn end_overdue_turns(&mut self) {
        while let Some(&(at, slot)) = self.shared.deadlines.first() {
            if at > self.shared.now {
                break;
            }
            self.shared.deadlines.remove(&(at, slot));
            if let Some(session) = self.slots.get_mut(&slot) {
                session.end_overdue(&mut self.shared);
            }
        }
    }

    /// Lets sessions at rest go, the longest unused first, down to the bound; and those that can no longer be trusted.
    fn unload(&mut self) {
        let broken: Vec<_> = self.slots.values().filter(|session| session.is_broken()).map(Session::slot).collect();
        for slot in broken {
            self.forget(
                slot,
                Some(Failure::new(Reason::Internal, "the session's state is inconsistent; it is read again")),
            );
        }
        let bound = self.shared.settings.sessions_loaded;
        if self.slots.len() <= bound {
            return;
        }
        let mut resting: Vec<_> =
            self.slots.values().filter(|session| session.may_unload()).map(|s| (s.last_used(), s.slot())).collect();
        resting.sort_unstable();
        let surplus = self.slots.len() - bound;
        for (_, slot) in resting.into_iter().take(surplus) {
            self.forget(slot, None);
        }
    }

    fn forget(&mut self, slot: Slot, failure: Option<Failure>) {
        let Some(mut session) = self.slots.remove(&slot) else { return };
        self.names.remove(&session.key());
        let failure = failure.unwrap_or_else(|| Failure::new(Reason::Internal, "the session was unloaded"));
        session.abandon(&mut self.shared, &failure);
    }
}

fn languages(models: &[ServedModel]) -> Languages {
    let served: Vec<_> = models.iter().map(|model| (model.info.clone(), model.language.clone())).collect();
    Arc::new(move |name, revision| {
        let found = served.iter().find(|(info, _)| {
            info.name == name && info.tokenizer == revision.tokenizer && info.template == revision.template
        });
        found.map(|(_, language)| language.clone())
    })
}

fn journal_failure(error: &JournalError) -> Failure {
    let reason = match error {
        JournalError::Corrupt { .. } => Reason::JournalCorrupt,
        JournalError::InUse { .. } => Reason::DataDirInUse,
        JournalError::TooNew { .. } => Reason::SchemaTooNew,
        JournalError::NotFound { .. } => Reason::SessionNotFound,
        JournalError::Io(_) => Reason::JournalUnavailable,
    };
    Failure::new(reason, error.to_string())
}
