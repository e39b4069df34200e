//! A turn's life outside of an engine: accepted, started, answered, ended.
//!
//! In: requests about turns, ends of generations. Out: entries, and runs that are due. Deliberately not here: engines
//! ([`super::run`]), what is checked of a request's fields ([`super::check`]).

use holdfast_journal::{Body, Durability, RequestMark, TurnRequest};
use holdfast_types::{
    Digest, EventKind, Failure, FailureDetail, Item, ItemContent, ItemState, OnBusy, OnDisconnect, Part, Reason,
    StopReason, TurnNumber, TurnState, UnresolvedCalls,
};
use holdfast_worker_api::{Caller, StartTurn, SubmitToolResults};
use serde::Serialize;

use super::check::{Base, Rendered, check_items};
use super::session::Session;
use super::{Reply, RequestId, Shared};
use crate::fold::{LogPlace, MarkUse, SessionFold, later};
use crate::guiding::Rules;
use crate::language::Prompt;

/// What a turn begins with.
struct Opening {
    numerics_changed: bool,
    rebase: Option<LogPlace>,
    /// The rebase that leaves reasoning behind.
    left: Option<Body>,
    rendered: Option<Rendered>,
}

/// BLAKE3 of a request's meaning.
pub(super) fn meaning(kind: &str, request: &impl Serialize) -> Digest {
    let text = serde_json::to_vec(request).unwrap_or_else(|error| error.to_string().into_bytes());
    let mut hasher = blake3::Hasher::new_derive_key("holdfast 1 request");
    hasher.update(kind.as_bytes()).update(&[0]).update(&text);
    Digest(*hasher.finalize().as_bytes())
}

pub(super) fn reused(id: &str) -> Failure {
    Failure::field(
        Reason::RequestIdReused,
        "request_id",
        format!("{id:?} was used for another request in this session"),
    )
}

pub(super) fn draining() -> Failure {
    Failure::new(Reason::RuntimeDraining, "the runtime is shutting down; retry after its restart")
        .with(FailureDetail::RetryAfter { ms: 1_000 })
}

impl Session {
    /// Accepts a turn and starts it, or queues it.
    pub(super) fn start_turn(
        &mut self,
        shared: &mut Shared,
        id: RequestId,
        caller: &Caller,
        request: StartTurn,
        entropy: u128,
    ) {
        let result = self.accept_turn(shared, caller, request, entropy);
        self.reply(shared, id, result);
        self.advance(shared);
    }

