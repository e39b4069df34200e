//! One loaded session: its fold, what is on its way to the journal, and what waits for that.
//!
//! In: bodies to write. Out: batches, and replies and events once their batch is committed. Deliberately not here: what a
//! turn does ([`super::turn`], [`super::run`]).

use std::collections::{HashMap, VecDeque};

use holdfast_engine::Command;
use holdfast_journal::{Batch, Body, Durability, NewEntry};
use holdfast_types::{
    Event, EventKind, Failure, FailureDetail, Reason, SequenceId, SessionId, SessionState, StopReason, TenantId,
    TimeUs, TurnNumber, TurnState,
};
use holdfast_worker_api::{Caller, Session as Shown};

use super::run::ActiveRun;
use super::{Channel, Effect, Reply, RequestId, Shared, Slot, Ticket};
use crate::fold::SessionFold;

/// A batch on its way.
struct Pending {
    ticket: Ticket,
    /// Number of the last event once it is committed.
    sequence: u64,
    replies: Vec<(RequestId, Result<Reply, Failure>)>,
}

/// A session in memory.
///
/// Its fold is ahead of the journal by `unsent` (written, not handed over: the last tokens of a generation wait for its end)
/// and `pending` (handed over, not committed). Replies made meanwhile wait for the latest of them.
pub(super) struct Session {
    slot: Slot,
    /// Not journaled: a stateless completion of this many input items, whose writes count as committed at once.
    completion: Option<u32>,
    pub(super) fold: SessionFold,
    /// The engine's name for its log; a new one after each rebase.
    pub(super) sequence: SequenceId,
    /// Rebases that the sequence has gone through.
    rebases: u32,
    /// Place of its device; `None` when its model is not served.
    pub(super) device: Option<usize>,
    pub(super) run: Option<ActiveRun>,
    /// The generation that waits for its grammar to be compiled.
    pub(super) compiling: Option<(TurnNumber, u32)>,
    /// Positions below had their KV computed by a prefill that no entry tells of.
    pub(super) prefilled: u32,
    /// Who asked for the turns in progress.
    pub(super) authors: HashMap<TurnNumber, Caller>,
    /// Requests to be answered when a turn has ended.
    pub(super) awaiting_end: Vec<(RequestId, TurnNumber)>,
    unsent: Vec<NewEntry>,
    unsent_replies: Vec<(RequestId, Result<Reply, Failure>)>,
    pending: VecDeque<Pending>,
    /// Number of the last event that is committed.
    committed: u64,
    recent: VecDeque<Event>,
    /// Per turn, the latest ephemeral event and its version.
    ephemeral: HashMap<TurnNumber, (u64, Event)>,
    version: u64,
    last_used: TimeUs,
    purge_due: bool,
    broken: bool,
}

impl Session {
    /// A session of one entry that is not written yet.
    pub(super) fn new(shared: &mut Shared, fold: SessionFold, completion: Option<u32>) -> Self {
        let device = shared.model(&fold.config().model).ok();
        Self {
            slot: Slot(shared.next()),
            completion,
            sequence: shared.next_sequence(),
            rebases: fold.rebases(),
            device,
            run: None,
            compiling: None,
            prefilled: 0,
            authors: HashMap::new(),
            awaiting_end: Vec::new(),
            unsent: Vec::new(),
            unsent_replies: Vec::new(),
            pending: VecDeque::new(),
            committed: fold.sequence(),
            recent: VecDeque::new(),
            ephemeral: HashMap::new(),
            version: 0,
            last_used: shared.now,
            purge_due: false,
            broken: false,
            fold,
        }
    }

