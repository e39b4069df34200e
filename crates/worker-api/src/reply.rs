//! Replies and streams.

use std::collections::BTreeMap;
use std::pin::Pin;

use futures_core::Stream;
use holdfast_types::{
    Digest, Event, EventKind, Failure, Limits, ModelRevision, NumericsClass, ReasoningEffort, SessionConfig, SessionId,
    SessionState, TimeUs, Turn,
};

/// A session as clients see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// What it is doing.
    pub state: SessionState,
    /// What it is fixed to.
    pub config: SessionConfig,
    /// The revision it is pinned to.
    pub revision: ModelRevision,
    /// For people.
    pub display_name: String,
    /// The client's own pairs.
    pub labels: BTreeMap<String, String>,
    /// Changes with every change of the session.
    pub etag: String,
    /// Created.
    pub created_us: TimeUs,
    /// Last changed.
    pub updated_us: TimeUs,
    /// Deleted by itself then.
    pub expire_time_us: Option<TimeUs>,
    /// Deleted after this many idle seconds.
    pub idle_timeout_s: Option<u64>,
    /// When the last byte was removed; only in the reply to a deletion that is complete.
    pub purge_time_us: Option<TimeUs>,
    /// Turns so far; also the last turn's number.
    pub turns: u32,
    /// Items so far.
    pub items: u32,
    /// Tokens in the log.
    pub context_tokens: u32,
    /// Most tokens that the log may hold.
    pub context_limit: u32,
    /// Number of its latest event.
    pub last_sequence: u64,
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// Elements, in order.
    pub elements: Vec<T>,
    /// Where the next page begins; empty at the end.
    pub next_page_token: String,
}

/// What a stream yields. After an error the stream ends without a terminal event and is to be attached again.
pub type StreamItem = Result<Event, Failure>;

/// Events of one session.
pub type EventStream = Pin<Box<dyn Stream<Item = StreamItem> + Send>>;

/// Events of one turn.
pub struct TurnStream {
    /// The turn when the stream began.
    pub turn: Turn,
    /// Its events. Dropping it is a disconnect: with `on_disconnect = CANCEL` the turn is cancelled.
    pub events: EventStream,
}

/// One event of a stateless completion.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionEvent {
    /// When it was observed.
    pub time_us: TimeUs,
    /// What happened, in the words of a session's events; turn number 0, items from 1. Ends with `TurnEnded`, whose turn carries stop
    /// reason, settings and usage.
    pub kind: EventKind,
}

/// Events of a stateless completion. Dropping it cancels the work.
pub type CompletionStream = Pin<Box<dyn Stream<Item = Result<CompletionEvent, Failure>> + Send>>;

/// What items would become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenCount {
    /// Tokens of the new items.
    pub tokens: u32,
    /// Tokens in the session before them.
    pub context_tokens: u32,
    /// Most tokens that the log may hold.
    pub context_limit: u32,
}

/// A served model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// Its name.
    pub name: String,
    /// `LlamaForCausalLM` and the like.
    pub architecture: String,
    /// Number of weights.
    pub parameters: u64,
    /// Most tokens of a context.
    pub context_limit: u32,
    /// Size of the vocabulary.
    pub vocab_size: u32,
    /// Digests.
    pub weights: Digest,
    /// Digest of the tokenizer.
    pub tokenizer: Digest,
    /// Digest of the template.
    pub template: Digest,
    /// Class that its tokens are computed in.
    pub numerics_class: NumericsClass,
    /// Whether it can call tools.
    pub tools: bool,
    /// What it makes of reasoning and of history.
    pub speech: ModelSpeech,
    /// The device that holds it.
    pub device: String,
    /// KV blocks of the device, over all its groups, and how many of them hold something.
    pub kv_blocks: (u32, u32),
    /// Bytes of KV per token that every layer sees.
    pub kv_bytes_per_token: u64,
    /// Whether this is the model of sessions that name none.
    pub is_default: bool,
}

/// What a model's default template makes of reasoning and of history.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelSpeech {
    /// Whether it marks reasoning.
    pub reasoning: bool,
    /// The efforts that it can be told of, rising.
    pub efforts: Vec<ReasoningEffort>,
    /// How history comes to be.
    pub history: HistoryRendering,
    /// In what history differs from one rendering of all of it with the published template.
    pub history_differs: Vec<String>,
}

/// How a session's history comes to be what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HistoryRendering {
    /// As the published template renders all of it at once.
    #[default]
    Published,
    /// As the template renders all of it at once with parts replaced.
    Replaced,
    /// Piece by piece, which may differ from rendering all of it at once.
    Incremental,
}

/// The runtime.
#[derive(Debug, Clone, PartialEq)]
pub struct RuntimeInfo {
    /// Release version.
    pub version: String,
    /// Version and source revision.
    pub build: String,
    /// Names of what this build can do.
    pub features: Vec<String>,
    /// Limits in force.
    pub limits: Limits,
    /// Served models.
    pub models: Vec<ModelInfo>,
    /// Sessions by state, over all tenants that this worker has loaded.
    pub sessions_loaded: u32,
    /// Turns that wait or run.
    pub turns_in_progress: u32,
    /// Since when it runs.
    pub started_us: TimeUs,
    /// Whether it is shutting down.
    pub draining: bool,
}
