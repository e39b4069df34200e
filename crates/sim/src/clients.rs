//! Scripted agents: they create a session, take turns, answer calls, cancel, retry after a crash, and follow events.
//!
//! In: answers and events. Out: requests, and a list of everything that was acknowledged. Deliberately not here: whether an
//! answer was right ([`crate::oracle`]), which agent moves next ([`crate::world`]).

use fastrand::Rng;
use holdfast_types::{Event, EventKind, Failure, Item, NumberedItem, Reason, SessionId, Turn, TurnNumber, TurnState};
use holdfast_worker::core::{Reply, Request, RequestId};
use holdfast_worker_api::{
    AppendItems, CancelTurn, CreateSession, Generate, ListItems, ListTurns, StartTurn, SubmitToolResults, UpdateSession,
};

use crate::followers::{Dropped, Excuse, Follower};
use crate::script;

/// What an agent asks for; kept, so that it can ask again.
#[derive(Debug, Clone)]
pub enum Operation {
    /// Make the session.
    Create(Box<CreateSession>),
    /// Start a turn, and follow it if `true`.
    Turn(Box<StartTurn>, bool),
    /// Answer calls.
    Results(SubmitToolResults),
    /// End a turn.
    Cancel(CancelTurn),
    /// Add items.
    Append(AppendItems),
    /// Change labels.
    Update(Box<UpdateSession>),
    /// Delete the session.
    Delete(SessionId),
    /// Ask without a session.
    Generate(Box<Generate>),
    /// Look at the session.
    Look(SessionId),
    /// Look at its turns.
    Turns(SessionId),
    /// Look at its items.
    Items(SessionId),
}

impl Operation {
    /// The request that asks for it.
    pub fn request(&self) -> Request {
        match self.clone() {
            Self::Create(create) => Request::CreateSession(*create),
            Self::Turn(turn, _) => Request::StartTurn(*turn),
            Self::Results(results) => Request::SubmitToolResults(results),
            Self::Cancel(cancel) => Request::CancelTurn(cancel),
            Self::Append(append) => Request::AppendItems(append),
            Self::Update(update) => Request::UpdateSession(*update),
            Self::Delete(session) => Request::DeleteSession { session, etag: None },
            Self::Generate(generate) => Request::Generate(*generate),
            Self::Look(session) => Request::GetSession(session),
            Self::Turns(session) => {
                Request::ListTurns(ListTurns { session, page_size: 1_000, page_token: String::new() })
            }
            Self::Items(session) => Request::ListItems(ListItems {
                session,
                page_size: 1_000,
                page_token: String::new(),
                descending: false,
            }),
        }
    }

    /// One word for the trace.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Turn(..) => "turn",
            Self::Results(_) => "results",
            Self::Cancel(_) => "cancel",
            Self::Append(_) => "append",
            Self::Update(_) => "update",
            Self::Delete(_) => "delete",
            Self::Generate(_) => "generate",
            Self::Look(_) => "look",
            Self::Turns(_) => "turns",
            Self::Items(_) => "items",
        }
    }
}

/// What a node has promised an agent.
#[derive(Debug, Clone)]
pub enum Acknowledged {
    /// The session is there.
    Session,
    /// A turn of this number was accepted for this request id.
    Turn(TurnNumber, String),
    /// These results were taken.
    Results(TurnNumber, Vec<Item>),
    /// These items were added.
    Items(Vec<NumberedItem>),
    /// The turn has ended.
    Ended(TurnNumber, TurnState),
    /// The session is gone.
    Deleted,
}

/// What is on its way for an agent.
#[derive(Debug)]
struct Asked {
    id: RequestId,
    operation: Operation,
    /// It was acknowledged before: the turn that it must give again.
    again: Option<TurnNumber>,
}

