//! Metadata to a config: the keys of a GGUF file as those of a `config.json`.
//!
//! In: metadata, and which tensors there are. Out: the [`DecoderConfig`] that the equal `config.json` gives, and that file's text.
//! What is wrong is said in the GGUF file's own keys. Deliberately not here: what the keys of a `config.json` mean.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::Tensors;
use super::metadata::Metadata;
use crate::config::{GGUF_WINDOW, bias_of, long_rope_attention_factor};
use crate::weights::Element;
use crate::{ARCHITECTURES, Architecture, BiasRule, DecoderConfig, GgufForm, ModelError, RopeScaling, WindowRule};

/// The tensor of Llama 3.1's stretched frequencies: what each is divided by, `[rotary_dim / 2]`.
const ROPE_DIVISORS: &str = "rope_freqs.weight";
/// LongRoPE's, for contexts beyond that of the first training.
const ROPE_LONG: &str = "rope_factors_long.weight";
/// LongRoPE's, for the others.
const ROPE_SHORT: &str = "rope_factors_short.weight";
/// Tensors that the config is made of.
pub(crate) const ROPE_TENSORS: &[&str] = &[ROPE_DIVISORS, ROPE_LONG, ROPE_SHORT];

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

/// What LongRoPE multiplies cosines and sines by.
const ATTENTION_FACTOR: &str = "rope.scaling.attn_factor";
/// Context that the model was first trained with.
const ORIGINAL_CONTEXT: &str = "rope.scaling.original_context_length";

/// Keys after the architecture's name that are looked at besides, or that change nothing.
const OTHERS: &[&str] = &[
    "attention.value_length",
    "rope.dimension_count",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    ORIGINAL_CONTEXT,
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "tensor_data_layout",
];

/// Reads the config. `path` is for messages.
///
/// # Errors
/// [`ModelError::UnknownArchitecture`], or [`ModelError::Config`] with the key.
pub(super) fn read(
    path: &Path,
    metadata: &Metadata,
    tensors: &Tensors,
) -> Result<(DecoderConfig, &'static GgufForm, String), ModelError> {
    let wrong = |problem: String| ModelError::Config { path: path.to_owned(), problem };
    let found = metadata.text("general.architecture").map_err(wrong)?.unwrap_or("none");
    let known = ARCHITECTURES.iter().filter_map(|row| Some((row, row.gguf.as_ref()?)));
    let row = known.clone().find(|(_, form)| form.architecture == found);
    let (row, form) = row.ok_or_else(|| ModelError::UnknownArchitecture {
        path: path.to_owned(),
        found: found.to_owned(),
        known: known.map(|(_, form)| form.architecture).collect::<Vec<_>>().join(", "),
    })?;
    let json = to_json(row, form, metadata, tensors).map_err(wrong)?.to_string();
    let mut config = DecoderConfig::parse(&json, path).map_err(|e| match e {
        ModelError::Config { path, problem } => ModelError::Config { path, problem: own_words(problem, form) },
        other => other,
    })?;
    if let Some(scaling) = stretched_by_tensors(&config, found, metadata, tensors).map_err(wrong)? {
        if config.rope.scaling != RopeScaling::None {
            return Err(wrong(format!("a tensor and {found}.rope.scaling both stretch the frequencies")));
        }
        config.rope.scaling = scaling;
    }
    Ok((config, form, json))
}

