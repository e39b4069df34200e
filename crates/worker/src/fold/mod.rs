//! The pure fold: a session's journal entries to its state and its numbered events.
//!
//! In: entries in order, as they are written (live) or read back (replay). Out: the session as it stands, and events whose
//! numbers are the same however often they are produced. Deliberately not here: what happens next (the core's), the journal
//! itself, time and randomness.

mod bare;
mod channels;
mod output;
mod reader;
mod scanner;
mod turns;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use holdfast_journal::{Body, NewEntry, RequestMark, SessionHead, SessionMutable};
use holdfast_types::{
    Digest, Event, EventKind, Item, ItemContent, ItemNumber, LogToken, ModelRevision, NumberedItem, ReasoningRetention,
    Role, SessionConfig, SessionId, SessionState, TenantId, TimeUs, TokenRange, TokenRun, Turn, TurnNumber, TurnState,
};

use crate::language::{Language, LogEnd};
pub(crate) use turns::Progress;

/// Finds the language of a model's revision: `None` when tokenizer or template of that revision are not served.
pub type Languages = Arc<dyn Fn(&str, &ModelRevision) -> Option<Arc<dyn Language>> + Send + Sync>;

/// The end of the year 9999. A time beyond it fits neither a client's timestamps nor the journal's columns.
pub(crate) const TIME_MAX_US: TimeUs = 253_402_300_799_999_999;

/// `count` times `unit_us` after `from`, or the latest time there is.
pub(crate) fn later(from: TimeUs, count: u64, unit_us: u64) -> TimeUs {
    from.saturating_add(count.saturating_mul(unit_us)).min(TIME_MAX_US)
}

/// What a request id was used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarkUse {
    /// Making the session.
    Create,
    /// Starting this turn.
    Turn(TurnNumber),
    /// Appending these items, both ends included.
    Items(ItemNumber, ItemNumber),
    /// Answering calls of this turn; the next event was of this number.
    Results(TurnNumber, u64),
}

/// Why entries are no session: a defect of who wrote them, since their hashes held.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("entry {index} cannot follow: {problem}")]
pub struct FoldError {
    /// How many entries came before.
    pub index: u64,
    /// What is wrong.
    pub problem: String,
}

/// A place in a log that a rebase can go back to: where a turn began (`discard_partial`), or items were appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogPlace {
    pub(crate) tokens: u32,
    pub(crate) items: u32,
    pub(crate) end: LogEnd,
}

/// A session, as far as its journal goes. Grows by [`SessionFold::apply`] only; every other method reads.
#[derive(Clone)]
pub struct SessionFold {
    languages: Languages,
    language: Option<Arc<dyn Language>>,
    tenant: TenantId,
    session: SessionId,
    config: SessionConfig,
    revision: ModelRevision,
    pinned_date: String,
    mutable: SessionMutable,
    created_us: TimeUs,
    updated_us: TimeUs,
    /// When it was last used: what the idle timeout counts from.
    active_us: TimeUs,
    deleted: bool,
    entries: u64,
    /// Entries that changed what clients see of the session; its etag.
    changes: u64,
    log: Vec<LogToken>,
    end: LogEnd,
    /// Positions below had their KV computed in this numerics class.
    computed: u32,
    /// Counts rebases: the log of one count only grows.
    rebases: u32,
    items: Vec<NumberedItem>,
    /// Where rendered items were appended, in order: what a rebase can go back to.
    places: Vec<LogPlace>,
    /// Tool calls by id: answered or not.
    calls: HashMap<String, bool>,
    turns: Vec<Turn>,
    /// Turns that have not ended, in order; only the first may have started.
    progress: VecDeque<Progress>,
    /// Where the last turn that ended began, and whether it ended early.
    last: Option<(LogPlace, bool)>,
    /// Output that ended early and may go on.
    parked: Option<output::OutputFold>,
    sequence: u64,
    /// The output item that has begun and is not done.
    open_item: Option<ItemNumber>,
    marks: HashMap<String, (Digest, MarkUse)>,
}

