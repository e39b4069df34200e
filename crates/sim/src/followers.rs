//! Followers: clients' streams of events, taken apart into attaching and reading.
//!
//! In: answers of a node. Out: requests, and events in the order in which a client sees them; a complaint when one is missing,
//! comes twice or comes in the wrong stream. Deliberately not here: what events say ([`crate::oracle`] compares them).

use holdfast_types::{Event, Failure, SessionId, TurnNumber};
use holdfast_worker::core::{EventBatch, ReadEvents, Reply, Request, RequestId};

/// Where a follower stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Detached,
    Attaching(RequestId),
    Ready,
    Reading(RequestId),
    Ended,
}

/// What is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Session,
    Turn(TurnNumber),
    Completion(u64),
}

/// What a dropped stream was of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// A turn.
    Turn(TurnNumber),
    /// A stateless completion.
    Completion(u64),
}

/// Why a refusal may be in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excuse {
    /// It may not.
    None,
    /// The session was deleted.
    Gone,
    /// The node cannot answer for a while.
    Later,
}

/// Someone who follows events: detached, attaching, ready, reading, ready, ... ended. A crash detaches it; it attaches again
/// from the first event that it has not seen.
#[derive(Debug)]
pub struct Follower {
    stream: Stream,
    /// The first event that it has not seen.
    next: u64,
    /// The latest ephemeral event that it has seen.
    seen: u64,
    place: Place,
    saw_end: bool,
}

impl Follower {
    /// Follows a session from its first event, without end.
    pub fn watcher() -> Self {
        Self { stream: Stream::Session, next: 1, seen: 0, place: Place::Detached, saw_end: false }
    }

    /// Follows a turn from an event on; it is attached already.
    pub fn of_turn(turn: TurnNumber, from: u64) -> Self {
        Self { stream: Stream::Turn(turn), next: from, place: Place::Ready, ..Self::watcher() }
    }

    /// Reads a completion; it is attached already.
    pub fn of_completion(completion: u64) -> Self {
        Self { stream: Stream::Completion(completion), place: Place::Ready, ..Self::watcher() }
    }

    /// Whether it could ask for something.
    pub fn is_movable(&self) -> bool {
        matches!(self.place, Place::Detached | Place::Ready)
    }

    /// Whether an answer is for it.
    pub fn waits_for(&self, id: RequestId) -> bool {
        matches!(self.place, Place::Attaching(of) | Place::Reading(of) if of == id)
    }

    /// Whether nothing more comes when `last` is the number of the session's last event.
    pub fn has_caught_up(&self, last: u64) -> bool {
        match self.place {
            Place::Ended => true,
            Place::Ready => self.stream == Stream::Session && self.next > last,
            _ => false,
        }
    }

    /// Attaches, or reads on.
    pub fn ask(&mut self, session: &SessionId, id: RequestId, limit: usize) -> Request {
        let (session, from) = (session.clone(), self.next);
        let is_detached = self.place == Place::Detached;
        self.place = if is_detached { Place::Attaching(id) } else { Place::Reading(id) };
        let turn = match self.stream {
            Stream::Completion(completion) => return Request::ReadCompletion { completion, from, limit },
            Stream::Turn(turn) if is_detached => return Request::GetTurn { session, turn, from_sequence: from },
            Stream::Session if is_detached => return Request::Watch { session, from_sequence: from },
            Stream::Turn(turn) => Some(turn),
            Stream::Session => None,
        };
        Request::ReadEvents(ReadEvents { session, turn, from, limit, seen: self.seen })
    }

    /// Its stream is dropped, unless it is a watcher; with the follower that takes a turn up again later.
    pub fn drop_stream(&mut self) -> Option<(Dropped, Option<Self>)> {
        let (dropped, later) = match self.stream {
            Stream::Session => return None,
            Stream::Completion(completion) => (Dropped::Completion(completion), None),
            Stream::Turn(turn) => {
                let later = Self { place: Place::Detached, ..Self::of_turn(turn, self.next) };
                (Dropped::Turn(turn), (!self.saw_end).then_some(later))
            }
        };
        self.place = Place::Ended;
        Some((dropped, later))
    }