/// The metadata as a `config.json`.
fn to_json(row: &Architecture, form: &GgufForm, metadata: &Metadata, tensors: &Tensors) -> Result<Value, String> {
    let key = |end: &str| format!("{}.{end}", form.architecture);
    // Without the key, these families would take the window of other files.
    let window_needed = matches!(row.windows, WindowRule::Alternating { .. });
    let own_keys = form.keys.iter().map(|key| (key.0, key.1, window_needed && *key == GGUF_WINDOW));
    let keys: Vec<_> = KEYS.iter().copied().chain(own_keys).collect();
    let known = |end: &str| {
        OTHERS.contains(&end)
            || keys.iter().any(|(own, ..)| *own == end)
            || (end == ATTENTION_FACTOR && tensors.has(ROPE_LONG))
    };
    let prefix = key("");
    let mut unknown: Vec<&str> =
        metadata.keys().filter(|key| key.strip_prefix(&prefix).is_some_and(|end| !known(end))).collect();
    unknown.retain(|key| metadata.asks(key));
    unknown.sort_unstable();
    if let Some(key) = unknown.first() {
        return Err(format!("key {key} is not understood, and may change the result"));
    }

    let mut json = Map::new();
    json.insert("architectures".to_owned(), json!([row.name]));
    for (own, theirs, needed) in keys {
        match metadata.scalar(&key(own))? {
            Some(value) if own == GGUF_WINDOW.0 && value.as_u64() == Some(0) => {
                json.insert(theirs.to_owned(), Value::Null);
            }
            Some(value) => {
                if let Some(other) = json.get(theirs).filter(|other| **other != value) {
                    return Err(format!("{} is {value}, but another key says {other}", key(own)));
                }
                json.insert(theirs.to_owned(), value);
            }
            None if needed => return Err(format!("{} is missing", key(own))),
            None => {}
        }
    }
    if !json.contains_key("vocab_size") {
        let tokens = metadata.texts("tokenizer.ggml.tokens")?.unwrap_or_default().len();
        json.insert("vocab_size".to_owned(), tokens.into());
    }
    head_dim(&mut json, row, &key, metadata)?;
    query_scalar(&mut json, row, form);
    let scaling = rope_scaling(&key, form, metadata)?;
    // LongRoPE is in its tensors, its type beside them.
    let by_tensors = tensors.has(ROPE_LONG) && scaling["rope_type"] == "longrope" && scaling["factor"].is_null();
    json.insert("rope_scaling".to_owned(), if by_tensors { Value::Null } else { scaling });
    json.insert("tie_word_embeddings".to_owned(), (!tensors.has(form.names.lm_head)).into());
    for (rule, weight) in
        [(row.qkv_bias, form.names.q), (row.output_bias, form.names.output), (row.mlp_bias, form.names.gate)]
    {
        if let BiasRule::Key { key: flag, .. } = rule {
            let bias = bias_of(&weight.replace("{}", "0"));
            // One key may speak of two biases: if only one is there, the other is missed by its name.
            let asked = json.get(flag) == Some(&Value::Bool(true)) || tensors.has(&bias);
            json.insert(flag.to_owned(), asked.into());
        }
    }
    Ok(Value::Object(json))
}

