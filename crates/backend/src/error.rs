//! What can go wrong on a device, in four words.

/// Why a backend call failed. The engine's answer to each: a defect of ours, a smaller batch, a new epoch, a failed turn.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// The plan, copy or late input breaks the contract; nothing of it happened.
    #[error("the device rejected the plan: {0}")]
    Rejected(String),
    /// The device has no memory for this step; nothing of it happened.
    #[error("the device is out of memory: {0}")]
    OutOfMemory(String),
    /// The device went away with everything on it.
    #[error("the device is lost: {0}")]
    Lost(String),
    /// The step failed and its results are not to be used; earlier blocks stand.
    #[error("the device failed the step: {0}")]
    Fault(String),
}
