//! The keys of a `config.json`, one by one.
//!
//! In: a JSON object. Out: the architecture's row and a [`DecoderConfig`], or the key that is wrong, missing or not understood.
//! Deliberately not here: what the values mean.

use std::path::Path;

use serde_json::{Map, Value};

use super::rope::{Ropes, read_ropes};
use super::windows::{turned_layers, windows};
use super::{
    ARCHITECTURES, Activation, Architecture, BiasRule, CapRule, DIMENSION_MAX, DecoderConfig, ExpertsConfig,
    LayerConfig, LayerRope,
};
use crate::ModelError;

/// Most layers of a decoder; layers are numbered with 16 bits in step plans.
pub(super) const LAYERS_MAX: u64 = 4_096;

/// Elements that share a scale in MXFP4.
const PACKED_BLOCK: usize = 32;

/// Keys that change nothing about a forward pass.
const HARMLESS: &[&str] = &[
    "_attn_implementation",
    "_name_or_path",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "dtype",
    "embd_pdrop",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "model_type",
    "pad_token_id",
    "pretraining_tp",
    "resid_pdrop",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "use_cache",
];

/// The row that the config names.
pub(super) fn architecture_of(map: &Map<String, Value>, path: &Path) -> Result<&'static Architecture, ModelError> {
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
pub(super) struct Keys<'a> {
    pub(super) map: &'a Map<String, Value>,
    seen: Vec<&'a str>,
    /// Numbers of keys that are absent.
    defaults: &'static [(&'static str, u64)],
}

