//! The families of decoders that are understood: a table.
//!
//! In: nothing. Out: [`ARCHITECTURES`]. Deliberately not here: reading a config, and the names of tensors (`names`).

use super::Activation;
use super::names::{
    GEMMA_GGUF_NAMES, GEMMA_NAMES, GGUF_NAMES, GPT_OSS_GGUF_NAMES, GPT_OSS_NAMES, LLAMA_NAMES, PHI3_GGUF_NAMES,
    PHI3_NAMES, TensorNames,
};

/// Which biases a family has when its config does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BiasRule {
    /// A key of the config says.
    Key {
        /// The key.
        key: &'static str,
        /// What its absence says.
        absent: bool,
    },
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
    /// When `sliding_window` is a number, those that `layer_types` names, or else all but the last of each `period`.
    Alternating {
        /// The window of a config without that key.
        absent: Option<u32>,
        /// Unless `sliding_window_pattern` says another.
        period: usize,
    },
    /// When `use_sliding_window` is true, those that `layer_types` names, or else those from number `max_window_layers` on.
    Upper,
    /// When `use_sliding_window` is true, those that `layer_types` names, or else those without rotary embedding.
    Unturned,
}

/// Whether numbers are held below a bound: `cap * tanh(x / cap)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CapRule {
    /// Never: a config that asks for it is refused.
    Never,
    /// When the key is a number.
    Key {
        /// The bound of a config without the key.
        absent: Option<f64>,
    },
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
    /// Keys that only some families have, after the architecture's name, and the keys of `config.json` that they are.
    pub keys: &'static [(&'static str, &'static str)],
    /// The files do not say by what scores are divided: it is the root of `head_dim`, but in the model with this many layers that of
    /// `hidden_size / num_attention_heads`, which llama.cpp tells from the others in the same way.
    pub wide_queries_layers: Option<u64>,
    /// `truncate` of YaRN, which the files do not tell.
    pub yarn_truncate: bool,
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
    /// RMSNorm of what attention and feed-forward add to the stream.
    pub post_norms: bool,
    /// Added to the weights of every norm when they are read from safetensors files. In GGUF files that was done.
    pub norm_offset: f32,
    /// Embeddings are multiplied by the root of `hidden_size`.
    pub scaled_embedding: bool,
    /// The feed-forward's activation; one with numbers holds those of a config that does not say.
    pub activation: Activation,
    /// The feed-forward is a mixture of experts.
    pub experts: bool,
    /// Every query head has a learned logit beside its scores.
    pub sinks: bool,
    /// Scores are divided by the root of `query_pre_attn_scalar`, not by that of `head_dim`.
    pub query_scalar: bool,
    /// Bound of scores, `attn_logit_softcapping`.
    pub score_cap: CapRule,
    /// Bound of logits, `final_logit_softcapping`.
    pub logit_cap: CapRule,
    /// Numbers of a config that does not say.
    pub defaults: &'static [(&'static str, u64)],
    /// Layers with sliding windows.
    pub windows: WindowRule,
    /// Layers may go without rotary embedding, as `no_rope_layers` says: otherwise every layer whose number, from 1, is a
    /// multiple of `no_rope_layer_interval`, which is this when the config does not say. `None` turns every layer.
    pub unturned_interval: Option<usize>,
    /// Rotary embedding may turn a part of each head, as `partial_rotary_factor` says.
    pub partial_rotary: bool,
    /// `rope_theta` when the config does not say.
    pub rope_theta: f64,
    /// Layers with windows have a rotary embedding of their own, which is not stretched: `rope_local_base_freq` when the config does not say.
    pub local_theta: Option<f64>,
    /// `rms_norm_eps` when the config does not say.
    pub norm_eps: f64,
    /// `tie_word_embeddings` when the config does not say.
    pub tied: bool,
    /// The object in the config that has the decoder's keys; `None` when it is the config itself.
    pub nested: Option<&'static str>,
    /// Keys that change nothing about this family's forward pass.
    pub harmless: &'static [&'static str],
    /// Names of the tensors in safetensors files; `{}` is the layer's number.
    pub names: &'static TensorNames,
    /// Where files may keep the tensors whose names begin with `model.`: beginnings of names.
    pub roots: &'static [&'static str],
    /// Buffers that some exporters leave in the file and that are computed from the config: ends of names.
    pub ignored: &'static [&'static str],
    /// What is no part of the decoder: beginnings of names.
    pub foreign: &'static [&'static str],
}

