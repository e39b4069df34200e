//! The families of decoders that are understood: a table.
//!
//! In: nothing. Out: [`ARCHITECTURES`], and the names under which tensors are kept. Deliberately not here: reading a config.

/// Which biases a family has when its config does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BiasRule {
    /// A key of the config says; absent means no bias.
    Key(&'static str),
    /// Never.
    Never,
    /// Always.
    Always,
}

/// Which layers attend to a sliding window. `layer_types` may say so too, and must not contradict the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowRule {
    /// None.
    Never,
    /// All, when `sliding_window` is a number.
    Every {
        /// The window of a config without that key.
        absent: Option<u32>,
    },
    /// When `use_sliding_window` is true, those that `layer_types` names, or else those from number `max_window_layers` on.
    Upper,
    /// When `use_sliding_window` is true, those that `layer_types` names, or else those without rotary embedding.
    Unturned,
}

/// How GGUF files hold a family.
#[derive(Debug)]
pub struct GgufForm {
    /// As in `general.architecture`.
    pub architecture: &'static str,
    /// The rows of q and k of each head are in interleaved order: rows i and i + head_dim / 2 side by side.
    pub interleaved: bool,
    /// Names of the tensors.
    pub names: &'static TensorNames,
}

/// A family of decoders.
#[derive(Debug)]
pub struct Architecture {
    /// As in `architectures` of config.json.
    pub name: &'static str,
    /// As in `model_type`.
    pub model_type: &'static str,
    /// Its form in GGUF files; `None` when it has no name of its own there.
    pub gguf: Option<GgufForm>,
    /// Bias on q, k and v.
    pub qkv_bias: BiasRule,
    /// Bias on the attention's output.
    pub output_bias: BiasRule,
    /// Bias on the feed-forward.
    pub mlp_bias: BiasRule,
    /// RMSNorm of each query and key head.
    pub qk_norm: bool,
    /// `head_dim` when the config does not say; `None` is `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// Layers with sliding windows.
    pub windows: WindowRule,
    /// Layers may go without rotary embedding, as `no_rope_layers` says: otherwise every layer whose number, from 1, is a
    /// multiple of `no_rope_layer_interval`, which is this when the config does not say. `None` turns every layer.
    pub unturned_interval: Option<usize>,
    /// Rotary embedding may turn a part of each head, as `partial_rotary_factor` says.
    pub partial_rotary: bool,
    /// `rope_theta` when the config does not say.
    pub rope_theta: f64,
    /// `rms_norm_eps` when the config does not say.
    pub norm_eps: f64,
    /// `tie_word_embeddings` when the config does not say.
    pub tied: bool,
    /// Names of the tensors in safetensors files; `{}` is the layer's number.
    pub names: &'static TensorNames,
    /// Buffers that some exporters leave in the file and that are computed from the config: ends of names.
    pub ignored: &'static [&'static str],
}

/// Where a family keeps its tensors. Biases replace a final `weight` by `bias`. Parts with one name are rows of one tensor, under
/// one another in the order of the fields.
#[derive(Debug)]
#[expect(missing_docs, reason = "each field is the role that its name says")]
pub struct TensorNames {
    pub embedding: &'static str,
    pub final_norm: &'static str,
    pub lm_head: &'static str,
    pub attention_norm: &'static str,
    pub q: &'static str,
    pub k: &'static str,
    pub v: &'static str,
    pub q_norm: &'static str,
    pub k_norm: &'static str,
    pub output: &'static str,
    pub ffn_norm: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
}

/// Of most families in Hugging Face layout; only Qwen3 has norms of q and k.
static LLAMA_NAMES: TensorNames = TensorNames {
    embedding: "model.embed_tokens.weight",
    final_norm: "model.norm.weight",
    lm_head: "lm_head.weight",
    attention_norm: "model.layers.{}.input_layernorm.weight",
    q: "model.layers.{}.self_attn.q_proj.weight",
    k: "model.layers.{}.self_attn.k_proj.weight",
    v: "model.layers.{}.self_attn.v_proj.weight",
    q_norm: "model.layers.{}.self_attn.q_norm.weight",
    k_norm: "model.layers.{}.self_attn.k_norm.weight",
    output: "model.layers.{}.self_attn.o_proj.weight",
    ffn_norm: "model.layers.{}.post_attention_layernorm.weight",
    gate: "model.layers.{}.mlp.gate_proj.weight",
    up: "model.layers.{}.mlp.up_proj.weight",
    down: "model.layers.{}.mlp.down_proj.weight",
};

