//! What every call has in common: a caller, a span, a count, bounds on its answer, and one way to fail.
//!
//! In: a tonic request and the work to do with it. Out: tonic's response, or a status. Deliberately not here: what the work
//! is (`services`).

use std::future::Future;
use std::sync::Arc;

use holdfast_telemetry::Metrics;
use holdfast_types::{Failure, FailureDetail, Limits, Reason};
use holdfast_worker_api::{Caller, Worker};
use prost::Message;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use crate::stream::{self, Events, OpenStreams, Replies, StreamKind};
use crate::telemetry::Call;
use crate::{deadline, identity, status};

/// How far shutdown has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Everything is served.
    Serving,
    /// No new stream; those of turns may go on.
    Draining,
    /// Every stream ends now.
    Closing,
}

/// Shared by all services; lives as long as the routes.
pub(crate) struct Edge {
    pub(crate) worker: Arc<dyn Worker>,
    pub(crate) limits: Limits,
    /// Version and revision of the runtime, for the revisions of models.
    pub(crate) build: String,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) streams: OpenStreams,
    pub(crate) phase: watch::Receiver<Phase>,
}

impl Edge {
    /// Does a call with one answer.
    pub(crate) async fn unary<Q, R, F>(
        &self,
        method: &'static str,
        request: Request<Q>,
        work: impl FnOnce(Caller, Q) -> F,
    ) -> Result<Response<R>, Status>
    where
        R: Message,
        F: Future<Output = Result<R, Failure>>,
    {
        let (metadata, _, message) = request.into_parts();
        let mut caller = identity::caller(&metadata);
        let mut call = Call::begin(method, &mut caller, self.metrics.clone());
        let span = call.span().clone();
        // Parsing happens inside of `work`, so it is inside of the span as well.
        let answer = async { work(caller, message).await.and_then(|reply| fit(self.limits.reply_bytes, reply)) };
        let answer = answer.instrument(span).await;
        call.end(answer.as_ref().err());
        answer.map(Response::new).map_err(status::from_failure)
    }

    /// Does a call whose answer is a stream.
    pub(crate) async fn stream<Q, F>(
        &self,
        method: &'static str,
        kind: StreamKind,
        request: Request<Q>,
        work: impl FnOnce(Caller, Q) -> F,
    ) -> Result<Response<Replies>, Status>
    where
        F: Future<Output = Result<Events, Failure>>,
    {
        let (metadata, _, message) = request.into_parts();
        let mut caller = identity::caller(&metadata);
        let mut call = Call::begin(method, &mut caller, self.metrics.clone());
        let span = call.span().clone();
        let opened = async {
            if self.is_draining() {
                return Err(stream::draining());
            }
            let place = self.streams.open()?;
            Ok((work(caller, message).await?, place))
        };
        match opened.instrument(span).await {
            Ok((events, place)) => Ok(Response::new(Replies::new(
                events,
                kind,
                deadline::of(&metadata),
                self.phase.clone(),
                call,
                self.limits.reply_bytes,
                place,
            ))),
            Err(failure) => {
                call.end(Some(&failure));
                Err(status::from_failure(failure))
            }
        }
    }

    /// Whether shutdown has begun.
    pub(crate) fn is_draining(&self) -> bool {
        *self.phase.borrow() >= Phase::Draining
    }
}

/// A message that may be sent, or MESSAGE_TOO_LARGE.
pub(crate) fn fit<M: Message>(reply_bytes: u32, message: M) -> Result<M, Failure> {
    let size = u64::try_from(message.encoded_len()).unwrap_or(u64::MAX);
    if size <= u64::from(reply_bytes) { Ok(message) } else { Err(too_large("reply_bytes", reply_bytes, size)) }
}

/// A message beyond the limit of that name.
pub(crate) fn too_large(limit_name: &str, limit: u32, size: u64) -> Failure {
    let message =
        format!("a message of {size} bytes is larger than {limit_name} = {limit}; send or ask for less at once");
    let detail = FailureDetail::Limit { name: limit_name.to_owned(), limit: u64::from(limit), requested: size };
    Failure::new(Reason::MessageTooLarge, message).with(detail)
}
