//! `config.json` to [`DecoderConfig`]: a decoder described by data.
//!
//! In: the text of a `config.json`. Out: shapes, rotary embedding and the parts of every layer, and through
//! [`DecoderConfig::tensors`] the name and shape of every weight. A family of models is a row of [`ARCHITECTURES`], not a
//! code path. What is not understood is refused by name: a key that nobody here knows may change the arithmetic.
//! Deliberately not here: reading weights, and anything about text.

mod architectures;
mod json;
mod names;
mod rope;
mod windows;

use std::path::Path;

use serde_json::Value;

use crate::ModelError;
pub(crate) use architectures::GGUF_WINDOW;
pub use architectures::{ARCHITECTURES, Architecture, BiasRule, CapRule, GgufForm, WindowRule};
pub use names::TensorNames;
pub(crate) use rope::long_rope_attention_factor;
pub use rope::{RopeConfig, RopeScaling};

/// Largest dimension or count that a config may ask for; keeps products of two inside 64 bits.
const DIMENSION_MAX: u64 = 1 << 24;

/// A decoder-only transformer: pre-norm RMSNorm, grouped-query attention with rotary embedding in the half-split
/// convention (element i turns with element i + rotary_dim / 2), gated feed-forward or a mixture of such.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Name of the row of [`ARCHITECTURES`].
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// One entry per layer, in order.
    pub layers: Vec<LayerConfig>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Elements of each query and key head, from its first, that rotary embedding turns; even. The rest stays as it is.
    pub rotary_dim: usize,
    /// Scores are divided by its root: `head_dim`, in most families.
    pub query_scalar: f64,
    /// Scores are held below it: `cap * tanh(score / cap)`.
    pub score_cap: Option<f32>,
    /// Width of the feed-forward, of one expert where there are experts.
    pub ffn: usize,
    /// The feed-forward's activation.
    pub activation: Activation,
    /// The feed-forward is a mixture of experts.
    pub experts: Option<ExpertsConfig>,
    /// Rows of the embedding and length of a row of logits.
    pub vocab_size: u32,
    /// Embeddings are multiplied by it.
    pub embedding_scale: f32,
    /// Logits are held below it: `cap * tanh(logit / cap)`.
    pub logit_cap: Option<f32>,
    /// Most positions.
    pub context_limit: u32,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Rotary embedding of the layers that say so.
    pub local_rope: Option<RopeConfig>,
    /// Added to the mean square before the root.
    pub norm_eps: f32,
    /// The output matrix is the embedding.
    pub tied: bool,
}

/// A mixture of experts: for each token a router chooses some feed-forwards, whose outputs are added up by its shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertsConfig {
    /// Experts of a layer.
    pub count: usize,
    /// Experts of a token: those with the largest logits of the router. Their shares are the softmax over these logits.
    pub chosen: usize,
    /// Hugging Face files hold them in MXFP4.
    pub packed: bool,
}

/// What a feed-forward does between its matrices, to gate and up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `silu(gate) * up`.
    Silu,
    /// `gelu(gate) * up`, with the approximation of GELU by tanh (Hendrycks and Gimpel, 2016).
    GeluTanh,
    /// `g / (1 + e^(-alpha g)) * (u + 1)`, where g is gate, at most `limit`, and u is up, at most `limit` in size.
    ClampedSwiglu {
        /// Steepness of the gate.
        alpha: f32,
        /// Bound of gate and up.
        limit: f32,
    },
}

/// What turns a layer's queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerRope {
    /// Nothing: nothing tells the layer their positions.
    Unturned,
    /// [`DecoderConfig::rope`].
    Global,
    /// [`DecoderConfig::local_rope`].
    Local,
}

/// What one layer has beyond the common shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerConfig {
    /// Bias on q, k and v.
    pub qkv_bias: bool,
    /// Bias on the attention's output.
    pub output_bias: bool,
    /// Bias on gate, up and down.
    pub mlp_bias: bool,
    /// RMSNorm of each query and key head, before the rotary embedding.
    pub qk_norm: bool,
    /// One learned logit for each query head beside its scores, with nothing to mix behind it: an attention sink.
    pub sinks: bool,
    /// RMSNorm of what attention and feed-forward add to the stream.
    pub post_norms: bool,
    /// What turns queries and keys.
    pub rope: LayerRope,
    /// Sliding window in tokens, the own one included; `None` attends to everything.
    pub window: Option<u32>,
}

