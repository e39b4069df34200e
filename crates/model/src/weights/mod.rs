//! Weights: files of tensors to f32 tensors by role.
//!
//! In: files, open, and the config that says which tensors there must be. Out: [`Weights`], row-major `[out, in]` slices of
//! f32, straight from the mapping where the file holds f32, converted once otherwise; and a digest over names, types, shapes
//! and bytes. Everything is checked here, so that a backend can trust it: names, shapes, types and finiteness. Deliberately not
//! here: the files themselves (`files`), quantisation, and layouts that a device likes.

mod files;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use holdfast_types::Digest;

use crate::error::some_names;
use crate::gguf::{self, ROPE_TENSORS};
use crate::mxfp4;
use crate::{DecoderConfig, GgufForm, LayerPart, ModelError, TensorNames, TensorRole, TensorSpec};
#[cfg(test)]
pub(crate) use files::BLOCKS;
use files::File;
pub(crate) use files::{Element, Stored, WeightBytes, verify_checksums};

/// Hears how many bytes of tensors were read, and how many there are.
pub(crate) type OnRead<'a> = dyn FnMut(u64, u64) + 'a;

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
    /// `[head_dim]`.
    pub q_norm: Option<&'a [f32]>,
    /// `[head_dim]`.
    pub k_norm: Option<&'a [f32]>,
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
            q_norm: optional(LayerPart::QNorm),
            k_norm: optional(LayerPart::KNorm),
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
    pub(crate) fn from_directory(
        directory: &Path,
        config: &DecoderConfig,
        on_read: &mut OnRead<'_>,
    ) -> Result<Self, ModelError> {
        Layout::safetensors(config).check(directory, &files::open(directory)?, config, on_read)
    }

    /// Reads weights from the bytes of one safetensors file. `path` is for messages.
    ///
    /// # Errors
    /// The [`ModelError`] that names the first tensor that is wrong.
    pub(crate) fn from_bytes(path: &Path, bytes: WeightBytes, config: &DecoderConfig) -> Result<Self, ModelError> {
        Layout::safetensors(config).check(path, &[Arc::new(File::of_bytes(path, bytes)?)], config, &mut |_, _| {})
    }

    /// Reads the weights of a GGUF file. `path` is for messages.
    ///
    /// # Errors
    /// The [`ModelError`] that names the first tensor that is wrong.
    pub(crate) fn from_gguf(
        path: &Path,
        tensors: gguf::Tensors,
        config: &DecoderConfig,
        form: &GgufForm,
        on_read: &mut OnRead<'_>,
    ) -> Result<Self, ModelError> {
        Layout::gguf(form).check(path, &[Arc::new(File::Gguf(tensors))], config, on_read)
    }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weights({} parameters, {})", self.parameters, self.digest)
    }
}

/// One tensor's elements.
enum Values {
    /// In the file, little-endian and aligned: seen where they lie, at these of the tensor's bytes.
    InFile { file: Arc<File>, name: String, place: Range<usize> },
    /// Converted.
    Owned(Vec<f32>),
}

impl Values {
    /// Takes `rows` of a tensor as they are, or converts them.
    fn take(file: &Arc<File>, name: &str, stored: &Stored<'_>, rows: Range<usize>) -> Result<Self, Unread> {
        let place = stored.rows(rows.start, rows.len());
        let bytes = &stored.bytes[place.clone()];
        let halves = |convert: fn([u8; 2]) -> f32| bytes.chunks_exact(2).map(|b| convert([b[0], b[1]])).collect();
        match &stored.element {
            Element::F32 if cfg!(target_endian = "little") && bytemuck::try_cast_slice::<u8, f32>(bytes).is_ok() => {
                Ok(Self::InFile { file: file.clone(), name: name.to_owned(), place })
            }
            Element::F32 => {
                Ok(Self::Owned(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()))
            }
            Element::Bf16 => Ok(Self::Owned(halves(|b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)))),
            Element::F16 => Ok(Self::Owned(halves(|b| half_to_f32(u16::from_le_bytes(b))))),
            Element::Blocks(dtype) => {
                let mut shape = stored.shape.clone();
                shape[0] = rows.len();
                dequantised(*dtype, bytes, shape)
            }
            Element::Mxfp4 => Ok(Self::Owned(mxfp4::to_f32(bytes))),
            Element::Other(_) => Err(Unread::Dtype),
        }
    }

    fn as_slice(&self) -> &[f32] {
        match self {
            Self::Owned(values) => values,
            #[expect(
                clippy::expect_used,
                reason = "`take` made this variant after the same look-up and cast succeeded"
            )]
            Self::InFile { file, name, place } => {
                let stored = file.get(name).expect("a tensor that was there");
                bytemuck::try_cast_slice(&stored.bytes[place.clone()]).expect("bytes that were aligned")
            }
        }
    }
}

