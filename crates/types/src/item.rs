//! Items: what a conversation is made of, as clients see it.

use serde::{Deserialize, Serialize};

use crate::{ItemNumber, TokenRange, TurnNumber};

/// Who speaks in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The operator's voice, above the developer.
    System,
    /// The application's voice.
    Developer,
    /// The person or program that the assistant serves.
    User,
    /// The model.
    Assistant,
}

/// One typed part of a message or tool result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// UTF-8 text.
    Text(String),
}

impl Part {
    /// The text of the part.
    pub fn text(&self) -> &str {
        match self {
            Part::Text(text) => text,
        }
    }
}

/// What an item says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum ItemContent {
    /// A message of any role.
    Message {
        /// Who speaks.
        role: Role,
        /// What is said; never empty for input items.
        parts: Vec<Part>,
    },
    /// Thoughts of the model before it answers.
    Reasoning {
        /// The thoughts.
        text: String,
    },
    /// The model asks for a tool to be run by the client.
    ToolCall {
        /// Unique in the session.
        call_id: String,
        /// The tool's name as sampled.
        name: String,
        /// The arguments exactly as sampled; JSON unless `parse_error` is set.
        arguments: String,
        /// Why the call's text could not be read; the turn goes on nevertheless.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parse_error: Option<String>,
    },
    /// The client's answer to a tool call.
    ToolResult {
        /// The call that is answered.
        call_id: String,
        /// The answer.
        parts: Vec<Part>,
        /// The tool failed and `parts` says how.
        #[serde(default)]
        is_error: bool,
    },
}

/// Whether an item was finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ItemState {
    /// The item is whole.
    #[default]
    Complete,
    /// Sampling ended early (cancelled, deadline, token limit); the part that was sampled stays.
    Incomplete,
}

/// An item without a place in a session: what a client sends, or what sampling produced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// What it says.
    pub content: ItemContent,
    /// Whether it was finished.
    #[serde(default)]
    pub state: ItemState,
}

impl Item {
    /// A complete text message.
    pub fn message(role: Role, text: impl Into<String>) -> Self {
        Self {
            content: ItemContent::Message { role, parts: vec![Part::Text(text.into())] },
            state: ItemState::Complete,
        }
    }

    /// A complete tool result with one text part.
    pub fn tool_result(call_id: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            content: ItemContent::ToolResult {
                call_id: call_id.into(),
                parts: vec![Part::Text(text.into())],
                is_error: false,
            },
            state: ItemState::Complete,
        }
    }
}

/// An item at its place in a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberedItem {
    /// Its place, from 1.
    pub number: ItemNumber,
    /// The turn that brought it; `None` for initial and appended items.
    pub turn: Option<TurnNumber>,
    /// The tokens of the session's log that it became. Items rendered together share the range of their batch.
    pub tokens: TokenRange,
    /// The item.
    pub item: Item,
}
