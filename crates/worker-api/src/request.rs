//! Requests. Names and numbers are parsed, texts are bounded by the gateway; what depends on a session's state is the
//! worker's to check.

use std::collections::BTreeMap;

use holdfast_types::{
    Constraint, Item, OnBusy, OnDisconnect, Principal, SamplingOverrides, SessionConfig, SessionId, SessionState,
    TenantId, TimeUs, ToolChoice, TurnNumber, UnresolvedCalls,
};

/// Who asks, from the credential and the request's metadata.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Caller {
    /// Whose sessions.
    pub tenant: TenantId,
    /// Who.
    pub principal: Principal,
    /// W3C trace context; empty for none.
    pub traceparent: String,
}

/// Makes a session.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CreateSession {
    /// The client's id; `None` has one drawn.
    pub session: Option<SessionId>,
    /// What it is fixed to.
    pub config: SessionConfig,
    /// First items, possibly a conversation from elsewhere.
    pub items: Vec<Item>,
    /// Labels, expiry.
    pub patch: SessionPatch,
    /// For idempotency.
    pub request_id: Option<String>,
}

/// What may change at any time; `None` leaves it as it is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SessionPatch {
    /// For people.
    pub display_name: Option<String>,
    /// All labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// Absolute time of expiry; `Some(None)` removes it.
    pub expire_time_us: Option<Option<TimeUs>>,
    /// Expiry this many seconds from now.
    pub ttl_s: Option<u64>,
    /// Deleted after this many idle seconds; `Some(None)` removes it.
    pub idle_timeout_s: Option<Option<u64>>,
}

/// Changes a session.
#[derive(Debug, Clone, PartialEq)]
pub struct UpdateSession {
    /// Which.
    pub session: SessionId,
    /// Must match if set.
    pub etag: Option<String>,
    /// What may change at any time.
    pub patch: SessionPatch,
    /// A new configuration, refused with SESSION_CONFIG_FROZEN after the first turn. Applied field by field by the gateway's
    /// mask: the worker calls it with the current one.
    pub config: Option<ConfigPatch>,
}

/// Field by field changes of a configuration.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ConfigPatch {
    /// Names of the changed fields, as in the proto.
    pub fields: Vec<String>,
    /// Where their values are.
    pub values: SessionConfig,
}

/// Lists sessions.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ListSessions {
    /// At most this many; 0 is the default of 100.
    pub page_size: u32,
    /// Where the last page ended.
    pub page_token: String,
    /// Any of these states; empty is all.
    pub states: Vec<SessionState>,
    /// Each of these labels.
    pub labels: Vec<(String, String)>,
    /// This model.
    pub model: Option<String>,
}

/// Starts a turn.
#[derive(Debug, Clone, PartialEq)]
pub struct StartTurn {
    /// Where.
    pub session: SessionId,
    /// New items.
    pub input: Vec<Item>,
    /// The request's layer of sampling settings.
    pub sampling: SamplingOverrides,
    /// Which tools may be called; `None` is all of the session's.
    pub allowed_tools: Option<Vec<String>>,
    /// Whether a tool must be called.
    pub tool_choice: ToolChoice,
    /// At most one call in each generation.
    pub single_call: bool,
    /// The form that the answer is held to.
    pub constraint: Option<Constraint>,
    /// What to do if a turn is in progress.
    pub on_busy: OnBusy,
    /// What to do when the stream is dropped.
    pub on_disconnect: OnDisconnect,
    /// What to do with unanswered calls.
    pub unresolved_calls: UnresolvedCalls,
    /// Leave behind what ended early.
    pub discard_partial: bool,
    /// Extend what ended early.
    pub continue_last: bool,
    /// Work ends this many milliseconds after acceptance.
    pub turn_deadline_ms: Option<u64>,
    /// Must be the session's last turn if set (0: none yet).
    pub expected_last_turn: Option<TurnNumber>,
    /// For idempotency.
    pub request_id: Option<String>,
}

impl StartTurn {
    /// A turn with this input and defaults for the rest.
    pub fn new(session: SessionId, input: Vec<Item>) -> Self {
        Self {
            session,
            input,
            sampling: SamplingOverrides::default(),
            allowed_tools: None,
            tool_choice: ToolChoice::default(),
            single_call: false,
            constraint: None,
            on_busy: OnBusy::default(),
            on_disconnect: OnDisconnect::default(),
            unresolved_calls: UnresolvedCalls::default(),
            discard_partial: false,
            continue_last: false,
            turn_deadline_ms: None,
            expected_last_turn: None,
            request_id: None,
        }
    }
}

/// Answers waiting calls.
#[derive(Debug, Clone, PartialEq)]
pub struct SubmitToolResults {
    /// Where.
    pub session: SessionId,
    /// The turn that waits; `None` is the session's last.
    pub turn: Option<TurnNumber>,
    /// Tool results, each for a waiting call.
    pub results: Vec<Item>,
    /// For idempotency.
    pub request_id: Option<String>,
}

/// Ends a turn early.
#[derive(Debug, Clone, PartialEq)]
pub struct CancelTurn {
    /// Where.
    pub session: SessionId,
    /// Which; `None` is the session's last.
    pub turn: Option<TurnNumber>,
}

/// Lists turns.
#[derive(Debug, Clone, PartialEq)]
pub struct ListTurns {
    /// Where.
    pub session: SessionId,
    /// At most this many; 0 is the default of 100.
    pub page_size: u32,
    /// Where the last page ended.
    pub page_token: String,
}

/// Lists items.
#[derive(Debug, Clone, PartialEq)]
pub struct ListItems {
    /// Where.
    pub session: SessionId,
    /// At most this many; 0 is the default of 100.
    pub page_size: u32,
    /// Where the last page ended.
    pub page_token: String,
    /// Latest first.
    pub descending: bool,
}

/// Adds items without a turn.
#[derive(Debug, Clone, PartialEq)]
pub struct AppendItems {
    /// Where.
    pub session: SessionId,
    /// The items.
    pub items: Vec<Item>,
    /// Compute their KV now.
    pub prefill: bool,
    /// For idempotency.
    pub request_id: Option<String>,
}

/// The stateless baseline.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Generate {
    /// Model, instructions, tools, sampling.
    pub config: SessionConfig,
    /// The full history, assistant and tool items included.
    pub items: Vec<Item>,
    /// Which tools may be called; `None` is all.
    pub allowed_tools: Option<Vec<String>>,
    /// Whether a tool must be called.
    pub tool_choice: ToolChoice,
    /// At most one call.
    pub single_call: bool,
    /// The form that the answer is held to.
    pub constraint: Option<Constraint>,
    /// Work ends this many milliseconds after acceptance.
    pub deadline_ms: Option<u64>,
}

/// Counts tokens of items as a new conversation, or as they would be appended to a session.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CountTokens {
    /// Append to this session instead of starting anew.
    pub session: Option<SessionId>,
    /// Model, instructions and tools of a new conversation.
    pub config: SessionConfig,
    /// The items.
    pub items: Vec<Item>,
}
