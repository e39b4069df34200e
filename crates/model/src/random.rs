//! Random micro models: seeded, tiny, whole.
//!
//! In: a [`MicroShape`]. Out: a [`Model`] in memory, or its files in a directory. Their answers mean nothing; their
//! arithmetic is that of real models, which is what conformance suites and tests of other crates need. The tokenizer is
//! byte-level with a few merges, the template is ChatML with Hermes tool calls. Deliberately not here: any other randomness.

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use serde_json::{Map, Value, json};

use crate::bytes::char_of;
use crate::weights::WeightBytes;
use crate::{DecoderConfig, LayerPart, Model, ModelError, Storage, TensorRole, TensorSpec, TextFiles};

/// Added tokens of the micro tokenizer, by id: content and whether special.
pub const MICRO_TOKENS: [(&str, bool); 5] = [
    ("<|endoftext|>", true),
    ("<|im_start|>", true),
    ("<|im_end|>", true),
    ("<tool_call>", false),
    ("</tool_call>", false),
];

/// Merges of the micro tokenizer, so that text does not only become single bytes. The last ones make parts of characters.
const MERGES: &[(&str, &str)] = &[
    ("t", "h"),
    ("th", "e"),
    ("Ġ", "the"),
    ("i", "n"),
    ("e", "r"),
    ("Ġ", "a"),
    ("o", "n"),
    ("\"", ":"),
    (":", "Ġ"),
    ("u", "s"),
    ("us", "er"),
    ("s", "s"),
    ("a", "ss"),
    ("Ċ", "Ċ"),
    ("Ã", "©"),
    ("ð", "Ł"),
    ("ðŁ", "ĺ"),
];

/// Smallest vocabulary: the added tokens, every byte and the merges.
pub const MICRO_VOCABULARY: u32 = (MICRO_TOKENS.len() + 256 + MERGES.len()) as u32;

/// What a micro model looks like. Start from the default and change what a test is about.
#[derive(Debug, Clone, PartialEq)]
pub struct MicroShape {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of one head; even.
    pub head_dim: usize,
    /// Width of the feed-forward.
    pub ffn: usize,
    /// Rows of the embedding, at least [`MICRO_VOCABULARY`]; more are tokens without text.
    pub vocab_size: u32,
    /// Most positions.
    pub context_limit: u32,
    /// Which family's conventions the files follow.
    pub family: MicroFamily,
    /// Biases on attention, for families that may have them: Llama, Qwen3, SmolLM3 and Gemma. gpt-oss always has them.
    pub attention_bias: bool,
    /// Biases on the feed-forward, for families that may have them: Llama and SmolLM3.
    pub mlp_bias: bool,
    /// Sliding window of the layers that the family gives one: all of Mistral and Phi-3, in Qwen2 and Qwen3 all but the first, in SmolLM3
    /// those that do not turn (every second here), in Gemma 2 and gpt-oss every second from the first on, in Gemma 3 all but every third.
    /// Llama has none.
    pub window: Option<u32>,
    /// Scores are divided by its root, in Gemma; `None` is `head_dim`.
    pub query_scalar: Option<usize>,
    /// Experts of each layer, for gpt-oss; two of them are chosen for a token.
    pub experts: usize,
    /// Experts' matrices are in MXFP4, for gpt-oss; `hidden` and `ffn` are multiples of 32.
    pub packed: bool,
    /// The output matrix is the embedding.
    pub tied: bool,
    /// How rotary frequencies are stretched.
    pub rope: MicroRope,
    /// Share of each head that rotary embedding turns; Phi-3 alone may have less than 1.
    pub rotary_share: f64,
    /// Element type of the files.
    pub dtype: MicroDtype,
    /// Decides every weight.
    pub seed: u64,
}

/// A family of decoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the family that its name says")]
pub enum MicroFamily {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    SmolLm3,
    Phi3,
    Gemma2,
    Gemma3,
    GptOss,
}

impl MicroFamily {
    /// `architectures` and `model_type` of `config.json`.
    pub fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Llama => ("LlamaForCausalLM", "llama"),
            Self::Mistral => ("MistralForCausalLM", "mistral"),
            Self::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
            Self::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
            Self::SmolLm3 => ("SmolLM3ForCausalLM", "smollm3"),
            Self::Phi3 => ("Phi3ForCausalLM", "phi3"),
            Self::Gemma2 => ("Gemma2ForCausalLM", "gemma2"),
            Self::Gemma3 => ("Gemma3ForCausalLM", "gemma3_text"),
            Self::GptOss => ("GptOssForCausalLM", "gpt_oss"),
        }
    }
}

