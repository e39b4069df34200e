//! Event streams: each pulls batches at its reader's pace, so that a slow reader pauses only itself.
//!
//! In: a place to begin. Out: a stream of events. Deliberately not here: which events there are (the fold's).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast_types::{Event, EventKind, Failure, Reason, SessionId, TurnNumber};
use holdfast_worker_api::{Caller, CompletionEvent, CompletionStream, EventStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::replay::Replay;
use super::{CompletionEnd, Inner, Message};
use crate::core::{Channel, EventBatch, Input, ReadEvents, Reply, Request};

/// What a stream follows.
pub(super) struct Following {
    pub(super) caller: Caller,
    pub(super) session: SessionId,
    /// One turn, to its end; `None` is the session, without end.
    pub(super) turn: Option<TurnNumber>,
    pub(super) from: u64,
    /// The turn hears of the stream's drop.
    pub(super) owns_turn: bool,
}

/// How a stream came to its end.
enum End {
    /// All was said.
    Told,
    /// The reader went away.
    Dropped,
    Failed(Failure),
}

pub(super) fn follow(inner: &Arc<Inner>, following: Following) -> EventStream {
    let (sender, receiver) = mpsc::channel(buffer(inner));
    let inner = Arc::clone(inner);
    tokio::spawn(async move {
        inner.streams.fetch_add(1, Ordering::Relaxed);
        let channel = Channel::Session(following.caller.tenant.clone(), following.session.clone());
        let mut news = inner.subscribe(&channel);
        let end = events(&inner, &following, &mut news, &sender).await;
        inner.unsubscribe(&channel, news);
        match (end, following.turn) {
            (End::Dropped, Some(turn)) if following.owns_turn => {
                let (tenant, session) = (following.caller.tenant, following.session);
                let _ = inner.inputs.send(Message::Input(Input::Disconnected { tenant, session, turn })).await;
            }
            (End::Failed(failure), _) => {
                let _ = sender.send(Err(failure)).await;
            }
            _ => {}
        }
        inner.streams.fetch_sub(1, Ordering::Relaxed);
    });
    Box::pin(ReceiverStream::new(receiver))
}

fn buffer(inner: &Inner) -> usize {
    inner.settings.limits.stream_buffer_events.max(1) as usize
}

type Out = mpsc::Sender<Result<Event, Failure>>;

async fn events(
    inner: &Arc<Inner>,
    following: &Following,
    news: &mut tokio::sync::watch::Receiver<u64>,
    out: &Out,
) -> End {
    let (mut from, mut seen) = (following.from, 0);
    loop {
        // Marked before reading: what comes meanwhile wakes the wait below.
        news.borrow_and_update();
        let batch = match read(inner, following, from, seen).await {
            Ok(batch) => batch,
            Err(failure) => return End::Failed(failure),
        };
        if batch.older {
            match replay(inner, following, from..batch.next, batch.waiting, out).await {
                Ok(()) => from = batch.next,
                Err(end) => return end,
            }
            continue;
        }
        from = batch.next;
        seen = batch.seen;
        let idle = batch.events.is_empty();
        for event in batch.events.into_iter().chain(batch.ephemeral) {
            if let Err(end) = tell(following, event, batch.waiting, out).await {
                return end;
            }
        }
        if batch.deleted {
            return End::Failed(deleted(following));
        }
        if batch.last && idle {
            return End::Told;
        }
        if idle {
            tokio::select! {
                changed = news.changed() => if changed.is_err() { return End::Told },
                () = out.closed() => return End::Dropped,
            }
        }
    }
}

async fn read(inner: &Inner, following: &Following, from: u64, seen: u64) -> Result<EventBatch, Failure> {
    let request =
        ReadEvents { session: following.session.clone(), turn: following.turn, from, limit: buffer(inner), seen };
    match inner.ask(&following.caller, Request::ReadEvents(request)).await {
        Ok(Reply::Events(batch)) => Ok(batch),
        Ok(_) => Err(Failure::new(Reason::Internal, "no events in a reply with events")),
        Err(failure) if failure.reason == Reason::SessionNotFound => Err(deleted(following)),
        Err(failure) => Err(failure),
    }
}

/// Hands an event on; an error is the stream's end.
async fn tell(following: &Following, event: Event, waiting: Option<u64>, out: &Out) -> Result<(), End> {
    let ends = following.turn.is_some()
        && (event.kind.is_terminal()
            || (matches!(event.kind, EventKind::RequiresAction { .. }) && waiting == Some(event.sequence)));
    if out.send(Ok(event)).await.is_err() {
        return Err(if ends { End::Told } else { End::Dropped });
    }
    if ends { Err(End::Told) } else { Ok(()) }
}

async fn replay(
    inner: &Arc<Inner>,
    following: &Following,
    range: std::ops::Range<u64>,
    waiting: Option<u64>,
    out: &Out,
) -> Result<(), End> {
    let (tenant, session) = (following.caller.tenant.clone(), following.session.clone());
    let mut replay = Replay::new(inner.journal.clone(), inner.languages.clone(), tenant, session);
    loop {
        let page = tokio::task::spawn_blocking(move || {
            let page = replay.page();
            (replay, page)
        });
        let (back, page) =
            page.await.map_err(|error| End::Failed(Failure::new(Reason::Internal, error.to_string())))?;
        let (events, last) = page.map_err(End::Failed)?;
        replay = back;
        for event in events {
            if event.sequence >= range.end {
                return Ok(());
            }
            let wanted = following.turn.is_none_or(|turn| turn == event.turn);
            if event.sequence >= range.start && wanted {
                tell(following, event, waiting, out).await?;
            }
        }
        if last {
            return Ok(());
        }
    }
}

fn deleted(following: &Following) -> Failure {
    let session = &following.session;
    Failure::resource(Reason::SessionDeleted, format!("sessions/{session}"), format!("session {session} was deleted"))
}

/// The stream of a completion; the completion is forgotten when it ends or is dropped.
pub(super) fn completion(inner: &Arc<Inner>, caller: Caller, completion: u64) -> CompletionStream {
    let (sender, receiver) = mpsc::channel(buffer(inner));
    let inner = Arc::clone(inner);
    tokio::spawn(async move {
        inner.streams.fetch_add(1, Ordering::Relaxed);
        let channel = Channel::Completion(completion);
        let mut news = inner.subscribe(&channel);
        let mut from = 1;
        let mut ended = None;
        'told: loop {
            news.borrow_and_update();
            let request = Request::ReadCompletion { completion, from, limit: buffer(&inner) };
            let batch = match inner.ask(&caller, request).await {
                Ok(Reply::Events(batch)) => batch,
                Ok(_) => break,
                Err(failure) => {
                    let _ = sender.send(Err(failure)).await;
                    break;
                }
            };
            from = batch.next;
            let idle = batch.events.is_empty();
            for event in batch.events {
                if let EventKind::TurnEnded { turn } = &event.kind {
                    ended = Some(turn.clone());
                }
                let event = CompletionEvent { time_us: event.time_us, kind: event.kind };
                if sender.send(Ok(event)).await.is_err() {
                    break 'told;
                }
            }
            if batch.last {
                break;
            }
            if idle {
                tokio::select! {
                    changed = news.changed() => if changed.is_err() { break },
                    () = sender.closed() => break,
                }
            }
        }
        inner.unsubscribe(&channel, news);
        let _ = inner.completions.send(CompletionEnd { completion, turn: ended });
        inner.streams.fetch_sub(1, Ordering::Relaxed);
    });
    Box::pin(ReceiverStream::new(receiver))
}
