//! Files of tensors: where a tensor's bytes are, and of which type and shape.
//!
//! In: a directory with safetensors files (one, or shards under an index), bytes in memory, or an open GGUF file. Out:
//! [`File`], tensors by name; and `B3SUMS`, where there is one, held against the files. Deliberately not here: which tensors
//! a model needs, and what their elements are in f32.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::safetensors::{BufferedSafetensors, MmapedSafetensors, SliceSafetensors};
use holdfast_types::Digest;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError};
use serde::Deserialize;

use super::elements::Element;
use crate::limits::{INDEX_BYTES_MAX, TEXT_BYTES_MAX, read_text};
use crate::{ModelError, gguf, safetensors_header};

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";
const CHECKSUM_FILE: &str = "B3SUMS";
/// Most shards of a model.
const SHARDS_MAX: usize = 4_096;

/// Bytes of a safetensors file in memory.
pub(crate) enum WeightBytes {
    /// In the binary.
    Static(&'static [u8]),
    /// On the heap.
    Owned(Vec<u8>),
}

/// A tensor as its file holds it.
pub(crate) struct Stored<'a> {
    pub(crate) element: Element,
    /// Row-major.
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: &'a [u8],
}

impl Stored<'_> {
    /// Where `count` rows from `first` on lie in the bytes. Rows are whole bytes, and whole blocks.
    pub(crate) fn rows(&self, first: usize, count: usize) -> Range<usize> {
        let row = self.bytes.len() / self.shape.first().copied().unwrap_or(1).max(1);
        first * row..(first + count) * row
    }
}

/// One file of tensors, wherever its bytes are.
pub(super) enum File {
    Mapped(MmapedSafetensors),
    Buffered(BufferedSafetensors),
    Static(SliceSafetensors<'static>),
    Gguf(gguf::Tensors),
}

impl File {
    /// Of the bytes of one safetensors file. `path` is for messages.
    pub(super) fn of_bytes(path: &Path, bytes: WeightBytes) -> Result<Self, ModelError> {
        safetensors_header::check_bytes(
            path,
            match &bytes {
                WeightBytes::Static(bytes) => bytes,
                WeightBytes::Owned(bytes) => bytes,
            },
        )?;
        let file = match bytes {
            WeightBytes::Static(bytes) => SliceSafetensors::new(bytes).map(Self::Static),
            WeightBytes::Owned(bytes) => BufferedSafetensors::new(bytes).map(Self::Buffered),
        };
        file.map_err(|e| file_error(path, &e))
    }

    /// Every tensor's name.
    pub(super) fn names(&self) -> Vec<String> {
        let views = match self {
            Self::Mapped(file) => file.tensors(),
            Self::Buffered(file) => file.tensors(),
            Self::Static(file) => file.tensors(),
            Self::Gguf(file) => return file.names(),
        };
        views.into_iter().map(|(name, _)| name).collect()
    }

    /// A tensor by its name.
    pub(super) fn get(&self, name: &str) -> Option<Stored<'_>> {
        let view = match self {
            Self::Mapped(file) => file.get(name),
            Self::Buffered(file) => file.get(name),
            Self::Static(file) => file.get(name),
            Self::Gguf(file) => return file.get(name),
        };
        view.ok().map(|view| stored(&view))
    }
}

fn stored<'a>(view: &TensorView<'a>) -> Stored<'a> {
    let element = match view.dtype() {
        Dtype::F32 => Element::F32,
        Dtype::F16 => Element::F16,
        Dtype::BF16 => Element::Bf16,
        Dtype::U8 => Element::U8,
        other => Element::Other(format!("{other:?}")),
    };
    Stored { element, shape: view.shape().to_vec(), bytes: view.data() }
}

/// Maps the safetensors files of a directory.
pub(super) fn open(directory: &Path) -> Result<Vec<Arc<File>>, ModelError> {
    let map = |path: &PathBuf| {
        safetensors_header::check_file(path)?;
        // SAFETY: the mapping is read only, and soundness needs that nobody changes the file while it is mapped. A model
        // directory is documented as immutable while it is served; candle checks every offset against the length.
        let file = unsafe { MmapedSafetensors::new(path) }.map_err(|e| file_error(path, &e))?;
        Ok(Arc::new(File::Mapped(file)))
    };
    weight_files(directory)?.iter().map(map).collect()
}

