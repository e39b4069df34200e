//! Journal format 1: what an entry says. Field names are the format; see `docs/journal-format.md`.
//!
//! Every state of a session is a fold over its entries in order. A body is written as JSON, `{"kind": {fields}}`; unknown bodies
//! and newer formats are refused by the reader, unknown fields at any depth are refused too: a field that may be ignored does
//! not belong here. Writing, reading and checking of bodies is in `chain`.

use std::collections::BTreeMap;

use holdfast_types::{
    Constraint, Digest, Failure, GenerationSettings, Item, ModelRevision, NumberedItem, NumericsClass, OnDisconnect,
    Principal, SessionConfig, SessionId, StopReason, TenantId, TimeUs, TokenRun, ToolChoice, TurnNumber, TurnState,
    UnresolvedCalls, Usage,
};
use serde::{Deserialize, Serialize};

/// Version of the format that this build writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

/// Position in the journal, over all sessions; rising, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lsn(pub u64);

/// An entry as a worker hands it over.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEntry {
    /// Whose session.
    pub tenant: TenantId,
    /// Which session.
    pub session: SessionId,
    /// When, as the worker's clock had it.
    pub time_us: TimeUs,
    /// Who asked.
    pub principal: Principal,
    /// W3C trace context of the request; empty for none.
    pub traceparent: String,
    /// What happened.
    pub body: Body,
}

/// An entry as the journal keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its place in the journal.
    pub lsn: Lsn,
    /// Its place in the session's log, from 0 without gaps; the same in every session that shares its segment.
    pub index: u64,
    /// BLAKE3 over the previous entry of the session's log and this entry's stored bytes.
    pub hash: Digest,
    /// Hash of the previous entry; all zero for the first.
    pub previous: Digest,
    /// Id of the key that the body is encrypted with; 0 is none.
    pub key_id: u32,
    /// What was handed over.
    pub entry: NewEntry,
}

/// What happened. The closed list of format 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Body {
    /// The session begins.
    SessionCreated {
        /// What it is fixed to at its first turn.
        #[serde(with = "crate::bias::config")]
        config: Box<SessionConfig>,
        /// The revision that it is pinned to.
        revision: Box<ModelRevision>,
        /// What may change at any time.
        mutable: SessionMutable,
        /// For idempotency.
        request: Option<RequestMark>,
        /// The date that templates see as today, `YYYY-MM-DD`.
        pinned_date: String,
    },
    /// Labels, expiry or (before the first turn) the configuration changed; carries the new whole.
    SessionUpdated {
        /// The new configuration, if it changed.
        #[serde(default, with = "crate::bias::optional_config")]
        config: Option<Box<SessionConfig>>,
        /// What may change at any time, whole.
        mutable: SessionMutable,
        /// The new pinned revision, if the model changed.
        revision: Option<Box<ModelRevision>>,
    },
    /// The session is gone for clients; its bytes follow.
    SessionDeleted {},
    /// Items entered the log: initial ones, appended ones, a turn's input, or tool results in call order.
    ItemsAppended {
        /// The turn that brought them; `None` outside of a turn.
        turn: Option<TurnNumber>,
        /// The items at their places.
        items: Vec<NumberedItem>,
        /// The tokens they became: closing tokens of what ended early before them, then rendered ones.
        runs: Vec<TokenRun>,
        /// For idempotency of `AppendItems`.
        request: Option<RequestMark>,
    },
    /// A turn was accepted.
    TurnAccepted {
        /// Its number.
        turn: TurnNumber,
        /// Everything that decides what it does.
        request: Box<TurnRequest>,
    },
    /// A turn left the queue. Its input follows as `ItemsAppended` in the same batch.
    TurnStarted {
        /// Which turn.
        turn: TurnNumber,
    },
    /// Tokens were sampled.
    Sampled {
        /// Which turn.
        turn: TurnNumber,
        /// Generation of the turn, from 0.
        generation: u32,
        /// The tokens; origin `sampled`.
        run: TokenRun,
    },
    /// A generation ended. In the batch of its last `Sampled`.
    GenerationEnded {
        /// Which turn.
        turn: TurnNumber,
        /// Generation of the turn, from 0.
        generation: u32,
        /// Why sampling stopped.
        stop_reason: StopReason,
        /// What it used.
        usage: Box<Usage>,
    },
    /// Results for waiting calls arrived; they enter the log (as `ItemsAppended`) once all are there.
    ToolResults {
        /// The turn that waits.
        turn: TurnNumber,
        /// The results.
        results: Vec<Item>,
        /// For idempotency.
        request: Option<RequestMark>,
    },
    /// The turn had its end: the one terminal event.
    TurnEnded {
        /// Which turn.
        turn: TurnNumber,
        /// A terminal state.
        state: TurnState,
        /// Why, unless it failed.
        stop_reason: Option<StopReason>,
        /// Why it failed.
        failure: Option<Failure>,
    },
    /// Tokens are left behind: the log is cut at `keep_until` and goes on with `replacement`. The only way to do so.
    Rebase {
        /// Tokens that stay.
        keep_until: u32,
        /// Items with a number above this are left behind too.
        keep_items: u32,
        /// Tokens that follow.
        replacement: Vec<TokenRun>,
        /// Why: `discard_partial`, `config_changed`, `drop_reasoning`; reserved: `stop_string`.
        cause: String,
    },
    /// The numerics class changed: tokens stay, KV is computed anew.
    NumericsChanged {
        /// Before.
        from: NumericsClass,
        /// From now on.
        to: NumericsClass,
    },
}

/// What may change at any time in a session's life.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionMutable {
    /// For people; empty for none.
    pub display_name: String,
    /// The client's own pairs.
    pub labels: BTreeMap<String, String>,
    /// When it is deleted by itself.
    pub expire_time_us: Option<TimeUs>,
    /// It is deleted after this long without a turn, seconds.
    pub idle_timeout_s: Option<u64>,
}

/// What makes a retry recognisable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestMark {
    /// The client's request id.
    pub id: String,
    /// BLAKE3 of the request's meaning: the same id with another digest is refused.
    pub digest: Digest,
}

/// Everything that decides what a turn does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TurnRequest {
    /// For idempotency.
    pub request: Option<RequestMark>,
    /// New items; empty only with `continue_last`.
    pub input: Vec<Item>,
    /// Extend what ended early instead of adding items.
    pub continue_last: bool,
    /// Leave what ended early behind before this turn.
    pub discard_partial: bool,
    /// What to do with unanswered calls of the turn before.
    pub unresolved_calls: UnresolvedCalls,
    /// Sampling settings in force, with the seed.
    #[serde(with = "crate::bias::settings")]
    pub settings: GenerationSettings,
    /// Which tools may be called; `None` is all of the session's.
    pub allowed_tools: Option<Vec<String>>,
    /// Whether a tool must be called.
    pub tool_choice: ToolChoice,
    /// At most one call in each generation.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub single_call: bool,
    /// The form that the answer is held to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraint: Option<Constraint>,
    /// When it ends at the latest, absolute.
    pub deadline_us: Option<TimeUs>,
    /// What happens when the streaming client goes away.
    pub on_disconnect: OnDisconnect,
}
