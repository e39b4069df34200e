//! Micro GGUF files, made from the Hugging Face form of the same model by the conventions of llama.cpp's converter.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor, safetensors};
use holdfast_model::random::MicroFamily::{Gemma2, Gemma3, GptOss, Mistral, Phi3};
use holdfast_model::random::{MICRO_LONG_ROPE_CONTEXT, MicroFamily, MicroRope, MicroShape};
use holdfast_model::{Model, ModelError, ModelSource};
use serde_json::Value as Json;

/// ggml's number for MXFP4.
const MXFP4: u32 = 39;

/// A GGUF file before it is written; entries can be changed.
#[derive(Clone)]
pub(crate) struct Gguf {
    pub(crate) metadata: Vec<(String, Value)>,
    pub(crate) tensors: Vec<(String, Tensor, GgmlDType)>,
    /// Blocks of MXFP4, by the name of the tensor that they are. The writer knows no MXFP4: the tensor is a Q8_0, which has room for them.
    pub(crate) mxfp4: BTreeMap<String, Vec<u8>>,
}

impl Gguf {
    /// The same model as `shape` gives in Hugging Face layout: its matrices as `dtype`, its packed experts as MXFP4, the rest as F32.
    pub(crate) fn of(shape: &MicroShape, dtype: GgmlDType) -> Self {
        let directory = tempfile::tempdir().unwrap();
        shape.write(directory.path()).unwrap();
        let config: Json = serde_json::from_str(&shape.text_files().config).unwrap();
        let mut metadata = metadata(shape, &config);
        metadata.extend(tokenizer(directory.path(), shape.vocab_size));
        let mut file = Self { metadata, tensors: Vec::new(), mxfp4: BTreeMap::new() };

        let stored = safetensors::load(directory.path().join("model.safetensors"), &Device::Cpu).unwrap();
        let stored: BTreeMap<_, _> = stored.into_iter().collect();
        let turns_pairs = matches!(architecture(shape.family), "llama" | "smollm3");
        for (name, tensor) in &stored {
            let turned = |heads| if turns_pairs { permute(tensor, heads) } else { tensor.clone() };
            let tensor = match name.rsplit('.').nth(1).unwrap() {
                "q_proj" => turned(shape.heads),
                "k_proj" => turned(shape.kv_heads),
                part if part.ends_with("norm") && matches!(shape.family, Gemma2 | Gemma3) => (tensor + 1.0).unwrap(),
                "experts" => {
                    file.push_experts(name, tensor, &stored);
                    continue;
                }
                _ => tensor.clone(),
            };
            let dtype = if tensor.rank() == 2 { dtype } else { GgmlDType::F32 };
            file.tensors.push((gguf_name(shape.family, name), tensor, dtype));
        }
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
            file.tensors.push((name.to_owned(), divisors, GgmlDType::F32));
        }
        file
    }

    /// A tensor of gpt-oss's experts: outputs before inputs, those of gate and up apart, scales before the elements under them.
    fn push_experts(&mut self, name: &str, tensor: &Tensor, stored: &BTreeMap<String, Tensor>) {
        let (layer, part) = name.split_once("mlp.experts.").unwrap();
        let layer = layer.replace("model.layers.", "blk.");
        let (kind, tensor, is_packed) = match part.rsplit('_').next().unwrap() {
            // They come with their blocks.
            "scales" => return,
            "blocks" => {
                let scales = &stored[&name.replace("_blocks", "_scales")];
                ("weight", Tensor::cat(&[&scales.unsqueeze(3).unwrap(), &halves_apart(tensor)], 3).unwrap(), true)
            }
            "bias" => ("bias", tensor.clone(), false),
            _ => ("weight", tensor.transpose(1, 2).unwrap().contiguous().unwrap(), false),
        };
        let every_other = |from: u32| {
            let rows: Vec<u32> = (0..tensor.dims()[1] as u32 / 2).map(|row| 2 * row + from).collect();
            tensor.index_select(&Tensor::new(rows, tensor.device()).unwrap(), 1).unwrap()
        };
        let parts = match part.starts_with("down_proj") {
            true => vec![("down", tensor)],
            false => vec![("gate", every_other(0)), ("up", every_other(1))],
        };
        for (role, tensor) in parts {
            let name = format!("{layer}ffn_{role}_exps.{kind}");
            if !is_packed {
                self.tensors.push((name, tensor, GgmlDType::F32));
                continue;
            }
            let (experts, outputs, blocks, _) = tensor.dims4().unwrap();
            let room = Tensor::zeros((experts, outputs, 32 * blocks), DType::F32, &Device::Cpu).unwrap();
            self.tensors.push((name.clone(), room, GgmlDType::Q8_0));
            self.mxfp4.insert(name, tensor.flatten_all().unwrap().to_vec1().unwrap());
        }
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
        let mut bytes = out.into_inner();
        if !self.mxfp4.is_empty() {
            let content = gguf_file::Content::read(&mut Cursor::new(&bytes)).unwrap();
            self.mxfp4.iter().for_each(|(name, blocks)| place_mxfp4(&mut bytes, &content, name, blocks));
        }
        bytes
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

/// Makes a tensor of Q8_0 one of MXFP4.
fn place_mxfp4(bytes: &mut [u8], content: &gguf_file::Content, name: &str, blocks: &[u8]) {
    let start = (content.tensor_data_offset + content.tensor_infos[name].offset) as usize;
    bytes[start..start + blocks.len()].copy_from_slice(blocks);
    // An entry of the header: the name, how many dimensions, each of them, the type.
    let dimensions = bytes.windows(name.len()).position(|window| window == name.as_bytes()).unwrap() + name.len();
    let kind = dimensions + 4 + 8 * usize::from(bytes[dimensions]);
    bytes[kind..kind + 4].copy_from_slice(&MXFP4.to_le_bytes());
}

/// Blocks of 16 bytes, whose byte i holds elements 2i and 2i + 1, as ggml has them: elements i and i + 16.
fn halves_apart(blocks: &Tensor) -> Tensor {
    let mut bytes: Vec<u8> = blocks.flatten_all().unwrap().to_vec1().unwrap();
    for block in bytes.chunks_exact_mut(16) {
        let elements: Vec<u8> = block.iter().flat_map(|pair| [pair & 0xf, pair >> 4]).collect();
        block.iter_mut().enumerate().for_each(|(i, byte)| *byte = elements[i] | elements[i + 16] << 4);
    }
    Tensor::from_vec(bytes, blocks.dims(), &Device::Cpu).unwrap()
}

/// `LlamaModel.permute` of llama.cpp's converter, word by word.
fn permute(tensor: &Tensor, heads: usize) -> Tensor {
    let mut split = vec![heads, 2, tensor.dims()[0] / heads / 2];
    split.extend(&tensor.dims()[1..]);
    tensor.reshape(split).unwrap().transpose(1, 2).unwrap().contiguous().unwrap().reshape(tensor.dims()).unwrap()
}

/// `general.architecture`.
fn architecture(family: MicroFamily) -> &'static str {
    match family {
        Mistral => "llama",
        Gemma3 => "gemma3",
        GptOss => "gpt-oss",
        family => family.names().1,
    }
}