/// Why a log was rebased when reasoning was left behind.
pub(crate) const DROP_REASONING: &str = "drop_reasoning";

/// Whether an item is reasoning.
pub(crate) fn is_reasoning(item: &Item) -> bool {
    matches!(item.content, ItemContent::Reasoning { .. })
}

/// How many items there are up to the last user message: what is before it has been answered.
pub(crate) fn last_user_message<'a>(mut items: impl DoubleEndedIterator<Item = &'a Item> + ExactSizeIterator) -> usize {
    let is_user = |item: &Item| matches!(item.content, ItemContent::Message { role: Role::User, .. });
    items.rposition(is_user).map_or(0, |at| at + 1)
}

impl SessionFold {
    /// The fold of a first entry, a `SessionCreated`.
    ///
    /// # Errors
    /// When it is another.
    pub fn begin(entry: &NewEntry, languages: Languages) -> Result<Self, FoldError> {
        let Body::SessionCreated { config, revision, mutable, request, pinned_date } = &entry.body else {
            return Err(FoldError { index: 0, problem: "a session begins with session_created".to_owned() });
        };
        let mut marks = HashMap::new();
        if let Some(RequestMark { id, digest }) = request {
            marks.insert(id.clone(), (*digest, MarkUse::Create));
        }
        Ok(Self {
            language: languages(&config.model, revision),
            languages,
            tenant: entry.tenant.clone(),
            session: entry.session.clone(),
            config: (**config).clone(),
            revision: (**revision).clone(),
            pinned_date: pinned_date.clone(),
            mutable: mutable.clone(),
            created_us: entry.time_us,
            updated_us: entry.time_us,
            active_us: entry.time_us,
            deleted: false,
            entries: 1,
            changes: 1,
            log: Vec::new(),
            end: LogEnd::Start,
            computed: 0,
            rebases: 0,
            items: Vec::new(),
            places: Vec::new(),
            calls: HashMap::new(),
            turns: Vec::new(),
            progress: VecDeque::new(),
            last: None,
            parked: None,
            sequence: 0,
            open_item: None,
            marks,
        })
    }

    /// Takes the next entry; its events are pushed in order.
    ///
    /// # Errors
    /// When it cannot follow those before it.
    pub fn apply(&mut self, entry: &NewEntry, events: &mut Vec<Event>) -> Result<(), FoldError> {
        let index = self.entries;
        self.entries += 1;
        if !matches!(entry.body, Body::Sampled { .. }) {
            self.changes += 1;
            self.updated_us = entry.time_us;
        }
        if !matches!(entry.body, Body::SessionUpdated { .. }) {
            self.active_us = entry.time_us;
        }
        self.apply_body(entry.time_us, &entry.body, events).map_err(|problem| FoldError { index, problem })
    }

    fn apply_body(&mut self, now: TimeUs, body: &Body, events: &mut Vec<Event>) -> Result<(), String> {
        match body {
            Body::SessionCreated { .. } => return Err("a second session_created".to_owned()),
            Body::SessionUpdated { config, mutable, revision } => {
                self.mutable = mutable.clone();
                if let Some(config) = config {
                    self.config = (**config).clone();
                }
                if let Some(revision) = revision {
                    self.revision = (**revision).clone();
                    self.computed = 0;
                }
                self.language = (self.languages)(&self.config.model, &self.revision);
            }
            Body::SessionDeleted {} => self.deleted = true,
            Body::ItemsAppended { turn, items, runs, request } => {
                self.take_items(now, *turn, items, runs, events)?;
                if let (Some(RequestMark { id, digest }), Some(first), Some(last)) =
                    (request, items.first(), items.last())
                {
                    self.marks.insert(id.clone(), (*digest, MarkUse::Items(first.number, last.number)));
                }
            }
            Body::Rebase { keep_until, keep_items, replacement, cause } => {
                self.rebase((*keep_until, *keep_items), replacement, cause)?;
            }
            Body::NumericsChanged { to, .. } => {
                self.revision.numerics_class = to.clone();
                self.computed = 0;
            }
            Body::TurnAccepted { turn, request } => self.turn_accepted(now, *turn, request)?,
            Body::TurnStarted { turn } => self.turn_started(now, *turn, events)?,
            Body::Sampled { turn, generation, run } => self.sampled(now, *turn, *generation, run, events)?,
            Body::GenerationEnded { turn, generation, stop_reason, usage } => {
                self.generation_ended(now, *turn, *generation, *stop_reason, usage, events)?;
            }
            Body::ToolResults { turn, results, request } => self.tool_results(*turn, results, request.as_ref())?,
            Body::TurnEnded { turn, state, stop_reason, failure } => {
                self.turn_ended(now, *turn, *state, *stop_reason, failure.clone(), events)?;
            }
        }
        Ok(())
    }

