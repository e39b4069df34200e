//! What a device says of itself, once.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Digest, ModelledChip, Precision};

/// Inside one class the same tokens come out bit for bit: backend family, weight precision, the kernels' arithmetic and
/// their revision, for example `neuron/f32/r1`. Part of block keys.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NumericsClass(Arc<str>);

impl NumericsClass {
    /// Names a class.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NumericsClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NumericsClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NumericsClass({:?})", &*self.0)
    }
}

/// Layers that share one block table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvGroup {
    /// Which layers, in rising order.
    pub layers: Vec<u16>,
    /// Sliding window in tokens; `None` attends to everything.
    pub window: Option<u32>,
    /// Blocks in the group's pool.
    pub blocks: u32,
    /// Bytes of one block over all layers of the group.
    pub bytes_per_block: u64,
}

/// What one step may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepLimits {
    /// Most rows over all sequences.
    pub rows: u32,
    /// Most sequences.
    pub sequences: u32,
    /// Most tokens of one sequence.
    pub context: u32,
    /// Most steps submitted and not collected.
    pub in_flight: u32,
}

/// What a device is. Constant between losses: after `Lost` it comes back with a new `epoch` and an empty pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceDescription {
    /// For people, for example `neuron:0 (cpu, 2 threads)`.
    pub name: String,
    /// Backend family: `neuron`, `cuda`, `remote`.
    pub backend: String,
    /// The class that every row is computed in.
    pub numerics_class: NumericsClass,
    /// Digest of the weights it holds.
    pub weights: Digest,
    /// How KV lies in a block (element type, order of axes); part of block keys.
    pub kv_layout: String,
    /// Tokens per block, the same for every group.
    pub block_tokens: u32,
    /// Groups of layers, at least one.
    pub kv_groups: Vec<KvGroup>,
    /// Sequence slots.
    pub slots: u32,
    /// Limits of a step.
    pub limits: StepLimits,
    /// Size of the vocabulary: the length of a row of logits.
    pub vocab_size: u32,
    /// Precisions that rows may ask for, the default first.
    pub precisions: Vec<Precision>,
    /// List price in USD per hour, if the operator set one.
    pub price_usd_per_hour: Option<f64>,
    /// The chip that it stands for, if any. Modelled, never measured.
    pub modelled: Option<ModelledChip>,
    /// Counts the device's lives.
    pub epoch: u64,
}
