//! What can go wrong while a model is made: [`MakeError`].

use std::io;
use std::path::PathBuf;

/// Why there is no model.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// A name that is not in the table.
    #[error("no shape is called {name:?}; known are {known}")]
    UnknownShape {
        /// As given.
        name: String,
        /// Every name, comma-separated.
        known: String,
    },
    /// A format that is not written here.
    #[error("no format is called {name:?}; known are {known}")]
    UnknownFormat {
        /// As given.
        name: String,
        /// Every name, comma-separated.
        known: String,
    },
    /// A shape that cannot be a model in every format.
    #[error("shape {name}: {problem}")]
    Shape {
        /// Of the shape.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The target is taken.
    #[error("{} exists; choose another path or replace it (--force)", path.display())]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// No room for the model.
    #[error("the disk of {} is full: the weights alone take {needed_bytes} bytes", path.display())]
    DiskFull {
        /// The target.
        path: PathBuf,
        /// Bytes of weights in the format that was asked for.
        needed_bytes: u64,
    },
    /// The file system refused.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The target.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
    /// candle could not round a row to its format.
    #[error("cannot encode weights: {0}")]
    Encode(#[from] candle_core::Error),
    /// The file system or the header of a safetensors file.
    #[error("cannot write weights: {0}")]
    Safetensors(#[from] safetensors::SafeTensorError),
    /// The file system refused, and the path is not known yet.
    #[error(transparent)]
    Io(#[from] io::Error),
}
