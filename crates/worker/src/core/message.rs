//! What goes into the core and what comes out: closed lists.
//!
//! Deliberately not here: what the core does with them.

use holdfast_engine::Command;
use holdfast_journal::{Batch, JournalError, NewEntry, SessionHead};
use holdfast_types::{Event, Failure, NumberedItem, SessionId, TenantId, TimeUs, Turn, TurnNumber};
use holdfast_worker_api::{
    AppendItems, Caller, CancelTurn, CountTokens, CreateSession, Generate, ListItems, ListTurns, Page, Session,
    StartTurn, SubmitToolResults, TokenCount, UpdateSession,
};

use crate::guiding::Compilation;

/// Names a request until its reply; the shell's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Names a batch until its commit, or a request while it waits for what it needs; the core's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// Someone asks.
    Request {
        /// Comes back in [`Effect::Reply`].
        id: RequestId,
        /// Who.
        caller: Caller,
        /// What.
        request: Box<Request>,
        /// Fresh random bits: seeds and ids come from them.
        entropy: u128,
    },
    /// A batch is committed, or will never be. In the order of the batches of a session.
    Committed {
        /// Which.
        ticket: Ticket,
        /// How it went.
        result: Result<(), JournalError>,
    },
    /// The answer to [`Effect::Compile`].
    Compiled {
        /// Which.
        ticket: Ticket,
    },
    /// A device's engine reports.
    Engine {
        /// What, in order: everything of one poll of the engine.
        effects: Vec<holdfast_engine::Effect>,
    },
    /// The answer to [`Effect::Load`].
    Loaded {
        /// Whose.
        tenant: TenantId,
        /// Which.
        session: SessionId,
        /// All of its entries; none when there is no such session.
        entries: Result<Vec<NewEntry>, JournalError>,
        /// Sessions of the tenant, if asked for.
        tenant_sessions: Option<u64>,
    },
    /// The answer to [`Effect::Attention`].
    Attention {
        /// Sessions that are not at rest, or are due: expired, or past a turn's deadline.
        heads: Vec<SessionHead>,
    },
    /// The answer to [`Effect::Purge`].
    Purged {
        /// Whose.
        tenant: TenantId,
        /// Which.
        session: SessionId,
        /// How it went.
        result: Result<(), JournalError>,
    },
    /// The stream that started or continued a turn was dropped before its end.
    Disconnected {
        /// Whose.
        tenant: TenantId,
        /// Where.
        session: SessionId,
        /// Which turn.
        turn: TurnNumber,
    },
    /// The stream of a completion was dropped, at its end or before.
    CompletionDropped {
        /// Which.
        completion: u64,
    },
    /// Bring everything to a step boundary and start nothing new.
    Drain,
}

/// What is to be done, in order.
#[derive(Debug)]
pub enum Effect {
    /// The answer to a request.
    Reply {
        /// Which.
        id: RequestId,
        /// The answer.
        result: Result<Reply, Failure>,
    },
    /// Hand a batch to the journal; answered by [`Input::Committed`].
    Append {
        /// Its name.
        ticket: Ticket,
        /// The batch.
        batch: Batch,
    },
    /// Compile what a request or a generation needs, beside everything else; answered by [`Input::Compiled`].
    Compile {
        /// The request's name meanwhile.
        ticket: Ticket,
        /// The work.
        work: Compilation,
    },
    /// Hand a command to a device's engine.
    Engine {
        /// Place of the device.
        device: usize,
        /// The command.
        command: Command,
    },
    /// Read a session; answered by [`Input::Loaded`].
    Load {
        /// Whose.
        tenant: TenantId,
        /// Which.
        session: SessionId,
        /// Count the tenant's sessions as well.
        count: bool,
    },
    /// Look for sessions that are not at rest, or whose row says that they are due before this; answered by
    /// [`Input::Attention`].
    Attention {
        /// Time of expiry.
        before_us: TimeUs,
    },
    /// Remove the bytes of a deleted session; answered by [`Input::Purged`].
    Purge {
        /// Whose.
        tenant: TenantId,
        /// Which.
        session: SessionId,
    },
    /// Readers of a channel have something new.
    Announce {
        /// Whose readers.
        channel: Channel,
    },
    /// Draining is over: nothing runs, everything is committed.
    Drained,
}

/// What events are read from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Channel {
    /// A session.
    Session(TenantId, SessionId),
    /// A stateless completion.
    Completion(u64),
}