/// An agent with one session.
#[derive(Debug)]
pub struct Agent {
    /// Its session.
    pub session: SessionId,
    rng: Rng,
    operations_left: u32,
    serial: u32,
    asked: Option<Asked>,
    acknowledged: Vec<Acknowledged>,
    repeatable: Vec<(Operation, Option<TurnNumber>)>,
    is_created: bool,
    wants_deletion: bool,
    is_gone: bool,
    has_tools: bool,
    turns: Vec<Turn>,
    looked: bool,
    /// Its results do not fit the context: only the turn's end helps.
    is_stuck: bool,
    followers: Vec<Follower>,
    finished: Vec<u64>,
}

/// What an agent makes of an answer: events to check, or a complaint.
pub type Heard = Result<Vec<Event>, String>;

impl Agent {
    /// An agent that will start so many operations.
    pub fn new(session: SessionId, seed: u64, operations: u32) -> Self {
        Self {
            session,
            rng: Rng::with_seed(seed),
            operations_left: operations,
            serial: 0,
            asked: None,
            acknowledged: Vec::new(),
            repeatable: Vec::new(),
            is_created: false,
            wants_deletion: false,
            is_gone: false,
            has_tools: false,
            turns: Vec::new(),
            looked: false,
            is_stuck: false,
            followers: Vec::new(),
            finished: Vec::new(),
        }
    }

    /// Everything that it was promised so far.
    pub fn acknowledged(&self) -> &[Acknowledged] {
        &self.acknowledged
    }

    /// Whether it has asked for its session's deletion.
    pub fn wants_deletion(&self) -> bool {
        self.wants_deletion
    }

    /// Whether it waits for an answer.
    pub fn is_waiting(&self) -> bool {
        self.asked.is_some()
    }

    /// Whether it will start more operations by itself.
    pub fn has_plans(&self) -> bool {
        self.operations_left > 0
    }

    /// Its next request, if it is not waiting for an answer: something from its script, or, when `finishing`, whatever brings its
    /// session to rest. `None` when it has nothing to do.
    pub fn act(&mut self, id: RequestId, finishing: bool) -> Option<(Request, &'static str)> {
        if self.asked.is_some() {
            return None;
        }
        let (operation, again) = if finishing { (self.finish()?, None) } else { self.choose()? };
        let (request, name) = (operation.request(), operation.name());
        if let Operation::Delete(_) = operation {
            self.wants_deletion = true;
        }
        self.asked = Some(Asked { id, operation, again });
        Some((request, name))
    }

    fn request_id(&mut self, what: &str) -> Option<String> {
        self.serial += 1;
        Some(format!("{what}-{}", self.serial))
    }

    fn choose(&mut self) -> Option<(Operation, Option<TurnNumber>)> {
        if self.operations_left == 0 || self.is_gone {
            return None;
        }
        self.operations_left -= 1;
        let session = self.session.clone();
        if !self.is_created {
            let create = script::create(&mut self.rng, session);
            self.has_tools = !create.config.tools.is_empty();
            return Some((Operation::Create(Box::new(create)), None));
        }
        if self.rng.u8(..10) == 0 && !self.repeatable.is_empty() {
            let at = self.rng.usize(..self.repeatable.len());
            let (operation, number) = self.repeatable[at].clone();
            // Where a session was deleted, the same request would make another.
            if !(self.wants_deletion && matches!(operation, Operation::Create(_))) {
                return Some((operation, number));
            }
        }
        if self.rng.u8(..10) < 7
            && let Some(results) = self.answer_calls(false)
        {
            return Some((results, None));
        }
        let last = self.turns.last().map(|turn| turn.number);
        let operation = match self.rng.u8(..100) {
            0..55 => {
                let mut turn = script::wild_turn(&mut self.rng, session, self.has_tools, last);
                turn.request_id = self.request_id("turn");
                Operation::Turn(Box::new(turn), self.rng.bool())
            }
            55..65 => Operation::Cancel(CancelTurn { session, turn: last.filter(|_| self.rng.bool()) }),
            65..73 => Operation::Append(AppendItems {
                session,
                items: script::items(&mut self.rng),
                prefill: self.rng.bool(),
                request_id: self.request_id("append"),
            }),
            73..77 => {
                let (patch, config) = script::update(&mut self.rng);
                self.wants_deletion |= patch.ttl_s.is_some();
                Operation::Update(Box::new(UpdateSession { session, etag: None, patch, config }))
            }
            77..79 => Operation::Delete(session),
            79..84 => Operation::Look(session),
            84..88 => Operation::Generate(Box::new(script::generate(&mut self.rng))),
            88..95 => Operation::Turns(session),
            _ => Operation::Items(session),
        };
        Some((operation, None))
    }