/// A tensor that a config asks for, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the files.
    pub name: String,
    /// Row-major shape, `[out, in]` for matrices and `[experts, out, in]` for those of experts; of the part.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: TensorRole,
    /// How it lies in the files.
    pub storage: Storage,
}

/// How a tensor lies in the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// As its shape says; specs with the same name are rows of one tensor, under one another in their order.
    Rows,
    /// In `[experts, in, of * out]`, or `[experts, of * out]` for a bias: output i of an expert is number `of * i + from` there.
    Transposed {
        /// Place among the specs with the same name.
        from: usize,
        /// How many these are.
        of: usize,
    },
    /// In MXFP4: output i of an expert is row `of * i + from` of `[experts, of * out, in / 32, 16]` under the name and `_blocks`, the scales of
    /// its blocks in `[experts, of * out, in / 32]` under the name and `_scales`.
    Packed {
        /// As above.
        from: usize,
        /// As above.
        of: usize,
    },
}

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TensorRole {
    /// Token embedding, `[vocab, hidden]`.
    Embedding,
    /// Norm before the output matrix.
    FinalNorm,
    /// Output matrix, `[vocab, hidden]`; absent when tied.
    LmHead,
    /// A part of a layer.
    Layer(usize, LayerPart),
}

/// A part of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each variant is the role that its name says")]
pub enum LayerPart {
    AttentionNorm,
    Q,
    K,
    V,
    QNorm,
    KNorm,
    Sinks,
    Output,
    PostAttentionNorm,
    FfnNorm,
    Router,
    Gate,
    Up,
    Down,
    PostFfnNorm,
    QBias,
    KBias,
    VBias,
    OutputBias,
    RouterBias,
    GateBias,
    UpBias,
    DownBias,
}

impl TensorRole {
    /// Whether these are the weights of a norm.
    pub fn is_norm(self) -> bool {
        use LayerPart::{AttentionNorm, FfnNorm, KNorm, PostAttentionNorm, PostFfnNorm, QNorm};
        match self {
            Self::Embedding | Self::LmHead => false,
            Self::FinalNorm => true,
            Self::Layer(_, part) => {
                matches!(part, AttentionNorm | QNorm | KNorm | PostAttentionNorm | FfnNorm | PostFfnNorm)
            }
        }
    }
}

