//! Events: the numbered story of a session, a pure fold over its journal.

use serde::{Deserialize, Serialize};

use crate::{Item, ItemNumber, RequiredCall, TimeUs, TokenLogprob, Turn, TurnNumber};

/// A half-open range of positions in a session's token log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TokenRange {
    /// First position.
    pub start: u32,
    /// Position after the last.
    pub end: u32,
}

impl TokenRange {
    /// Number of tokens in the range.
    pub fn len(self) -> u32 {
        self.end.saturating_sub(self.start)
    }

    /// Whether the range holds no token.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// From 1 per session without gaps; 0 for ephemeral events (queue position, prefill progress), which are never
    /// replayed.
    pub sequence: u64,
    /// The turn it belongs to.
    pub turn: TurnNumber,
    /// When its journal entry was made; when it was observed for ephemeral ones.
    pub time_us: TimeUs,
    /// What happened.
    pub kind: EventKind,
}

/// What happened. Closed: every consumer matches all of it.
#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
    /// Ephemeral: the turn waits, this many turns are before it.
    TurnQueued {
        /// Turns before this one.
        position: u32,
    },
    /// The turn was accepted and journaled.
    TurnStarted {
        /// The turn as it starts.
        turn: Box<Turn>,
    },
    /// Ephemeral: how much of the new input is computed.
    PrefillProgress {
        /// Tokens found or computed so far.
        done: u32,
        /// Tokens of the whole context.
        total: u32,
    },
    /// An item begins.
    ItemStarted {
        /// Its number.
        number: ItemNumber,
        /// The item, without the text that follows in deltas.
        item: Item,
    },
    /// Text of an assistant message.
    TextDelta {
        /// The item.
        item: ItemNumber,
        /// UTF-8 text, never split inside a character.
        text: String,
        /// Tokens that the text came from.
        tokens: TokenRange,
        /// Per token of the range, if asked for.
        logprobs: Vec<Vec<TokenLogprob>>,
    },
    /// Text of a reasoning item.
    ReasoningDelta {
        /// The item.
        item: ItemNumber,
        /// UTF-8 text.
        text: String,
        /// Tokens that the text came from.
        tokens: TokenRange,
    },
    /// Part of a tool call's arguments.
    ToolArgumentsDelta {
        /// The item.
        item: ItemNumber,
        /// UTF-8 text.
        arguments: String,
        /// Tokens that the text came from.
        tokens: TokenRange,
    },
    /// An item is whole (or will stay as it is).
    ItemDone {
        /// Its number.
        number: ItemNumber,
        /// The item.
        item: Item,
        /// Tokens that it became.
        tokens: TokenRange,
    },
    /// The turn waits for tool results.
    RequiresAction {
        /// Every call to answer.
        calls: Vec<RequiredCall>,
    },
    /// The one terminal event.
    TurnEnded {
        /// The turn as it ended, with usage.
        turn: Box<Turn>,
    },
}

impl EventKind {
    /// Whether it is the turn's terminal event.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::TurnEnded { .. })
    }
}
