//! The one closed list of reasons why a request or a turn fails, and the record of a failure.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The kind of a reason: one of gRPC's status codes, without knowing gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReasonKind {
    /// The request is wrong by itself.
    InvalidArgument,
    /// What it names is not there.
    NotFound,
    /// What it makes is there.
    AlreadyExists,
    /// The state does not allow it.
    FailedPrecondition,
    /// A race was lost; read again and retry.
    Aborted,
    /// A position is outside of what exists.
    OutOfRange,
    /// A limit was hit.
    ResourceExhausted,
    /// Known, not built yet.
    Unimplemented,
    /// Try again later.
    Unavailable,
    /// Stored bytes are damaged.
    DataLoss,
    /// Our fault.
    Internal,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $kind:ident, $retry:literal;)*) => {
        /// Why something failed. `ErrorInfo.reason` on the wire.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Reason {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
        }

        impl Reason {
            /// Every reason, in the order of the list.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// The UPPER_SNAKE word.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The status code's kind.
            pub fn kind(self) -> ReasonKind {
                match self { $(Self::$name => ReasonKind::$kind,)* }
            }

            /// Whether the same request may succeed later without any change.
            pub fn is_retryable(self) -> bool {
                match self { $(Self::$name => $retry,)* }
            }
        }
    };
}

