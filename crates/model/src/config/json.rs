//! The keys of a `config.json`, one by one.
//!
//! In: a JSON object. Out: the architecture's row and a [`DecoderConfig`], or the key that is wrong, missing or not understood.
//! Deliberately not here: what the values mean.

use std::path::Path;

use serde_json::{Map, Value};

use super::rope::read_rope;
use super::{ARCHITECTURES, Architecture, BiasRule, DIMENSION_MAX, DecoderConfig, LayerConfig, WindowRule};
use crate::ModelError;

/// Most layers of a decoder; layers are numbered with 16 bits in step plans.
const LAYERS_MAX: u64 = 4_096;

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

    /// A whole number from 1 to `max`.
    pub(super) fn count(&mut self, key: &'a str, max: u64) -> Result<Option<usize>, String> {
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
            BiasRule::Key(key) => Ok(self.flag(key)?.unwrap_or(false)),
            BiasRule::Never => Ok(false),
            BiasRule::Always => Ok(true),
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
    let tied = keys.flag("tie_word_embeddings")?.unwrap_or(row.tied);
    let common = LayerConfig {
        qkv_bias: keys.bias(row.qkv_bias)?,
        output_bias: keys.bias(row.output_bias)?,
        mlp_bias: keys.bias(row.mlp_bias)?,
        qk_norm: row.qk_norm,
        rope: true,
        window: None,
    };
    if let Some(activation) = keys.get("hidden_act")
        && activation != "silu"
    {
        return Err(format!("hidden_act is {activation}; only \"silu\" is understood"));
    }
    let head_dim = match head_dim.or(row.head_dim) {
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
    let (rope, rotary_dim) = read_rope(&mut keys, row, head_dim, context_limit)?;
    let turned = turned_layers(&mut keys, row, layer_count)?;
    let windows = windows(&mut keys, row, &turned)?;
    keys.finish()?;
    let layers = turned.into_iter().zip(windows).map(|(rope, window)| {
        // A window that holds the whole context is none.
        let window = window.filter(|window| *window < context_limit);
        LayerConfig { rope, window, ..common.clone() }
    });
    Ok(DecoderConfig {
        architecture: row.name.to_owned(),
        hidden,
        layers: layers.collect(),
        heads,
        kv_heads,
        head_dim,
        rotary_dim,
        ffn,
        vocab_size,
        context_limit,
        rope,
        norm_eps,
        tied,
    })
}

/// Which layers turn their queries and keys.
fn turned_layers(keys: &mut Keys<'_>, row: &Architecture, count: usize) -> Result<Vec<bool>, String> {
    let Some(interval) = row.unturned_interval else { return Ok(vec![true; count]) };
    let interval = keys.count("no_rope_layer_interval", LAYERS_MAX)?.unwrap_or(interval);
    let Some(list) = keys.get("no_rope_layers") else {
        return Ok((1..=count).map(|number| !number.is_multiple_of(interval)).collect());
    };
    // In spite of the key's name, 1 is a layer with rotary embedding.
    let turns = |value: &Value| value.as_u64().filter(|flag| *flag <= 1).map(|flag| flag == 1);
    let all = list.as_array().filter(|list| list.len() == count).and_then(|list| list.iter().map(turns).collect());
    all.ok_or_else(|| format!("no_rope_layers is {}, expected {count} times 0 or 1", brief(list)))
}

/// The window of each layer; `turned` says which have rotary embedding.
fn windows(keys: &mut Keys<'_>, row: &Architecture, turned: &[bool]) -> Result<Vec<Option<u32>>, String> {
    const WINDOW: &str = "sliding_window";
    let listed = sliding_layers(keys, turned.len())?;
    let mut from = 0;
    let window = match row.windows {
        WindowRule::Never => None,
        WindowRule::Every { absent } if !keys.map.contains_key(WINDOW) => absent.map(|window| window as usize),
        WindowRule::Every { .. } => keys.count(WINDOW, DIMENSION_MAX)?,
        WindowRule::Upper | WindowRule::Unturned if keys.flag("use_sliding_window")? != Some(true) => {
            // Without the switch these mean nothing.
            keys.seen.extend([WINDOW, "max_window_layers"]);
            None
        }
        WindowRule::Upper | WindowRule::Unturned => {
            let first = keys.get("max_window_layers");
            if row.windows == WindowRule::Upper && listed.is_none() {
                let first = first.and_then(Value::as_u64).and_then(|first| usize::try_from(first).ok());
                from = first.ok_or("use_sliding_window is true, but max_window_layers is no whole number")?;
            }
            let window = keys.count(WINDOW, DIMENSION_MAX)?;
            Some(window.ok_or("use_sliding_window is true, but sliding_window is missing")?)
        }
    };
    let slides = |layer: usize| match row.windows {
        WindowRule::Never => false,
        WindowRule::Every { .. } => true,
        WindowRule::Upper => layer >= from,
        WindowRule::Unturned => !turned[layer],
    };
    let by_list = matches!(row.windows, WindowRule::Upper | WindowRule::Unturned) && window.is_some();
    (0..turned.len())
        .map(|layer| {
            let by_rule = window.is_some() && slides(layer);
            let sliding = listed.as_ref().map_or(by_rule, |listed| listed[layer]);
            if sliding != by_rule && !by_list {
                let found = if sliding { "a" } else { "no" };
                return Err(format!("layer_types gives layer {layer} {found} sliding window, other keys do not"));
            }
            Ok(window.filter(|_| sliding).map(|window| window as u32))
        })
        .collect()
}

/// Whether each layer is a sliding one, if `layer_types` is there.
fn sliding_layers(keys: &mut Keys<'_>, count: usize) -> Result<Option<Vec<bool>>, String> {
    let Some(list) = keys.get("layer_types") else { return Ok(None) };
    let sliding = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Some(false),
        Some("sliding_attention") => Some(true),
        _ => None,
    };
    let all = list.as_array().filter(|list| list.len() == count).and_then(|list| list.iter().map(sliding).collect());
    all.map(Some).ok_or_else(|| {
        let found = brief(list);
        format!("layer_types is {found}, expected {count} times \"full_attention\" or \"sliding_attention\"")
    })
}

/// The start of a value, for messages.
fn brief(value: &Value) -> String {
    const SHOWN: usize = 60;
    value.to_string().chars().take(SHOWN).collect()
}
