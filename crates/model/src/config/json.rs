//! The keys of a `config.json`, one by one.
//!
//! In: a JSON object. Out: the architecture's row and a [`DecoderConfig`], or the key that is wrong, missing or not understood.
//! Deliberately not here: what the values mean.

use std::path::Path;

use serde_json::{Map, Value};

use super::rope::read_rope;
use super::{ARCHITECTURES, Architecture, BiasRule, DIMENSION_MAX, DecoderConfig, LayerConfig};
use crate::ModelError;

/// Most layers of a decoder; layers are numbered with 16 bits in step plans.
const LAYERS_MAX: u64 = 4_096;

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
    map: &'a Map<String, Value>,
    seen: Vec<&'a str>,
}

impl<'a> Keys<'a> {
    /// `harmless` count as looked at.
    pub(super) fn new(map: &'a Map<String, Value>, harmless: &[&'a str]) -> Self {
        Self { map, seen: harmless.to_vec() }
    }

    /// The value, unless absent or null.
    pub(super) fn get(&mut self, key: &'a str) -> Option<&'a Value> {
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

    pub(super) fn positive(&mut self, key: &'a str) -> Result<Option<f64>, String> {
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
    pub(super) fn finish(&self) -> Result<(), String> {
        let asks = |value: &Value| !matches!(value, Value::Null | Value::Bool(false));
        match self.map.iter().find(|(key, value)| !self.seen.contains(&key.as_str()) && asks(value)) {
            Some((key, value)) => Err(format!("key {key} ({value:.60}) is not understood, and may change the result")),
            None => Ok(()),
        }
    }
}

/// Reads every key.
pub(super) fn read(map: &Map<String, Value>, row: &'static Architecture) -> Result<DecoderConfig, String> {
    let mut keys = Keys::new(map, HARMLESS);
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
        qk_norm: row.qk_norm,
        window: None,
    };
    if let Some(activation) = keys.get("hidden_act")
        && activation != "silu"
    {
        return Err(format!("hidden_act is {activation}; only \"silu\" is understood"));
    }
    check_windows(&mut keys, row)?;
    let rope = read_rope(&mut keys, row)?;
    keys.finish()?;

    let head_dim = match head_dim.or(row.head_dim) {
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

/// Every layer must attend to everything.
fn check_windows(keys: &mut Keys<'_>, row: &Architecture) -> Result<(), String> {
    if let Some(list) = keys.get("layer_types")
        && !list.as_array().is_some_and(|list| list.iter().all(|kind| kind == "full_attention"))
    {
        return Err(format!("layer_types is {list:.60}; only \"full_attention\" is understood"));
    }
    let Some(switch) = row.window_switch else { return Ok(()) };
    if keys.flag(switch)? {
        return Err(format!("{switch} is true; sliding windows are not understood"));
    }
    keys.seen.extend(["sliding_window", "max_window_layers"]);
    Ok(())
}
