//! What scheduler and backend say to each other: plain data, nothing else.
//!
//! A [`StepPlan`] names scheduler-owned sequence slots and sends only *changes* of their block tables. The backend applies,
//! in this order: `slots` (open, table changes, truncate, close), `copies`, then the rows of `sequences`. Rows of one sequence are at
//! consecutive positions; rows of different sequences are independent, whatever the batch.

use serde::{Deserialize, Serialize};

use crate::{ModelledStep, Precision, SamplingParams, TokenId};

/// Counts the steps of one engine, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StepId(pub u64);

/// A place for one sequence on the device, below [`crate::DeviceDescription::slots`]. Owned by the scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SlotId(pub u32);

/// A KV block of one group's pool, below [`crate::KvGroup::blocks`]. Owned by the scheduler's pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockId(pub u32);

/// Everything a device needs to run one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepPlan {
    /// This step.
    pub id: StepId,
    /// Changes of slots, in order.
    pub slots: Vec<SlotChange>,
    /// Block copies inside the device, done after `slots` and before any row. Sources are never destinations of the same
    /// plan.
    pub copies: Vec<BlockMove>,
    /// Work, at most one entry per slot.
    pub sequences: Vec<SequenceStep>,
}

/// A change of one slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum SlotChange {
    /// The slot is taken: its tables are empty, its sampler is new.
    Open {
        /// The slot.
        slot: SlotId,
        /// How it samples.
        sampling: Box<SlotSampling>,
    },
    /// Entries of a block table are set.
    Table(TableChange),
    /// The slot is free again.
    Close {
        /// The slot.
        slot: SlotId,
    },
}

/// Sets entries `first..first + blocks.len()` of one slot's table in one KV group. Entry i holds positions
/// `i * block_tokens..(i + 1) * block_tokens`. Entries that are wholly behind the group's sliding window, as the first row of a step
/// sees it, need not be set for that step: nothing is read through them, and a block that one of them still names may hold rows
/// of another sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableChange {
    /// The slot.
    pub slot: SlotId,
    /// Index into [`crate::DeviceDescription::kv_groups`].
    pub group: u16,
    /// First entry that is set.
    pub first: u32,
    /// The blocks.
    pub blocks: Vec<BlockId>,
}

/// How a slot samples, and what its penalties have to know of the past.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SlotSampling {
    /// The settings.
    pub params: SamplingParams,
    /// The draw for the token at log position p is keyed by (seed, p).
    pub seed: u64,
    /// Distinct tokens of the context before the slot was opened; empty unless the repetition penalty is on.
    pub context: Vec<TokenId>,
    /// Tokens sampled earlier in the same turn with their counts; empty unless a penalty is on.
    pub sampled: Vec<(TokenId, u32)>,
}

/// Copies a whole block inside the device, in every layer of its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockMove {
    /// Index into [`crate::DeviceDescription::kv_groups`].
    pub group: u16,
    /// Source.
    pub from: BlockId,
    /// Destination.
    pub to: BlockId,
}

/// The rows that one sequence computes in this step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SequenceStep {
    /// The slot.
    pub slot: SlotId,
    /// Position of the first row in the sequence.
    pub start: u32,
    /// One input per row; row i is at position `start + i`. At least one.
    pub inputs: Vec<RowInput>,
    /// Precision of all rows.
    pub precision: Precision,
    /// Where the rows' KV goes.
    pub destination: KvDestination,
    /// What is wanted of which rows, in rising order of rows.
    pub outputs: Vec<RowOutput>,
}

/// What a row computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowInput {
    /// This token.
    Token(TokenId),
    /// The latest sample of the same slot, which an earlier step in flight draws.
    LastSample,
}

/// Where a row's KV goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum KvDestination {
    /// Into the block of the slot's table that holds the position.
    #[default]
    Pool,
    /// Into the slot's scratch, forgotten when the next step of the slot begins (drafts).
    Scratch,
}

/// What is wanted of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowOutput {
    /// Index into [`SequenceStep::inputs`].
    pub row: u32,
    /// What is wanted.
    pub request: OutputRequest,
}

/// What is wanted of a row's logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutputRequest {
    /// Draw the next token with the slot's sampler (with log probabilities if its settings ask).
    Sample,
    /// Hand over the raw logits, f32, `[vocab_size]`, before bias, mask and penalties.
    Logits,
    /// Both: the raw logits, and a sample.
    LogitsAndSample,
}

/// Inputs that may arrive after a step was submitted: masks for rows that sample.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LateInputs {
    /// Per slot and row of the step; rows that are not named are not masked.
    pub masks: Vec<(SlotId, u32, TokenMask)>,
}

/// Which tokens a row may sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenMask {
    /// One of these, in rising order. Never empty.
    Only(Vec<TokenId>),
    /// Bit t of word t / 64 allows token t; at least one bit is set.
    Bits(Vec<u64>),
}

impl TokenMask {
    /// Whether `token` may be sampled.
    pub fn allows(&self, token: TokenId) -> bool {
        match self {
            Self::Only(tokens) => tokens.binary_search(&token).is_ok(),
            Self::Bits(words) => words.get(token as usize / 64).is_some_and(|word| word >> (token % 64) & 1 == 1),
        }
    }
}

/// What a step gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepOutput {
    /// The step.
    pub id: StepId,
    /// One entry per sequence of the plan that asked for output, in the plan's order.
    pub sequences: Vec<SequenceOutput>,
    /// Time the device spent on it, microseconds. Measured, never modelled.
    pub device_time_us: u64,
    /// What it would take on the chip that the device stands for, if any. Modelled, never measured.
    pub modelled: Option<ModelledStep>,
}

/// What one sequence gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SequenceOutput {
    /// The slot.
    pub slot: SlotId,
    /// Accepted samples, in order of position.
    pub samples: Vec<SampledToken>,
    /// Logits asked for: (row, `[vocab_size]`).
    pub logits: Vec<(u32, Vec<f32>)>,
}

/// A token that was drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampledToken {
    /// The token.
    pub id: TokenId,
    /// Position it takes in the sequence: one after the row it was drawn from.
    pub position: u32,
    /// If asked for: the token itself first, then the alternatives in falling order of probability.
    pub logprobs: Vec<TokenLogprob>,
}

/// A token with its natural log probability. Finite: an impossible token has [`f32::MIN`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token.
    pub id: TokenId,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}
