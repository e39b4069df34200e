//! Turns: units of work, each of one or several generations.

use serde::{Deserialize, Serialize};

use crate::{Failure, GenerationSettings, TimeUs, TurnNumber, Usage};

/// Where a turn stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TurnState {
    /// Journaled, waiting for the session's earlier turn or for a place on the device.
    Queued,
    /// Tokens are computed or sampled.
    Running,
    /// Tool results are awaited.
    RequiresAction,
    /// The model ended its turn.
    Completed,
    /// Ended by a limit: tokens, context or a deadline.
    Incomplete,
    /// Ended by a client.
    Cancelled,
    /// Ended by an error; the session stays usable.
    Failed,
}

impl TurnState {
    /// Whether the turn has had its terminal event.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Incomplete | Self::Cancelled | Self::Failed)
    }
}

/// Why sampling stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model sampled its end-of-turn token.
    EndTurn,
    /// The model asked for tools.
    ToolCall,
    /// `max_output_tokens` were sampled.
    MaxOutputTokens,
    /// A stop string appeared.
    StopSequence,
    /// The context is full.
    ContextFull,
    /// `CancelTurn`, or a disconnect with `on_disconnect = CANCEL`.
    Cancelled,
    /// `turn_deadline` passed.
    DeadlineExceeded,
}

/// Which tools the model may or must call. Checked against the session's tools.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// No call.
    None,
    /// At least one call.
    Required,
    /// A call of this tool.
    Name(String),
}

/// What a new turn does to a busy session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBusy {
    /// Refuse it.
    #[default]
    Reject,
    /// Run it after the turns before it.
    Queue,
}

/// What happens to a turn whose streaming client goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDisconnect {
    /// It goes on.
    #[default]
    Continue,
    /// It is cancelled.
    Cancel,
}

/// What a user message does to tool calls that were never answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnresolvedCalls {
    /// Refuse the message.
    #[default]
    Reject,
    /// Answer each open call with "cancelled" and go on.
    CloseAsCancelled,
}

/// A tool call that the client has to answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequiredCall {
    /// The call's id.
    pub call_id: String,
    /// The tool.
    pub name: String,
    /// Arguments exactly as sampled.
    pub arguments: String,
    /// Why the arguments are not JSON, if they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parse_error: Option<String>,
    /// A result for it has arrived already.
    #[serde(default)]
    pub answered: bool,
}

/// One generation of a turn: new input computed, then tokens sampled until something stops it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerationRecord {
    /// Why it stopped.
    pub stop_reason: StopReason,
    /// What it used.
    pub usage: Usage,
}

/// A turn as clients see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// Its place, from 1.
    pub number: TurnNumber,
    /// Where it stands.
    pub state: TurnState,
    /// Why it ended; absent while it has not, and when it failed.
    pub stop_reason: Option<StopReason>,
    /// Finished generations, in order.
    pub generations: Vec<GenerationRecord>,
    /// Sum over the generations.
    pub usage: Usage,
    /// The calls it waits for; empty unless the state is [`TurnState::RequiresAction`].
    pub required_calls: Vec<RequiredCall>,
    /// Settings in force, with the seed used.
    pub settings: GenerationSettings,
    /// When it was accepted.
    pub created_us: TimeUs,
    /// When it left the queue.
    pub started_us: Option<TimeUs>,
    /// When it ended.
    pub ended_us: Option<TimeUs>,
    /// When it ends at the latest.
    pub deadline_us: Option<TimeUs>,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// Sequence number of its first event.
    pub first_sequence: u64,
    /// Sequence number of its latest event.
    pub last_sequence: u64,
}