impl DecoderConfig {
    /// Reads a `config.json`. `path` is for messages.
    ///
    /// # Errors
    /// [`ModelError::Config`] with the key, or [`ModelError::UnknownArchitecture`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ModelError> {
        let wrong = |problem: String| ModelError::Config { path: path.to_owned(), problem };
        let value: Value = serde_json::from_str(text).map_err(|e| wrong(format!("not JSON: {e}")))?;
        let Value::Object(map) = value else { return Err(wrong("not a JSON object".to_owned())) };
        let architecture = json::architecture_of(&map, path)?;
        json::read(&map, architecture).map_err(wrong)
    }

    /// The family's row.
    pub fn row(&self) -> &'static Architecture {
        // A config is only made from a row of the table.
        ARCHITECTURES.iter().find(|row| row.name == self.architecture).unwrap_or(&ARCHITECTURES[0])
    }

    /// Elements of all query heads together.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Elements of all key heads together; the same for values.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Radians per position of each pair of elements that turns: `rotary_dim / 2` values, falling.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        self.rope.inverse_frequencies(self.rotary_dim)
    }

    /// Every tensor that the model must have, embedding first, then layer by layer, then the end; by their names in
    /// safetensors files.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        self.tensors_by(self.row().names)
    }

    /// The same by other names.
    pub(crate) fn tensors_by(&self, names: &TensorNames) -> Vec<TensorSpec> {
        let vocab = self.vocab_size as usize;
        let mut all = Vec::with_capacity(self.layers.len() * 11 + 3);
        let mut add = |name: &str, shape: &[usize], role| {
            all.push(TensorSpec { name: name.to_owned(), shape: shape.to_vec(), role, storage: Storage::Rows });
        };
        add(names.embedding, &[vocab, self.hidden], TensorRole::Embedding);
        for (i, layer) in self.layers.iter().enumerate() {
            let (h, q, kv, d) = (self.hidden, self.q_width(), self.kv_width(), self.head_dim);
            let number = i.to_string();
            let mut part = |pattern: &str, shape: &[usize], part, bias: Option<LayerPart>| {
                let name = pattern.replace("{}", &number);
                add(&name, shape, TensorRole::Layer(i, part));
                if let Some(bias) = bias {
                    add(&bias_of(&name), &shape[..shape.len() - 1], TensorRole::Layer(i, bias));
                }
            };
            let qkv = |bias| layer.qkv_bias.then_some(bias);
            part(names.attention_norm, &[h], LayerPart::AttentionNorm, None);
            part(names.q, &[q, h], LayerPart::Q, qkv(LayerPart::QBias));
            part(names.k, &[kv, h], LayerPart::K, qkv(LayerPart::KBias));
            part(names.v, &[kv, h], LayerPart::V, qkv(LayerPart::VBias));
            if layer.qk_norm {
                part(names.q_norm, &[d], LayerPart::QNorm, None);
                part(names.k_norm, &[d], LayerPart::KNorm, None);
            }
            if layer.sinks {
                part(names.sinks, &[self.heads], LayerPart::Sinks, None);
            }
            part(names.output, &[h, q], LayerPart::Output, layer.output_bias.then_some(LayerPart::OutputBias));
            if layer.post_norms {
                part(names.post_attention_norm, &[h], LayerPart::PostAttentionNorm, None);
            }
            part(names.ffn_norm, &[h], LayerPart::FfnNorm, None);
            if let Some(experts) = self.experts {
                part(names.router, &[experts.count, h], LayerPart::Router, Some(LayerPart::RouterBias));
            }
            let mlp = |bias| layer.mlp_bias.then_some(bias);
            // Experts are the outermost dimension of their matrices and biases.
            let shape = |out, input| self.experts.map(|e| e.count).into_iter().chain([out, input]).collect::<Vec<_>>();
            part(names.gate, &shape(self.ffn, h), LayerPart::Gate, mlp(LayerPart::GateBias));
            part(names.up, &shape(self.ffn, h), LayerPart::Up, mlp(LayerPart::UpBias));
            part(names.down, &shape(h, self.ffn), LayerPart::Down, mlp(LayerPart::DownBias));
            if layer.post_norms {
                part(names.post_ffn_norm, &[h], LayerPart::PostFfnNorm, None);
            }
        }
        add(names.final_norm, &[self.hidden], TensorRole::FinalNorm);
        if !self.tied {
            add(names.lm_head, &[vocab, self.hidden], TensorRole::LmHead);
        }
        if names.transposed_experts {
            all.iter_mut().for_each(|spec| spec.storage = self.transposed(spec.role));
        }
        all
    }

    /// How files with transposed experts hold a tensor.
    fn transposed(&self, role: TensorRole) -> Storage {
        let packed = self.experts.is_some_and(|experts| experts.packed);
        let TensorRole::Layer(_, part) = role else { return Storage::Rows };
        let (from, of, is_bias) = match part {
            LayerPart::Gate => (0, 2, false),
            LayerPart::Up => (1, 2, false),
            LayerPart::Down => (0, 1, false),
            LayerPart::GateBias => (0, 2, true),
            LayerPart::UpBias => (1, 2, true),
            LayerPart::DownBias => (0, 1, true),
            _ => return Storage::Rows,
        };
        if packed && !is_bias { Storage::Packed { from, of } } else { Storage::Transposed { from, of } }
    }
}

/// The bias of a matrix, by their names.
pub(crate) fn bias_of(name: &str) -> String {
    match name.strip_suffix("weight") {
        Some(stem) => format!("{stem}bias"),
        None => format!("{name}_bias"),
    }
}

#[cfg(test)]
mod published;
#[cfg(test)]
mod tests;