/// What can be asked.
#[derive(Debug)]
pub enum Request {
    /// See the worker's trait.
    CreateSession(CreateSession),
    /// See the worker's trait.
    GetSession(SessionId),
    /// See the worker's trait.
    UpdateSession(UpdateSession),
    /// See the worker's trait.
    DeleteSession {
        /// Which.
        session: SessionId,
        /// Must match if set.
        etag: Option<String>,
    },
    /// See the worker's trait.
    StartTurn(StartTurn),
    /// See the worker's trait.
    SubmitToolResults(SubmitToolResults),
    /// See the worker's trait.
    CancelTurn(CancelTurn),
    /// One turn, and where its events begin.
    GetTurn {
        /// Where.
        session: SessionId,
        /// Which.
        turn: TurnNumber,
        /// Follow it from this event on; checked.
        from_sequence: u64,
    },
    /// See the worker's trait.
    ListTurns(ListTurns),
    /// See the worker's trait.
    ListItems(ListItems),
    /// See the worker's trait.
    AppendItems(AppendItems),
    /// See the worker's trait.
    CountTokens(CountTokens),
    /// See the worker's trait.
    Generate(Generate),
    /// Where to watch a session from: answered by [`Reply::Position`].
    Watch {
        /// Which.
        session: SessionId,
        /// From this event on; 0: from now.
        from_sequence: u64,
    },
    /// A batch of committed events.
    ReadEvents(ReadEvents),
    /// A batch of a completion's events.
    ReadCompletion {
        /// Which.
        completion: u64,
        /// From this one on, from 1.
        from: u64,
        /// At most this many.
        limit: usize,
    },
}

/// Asks for events of a session.
#[derive(Debug, Clone)]
pub struct ReadEvents {
    /// Which session.
    pub session: SessionId,
    /// Only this turn's.
    pub turn: Option<TurnNumber>,
    /// From this number on.
    pub from: u64,
    /// At most this many.
    pub limit: usize,
    /// Ephemeral events up to this version were seen.
    pub seen: u64,
}

impl Request {
    /// The session that it is about.
    pub fn session(&self) -> Option<&SessionId> {
        match self {
            Self::CreateSession(create) => create.session.as_ref(),
            Self::CountTokens(count) => count.session.as_ref(),
            Self::Generate(_) | Self::ReadCompletion { .. } => None,
            Self::GetSession(session) => Some(session),
            Self::UpdateSession(UpdateSession { session, .. })
            | Self::DeleteSession { session, .. }
            | Self::StartTurn(StartTurn { session, .. })
            | Self::SubmitToolResults(SubmitToolResults { session, .. })
            | Self::CancelTurn(CancelTurn { session, .. })
            | Self::GetTurn { session, .. }
            | Self::ListTurns(ListTurns { session, .. })
            | Self::ListItems(ListItems { session, .. })
            | Self::AppendItems(AppendItems { session, .. })
            | Self::Watch { session, .. }
            | Self::ReadEvents(ReadEvents { session, .. }) => Some(session),
        }
    }
}

/// What is answered.
#[derive(Debug, Clone)]
pub enum Reply {
    /// A session.
    Session(Box<Session>),
    /// A turn, and the number of the event to follow it from.
    Turn(Box<Turn>, u64),
    /// Turns.
    Turns(Page<Turn>),
    /// Items.
    Items(Page<NumberedItem>),
    /// A count.
    Count(TokenCount),
    /// The number of an event.
    Position(u64),
    /// Events.
    Events(EventBatch),
    /// A completion has begun.
    Completion(u64),
}

/// A batch of events.
#[derive(Debug, Clone, Default)]
pub struct EventBatch {
    /// In order.
    pub events: Vec<Event>,
    /// Where to read on.
    pub next: u64,
    /// The numbers asked for are no longer in memory: fold the journal up to before `next`, then read on from `next`.
    pub older: bool,
    /// Ephemeral events that were not seen.
    pub ephemeral: Vec<Event>,
    /// The version of the latest.
    pub seen: u64,
    /// Number of the `RequiresAction` that still holds.
    pub waiting: Option<u64>,
    /// Nothing of the turn follows these events; of a watched session: it is deleted.
    pub last: bool,
    /// The session was deleted.
    pub deleted: bool,
}

/// Figures for gauges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Loaded and at rest.
    pub sessions_idle: u32,
    /// With a turn that waits or runs.
    pub sessions_running: u32,
    /// With a turn that waits for tool results.
    pub sessions_requires_action: u32,
    /// Whose bytes are being removed.
    pub sessions_deleting: u32,
    /// Turns that wait or run, over all sessions.
    pub turns_in_progress: u32,
    /// Tokens sampled since the start.
    pub tokens_sampled: u64,
    /// Whether nothing new starts.
    pub draining: bool,
}
