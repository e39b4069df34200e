//! A turn's events, with attaching again when the connection breaks.

use std::time::Duration;

use tokio_stream::StreamExt;
use tonic::{Code, Streaming};

use crate::v1::event::Kind;
use crate::{Client, ClientError, v1};

/// First wait before attaching again; doubled each time.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
/// Attempts in a row that bring no event before the stream gives up (about 13 s in all).
const MAX_ATTEMPTS: u32 = 8;

/// Events of one turn, each numbered one exactly once, up to `turn_ended` or a `requires_action` that the client has to answer.
///
/// Lifecycle: open until [`TurnEvents::next`] returns `Ok(None)` (the turn ended or waits) or an error. Dropping it is a
/// disconnect, which the runtime treats as the turn's `on_disconnect` says.
#[derive(Debug)]
pub struct TurnEvents {
    client: Client,
    stream: Streaming<v1::Event>,
    turn: Option<String>,
    seen: u64,
    finished: bool,
}

impl TurnEvents {
    pub(crate) fn new(client: Client, stream: Streaming<v1::Event>) -> Self {
        Self { client, stream, turn: None, seen: 0, finished: false }
    }

    /// The next event; `None` once the turn has ended or waits for tool results.
    ///
    /// # Errors
    /// [`ClientError`] when the runtime refuses, or stays away for longer than the attempts to attach again last.
    pub async fn next(&mut self) -> Result<Option<v1::Event>, ClientError> {
        let mut attempts = 0;
        loop {
            let broken = match self.stream.next().await {
                Some(Ok(event)) => match self.accept(event) {
                    Some(event) => return Ok(Some(event)),
                    None => continue,
                },
                Some(Err(status)) if !is_broken(&status) => return Err(status.into()),
                Some(Err(status)) => status,
                None if self.finished => return Ok(None),
                None => tonic::Status::unavailable("the stream ended before the turn did"),
            };
            attempts += 1;
            self.attach_again(attempts, broken).await?;
        }
    }

    /// Name of the turn, once an event has told it.
    pub fn turn(&self) -> Option<&str> {
        self.turn.as_deref()
    }

    /// Number of the latest numbered event.
    pub fn last_sequence(&self) -> u64 {
        self.seen
    }

    /// Keeps the cursor; drops what was seen before.
    fn accept(&mut self, event: v1::Event) -> Option<v1::Event> {
        if self.turn.is_none() {
            self.turn = Some(event.turn.clone());
        }
        if event.sequence == 0 {
            return Some(event);
        }
        if event.sequence <= self.seen {
            return None;
        }
        self.seen = event.sequence;
        self.finished = match &event.kind {
            Some(Kind::TurnEnded(_)) => true,
            Some(Kind::RequiresAction(action)) => action.calls.iter().any(|call| !call.answered),
            _ => false,
        };
        Some(event)
    }

    async fn attach_again(&mut self, attempt: u32, broken: tonic::Status) -> Result<(), ClientError> {
        let Some(turn) = self.turn.clone().filter(|_| attempt <= MAX_ATTEMPTS) else {
            return Err(broken.into());
        };
        tokio::time::sleep(FIRST_BACKOFF * 2_u32.pow(attempt - 1)).await;
        let request = v1::AttachTurnRequest { name: turn, from_sequence: self.seen + 1 };
        match self.client.sessions().attach_turn(request).await {
            Ok(reply) => self.stream = reply.into_inner(),
            Err(status) if is_broken(&status) => {} // the next read of the dead stream comes back here
            Err(status) => return Err(status.into()),
        }
        Ok(())
    }
}

/// Whether the connection, rather than the request, is at fault.
fn is_broken(status: &tonic::Status) -> bool {
    status.code() == Code::Unavailable
}
