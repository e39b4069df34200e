//! What an engine shows of itself: gauges and running totals, cheap to copy.

/// Blocks over all KV groups, by what they are doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockUse {
    /// All blocks.
    pub total: u32,
    /// Held by a running sequence.
    pub used: u32,
    /// Kept because they may be useful again; evicted when room is needed.
    pub cached: u32,
    /// Free.
    pub free: u32,
}

/// An engine at the end of its last poll. Totals count from its start.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct EngineSnapshot {
    /// Runs that hold a slot.
    pub running: u32,
    /// Runs that wait for one.
    pub waiting: u32,
    /// Blocks of the device.
    pub blocks: BlockUse,
    /// Sequences in the last step.
    pub step_sequences: u32,
    /// Rows in the last step.
    pub step_rows: u32,
    /// Device time of the last step, microseconds.
    pub step_time_us: u64,
    /// Steps that were computed.
    pub steps: u64,
    /// Device time of all steps, microseconds.
    pub device_time_us: u64,
    /// Time of all steps on the chip that the device stands for, nanoseconds. Modelled; 0 without a chip.
    pub modelled_time_ns: u64,
    /// Input tokens whose KV was found.
    pub cached_tokens: u64,
    /// Rows of input that were computed, repeats included.
    pub input_rows: u64,
    /// All rows that were computed.
    pub computed_rows: u64,
    /// Tokens that were sampled.
    pub sampled_tokens: u64,
    /// Times that a running sequence lost its blocks to an older one.
    pub preemptions: u64,
    /// Times that the device was lost.
    pub device_losses: u64,
}

impl EngineSnapshot {
    /// The part of the input that was found instead of computed, from 0 to 1; 0 before the first.
    pub fn reuse(&self) -> f64 {
        let all = self.cached_tokens + self.input_rows;
        if all == 0 { 0.0 } else { self.cached_tokens as f64 / all as f64 }
    }
}
