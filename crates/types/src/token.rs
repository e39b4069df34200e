//! Tokens: where they came from and how their KV is computed.

use serde::{Deserialize, Serialize};

use crate::{NumericsClass, TokenLogprob};

/// A token's index in the model's vocabulary.
pub type TokenId = u32;

/// Where a run of tokens came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Items rendered through the template.
    Rendered,
    /// Drawn by the model.
    Sampled,
    /// The template's closing tokens after an early end.
    Closing,
}

/// The weights' precision that a token's KV is computed with. Part of block keys; the codes are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Precision {
    /// Weights as the backend holds them unquantised (f32 on the CPU device).
    #[default]
    Native = 0,
    /// The upper nibble plane of the nested int8 weights.
    Int4 = 4,
    /// Int8 codes with per-group scales.
    Int8 = 8,
}

impl Precision {
    /// The stable code that block keys hash.
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// One token of a session's log, as far as its KV depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogToken {
    /// Index in the vocabulary.
    pub id: TokenId,
    /// Precision its KV is computed with.
    pub precision: Precision,
}

/// A run of tokens of one origin, as the journal keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenRun {
    /// Where the tokens came from.
    pub origin: Origin,
    /// The precision that their KV is computed with.
    pub precision: Precision,
    /// The numerics class in force when they were appended.
    pub numerics_class: NumericsClass,
    /// The tokens, in order.
    pub ids: Vec<TokenId>,
    /// For sampled runs whose turn asked for log probabilities: one entry per token, the sampled token first, then the
    /// alternatives in falling order. Empty otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<Vec<TokenLogprob>>,
}
