//! Weights: safetensors files to f32 tensors by role.
//!
//! In: a directory (one file, or shards under an index) or bytes in memory, and the config that says which tensors there
//! must be. Out: [`Weights`], row-major `[out, in]` slices of f32, straight from the mapping where the file holds f32,
//! converted once otherwise; and a digest over names, types, shapes and bytes. Everything is checked here, so that a backend
//! can trust it: names, shapes, types, finiteness, and `B3SUMS` where there is one. Deliberately not here: quantisation
//! and layouts that a device likes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::safetensors::{BufferedSafetensors, MmapedSafetensors, SliceSafetensors};
use holdfast_types::Digest;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError};

use crate::error::some_names;
use crate::{DecoderConfig, LayerPart, ModelError, TensorRole};

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";
const CHECKSUM_FILE: &str = "B3SUMS";
/// Most shards of a model.
const SHARDS_MAX: usize = 4_096;

/// The weights of a model, checked against its config.
///
/// Immutable once made. Slices live as long as the value does; those of f32 files point into the mapping.
pub struct Weights {
    tensors: HashMap<TensorRole, Values>,
    layers: usize,
    digest: Digest,
    parameters: u64,
}

/// One layer's weights. Matrices are `[out, in]`, row-major.
#[derive(Debug, Clone, Copy)]
pub struct LayerWeights<'a> {
    /// `[hidden]`.
    pub attention_norm: &'a [f32],
    /// `[heads * head_dim, hidden]`.
    pub q: &'a [f32],
    /// `[kv_heads * head_dim, hidden]`.
    pub k: &'a [f32],
    /// `[kv_heads * head_dim, hidden]`.
    pub v: &'a [f32],
    /// `[hidden, heads * head_dim]`.
    pub output: &'a [f32],
    /// `[heads * head_dim]`.
    pub q_bias: Option<&'a [f32]>,
    /// `[kv_heads * head_dim]`.
    pub k_bias: Option<&'a [f32]>,
    /// `[kv_heads * head_dim]`.
    pub v_bias: Option<&'a [f32]>,
    /// `[hidden]`.
    pub output_bias: Option<&'a [f32]>,
    /// `[hidden]`.
    pub ffn_norm: &'a [f32],
    /// `[ffn, hidden]`.
    pub gate: &'a [f32],
    /// `[ffn, hidden]`.
    pub up: &'a [f32],
    /// `[hidden, ffn]`.
    pub down: &'a [f32],
    /// `[ffn]`.
    pub gate_bias: Option<&'a [f32]>,
    /// `[ffn]`.
    pub up_bias: Option<&'a [f32]>,
    /// `[hidden]`.
    pub down_bias: Option<&'a [f32]>,
}

impl Weights {
    /// Token embedding, `[vocab_size, hidden]`.
    pub fn embeddings(&self) -> &[f32] {
        self.needed(TensorRole::Embedding)
    }

    /// Norm before the output matrix, `[hidden]`.
    pub fn final_norm(&self) -> &[f32] {
        self.needed(TensorRole::FinalNorm)
    }

    /// Output matrix, `[vocab_size, hidden]`; the embedding when tied.
    pub fn lm_head(&self) -> &[f32] {
        self.tensor(TensorRole::LmHead).unwrap_or_else(|| self.embeddings())
    }

    /// One layer.
    ///
    /// # Panics
    /// When `index` is not below the number of layers, as for a slice.
    pub fn layer(&self, index: usize) -> LayerWeights<'_> {
        assert!(index < self.layers, "layer {index} of {}", self.layers);
        let needed = |part| self.needed(TensorRole::Layer(index, part));
        let optional = |part| self.tensor(TensorRole::Layer(index, part));
        LayerWeights {
            attention_norm: needed(LayerPart::AttentionNorm),
            q: needed(LayerPart::Q),
            k: needed(LayerPart::K),
            v: needed(LayerPart::V),
            output: needed(LayerPart::Output),
            q_bias: optional(LayerPart::QBias),
            k_bias: optional(LayerPart::KBias),
            v_bias: optional(LayerPart::VBias),
            output_bias: optional(LayerPart::OutputBias),
            ffn_norm: needed(LayerPart::FfnNorm),
            gate: needed(LayerPart::Gate),
            up: needed(LayerPart::Up),
            down: needed(LayerPart::Down),
            gate_bias: optional(LayerPart::GateBias),
            up_bias: optional(LayerPart::UpBias),
            down_bias: optional(LayerPart::DownBias),
        }
    }

    /// A tensor by its role; `None` when the config has none.
    pub fn tensor(&self, role: TensorRole) -> Option<&[f32]> {
        self.tensors.get(&role).map(Values::as_slice)
    }

    /// BLAKE3 over every tensor's name, type, shape and bytes, in the order of names.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Number of weights; a tied output matrix is counted once.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    fn needed(&self, role: TensorRole) -> &[f32] {
        #[expect(clippy::expect_used, reason = "every tensor that the config asks for was put in by `check`")]
        self.tensor(role).expect("a checked tensor")
    }

    /// Reads the weights of a directory.
    ///
    /// # Errors
    /// The [`ModelError`] that names the first file or tensor that is wrong.
    pub(crate) fn from_directory(directory: &Path, config: &DecoderConfig) -> Result<Self, ModelError> {
        let paths = weight_files(directory)?;
        let mut files = Vec::with_capacity(paths.len());
        for path in &paths {
            // SAFETY: the mapping is read only, and soundness needs that nobody changes the file while it is mapped. A model
            // directory is documented as immutable while it is served; candle checks every offset against the length.
            let file = unsafe { MmapedSafetensors::new(path) }.map_err(|e| file_error(path, &e))?;
            files.push(Arc::new(File::Mapped(file)));
        }
        check(directory, &files, config)
    }

    /// Reads weights from the bytes of one safetensors file. `path` is for messages.
    ///
    /// # Errors
    /// The [`ModelError`] that names the first tensor that is wrong.
    pub(crate) fn from_bytes(path: &Path, bytes: WeightBytes, config: &DecoderConfig) -> Result<Self, ModelError> {
        let file = match bytes {
            WeightBytes::Static(bytes) => SliceSafetensors::new(bytes).map(File::Static),
            WeightBytes::Owned(bytes) => BufferedSafetensors::new(bytes).map(File::Buffered),
        };
        let file = file.map_err(|e| file_error(path, &e))?;
        check(path, &[Arc::new(file)], config)
    }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weights({} parameters, {})", self.parameters, self.digest)
    }
}

