//! Models of real shapes with seeded random weights, in formats that any engine reads: what benchmarks and tests load when
//! sense does not matter.
//!
//! In: a [`Shape`], a [`Format`] and a seed. Out: a file or a directory, which appears only when it is whole. The same seed
//! gives the same model in every format: each weight is a bf16 number before any format rounds it further. Memory stays at a
//! few megabytes for GGUF and at the largest tensor for safetensors, whatever the size of the model. Deliberately not here:
//! reading models (the model crate), and any weights that were trained.
#![forbid(unsafe_code)]

mod error;
mod format;
mod gguf;
mod hf;
mod place;
mod shape;
mod tensors;
mod tokenizer;
mod weights;

use std::path::Path;

pub use error::MakeError;
pub use format::Format;
pub use shape::{Family, SHAPES, Shape};

/// Hears (bytes of weights done, bytes of weights in all) as they grow.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Makes a model where nothing is yet. Missing parent directories are made too.
///
/// # Errors
/// [`MakeError::Exists`] when something is at `path`; otherwise as the [`MakeError`] says. Nothing is left behind.
pub fn make(shape: &Shape, format: Format, seed: u64, path: &Path, progress: Progress<'_>) -> Result<(), MakeError> {
    if path.symlink_metadata().is_ok() {
        return Err(MakeError::Exists { path: path.to_owned() });
    }
    remake(shape, format, seed, path, progress)
}

/// As [`make`], but takes the place of what is at `path`, once the new model is whole.
///
/// # Errors
/// As the [`MakeError`] says. What was at `path` is then still there.
pub fn remake(shape: &Shape, format: Format, seed: u64, path: &Path, progress: Progress<'_>) -> Result<(), MakeError> {
    shape.check()?;
    let needed_bytes = format.weight_bytes(shape);
    place::when_whole(path, needed_bytes, |path| match format.ggml() {
        Some(dtype) => gguf::write(shape, dtype, seed, path, progress),
        None => hf::write(shape, seed, path, hf::SHARD_BYTES_MAX, progress),
    })
}
