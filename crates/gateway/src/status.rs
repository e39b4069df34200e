//! The one place where a failure becomes a status.
//!
//! In: a [`Failure`]. Out: a `google.rpc.Status` with the details that error.proto promises, and the same facts as a turn's
//! error. Every text that goes out is clipped, because a status travels in HTTP/2 trailers and clients bound those (8 KiB
//! in gRPC's C core). Deliberately not here: why something failed.

use std::collections::HashMap;
use std::time::Duration;

use holdfast_contracts::v1;
use holdfast_types::{Failure, FailureDetail, Reason, ReasonKind};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::limits::clip;

/// `ErrorInfo.domain`, as error.proto says it.
pub(crate) const DOMAIN: &str = "holdfast";

/// When to try again if the failure does not say: long enough for a step, a drain or a full disk to be noticed.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Bounds of what goes into trailers: together below 4 KiB before base64.
const MESSAGE_BYTES: usize = 768;
const TEXT_BYTES: usize = 192;
const CALL_IDS_BYTES: usize = 512;
const ENTRIES: usize = 6;

/// The status code of a kind of reason.
pub(crate) fn code(kind: ReasonKind) -> Code {
    match kind {
        ReasonKind::InvalidArgument => Code::InvalidArgument,
        ReasonKind::NotFound => Code::NotFound,
        ReasonKind::AlreadyExists => Code::AlreadyExists,
        ReasonKind::FailedPrecondition => Code::FailedPrecondition,
        ReasonKind::Aborted => Code::Aborted,
        ReasonKind::OutOfRange => Code::OutOfRange,
        ReasonKind::ResourceExhausted => Code::ResourceExhausted,
        ReasonKind::Unimplemented => Code::Unimplemented,
        ReasonKind::Unavailable => Code::Unavailable,
        ReasonKind::DataLoss => Code::DataLoss,
        ReasonKind::Internal => Code::Internal,
    }
}

/// The status of a failure.
pub(crate) fn from_failure(failure: Failure) -> Status {
    let failure = hide_internals(failure);
    let reason = failure.reason;
    let message = shorten(&failure.message, MESSAGE_BYTES);
    let mut details = ErrorDetails::with_error_info(reason.as_str(), DOMAIN, metadata(&failure));
    let mut subject = String::new();
    let mut retry_delay = reason.is_retryable().then_some(RETRY_DELAY);
    for detail in failure.details.iter().take(ENTRIES) {
        match detail {
            FailureDetail::Field { path, problem } => {
                details.add_bad_request_violation(shorten(path, TEXT_BYTES), shorten(problem, TEXT_BYTES));
            }
            FailureDetail::Limit { name, limit, requested } => {
                details.add_quota_failure_violation(
                    format!("limits.{}", shorten(name, TEXT_BYTES)),
                    format!("the limit is {limit}, the request needs {requested}"),
                );
            }
            FailureDetail::Resource { name } => {
                subject = shorten(name, TEXT_BYTES);
                details.set_resource_info(resource_type(name), subject.clone(), "", message.clone());
            }
            FailureDetail::RetryAfter { ms } => retry_delay = Some(Duration::from_millis(*ms)),
            FailureDetail::PendingCalls { .. } | FailureDetail::Metadata { .. } => {}
        }
    }
    if reason.kind() == ReasonKind::FailedPrecondition {
        details.add_precondition_failure_violation(reason.as_str(), subject, shorten(&failure.message, TEXT_BYTES));
    }
    if let Some(delay) = retry_delay {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code(reason.kind()), message, details)
}

/// A turn's error, from the failure that ended it.
pub(crate) fn turn_error(failure: &Failure) -> v1::TurnError {
    v1::TurnError {
        code: code(failure.reason.kind()) as i32,
        reason: error_reason(failure.reason) as i32,
        message: failure.message.clone(),
        metadata: metadata(failure),
    }
}

/// The value of a reason in error.proto.
pub(crate) fn error_reason(reason: Reason) -> v1::ErrorReason {
    let name = format!("ERROR_REASON_{}", reason.as_str());
    v1::ErrorReason::from_str_name(&name).unwrap_or(v1::ErrorReason::Unspecified)
}

/// `ErrorInfo.metadata`: every fact of the failure, under lowerCamelCase keys.
fn metadata(failure: &Failure) -> HashMap<String, String> {
    let mut facts = HashMap::new();
    for detail in failure.details.iter().take(ENTRIES) {
        match detail {
            FailureDetail::Field { path, .. } => {
                facts.insert("field".to_owned(), shorten(path, TEXT_BYTES));
            }
            FailureDetail::Limit { name, limit, requested } => {
                facts.insert("limitName".to_owned(), shorten(name, TEXT_BYTES));
                facts.insert("limit".to_owned(), limit.to_string());
                facts.insert("requested".to_owned(), requested.to_string());
            }
            FailureDetail::Resource { name } => {
                facts.insert("resource".to_owned(), shorten(name, TEXT_BYTES));
            }
            FailureDetail::PendingCalls { call_ids } => {
                facts.insert("callIds".to_owned(), shorten(&call_ids.join(","), CALL_IDS_BYTES));
                facts.insert("callCount".to_owned(), call_ids.len().to_string());
            }
            FailureDetail::RetryAfter { ms } => {
                facts.insert("retryAfterMs".to_owned(), ms.to_string());
            }
            FailureDetail::Metadata { key, value } => {
                facts.insert(shorten(key, 64), shorten(value, TEXT_BYTES));
            }
        }
    }
    facts
}

