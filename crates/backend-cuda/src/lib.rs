//! NVIDIA GPUs of the H100's class as devices: kernels in CUDA C++, compiled by NVRTC for the card that is found, with paged KV.
//!
//! In: a decoder described by data with its weights, [`CudaSettings`], then step plans through [`holdfast_backend::Backend`]. Out: logits,
//! samples, block bytes; and what cards there are ([`cards()`]). Deliberately not here: block allocation and anything about sessions.
//!
//! Nothing of CUDA is needed to build this or to start a process that has it. Libraries are opened when a card is asked for, and what is
//! missing then is an error with a name and a next step ([`CudaError`]), never a panic.
//!
//! Invariant: a row's bits depend on its sequence's tokens and positions only. Every kernel accumulates each output element in one fixed
//! order, whatever the number of rows. With nested weights the order is the CPU device's.
//!
//! The kernels run in tests on machines without a GPU: `emulation` compiles the same sources with a C++ compiler, and the whole device passes the
//! conformance suite on it. What only a card can show is in `tests/card.rs`.

#[cfg(test)]
extern crate self as holdfast_backend_cuda;

mod cache;
mod card;
mod cards;
mod compile;
mod decoder;
mod device;
#[cfg(test)]
mod emulation;
mod error;
mod experts;
mod figures;
mod forward;
mod gpu;
mod kernels;
mod libraries;
mod matrix;
mod settings;
mod step;

pub use card::CardError;
pub use cards::{CardInfo, Cards, cards};
pub use compile::{ARCHITECTURES, compile};
pub use device::CudaDevice;
pub use error::CudaError;
pub use figures::{CardFigures, figures};
pub use settings::{CudaSettings, KvSize, WeightFormat};