    fn take_items(
        &mut self,
        now: TimeUs,
        turn: Option<TurnNumber>,
        items: &[NumberedItem],
        runs: &[TokenRun],
        events: &mut Vec<Event>,
    ) -> Result<(), String> {
        if !runs.is_empty() {
            self.places.push(LogPlace { tokens: self.tokens(), items: self.items.len() as u32, end: self.end });
        }
        for run in runs {
            self.extend_log(run);
        }
        if !runs.is_empty() {
            self.end = if turn.is_some() { LogEnd::Prompted } else { LogEnd::Closed };
        }
        if !runs.is_empty() || !items.is_empty() {
            self.parked = None;
        }
        for item in items {
            if item.number.0 as usize != self.items.len() + 1 {
                return Err(format!("item {} after {} items", item.number.0, self.items.len()));
            }
            self.note_call(&item.item);
            self.items.push(item.clone());
            let kind = EventKind::ItemDone { number: item.number, item: item.item.clone(), tokens: item.tokens };
            self.emit(now, turn.unwrap_or(TurnNumber(0)), kind, events);
        }
        self.turn_continues(turn)
    }

    fn rebase(
        &mut self,
        (keep_until, keep_items): (u32, u32),
        replacement: &[TokenRun],
        cause: &str,
    ) -> Result<(), String> {
        if keep_until > self.tokens() || keep_items as usize > self.items.len() {
            return Err(format!("a rebase to token {keep_until}, item {keep_items}, beyond what is there"));
        }
        let here = self.places.iter().rev().chain(self.last.as_ref().map(|(start, _)| start));
        let here = here.copied().find(|place| place.tokens == keep_until).map(|place| place.end);
        self.end = match here {
            _ if !replacement.is_empty() => LogEnd::Closed,
            _ if keep_until == 0 => LogEnd::Start,
            here => here.unwrap_or(LogEnd::Closed),
        };
        self.log.truncate(keep_until as usize);
        self.items.truncate(keep_items as usize);
        self.places.retain(|place| place.tokens < keep_until);
        if !replacement.is_empty() {
            let items = self.items.iter().take_while(|item| item.tokens.end <= keep_until).count() as u32;
            let end = here.unwrap_or(if keep_until == 0 { LogEnd::Start } else { LogEnd::Closed });
            self.places.push(LogPlace { tokens: keep_until, items, end });
        }
        for run in replacement {
            self.extend_log(run);
        }
        let replaced = TokenRange { start: keep_until, end: self.tokens() };
        let drops = self.config.reasoning_retention == ReasoningRetention::DropAtNextUserMessage;
        let spoken_to = if cause == DROP_REASONING {
            self.items.len()
        } else {
            last_user_message(self.items.iter().map(|item| &item.item))
        };
        for (i, item) in self.items.iter_mut().enumerate().filter(|(_, item)| item.tokens.end > keep_until) {
            let left_out = drops && i < spoken_to && is_reasoning(&item.item);
            item.tokens = if left_out { TokenRange { start: keep_until, end: keep_until } } else { replaced };
        }
        self.calls.clear();
        let items = std::mem::take(&mut self.items);
        items.iter().for_each(|item| self.note_call(&item.item));
        self.items = items;
        self.computed = self.computed.min(keep_until);
        self.rebases += 1;
        self.parked = None;
        Ok(())
    }

