//! A fixture of a SentencePiece model as a micro GGUF file.

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use holdfast_model::random::MicroShape;
use serde_json::{Map, Value as Json};

use crate::file::Gguf;

/// Texts one after the other, each ended.
const TEMPLATE: &str = "{% for message in messages %}{{ message.content ~ eos_token }}{% endfor %}";

/// Reads a fixture.
pub(crate) fn fixture(text: &str) -> Map<String, Json> {
    serde_json::from_str(text).unwrap()
}

/// A micro model with the tokenizer of a fixture.
pub(crate) fn gguf(fixture: &Map<String, Json>, shape: &MicroShape) -> Gguf {
    let list = |key: &str| fixture[key].as_array().unwrap();
    let tokens: Vec<_> = list("tokens").iter().map(|token| Value::String(token.as_str().unwrap().to_owned())).collect();
    let shape = MicroShape { vocab_size: u32::try_from(tokens.len()).unwrap(), ..shape.clone() };
    let mut file = Gguf::of(&shape, GgmlDType::F32);
    file.metadata.retain(|(key, _)| !key.starts_with("tokenizer."));
    let id = |key: &str| Value::U32(u32::try_from(fixture[key].as_u64().unwrap()).unwrap());
    for (key, value) in [
        ("ggml.model", Value::String("llama".to_owned())),
        ("ggml.tokens", Value::Array(tokens)),
        ("ggml.scores", Value::Array(list("scores").iter().map(|n| Value::F32(n.as_f64().unwrap() as f32)).collect())),
        (
            "ggml.token_type",
            Value::Array(list("types").iter().map(|n| Value::I32(n.as_i64().unwrap() as i32)).collect()),
        ),
        ("ggml.add_space_prefix", Value::Bool(fixture["add_space_prefix"].as_bool().unwrap())),
        ("ggml.bos_token_id", id("bos")),
        ("ggml.eos_token_id", id("eos")),
        ("chat_template", Value::String(TEMPLATE.to_owned())),
    ] {
        file.set(&format!("tokenizer.{key}"), Some(value));
    }
    file
}
