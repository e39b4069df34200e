//! Metadata to a config: the keys of a GGUF file as those of a `config.json`.
//!
//! In: metadata, and which tensors there are. Out: the [`DecoderConfig`] that the equal `config.json` gives, and that file's text.
//! What is wrong is said in the GGUF file's own keys. Deliberately not here: what the keys of a `config.json` mean.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::Tensors;
use super::metadata::Metadata;
use crate::config::GGUF_NAMES;
use crate::weights::Element;
use crate::{ARCHITECTURES, DecoderConfig, ModelError, RopeScaling};

/// The tensor of Llama 3.1's stretched frequencies: what each is divided by, `[head_dim / 2]`.
pub(crate) const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// Keys after the architecture's name, the keys of `config.json` that they are, and whether they must be there.
const KEYS: &[(&str, &str, bool)] = &[
    ("block_count", "num_hidden_layers", true),
    ("context_length", "max_position_embeddings", true),
    ("embedding_length", "hidden_size", true),
    ("feed_forward_length", "intermediate_size", true),
    ("attention.head_count", "num_attention_heads", true),
    ("attention.head_count_kv", "num_key_value_heads", false),
    ("attention.key_length", "head_dim", false),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps", true),
    ("rope.freq_base", "rope_theta", false),
    ("vocab_size", "vocab_size", false),
];

/// Keys after the architecture's name that are looked at besides, or that change nothing.
const OTHERS: &[&str] = &[
    "attention.value_length",
    "rope.dimension_count",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "tensor_data_layout",
];

/// Reads the config. `path` is for messages.
///
/// # Errors
/// [`ModelError::UnknownArchitecture`], or [`ModelError::Config`] with the key.
pub(super) fn read(path: &Path, metadata: &Metadata, tensors: &Tensors) -> Result<(DecoderConfig, String), ModelError> {
    let wrong = |problem: String| ModelError::Config { path: path.to_owned(), problem };
    let found = metadata.text("general.architecture").map_err(wrong)?.unwrap_or("none");
    let row = ARCHITECTURES.iter().find(|row| row.model_type == found);
    let row = row.ok_or_else(|| ModelError::UnknownArchitecture {
        path: path.to_owned(),
        found: found.to_owned(),
        known: ARCHITECTURES.iter().map(|row| row.model_type).collect::<Vec<_>>().join(", "),
    })?;
    let json = to_json(row.name, row.model_type, metadata, tensors).map_err(wrong)?.to_string();
    let mut config = DecoderConfig::parse(&json, path).map_err(|e| match e {
        ModelError::Config { path, problem } => ModelError::Config { path, problem: own_words(problem, found) },
        other => other,
    })?;
    if let Some(divisors) = rope_divisors(tensors, config.head_dim).map_err(wrong)? {
        if config.rope.scaling != RopeScaling::None {
            return Err(wrong(format!("{ROPE_DIVISORS} and {found}.rope.scaling both stretch the frequencies")));
        }
        config.rope.scaling = RopeScaling::Divisors(divisors);
    }
    Ok((config, json))
}

/// The metadata as a `config.json`.
fn to_json(name: &str, architecture: &str, metadata: &Metadata, tensors: &Tensors) -> Result<Value, String> {
    let key = |end: &str| format!("{architecture}.{end}");
    let known = |end: &str| OTHERS.contains(&end) || KEYS.iter().any(|(own, ..)| *own == end);
    let prefix = key("");
    let mut unknown: Vec<&str> =
        metadata.keys().filter(|key| key.strip_prefix(&prefix).is_some_and(|end| !known(end))).collect();
    unknown.retain(|key| metadata.asks(key));
    unknown.sort_unstable();
    if let Some(key) = unknown.first() {
        return Err(format!("key {key} is not understood, and may change the result"));
    }

    let mut json = Map::new();
    json.insert("architectures".to_owned(), json!([name]));
    for (own, theirs, needed) in KEYS {
        match metadata.scalar(&key(own))? {
            Some(value) => drop(json.insert((*theirs).to_owned(), value)),
            None if *needed => return Err(format!("{} is missing", key(own))),
            None => {}
        }
    }
    if !json.contains_key("vocab_size") {
        let tokens = metadata.texts("tokenizer.ggml.tokens")?.unwrap_or_default().len();
        json.insert("vocab_size".to_owned(), tokens.into());
    }
    head_dim(&mut json, &key, metadata)?;
    json.insert("rope_scaling".to_owned(), rope_scaling(&key, metadata)?);
    json.insert("tie_word_embeddings".to_owned(), (!tensors.has(GGUF_NAMES.lm_head)).into());
    for (flag, weight) in [("attention_bias", GGUF_NAMES.q), ("mlp_bias", GGUF_NAMES.gate)] {
        let bias = weight.replace("{}", "0").replace("weight", "bias");
        json.insert(flag.to_owned(), tensors.has(&bias).into());
    }
    Ok(Value::Object(json))
}