/// How a micro model's rotary frequencies are stretched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MicroRope {
    /// Not at all.
    Plain,
    /// As Llama 3.1's, from 64 tokens.
    Llama3,
    /// Every frequency divided by 8; in Gemma 3, those of layers without windows.
    Linear,
    /// By YaRN, from 64 tokens.
    Yarn,
    /// By LongRoPE, from [`MICRO_LONG_ROPE_CONTEXT`] tokens.
    LongRope,
}

/// Bounds that the numbers of a micro model often reach.
const MICRO_SCORE_CAP: f64 = 1.5;
const MICRO_LOGIT_CAP: f64 = 4.0;
const MICRO_SWIGLU_LIMIT: f64 = 0.75;

/// Context that [`MicroRope::LongRope`] stretches: a context limit beyond it takes the long factors.
pub const MICRO_LONG_ROPE_CONTEXT: u32 = 16;

/// Element type of a micro model's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MicroDtype {
    /// 32 bits.
    F32,
    /// Upper half of an f32.
    Bf16,
}

impl Default for MicroShape {
    fn default() -> Self {
        Self {
            hidden: 32,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
            ffn: 48,
            vocab_size: MICRO_VOCABULARY,
            context_limit: 512,
            family: MicroFamily::Llama,
            attention_bias: false,
            mlp_bias: false,
            window: None,
            query_scalar: None,
            experts: 5,
            packed: false,
            tied: true,
            rope: MicroRope::Plain,
            rotary_share: 1.0,
            dtype: MicroDtype::F32,
            seed: 0,
        }
    }
}

impl MicroShape {
    /// The model in memory.
    ///
    /// # Errors
    /// [`ModelError`] for a shape that no decoder has, such as an odd head.
    pub fn build(&self) -> Result<Model, ModelError> {
        let path = Path::new("micro");
        Model::from_memory(path, &self.text_files(), WeightBytes::Owned(self.weights_file()?))
    }

    /// Writes the model's files into an existing directory.
    ///
    /// # Errors
    /// [`ModelError::Read`] when a file cannot be written; otherwise as for [`MicroShape::build`].
    pub fn write(&self, directory: &Path) -> Result<(), ModelError> {
        let files = self.text_files();
        let texts = files.entries().into_iter().map(|(name, text)| (name, text.as_bytes().to_vec()));
        for (name, bytes) in texts.chain([("model.safetensors".to_owned(), self.weights_file()?)]) {
            let path = directory.join(name);
            fs::write(&path, bytes).map_err(|source| ModelError::Read { path, source })?;
        }
        Ok(())
    }