    /// Looks at its turns, answers what waits, and looks again, until nothing is in progress.
    fn finish(&mut self) -> Option<Operation> {
        self.operations_left = 0;
        if !self.is_created || self.is_gone {
            return None;
        }
        if !std::mem::replace(&mut self.looked, true) {
            return Some(Operation::Turns(self.session.clone()));
        }
        let open = self.turns.iter().any(|turn| !turn.state.is_terminal());
        if !open {
            return None;
        }
        self.looked = false;
        if std::mem::take(&mut self.is_stuck) {
            let turn = self.turns.iter().find(|turn| !turn.state.is_terminal()).map(|turn| turn.number);
            return Some(Operation::Cancel(CancelTurn { session: self.session.clone(), turn }));
        }
        self.answer_calls(true).or_else(|| {
            self.looked = true;
            Some(Operation::Turns(self.session.clone()))
        })
    }

    /// Results for calls that wait: all of them, or some in any order.
    fn answer_calls(&mut self, all: bool) -> Option<Operation> {
        let turn = self.turns.iter().find(|turn| turn.state == TurnState::RequiresAction)?;
        let (number, calls) = (turn.number, turn.required_calls.clone());
        let mut open: Vec<_> = calls.into_iter().filter(|call| !call.answered).collect();
        self.rng.shuffle(&mut open);
        if !all && open.len() > 1 && self.rng.bool() {
            open.truncate(self.rng.usize(1..open.len()));
        }
        if open.is_empty() {
            return None;
        }
        let results: Vec<_> = open.iter().map(|call| script::result(&mut self.rng, &call.call_id)).collect();
        let turn = if self.rng.bool() { Some(number) } else { None };
        let turn = if all { Some(number) } else { turn };
        let (session, request_id) = (self.session.clone(), self.request_id("results"));
        Some(Operation::Results(SubmitToolResults { session, turn, results, request_id }))
    }

    /// The node died: what was on its way is asked again, under a new name and with the same request id; followers attach again
    /// from the last event that they saw. `last` is the number of the session's last event, which a loss of power may have lowered.
    pub fn reconnect(&mut self, id: RequestId, last: u64) -> Option<(Request, &'static str)> {
        self.turns.clear();
        self.looked = false;
        self.followers.iter_mut().for_each(|follower| follower.reconnect(last));
        let asked = self.asked.as_mut()?;
        asked.id = id;
        Some((asked.operation.request(), asked.operation.name()))
    }

    /// An answer for this agent, or for one of its followers. `None` when it is nobody's. `retryable`: the node may excuse itself
    /// for a while; `history`: the session's committed events.
    pub fn hear(
        &mut self,
        id: RequestId,
        result: &Result<Reply, Failure>,
        retryable: bool,
        history: &[Event],
    ) -> Option<Heard> {
        if let Some(at) = self.followers.iter().position(|follower| follower.waits_for(id)) {
            return Some(self.hear_follower(at, result, retryable, history));
        }
        let asked = self.asked.take_if(|asked| asked.id == id)?;
        Some(self.hear_answer(asked, result, retryable).map(|()| Vec::new()))
    }

