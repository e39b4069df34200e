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

/// A family of decoders.
#[derive(Debug)]
pub struct Architecture {
    /// As in `architectures` of config.json.
    pub name: &'static str,
    /// As in `model_type`, and in `general.architecture` of GGUF files.
    pub model_type: &'static str,
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
    /// Key that turns sliding windows on: without it the other keys about windows mean nothing. `None` refuses them.
    pub window_switch: Option<&'static str>,
    /// `rope_theta` when the config does not say.
    pub rope_theta: f64,
    /// `rms_norm_eps` when the config does not say.
    pub norm_eps: f64,
    /// GGUF files hold the rows of q and k of each head in interleaved order: rows i and i + head_dim / 2 side by side.
    pub gguf_interleaved: bool,
    /// Names of the tensors in safetensors files; `{}` is the layer's number.
    pub names: &'static TensorNames,
    /// Buffers that some exporters leave in the file and that are computed from the config: ends of names.
    pub ignored: &'static [&'static str],
}

/// Where a family keeps its tensors. Biases replace a final `weight` by `bias`.
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

/// Of both families in Hugging Face layout; llama has no norms of q and k.
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

/// Of every family in GGUF files.
pub(crate) static GGUF_NAMES: TensorNames = TensorNames {
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

/// Every family that is understood.
pub static ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "LlamaForCausalLM",
        model_type: "llama",
        qkv_bias: BiasRule::Key("attention_bias"),
        output_bias: BiasRule::Key("attention_bias"),
        mlp_bias: BiasRule::Key("mlp_bias"),
        qk_norm: false,
        head_dim: None,
        window_switch: None,
        rope_theta: 10_000.0,
        norm_eps: 1e-6,
        gguf_interleaved: true,
        names: &LLAMA_NAMES,
        ignored: &["rotary_emb.inv_freq"],
    },
    Architecture {
        name: "Qwen3ForCausalLM",
        model_type: "qwen3",
        qkv_bias: BiasRule::Key("attention_bias"),
        output_bias: BiasRule::Key("attention_bias"),
        mlp_bias: BiasRule::Never,
        qk_norm: true,
        head_dim: Some(128),
        window_switch: Some("use_sliding_window"),
        rope_theta: 10_000.0,
        norm_eps: 1e-6,
        gguf_interleaved: false,
        names: &LLAMA_NAMES,
        ignored: &[],
    },
];