    pub(super) fn accept_turn(
        &mut self,
        shared: &mut Shared,
        caller: &Caller,
        request: StartTurn,
        entropy: u128,
    ) -> Result<Reply, Failure> {
        let body = (
            (&request.input, &request.sampling, &request.allowed_tools, &request.tool_choice),
            (request.single_call, &request.constraint),
            (request.on_busy, request.on_disconnect, request.unresolved_calls, request.discard_partial),
            (request.continue_last, request.turn_deadline_ms, request.expected_last_turn),
        );
        let mark = request.request_id.as_ref().map(|id| RequestMark { id: id.clone(), digest: meaning("turn", &body) });
        if let Some(mark) = &mark
            && let Some((digest, used)) = self.fold.mark(&mark.id)
        {
            let original = match used {
                MarkUse::Turn(turn) if digest == mark.digest => self.fold.turn(turn),
                _ => None,
            };
            let turn = original.ok_or_else(|| reused(&mark.id))?.clone();
            let from = if turn.first_sequence == 0 { self.fold.sequence() + 1 } else { turn.first_sequence };
            return Ok(Reply::Turn(Box::new(turn), from));
        }
        if shared.draining {
            return Err(draining());
        }
        let number = TurnNumber(self.fold.turns().len() as u32 + 1);
        if let Some(expected) = request.expected_last_turn.filter(|expected| expected.0 != number.0 - 1) {
            let message = format!("the last turn is {}, the request expects {}", number.0 - 1, expected.0);
            return Err(Failure::new(Reason::TurnMismatch, message)
                .with(FailureDetail::Metadata { key: "lastTurn".to_owned(), value: (number.0 - 1).to_string() }));
        }
        let (device, _) = shared.check_revision(&self.fold)?;
        if request.continue_last && !request.input.is_empty() {
            return Err(Failure::field(Reason::InvalidArgument, "options.continue_last", "goes without new items"));
        }
        if request.continue_last && request.discard_partial {
            return Err(Failure::field(
                Reason::InvalidArgument,
                "options.continue_last",
                "goes without discard_partial",
            ));
        }
        if request.input.is_empty() && !request.continue_last {
            return Err(Failure::field(Reason::EmptyTurn, "input", "a turn needs at least one item, or continue_last"));
        }
        let waits = self.must_wait(&request)?;
        self.check_room(shared, number)?;
        let language = shared.models[device].language.clone();
        let path = if self.is_completion() { "" } else { "options." };
        let rules = Rules {
            allowed_tools: request.allowed_tools.as_deref(),
            tool_choice: &request.tool_choice,
            single_call: request.single_call,
            constraint: request.constraint.as_ref(),
        };
        rules.check(self.fold.config(), path)?;
        // Compiled now to be refused now; the run finds it compiled.
        let prompt = Prompt::of(self.fold.config(), self.fold.pinned_date());
        shared.guides[device].guide(&*language, &prompt, rules, &[], path)?;
        let sampling = (&*format!("{path}sampling"), &request.sampling);
        let settings = shared.settings(device, self.fold.config(), sampling, entropy as u64)?;
        let deadline_us = request.turn_deadline_ms.map(|ms| later(shared.now, ms, 1_000));
        let accepted = TurnRequest {
            request: mark,
            input: request.input,
            continue_last: request.continue_last,
            discard_partial: request.discard_partial,
            unresolved_calls: request.unresolved_calls,
            settings,
            allowed_tools: request.allowed_tools,
            tool_choice: request.tool_choice,
            single_call: request.single_call,
            constraint: request.constraint,
            deadline_us,
            on_disconnect: request.on_disconnect,
        };
        // A queued turn is checked against the log as it is now; it fails later if it does not fit what the log has become.
        let opening = self.plan_opening(shared, number, &accepted)?;
        shared.deadlines.extend(deadline_us.map(|at| (at, self.slot())));
        self.authors.insert(number, caller.clone());
        let body = Body::TurnAccepted { turn: number, request: Box::new(accepted) };
        let queued_from = self.fold.sequence() + 1;
        if waits {
            self.write(shared, caller, vec![body]);
        } else {
            self.close_waiting(shared);
            self.write(shared, caller, vec![body]);
            self.write_opening(shared, number, opening);
        }
        self.flush(shared, Durability::Power);
        let turn = self.fold.turn(number).cloned().ok_or_else(|| Failure::new(Reason::Internal, "the turn is lost"))?;
        let from = if waits { queued_from } else { turn.first_sequence };
        Ok(Reply::Turn(Box::new(turn), from))
    }

    /// Whether a new turn has to wait for those before it.
    fn must_wait(&self, request: &StartTurn) -> Result<bool, Failure> {
        let Some(first) = self.fold.current().and_then(|progress| self.fold.turn(progress.number)) else {
            // Between two turns of a queue, or at rest.
            return self.busy(request, self.fold.in_progress() > 0);
        };
        if first.state != TurnState::RequiresAction || self.fold.in_progress() > 1 {
            return self.busy(request, true);
        }
        if request.unresolved_calls == UnresolvedCalls::CloseAsCancelled {
            return Ok(false);
        }
        let open = first.required_calls.iter().filter(|call| !call.answered);
        Err(pending_calls(first.number, open.map(|call| call.call_id.clone()).collect()))
    }

    fn busy(&self, request: &StartTurn, busy: bool) -> Result<bool, Failure> {
        match request.on_busy {
            OnBusy::Reject if busy => Err(session_busy(&self.fold)),
            OnBusy::Reject | OnBusy::Queue => Ok(busy),
        }
    }

    fn check_room(&self, shared: &Shared, number: TurnNumber) -> Result<(), Failure> {
        let limits = &shared.settings.limits;
        if number.0 > limits.turns_per_session {
            return Err(Failure::limit("turns_per_session", limits.turns_per_session.into(), number.0.into()));
        }
        let full = |name: &str, limit: u32| {
            Failure::new(Reason::QueueFull, format!("{limit} turns wait already (limit {name}); retry later"))
                .with(FailureDetail::Limit {
                    name: name.to_owned(),
                    limit: limit.into(),
                    requested: u64::from(limit) + 1,
                })
                .with(FailureDetail::RetryAfter { ms: 1_000 })
        };
        if self.fold.queued().count() >= limits.queued_turns_per_session as usize {
            return Err(full("queued_turns_per_session", limits.queued_turns_per_session));
        }
        if shared.turns_in_progress >= limits.turns_in_progress {
            return Err(full("turns_in_progress", limits.turns_in_progress));
        }
        Ok(())
    }