/// The keys of the config.
fn metadata(shape: &MicroShape, config: &Json) -> Vec<(String, Value)> {
    let arch = architecture(shape.family);
    let mut all = vec![("general.architecture".to_owned(), Value::String(arch.to_owned()))];
    let mut set = |key: &str, value: Value| all.push((format!("{arch}.{key}"), value));
    let count = |n: usize| Value::U32(n as u32);
    let number = |key: &str| Value::F32(config[key].as_f64().unwrap() as f32);
    let window = Value::U32(shape.window.unwrap_or(0));
    set("block_count", count(shape.layers));
    set("context_length", Value::U32(shape.context_limit));
    set("embedding_length", count(shape.hidden));
    set("feed_forward_length", count(shape.ffn));
    set("attention.head_count", count(shape.heads));
    set("attention.head_count_kv", count(shape.kv_heads));
    set("attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    set("rope.freq_base", Value::F32(10_000.0));
    if shape.family != Phi3 {
        set("attention.key_length", count(shape.head_dim));
        set("attention.value_length", count(shape.head_dim));
    }
    match shape.family {
        Phi3 => {
            set("rope.dimension_count", count((shape.head_dim as f64 * shape.rotary_share) as usize));
            set("rope.scaling.original_context_length", Value::U32(MICRO_LONG_ROPE_CONTEXT));
            set("attention.sliding_window", window);
        }
        Gemma2 => {
            set("attention.sliding_window", window);
            set("attn_logit_softcapping", number("attn_logit_softcapping"));
            set("final_logit_softcapping", number("final_logit_softcapping"));
        }
        Gemma3 => {
            set("attention.sliding_window", window);
            set("attention.sliding_window_pattern", Value::U32(3));
            set("final_logit_softcapping", number("final_logit_softcapping"));
            set("rope.freq_base_swa", number("rope_local_base_freq"));
        }
        GptOss => {
            set("attention.sliding_window", window);
            set("expert_count", count(shape.experts));
            set("expert_used_count", Value::U32(2));
            set("expert_feed_forward_length", count(shape.ffn));
            set("rope.scaling.yarn_beta_fast", Value::F32(8.0));
            set("rope.scaling.yarn_beta_slow", Value::F32(0.25));
        }
        _ if arch == "llama" => {
            set("rope.dimension_count", count(shape.head_dim));
            set("vocab_size", Value::U32(shape.vocab_size));
        }
        _ => {}
    }
    let scaling = match shape.rope {
        MicroRope::Linear => "linear",
        MicroRope::Yarn => "yarn",
        _ => return all,
    };
    set("rope.scaling.type", Value::String(scaling.to_owned()));
    set("rope.scaling.factor", Value::F32(8.0));
    if shape.rope == MicroRope::Yarn {
        set("rope.scaling.original_context_length", Value::U32(64));
    }
    all
}

fn gguf_name(family: MicroFamily, name: &str) -> String {
    // These have norms after attention and feed-forward too, or name the one before the feed-forward for what it follows.
    let after_attention = if matches!(family, Gemma2 | Gemma3 | GptOss) { "post_attention_norm" } else { "ffn_norm" };
    let parts = [
        ("model.layers.", "blk."),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", after_attention),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.qkv_proj", "attn_qkv"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.sinks", "attn_sinks.weight"),
        ("mlp.router", "ffn_gate_inp"),
        ("mlp.gate_up_proj", "ffn_up"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    parts.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
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
