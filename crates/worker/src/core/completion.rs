//! Stateless completions: a session of one turn that is never journaled.
//!
//! In: the full history. Out: the same renderer, runs and fold as a session's turn, with events in its words. Deliberately
//! not here: anything of its own; what differs is that writes count as committed at once and that nothing is kept: no entry,
//! and no block that anyone could find. Each call computes all of its input.

use holdfast_journal::SessionMutable;
use holdfast_types::{Event, EventKind, Failure, ItemNumber, Reason, SessionId, Sharing, TurnNumber};
use holdfast_worker_api::{Caller, Generate, StartTurn};

use super::check::check_items;
use super::message::EventBatch;
use super::session::Session;
use super::turn::draining;
use super::{Reply, RequestId, Shared, Slot, WorkerCore};

impl WorkerCore {
    pub(super) fn generate(&mut self, id: RequestId, caller: &Caller, request: Generate, entropy: u128) {
        self.count_turns();
        match Session::complete(&mut self.shared, caller, request, entropy) {
            Ok(mut session) => {
                let slot = session.slot();
                self.shared.reply(id, Ok(Reply::Completion(slot.0)));
                session.advance(&mut self.shared);
                self.slots.insert(slot, session);
            }
            Err(failure) => self.shared.reply(id, Err(failure)),
        }
    }

    /// Forgets a completion; what still runs ends within one step.
    pub(super) fn drop_completion(&mut self, completion: u64) {
        if self.slots.get(&Slot(completion)).is_some_and(Session::is_completion)
            && let Some(mut session) = self.slots.remove(&Slot(completion))
        {
            session.abandon(&mut self.shared, &Failure::new(Reason::Internal, "the completion was dropped"));
        }
    }
}

impl Session {
    fn complete(shared: &mut Shared, caller: &Caller, request: Generate, entropy: u128) -> Result<Self, Failure> {
        if shared.draining {
            return Err(draining());
        }
        let Generate { mut config, items, allowed_tools, tool_choice, single_call, constraint, deadline_ms } = request;
        let device = shared.check_config("", &mut config)?;
        check_items("items", &items, |_| None)?;
        // Nothing is kept and nothing is found: its name keys its blocks, and no other has that name.
        config.sharing = Sharing::Private;
        let name = format!("completion-{entropy:032x}");
        let session = SessionId::parse(&name).map_err(|error| Failure::new(Reason::Internal, error.to_string()))?;
        let (fold, _) = shared.begin(caller, session.clone(), (config, device), SessionMutable::default(), None)?;
        let mut made = Self::new(shared, fold, Some(items.len() as u32));
        let turn = StartTurn {
            allowed_tools,
            tool_choice,
            single_call,
            constraint,
            turn_deadline_ms: deadline_ms,
            ..StartTurn::new(session, items)
        };
        made.accept_turn(shared, caller, turn, entropy)?;
        Ok(made)
    }

    /// Events of a completion from the n-th on: turn number 0, output items from 1, no input items.
    pub(super) fn read_completion(&self, from: u64, limit: usize) -> EventBatch {
        let (_, recent) = self.events();
        let inputs = self.completion().unwrap_or(0);
        let all = recent.iter().filter_map(|event| outward(event, inputs));
        let skip = from.saturating_sub(1) as usize;
        let events: Vec<Event> = all.skip(skip).take(limit).collect();
        let next = from.max(1).saturating_add(events.len() as u64);
        let last = events.last().is_some_and(|event| event.kind.is_terminal());
        EventBatch { events, next, last, ..EventBatch::default() }
    }
}

/// A session's event as a completion tells it; `None` for those about its input, and for the wait for tool results, which
/// nobody could send.
fn outward(event: &Event, inputs: u32) -> Option<Event> {
    let outer = |number: ItemNumber| number.0.checked_sub(inputs).filter(|&number| number > 0).map(ItemNumber);
    let mut event = event.clone();
    event.turn = TurnNumber(0);
    match &mut event.kind {
        EventKind::ItemStarted { number, .. } | EventKind::ItemDone { number, .. } => *number = outer(*number)?,
        EventKind::TextDelta { item, .. }
        | EventKind::ReasoningDelta { item, .. }
        | EventKind::ToolArgumentsDelta { item, .. } => *item = outer(*item)?,
        EventKind::TurnStarted { turn } | EventKind::TurnEnded { turn } => turn.number = TurnNumber(0),
        EventKind::RequiresAction { .. } => return None,
        EventKind::TurnQueued { .. } | EventKind::PrefillProgress { .. } => {}
    }
    Some(event)
}