/// Every family that is understood.
pub static ARCHITECTURES: &[Architecture] = &[
    // SmolLM and SmolLM2 too.
    Architecture {
        gguf: Some(gguf("llama", true, &GGUF_NAMES)),
        qkv_bias: ATTENTION_BIAS,
        output_bias: ATTENTION_BIAS,
        mlp_bias: MLP_BIAS,
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
        gguf: Some(gguf("qwen2", false, &GGUF_NAMES)),
        qkv_bias: BiasRule::Always,
        windows: WindowRule::Upper,
        ..plain("Qwen2ForCausalLM", "qwen2")
    },
    Architecture {
        gguf: Some(gguf("qwen3", false, &GGUF_NAMES)),
        qkv_bias: ATTENTION_BIAS,
        output_bias: ATTENTION_BIAS,
        qk_norm: true,
        defaults: &[("head_dim", 128)],
        windows: WindowRule::Upper,
        ..plain("Qwen3ForCausalLM", "qwen3")
    },
    Architecture {
        gguf: Some(gguf("smollm3", true, &GGUF_NAMES)),
        qkv_bias: ATTENTION_BIAS,
        output_bias: ATTENTION_BIAS,
        mlp_bias: MLP_BIAS,
        windows: WindowRule::Unturned,
        unturned_interval: Some(4),
        rope_theta: 2_000_000.0,
        tied: true,
        ..plain("SmolLM3ForCausalLM", "smollm3")
    },
    // Phi-4 and Phi-4-mini too.
    Architecture {
        gguf: Some(GgufForm { keys: &[GGUF_WINDOW], ..gguf("phi3", false, &PHI3_GGUF_NAMES) }),
        windows: WindowRule::Every { absent: None },
        partial_rotary: true,
        norm_eps: 1e-5,
        names: &PHI3_NAMES,
        ..plain("Phi3ForCausalLM", "phi3")
    },
    Architecture {
        gguf: Some(GgufForm {
            keys: &[GGUF_WINDOW, GGUF_WINDOW_PERIOD, GGUF_SCORE_CAP, GGUF_LOGIT_CAP],
            wide_queries_layers: Some(46),
            ..gguf("gemma2", false, &GEMMA_GGUF_NAMES)
        }),
        score_cap: CapRule::Key { absent: Some(50.0) },
        logit_cap: CapRule::Key { absent: Some(30.0) },
        windows: WindowRule::Alternating { absent: Some(4_096), period: 2 },
        defaults: &[("head_dim", 256), ("query_pre_attn_scalar", 256)],
        ..gemma("Gemma2ForCausalLM", "gemma2")
    },
    GEMMA3,
    // Gemma 3 beside a vision tower, which is not read.
    Architecture {
        name: "Gemma3ForConditionalGeneration",
        model_type: "gemma3",
        gguf: None,
        nested: Some("text_config"),
        harmless: &[
            "boi_token_index",
            "cache_implementation",
            "eoi_token_index",
            "image_token_index",
            "mm_tokens_per_image",
            "vision_config",
        ],
        roots: &["language_model.model.", "model.language_model."],
        foreign: &["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."],
        ..GEMMA3
    },
    Architecture {
        gguf: Some(GgufForm {
            keys: &[
                GGUF_WINDOW,
                GGUF_WINDOW_PERIOD,
                ("expert_count", "num_local_experts"),
                ("expert_used_count", "num_experts_per_tok"),
                ("expert_feed_forward_length", "intermediate_size"),
            ],
            yarn_truncate: false,
            ..gguf("gpt-oss", false, &GPT_OSS_GGUF_NAMES)
        }),
        qkv_bias: BiasRule::Key { key: "attention_bias", absent: true },
        output_bias: BiasRule::Key { key: "attention_bias", absent: true },
        mlp_bias: BiasRule::Always,
        activation: Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 },
        experts: true,
        sinks: true,
        windows: WindowRule::Alternating { absent: Some(128), period: 2 },
        defaults: &[("head_dim", 64), ("num_key_value_heads", 8)],
        rope_theta: 150_000.0,
        norm_eps: 1e-5,
        harmless: &["initial_context_length", "router_aux_loss_coef"],
        names: &GPT_OSS_NAMES,
        ..plain("GptOssForCausalLM", "gpt_oss")
    },
];