    /// A session from its entries.
    pub(super) fn load(shared: &mut Shared, entries: &[NewEntry]) -> Result<Self, Failure> {
        let corrupt = |error: &dyn std::fmt::Display| {
            let name = entries.first().map(|entry| entry.session.to_string()).unwrap_or_default();
            Failure::new(Reason::JournalCorrupt, format!("the journal of session {name} makes no sense: {error}"))
        };
        let Some((first, rest)) = entries.split_first() else { return Err(corrupt(&"it is empty")) };
        let mut fold = SessionFold::begin(first, shared.languages.clone()).map_err(|error| corrupt(&error))?;
        let keep = shared.settings.recent_events;
        let (mut events, mut recent) = (Vec::new(), VecDeque::new());
        for entry in rest {
            fold.apply(entry, &mut events).map_err(|error| corrupt(&error))?;
            recent.extend(events.drain(..));
            let surplus = recent.len().saturating_sub(keep);
            recent.drain(..surplus);
        }
        let mut session = Self::new(shared, fold, None);
        session.recent = recent;
        for turn in session.fold.open_turns() {
            shared.deadlines.extend(turn.deadline_us.map(|at| (at, session.slot)));
        }
        Ok(session)
    }

    /// Applies bodies to the fold and keeps them for the next batch.
    pub(super) fn write(&mut self, shared: &Shared, author: &Caller, bodies: Vec<Body>) {
        let mut events = Vec::new();
        for body in bodies {
            if self.broken {
                return;
            }
            let entry = NewEntry {
                tenant: self.fold.tenant().clone(),
                session: self.fold.session().clone(),
                time_us: shared.now,
                principal: author.principal.clone(),
                traceparent: author.traceparent.clone(),
                body,
            };
            if let Err(error) = self.fold.apply(&entry, &mut events) {
                tracing::error!(session = %self.fold.session(), %error, "an entry of ours cannot be folded");
                self.broken = true;
                return;
            }
            self.unsent.push(entry);
        }
        self.recent.extend(events);
        if self.completion.is_none() {
            let surplus = self.recent.len().saturating_sub(shared.settings.recent_events);
            self.recent.drain(..surplus);
        }
    }

    /// The first entry of a new session, which its fold has begun with.
    pub(super) fn write_first(&mut self, entry: NewEntry) {
        self.unsent.push(entry);
    }

    /// Hands over what was written, as one batch; with the session's row unless only tokens were added.
    pub(super) fn flush(&mut self, shared: &mut Shared, durability: Durability) {
        if self.unsent.is_empty() || self.broken {
            return;
        }
        let entries = std::mem::take(&mut self.unsent);
        let replies = std::mem::take(&mut self.unsent_replies);
        if self.completion.is_some() {
            self.committed = self.fold.sequence();
            replies.into_iter().for_each(|(id, result)| shared.reply(id, result));
            shared.effects.push(Effect::Announce { channel: Channel::Completion(self.slot.0) });
            return;
        }
        let rows = entries.iter().any(|entry| !matches!(entry.body, Body::Sampled { .. }));
        let ticket = Ticket(shared.next());
        shared.tickets.insert(ticket, self.slot);
        self.pending.push_back(Pending { ticket, sequence: self.fold.sequence(), replies });
        let batch = Batch { entries, head: rows.then(|| self.fold.head()), durability };
        shared.effects.push(Effect::Append { ticket, batch });
    }

    /// Answers, once everything that the answer may tell of is committed.
    pub(super) fn reply(&mut self, shared: &mut Shared, id: RequestId, result: Result<Reply, Failure>) {
        if !self.unsent.is_empty() {
            self.unsent_replies.push((id, result));
        } else if let Some(last) = self.pending.back_mut() {
            last.replies.push((id, result));
        } else {
            shared.reply(id, result);
        }
    }

    pub(super) fn committed(&mut self, shared: &mut Shared, ticket: Ticket) {
        while let Some(first) = self.pending.front()
            && first.ticket <= ticket
        {
            self.committed = first.sequence;
            let replies = self.pending.pop_front().map(|pending| pending.replies).unwrap_or_default();
            replies.into_iter().for_each(|(id, result)| shared.reply(id, result));
        }
        self.announce(shared);
        if self.fold.is_deleted() && self.pending.is_empty() {
            self.purge_due = true;
        }
    }

