//! Micro GGUF files, made from the Hugging Face form of the same model by the conventions of llama.cpp's converter.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor, safetensors};
use holdfast_model::random::{MICRO_LONG_ROPE_CONTEXT, MicroFamily, MicroRope, MicroShape};
use holdfast_model::{Model, ModelError, ModelSource};
use serde_json::Value as Json;

/// A GGUF file before it is written; entries can be changed.
#[derive(Clone)]
pub(crate) struct Gguf {
    pub(crate) metadata: Vec<(String, Value)>,
    pub(crate) tensors: Vec<(String, Tensor, GgmlDType)>,
}

impl Gguf {
    /// The same model as `shape` gives in Hugging Face layout, its matrices as `dtype` and its vectors as F32.
    pub(crate) fn of(shape: &MicroShape, dtype: GgmlDType) -> Self {
        let directory = tempfile::tempdir().unwrap();
        shape.write(directory.path()).unwrap();
        let arch = match shape.family {
            MicroFamily::Mistral => "llama",
            family => family.names().1,
        };
        let turns_pairs = matches!(arch, "llama" | "smollm3");
        let mut tensors = Vec::new();
        let mut stored: Vec<_> =
            safetensors::load(directory.path().join("model.safetensors"), &Device::Cpu).unwrap().into_iter().collect();
        stored.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, tensor) in stored {
            let turned = |heads| if turns_pairs { permute(&tensor, heads) } else { tensor.clone() };
            let tensor = match name.rsplit('.').nth(1).unwrap() {
                "q_proj" => turned(shape.heads),
                "k_proj" => turned(shape.kv_heads),
                _ => tensor,
            };
            let dtype = if tensor.rank() == 2 { dtype } else { GgmlDType::F32 };
            tensors.push((gguf_name(&name), tensor, dtype));
        }
        let config: Json = serde_json::from_str(&shape.text_files().config).unwrap();
        let list = |key: &str| {
            let all = config["rope_scaling"][key].as_array().unwrap();
            all.iter().map(|factor| factor.as_f64().unwrap() as f32).collect::<Vec<_>>()
        };
        let divisors = match shape.rope {
            MicroRope::Llama3 => vec![("rope_freqs.weight", llama3_divisors(shape.head_dim))],
            MicroRope::LongRope => vec![
                ("rope_factors_long.weight", list("long_factor")),
                ("rope_factors_short.weight", list("short_factor")),
            ],
            MicroRope::Plain | MicroRope::Linear | MicroRope::Yarn => Vec::new(),
        };
        for (name, divisors) in divisors {
            let divisors = Tensor::from_slice(&divisors, divisors.len(), &Device::Cpu).unwrap();
            tensors.push((name.to_owned(), divisors, GgmlDType::F32));
        }
        let mut metadata = vec![("general.architecture".to_owned(), Value::String(arch.to_owned()))];
        let count = |n: usize| Value::U32(n as u32);
        for (key, value) in [
            ("block_count", count(shape.layers)),
            ("context_length", Value::U32(shape.context_limit)),
            ("embedding_length", count(shape.hidden)),
            ("feed_forward_length", count(shape.ffn)),
            ("attention.head_count", count(shape.heads)),
            ("attention.head_count_kv", count(shape.kv_heads)),
            ("attention.key_length", count(shape.head_dim)),
            ("attention.value_length", count(shape.head_dim)),
            ("attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
            ("rope.freq_base", Value::F32(10_000.0)),
        ] {
            metadata.push((format!("{arch}.{key}"), value));
        }
        if arch == "llama" {
            metadata.push(("llama.rope.dimension_count".to_owned(), count(shape.head_dim)));
            metadata.push(("llama.vocab_size".to_owned(), Value::U32(shape.vocab_size)));
        }
        if arch == "phi3" {
            let turned = (shape.head_dim as f64 * shape.rotary_share) as usize;
            metadata.push(("phi3.rope.dimension_count".to_owned(), count(turned)));
            metadata
                .push(("phi3.rope.scaling.original_context_length".to_owned(), Value::U32(MICRO_LONG_ROPE_CONTEXT)));
            metadata.push(("phi3.attention.sliding_window".to_owned(), Value::U32(shape.window.unwrap_or(0))));
            metadata.retain(|(key, _)| key != "phi3.attention.key_length" && key != "phi3.attention.value_length");
        }
        if shape.rope == MicroRope::Yarn {
            metadata.push((format!("{arch}.rope.scaling.type"), Value::String("yarn".to_owned())));
            metadata.push((format!("{arch}.rope.scaling.factor"), Value::F32(8.0)));
            metadata.push((format!("{arch}.rope.scaling.original_context_length"), Value::U32(64)));
        }
        metadata.extend(tokenizer(directory.path(), shape.vocab_size));
        Self { metadata, tensors }
    }

