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
use crate::{DecoderConfig, Model, ModelError, TensorRole, TextFiles};

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
    /// Biases on attention.
    pub attention_bias: bool,
    /// Biases on the feed-forward.
    pub mlp_bias: bool,
    /// Norms of query and key heads: the family is Qwen3, which has no biases on the feed-forward.
    pub qk_norm: bool,
    /// The output matrix is the embedding.
    pub tied: bool,
    /// Llama 3's stretched rotary frequencies.
    pub llama3_rope: bool,
    /// Element type of the files.
    pub dtype: MicroDtype,
    /// Decides every weight.
    pub seed: u64,
}

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
            attention_bias: false,
            mlp_bias: false,
            qk_norm: false,
            tied: true,
            llama3_rope: false,
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
        let rope_scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64});
        let (architecture, model_type) =
            if self.qk_norm { ("Qwen3ForCausalLM", "qwen3") } else { ("LlamaForCausalLM", "llama") };
        let config = json!({
            "architectures": [architecture], "model_type": model_type, "hidden_act": "silu",
            "hidden_size": self.hidden, "intermediate_size": self.ffn, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "vocab_size": self.vocab_size, "max_position_embeddings": self.context_limit, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "rope_scaling": if self.llama3_rope { rope_scaling } else { Value::Null },
            "attention_bias": self.attention_bias, "mlp_bias": self.mlp_bias, "tie_word_embeddings": self.tied,
            "eos_token_id": 2,
        });
        TextFiles {
            config: config.to_string(),
            tokenizer: micro_tokenizer().to_string(),
            generation_config: Some(json!({"eos_token_id": [2, 0]}).to_string()),
            chat_template: Some(CHATML.to_owned()),
            ..TextFiles::default()
        }
    }

    fn weights_file(&self) -> Result<Vec<u8>, ModelError> {
        let path = Path::new("micro");
        let config = DecoderConfig::parse(&self.text_files().config, path)?;
        let mut random = SplitMix(self.seed);
        let mut tensors = Vec::new();
        for spec in config.tensors() {
            let size: usize = spec.shape.iter().product();
            let scale = match spec.role {
                TensorRole::Embedding => 1.0,
                // Keeps the size of what flows through; see `spec.shape[1]`, the width that is summed over.
                _ if spec.shape.len() == 2 => 1.0 / (spec.shape[1] as f32).sqrt(),
                _ => 0.1,
            };
            let is_norm = spec.name.ends_with("norm.weight");
            let centre = if is_norm { 1.0 } else { 0.0 };
            let values = (0..size).map(|_| centre + scale * random.signed());
            let bytes: Vec<u8> = match self.dtype {
                MicroDtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
                MicroDtype::Bf16 => values.flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect(),
            };
            tensors.push((spec.name, spec.shape, bytes));
        }
        let dtype = match self.dtype {
            MicroDtype::F32 => Dtype::F32,
            MicroDtype::Bf16 => Dtype::BF16,
        };
        let wrong =
            |e: safetensors::SafeTensorError| ModelError::Weights { path: path.to_owned(), problem: e.to_string() };
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| Ok((name, TensorView::new(dtype, shape.clone(), bytes)?)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(wrong)?;
        serialize(views, None).map_err(wrong)
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