/// Why elements were not taken.
enum Unread {
    /// The type is not read.
    Dtype,
    /// candle cannot take the blocks apart.
    Blocks(String),
}

/// Blocks of quantised elements to f32. Tensors are aligned as the container promises and blocks have an even number of bytes,
/// which is what the blocks' scales need.
fn dequantised(dtype: GgmlDType, bytes: &[u8], shape: Vec<usize>) -> Result<Values, Unread> {
    let tensor = qtensor_from_ggml(dtype, bytes, shape, &Device::Cpu);
    let values = tensor.and_then(|tensor| tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1());
    values.map(Values::Owned).map_err(|e| Unread::Blocks(e.to_string()))
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

/// How a kind of file keeps a config's tensors.
struct Layout {
    names: &'static TensorNames,
    /// Ends of names that are passed over.
    ignored: &'static [&'static str],
    /// Tensors that the config was made of: no weights, but part of the digest.
    beside: &'static [&'static str],
    /// Heads of q and k whose rows are interleaved, and must be put in half-split order.
    interleaved: bool,
    /// Types of elements that are read.
    read: &'static str,
}

impl Layout {
    fn safetensors(config: &DecoderConfig) -> Self {
        let row = config.row();
        Self { names: row.names, ignored: row.ignored, beside: &[], interleaved: false, read: "F32, F16 and BF16" }
    }

    fn gguf(form: &GgufForm) -> Self {
        Self { names: form.names, ignored: &[], beside: ROPE_TENSORS, interleaved: form.interleaved, read: gguf::READ }
    }

    /// Compares what there is with what there must be, and takes it.
    fn check(
        &self,
        path: &Path,
        files: &[Arc<File>],
        config: &DecoderConfig,
        on_read: &mut OnRead<'_>,
    ) -> Result<Weights, ModelError> {
        let path = || path.to_owned();
        let names = self.names;
        let mut found: BTreeMap<String, Arc<File>> = BTreeMap::new();
        for file in files {
            for name in file.names() {
                if self.ignored.iter().any(|end| name.ends_with(end)) {
                    continue;
                }
                if found.insert(name.clone(), file.clone()).is_some() {
                    return Err(ModelError::Weights {
                        path: path(),
                        problem: format!("tensor {name} is in two files"),
                    });
                }
            }
        }
        let specs = config.tensors_by(names);
        let rows = rows_of(&specs);
        let mut missing: Vec<_> =
            specs.iter().filter(|s| !found.contains_key(&s.name)).map(|s| s.name.clone()).collect();
        missing.dedup();
        if !missing.is_empty() {
            return Err(ModelError::MissingTensors { path: path(), names: some_names(&missing) });
        }
        // Some exporters write the tied matrix twice.
        let embedding = found.get(names.embedding).and_then(|f| f.get(names.embedding));
        let head = found.get(names.lm_head).and_then(|f| f.get(names.lm_head));
        let same = matches!((embedding, head), (Some(a), Some(b)) if a.bytes == b.bytes && a.element == b.element);
        if config.tied && same {
            found.remove(names.lm_head);
        }
        let wanted: BTreeSet<_> = specs.iter().map(|s| s.name.as_str()).chain(self.beside.iter().copied()).collect();
        let extra: Vec<_> = found.keys().filter(|name| !wanted.contains(name.as_str())).cloned().collect();
        if !extra.is_empty() {
            return Err(ModelError::ExtraTensors { path: path(), names: some_names(&extra) });
        }

        let mut tensors = HashMap::with_capacity(specs.len());
        let mut parameters = 0;
        let sizes = found.iter().filter_map(|(name, file)| Some(file.get(name)?.bytes.len() as u64));
        let (mut bytes_read, bytes_total) = (0, sizes.sum());
        for (spec, (rows, rows_in_all)) in specs.into_iter().zip(rows) {
            let Some((file, stored)) = found.get(&spec.name).and_then(|file| Some((file, file.get(&spec.name)?)))
            else {
                return Err(ModelError::MissingTensors { path: path(), names: spec.name });
            };
            let mut expected = spec.shape.clone();
            expected[0] = rows_in_all;
            if stored.shape != expected {
                let found = stored.shape;
                return Err(ModelError::WrongShape { path: path(), name: spec.name, expected, found });
            }
            let first = rows.start * stored.shape.iter().skip(1).product::<usize>();
            let mut values = Values::take(file, &spec.name, &stored, rows).map_err(|unread| match unread {
                Unread::Dtype => ModelError::WrongDtype {
                    path: path(),
                    name: spec.name.clone(),
                    found: stored.element.name().to_owned(),
                    read: self.read,
                },
                Unread::Blocks(problem) => {
                    ModelError::Weights { path: path(), problem: format!("tensor {}: {problem}", spec.name) }
                }
            })?;
            if self.interleaved && is_turned(spec.role) {
                values = Values::Owned(half_split(values.as_slice(), config.head_dim, spec.shape[0]));
            }
            if let Some((index, &value)) = values.as_slice().iter().enumerate().find(|(_, v)| !v.is_finite()) {
                return Err(ModelError::NonFinite { path: path(), name: spec.name, index: first + index, value });
            }
            parameters += values.as_slice().len() as u64;
            // A part of a tensor has its share of the bytes.
            bytes_read += (stored.bytes.len() / rows_in_all * spec.shape[0]) as u64;
            on_read(bytes_read, bytes_total);
            tensors.insert(spec.role, values);
        }
        Ok(Weights { tensors, layers: config.layers.len(), digest: digest(&found), parameters })
    }
}