reasons! {
    /// No session of that name for this tenant.
    SessionNotFound = "SESSION_NOT_FOUND", NotFound, false;
    /// The session id is taken.
    SessionExists = "SESSION_EXISTS", AlreadyExists, false;
    /// Model, instructions, tools, template, retention and sharing are fixed at the first turn.
    SessionConfigFrozen = "SESSION_CONFIG_FROZEN", FailedPrecondition, false;
    /// A turn is in progress and `on_busy` is REJECT.
    SessionBusy = "SESSION_BUSY", Aborted, true;
    /// The session was deleted while the request or its turn was in progress.
    SessionDeleted = "SESSION_DELETED", NotFound, false;
    /// The etag is not the session's.
    EtagMismatch = "ETAG_MISMATCH", Aborted, false;
    /// No turn of that number.
    TurnNotFound = "TURN_NOT_FOUND", NotFound, false;
    /// The turn has ended.
    TurnNotRunning = "TURN_NOT_RUNNING", FailedPrecondition, false;
    /// `expected_last_turn` is not the session's last turn.
    TurnMismatch = "TURN_MISMATCH", Aborted, false;
    /// Tool calls wait for results.
    PendingToolCalls = "PENDING_TOOL_CALLS", FailedPrecondition, false;
    /// The turn waits for no tool result.
    NoPendingToolCalls = "NO_PENDING_TOOL_CALLS", FailedPrecondition, false;
    /// The call id is none that waits.
    UnknownCallId = "UNKNOWN_CALL_ID", InvalidArgument, false;
    /// The call id is in use or was answered already.
    DuplicateCallId = "DUPLICATE_CALL_ID", InvalidArgument, false;
    /// A turn needs at least one item, or `continue`.
    EmptyTurn = "EMPTY_TURN", InvalidArgument, false;
    /// The request id was used with another body.
    RequestIdReused = "REQUEST_ID_REUSED", AlreadyExists, false;
    /// The context cannot hold the new items.
    ContextOverflow = "CONTEXT_OVERFLOW", FailedPrecondition, false;
    /// A field's value is wrong.
    InvalidArgument = "INVALID_ARGUMENT", InvalidArgument, false;
    /// A resource name or id is malformed.
    InvalidName = "INVALID_NAME", InvalidArgument, false;
    /// The page token is not ours.
    InvalidPageToken = "INVALID_PAGE_TOKEN", InvalidArgument, false;
    /// The list filter cannot be read.
    InvalidFilter = "INVALID_FILTER", InvalidArgument, false;
    /// A sampling value is out of range.
    InvalidSampling = "INVALID_SAMPLING", InvalidArgument, false;
    /// A tool's definition or a tool choice is wrong.
    InvalidTool = "INVALID_TOOL", InvalidArgument, false;
    /// The field is known and not built yet.
    FieldNotImplemented = "FIELD_NOT_IMPLEMENTED", Unimplemented, false;
    /// The method is known and not built yet.
    MethodNotImplemented = "METHOD_NOT_IMPLEMENTED", Unimplemented, false;
    /// A named limit was hit; the failure names it.
    LimitExceeded = "LIMIT_EXCEEDED", ResourceExhausted, false;
    /// The message is larger than `request_bytes`.
    MessageTooLarge = "MESSAGE_TOO_LARGE", ResourceExhausted, false;
    /// No served model of that name.
    ModelNotFound = "MODEL_NOT_FOUND", NotFound, false;
    /// The weights, tokenizer or template that the session is pinned to are not served.
    ModelRevisionUnavailable = "MODEL_REVISION_UNAVAILABLE", FailedPrecondition, false;
    /// The numerics class differs and the session requires the same.
    NumericsClassChanged = "NUMERICS_CLASS_CHANGED", FailedPrecondition, false;
    /// The model's template cannot express the items.
    TemplateRejectedItems = "TEMPLATE_REJECTED_ITEMS", InvalidArgument, false;
    /// `from_sequence` is beyond the session's events.
    SequenceOutOfRange = "SEQUENCE_OUT_OF_RANGE", OutOfRange, false;
    /// Too many turns wait.
    QueueFull = "QUEUE_FULL", ResourceExhausted, true;
    /// The runtime is shutting down.
    RuntimeDraining = "RUNTIME_DRAINING", Unavailable, true;
    /// The device went away.
    DeviceLost = "DEVICE_LOST", Unavailable, true;
    /// The device failed a step.
    DeviceFault = "DEVICE_FAULT", Internal, false;
    /// The device has no room for the context.
    OutOfMemory = "OUT_OF_MEMORY", ResourceExhausted, false;
    /// The journal cannot be written or read.
    JournalUnavailable = "JOURNAL_UNAVAILABLE", Unavailable, true;
    /// Stored entries fail their checks.
    JournalCorrupt = "JOURNAL_CORRUPT", DataLoss, false;
    /// Another process owns the data directory.
    DataDirInUse = "DATA_DIR_IN_USE", FailedPrecondition, false;
    /// The data directory was written by a newer version.
    SchemaTooNew = "SCHEMA_TOO_NEW", FailedPrecondition, false;
    /// A setting is unknown or its value is wrong.
    InvalidSetting = "INVALID_SETTING", InvalidArgument, false;
    /// A model's files cannot be used.
    InvalidModel = "INVALID_MODEL", InvalidArgument, false;
    /// A defect of ours.
    Internal = "INTERNAL", Internal, false;
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A fact about a failure that a program can act on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureDetail {
    /// A field of the request is wrong.
    Field {
        /// Path in the request, in the proto's names.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A limit was hit.
    Limit {
        /// Its name in [`crate::Limits`].
        name: String,
        /// Its value.
        limit: u64,
        /// What was asked for.
        requested: u64,
    },
    /// A resource is missing, there already, or in the wrong state.
    Resource {
        /// Its full name.
        name: String,
    },
    /// Tool calls that wait.
    PendingCalls {
        /// Their ids.
        call_ids: Vec<String>,
    },
    /// When to try again.
    RetryAfter {
        /// Milliseconds from now.
        ms: u64,
    },
    /// Anything else, as a pair for `ErrorInfo.metadata`.
    Metadata {
        /// lowerCamelCase key.
        key: String,
        /// Value.
        value: String,
    },
}

/// What went wrong, why, and what to do about it. Carried from where it is known to the gateway, where it becomes a
/// status; kept in the journal when a turn ended by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Failure {
    /// From the closed list.
    pub reason: Reason,
    /// One sentence for a person, with the values that matter and the next step.
    pub message: String,
    /// Facts for a program.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<FailureDetail>,
}

impl Failure {
    /// A failure without details.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), details: Vec::new() }
    }

    /// With one more detail.
    #[must_use]
    pub fn with(mut self, detail: FailureDetail) -> Self {
        self.details.push(detail);
        self
    }

    /// A wrong field.
    pub fn field(reason: Reason, path: impl Into<String>, problem: impl Into<String>) -> Self {
        let (path, problem) = (path.into(), problem.into());
        Self::new(reason, format!("{path}: {problem}")).with(FailureDetail::Field { path, problem })
    }

    /// A limit that was hit.
    pub fn limit(name: &str, limit: u64, requested: u64) -> Self {
        Self::new(
            Reason::LimitExceeded,
            format!("the limit {name} is {limit}, the request needs {requested}; raise limits.{name} or ask for less"),
        )
        .with(FailureDetail::Limit { name: name.to_owned(), limit, requested })
    }

    /// A missing or conflicting resource.
    pub fn resource(reason: Reason, name: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(reason, message).with(FailureDetail::Resource { name: name.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_distinct_upper_snake_words_of_bounded_length() {
        let mut seen = std::collections::BTreeSet::new();
        for reason in Reason::ALL {
            let word = reason.as_str();
            assert!(word.len() <= 63, "{word}");
            assert!(word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'), "{word}");
            assert!(seen.insert(word), "{word} twice");
        }
    }
}