    /// The text files, for tests that need no weights.
    pub fn text_files(&self) -> TextFiles {
        let (architecture, model_type) = self.family.names();
        let mut config = json!({
            "architectures": [architecture], "model_type": model_type, "hidden_act": "silu",
            "hidden_size": self.hidden, "intermediate_size": self.ffn, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "vocab_size": self.vocab_size, "max_position_embeddings": self.context_limit, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "rope_scaling": self.rope_scaling(),
            "attention_bias": self.attention_bias, "mlp_bias": self.mlp_bias, "tie_word_embeddings": self.tied,
            "eos_token_id": 2,
        });
        match self.family {
            MicroFamily::Llama => {}
            MicroFamily::Mistral => config["sliding_window"] = json!(self.window),
            MicroFamily::Phi3 => {
                config["sliding_window"] = json!(self.window);
                config["partial_rotary_factor"] = json!(self.rotary_share);
                config["original_max_position_embeddings"] = json!(MICRO_LONG_ROPE_CONTEXT);
            }
            MicroFamily::Gemma2 => config["attn_logit_softcapping"] = json!(MICRO_SCORE_CAP),
            MicroFamily::Gemma3 => {
                config["sliding_window_pattern"] = json!(3);
                config["rope_local_base_freq"] = json!(100.0);
            }
            MicroFamily::GptOss => {
                config["attention_bias"] = json!(true);
                config["num_local_experts"] = json!(self.experts);
                config["num_experts_per_tok"] = json!(2);
                config["swiglu_limit"] = json!(MICRO_SWIGLU_LIMIT);
                if self.packed {
                    config["quantization_config"] =
                        json!({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]});
                }
            }
            MicroFamily::Qwen2 | MicroFamily::Qwen3 | MicroFamily::SmolLm3 => {
                config["use_sliding_window"] = json!(self.window.is_some());
                config["sliding_window"] = json!(self.window);
                config["max_window_layers"] = json!(1);
            }
        }
        if self.family == MicroFamily::SmolLm3 {
            config["no_rope_layer_interval"] = json!(2);
        }
        // These families' files always have a window; one that holds everything is none.
        if matches!(self.family, MicroFamily::Gemma2 | MicroFamily::Gemma3 | MicroFamily::GptOss) {
            config["sliding_window"] = json!(self.window.unwrap_or(self.context_limit));
        }
        if matches!(self.family, MicroFamily::Gemma2 | MicroFamily::Gemma3) {
            config["hidden_act"] = Value::Null;
            config["hidden_activation"] = json!("gelu_pytorch_tanh");
            config["query_pre_attn_scalar"] = json!(self.query_scalar.unwrap_or(self.head_dim));
            config["final_logit_softcapping"] = json!(MICRO_LOGIT_CAP);
        }
        TextFiles {
            config: config.to_string(),
            tokenizer: micro_tokenizer().to_string(),
            generation_config: Some(json!({"eos_token_id": [2, 0]}).to_string()),
            chat_template: Some(CHATML.to_owned()),
            ..TextFiles::default()
        }
    }

    fn rope_scaling(&self) -> Value {
        match self.rope {
            MicroRope::Plain => Value::Null,
            MicroRope::Llama3 => json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64}),
            MicroRope::Linear => json!({"rope_type": "linear", "factor": 8.0}),
            // Bounds that leave some pairs of a small head between them.
            MicroRope::Yarn => json!({"rope_type": "yarn", "factor": 8.0, "beta_fast": 8.0, "beta_slow": 0.25,
                "original_max_position_embeddings": 64, "truncate": self.family != MicroFamily::GptOss}),
            MicroRope::LongRope => {
                let pairs = (self.head_dim as f64 * self.rotary_share) as usize / 2;
                let factors = |step: f64| (0..pairs).map(|pair| 1.0 + step * pair as f64).collect::<Vec<_>>();
                json!({"rope_type": "longrope", "short_factor": factors(0.125), "long_factor": factors(1.5)})
            }
        }
    }

    fn weights_file(&self) -> Result<Vec<u8>, ModelError> {
        let path = Path::new("micro");
        let config = DecoderConfig::parse(&self.text_files().config, path)?;
        let offset = config.row().norm_offset;
        let mut random = SplitMix(self.seed);
        let mut tensors: Vec<Stored> = Vec::new();
        for spec in config.tensors() {
            let size: usize = spec.shape.iter().product();
            let scale = match spec.role {
                TensorRole::Embedding => 1.0,
                TensorRole::Layer(_, LayerPart::GateBias | LayerPart::UpBias | LayerPart::DownBias) => 0.1,
                // Keeps the size of what flows through; the last dimension is the width that is summed over.
                _ if spec.shape.len() >= 2 => 1.0 / (spec.shape[spec.shape.len() - 1] as f32).sqrt(),
                _ => 0.1,
            };
            let centre = if spec.role.is_norm() { 1.0 - offset } else { 0.0 };
            let values: Vec<f32> = (0..size).map(|_| centre + scale * random.signed()).collect();
            match spec.storage {
                Storage::Rows => self.store_rows(&mut tensors, spec, &values),
                Storage::Transposed { from, of } => self.store_transposed(&mut tensors, spec, &values, (from, of)),
                Storage::Packed { from, of } => store_packed(&mut tensors, spec, &values, (from, of)),
            }
        }
        let wrong =
            |e: safetensors::SafeTensorError| ModelError::Weights { path: path.to_owned(), problem: e.to_string() };
        let views = tensors
            .iter()
            .map(|stored| Ok((&stored.name, TensorView::new(stored.dtype, stored.shape.clone(), &stored.bytes)?)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(wrong)?;
        serialize(views, None).map_err(wrong)
    }

    fn dtype(&self) -> Dtype {
        match self.dtype {
            MicroDtype::F32 => Dtype::F32,
            MicroDtype::Bf16 => Dtype::BF16,
        }
    }

    /// An element as the files have it.
    fn bytes(&self, value: f32) -> Vec<u8> {
        match self.dtype {
            MicroDtype::F32 => value.to_le_bytes().into(),
            MicroDtype::Bf16 => ((value.to_bits() >> 16) as u16).to_le_bytes().into(),
        }
    }

    /// Parts that share a name are rows of one tensor.
    fn store_rows(&self, tensors: &mut Vec<Stored>, spec: TensorSpec, values: &[f32]) {
        let bytes = values.iter().flat_map(|value| self.bytes(*value));
        match tensors.iter_mut().find(|stored| stored.name == spec.name) {
            Some(begun) => {
                begun.shape[0] += spec.shape[0];
                begun.bytes.extend(bytes);
            }
            None => {
                let bytes = bytes.collect();
                tensors.push(Stored { name: spec.name, shape: spec.shape, dtype: self.dtype(), bytes });
            }
        }
    }

    /// Output i of an expert becomes column `of * i + from` of `[experts, in, of * out]`.
    fn store_transposed(
        &self,
        tensors: &mut Vec<Stored>,
        spec: TensorSpec,
        values: &[f32],
        (from, of): (usize, usize),
    ) {
        let (experts, outputs, depth) = (spec.shape[0], spec.shape[1], spec.shape.get(2).copied());
        let shape: Vec<_> = [experts].into_iter().chain(depth).chain([of * outputs]).collect();
        let (depth, width) = (depth.unwrap_or(1), self.bytes(0.0).len());
        let bytes = room(tensors, spec.name, shape, self.dtype(), width);
        for (index, value) in values.iter().enumerate() {
            let (row, element) = (index / depth, index % depth);
            let (expert, output) = (row / outputs, row % outputs);
            let place = (expert * depth + element) * of * outputs + of * output + from;
            bytes[place * width..][..width].copy_from_slice(&self.bytes(*value));
        }
    }
}

/// A tensor of a file.
struct Stored {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    bytes: Vec<u8>,
}

/// The bytes of a tensor, zero at first; `width` is that of an element.
fn room(tensors: &mut Vec<Stored>, name: String, shape: Vec<usize>, dtype: Dtype, width: usize) -> &mut [u8] {
    let at = tensors.iter().position(|stored| stored.name == name).unwrap_or(tensors.len());
    if at == tensors.len() {
        let bytes = vec![0; shape.iter().product::<usize>() * width];
        tensors.push(Stored { name, shape, dtype, bytes });
    }
    &mut tensors[at].bytes
}

/// Row i of an expert becomes row `of * i + from` of blocks and scales. The values only decide which of the sixteen numbers stands in a
/// place: these are spread evenly, under scales that keep the size of what flows through.
fn store_packed(tensors: &mut Vec<Stored>, spec: TensorSpec, values: &[f32], (from, of): (usize, usize)) {
    /// Bytes of a block of 32 elements.
    const BLOCK: usize = 16;
    let (experts, outputs, depth) = (spec.shape[0], spec.shape[1], spec.shape[2]);
    let per_row = depth / (2 * BLOCK);
    let largest = 1.0 / (depth as f32).sqrt();
    let nibble = |value: f32| ((value / largest + 1.0) * 8.0).clamp(0.0, 15.0) as u8;
    // 6, the largest number, is a little less than 2^3.
    let scale = (127.0 + largest.log2().round()) as u8 - 3;
    let rows = values.chunks_exact(depth).enumerate().map(|(row, values)| (row * of + from, values));
    let shape = vec![experts, of * outputs, per_row];
    let scales = room(tensors, format!("{}_scales", spec.name), shape.clone(), Dtype::U8, 1);
    for (row, _) in rows.clone() {
        // Neighbouring rows have different scales.
        scales[row * per_row..][..per_row].fill(scale + (row % 2) as u8);
    }
    let shape = shape.into_iter().chain([BLOCK]).collect();
    let blocks = room(tensors, format!("{}_blocks", spec.name), shape, Dtype::U8, 1);
    for (row, values) in rows {
        let pairs = values.chunks_exact(2).map(|pair| nibble(pair[0]) | nibble(pair[1]) << 4);
        blocks[row * per_row * BLOCK..].iter_mut().zip(pairs).for_each(|(byte, pair)| *byte = pair);
    }
}

/// ChatML with Hermes tool calls, prefix-stable.
const CHATML: &str = "\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages and messages[0].role == 'system' %}
        {{- messages[0].content ~ '\\n\\n' }}
    {%- endif %}
    {{- '# Tools\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson ~ '\\n' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>tool\\n' ~ message.content ~ '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' ~ (message.content or '') }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n' if message.content or not loop.first else '' }}
            {{- '<tool_call>\\n{\"name\": ' ~ (call.function.name | tojson) ~ ', \"arguments\": ' ~ (call.function.arguments | tojson) ~ '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif not (tools and loop.first and message.role == 'system') %}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
";

fn micro_tokenizer() -> Value {
    let added = MICRO_TOKENS.iter().enumerate().map(|(id, (content, _))| ((*content).to_owned(), Value::from(id)));
    let mut vocab: Map<String, Value> = added.collect();
    let bytes = (0..=u8::MAX).map(|byte| char_of(byte).to_string());
    let merged = MERGES.iter().map(|(left, right)| format!("{left}{right}"));
    for (i, piece) in bytes.chain(merged).enumerate() {
        vocab.insert(piece, (MICRO_TOKENS.len() + i).into());
    }
    let added = MICRO_TOKENS.iter().enumerate().map(|(id, (content, special))| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": special})
    });
    let merges: Vec<_> = MERGES.iter().map(|(left, right)| json!([left, right])).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges}})
}

/// SplitMix64 (Steele, Lea and Flood, 2014): enough for weights that need only be different.
struct SplitMix(u64);

impl SplitMix {
    /// Uniform in [-1, 1).
    fn signed(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    }
}
