//! `config.json` to [`DecoderConfig`]: a decoder described by data.
//!
//! In: the text of a `config.json`. Out: shapes, rotary embedding and the parts of every layer, and through
//! [`DecoderConfig::tensors`] the name and shape of every weight. A family of models is a row of [`ARCHITECTURES`], not a
//! code path. What is not understood is refused by name: a key that nobody here knows may change the arithmetic.
//! Deliberately not here: reading weights, and anything about text.

use std::path::Path;

use serde_json::{Map, Value};

use crate::ModelError;

/// Largest dimension or count that a config may ask for; keeps products of two inside 64 bits.
const DIMENSION_MAX: u64 = 1 << 24;
/// Most layers of a decoder; layers are numbered with 16 bits in step plans.
const LAYERS_MAX: u64 = 4_096;

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
    /// Sliding window in tokens; `None` attends to everything.
    pub window: Option<u32>,
}

/// Rotary position embedding (Su et al., 2021).
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// How frequencies are stretched for long contexts.
    pub scaling: RopeScaling,
}

/// How frequencies are stretched.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by the factor (position interpolation).
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, blended between.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths beyond `original_context / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context that the model was first trained with.
        original_context: f64,
    },
}

impl RopeConfig {
    /// Radians per position of each pair of elements: `head_dim / 2` values, falling. Computed in f64, rounded once.
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|i| {
                let plain = self.theta.powf(-((2 * i) as f64) / head_dim as f64);
                let scaled = match self.scaling {
                    RopeScaling::None => plain,
                    RopeScaling::Linear { factor } => plain / factor,
                    RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                        let wavelength = std::f64::consts::TAU / plain;
                        if wavelength < original_context / high_freq_factor {
                            plain
                        } else if wavelength > original_context / low_freq_factor {
                            plain / factor
                        } else {
                            let share = (original_context / wavelength - low_freq_factor)
                                / (high_freq_factor - low_freq_factor);
                            (1.0 - share) * plain / factor + share * plain
                        }
                    }
                };
                scaled as f32
            })
            .collect()
    }
}

/// Which biases a family has when its config does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BiasRule {
    /// A key of the config says; absent means no bias.
    Key(&'static str),
    /// Never.
    Never,
    /// Always.
    Always,
}

/// A family of decoders.
#[derive(Debug)]
pub struct Architecture {
    /// As in `architectures` of config.json.
    pub name: &'static str,
    /// As in `model_type`.
    pub model_type: &'static str,
    /// Bias on q, k and v.
    pub qkv_bias: BiasRule,
    /// Bias on the attention's output.
    pub output_bias: BiasRule,
    /// Bias on the feed-forward.
    pub mlp_bias: BiasRule,
    /// `rope_theta` when the config does not say.
    pub rope_theta: f64,
    /// `rms_norm_eps` when the config does not say.
    pub norm_eps: f64,
    /// Names of the tensors; `{}` is the layer's number.
    pub names: &'static TensorNames,
    /// Buffers that some exporters leave in the file and that are computed from the config: ends of names.
    pub ignored: &'static [&'static str],
}

/// Where a family keeps its tensors. Biases replace a final `weight` by `bias`.
#[derive(Debug)]
#[expect(missing_docs, reason = "each field is the role that its name says")]
pub struct TensorNames {
    pub embedding: &'static str,
    pub final_norm: &'static str,
    pub lm_head: &'static str,
    pub attention_norm: &'static str,
    pub q: &'static str,
    pub k: &'static str,
    pub v: &'static str,
    pub output: &'static str,
    pub ffn_norm: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
}

static LLAMA_NAMES: TensorNames = TensorNames {
    embedding: "model.embed_tokens.weight",
    final_norm: "model.norm.weight",
    lm_head: "lm_head.weight",
    attention_norm: "model.layers.{}.input_layernorm.weight",
    q: "model.layers.{}.self_attn.q_proj.weight",
    k: "model.layers.{}.self_attn.k_proj.weight",
    v: "model.layers.{}.self_attn.v_proj.weight",
    output: "model.layers.{}.self_attn.o_proj.weight",
    ffn_norm: "model.layers.{}.post_attention_layernorm.weight",
    gate: "model.layers.{}.mlp.gate_proj.weight",
    up: "model.layers.{}.mlp.up_proj.weight",
    down: "model.layers.{}.mlp.down_proj.weight",
};

/// Every family that is understood.
pub static ARCHITECTURES: &[Architecture] = &[Architecture {
    name: "LlamaForCausalLM",
    model_type: "llama",
    qkv_bias: BiasRule::Key("attention_bias"),
    output_bias: BiasRule::Key("attention_bias"),
    mlp_bias: BiasRule::Key("mlp_bias"),
    rope_theta: 10_000.0,
    norm_eps: 1e-6,
    names: &LLAMA_NAMES,
    ignored: &["rotary_emb.inv_freq"],
}];

/// Keys that change nothing about a forward pass.
const HARMLESS: &[&str] = &[
    "_attn_implementation",
    "_name_or_path",
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "label2id",
    "model_type",
    "pad_token_id",
    "pretraining_tp",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

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
        let architecture = architecture_of(&map, path)?;
        read(Keys { map: &map, seen: HARMLESS.to_vec() }, architecture).map_err(wrong)
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

    /// Every tensor that the model must have, embedding first, then layer by layer, then the end.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let names = self.row().names;
        let vocab = self.vocab_size as usize;
        let mut all = Vec::with_capacity(self.layers.len() * 9 + 3);
        let mut add = |name: &str, shape: &[usize], role| {
            all.push(TensorSpec { name: name.to_owned(), shape: shape.to_vec(), role })
        };
        add(names.embedding, &[vocab, self.hidden], TensorRole::Embedding);
        for (i, layer) in self.layers.iter().enumerate() {
            let (h, q, kv, f) = (self.hidden, self.q_width(), self.kv_width(), self.ffn);
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

fn architecture_of(map: &Map<String, Value>, path: &Path) -> Result<&'static Architecture, ModelError> {
    let by_name = map.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    let by_type = map.get("model_type").and_then(Value::as_str);
    let row = match (by_name, by_type) {
        (Some(name), _) => ARCHITECTURES.iter().find(|row| row.name == name),
        (None, Some(kind)) => ARCHITECTURES.iter().find(|row| row.model_type == kind),
        (None, None) => None,
    };
    row.ok_or_else(|| ModelError::UnknownArchitecture {
        path: path.to_owned(),
        found: by_name.or(by_type).unwrap_or("none").to_owned(),
        known: ARCHITECTURES.iter().map(|row| row.name).collect::<Vec<_>>().join(", "),
    })
}

/// The keys of one JSON object, remembering which were looked at.
struct Keys<'a> {
    map: &'a Map<String, Value>,
    seen: Vec<&'a str>,
}

impl<'a> Keys<'a> {
    /// The value, unless absent or null.
    fn get(&mut self, key: &'a str) -> Option<&'a Value> {
        self.seen.push(key);
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn count(&mut self, key: &'a str, max: u64) -> Result<Option<usize>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if (1..=max).contains(&n) => Ok(Some(n as usize)),
            _ => Err(format!("{key} is {value}, expected a whole number from 1 to {max}")),
        }
    }

    fn needed(&mut self, key: &'a str, max: u64) -> Result<usize, String> {
        self.count(key, max)?.ok_or_else(|| format!("{key} is missing"))
    }

    fn positive(&mut self, key: &'a str) -> Result<Option<f64>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(n) if n.is_finite() && n > 0.0 => Ok(Some(n)),
            _ => Err(format!("{key} is {value}, expected a positive number")),
        }
    }

    fn flag(&mut self, key: &'a str) -> Result<bool, String> {
        match self.get(key) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| format!("{key} is {value}, expected true or false")),
        }
    }

    fn bias(&mut self, rule: BiasRule) -> Result<bool, String> {
        match rule {
            BiasRule::Key(key) => self.flag(key),
            BiasRule::Never => Ok(false),
            BiasRule::Always => Ok(true),
        }
    }

    /// Refuses keys that were never looked at; those that are null or false ask for nothing.
    fn finish(&self) -> Result<(), String> {
        let asks = |value: &Value| !matches!(value, Value::Null | Value::Bool(false));
        match self.map.iter().find(|(key, value)| !self.seen.contains(&key.as_str()) && asks(value)) {
            Some((key, value)) => Err(format!("key {key} ({value:.60}) is not understood, and may change the result")),
            None => Ok(()),
        }
    }
}

fn read(mut keys: Keys<'_>, row: &'static Architecture) -> Result<DecoderConfig, String> {
    keys.seen.push("architectures");
    let hidden = keys.needed("hidden_size", DIMENSION_MAX)?;
    let layer_count = keys.needed("num_hidden_layers", LAYERS_MAX)?;
    let heads = keys.needed("num_attention_heads", DIMENSION_MAX)?;
    let kv_heads = keys.count("num_key_value_heads", DIMENSION_MAX)?.unwrap_or(heads);
    let head_dim = keys.count("head_dim", DIMENSION_MAX)?;
    let ffn = keys.needed("intermediate_size", DIMENSION_MAX)?;
    let vocab_size = keys.needed("vocab_size", DIMENSION_MAX)? as u32;
    let context_limit = keys.needed("max_position_embeddings", DIMENSION_MAX)? as u32;
    let norm_eps = keys.positive("rms_norm_eps")?.unwrap_or(row.norm_eps) as f32;
    let tied = keys.flag("tie_word_embeddings")?;
    let layer = LayerConfig {
        qkv_bias: keys.bias(row.qkv_bias)?,
        output_bias: keys.bias(row.output_bias)?,
        mlp_bias: keys.bias(row.mlp_bias)?,
        window: None,
    };
    if let Some(activation) = keys.get("hidden_act")
        && activation != "silu"
    {
        return Err(format!("hidden_act is {activation}; only \"silu\" is understood"));
    }
    let rope = read_rope(&mut keys, row)?;
    keys.finish()?;

    let head_dim = match head_dim {
        Some(dim) => dim,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => return Err(format!("hidden_size {hidden} is no multiple of num_attention_heads {heads}")),
    };
    if !heads.is_multiple_of(kv_heads) {
        return Err(format!("num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"));
    }
    if !head_dim.is_multiple_of(2) {
        return Err(format!("head_dim {head_dim} is odd; rotary embedding turns pairs"));
    }
    if heads * head_dim > DIMENSION_MAX as usize {
        return Err(format!("num_attention_heads {heads} times head_dim {head_dim} is more than {DIMENSION_MAX}"));
    }
    Ok(DecoderConfig {
        architecture: row.name.to_owned(),
        hidden,
        layers: vec![layer; layer_count],
        heads,
        kv_heads,
        head_dim,
        ffn,
        vocab_size,
        context_limit,
        rope,
        norm_eps,
        tied,
    })
}

/// Reads `rope_theta` and `rope_scaling`, or the newer `rope_parameters` that holds both.
fn read_rope(keys: &mut Keys<'_>, row: &Architecture) -> Result<RopeConfig, String> {
    let outer_theta = keys.positive("rope_theta")?;
    let scaling = keys.get("rope_scaling");
    let parameters = keys.get("rope_parameters");
    let Some(value) = parameters.or(scaling) else {
        return Ok(RopeConfig { theta: outer_theta.unwrap_or(row.rope_theta), scaling: RopeScaling::None });
    };
    let Value::Object(map) = value else { return Err(format!("rope_scaling is {value}, expected an object")) };
    let mut inner = Keys { map, seen: Vec::new() };
    let theta = inner.positive("rope_theta")?.or(outer_theta).unwrap_or(row.rope_theta);
    let old_name = inner.get("type").and_then(Value::as_str);
    let kind = inner.get("rope_type").and_then(Value::as_str).or(old_name).unwrap_or("default");
    let mut need = |key| inner.positive(key)?.ok_or_else(|| format!("rope_scaling.{key} is missing"));
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: need("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: need("factor")?,
            low_freq_factor: need("low_freq_factor")?,
            high_freq_factor: need("high_freq_factor")?,
            original_context: need("original_max_position_embeddings")?,
        },
        other => {
            return Err(format!("rope_scaling of type {other:?} is not understood; default, linear and llama3 are"));
        }
    };
    if let RopeScaling::Llama3 { low_freq_factor, high_freq_factor, .. } = scaling
        && high_freq_factor <= low_freq_factor
    {
        return Err(format!(
            "rope_scaling: high_freq_factor {high_freq_factor} must exceed low_freq_factor {low_freq_factor}"
        ));
    }
    inner.finish().map_err(|problem| format!("rope_scaling: {problem}"))?;
    Ok(RopeConfig { theta, scaling })
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
}
