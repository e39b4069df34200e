//! Weights: files of tensors to f32 tensors by role.
//!
//! In: files, open, and the config that says which tensors there must be. Out: [`Weights`], row-major `[out, in]` slices of
//! f32, straight from the mapping where the file holds f32, converted once otherwise; and a digest over names, types, shapes
//! and bytes. Everything is checked here, so that a backend can trust it: names, shapes, types and finiteness. Deliberately not
//! here: the files themselves (`files`), what they must hold (`layout`), quantisation, and layouts that a device likes.

mod experts;
mod files;
mod layout;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use holdfast_types::Digest;

use crate::mxfp4;
use crate::{DecoderConfig, GgufForm, LayerPart, ModelError, TensorRole, gguf};
#[cfg(test)]
pub(crate) use files::BLOCKS;
use files::File;
pub(crate) use files::{Element, Stored, WeightBytes, verify_checksums};
use layout::Layout;

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

/// One layer's weights. Matrices are `[out, in]`, row-major. Norms multiply as they stand, whatever the file adds to them.
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
    /// `[heads]`.
    pub sinks: Option<&'a [f32]>,
    /// `[hidden]`.
    pub post_attention_norm: Option<&'a [f32]>,
    /// `[hidden]`.
    pub ffn_norm: &'a [f32],
    /// `[experts, hidden]`; absent without experts.
    pub router: Option<&'a [f32]>,
    /// `[experts]`.
    pub router_bias: Option<&'a [f32]>,
    /// `[ffn, hidden]`; with experts, these and the biases begin with a dimension `experts`.
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
    /// `[hidden]`.
    pub post_ffn_norm: Option<&'a [f32]>,
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
            sinks: optional(LayerPart::Sinks),
            post_attention_norm: optional(LayerPart::PostAttentionNorm),
            ffn_norm: needed(LayerPart::FfnNorm),
            router: optional(LayerPart::Router),
            router_bias: optional(LayerPart::RouterBias),
            gate: needed(LayerPart::Gate),
            up: needed(LayerPart::Up),
            down: needed(LayerPart::Down),
            gate_bias: optional(LayerPart::GateBias),
            up_bias: optional(LayerPart::UpBias),
            down_bias: optional(LayerPart::DownBias),
            post_ffn_norm: optional(LayerPart::PostFfnNorm),
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
            Element::U8 | Element::Other(_) => Err(Unread::Dtype),
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
