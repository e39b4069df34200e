//! `config.json` to [`DecoderConfig`]: a decoder described by data.
//!
//! In: the text of a `config.json`. Out: shapes, rotary embedding and the parts of every layer, and through
//! [`DecoderConfig::tensors`] the name and shape of every weight. A family of models is a row of [`ARCHITECTURES`], not a
//! code path. What is not understood is refused by name: a key that nobody here knows may change the arithmetic.
//! Deliberately not here: reading weights, and anything about text.

mod architectures;
mod json;
mod rope;

use std::path::Path;

use serde_json::Value;

use crate::ModelError;
pub(crate) use architectures::GGUF_NAMES;
pub use architectures::{ARCHITECTURES, Architecture, BiasRule, TensorNames};
pub use rope::{RopeConfig, RopeScaling};

/// Largest dimension or count that a config may ask for; keeps products of two inside 64 bits.
const DIMENSION_MAX: u64 = 1 << 24;

/// A decoder-only transformer: pre-norm RMSNorm, grouped-query attention with rotary embedding in the half-split
/// convention (element i turns with element i + head_dim / 2), gated SiLU feed-forward.
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
    /// Elements of one head; even.
    pub head_dim: usize,
    /// Width of the feed-forward.
    pub ffn: usize,
    /// Rows of the embedding and length of a row of logits.
    pub vocab_size: u32,
    /// Most positions.
    pub context_limit: u32,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Added to the mean square before the root.
    pub norm_eps: f32,
    /// The output matrix is the embedding.
    pub tied: bool,
}

/// What one layer has beyond the common shape.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LayerConfig {
    /// Bias on q, k and v.
    pub qkv_bias: bool,
    /// Bias on the attention's output.
    pub output_bias: bool,
    /// Bias on gate, up and down.
    pub mlp_bias: bool,
    /// RMSNorm of each query and key head, before the rotary embedding.
    pub qk_norm: bool,
    /// Sliding window in tokens; `None` attends to everything.
    pub window: Option<u32>,
}

