//! Weights: files of tensors to tensors by role.
//!
//! In: files, open, and the config that says which tensors there must be. Out: [`Weights`]: vectors in f32, and matrices `[out, in]` that
//! stay where the files have them until someone takes their rows (`matrix`); and a digest over names, types, shapes and bytes.
//! Everything is checked here, so that a backend can trust it: names, shapes, types and finiteness. Deliberately not here: the
//! files themselves (`files`), what they must hold (`layout`), quantisation, and layouts that a device likes.

mod elements;
mod experts;
mod files;
mod layout;
mod matrix;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use holdfast_types::Digest;

use crate::{DecoderConfig, GgufForm, LayerPart, ModelError, TensorRole, gguf};
#[cfg(test)]
pub(crate) use elements::BLOCKS;
pub(crate) use elements::Element;
use files::File;
pub(crate) use files::{Stored, WeightBytes, verify_checksums};
use layout::Layout;
use matrix::Values;
pub use matrix::{OtherRow, WeightMatrix, WeightRow};

/// Hears how many bytes of tensors were read, and how many there are.
pub(crate) type OnRead<'a> = dyn FnMut(u64, u64) + 'a;

/// The weights of a model, checked against its config.
///
/// Immutable once made. What it gives lives as long as the value does; rows of matrices point into the mapping.
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
    pub q: WeightMatrix<'a>,
    /// `[kv_heads * head_dim, hidden]`.
    pub k: WeightMatrix<'a>,
    /// `[kv_heads * head_dim, hidden]`.
    pub v: WeightMatrix<'a>,
    /// `[hidden, heads * head_dim]`.
    pub output: WeightMatrix<'a>,
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
    pub router: Option<WeightMatrix<'a>>,
    /// `[experts]`.
    pub router_bias: Option<&'a [f32]>,
    /// `[ffn, hidden]`; with experts, these and the biases begin with a dimension `experts`.
    pub gate: WeightMatrix<'a>,
    /// `[ffn, hidden]`.
    pub up: WeightMatrix<'a>,
    /// `[hidden, ffn]`.
    pub down: WeightMatrix<'a>,
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
    pub fn embeddings(&self) -> WeightMatrix<'_> {
        self.needed(TensorRole::Embedding).matrix()
    }

    /// Norm before the output matrix, `[hidden]`.
    pub fn final_norm(&self) -> &[f32] {
        self.needed(TensorRole::FinalNorm).as_slice()
    }

    /// Output matrix, `[vocab_size, hidden]`; the embedding when tied.
    pub fn lm_head(&self) -> WeightMatrix<'_> {
        self.tensors.get(&TensorRole::LmHead).map_or_else(|| self.embeddings(), Values::matrix)
    }

    /// Whether the output matrix is the embedding.
    pub fn is_tied(&self) -> bool {
        !self.tensors.contains_key(&TensorRole::LmHead)
    }

    /// One layer.
    ///
    /// # Panics
    /// When `index` is not below the number of layers, as for a slice.
    pub fn layer(&self, index: usize) -> LayerWeights<'_> {
        assert!(index < self.layers, "layer {index} of {}", self.layers);
        let needed = |part| self.needed(TensorRole::Layer(index, part)).as_slice();
        let matrix = |part| self.needed(TensorRole::Layer(index, part)).matrix();
        let optional = |part| self.tensor(TensorRole::Layer(index, part));
        LayerWeights {
            attention_norm: needed(LayerPart::AttentionNorm),
            q: matrix(LayerPart::Q),
            k: matrix(LayerPart::K),
            v: matrix(LayerPart::V),
            output: matrix(LayerPart::Output),
            q_norm: optional(LayerPart::QNorm),
            k_norm: optional(LayerPart::KNorm),
            q_bias: optional(LayerPart::QBias),
            k_bias: optional(LayerPart::KBias),
            v_bias: optional(LayerPart::VBias),
            output_bias: optional(LayerPart::OutputBias),
            sinks: optional(LayerPart::Sinks),
            post_attention_norm: optional(LayerPart::PostAttentionNorm),
            ffn_norm: needed(LayerPart::FfnNorm),
            router: self.tensors.get(&TensorRole::Layer(index, LayerPart::Router)).map(Values::matrix),
            router_bias: optional(LayerPart::RouterBias),
            gate: matrix(LayerPart::Gate),
            up: matrix(LayerPart::Up),
            down: matrix(LayerPart::Down),
            gate_bias: optional(LayerPart::GateBias),
            up_bias: optional(LayerPart::UpBias),
            down_bias: optional(LayerPart::DownBias),
            post_ffn_norm: optional(LayerPart::PostFfnNorm),
        }
    }

    /// A tensor by its role, in f32; `None` when the config has none. Of a matrix, as [`WeightMatrix::values`] gives it.
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

    fn needed(&self, role: TensorRole) -> &Values {
        #[expect(clippy::expect_used, reason = "every tensor that the config asks for was put in by `check`")]
        self.tensors.get(&role).expect("a checked tensor")
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
