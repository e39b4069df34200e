//! What the device needs of a card: memory, launches in order, and copies beside them.
//!
//! In: addresses, bytes, kernels with their parameters. Out: bytes, and errors in three words. Deliberately not here: what is computed. [`crate::gpu`]
//! is a card through the driver; tests have one that runs the kernels on the CPU.

use std::ffi::c_void;

use crate::kernels::{Kernel, Params};

/// A place in the memory of a card, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub(crate) struct Address(pub(crate) u64);

impl Address {
    /// Nothing: kernels know it as a null pointer.
    pub(crate) const NULL: Self = Self(0);

    /// So many bytes after it.
    pub(crate) fn plus(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

/// What went wrong on a card.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CardError {
    /// It has no memory for this; nothing happened.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// Nothing on it can be used any more: memory, launches, copies.
    #[error("lost: {0}")]
    Lost(String),
    /// A call failed; memory is as it was.
    #[error("{0}")]
    Fault(String),
}

/// A copy that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CopyId(pub(crate) u64);

/// How large a launch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Blocks of threads.
    pub(crate) grid: [u32; 3],
    /// Shared memory of each beside what the kernel declares.
    pub(crate) shared_bytes: u32,
}

/// One card, owned by one thread.
///
/// Launches, uploads, fills and copies inside of the card happen in the order of the calls, each after the one before it, and return before they are
/// done; a download waits. Memory lives as long as the card.
pub(crate) trait Card: Send {
    /// Free and total memory in bytes.
    fn memory(&self) -> Result<(u64, u64), CardError>;
    /// Zeroed memory at a multiple of 16.
    fn allocate(&mut self, bytes: u64) -> Result<Address, CardError>;
    /// Bytes into the card's memory. They may be used again when it returns.
    fn upload(&mut self, to: Address, bytes: &[u8]) -> Result<(), CardError>;
    /// Waits for everything before it, and brings bytes back.
    fn download(&mut self, from: Address, bytes: &mut [u8]) -> Result<(), CardError>;
    /// Bytes from place to place; the two do not overlap.
    fn copy(&mut self, from: Address, to: Address, bytes: u64) -> Result<(), CardError>;
    /// Runs a kernel.
    ///
    /// # Safety
    /// `params` points to the structure that the kernel takes, and what it names is memory of this card as large as the kernel expects.
    unsafe fn launch_raw(&mut self, kernel: Kernel, launch: Launch, params: *const c_void) -> Result<(), CardError>;
    /// Begins to bring bytes back beside what is launched, from memory that everything launched before has written.
    fn begin_export(&mut self, from: Address, bytes: u64) -> Result<CopyId, CardError>;
    /// Begins to bring bytes into the card's memory, beside what is launched.
    fn begin_import(&mut self, to: Address, bytes: &[u8]) -> Result<CopyId, CardError>;
    /// What became of a copy: `None` while it is under way, then once its bytes, none for an import.
    fn poll_copy(&mut self, copy: CopyId) -> Result<Option<Vec<u8>>, CardError>;
    /// Everything launched from now on happens after this copy.
    fn order_after(&mut self, copy: CopyId) -> Result<(), CardError>;
}

/// Runs a kernel.
pub(crate) fn launch<P: Params>(
    card: &mut dyn Card,
    kernel: Kernel,
    launch: Launch,
    params: &P,
) -> Result<(), CardError> {
    debug_assert!(P::KERNELS.contains(&kernel), "{kernel:?} takes other parameters");
    if launch.grid.contains(&0) {
        return Ok(());
    }
    // SAFETY: the parameters are the kernel's, as `Params` says; that addresses and sizes in them are right is the work of `forward`, which
    // takes them from one description of the model.
    unsafe { card.launch_raw(kernel, launch, std::ptr::from_ref(params).cast()) }
}