/// Settles the size of a head, which three keys speak of, or else `embedding_length / head_count`; and how much of it turns.
fn head_dim(
    json: &mut Map<String, Value>,
    row: &Architecture,
    key: &dyn Fn(&str) -> String,
    metadata: &Metadata,
) -> Result<(), String> {
    let mut rope = metadata.scalar(&key("rope.dimension_count"))?;
    let number = |json: &Map<String, Value>, key: &str| json.get(key).and_then(Value::as_u64);
    if !json.contains_key("head_dim") {
        let (hidden, heads) = (number(json, "hidden_size"), number(json, "num_attention_heads"));
        let even = hidden.zip(heads).filter(|(hidden, heads)| *heads > 0 && hidden.is_multiple_of(*heads));
        // Without either, the config says that the numbers do not fit.
        let even = even.map(|(hidden, heads)| (hidden / heads).into());
        let whole = rope.clone().filter(|_| !row.partial_rotary);
        if let Some(dim) = whole.or(even) {
            json.insert("head_dim".to_owned(), dim);
        }
    }
    if row.partial_rotary
        && let Some(turned) = rope.take_if(|rope| rope.is_u64())
        && let (Some(turned), Some(whole)) = (turned.as_f64(), json.get("head_dim").and_then(Value::as_f64))
    {
        json.insert("partial_rotary_factor".to_owned(), (turned / whole).into());
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

/// Says by what scores are divided, for families whose files do not.
fn query_scalar(json: &mut Map<String, Value>, row: &Architecture, form: &GgufForm) {
    let number = |key: &str| json.get(key).and_then(Value::as_u64);
    let wide = form.wide_queries_layers.is_some() && form.wide_queries_layers == number("num_hidden_layers");
    let scalar = match (number("hidden_size"), number("num_attention_heads")) {
        (Some(hidden), Some(heads)) if wide && heads > 0 => Some(hidden / heads),
        _ => number("head_dim"),
    };
    if let Some(scalar) = scalar.filter(|_| row.query_scalar) {
        json.insert("query_pre_attn_scalar".to_owned(), scalar.into());
    }
}

/// As `rope_scaling` of a `config.json`; a factor without a type is linear, as llama.cpp has it.
fn rope_scaling(key: &dyn Fn(&str) -> String, form: &GgufForm, metadata: &Metadata) -> Result<Value, String> {
    let factor = metadata.scalar(&key("rope.scaling.factor"))?;
    let kind = metadata.text(&key("rope.scaling.type"))?;
    Ok(match (kind, factor) {
        (Some("none"), _) | (None, None) => Value::Null,
        (Some("yarn"), factor) => {
            let [original, fast, slow] =
                [ORIGINAL_CONTEXT, "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"].map(key);
            json!({"rope_type": "yarn", "factor": factor, "truncate": form.yarn_truncate,
                "original_max_position_embeddings": metadata.scalar(&original)?,
                "beta_fast": metadata.scalar(&fast)?, "beta_slow": metadata.scalar(&slow)?})
        }
        (kind, factor) => json!({"rope_type": kind.unwrap_or("linear"), "factor": factor}),
    })
}

/// What the tensors beside the weights say about the frequencies.
fn stretched_by_tensors(
    config: &DecoderConfig,
    architecture: &str,
    metadata: &Metadata,
    tensors: &Tensors,
) -> Result<Option<RopeScaling>, String> {
    let read = |name| divisors(tensors, name, config.rotary_dim / 2);
    let (long, short) = match (read(ROPE_DIVISORS)?, read(ROPE_LONG)?, read(ROPE_SHORT)?) {
        (None, None, None) => return Ok(None),
        (Some(all), None, None) => return Ok(Some(RopeScaling::Divisors(all))),
        (None, Some(long), Some(short)) => (long, short),
        _ => return Err(format!("it must hold {ROPE_DIVISORS}, or both {ROPE_LONG} and {ROPE_SHORT}")),
    };
    let key = |end: &str| format!("{architecture}.{end}");
    let (original, factor) = (metadata.count(&key(ORIGINAL_CONTEXT))?, metadata.scalar(&key(ATTENTION_FACTOR))?);
    let original =
        original.filter(|tokens| *tokens > 1).ok_or_else(|| format!("{} is missing", key(ORIGINAL_CONTEXT)))?;
    let (original, context) = (original as f64, f64::from(config.context_limit));
    let attention_factor = match factor {
        None => long_rope_attention_factor(context / original, original),
        Some(value) => value
            .as_f64()
            .filter(|factor| factor.is_finite() && *factor > 0.0)
            .ok_or_else(|| format!("{} is {value}, expected a positive number", key(ATTENTION_FACTOR)))?,
    };
    Ok(Some(RopeScaling::LongRope { divisors: if context > original { long } else { short }, attention_factor }))
}

fn divisors(tensors: &Tensors, name: &str, pairs: usize) -> Result<Option<Vec<f32>>, String> {
    let Some(stored) = tensors.get(name) else { return Ok(None) };
    if stored.element != Element::F32 || stored.shape != [pairs] {
        let found = stored.element.name();
        return Err(format!("{name} is {found} of shape {:?}, expected F32 of [{pairs}]", stored.shape));
    }
    let divisors: Vec<f32> =
        stored.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    match divisors.iter().find(|d| !d.is_finite() || **d <= 0.0) {
        Some(bad) => Err(format!("{name} holds {bad}, expected positive numbers")),
        None => Ok(Some(divisors)),
    }
}

/// A problem in the words of `config.json`, said in those of the file.
fn own_words(problem: String, form: &GgufForm) -> String {
    let common = KEYS.iter().map(|(own, theirs, _)| (*own, *theirs));
    let keys: Vec<_> = common
        .chain(form.keys.iter().copied())
        .chain([("rope.scaling", "rope_scaling"), ("rope.dimension_count", "partial_rotary_factor")])
        .collect();
    // A key that another one begins is said by that one.
    let begun = |key: &str| keys.iter().any(|(_, other)| *other != key && key.starts_with(other));
    let said = keys.iter().filter(|(_, theirs)| !begun(theirs));
    said.fold(problem, |problem, (own, theirs)| problem.replace(theirs, &format!("{}.{own}", form.architecture)))
}