    /// What this turn would begin with if it began now, with the waiting turn's calls closed.
    fn plan_opening(&self, shared: &Shared, number: TurnNumber, request: &TurnRequest) -> Result<Opening, Failure> {
        let (device, numerics_changed) = shared.check_revision(&self.fold)?;
        let waiting = self.fold.current().filter(|progress| progress.number != number);
        let open_calls = waiting.and_then(|progress| self.fold.turn(progress.number));
        let open_calls = open_calls.map(|turn| turn.required_calls.as_slice()).unwrap_or_default();
        let waits_in = self.fold.waiting_since();
        let last = waiting.and_then(|progress| progress.start).map(|start| (start, true)).or(self.fold.last_end());
        if request.continue_last {
            // A turn that runs may still end early; one that waits for tool results has ended its text.
            let runs = self.fold.current().is_some() && waits_in.is_none();
            if !runs && !self.fold.can_continue() {
                let problem = "the last turn did not end early, there is nothing to go on with";
                return Err(Failure::field(Reason::EmptyTurn, "input", problem));
            }
            return Ok(Opening { numerics_changed, rebase: None, left: None, rendered: None });
        }
        let rebase = match last {
            Some((start, true)) if request.discard_partial => Some(start),
            _ => None,
        };
        let base = rebase.map_or_else(
            || Base::of(&self.fold),
            |start| Base { tokens: start.tokens, items: start.items, end: start.end },
        );
        let mut items = Vec::new();
        if rebase.is_none() && request.unresolved_calls == UnresolvedCalls::CloseAsCancelled {
            items.extend(open_calls.iter().map(|call| {
                let arrived = waiting.and_then(|progress| progress.results().get(&call.call_id)).cloned();
                arrived.unwrap_or_else(|| cancelled_result(&call.call_id))
            }));
        }
        let kept = &self.fold.items()[..base.items as usize];
        check_items("input", &request.input, |call_id| {
            if items.iter().any(|item| is_result_of(item, call_id)) {
                return Some(true);
            }
            let known = self.fold.call(call_id);
            known.filter(|_| rebase.is_none() || kept.iter().any(|item| is_call(&item.item, call_id)))
        })?;
        items.extend(request.input.iter().cloned());
        let (base, left) = match shared.leave_reasoning(&self.fold, device, base, &items) {
            Some((base, left)) => (base, Some(left)),
            None => (base, None),
        };
        let rendered = shared.render(&self.fold, device, base, (Some(number), items))?;
        Ok(Opening { numerics_changed, rebase, left, rendered: Some(rendered) })
    }

    fn write_opening(&mut self, shared: &mut Shared, turn: TurnNumber, opening: Opening) {
        let mut bodies = Vec::new();
        if opening.numerics_changed
            && let Some(device) = self.device
        {
            bodies.push(self.numerics_change(shared, device));
        }
        if let Some(start) = opening.rebase {
            let cause = "discard_partial".to_owned();
            let (keep_until, keep_items) = (start.tokens, start.items);
            bodies.push(Body::Rebase { keep_until, keep_items, replacement: Vec::new(), cause });
        }
        bodies.extend(opening.left);
        bodies.push(Body::TurnStarted { turn });
        if let Some(Rendered { items, runs }) = opening.rendered {
            bodies.push(Body::ItemsAppended { turn: Some(turn), items, runs, request: None });
        }
        self.drop_ephemeral(turn);
        let author = self.author(turn);
        self.write(shared, &author, bodies);
    }

    /// Ends a turn that waits for tool results, because the next one closes its calls.
    fn close_waiting(&mut self, shared: &mut Shared) {
        if let Some(waiting) = self.fold.current().map(|progress| progress.number) {
            self.write_turn_end(shared, waiting, TurnState::Cancelled, Some(StopReason::Cancelled), None);
        }
    }