    fn hear_answer(&mut self, asked: Asked, result: &Result<Reply, Failure>, retryable: bool) -> Result<(), String> {
        let Asked { operation, again, .. } = asked;
        let reply = match result {
            Ok(reply) => reply,
            Err(failure) => {
                if again.is_some() && !self.may_be_gone(failure) && !(failure.reason.is_retryable() || retryable) {
                    return Err(format!("{} was acknowledged, and asked again gives {failure}", operation.name()));
                }
                return self.tolerate(&operation, failure, retryable);
            }
        };
        match (&operation, reply) {
            (Operation::Create(create), Reply::Session(session)) => {
                if session.id != self.session {
                    return Err(format!("created {}, got {}", self.session, session.id));
                }
                self.has_tools = !create.config.tools.is_empty();
                self.is_created = true;
                self.acknowledged.push(Acknowledged::Session);
                self.repeatable.push((operation, None));
                if self.rng.bool() {
                    self.followers.push(Follower::watcher());
                }
            }
            (Operation::Turn(request, follow), Reply::Turn(turn, from)) => {
                if again.is_some_and(|number| number != turn.number) {
                    return Err(format!("the same request gave turn {again:?} and then {}", turn.number.0));
                }
                let request_id = request.request_id.clone().unwrap_or_default();
                self.acknowledged.push(Acknowledged::Turn(turn.number, request_id));
                self.note_turn(turn);
                let (number, from, follow) = (turn.number, *from, *follow);
                self.repeatable.push((operation, Some(number)));
                if follow {
                    self.followers.push(Follower::of_turn(number, from));
                }
            }
            (Operation::Results(request), Reply::Turn(turn, _)) => {
                if again.is_some_and(|number| number != turn.number) {
                    return Err(format!("the same results went to turn {again:?} and then {}", turn.number.0));
                }
                self.acknowledged.push(Acknowledged::Results(turn.number, request.results.clone()));
                self.note_turn(turn);
                let number = turn.number;
                self.repeatable.push((operation, Some(number)));
            }
            (Operation::Cancel(_), Reply::Turn(turn, _)) => {
                if !turn.state.is_terminal() {
                    return Err(format!("a cancelled turn is {:?}", turn.state));
                }
                self.acknowledged.push(Acknowledged::Ended(turn.number, turn.state));
                self.note_turn(turn);
            }
            (Operation::Append(_), Reply::Items(page)) => {
                if again.is_none() {
                    self.acknowledged.push(Acknowledged::Items(page.elements.clone()));
                }
            }
            (Operation::Delete(_), Reply::Session(session)) => {
                if session.purge_time_us.is_none() && !retryable {
                    return Err("a deletion was answered before the last byte was gone".to_owned());
                }
                self.is_gone = true;
                self.acknowledged.push(Acknowledged::Deleted);
            }
            (Operation::Generate(_), Reply::Completion(completion)) => {
                self.followers.push(Follower::of_completion(*completion));
            }
            (Operation::Turns(_), Reply::Turns(page)) => self.turns = page.elements.clone(),
            (Operation::Update(_) | Operation::Look(_), Reply::Session(_)) | (Operation::Items(_), Reply::Items(_)) => {
            }
            (operation, reply) => return Err(format!("{} was answered with {reply:?}", operation.name())),
        }
        Ok(())
    }

    fn note_turn(&mut self, turn: &Turn) {
        match self.turns.iter_mut().find(|known| known.number == turn.number) {
            Some(known) => *known = turn.clone(),
            None => self.turns.push(turn.clone()),
        }
    }

    fn may_be_gone(&self, failure: &Failure) -> bool {
        self.wants_deletion && matches!(failure.reason, Reason::SessionNotFound | Reason::SessionDeleted)
    }