const ATTENTION_BIAS: BiasRule = BiasRule::Key { key: "attention_bias", absent: false };
const MLP_BIAS: BiasRule = BiasRule::Key { key: "mlp_bias", absent: false };

/// A window of no tokens is how converters write none.
pub(crate) const GGUF_WINDOW: (&str, &str) = ("attention.sliding_window", "sliding_window");
const GGUF_WINDOW_PERIOD: (&str, &str) = ("attention.sliding_window_pattern", "sliding_window_pattern");
const GGUF_SCORE_CAP: (&str, &str) = ("attn_logit_softcapping", "attn_logit_softcapping");
const GGUF_LOGIT_CAP: (&str, &str) = ("final_logit_softcapping", "final_logit_softcapping");

const GEMMA3: Architecture = Architecture {
    gguf: Some(GgufForm {
        keys: &[GGUF_WINDOW, GGUF_WINDOW_PERIOD, GGUF_LOGIT_CAP, ("rope.freq_base_swa", "rope_local_base_freq")],
        wide_queries_layers: Some(62),
        ..gguf("gemma3", false, &GEMMA_GGUF_NAMES)
    }),
    qk_norm: true,
    logit_cap: CapRule::Key { absent: None },
    windows: WindowRule::Alternating { absent: Some(4_096), period: 6 },
    // Published configs of the larger models leave them out.
    defaults: &[
        ("num_attention_heads", 8),
        ("num_key_value_heads", 4),
        ("head_dim", 256),
        ("query_pre_attn_scalar", 256),
        ("max_position_embeddings", 131_072),
        ("vocab_size", 262_208),
    ],
    rope_theta: 1_000_000.0,
    local_theta: Some(10_000.0),
    ..gemma("Gemma3ForCausalLM", "gemma3_text")
};

/// What the families of Gemma share.
const fn gemma(name: &'static str, model_type: &'static str) -> Architecture {
    Architecture {
        qkv_bias: ATTENTION_BIAS,
        output_bias: ATTENTION_BIAS,
        post_norms: true,
        norm_offset: 1.0,
        scaled_embedding: true,
        activation: Activation::GeluTanh,
        query_scalar: true,
        tied: true,
        harmless: &["cache_implementation"],
        names: &GEMMA_NAMES,
        ..plain(name, model_type)
    }
}

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
        post_norms: false,
        norm_offset: 0.0,
        scaled_embedding: false,
        activation: Activation::Silu,
        experts: false,
        sinks: false,
        query_scalar: false,
        score_cap: CapRule::Never,
        logit_cap: CapRule::Never,
        defaults: &[],
        windows: WindowRule::Never,
        unturned_interval: None,
        partial_rotary: false,
        rope_theta: 10_000.0,
        local_theta: None,
        norm_eps: 1e-6,
        tied: false,
        nested: None,
        harmless: &[],
        names: &LLAMA_NAMES,
        roots: &["model."],
        ignored: &[],
        foreign: &[],
    }
}

/// What most families' GGUF files share.
const fn gguf(architecture: &'static str, interleaved: bool, names: &'static TensorNames) -> GgufForm {
    GgufForm { architecture, interleaved, names, keys: &[], wide_queries_layers: None, yarn_truncate: true }
}