/// A tensor that a config asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the files.
    pub name: String,
    /// Row-major shape, `[out, in]` for matrices.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: TensorRole,
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
    Output,
    FfnNorm,
    Gate,
    Up,
    Down,
    QBias,
    KBias,
    VBias,
    OutputBias,
    GateBias,
    UpBias,
    DownBias,
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
            all.push(TensorSpec { name: name.to_owned(), shape: shape.to_vec(), role })
        };
        add(names.embedding, &[vocab, self.hidden], TensorRole::Embedding);
        for (i, layer) in self.layers.iter().enumerate() {
            let (h, q, kv, f, d) = (self.hidden, self.q_width(), self.kv_width(), self.ffn, self.head_dim);
            let number = i.to_string();
            let mut part = |pattern: &str, shape: &[usize], part, bias: Option<LayerPart>| {
                let name = pattern.replace("{}", &number);
                add(&name, shape, TensorRole::Layer(i, part));
                if let Some(bias) = bias {
                    let stem = name.strip_suffix("weight").unwrap_or(&name);
                    add(&format!("{stem}bias"), &shape[..1], TensorRole::Layer(i, bias));
                }
            };
            let qkv = |bias| layer.qkv_bias.then_some(bias);
            let mlp = |bias| layer.mlp_bias.then_some(bias);
            part(names.attention_norm, &[h], LayerPart::AttentionNorm, None);
            part(names.q, &[q, h], LayerPart::Q, qkv(LayerPart::QBias));
            part(names.k, &[kv, h], LayerPart::K, qkv(LayerPart::KBias));
            part(names.v, &[kv, h], LayerPart::V, qkv(LayerPart::VBias));
            if layer.qk_norm {
                part(names.q_norm, &[d], LayerPart::QNorm, None);
                part(names.k_norm, &[d], LayerPart::KNorm, None);
            }
            part(names.output, &[h, q], LayerPart::Output, layer.output_bias.then_some(LayerPart::OutputBias));
            part(names.ffn_norm, &[h], LayerPart::FfnNorm, None);
            part(names.gate, &[f, h], LayerPart::Gate, mlp(LayerPart::GateBias));
            part(names.up, &[f, h], LayerPart::Up, mlp(LayerPart::UpBias));
            part(names.down, &[h, f], LayerPart::Down, mlp(LayerPart::DownBias));
        }
        add(names.final_norm, &[self.hidden], TensorRole::FinalNorm);
        if !self.tied {
            add(names.lm_head, &[vocab, self.hidden], TensorRole::LmHead);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn base() -> Value {
        json!({"architectures": ["LlamaForCausalLM"], "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64})
    }

    fn parse(value: &Value) -> Result<DecoderConfig, ModelError> {
        DecoderConfig::parse(&value.to_string(), Path::new("config.json"))
    }

    #[test]
    fn absent_keys_take_the_familys_defaults() {
        let config = parse(&base()).unwrap();
        assert_eq!((config.head_dim, config.kv_heads, config.tied), (4, 2, false));
        assert_eq!(config.rope, RopeConfig { theta: 10_000.0, scaling: RopeScaling::None });
        assert_eq!(config.tensors().len(), 2 * 9 + 3);
    }

    #[test]
    fn biases_are_tensors_of_their_own() {
        let mut value = base();
        value["attention_bias"] = json!(true);
        value["tie_word_embeddings"] = json!(true);
        let specs = parse(&value).unwrap().tensors();
        assert_eq!(specs.len(), 2 * 13 + 2);
        let bias = specs.iter().find(|s| s.name == "model.layers.1.self_attn.k_proj.bias").unwrap();
        assert_eq!((bias.shape.as_slice(), bias.role), ([8].as_slice(), TensorRole::Layer(1, LayerPart::KBias)));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (key, value) in [
            ("sliding_window", json!(4096)),
            ("quantization_config", json!({"bits": 4})),
            ("hidden_act", json!("gelu")),
            ("partial_rotary_factor", json!(0.5)),
            ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})),
            ("num_key_value_heads", json!(3)),
            ("hidden_size", json!(0)),
            ("hidden_size", json!("wide")),
            ("vocab_size", json!(1_u64 << 40)),
            ("head_dim", json!(3)),
        ] {
            let mut config = base();
            config[key] = value;
            let text = parse(&config).unwrap_err().to_string();
            assert!(text.contains(key), "{key}: {text}");
        }
        for bad in ["", "[]", "{", "{\"architectures\":[\"LlamaForCausalLM\"]}"] {
            assert!(matches!(DecoderConfig::parse(bad, Path::new("c")), Err(ModelError::Config { .. })), "{bad}");
        }
    }

    #[test]
    fn an_unknown_architecture_lists_the_known_ones() {
        let mut config = base();
        config["architectures"] = json!(["MambaForCausalLM"]);
        let text = parse(&config).unwrap_err().to_string();
        assert!(text.contains("MambaForCausalLM") && text.contains("LlamaForCausalLM"), "{text}");
    }

    #[test]
    fn llama3_scaling_keeps_high_and_divides_low_frequencies() {
        let mut value = base();
        value["rope_theta"] = json!(500_000.0);
        let plain = parse(&value).unwrap().rope.inverse_frequencies(64);
        value["rope_scaling"] = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
        let scaled = parse(&value).unwrap().rope.inverse_frequencies(64);
        assert_eq!(plain[0], scaled[0]);
        assert_eq!(plain[31] / 8.0, scaled[31]);
        assert!(scaled.windows(2).all(|pair| pair[0] > pair[1]));
        assert!(scaled.iter().zip(&plain).any(|(s, p)| s < p && *s > p / 8.0), "a blended frequency");
    }

    /// As published with Qwen3-0.6B.
    fn qwen3() -> Value {
        json!({"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
            "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
            "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
            "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
            "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": true,
            "use_sliding_window": false, "vocab_size": 151936})
    }

    #[test]
    fn qwen3_norms_its_heads_and_has_a_head_of_its_own_size() {
        let config = parse(&qwen3()).unwrap();
        assert_eq!((config.q_width(), config.kv_width(), config.hidden, config.tied), (2048, 1024, 1024, true));
        assert_eq!(config.rope, RopeConfig { theta: 1e6, scaling: RopeScaling::None });
        let specs = config.tensors();
        assert_eq!(specs.len(), 28 * 11 + 2);
        let norm = specs.iter().find(|s| s.name == "model.layers.27.self_attn.k_norm.weight").unwrap();
        assert_eq!((norm.shape.as_slice(), norm.role), ([128].as_slice(), TensorRole::Layer(27, LayerPart::KNorm)));
        let mut value = qwen3();
        value["layer_types"] = json!(["full_attention", "full_attention"]);
        value["sliding_window"] = json!(4096);
        assert_eq!(parse(&value).unwrap(), config, "a window that is not used");
        for (key, bad) in [("use_sliding_window", json!(true)), ("layer_types", json!(["sliding_attention"]))] {
            let mut value = qwen3();
            value[key] = bad;
            let text = parse(&value).unwrap_err().to_string();
            assert!(text.contains(key), "{key}: {text}");
        }
    }
}