    /// The node died; `last` is the number of the session's last event that survived. A completion dies with its node.
    pub fn reconnect(&mut self, last: u64) {
        self.place = match (self.place, self.stream) {
            (Place::Ended, _) | (_, Stream::Completion(_)) => Place::Ended,
            _ => Place::Detached,
        };
        self.seen = 0;
        self.next = self.next.min(last + 1);
    }

    /// The completion that it has read to its end.
    pub fn finished_completion(&self) -> Option<u64> {
        match self.stream {
            Stream::Completion(completion) if self.place == Place::Ended => Some(completion),
            _ => None,
        }
    }

    /// An answer. `history` is what the journal has; events that are no longer in memory come out of it, as the worker's shell
    /// does it.
    ///
    /// # Errors
    /// What is wrong with the answer.
    pub fn hear(
        &mut self,
        result: &Result<Reply, Failure>,
        excuse: Excuse,
        history: &[Event],
    ) -> Result<Vec<Event>, String> {
        self.place = Place::Ready;
        match (result, excuse) {
            (Ok(Reply::Turn(_, from)), _) => self.next = self.next.max(*from),
            (Ok(Reply::Position(from)), _) => self.next = *from,
            (Ok(Reply::Events(batch)), _) if matches!(self.stream, Stream::Completion(_)) => {
                return self.hear_completion(batch).map(|()| Vec::new());
            }
            (Ok(Reply::Events(batch)), _) => return self.hear_events(batch, history),
            (Ok(other), _) => return Err(format!("a follower got {other:?}")),
            (Err(_), Excuse::Gone) => self.place = Place::Ended,
            (Err(_), Excuse::Later) => self.place = Place::Detached,
            (Err(failure), Excuse::None) => return Err(format!("a follower was refused: {failure}")),
        }
        Ok(Vec::new())
    }

    fn hear_completion(&mut self, batch: &EventBatch) -> Result<(), String> {
        let ends = batch.events.iter().filter(|event| event.kind.is_terminal()).count();
        let is_last = batch.events.last().is_some_and(|event| event.kind.is_terminal());
        let next = self.next + batch.events.len() as u64;
        if batch.next != next || ends != usize::from(is_last) || batch.last != is_last {
            return Err(format!("{:?} from event {} on: {batch:?}", self.stream, self.next));
        }
        self.next = next;
        if is_last {
            self.place = Place::Ended;
        }
        Ok(())
    }

    fn hear_events(&mut self, batch: &EventBatch, history: &[Event]) -> Result<Vec<Event>, String> {
        let stream = self.stream;
        let is_wanted = |event: &&Event| match stream {
            Stream::Turn(turn) => event.turn == turn,
            _ => true,
        };
        let mut events = batch.events.clone();
        if batch.older {
            let missed = history.iter().filter(|event| (self.next..batch.next).contains(&event.sequence));
            events = missed.filter(is_wanted).cloned().collect();
        }
        for event in &events {
            if event.sequence < self.next || !is_wanted(&event) {
                return Err(format!("{stream:?} waits for {} and got {event:?}", self.next));
            }
            if stream == Stream::Session && event.sequence != self.next {
                return Err(format!("event {} came where {} was due", event.sequence, self.next));
            }
            self.next = event.sequence + 1;
            self.saw_end |= stream != Stream::Session && event.kind.is_terminal();
        }
        if let Some(unnumbered) = batch.ephemeral.iter().find(|event| event.sequence != 0) {
            return Err(format!("an ephemeral event has number {}", unnumbered.sequence));
        }
        if stream == Stream::Session && batch.next != self.next {
            return Err(format!("a watcher at {} was sent to {}", self.next, batch.next));
        }
        self.next = self.next.max(batch.next);
        self.seen = batch.seen;
        if batch.last {
            if stream != Stream::Session && !self.saw_end && !batch.deleted {
                return Err(format!("{stream:?} ended without its end"));
            }
            self.place = Place::Ended;
        }
        Ok(events)
    }
}