/// Bytes of a safetensors file in memory.
pub(crate) enum WeightBytes {
    /// In the binary.
    Static(&'static [u8]),
    /// On the heap.
    Owned(Vec<u8>),
}

/// One file of tensors, wherever its bytes are.
enum File {
    Mapped(MmapedSafetensors),
    Buffered(BufferedSafetensors),
    Static(SliceSafetensors<'static>),
}

impl File {
    fn tensors(&self) -> Vec<(String, TensorView<'_>)> {
        match self {
            Self::Mapped(file) => file.tensors(),
            Self::Buffered(file) => file.tensors(),
            Self::Static(file) => file.tensors(),
        }
    }

    fn get(&self, name: &str) -> Option<TensorView<'_>> {
        match self {
            Self::Mapped(file) => file.get(name).ok(),
            Self::Buffered(file) => file.get(name).ok(),
            Self::Static(file) => file.get(name).ok(),
        }
    }
}

/// One tensor's elements.
enum Values {
    /// In the file, little-endian and aligned: seen where they lie.
    InFile { file: Arc<File>, name: String },
    /// Converted.
    Owned(Vec<f32>),
}

impl Values {
    fn as_slice(&self) -> &[f32] {
        match self {
            Self::Owned(values) => values,
            #[expect(
                clippy::expect_used,
                reason = "`values_of` made this variant after the same look-up and cast succeeded"
            )]
            Self::InFile { file, name } => {
                let view = file.get(name).expect("a tensor that was there");
                bytemuck::try_cast_slice(view.data()).expect("bytes that were aligned")
            }
        }
    }
}

/// Elements of a view, or the type that is not read.
fn values_of(file: &Arc<File>, name: &str, view: &TensorView<'_>) -> Result<Values, Dtype> {
    let bytes = view.data();
    let halves = |convert: fn([u8; 2]) -> f32| bytes.chunks_exact(2).map(|b| convert([b[0], b[1]])).collect();
    match view.dtype() {
        Dtype::F32 if cfg!(target_endian = "little") && bytemuck::try_cast_slice::<u8, f32>(bytes).is_ok() => {
            Ok(Values::InFile { file: file.clone(), name: name.to_owned() })
        }
        Dtype::F32 => {
            Ok(Values::Owned(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()))
        }
        Dtype::BF16 => Ok(Values::Owned(halves(|b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)))),
        Dtype::F16 => Ok(Values::Owned(halves(|b| half_to_f32(u16::from_le_bytes(b))))),
        other => Err(other),
    }
}

/// IEEE 754 binary16 to binary32, exact.
fn half_to_f32(bits: u16) -> f32 {
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f32::from(bits & 0x3ff));
    match exponent {
        0 => sign * fraction * 2_f32.powi(-24),
        0x1f if fraction == 0.0 => sign * f32::INFINITY,
        0x1f => f32::NAN,
        _ => sign * (1.0 + fraction / 1024.0) * 2_f32.powi(exponent - 15),
    }
}