/// The safetensors files of a directory: one, or those that the index names.
fn weight_files(directory: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let index = directory.join(INDEX_FILE);
    let single = directory.join(SINGLE_FILE);
    if !index.is_file() {
        fs::metadata(&single).map_err(|source| ModelError::Read { path: single.clone(), source })?;
        return Ok(vec![single]);
    }
    let wrong = |problem: String| ModelError::Weights { path: index.clone(), problem };
    let text = read_text(&index, INDEX_BYTES_MAX)?;
    let Index { weight_map } = serde_json::from_str(&text).map_err(|e| wrong(format!("not an index: {e}")))?;
    if let Some((tensor, shard)) = weight_map.iter().find(|(_, shard)| !is_plain_name(shard)) {
        return Err(wrong(format!("weight_map: shard {shard:?} of tensor {tensor:?} is no file name")));
    }
    let names: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
    if names.is_empty() || names.len() > SHARDS_MAX {
        return Err(wrong(format!("{} shards; 1 to {SHARDS_MAX} are read", names.len())));
    }
    let shards: Vec<_> = names.into_iter().map(|name| directory.join(name)).collect();
    match shards.iter().find_map(|path| fs::metadata(path).err().map(|source| (path, source))) {
        Some((path, source)) => Err(ModelError::Read { path: path.clone(), source }),
        None => Ok(shards),
    }
}

/// The index, as far as it is looked at.
#[derive(Deserialize)]
struct Index {
    /// Shards by tensor.
    weight_map: BTreeMap<String, String>,
}

/// A file name without a way out of its directory.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\', '\0']) && name != "." && name != ".."
}

/// Sorts the ways in which a safetensors file can be unreadable.
fn file_error(path: &Path, error: &candle_core::Error) -> ModelError {
    let path = path.to_owned();
    match root(error) {
        candle_core::Error::Io(source) => {
            ModelError::Read { path, source: std::io::Error::new(source.kind(), source.to_string()) }
        }
        candle_core::Error::SafeTensor(
            problem @ (SafeTensorError::MetadataIncompleteBuffer
            | SafeTensorError::HeaderTooSmall
            | SafeTensorError::InvalidHeaderLength),
        ) => ModelError::Truncated { path, problem: problem.to_string() },
        candle_core::Error::SafeTensor(problem) => {
            ModelError::Weights { path, problem: format!("not a safetensors file: {problem}") }
        }
        other => ModelError::Weights { path, problem: other.to_string().lines().next().unwrap_or_default().to_owned() },
    }
}

fn root(error: &candle_core::Error) -> &candle_core::Error {
    match error {
        candle_core::Error::WithPath { inner, .. }
        | candle_core::Error::WithBacktrace { inner, .. }
        | candle_core::Error::Context { inner, .. } => root(inner),
        other => other,
    }
}

/// Compares every file that the directory's `B3SUMS` lists with its digest, or only the one named `only`; a directory without
/// the list passes.
///
/// # Errors
/// [`ModelError::Checksum`] for a file that differs, [`ModelError::ChecksumList`] for a line that cannot be read.
pub(crate) fn verify_checksums(directory: &Path, only: Option<&OsStr>) -> Result<(), ModelError> {
    let list = directory.join(CHECKSUM_FILE);
    let text = match read_text(&list, TEXT_BYTES_MAX) {
        Ok(text) => text,
        Err(ModelError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |problem: String| ModelError::ChecksumList { path: list.clone(), line: i + 1, problem };
        let (hex, name) = line.split_once("  ").ok_or_else(|| wrong("expected \"hex  filename\"".to_owned()))?;
        let expected = Digest::try_from(hex.to_owned()).map_err(wrong)?;
        if !is_plain_name(name) {
            return Err(wrong(format!("{name:?} is no file name")));
        }
        if only.is_some_and(|only| only != name) {
            continue;
        }
        let path = directory.join(name);
        let read = |source| ModelError::Read { path: path.clone(), source };
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(fs::File::open(&path).map_err(read)?).map_err(read)?;
        let found = Digest(*hasher.finalize().as_bytes());
        if found != expected {
            return Err(ModelError::Checksum { path, expected, found });
        }
    }
    Ok(())
}