    /// Whether the deletion has just been committed.
    pub(super) fn is_purge_due(&self) -> bool {
        self.purge_due
    }

    pub(super) fn purge(&mut self, shared: &mut Shared) {
        self.purge_due = false;
        let (tenant, session) = (self.fold.tenant().clone(), self.fold.session().clone());
        shared.effects.push(Effect::Purge { tenant, session });
    }

    /// Where its events are read.
    pub(super) fn channel(&self) -> Channel {
        if self.completion.is_some() {
            Channel::Completion(self.slot.0)
        } else {
            Channel::Session(self.fold.tenant().clone(), self.fold.session().clone())
        }
    }

    fn announce(&self, shared: &mut Shared) {
        shared.effects.push(Effect::Announce { channel: self.channel() });
    }

    /// An event without a number: shown to whoever reads now, never again.
    pub(super) fn show_ephemeral(&mut self, shared: &mut Shared, turn: TurnNumber, kind: EventKind) {
        self.version += 1;
        let event = Event { sequence: 0, turn, time_us: shared.now, kind };
        self.ephemeral.insert(turn, (self.version, event));
        self.announce(shared);
    }

    pub(super) fn drop_ephemeral(&mut self, turn: TurnNumber) {
        self.ephemeral.remove(&turn);
    }

    /// The author of a turn's entries.
    pub(super) fn author(&self, turn: TurnNumber) -> Caller {
        let fallback = || Caller { tenant: self.fold.tenant().clone(), ..Caller::default() };
        self.authors.get(&turn).cloned().unwrap_or_else(fallback)
    }

    /// Ends everything without a word to the journal: what was not committed never happened.
    pub(super) fn abandon(&mut self, shared: &mut Shared, failure: &Failure) {
        if let Some(run) = self.run.take() {
            shared.runs.remove(&run.id);
            if let Some(device) = self.device {
                shared.effects.push(Effect::Engine { device, command: Command::Cancel { run: run.id } });
            }
        }
        self.forget_sequence(shared);
        let replies = self.pending.drain(..).flat_map(|pending| {
            shared.tickets.remove(&pending.ticket);
            pending.replies
        });
        let replies: Vec<_> = replies.chain(self.unsent_replies.drain(..)).map(|(id, _)| id).collect();
        for id in replies.into_iter().chain(self.awaiting_end.drain(..).map(|(id, _)| id)) {
            shared.reply(id, Err(failure.clone()));
        }
        for turn in self.fold.open_turns() {
            if let Some(at) = turn.deadline_us {
                shared.deadlines.remove(&(at, self.slot));
            }
        }
        if self.completion.is_none() {
            self.announce(shared);
        }
    }

    /// Has the engine forget the sequence's partial block.
    pub(super) fn forget_sequence(&mut self, shared: &mut Shared) {
        if let Some(device) = self.device {
            shared.effects.push(Effect::Engine { device, command: Command::Forget { sequence: self.sequence } });
        }
    }

    /// Hides the session at once; what runs ends with SESSION_DELETED.
    pub(super) fn delete(&mut self, shared: &mut Shared, caller: &Caller) {
        let failure = super::deleted(self.fold.session());
        let open: Vec<_> = self.fold.open_turns().map(|turn| turn.number).collect();
        for turn in open {
            self.write_turn_end(shared, turn, TurnState::Failed, None, Some(failure.clone()));
        }
        if let Some(run) = self.run.take() {
            shared.runs.remove(&run.id);
            if let Some(device) = self.device {
                shared.effects.push(Effect::Engine { device, command: Command::Cancel { run: run.id } });
            }
        }
        self.forget_sequence(shared);
        self.write(shared, caller, vec![Body::SessionDeleted {}]);
        self.flush(shared, Durability::Power);
    }

