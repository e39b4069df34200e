//! Events on their way to a client.
//!
//! In: a stream of events from the worker. Out: the same events as protos, pulled one by one as the client takes them:
//! nothing is buffered here, so a slow reader holds up nobody but itself. An error in the middle becomes the stream's
//! status. The stream also ends at the call's deadline, and when the runtime stops. Dropping it, which is what tonic does
//! when the client goes away, drops the worker's stream: a disconnect. Deliberately not here: what a disconnect means.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use holdfast_contracts::v1;
use holdfast_telemetry::Metrics;
use holdfast_types::{Failure, Reason};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_stream::Stream;
use tonic::Status;

use crate::edge::{self, Phase};
use crate::status;
use crate::telemetry::Call;

/// Events of one call, converted and named.
pub(crate) type Events = Pin<Box<dyn Stream<Item = Result<v1::Event, Failure>> + Send>>;

/// Whether a stream ends by itself, which decides when it is ended at shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamKind {
    /// It ends with its turn: while the runtime drains it may go on.
    OfTurn,
    /// It has no end: it ends as soon as the runtime drains.
    Endless,
}

/// The streams that are open, bounded by the limit `open_streams`.
#[derive(Clone)]
pub(crate) struct OpenStreams {
    places: Arc<Semaphore>,
    limit: u32,
    metrics: Arc<Metrics>,
}

impl OpenStreams {
    /// Room for `limit` streams.
    pub(crate) fn new(limit: u32, metrics: Arc<Metrics>) -> Self {
        let places = usize::try_from(limit).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { places: Arc::new(Semaphore::new(places)), limit, metrics }
    }

    /// Takes a place, or fails with the limit's name.
    pub(crate) fn open(&self) -> Result<StreamPlace, Failure> {
        match self.places.clone().try_acquire_owned() {
            Ok(permit) => {
                self.record();
                Ok(StreamPlace { permit: Some(permit), streams: self.clone() })
            }
            Err(_) => {
                let limit = u64::from(self.limit);
                Err(Failure::limit("open_streams", limit, limit.saturating_add(1)))
            }
        }
    }

    /// Waits until no stream is open.
    pub(crate) async fn idle(&self) {
        // The semaphore is never closed, so the only outcome is that every place is free.
        drop(self.places.acquire_many(self.limit).await);
    }

    fn record(&self) {
        let free = u64::try_from(self.places.available_permits()).unwrap_or(u64::MAX);
        self.metrics.set_streams_open(u64::from(self.limit).saturating_sub(free));
    }
}

/// One open stream's place; given back when dropped.
pub(crate) struct StreamPlace {
    permit: Option<OwnedSemaphorePermit>,
    streams: OpenStreams,
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.permit = None;
        self.streams.record();
    }
}

/// Why a stream is ended from outside.
enum Cut {
    Deadline,
    Draining,
}

/// The answer of a streaming call.
pub(crate) struct Replies {
    /// `None` once the stream has ended: the worker's stream and the place are given back at once.
    live: Option<Live>,
}

struct Live {
    events: Events,
    cut: Pin<Box<dyn Future<Output = Cut> + Send>>,
    call: Call,
    reply_bytes: u32,
    _place: StreamPlace,
}

impl Replies {
    /// A stream that lasts until `events` end, the deadline passes, or `phase` says that it is time.
    pub(crate) fn new(
        events: Events,
        kind: StreamKind,
        deadline: Option<Duration>,
        phase: watch::Receiver<Phase>,
        call: Call,
        reply_bytes: u32,
        place: StreamPlace,
    ) -> Self {
        let cut = Box::pin(cut(kind, deadline, phase));
        Self { live: Some(Live { events, cut, call, reply_bytes, _place: place }) }
    }
}

impl Stream for Replies {
    type Item = Result<v1::Event, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(live) = &mut self.live else {
            return Poll::Ready(None);
        };
        let status = {
            let span = live.call.span().clone();
            let _entered = span.enter();
            match live.cut.as_mut().poll(cx) {
                Poll::Ready(Cut::Deadline) => {
                    live.call.end_as("DEADLINE_EXCEEDED");
                    Some(Status::deadline_exceeded("the call's deadline passed; attach again to follow the turn"))
                }
                Poll::Ready(Cut::Draining) => {
                    let failure = draining();
                    live.call.end(Some(&failure));
                    Some(status::from_failure(failure))
                }
                Poll::Pending => match live.events.as_mut().poll_next(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Some(Ok(event))) => match edge::fit(live.reply_bytes, event) {
                        Ok(event) => return Poll::Ready(Some(Ok(event))),
                        Err(failure) => {
                            live.call.end(Some(&failure));
                            Some(status::from_failure(failure))
                        }
                    },
                    Poll::Ready(Some(Err(failure))) => {
                        live.call.end(Some(&failure));
                        Some(status::from_failure(failure))
                    }
                    Poll::Ready(None) => {
                        live.call.end(None);
                        None
                    }
                },
            }
        };
        self.live = None;
        Poll::Ready(status.map(Err))
    }
}

/// The failure of calls and streams that the runtime's shutdown ends.
pub(crate) fn draining() -> Failure {
    Failure::new(Reason::RuntimeDraining, "the runtime is shutting down; connect again later and attach")
}

async fn cut(kind: StreamKind, deadline: Option<Duration>, mut phase: watch::Receiver<Phase>) -> Cut {
    let last = match kind {
        StreamKind::OfTurn => Phase::Closing,
        StreamKind::Endless => Phase::Draining,
    };
    let stopped = async move {
        if phase.wait_for(|phase| *phase >= last).await.is_err() {
            // The gateway is gone without saying so: its routes live on without a shutdown of ours.
            std::future::pending::<()>().await;
        }
    };
    let expired = async {
        match deadline {
            Some(deadline) => tokio::time::sleep(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = stopped => Cut::Draining,
        () = expired => Cut::Deadline,
    }
}
