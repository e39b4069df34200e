//! What a generation used: `input = cached + computed + recomputed`, three disjoint counts.
//!
//! `recomputed` is history whose KV had been computed once and was lost before the generation began (eviction, restart);
//! it is never billable, and 0 unless something was lost. Rows repeated because a running sequence lost its blocks to an
//! older one are `preempted`, apart from the input.
//!
//! A generation that a restart interrupted counts its input as of its first beginning and all of its output; rows of its own
//! that are computed again are in `by_precision` only.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use crate::ModelledUsage;

/// Cached input tokens by where their KV was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CachedTokens {
    /// On the device, left there by this session.
    pub device: u64,
    /// In host memory.
    pub host: u64,
    /// On local disk.
    pub disk: u64,
    /// In an object store.
    pub object_store: u64,
    /// On the device, left there by another session of the sharing domain.
    pub shared: u64,
}

impl CachedTokens {
    /// Tokens over all sources.
    pub fn total(&self) -> u64 {
        self.device + self.host + self.disk + self.object_store + self.shared
    }
}

/// Rows by the precision that computed them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PrecisionTokens {
    /// Unquantised.
    pub native: u64,
    /// Int8.
    pub int8: u64,
    /// Upper nibble plane.
    pub int4: u64,
}

impl PrecisionTokens {
    /// Rows over all precisions.
    pub fn total(&self) -> u64 {
        self.native + self.int8 + self.int4
    }
}

/// KV bytes times seconds held, by tier.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KvByteSeconds {
    /// On the device.
    pub device: f64,
    /// In host memory.
    pub host: f64,
    /// On local disk.
    pub disk: f64,
    /// In an object store.
    pub object_store: f64,
}

/// Usage of one generation, or the sum over a turn's.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Tokens of context when the generation began: `cached.total() + computed_tokens + recomputed_tokens`.
    pub input_tokens: u64,
    /// Input tokens whose KV was found.
    pub cached: CachedTokens,
    /// Input tokens computed for the first time in the session's life.
    pub computed_tokens: u64,
    /// Input tokens computed again because their KV was lost before this generation. Never billable.
    pub recomputed_tokens: u64,
    /// Rows computed again because this generation was preempted. Never billable, not part of the input.
    pub preempted_tokens: u64,
    /// Tokens sampled.
    pub output_tokens: u64,
    /// Sampled tokens that were reasoning.
    pub reasoning_tokens: u64,
    /// Every row that a device computed for this generation (input, samples fed back, repeats), by precision.
    pub by_precision: PrecisionTokens,
    /// Acceptance to first sampled token, microseconds; 0 if none was sampled. In a sum: the first generation's.
    pub time_to_first_token_us: u64,
    /// Waiting before the first step, microseconds.
    pub queue_time_us: u64,
    /// Acceptance to end, microseconds.
    pub duration_us: u64,
    /// Device time of the steps, shared out by computed tokens, microseconds.
    pub device_time_us: u64,
    /// What holding its KV cost.
    pub kv_byte_seconds: KvByteSeconds,
    /// Tokens in the log at the end.
    pub context_used: u64,
    /// Most tokens that the log may hold.
    pub context_limit: u64,
    /// What it would have taken on the chip that the device stands for, if any. Modelled, never measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modelled: Option<ModelledUsage>,
}

impl AddAssign<&Usage> for Usage {
    /// Adds a later generation: counts and durations are summed, context figures are the later one's, and the time to
    /// first token stays the first one's.
    fn add_assign(&mut self, later: &Usage) {
        self.input_tokens += later.input_tokens;
        self.cached.device += later.cached.device;
        self.cached.host += later.cached.host;
        self.cached.disk += later.cached.disk;
        self.cached.object_store += later.cached.object_store;
        self.cached.shared += later.cached.shared;
        self.computed_tokens += later.computed_tokens;
        self.recomputed_tokens += later.recomputed_tokens;
        self.preempted_tokens += later.preempted_tokens;
        self.output_tokens += later.output_tokens;
        self.reasoning_tokens += later.reasoning_tokens;
        self.by_precision.native += later.by_precision.native;
        self.by_precision.int8 += later.by_precision.int8;
        self.by_precision.int4 += later.by_precision.int4;
        if self.time_to_first_token_us == 0 {
            self.time_to_first_token_us = later.time_to_first_token_us;
        }
        self.queue_time_us += later.queue_time_us;
        self.duration_us += later.duration_us;
        self.device_time_us += later.device_time_us;
        self.kv_byte_seconds.device += later.kv_byte_seconds.device;
        self.kv_byte_seconds.host += later.kv_byte_seconds.host;
        self.kv_byte_seconds.disk += later.kv_byte_seconds.disk;
        self.kv_byte_seconds.object_store += later.kv_byte_seconds.object_store;
        self.context_used = later.context_used;
        self.context_limit = later.context_limit;
        match (&mut self.modelled, &later.modelled) {
            (Some(sum), Some(later)) => *sum += later,
            (sum, later) => *sum = sum.or(*later),
        }
    }
}
