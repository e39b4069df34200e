//! Where families keep their tensors: names.
//!
//! In: nothing. Out: [`TensorNames`] of every family, in Hugging Face layout and in GGUF files. Deliberately not here: which of the
//! tensors a decoder has.

/// Where a family keeps its tensors. Biases replace a final `weight` by `bias`, or are called as the tensor with `_bias` behind it. Parts
/// with one name are rows of one tensor, under one another in the order of the fields.
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
    pub sinks: &'static str,
    pub output: &'static str,
    pub post_attention_norm: &'static str,
    pub ffn_norm: &'static str,
    pub router: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub post_ffn_norm: &'static str,
    /// Experts' matrices are transposed, and the outputs of those with one name alternate.
    pub transposed_experts: bool,
}

/// Of most families in Hugging Face layout. Which of the tensors there are is the family's; no family keeps one under an empty name.
pub(super) static LLAMA_NAMES: TensorNames = TensorNames {
    embedding: "model.embed_tokens.weight",
    final_norm: "model.norm.weight",
    lm_head: "lm_head.weight",
    attention_norm: "model.layers.{}.input_layernorm.weight",
    q: "model.layers.{}.self_attn.q_proj.weight",
    k: "model.layers.{}.self_attn.k_proj.weight",
    v: "model.layers.{}.self_attn.v_proj.weight",
    q_norm: "model.layers.{}.self_attn.q_norm.weight",
    k_norm: "model.layers.{}.self_attn.k_norm.weight",
    sinks: "model.layers.{}.self_attn.sinks",
    output: "model.layers.{}.self_attn.o_proj.weight",
    post_attention_norm: "",
    ffn_norm: "model.layers.{}.post_attention_layernorm.weight",
    router: "model.layers.{}.mlp.router.weight",
    gate: "model.layers.{}.mlp.gate_proj.weight",
    up: "model.layers.{}.mlp.up_proj.weight",
    down: "model.layers.{}.mlp.down_proj.weight",
    post_ffn_norm: "",
    transposed_experts: false,
};

/// Phi-3 in Hugging Face layout: q, k and v are one tensor, gate and up another.
pub(super) static PHI3_NAMES: TensorNames = TensorNames {
    q: "model.layers.{}.self_attn.qkv_proj.weight",
    k: "model.layers.{}.self_attn.qkv_proj.weight",
    v: "model.layers.{}.self_attn.qkv_proj.weight",
    gate: "model.layers.{}.mlp.gate_up_proj.weight",
    up: "model.layers.{}.mlp.gate_up_proj.weight",
    ..LLAMA_NAMES
};

/// Gemma 2 and 3 in Hugging Face layout: what others call the norm after attention is one, here.
pub(super) static GEMMA_NAMES: TensorNames = TensorNames {
    post_attention_norm: "model.layers.{}.post_attention_layernorm.weight",
    ffn_norm: "model.layers.{}.pre_feedforward_layernorm.weight",
    post_ffn_norm: "model.layers.{}.post_feedforward_layernorm.weight",
    ..LLAMA_NAMES
};

/// gpt-oss in Hugging Face layout: every expert's gate and up are one tensor.
pub(super) static GPT_OSS_NAMES: TensorNames = TensorNames {
    gate: "model.layers.{}.mlp.experts.gate_up_proj",
    up: "model.layers.{}.mlp.experts.gate_up_proj",
    down: "model.layers.{}.mlp.experts.down_proj",
    transposed_experts: true,
    ..LLAMA_NAMES
};

/// Of most families in GGUF files.
pub(super) static GGUF_NAMES: TensorNames = TensorNames {
    embedding: "token_embd.weight",
    final_norm: "output_norm.weight",
    lm_head: "output.weight",
    attention_norm: "blk.{}.attn_norm.weight",
    q: "blk.{}.attn_q.weight",
    k: "blk.{}.attn_k.weight",
    v: "blk.{}.attn_v.weight",
    q_norm: "blk.{}.attn_q_norm.weight",
    k_norm: "blk.{}.attn_k_norm.weight",
    sinks: "blk.{}.attn_sinks.weight",
    output: "blk.{}.attn_output.weight",
    post_attention_norm: "",
    ffn_norm: "blk.{}.ffn_norm.weight",
    router: "blk.{}.ffn_gate_inp.weight",
    gate: "blk.{}.ffn_gate.weight",
    up: "blk.{}.ffn_up.weight",
    down: "blk.{}.ffn_down.weight",
    post_ffn_norm: "",
    transposed_experts: false,
};

/// Phi-3 in GGUF files.
pub(super) static PHI3_GGUF_NAMES: TensorNames = TensorNames {
    q: "blk.{}.attn_qkv.weight",
    k: "blk.{}.attn_qkv.weight",
    v: "blk.{}.attn_qkv.weight",
    gate: "blk.{}.ffn_up.weight",
    up: "blk.{}.ffn_up.weight",
    ..GGUF_NAMES
};

/// Gemma 2 and 3 in GGUF files.
pub(super) static GEMMA_GGUF_NAMES: TensorNames = TensorNames {
    post_attention_norm: "blk.{}.post_attention_norm.weight",
    post_ffn_norm: "blk.{}.post_ffw_norm.weight",
    ..GGUF_NAMES
};

/// gpt-oss in GGUF files, which keep Hugging Face's word for the norm before the feed-forward.
pub(super) static GPT_OSS_GGUF_NAMES: TensorNames = TensorNames {
    ffn_norm: "blk.{}.post_attention_norm.weight",
    gate: "blk.{}.ffn_gate_exps.weight",
    up: "blk.{}.ffn_up_exps.weight",
    down: "blk.{}.ffn_down_exps.weight",
    ..GGUF_NAMES
};
