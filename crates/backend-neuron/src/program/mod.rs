//! The faithful model of the chip's rules: the decoder as programs that a Trainium- or Inferentia-style chip could run, and what
//! they would take there.
//!
//! In: a decoder's shape, a row of the chip table, cores and buckets; then the sequences of each step. Out: programs of legal
//! tiles, or a refusal that names the limit; for a step its buckets, modelled time, bytes, padding and price. Deliberately
//! not here: logits (`forward`) and any measured time. Everything that leaves here is *modelled*.
//!
//! In the order in which things flow: [`chip`] and [`price`] are facts; `part` is one core's part of the decoder; [`tile`] is what a
//! core can do; `lower` writes a program for one bucket; `walk` adds up what it takes; [`lattice`] maps a step to buckets;
//! [`model`] holds them together; [`points`] holds the model against public throughput.

pub mod chip;
pub mod lattice;
mod lower;
pub mod model;
mod part;
pub mod points;
pub mod price;
pub mod stand_in;
pub mod tile;
pub mod walk;

pub use chip::{CHIPS, Chip};
pub use lattice::{Bucket, Buckets, Span};
pub use lower::Program;
pub use model::{ChipChoice, ChipModel, ChipSettings, Demand, HbmBudget, StepModel};
pub use part::WeightStorage;
pub use points::{POINTS, Point};
pub use walk::Walk;

use chip::CHIP_NAMES;

/// What a chip cannot hold, or what a setting asks in vain.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ProgramError {
    /// No row of the table.
    #[error("chip {0:?} is not in the table, which has {CHIP_NAMES}")]
    UnknownChip(String),
    /// Cores that a device cannot have.
    #[error("cores: {asked} were asked for, a device has 1 to {most}")]
    Cores {
        /// What was asked.
        asked: u32,
        /// The most.
        most: u32,
    },
    /// A list of buckets that does not rise from 1.
    #[error("buckets: {axis} must rise, from 1 to {most}, and hold 1 to {count} numbers")]
    Buckets {
        /// `batch`, `query` or `context`.
        axis: &'static str,
        /// The largest number that it may hold.
        most: u32,
        /// The most numbers.
        count: usize,
    },
    /// A context bucket above the largest.
    #[error("buckets: the largest context is {largest}, the device's context is {context}")]
    Context {
        /// The largest bucket.
        largest: u32,
        /// What the device promises.
        context: u32,
    },
    /// Weights and KV are more than the chip's memory.
    #[error(
        "HBM: {weights} bytes of weights and {kv} bytes of KV on {cores} core(s) of {chip}, which have {has} bytes"
    )]
    Hbm {
        /// The chip.
        chip: &'static str,
        /// Cores that were given.
        cores: u32,
        /// Bytes of weights over these cores.
        weights: u64,
        /// Bytes of KV over these cores.
        kv: u64,
        /// Bytes that they have.
        has: u64,
    },
    /// The working set of a single row is more than a partition holds.
    #[error("SBUF: {needs} bytes in each partition for one row of bucket {bucket}, {chip} has {has}")]
    Sbuf {
        /// The chip.
        chip: &'static str,
        /// The bucket.
        bucket: Bucket,
        /// Bytes of a partition that one row takes.
        needs: u64,
        /// Bytes that a partition has.
        has: u64,
    },
}
