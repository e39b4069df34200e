//! The CPU stand-in for a Trainium/Inferentia-style chip, and the default device: a whole decoder on a fixed set of threads, with
//! paged KV.
//!
//! In: a decoder described by data with its weights, [`NeuronSettings`], then step plans through
//! [`holdfast_backend::Backend`]. Out: logits, samples, block bytes. Deliberately not here: block allocation and anything about
//! sessions. [`program`] models the chip that it stands for; nothing else here knows that chip.
//!
//! Invariant: a row's bits depend on its sequence's tokens and positions only. Every kernel accumulates each output element
//! in one fixed order, whatever the batch, the tile, the thread or the instruction set; that is why neither threads nor
//! instruction sets are part of the numerics class.

mod aside;
mod attention;
mod decoder;
mod device;
mod experts;
mod forward;
pub mod kernels;
mod kv;
pub mod limits;
mod matrix;
mod memory;
mod nested;
mod packings;
mod pool;
pub mod program;
mod rows;
mod settings;

pub use device::NeuronDevice;
pub use kernels::Isa;
pub use settings::{KvFormat, KvSize, NeuronError, NeuronSettings, PackingSettings, WeightFormat};