/// Compares what there is with what there must be, and takes it.
fn check(path: &Path, files: &[Arc<File>], config: &DecoderConfig) -> Result<Weights, ModelError> {
    let path = || path.to_owned();
    let row = config.row();
    let mut found: BTreeMap<String, Arc<File>> = BTreeMap::new();
    for file in files {
        for (name, _) in file.tensors() {
            if row.ignored.iter().any(|end| name.ends_with(end)) {
                continue;
            }
            if found.insert(name.clone(), file.clone()).is_some() {
                return Err(ModelError::Weights { path: path(), problem: format!("tensor {name} is in two files") });
            }
        }
    }
    let specs = config.tensors();
    let missing: Vec<_> = specs.iter().filter(|s| !found.contains_key(&s.name)).map(|s| s.name.clone()).collect();
    if !missing.is_empty() {
        return Err(ModelError::MissingTensors { path: path(), names: some_names(&missing) });
    }
    // Some exporters write the tied matrix twice.
    let embedding = found.get(row.names.embedding).and_then(|f| f.get(row.names.embedding));
    let head = found.get(row.names.lm_head).and_then(|f| f.get(row.names.lm_head));
    let same = matches!((embedding, head), (Some(a), Some(b)) if a.data() == b.data() && a.dtype() == b.dtype());
    if config.tied && same {
        found.remove(row.names.lm_head);
    }
    let wanted: BTreeSet<_> = specs.iter().map(|s| s.name.as_str()).collect();
    let extra: Vec<_> = found.keys().filter(|name| !wanted.contains(name.as_str())).cloned().collect();
    if !extra.is_empty() {
        return Err(ModelError::ExtraTensors { path: path(), names: some_names(&extra) });
    }

    let mut tensors = HashMap::with_capacity(specs.len());
    let mut parameters = 0;
    for spec in specs {
        let Some((file, view)) = found.get(&spec.name).and_then(|file| Some((file, file.get(&spec.name)?))) else {
            return Err(ModelError::MissingTensors { path: path(), names: spec.name });
        };
        if view.shape() != spec.shape {
            let found = view.shape().to_vec();
            return Err(ModelError::WrongShape { path: path(), name: spec.name, expected: spec.shape, found });
        }
        let values = values_of(file, &spec.name, &view).map_err(|dtype| ModelError::WrongDtype {
            path: path(),
            name: spec.name.clone(),
            found: format!("{dtype:?}"),
        })?;
        if let Some((index, &value)) = values.as_slice().iter().enumerate().find(|(_, v)| !v.is_finite()) {
            return Err(ModelError::NonFinite { path: path(), name: spec.name, index, value });
        }
        parameters += values.as_slice().len() as u64;
        tensors.insert(spec.role, values);
    }
    Ok(Weights { tensors, layers: config.layers.len(), digest: digest(&found), parameters })
}

fn digest(found: &BTreeMap<String, Arc<File>>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"holdfast weights 1\n");
    for (name, file) in found {
        if let Some(view) = file.get(name) {
            hasher.update(format!("{name} {:?} {:?}\n", view.dtype(), view.shape()).as_bytes());
            hasher.update(view.data());
        }
    }
    Digest(*hasher.finalize().as_bytes())
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
    let text = fs::read_to_string(&index).map_err(|source| ModelError::Read { path: index.clone(), source })?;
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| wrong(format!("not JSON: {e}")))?;
    let map = value.get("weight_map").and_then(|m| m.as_object()).ok_or_else(|| wrong("no weight_map".to_owned()))?;
    let names: BTreeSet<&str> = map
        .values()
        .map(|name| {
            name.as_str().filter(|n| is_plain_name(n)).ok_or_else(|| wrong(format!("shard {name} is no file name")))
        })
        .collect::<Result<_, _>>()?;
    if names.is_empty() || names.len() > SHARDS_MAX {
        return Err(wrong(format!("{} shards; 1 to {SHARDS_MAX} are read", names.len())));
    }
    let shards: Vec<_> = names.into_iter().map(|name| directory.join(name)).collect();
    match shards.iter().find_map(|path| fs::metadata(path).err().map(|source| (path, source))) {
        Some((path, source)) => Err(ModelError::Read { path: path.clone(), source }),
        None => Ok(shards),
    }
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

/// Compares every file that `B3SUMS` lists with its digest; a directory without the list passes.
///
/// # Errors
/// [`ModelError::Checksum`] for a file that differs, [`ModelError::ChecksumList`] for a line that cannot be read.
pub(crate) fn verify_checksums(directory: &Path) -> Result<(), ModelError> {
    let list = directory.join(CHECKSUM_FILE);
    let text = match fs::read_to_string(&list) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(ModelError::Read { path: list, source }),
    };
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |problem: String| ModelError::ChecksumList { path: list.clone(), line: i + 1, problem };
        let (hex, name) = line.split_once("  ").ok_or_else(|| wrong("expected \"hex  filename\"".to_owned()))?;
        let expected = Digest::try_from(hex.to_owned()).map_err(wrong)?;
        if !is_plain_name(name) {
            return Err(wrong(format!("{name:?} is no file name")));
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

#[cfg(test)]
mod tests {
    use super::half_to_f32;

    #[test]
    fn halves_convert_exactly() {
        for (bits, value) in [
            (0x0000, 0.0),
            (0x8000, -0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65_504.0),
            (0x0400, 6.103_515_6e-5),
            (0x0001, 5.960_464_5e-8),
            (0x3555, 0.333_251_95),
            (0xfc00, f32::NEG_INFINITY),
        ] {
            assert_eq!(half_to_f32(bits).to_bits(), f32::to_bits(value), "{bits:#06x}");
        }
        assert!(half_to_f32(0x7e00).is_nan());
    }
}
