//! The connection that every service client speaks through, and what a call hears when it ends.
//!
//! In: calls. Out: their answers. A call whose connection ends before the answer or in the midst of it fails with `UNAVAILABLE`, as gRPC
//! has it (`doc/statuscodes.md` of the gRPC project), whatever the layers below made of it: they call the same end INTERNAL where the
//! runtime said goodbye first (GOAWAY, RFC 9113, 6.8), CANCELLED where the request was still waiting, and UNKNOWN where the
//! socket broke. Deliberately not here: repeating. The runtime may have taken the call, so only a request with a `request_id`, or one that
//! only reads, can be said again blindly.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body_util::BodyExt;
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower_service::Service;

/// A connection to a runtime, made again by itself after it ended; cheap to clone.
#[derive(Debug, Clone)]
pub struct Connection {
    channel: Channel,
}

impl Connection {
    pub(crate) fn new(channel: Channel) -> Self {
        Self { channel }
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.channel.poll_ready(context).map_err(|error| told(Status::from_error(Box::new(error))))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.channel.call(request);
        Box::pin(async move {
            match answer.await {
                Ok(answer) => Ok(answer.map(|body| Body::new(body.map_err(told)))),
                Err(error) => Err(told(Status::from_error(Box::new(error)))),
            }
        })
    }
}

/// What the caller hears of a failure.
fn told(status: Status) -> Status {
    let Some(end) = end_of_connection(&status).filter(|_| status.code() != Code::Unavailable) else { return status };
    let mut told = Status::unavailable(format!("the connection to the runtime ended: {end}"));
    told.set_source(std::sync::Arc::new(status));
    told
}

/// The one among a failure's causes that says that the connection ended.
fn end_of_connection(status: &Status) -> Option<&(dyn Error + 'static)> {
    let mut cause = status.source();
    while let Some(error) = cause {
        if is_end_of_connection(error) {
            return Some(error);
        }
        cause = error.source();
    }
    None
}

/// Whether the connection ended, by a word or without one. A reset of one call and a breach of the protocol are something else.
fn is_end_of_connection(cause: &(dyn Error + 'static)) -> bool {
    if let Some(error) = cause.downcast_ref::<h2::Error>() {
        return error.is_io() || error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
    }
    let before_the_call = |error: &hyper::Error| error.is_canceled() || error.is_closed();
    cause.is::<std::io::Error>() || cause.downcast_ref::<hyper::Error>().is_some_and(before_the_call)
}