impl<'a> Keys<'a> {
    /// `harmless` count as looked at.
    pub(super) fn new(map: &'a Map<String, Value>, harmless: &[&'a str]) -> Self {
        Self { map, seen: harmless.to_vec(), defaults: &[] }
    }

    /// Counts a key as looked at.
    pub(super) fn pass(&mut self, key: &'a str) {
        self.seen.push(key);
    }

    fn default(&self, key: &str) -> Option<u64> {
        self.defaults.iter().find(|(name, _)| *name == key).map(|(_, number)| *number)
    }

    /// The value, unless absent or null.
    pub(super) fn get(&mut self, key: &'a str) -> Option<&'a Value> {
        self.seen.push(key);
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// A whole number from 1 to `max`.
    pub(super) fn count(&mut self, key: &'a str, max: u64) -> Result<Option<usize>, String> {
        let Some(value) = self.get(key) else { return Ok(self.default(key).map(|n| n as usize)) };
        match value.as_u64() {
            Some(n) if (1..=max).contains(&n) => Ok(Some(n as usize)),
            _ => Err(format!("{key} is {value}, expected a whole number from 1 to {max}")),
        }
    }

    fn needed(&mut self, key: &'a str, max: u64) -> Result<usize, String> {
        self.count(key, max)?.ok_or_else(|| format!("{key} is missing"))
    }

    pub(super) fn positive(&mut self, key: &'a str) -> Result<Option<f64>, String> {
        let Some(value) = self.get(key) else { return Ok(self.default(key).map(|n| n as f64)) };
        match value.as_f64() {
            Some(n) if n.is_finite() && n > 0.0 => Ok(Some(n)),
            _ => Err(format!("{key} is {value}, expected a positive number")),
        }
    }

    /// One that f32 holds.
    fn positive_f32(&mut self, key: &'a str) -> Result<Option<f32>, String> {
        let held =
            |n: f64| Some(n as f32).filter(|n| n.is_normal()).ok_or_else(|| format!("{key} is {n}, out of range"));
        self.positive(key)?.map(held).transpose()
    }

    /// As many positive numbers as `count`.
    pub(super) fn positives(&mut self, key: &'a str, count: usize) -> Result<Option<Vec<f32>>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = |value: &Value| value.as_f64().map(|n| n as f32).filter(|n| n.is_finite() && *n > 0.0);
        let all =
            value.as_array().filter(|list| list.len() == count).and_then(|list| list.iter().map(number).collect());
        all.map(Some).ok_or_else(|| format!("{key} is {}, expected {count} positive numbers", brief(value)))
    }

    /// True or false, when the key is there.
    pub(super) fn flag(&mut self, key: &'a str) -> Result<Option<bool>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| format!("{key} is {value}, expected true or false"))
    }

    fn bias(&mut self, rule: BiasRule) -> Result<bool, String> {
        match rule {
            BiasRule::Key { key, absent } => Ok(self.flag(key)?.unwrap_or(absent)),
            BiasRule::Never => Ok(false),
            BiasRule::Always => Ok(true),
        }
    }

    /// A bound of numbers; a null is none.
    fn cap(&mut self, key: &'a str, rule: CapRule) -> Result<Option<f32>, String> {
        match rule {
            CapRule::Never => Ok(None),
            CapRule::Key { absent } if !self.map.contains_key(key) => Ok(absent.map(|cap| cap as f32)),
            CapRule::Key { .. } => self.positive_f32(key),
        }
    }

    /// Refuses keys that were never looked at; those that are null or false ask for nothing.
    pub(super) fn finish(&self) -> Result<(), String> {
        let asks = |value: &Value| !matches!(value, Value::Null | Value::Bool(false));
        match self.map.iter().find(|(key, value)| !self.seen.contains(&key.as_str()) && asks(value)) {
            Some((key, value)) => {
                Err(format!("key {key} ({}) is not understood, and may change the result", brief(value)))
            }
            None => Ok(()),
        }
    }
}

/// Reads every key.
pub(super) fn read(map: &Map<String, Value>, row: &'static Architecture) -> Result<DecoderConfig, String> {
    const TIED: &str = "tie_word_embeddings";
    let harmless: Vec<&str> = HARMLESS.iter().chain(row.harmless).chain(&["architectures"]).copied().collect();
    let Some(nested) = row.nested else { return read_decoder(map, row, &harmless) };
    let mut outer = Keys::new(map, &harmless);
    let Some(Value::Object(inner)) = outer.get(nested) else { return Err(format!("{nested} is missing")) };
    let tied = outer.flag(TIED)?;
    outer.finish()?;
    let config = read_decoder(inner, row, &harmless).map_err(|problem| format!("{nested}: {problem}"))?;
    match tied {
        Some(tied) if tied != config.tied => Err(format!("{TIED} is {tied} beside {nested}, not in it")),
        _ => Ok(config),
    }
}

fn read_decoder(
    map: &Map<String, Value>,
    row: &'static Architecture,
    harmless: &[&'static str],
) -> Result<DecoderConfig, String> {
    let mut keys = Keys { defaults: row.defaults, ..Keys::new(map, harmless) };
    let hidden = keys.needed("hidden_size", DIMENSION_MAX)?;
    let layer_count = keys.needed("num_hidden_layers", LAYERS_MAX)?;
    let heads = keys.needed("num_attention_heads", DIMENSION_MAX)?;
    let kv_heads = keys.count("num_key_value_heads", DIMENSION_MAX)?.unwrap_or(heads);
    let head_dim = keys.count("head_dim", DIMENSION_MAX)?;
    let ffn = keys.needed("intermediate_size", DIMENSION_MAX)?;
    let vocab_size = keys.needed("vocab_size", DIMENSION_MAX)? as u32;
    let context_limit = keys.needed("max_position_embeddings", DIMENSION_MAX)? as u32;
    let norm_eps = keys.positive("rms_norm_eps")?.unwrap_or(row.norm_eps) as f32;
    let tied = keys.flag("tie_word_embeddings")?.unwrap_or(row.tied);
    let common = LayerConfig {
        qkv_bias: keys.bias(row.qkv_bias)?,
        output_bias: keys.bias(row.output_bias)?,
        mlp_bias: keys.bias(row.mlp_bias)?,
        qk_norm: row.qk_norm,
        sinks: row.sinks,
        post_norms: row.post_norms,
        rope: LayerRope::Global,
        window: None,
    };
    let activation = activation(&mut keys, row.activation)?;
    let experts = experts(&mut keys, row, [hidden, ffn])?;
    let head_dim = match head_dim {
        Some(dim) => dim,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => return Err(format!("hidden_size {hidden} is no multiple of num_attention_heads {heads}")),
    };
    if !heads.is_multiple_of(kv_heads) {
        return Err(format!("num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"));
    }
    if heads * head_dim > DIMENSION_MAX as usize {
        return Err(format!("num_attention_heads {heads} times head_dim {head_dim} is more than {DIMENSION_MAX}"));
    }
    let query_scalar = if row.query_scalar { keys.positive_f32("query_pre_attn_scalar")? } else { None };
    let score_cap = keys.cap("attn_logit_softcapping", row.score_cap)?;
    let logit_cap = keys.cap("final_logit_softcapping", row.logit_cap)?;
    let Ropes { global, local, rotary_dim } = read_ropes(&mut keys, row, head_dim, context_limit)?;
    let turned = turned_layers(&mut keys, row, layer_count)?;
    let windows = windows(&mut keys, row, &turned)?;
    keys.finish()?;
    let layers = turned.into_iter().zip(windows).map(|(turned, window)| {
        let rope = match (turned, window) {
            (false, _) => LayerRope::Unturned,
            (true, Some(_)) if local.is_some() => LayerRope::Local,
            (true, _) => LayerRope::Global,
        };
        // A window that holds the whole context is none.
        LayerConfig { rope, window: window.filter(|window| *window < context_limit), ..common.clone() }
    });
    Ok(DecoderConfig {
        architecture: row.name.to_owned(),
        hidden,
        layers: layers.collect(),
        heads,
        kv_heads,
        head_dim,
        rotary_dim,
        query_scalar: query_scalar.map_or(head_dim as f64, f64::from),
        score_cap,
        ffn,
        activation,
        experts,
        vocab_size,
        // In f32; whoever computes in bf16 rounds it, and computes something else.
        embedding_scale: if row.scaled_embedding { (hidden as f64).sqrt() as f32 } else { 1.0 },
        logit_cap,
        context_limit,
        rope: global,
        local_rope: local,
        norm_eps,
        tied,
    })
}

/// The family's activation, which the config may name under two keys, with the numbers that it may give.
fn activation(keys: &mut Keys<'_>, activation: Activation) -> Result<Activation, String> {
    let name = match activation {
        Activation::Silu | Activation::ClampedSwiglu { .. } => "silu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
    };
    for key in ["hidden_act", "hidden_activation"] {
        if let Some(found) = keys.get(key)
            && found != name
        {
            return Err(format!("{key} is {found}; only {name:?} is understood"));
        }
    }
    let Activation::ClampedSwiglu { alpha, limit } = activation else { return Ok(activation) };
    let alpha = keys.positive_f32("swiglu_alpha")?.unwrap_or(alpha);
    let limit = keys.positive_f32("swiglu_limit")?.unwrap_or(limit);
    Ok(Activation::ClampedSwiglu { alpha, limit })
}

/// The mixture of experts, for families that are one. `depths` are the lengths of the rows of their matrices.
fn experts(keys: &mut Keys<'_>, row: &Architecture, depths: [usize; 2]) -> Result<Option<ExpertsConfig>, String> {
    const CHOSEN: [&str; 2] = ["num_experts_per_tok", "experts_per_token"];
    const QUANTIZED: &str = "quantization_config";
    if !row.experts {
        return Ok(None);
    }
    let count = keys.needed("num_local_experts", DIMENSION_MAX)?;
    let [chosen, same] = [keys.count(CHOSEN[0], count as u64)?, keys.count(CHOSEN[1], count as u64)?];
    let chosen = chosen.or(same).ok_or_else(|| format!("{} is missing", CHOSEN[0]))?;
    if same.is_some_and(|same| same != chosen) {
        return Err(format!("{} and {} are not the same", CHOSEN[0], CHOSEN[1]));
    }
    let packed = match keys.get(QUANTIZED) {
        None => false,
        Some(Value::Object(map)) => {
            let mut inner = Keys::new(map, &["modules_to_not_convert"]);
            if inner.get("quant_method").and_then(Value::as_str) != Some("mxfp4") {
                return Err(format!("{QUANTIZED} has another quant_method than \"mxfp4\""));
            }
            inner.finish().map_err(|problem| format!("{QUANTIZED}: {problem}"))?;
            true
        }
        Some(other) => return Err(format!("{QUANTIZED} is {}, expected an object", brief(other))),
    };
    match depths.iter().find(|depth| packed && !depth.is_multiple_of(PACKED_BLOCK)) {
        Some(depth) => Err(format!("{QUANTIZED}: rows of {depth} elements are no whole blocks of {PACKED_BLOCK}")),
        None => Ok(Some(ExpertsConfig { count, chosen, packed })),
    }
}

/// The start of a value, for messages.
pub(super) fn brief(value: &Value) -> String {
    const SHOWN: usize = 60;
    value.to_string().chars().take(SHOWN).collect()
}