/// Phi-3 in Hugging Face layout: q, k and v are one tensor, gate and up another.
static PHI3_NAMES: TensorNames = TensorNames {
    q: "model.layers.{}.self_attn.qkv_proj.weight",
    k: "model.layers.{}.self_attn.qkv_proj.weight",
    v: "model.layers.{}.self_attn.qkv_proj.weight",
    gate: "model.layers.{}.mlp.gate_up_proj.weight",
    up: "model.layers.{}.mlp.gate_up_proj.weight",
    ..LLAMA_NAMES
};

/// Of most families in GGUF files.
static GGUF_NAMES: TensorNames = TensorNames {
    embedding: "token_embd.weight",
    final_norm: "output_norm.weight",
    lm_head: "output.weight",
    attention_norm: "blk.{}.attn_norm.weight",
    q: "blk.{}.attn_q.weight",
    k: "blk.{}.attn_k.weight",
    v: "blk.{}.attn_v.weight",
    q_norm: "blk.{}.attn_q_norm.weight",
    k_norm: "blk.{}.attn_k_norm.weight",
    output: "blk.{}.attn_output.weight",
    ffn_norm: "blk.{}.ffn_norm.weight",
    gate: "blk.{}.ffn_gate.weight",
    up: "blk.{}.ffn_up.weight",
    down: "blk.{}.ffn_down.weight",
};

/// Phi-3 in GGUF files.
static PHI3_GGUF_NAMES: TensorNames = TensorNames {
    q: "blk.{}.attn_qkv.weight",
    k: "blk.{}.attn_qkv.weight",
    v: "blk.{}.attn_qkv.weight",
    gate: "blk.{}.ffn_up.weight",
    up: "blk.{}.ffn_up.weight",
    ..GGUF_NAMES
};

/// Every family that is understood.
pub static ARCHITECTURES: &[Architecture] = &[
    // SmolLM and SmolLM2 too.
    Architecture {
        gguf: Some(GgufForm { architecture: "llama", interleaved: true, names: &GGUF_NAMES }),
        qkv_bias: BiasRule::Key("attention_bias"),
        output_bias: BiasRule::Key("attention_bias"),
        mlp_bias: BiasRule::Key("mlp_bias"),
        ignored: &["rotary_emb.inv_freq"],
        ..plain("LlamaForCausalLM", "llama")
    },
    // GGUF files call it llama.
    Architecture {
        windows: WindowRule::Every { absent: Some(4_096) },
        ignored: &["rotary_emb.inv_freq"],
        ..plain("MistralForCausalLM", "mistral")
    },
    Architecture {
        gguf: Some(GgufForm { architecture: "qwen2", interleaved: false, names: &GGUF_NAMES }),
        qkv_bias: BiasRule::Always,
        windows: WindowRule::Upper,
        ..plain("Qwen2ForCausalLM", "qwen2")
    },
    Architecture {
        gguf: Some(GgufForm { architecture: "qwen3", interleaved: false, names: &GGUF_NAMES }),
        qkv_bias: BiasRule::Key("attention_bias"),
        output_bias: BiasRule::Key("attention_bias"),
        qk_norm: true,
        head_dim: Some(128),
        windows: WindowRule::Upper,
        ..plain("Qwen3ForCausalLM", "qwen3")
    },
    Architecture {
        gguf: Some(GgufForm { architecture: "smollm3", interleaved: true, names: &GGUF_NAMES }),
        qkv_bias: BiasRule::Key("attention_bias"),
        output_bias: BiasRule::Key("attention_bias"),
        mlp_bias: BiasRule::Key("mlp_bias"),
        windows: WindowRule::Unturned,
        unturned_interval: Some(4),
        rope_theta: 2_000_000.0,
        tied: true,
        ..plain("SmolLM3ForCausalLM", "smollm3")
    },
    // Phi-4 and Phi-4-mini too.
    Architecture {
        gguf: Some(GgufForm { architecture: "phi3", interleaved: false, names: &PHI3_GGUF_NAMES }),
        windows: WindowRule::Every { absent: None },
        partial_rotary: true,
        norm_eps: 1e-5,
        names: &PHI3_NAMES,
        ..plain("Phi3ForCausalLM", "phi3")
    },
];

/// What most families share: Llama's forward without biases.
const fn plain(name: &'static str, model_type: &'static str) -> Architecture {
    Architecture {
        name,
        model_type,
        gguf: None,
        qkv_bias: BiasRule::Never,
        output_bias: BiasRule::Never,
        mlp_bias: BiasRule::Never,
        qk_norm: false,
        head_dim: None,
        windows: WindowRule::Never,
        unturned_interval: None,
        partial_rotary: false,
        rope_theta: 10_000.0,
        norm_eps: 1e-6,
        tied: false,
        names: &LLAMA_NAMES,
        ignored: &[],
    }
}