    /// Sets a key, or takes it away.
    pub(crate) fn set(&mut self, key: &str, value: Option<Value>) -> &mut Self {
        self.metadata.retain(|(name, _)| name != key);
        self.metadata.extend(value.map(|value| (key.to_owned(), value)));
        self
    }

    /// A tensor's entry.
    pub(crate) fn tensor(&mut self, name: &str) -> &mut (String, Tensor, GgmlDType) {
        self.tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let quantise = |(name, tensor, dtype): &(String, Tensor, GgmlDType)| {
            (name.clone(), QTensor::quantize(&tensor.contiguous().unwrap(), *dtype).unwrap())
        };
        let tensors: Vec<_> = self.tensors.iter().map(quantise).collect();
        let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let metadata: Vec<_> = self.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let mut out = Cursor::new(Vec::new());
        gguf_file::write(&mut out, &metadata, &tensors).unwrap();
        out.into_inner()
    }

    pub(crate) fn load(&self) -> Result<Model, ModelError> {
        load_bytes(&self.bytes())
    }
}

/// Loads the bytes of a file.
pub(crate) fn load_bytes(bytes: &[u8]) -> Result<Model, ModelError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("micro.gguf");
    fs::write(&path, bytes).unwrap();
    Model::load(&ModelSource::resolve(path.to_str().unwrap()).unwrap())
}

/// `LlamaModel.permute` of llama.cpp's converter, word by word.
fn permute(tensor: &Tensor, heads: usize) -> Tensor {
    let mut split = vec![heads, 2, tensor.dims()[0] / heads / 2];
    split.extend(&tensor.dims()[1..]);
    tensor.reshape(split).unwrap().transpose(1, 2).unwrap().contiguous().unwrap().reshape(tensor.dims()).unwrap()
}

fn gguf_name(name: &str) -> String {
    let name = name.replace("model.layers.", "blk.");
    let parts = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.qkv_proj", "attn_qkv"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_up_proj", "ffn_up"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    parts.iter().fold(name, |name, (from, to)| name.replace(from, to))
}

/// As the converter writes `rope_freqs`, from the micro model's numbers.
fn llama3_divisors(head_dim: usize) -> Vec<f32> {
    let (factor, low, high, context) = (8.0_f64, 1.0, 4.0, 64.0);
    let divisor = |i: usize| {
        let wavelength = std::f64::consts::TAU * 10_000_f64.powf((2 * i) as f64 / head_dim as f64);
        if wavelength < context / high {
            1.0
        } else if wavelength > context / low {
            factor
        } else {
            let smooth = (context / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..head_dim / 2).map(|i| divisor(i) as f32).collect()
}

/// The keys of the tokenizer and the template, as `_set_vocab_gpt2` writes them.
fn tokenizer(directory: &Path, vocab_size: u32) -> Vec<(String, Value)> {
    let json: Json = serde_json::from_str(&fs::read_to_string(directory.join("tokenizer.json")).unwrap()).unwrap();
    let mut tokens: Vec<String> = (0..vocab_size).map(|id| format!("[PAD{id}]")).collect();
    let mut types = vec![5; vocab_size as usize];
    for (token, id) in json["model"]["vocab"].as_object().unwrap() {
        let id = id.as_u64().unwrap() as usize;
        (tokens[id], types[id]) = (token.clone(), 1);
    }
    for added in json["added_tokens"].as_array().unwrap() {
        types[added["id"].as_u64().unwrap() as usize] = if added["special"] == true { 3 } else { 4 };
    }
    let merges = json["model"]["merges"].as_array().unwrap();
    let merges = merges.iter().map(|pair| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()));
    let texts = |list: Vec<String>| Value::Array(list.into_iter().map(Value::String).collect());
    let text = |text: &str| Value::String(text.to_owned());
    let template = fs::read_to_string(directory.join("chat_template.jinja")).unwrap();
    [
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("gpt-2")),
        ("tokenizer.ggml.tokens", texts(tokens)),
        ("tokenizer.ggml.token_type", Value::Array(types.into_iter().map(Value::I32).collect())),
        ("tokenizer.ggml.merges", texts(merges.collect())),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
        ("tokenizer.ggml.padding_token_id", Value::U32(0)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
        ("tokenizer.chat_template", text(&template)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}