/// A defect of ours tells the client an id, and the log what happened.
fn hide_internals(failure: Failure) -> Failure {
    if failure.reason != Reason::Internal {
        return failure;
    }
    let id = uuid::Uuid::now_v7().to_string();
    tracing::error!(error.id = %id, error.details = ?failure.details, "internal error: {}", failure.message);
    Failure::new(Reason::Internal, format!("internal error {id}; the log tells more under this id"))
        .with(FailureDetail::Metadata { key: "errorId".into(), value: id })
}

/// `ResourceInfo.resource_type`, read off the name.
fn resource_type(name: &str) -> &'static str {
    if name.starts_with("models/") {
        "holdfast.v1.Model"
    } else if name.contains("/turns/") {
        "holdfast.v1.Turn"
    } else if name.contains("/items/") {
        "holdfast.v1.Item"
    } else {
        "holdfast.v1.Session"
    }
}

fn shorten(text: &str, bytes: usize) -> String {
    if text.len() <= bytes { text.to_owned() } else { format!("{}…", clip(text, bytes)) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_reason_has_a_code_an_error_info_and_a_value_in_the_contract() {
        for &reason in Reason::ALL {
            let status = from_failure(Failure::new(reason, "because"));
            assert_eq!(status.code(), code(reason.kind()), "{reason}");
            assert_ne!(status.code(), Code::Unknown);
            let info = status.get_details_error_info().unwrap();
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason.as_str(), DOMAIN));
            assert_ne!(error_reason(reason), v1::ErrorReason::Unspecified, "{reason}");
            assert_eq!(status.get_details_retry_info().is_some(), reason.is_retryable(), "{reason}");
            let precondition = reason.kind() == ReasonKind::FailedPrecondition;
            assert_eq!(status.get_details_precondition_failure().is_some(), precondition, "{reason}");
            if reason != Reason::Internal {
                assert_eq!(status.message(), "because");
            }
        }
    }

    #[test]
    fn details_say_field_limit_resource_calls_and_delay() {
        let failure = Failure::new(Reason::PendingToolCalls, "two calls wait")
            .with(FailureDetail::Field { path: "input[0].message".into(), problem: "is a user message".into() })
            .with(FailureDetail::Limit { name: "calls_per_turn".into(), limit: 1, requested: 2 })
            .with(FailureDetail::Resource { name: "sessions/session-1/turns/3".into() })
            .with(FailureDetail::PendingCalls { call_ids: vec!["a".into(), "b".into()] })
            .with(FailureDetail::RetryAfter { ms: 2500 })
            .with(FailureDetail::Metadata { key: "lastTurn".into(), value: "3".into() });
        let status = from_failure(failure);
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "input[0].message");
        assert_eq!(details.quota_failure().unwrap().violations[0].subject, "limits.calls_per_turn");
        let resource = details.resource_info().unwrap();
        assert_eq!(resource.resource_type, "holdfast.v1.Turn");
        assert_eq!(resource.resource_name, "sessions/session-1/turns/3");
        let precondition = &details.precondition_failure().unwrap().violations[0];
        assert_eq!(precondition.subject, "sessions/session-1/turns/3");
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_millis(2500)));
        let facts = &details.error_info().unwrap().metadata;
        assert_eq!(facts["callIds"], "a,b");
        assert_eq!(facts["lastTurn"], "3");
        assert_eq!(facts["limitName"], "calls_per_turn");
    }

    #[test]
    fn a_defect_of_ours_tells_only_an_id() {
        let status = from_failure(Failure::new(Reason::Internal, "the secret cause"));
        assert!(!status.message().contains("secret"));
        let info = status.get_details_error_info().unwrap();
        assert!(status.message().contains(&info.metadata["errorId"]));
    }

    #[test]
    fn a_status_fits_into_trailers_however_long_its_words_are() {
        let long = "ä".repeat(100_000);
        let mut failure = Failure::field(Reason::PendingToolCalls, long.clone(), long.clone());
        for _ in 0..50 {
            failure = failure
                .with(FailureDetail::Resource { name: long.clone() })
                .with(FailureDetail::PendingCalls { call_ids: vec![long.clone(); 128] })
                .with(FailureDetail::Metadata { key: long.clone(), value: long.clone() });
        }
        let status = from_failure(failure);
        // Percent-encoding triples the message, base64 adds a third to the details.
        let bytes = status.message().len() * 3 + status.details().len() * 4 / 3;
        assert!(bytes < 8 * 1024, "{bytes}");
    }
}