/// Settles the size of a head, which three keys speak of, or else `embedding_length / head_count`.
fn head_dim(json: &mut Map<String, Value>, key: &dyn Fn(&str) -> String, metadata: &Metadata) -> Result<(), String> {
    let rope = metadata.scalar(&key("rope.dimension_count"))?;
    let number = |json: &Map<String, Value>, key: &str| json.get(key).and_then(Value::as_u64);
    if !json.contains_key("head_dim") {
        let (hidden, heads) = (number(json, "hidden_size"), number(json, "num_attention_heads"));
        let even = hidden.zip(heads).filter(|(hidden, heads)| *heads > 0 && hidden.is_multiple_of(*heads));
        // Without either, the config says that the numbers do not fit.
        if let Some(dim) = rope.clone().or_else(|| even.map(|(hidden, heads)| (hidden / heads).into())) {
            json.insert("head_dim".to_owned(), dim);
        }
    }
    let dim = json.get("head_dim");
    for (end, value) in
        [("rope.dimension_count", rope), ("attention.value_length", metadata.scalar(&key("attention.value_length"))?)]
    {
        if let Some(value) = value
            && Some(&value) != dim
        {
            let dim = dim.unwrap_or(&Value::Null);
            return Err(format!("{} is {value}, but heads have {dim} elements: all of a head is turned", key(end)));
        }
    }
    Ok(())
}

/// As `rope_scaling` of a `config.json`; a factor without a type is linear, as llama.cpp has it.
fn rope_scaling(key: &dyn Fn(&str) -> String, metadata: &Metadata) -> Result<Value, String> {
    let factor = metadata.scalar(&key("rope.scaling.factor"))?;
    let kind = metadata.text(&key("rope.scaling.type"))?;
    Ok(match (kind, factor) {
        (Some("none"), _) | (None, None) => Value::Null,
        (kind, factor) => json!({"rope_type": kind.unwrap_or("linear"), "factor": factor}),
    })
}

fn rope_divisors(tensors: &Tensors, head_dim: usize) -> Result<Option<Vec<f32>>, String> {
    let Some(stored) = tensors.get(ROPE_DIVISORS) else { return Ok(None) };
    if stored.element != Element::F32 || stored.shape != [head_dim / 2] {
        let (found, half) = (stored.element.name(), head_dim / 2);
        return Err(format!("{ROPE_DIVISORS} is {found} of shape {:?}, expected F32 of [{half}]", stored.shape));
    }
    let divisors: Vec<f32> =
        stored.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    match divisors.iter().find(|d| !d.is_finite() || **d <= 0.0) {
        Some(bad) => Err(format!("{ROPE_DIVISORS} holds {bad}, expected positive numbers")),
        None => Ok(Some(divisors)),
    }
}

/// A problem in the words of `config.json`, said in those of the file.
fn own_words(problem: String, architecture: &str) -> String {
    let keys = KEYS.iter().map(|(own, theirs, _)| (*own, *theirs)).chain([("rope.scaling", "rope_scaling")]);
    keys.fold(problem, |problem, (own, theirs)| problem.replace(theirs, &format!("{architecture}.{own}")))
}