    /// Writes a turn's end and settles what waits for it. Does not hand over.
    pub(super) fn write_turn_end(
        &mut self,
        shared: &mut Shared,
        turn: TurnNumber,
        state: TurnState,
        stop_reason: Option<StopReason>,
        failure: Option<Failure>,
    ) {
        let author = self.author(turn);
        self.write(shared, &author, vec![Body::TurnEnded { turn, state, stop_reason, failure }]);
        self.authors.remove(&turn);
        self.ephemeral.remove(&turn);
        let Some(ended) = self.fold.turn(turn).cloned() else { return };
        if let Some(at) = ended.deadline_us
            && !self.fold.open_turns().any(|other| other.deadline_us == Some(at))
        {
            shared.deadlines.remove(&(at, self.slot));
        }
        let (answered, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.awaiting_end).into_iter().partition(|(_, of)| *of == turn);
        self.awaiting_end = waiting;
        for (id, _) in answered {
            self.unsent_replies.push((id, Ok(Reply::Turn(Box::new(ended.clone()), ended.first_sequence))));
        }
    }
}

/// What is read of it.
impl Session {
    pub(super) fn slot(&self) -> Slot {
        self.slot
    }

    pub(super) fn fold(&self) -> &SessionFold {
        &self.fold
    }

    pub(super) fn key(&self) -> (TenantId, SessionId) {
        (self.fold.tenant().clone(), self.fold.session().clone())
    }

    pub(super) fn is_completion(&self) -> bool {
        self.completion.is_some()
    }

    /// Input items of a completion.
    pub(super) fn completion(&self) -> Option<u32> {
        self.completion
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    pub(super) fn last_used(&self) -> TimeUs {
        self.last_used
    }

    pub(super) fn touch(&mut self, now: TimeUs) {
        self.last_used = now;
    }

    /// Nothing computes and nothing is on its way.
    pub(super) fn is_still(&self) -> bool {
        self.run.is_none() && self.pending.is_empty() && self.unsent.is_empty()
    }

    /// At rest: nothing to compute, so that nothing is lost but warmth. A deadline that runs meanwhile is in the session's row.
    pub(super) fn may_unload(&self) -> bool {
        self.turns_underway() == 0 && self.is_still() && self.completion.is_none() && !self.fold.is_deleted()
    }

    /// Turns that wait or run; one that waits for its client does not count.
    pub(super) fn turns_underway(&self) -> u32 {
        let waits_for_client = self.fold.state() == SessionState::RequiresAction;
        self.fold.in_progress() as u32 - u32::from(waits_for_client)
    }

    /// Number of the last committed event, and the events in memory.
    pub(super) fn events(&self) -> (u64, &VecDeque<Event>) {
        (self.committed, &self.recent)
    }

    pub(super) fn ephemeral(&self) -> (u64, &HashMap<TurnNumber, (u64, Event)>) {
        (self.version, &self.ephemeral)
    }

    pub(super) fn check_etag(&self, etag: Option<&str>) -> Result<(), Failure> {
        let now = self.fold.etag();
        match etag {
            Some(etag) if etag != now => {
                let message = format!("the session's etag is {now:?}, the request has {etag:?}; read it again");
                Err(Failure::new(Reason::EtagMismatch, message)
                    .with(FailureDetail::Metadata { key: "etag".to_owned(), value: now }))
            }
            _ => Ok(()),
        }
    }

    /// The session as clients see it.
    pub(super) fn show(&self, shared: &Shared) -> Shown {
        self.fold.show(self.context_limit(shared))
    }

    /// Most tokens of its log; 0 when its model is not served.
    pub(super) fn context_limit(&self, shared: &Shared) -> u32 {
        self.device.map_or(0, |device| shared.models[device].info.context_limit)
    }

    /// The sequence of the log as it is: a rebase makes it another.
    pub(super) fn renew_sequence(&mut self, shared: &mut Shared) {
        if self.rebases != self.fold.rebases() {
            self.rebases = self.fold.rebases();
            self.forget_sequence(shared);
            self.sequence = shared.next_sequence();
            self.prefilled = 0;
        }
    }
}