    /// Starts what is due: the running turn's next generation, or the next turn of the queue.
    pub(super) fn advance(&mut self, shared: &mut Shared) {
        while !shared.draining && !self.is_broken() && !self.fold.is_deleted() {
            let waiting = self.fold.current().and_then(|progress| self.fold.turn(progress.number));
            let waiting = waiting.map(|turn| turn.state);
            let Some(next) = self.fold.queued().next().map(|next| (next.number, next.request.clone())) else { break };
            match waiting {
                None => {}
                Some(TurnState::RequiresAction) if next.1.unresolved_calls == UnresolvedCalls::CloseAsCancelled => {}
                Some(_) => break,
            }
            match self.plan_opening(shared, next.0, &next.1) {
                Ok(opening) => {
                    self.close_waiting(shared);
                    self.write_opening(shared, next.0, opening);
                }
                Err(failure) => self.write_turn_end(shared, next.0, TurnState::Failed, None, Some(failure)),
            }
            self.flush(shared, Durability::Power);
        }
        let started = usize::from(self.fold.current().is_some());
        let positions: Vec<_> = self.fold.queued().map(|queued| queued.number).zip(started as u32..).collect();
        for (turn, position) in positions {
            self.show_ephemeral(shared, turn, EventKind::TurnQueued { position });
        }
        self.run_generation(shared);
    }

    /// Takes results for waiting calls; once all are there, the turn goes on.
    pub(super) fn submit(&mut self, shared: &mut Shared, id: RequestId, caller: &Caller, request: SubmitToolResults) {
        let result = self.take_results(shared, caller, request);
        self.reply(shared, id, result);
        self.advance(shared);
    }

    fn take_results(
        &mut self,
        shared: &mut Shared,
        caller: &Caller,
        request: SubmitToolResults,
    ) -> Result<Reply, Failure> {
        let digest = meaning("results", &(request.turn, &request.results));
        let mark = request.request_id.map(|id| RequestMark { id, digest });
        if let Some(mark) = &mark
            && let Some((digest, used)) = self.fold.mark(&mark.id)
        {
            let original = match used {
                MarkUse::Results(turn, from) if digest == mark.digest => self.fold.turn(turn).map(|turn| (turn, from)),
                _ => None,
            };
            let (turn, from) = original.ok_or_else(|| reused(&mark.id))?;
            return Ok(Reply::Turn(Box::new(turn.clone()), from));
        }
        if shared.draining {
            return Err(draining());
        }
        let number = request.turn.unwrap_or(TurnNumber(self.fold.turns().len() as u32));
        let turn = self.fold.turn(number).ok_or_else(|| turn_not_found(self.fold.session().as_str(), number))?;
        let waiting = self.fold.current().filter(|progress| progress.number == number);
        let Some(waiting) = waiting.filter(|_| turn.state == TurnState::RequiresAction) else {
            let message = format!("turn {} waits for no tool result", number.0);
            return Err(Failure::new(Reason::NoPendingToolCalls, message));
        };
        let mut results = waiting.results().clone();
        for (i, item) in request.results.iter().enumerate() {
            let path = format!("results[{i}]");
            let ItemContent::ToolResult { call_id, .. } = &item.content else {
                return Err(Failure::field(Reason::InvalidArgument, path, "only tool results answer calls"));
            };
            let path = format!("{path}.call_id");
            if !turn.required_calls.iter().any(|call| call.call_id == *call_id) {
                let problem = format!("turn {} waits for no call {call_id:?}", number.0);
                return Err(Failure::field(Reason::UnknownCallId, path, problem));
            }
            if results.insert(call_id.clone(), item.clone()).is_some() {
                let problem = format!("call {call_id:?} was answered already");
                return Err(Failure::field(Reason::DuplicateCallId, path, problem));
            }
        }
        if request.results.is_empty() {
            return Err(Failure::field(Reason::InvalidArgument, "results", "at least one result is needed"));
        }
        let in_order: Vec<_> =
            turn.required_calls.iter().filter_map(|call| results.get(&call.call_id).cloned()).collect();
        let mut changed_to = None;
        let rendered = if in_order.len() == turn.required_calls.len() {
            let (device, changed) = shared.check_revision(&self.fold)?;
            changed_to = changed.then_some(device);
            Some(shared.render(&self.fold, device, Base::of(&self.fold), (Some(number), in_order))?)
        } else {
            None
        };
        let from = self.fold.sequence() + 1;
        let mut bodies = vec![Body::ToolResults { turn: number, results: request.results, request: mark }];
        bodies.extend(changed_to.map(|device| self.numerics_change(shared, device)));
        bodies.extend(rendered.map(|Rendered { items, runs }| Body::ItemsAppended {
            turn: Some(number),
            items,
            runs,
            request: None,
        }));
        self.authors.insert(number, caller.clone());
        self.write(shared, caller, bodies);
        self.flush(shared, Durability::Power);
        let turn = self.fold.turn(number).cloned().ok_or_else(|| turn_not_found("", number))?;
        Ok(Reply::Turn(Box::new(turn), from))
    }

