//! What can be wrong with a GPU, its libraries, or what is asked of it.
//!
//! In: what was found. Out: one sentence with the next step. Deliberately not here: errors of a step, which are
//! [`holdfast_backend::BackendError`]s and come from [`crate::card::CardError`].

use std::path::PathBuf;

use crate::card::CardError;

/// Why a device cannot be made, or cards cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// There is no driver.
    #[error(
        "NVIDIA's driver was not found: no library libcuda.so.1. Install the driver of the GPU (in a container: start it with the NVIDIA \
         container runtime), or use device.kind = \"neuron\""
    )]
    NoDriver,
    /// The driver is there and does not work.
    #[error("NVIDIA's driver does not start: {0}. Look at nvidia-smi and at the kernel's log")]
    Driver(CardError),
    /// The driver knows of fewer cards.
    #[error(
        "there is no GPU {ordinal}: the driver knows of {count}. Set device.ordinal below that, look at CUDA_VISIBLE_DEVICES, or use \
         device.kind = \"neuron\""
    )]
    NoCard {
        /// The one that was asked for.
        ordinal: u32,
        /// How many there are.
        count: u32,
    },
    /// There is no compiler.
    #[error(
        "NVRTC, CUDA's compiler at run time, was not found: no library libnvrtc.so.13 or .12{}. Install it (apt: libnvrtc13 or \
         cuda-nvrtc-13-0; pip: nvidia-cuda-nvrtc) and, if it is in no usual place, set device.nvrtc to the path of the library",
        .named.as_ref().map(|path| format!(", nor {}", path.display())).unwrap_or_default()
    )]
    NoNvrtc {
        /// Where the settings say that it is.
        named: Option<PathBuf>,
    },
    /// The card is too old.
    #[error(
        "{name} has compute capability {major}.{minor}, the kernels need 8.0 (Ampere) or later. Use another GPU or device.kind = \"neuron\""
    )]
    ComputeCapability {
        /// The card.
        name: String,
        /// Its capability.
        major: u32,
        /// Its second part.
        minor: u32,
    },
    /// NVRTC refuses the kernels.
    #[error("NVRTC {version} does not compile the kernels for {architecture}: {log}")]
    Compile {
        /// Of NVRTC.
        version: String,
        /// For example `sm_90`.
        architecture: String,
        /// What it says.
        log: String,
    },
    /// A setting is out of range.
    #[error("device setting {setting} is {value}, {rule}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What it was.
        value: String,
        /// What it may be.
        rule: String,
    },
    /// The model has a shape that the device cannot compute.
    #[error("the CUDA device cannot run this model: {0}")]
    Model(String),
    /// The card holds too little.
    #[error(
        "the GPU's memory is too small: {needed} bytes are needed for {what}, {free} of {total} are free. {advice}"
    )]
    Memory {
        /// What for.
        what: &'static str,
        /// How many bytes.
        needed: u64,
        /// How many are free.
        free: u64,
        /// How many there are.
        total: u64,
        /// What to do.
        advice: &'static str,
    },
    /// The card failed.
    #[error("the GPU: {0}")]
    Card(#[from] CardError),
}