/// For each spec, its rows of the tensor that holds it, and how many that tensor has.
fn rows_of(specs: &[TensorSpec]) -> Vec<(Range<usize>, usize)> {
    let mut in_all: HashMap<&str, usize> = HashMap::new();
    let mut places = Vec::with_capacity(specs.len());
    for spec in specs {
        let end = in_all.entry(&spec.name).or_default();
        places.push(*end..*end + spec.shape[0]);
        *end += spec.shape[0];
    }
    places.into_iter().zip(specs).map(|(rows, spec)| (rows, in_all[spec.name.as_str()])).collect()
}

/// Whether rotary embedding turns what this tensor makes.
fn is_turned(role: TensorRole) -> bool {
    use LayerPart::{K, KBias, Q, QBias};
    matches!(role, TensorRole::Layer(_, Q | K | QBias | KBias))
}

/// Undoes llama.cpp's `LlamaModel.permute`: of each head, rows 2i and 2i + 1 become rows i and i + head_dim / 2.
fn half_split(values: &[f32], head_dim: usize, rows: usize) -> Vec<f32> {
    let (width, half) = (values.len() / rows, head_dim / 2);
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_dim * width) {
        for row in 0..head_dim {
            let from = 2 * (row % half) + row / half;
            out.extend_from_slice(&head[from * width..(from + 1) * width]);
        }
    }
    out
}

fn digest(found: &BTreeMap<String, Arc<File>>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"holdfast weights 1\n");
    for (name, file) in found {
        if let Some(stored) = file.get(name) {
            hasher.update(format!("{name} {} {:?}\n", stored.element.name(), stored.shape).as_bytes());
            hasher.update(stored.bytes);
        }
    }
    Digest(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::{half_split, half_to_f32};

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

    #[test]
    fn interleaved_heads_become_half_split() {
        // Two heads of four rows of one, as llama.cpp writes rows 0 to 7.
        assert_eq!(half_split(&[0., 2., 1., 3., 4., 6., 5., 7.], 4, 8), [0., 1., 2., 3., 4., 5., 6., 7.]);
        let rows_of_two = [0., 1., 4., 5., 2., 3., 6., 7.];
        assert_eq!(half_split(&rows_of_two, 4, 4), [0., 1., 2., 3., 4., 5., 6., 7.]);
    }
}