    fn extend_log(&mut self, run: &TokenRun) {
        self.log.extend(run.ids.iter().map(|&id| LogToken { id, precision: run.precision }));
    }

    fn note_call(&mut self, item: &Item) {
        match &item.content {
            ItemContent::ToolCall { call_id, .. } => {
                self.calls.entry(call_id.clone()).or_insert(false);
            }
            ItemContent::ToolResult { call_id, .. } => {
                self.calls.insert(call_id.clone(), true);
            }
            ItemContent::Message { .. } | ItemContent::Reasoning { .. } => {}
        }
    }

    fn emit(&mut self, time_us: TimeUs, turn: TurnNumber, kind: EventKind, events: &mut Vec<Event>) {
        self.sequence += 1;
        let sequence = self.sequence;
        if let Some(record) = self.turn_mut(turn) {
            record.last_sequence = sequence;
            if record.first_sequence == 0 {
                record.first_sequence = sequence;
            }
        }
        events.push(Event { sequence, turn, time_us, kind });
    }

    fn turn_mut(&mut self, turn: TurnNumber) -> Option<&mut Turn> {
        (turn.0 as usize).checked_sub(1).and_then(|at| self.turns.get_mut(at))
    }
}

/// What the core and replies read.
impl SessionFold {
    /// Whose session.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Which session.
    pub fn session(&self) -> &SessionId {
        &self.session
    }

    /// What it is fixed to.
    pub fn config(&self) -> &SessionConfig {
        &self.config
    }

    /// The revision it is pinned to.
    pub fn revision(&self) -> &ModelRevision {
        &self.revision
    }

    /// What may change at any time.
    pub fn mutable(&self) -> &SessionMutable {
        &self.mutable
    }

    /// The date that templates see.
    pub fn pinned_date(&self) -> &str {
        &self.pinned_date
    }

    /// The language of its revision, if it is served.
    pub fn language(&self) -> Option<&Arc<dyn Language>> {
        self.language.as_ref()
    }

    /// Whether it was deleted.
    pub fn is_deleted(&self) -> bool {
        self.deleted
    }

    /// Entries so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The token log.
    pub fn log(&self) -> &[LogToken] {
        &self.log
    }

    /// Tokens in the log.
    pub fn tokens(&self) -> u32 {
        self.log.len() as u32
    }

    /// How the log ends.
    pub fn end(&self) -> LogEnd {
        self.end
    }

    /// Positions below had their KV computed in the current numerics class.
    pub fn computed(&self) -> u32 {
        self.computed
    }

    /// Counts rebases: between two of them the log only grows.
    pub fn rebases(&self) -> u32 {
        self.rebases
    }

    /// Items in order; number n is at n − 1.
    pub fn items(&self) -> &[NumberedItem] {
        &self.items
    }

    /// Where the log begins to hold reasoning of one of these first items, and that item's number less one: the latest place
    /// before it that a rebase can go back to.
    pub(crate) fn before_reasoning(&self, items: u32) -> Option<LogPlace> {
        let holds = |item: &NumberedItem| is_reasoning(&item.item) && !item.tokens.is_empty();
        let first = self.items.iter().take(items as usize).position(holds)?;
        let before =
            |place: &&LogPlace| place.items as usize <= first && place.tokens <= self.items[first].tokens.start;
        self.places.iter().rev().find(before).copied()
    }

    /// Whether a tool call of this id was made (`Some`), and answered.
    pub fn call(&self, call_id: &str) -> Option<bool> {
        self.calls.get(call_id).copied()
    }

    /// Turns in order; number n is at n − 1.
    pub fn turns(&self) -> &[Turn] {
        &self.turns
    }