    /// Ends a turn early; answered once the end is committed.
    pub(super) fn cancel_turn(&mut self, shared: &mut Shared, id: RequestId, turn: Option<TurnNumber>) {
        let number = turn.unwrap_or(TurnNumber(self.fold.turns().len() as u32));
        match self.fold.turn(number).map(|turn| turn.state) {
            None => {
                let failure = turn_not_found(self.fold.session().as_str(), number);
                self.reply(shared, id, Err(failure));
            }
            Some(state) if state.is_terminal() => {
                let message = format!("turn {} has ended", number.0);
                self.reply(shared, id, Err(Failure::new(Reason::TurnNotRunning, message)));
            }
            Some(_) => {
                self.awaiting_end.push((id, number));
                self.end_early(shared, number, StopReason::Cancelled);
            }
        }
    }

    /// The stream of a turn was dropped.
    pub(super) fn disconnected(&mut self, shared: &mut Shared, turn: TurnNumber) {
        let open =
            self.fold.unended(turn).is_some_and(|progress| progress.request.on_disconnect == OnDisconnect::Cancel);
        if open {
            self.end_early(shared, turn, StopReason::Cancelled);
        }
    }

    /// Ends turns whose deadline has passed.
    pub(super) fn end_overdue(&mut self, shared: &mut Shared) {
        let overdue = |at: Option<u64>| at.is_some_and(|at| at <= shared.now);
        let turns: Vec<_> =
            self.fold.open_turns().filter(|turn| overdue(turn.deadline_us)).map(|turn| turn.number).collect();
        for turn in turns {
            self.end_early(shared, turn, StopReason::DeadlineExceeded);
        }
    }

    fn end_early(&mut self, shared: &mut Shared, turn: TurnNumber, reason: StopReason) {
        match self.fold.turn(turn).map(|turn| turn.state) {
            Some(TurnState::Running) => self.end_generation_early(shared, reason),
            Some(TurnState::Queued | TurnState::RequiresAction) => {
                let state = ended_state(reason);
                self.write_turn_end(shared, turn, state, Some(reason), None);
                self.flush(shared, Durability::Power);
                self.advance(shared);
            }
            _ => {}
        }
    }
}

/// The state that a turn ends in.
pub(super) fn ended_state(reason: StopReason) -> TurnState {
    match reason {
        StopReason::EndTurn | StopReason::ToolCall | StopReason::StopSequence => TurnState::Completed,
        StopReason::MaxOutputTokens | StopReason::ContextFull | StopReason::DeadlineExceeded => TurnState::Incomplete,
        StopReason::Cancelled => TurnState::Cancelled,
    }
}

pub(super) fn turn_not_found(session: &str, turn: TurnNumber) -> Failure {
    let name = format!("sessions/{session}/turns/{}", turn.0);
    let message = format!("the session has no turn {}", turn.0);
    Failure::resource(Reason::TurnNotFound, name, message)
}

/// Names the turn that is to be waited for: the last one in progress.
pub(super) fn session_busy(fold: &SessionFold) -> Failure {
    let session = format!("sessions/{}", fold.session().as_str());
    let turn = fold.open_turns().last().map(|turn| format!("{session}/turns/{}", turn.number.0));
    let message = "a turn is in progress; wait for its end, cancel it, or use on_busy QUEUE";
    Failure::resource(Reason::SessionBusy, turn.unwrap_or(session), message)
}

pub(super) fn pending_calls(turn: TurnNumber, call_ids: Vec<String>) -> Failure {
    let message = format!(
        "turn {} waits for results of {}; send them, or use unresolved_calls CLOSE_AS_CANCELLED",
        turn.0,
        call_ids.join(", ")
    );
    Failure::new(Reason::PendingToolCalls, message).with(FailureDetail::PendingCalls { call_ids })
}

fn cancelled_result(call_id: &str) -> Item {
    let parts = vec![Part::Text("cancelled".to_owned())];
    Item {
        content: ItemContent::ToolResult { call_id: call_id.to_owned(), parts, is_error: true },
        state: ItemState::Complete,
    }
}

fn is_result_of(item: &Item, id: &str) -> bool {
    matches!(&item.content, ItemContent::ToolResult { call_id, .. } if call_id == id)
}

fn is_call(item: &Item, id: &str) -> bool {
    matches!(&item.content, ItemContent::ToolCall { call_id, .. } if call_id == id)
}
