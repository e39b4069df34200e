//! What a gateway may ask of a worker: plain requests, plain replies, one async trait.
//!
//! In: requests that were checked for shape once, at the edge. Out: replies, event streams, [`Failure`]s. Deliberately not
//! here: protobuf (the gateway's), journals and tokens' meaning (the worker's).
#![forbid(unsafe_code)]

mod reply;
mod request;

pub use reply::{
    CompletionEvent, CompletionStream, EventStream, HistoryRendering, ModelInfo, ModelSpeech, Page, RuntimeInfo,
    Session, StreamItem, TokenCount, TurnStream,
};
pub use request::{
    AppendItems, Caller, CancelTurn, ConfigPatch, CountTokens, CreateSession, Generate, ListItems, ListSessions,
    ListTurns, SessionPatch, StartTurn, SubmitToolResults, UpdateSession,
};

use async_trait::async_trait;
use holdfast_types::{Failure, NumberedItem, SessionId, Turn, TurnNumber};

/// One worker, local or remote. Every method may fail with a [`Failure`] from the closed list; none blocks its caller's
/// thread.
#[async_trait]
pub trait Worker: Send + Sync + 'static {
    /// Makes a session; with `request_id` set, a retry returns the same one.
    async fn create_session(&self, caller: &Caller, request: CreateSession) -> Result<Session, Failure>;
    /// One session.
    async fn get_session(&self, caller: &Caller, session: &SessionId) -> Result<Session, Failure>;
    /// Sessions in the order of their ids. Each session of the page is shown as it is now, so one at rest may have to be read
    /// whole: the cost is bounded by `page_size`, in time, and never holds more than one of them beyond those that stay loaded.
    async fn list_sessions(&self, caller: &Caller, request: ListSessions) -> Result<Page<Session>, Failure>;
    /// Changes what may change.
    async fn update_session(&self, caller: &Caller, request: UpdateSession) -> Result<Session, Failure>;
    /// Hides a session at once and removes its bytes; a running turn ends with SESSION_DELETED. An `etag` that is set must match.
    async fn delete_session(
        &self,
        caller: &Caller,
        session: &SessionId,
        etag: Option<String>,
    ) -> Result<Session, Failure>;

    /// Starts a turn; its acceptance is journaled when this returns.
    async fn start_turn(&self, caller: &Caller, request: StartTurn) -> Result<Turn, Failure>;
    /// Starts a turn and follows it: events from its first to its terminal one or to its `RequiresAction`. Dropping the stream is
    /// a disconnect.
    async fn run_turn(&self, caller: &Caller, request: StartTurn) -> Result<TurnStream, Failure>;
    /// Answers waiting calls; the same turn goes on once all are there.
    async fn submit_tool_results(&self, caller: &Caller, request: SubmitToolResults) -> Result<Turn, Failure>;
    /// Answers waiting calls and follows the turn from the next event on.
    async fn continue_turn(&self, caller: &Caller, request: SubmitToolResults) -> Result<TurnStream, Failure>;
    /// Follows one turn from an event on (0: from its first), to its terminal event or to a `RequiresAction` that still holds.
    async fn attach_turn(
        &self,
        caller: &Caller,
        session: &SessionId,
        turn: TurnNumber,
        from_sequence: u64,
    ) -> Result<TurnStream, Failure>;
    /// Follows a session from an event on (0: from now), without end.
    async fn watch_session(
        &self,
        caller: &Caller,
        session: &SessionId,
        from_sequence: u64,
    ) -> Result<EventStream, Failure>;
    /// Ends a turn early; returns once the end is journaled.
    async fn cancel_turn(&self, caller: &Caller, request: CancelTurn) -> Result<Turn, Failure>;
    /// One turn.
    async fn get_turn(&self, caller: &Caller, session: &SessionId, turn: TurnNumber) -> Result<Turn, Failure>;
    /// Turns of a session in order.
    async fn list_turns(&self, caller: &Caller, request: ListTurns) -> Result<Page<Turn>, Failure>;
    /// Items of a session in order.
    async fn list_items(&self, caller: &Caller, request: ListItems) -> Result<Page<NumberedItem>, Failure>;
    /// Adds items without a turn; with `prefill`, their KV is computed in the background.
    async fn append_items(&self, caller: &Caller, request: AppendItems) -> Result<Vec<NumberedItem>, Failure>;

    /// The stateless baseline: full history in, nothing kept, the same path below.
    async fn generate(&self, caller: &Caller, request: Generate) -> Result<CompletionStream, Failure>;
    /// What items would become.
    async fn count_tokens(&self, caller: &Caller, request: CountTokens) -> Result<TokenCount, Failure>;
    /// Served models.
    async fn list_models(&self, caller: &Caller) -> Result<Vec<ModelInfo>, Failure>;
    /// The runtime.
    async fn runtime(&self, caller: &Caller) -> Result<RuntimeInfo, Failure>;
}