    /// One turn.
    pub fn turn(&self, turn: TurnNumber) -> Option<&Turn> {
        (turn.0 as usize).checked_sub(1).and_then(|at| self.turns.get(at))
    }

    /// Turns that have not ended, in order.
    pub(crate) fn open_turns(&self) -> impl Iterator<Item = &Turn> {
        self.progress.iter().filter_map(|progress| self.turn(progress.number))
    }

    /// The turn that runs or waits for tool results.
    pub(crate) fn current(&self) -> Option<&Progress> {
        self.progress.front().filter(|progress| progress.start.is_some())
    }

    /// Turns that wait for an earlier one, in order.
    pub(crate) fn queued(&self) -> impl Iterator<Item = &Progress> {
        self.progress.iter().filter(|progress| progress.start.is_none())
    }

    /// Turns that have not ended.
    pub fn in_progress(&self) -> usize {
        self.progress.len()
    }

    /// Where the last turn that ended began, and whether it ended early.
    pub(crate) fn last_end(&self) -> Option<(LogPlace, bool)> {
        self.last
    }

    /// Number of the latest event.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// What a request id was used for, and the digest of that request.
    pub fn mark(&self, request_id: &str) -> Option<(Digest, MarkUse)> {
        self.marks.get(request_id).copied()
    }

    /// Changes with every change of the session.
    pub fn etag(&self) -> String {
        format!("{:x}", self.changes)
    }

    /// Created, last changed.
    pub fn times(&self) -> (TimeUs, TimeUs) {
        (self.created_us, self.updated_us)
    }

    /// What it is doing.
    pub fn state(&self) -> SessionState {
        if self.deleted {
            return SessionState::Deleting;
        }
        match self.progress.front() {
            None => SessionState::Idle,
            Some(first) => match self.turn(first.number).map(|turn| turn.state) {
                Some(TurnState::RequiresAction) => SessionState::RequiresAction,
                _ => SessionState::Running,
            },
        }
    }

    /// When it is due to be looked after, as things stand: the soonest of its expiry and the deadlines of its turns.
    pub fn due_us(&self) -> Option<TimeUs> {
        self.open_turns().filter_map(|turn| turn.deadline_us).chain(self.expires_us()).min()
    }

    /// When it is deleted by itself, as things stand; the idle timeout does not run while a turn is in progress.
    pub fn expires_us(&self) -> Option<TimeUs> {
        let idle = self.mutable.idle_timeout_s.filter(|_| self.progress.is_empty());
        let idle = idle.map(|seconds| later(self.active_us, seconds, 1_000_000));
        match (self.mutable.expire_time_us, idle) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Its row for listings.
    pub fn head(&self) -> SessionHead {
        SessionHead {
            tenant: self.tenant.clone(),
            session: self.session.clone(),
            state: self.state(),
            model: self.config.model.clone(),
            created_us: self.created_us,
            updated_us: self.updated_us,
            expires_us: self.due_us(),
            labels: self.mutable.labels.clone(),
            turns: self.turns.len() as u32,
            tokens: self.tokens(),
        }
    }
}

impl SessionFold {
    /// The session as clients see it; `context_limit` is the limit in force for its model, 0 when that is not served.
    pub fn show(&self, context_limit: u32) -> holdfast_worker_api::Session {
        holdfast_worker_api::Session {
            id: self.session.clone(),
            state: self.state(),
            config: self.config.clone(),
            revision: self.revision.clone(),
            display_name: self.mutable.display_name.clone(),
            labels: self.mutable.labels.clone(),
            etag: self.etag(),
            created_us: self.created_us,
            updated_us: self.updated_us,
            expire_time_us: self.mutable.expire_time_us,
            idle_timeout_s: self.mutable.idle_timeout_s,
            purge_time_us: None,
            turns: self.turns.len() as u32,
            items: self.items.len() as u32,
            context_tokens: self.tokens(),
            context_limit,
            last_sequence: self.sequence,
        }
    }
}