    /// Refusals that a well-meaning agent has to live with; everything else is a complaint.
    fn tolerate(&mut self, operation: &Operation, failure: &Failure, retryable: bool) -> Result<(), String> {
        use Reason as R;
        self.is_gone |= self.may_be_gone(failure);
        let gone = self.is_gone || (!self.is_created && failure.reason == R::SessionNotFound);
        let known = match operation {
            Operation::Turn(..) => &[
                R::SessionBusy,
                R::PendingToolCalls,
                R::ContextOverflow,
                R::TurnMismatch,
                R::QueueFull,
                R::InvalidArgument,
                R::EmptyTurn,
                R::DuplicateCallId,
                R::UnknownCallId,
            ][..],
            Operation::Results(_) => &[R::NoPendingToolCalls, R::DuplicateCallId, R::UnknownCallId, R::ContextOverflow],
            Operation::Cancel(_) => &[R::TurnNotRunning, R::TurnNotFound],
            Operation::Append(_) => &[R::SessionBusy, R::PendingToolCalls, R::ContextOverflow],
            Operation::Create(_) => &[R::ContextOverflow],
            Operation::Generate(_) => &[R::ContextOverflow],
            Operation::Update(_) => &[R::SessionConfigFrozen, R::ContextOverflow],
            _ => &[],
        };
        self.looked = false;
        if failure.reason == R::ContextOverflow && matches!(operation, Operation::Results(_)) {
            self.is_stuck = true;
        }
        if gone || known.contains(&failure.reason) || (retryable && failure.reason.is_retryable()) {
            return Ok(());
        }
        Err(format!("{} was refused: {failure}", operation.name()))
    }

    /// Whether nothing more comes for its followers when `last` is the number of the session's last event.
    pub fn has_caught_up(&self, last: u64) -> bool {
        self.followers.iter().all(|follower| follower.has_caught_up(last))
    }

    /// What it is up to, for a person.
    pub fn describe(&self) -> String {
        let asked = self.asked.as_ref().map(|asked| asked.operation.name());
        let turns: Vec<_> = self.turns.iter().map(|turn| (turn.number.0, turn.state)).collect();
        format!("{}: asked {asked:?}, turns {turns:?}, followers {:?}", self.session, self.followers)
    }

    /// Followers that could move.
    pub fn followers(&self) -> usize {
        self.followers.iter().filter(|follower| follower.is_movable()).count()
    }

    /// Moves the `nth` follower that could move.
    pub fn follow(&mut self, nth: usize, id: RequestId) -> Option<Request> {
        let limit = self.rng.usize(1..12);
        let follower = self.followers.iter_mut().filter(|follower| follower.is_movable()).nth(nth)?;
        Some(follower.ask(&self.session, id, limit))
    }

    /// Drops the `nth` follower that could move; what its stream was of, if it was more than a watcher.
    pub fn unfollow(&mut self, nth: usize) -> Option<Dropped> {
        let follower = self.followers.iter_mut().filter(|follower| follower.is_movable()).nth(nth)?;
        let (dropped, later) = follower.drop_stream()?;
        self.followers.extend(later);
        Some(dropped)
    }

    /// Completions that were read to their end since the last call.
    pub fn finished(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.finished)
    }

    fn hear_follower(
        &mut self,
        at: usize,
        result: &Result<Reply, Failure>,
        retryable: bool,
        history: &[Event],
    ) -> Heard {
        let not_yet = |failure: &Failure| failure.reason == Reason::SessionNotFound && !self.is_created;
        let excuse = match result {
            Err(failure) if self.may_be_gone(failure) => Excuse::Gone,
            Err(failure) if (retryable && failure.reason.is_retryable()) || not_yet(failure) => Excuse::Later,
            _ => Excuse::None,
        };
        let follower = &mut self.followers[at];
        let events = follower.hear(result, excuse, history)?;
        self.finished.extend(follower.finished_completion());
        for event in &events {
            self.note_event(event);
        }
        Ok(events)
    }

    fn note_event(&mut self, event: &Event) {
        match &event.kind {
            EventKind::TurnStarted { turn } | EventKind::TurnEnded { turn } => self.note_turn(turn),
            EventKind::RequiresAction { calls } => {
                if let Some(turn) =
                    self.turns.iter_mut().find(|turn| turn.number == event.turn && !turn.state.is_terminal())
                {
                    turn.state = TurnState::RequiresAction;
                    turn.required_calls.clone_from(calls);
                }
            }
            _ => {}
        }
    }
}
