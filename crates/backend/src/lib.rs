//! The seam to a device: the [`Backend`] trait, its errors, what every backend shares (the check of plans, the sampler, the split of KV
//! memory among groups), and the conformance suite that every backend passes.
//!
//! In: [`StepPlan`]s and block copies from an engine. Out: [`StepOutput`]s and copied bytes. Deliberately not here: block
//! allocation (the scheduler owns block ids), sessions (a backend never hears of one) and anything that waits on a clock.
#![forbid(unsafe_code)]

pub mod conformance;
mod error;
pub mod plan;
pub mod pools;
pub mod sampler;
pub mod samples;

pub use error::BackendError;

use holdfast_types::{BlockId, DeviceDescription, LateInputs, StepId, StepOutput, StepPlan};

/// One device group, owned by one thread.
///
/// Contract:
/// - `describe` is constant between two losses.
/// - Steps are collected in the order in which they were submitted; at most `limits.in_flight` are open at once.
/// - A plan that breaks the rules of [`StepPlan`] or the device's limits is `Rejected` as a whole: nothing of it happened.
/// - Bit for bit, a row's result depends on its sequence's tokens, precisions and positions only: never on the batch, the chunking, the
///   block ids or the number of threads.
/// - After `Lost` every block is gone; the next successful call sees a new `epoch`.
pub trait Backend: Send {
    /// What the device is.
    fn describe(&self) -> &DeviceDescription;

    /// Begins a step.
    ///
    /// # Errors
    /// [`BackendError::Rejected`] for a wrong plan; the others as they happen.
    fn submit(&mut self, plan: &StepPlan) -> Result<StepTicket, BackendError>;

    /// Says that the caller has other work before it collects this step, the oldest open one: a device that would not compute before
    /// does so now. Changes nothing that anybody can see but the time.
    fn start(&mut self, step: &StepTicket) {
        let _ = step;
    }

    /// Waits for a submitted step, oldest first, and hands over what it gave. `late` holds what the plan could not know,
    /// such as token masks.
    ///
    /// # Errors
    /// [`BackendError::Rejected`] for a foreign ticket or a wrong mask; the others as they happen.
    fn collect(&mut self, step: StepTicket, late: &LateInputs) -> Result<StepOutput, BackendError>;

    /// Begins to move a block out of or into the device, beside steps. The block must not be a destination of an open
    /// step.
    ///
    /// # Errors
    /// [`BackendError::Rejected`] for an unknown group or block or a wrong number of bytes.
    fn begin_copy(&mut self, copy: BlockCopy) -> Result<CopyTicket, BackendError>;

    /// Copies that ended since the last call.
    fn poll_copies(&mut self) -> Vec<CopyDone>;
}

/// A step that was submitted and not collected.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "every submitted step is collected, in order"]
pub struct StepTicket(pub StepId);

/// A block on its way out of or into the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockCopy {
    /// Index into [`DeviceDescription::kv_groups`].
    pub group: u16,
    /// The block.
    pub block: BlockId,
    /// Which way.
    pub direction: CopyDirection,
}

/// Which way a block goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyDirection {
    /// Out of the device; the bytes come with [`CopyDone`].
    Export,
    /// Into the device: exactly [`holdfast_types::KvGroup::bytes_per_block`] bytes in the device's `kv_layout`.
    Import(Vec<u8>),
}

/// Names a copy that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CopyTicket(pub u64);

/// A copy that ended.
#[derive(Debug)]
pub struct CopyDone {
    /// Which.
    pub ticket: CopyTicket,
    /// The block's bytes for an export, nothing for an import.
    pub result: Result<Option<Vec<u8>>, BackendError>,
}
