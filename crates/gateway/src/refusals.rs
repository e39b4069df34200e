//! A voice for what tonic refuses by itself: messages that are too large, bytes that are no message, unknown methods.
//!
//! In: tonic's answers. Out: the same refusals in the house's words, with a reason and details. tonic decides them before
//! any of our code runs and gives them no details, which is how they are told from ours. Deliberately not here: answers of
//! health and reflection, which are not ours to reword.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use holdfast_types::{Failure, FailureDetail, Reason};
use tonic::{Code, Status};

use crate::{edge, limits, status};

/// Lets a request through and rewords a refusal of tonic's.
pub(crate) async fn explain(request_bytes: u32, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let response = next.run(request).await;
    let Some(method) = path.strip_prefix('/').filter(|method| method.starts_with("holdfast.")) else {
        return response;
    };
    let refused = Status::from_header_map(response.headers()).filter(|status| status.details().is_empty());
    match refused.and_then(|status| reword(request_bytes, method, &status)) {
        Some(failure) => status::from_failure(failure).into_http(),
        None => response,
    }
}

fn reword(request_bytes: u32, method: &str, refused: &Status) -> Option<Failure> {
    match refused.code() {
        // A message whose announced length is beyond the limit; it was not read.
        Code::OutOfRange => {
            let size = first_number(refused.message()).unwrap_or_else(|| u64::from(request_bytes).saturating_add(1));
            Some(edge::too_large("request_bytes", request_bytes, size))
        }
        // Bytes that are no message of this method, or none at all.
        Code::Internal => {
            let problem = limits::clip(refused.message(), 200);
            Some(Failure::new(Reason::InvalidArgument, format!("the request cannot be read: {problem}")))
        }
        Code::Unimplemented if refused.message().is_empty() => {
            let method = limits::clip(method, 160).to_owned();
            let message = format!("there is no method {method} in this version");
            Some(
                Failure::new(Reason::MethodNotImplemented, message)
                    .with(FailureDetail::Metadata { key: "method".into(), value: method }),
            )
        }
        _ => None,
    }
}

fn first_number(text: &str) -> Option<u64> {
    text.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty())?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn refusals_are_reworded_and_others_left_alone() {
        let large =
            Status::out_of_range("Error, decoded message length too large: found 5000 bytes, the limit is: 4096 bytes");
        let failure = reword(4096, "holdfast.v1.X/Y", &large).unwrap();
        assert_eq!(failure.reason, Reason::MessageTooLarge);
        assert!(failure.details.contains(&FailureDetail::Limit {
            name: "request_bytes".into(),
            limit: 4096,
            requested: 5000
        }));
        let garbage = reword(1, "holdfast.v1.X/Y", &Status::internal("invalid tag value: 0")).unwrap();
        assert_eq!(garbage.reason, Reason::InvalidArgument);
        let unknown = reword(1, "holdfast.v1.X/Y", &Status::unimplemented("")).unwrap();
        assert_eq!(unknown.reason, Reason::MethodNotImplemented);
        assert!(reword(1, "holdfast.v1.X/Y", &Status::unimplemented("Content is compressed with `br`")).is_none());
        assert!(reword(1, "holdfast.v1.X/Y", &Status::ok("")).is_none());
    }
}
