//! Configs as published with Gemma 2, Gemma 3 and gpt-oss: what they give, and what is refused in them by name.
#![allow(clippy::unwrap_used)]
use serde_json::json;

use super::*;

fn parse(value: &Value) -> Result<DecoderConfig, ModelError> {
    DecoderConfig::parse(&value.to_string(), Path::new("config.json"))
}

/// Every one of `bad` is refused, with its key in the message.
fn refused(good: &Value, bad: &[(&str, Value)]) {
    for (key, bad) in bad {
        let mut value = good.clone();
        value[*key] = bad.clone();
        let text = parse(&value).unwrap_err().to_string();
        assert!(text.contains(key), "{key}: {text}");
    }
}

fn windows(config: &DecoderConfig) -> Vec<Option<u32>> {
    config.layers.iter().map(|layer| layer.window).collect()
}

fn shape_of(config: &DecoderConfig, name: &str) -> Vec<usize> {
    config.tensors().into_iter().find(|spec| spec.name == name).unwrap().shape
}

/// As published with gemma-2-2b.
fn gemma2() -> Value {
    json!({"architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
        "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "initializer_range": 0.02,
        "intermediate_size": 9216, "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8,
        "num_hidden_layers": 26, "num_key_value_heads": 4, "pad_token_id": 0, "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096, "torch_dtype": "float32",
        "transformers_version": "4.42.4", "use_cache": true, "vocab_size": 256000})
}

#[test]
fn gemma2_caps_scores_and_logits_and_windows_every_other_layer() {
    let config = parse(&gemma2()).unwrap();
    assert_eq!((config.q_width(), config.kv_width(), config.tied), (2048, 1024, true));
    assert_eq!((config.query_scalar, config.score_cap, config.logit_cap), (256.0, Some(50.0), Some(30.0)));
    assert_eq!((config.activation, config.embedding_scale), (Activation::GeluTanh, 48.0));
    assert_eq!(windows(&config)[..4], [Some(4096), None, Some(4096), None]);
    assert!(config.layers.iter().all(|layer| layer.post_norms && layer.rope == LayerRope::Global));
    assert_eq!((config.local_rope.as_ref(), config.experts), (None, None));
    assert_eq!(config.tensors().len(), 26 * 11 + 2);
    for name in ["post_attention", "pre_feedforward", "post_feedforward"] {
        assert_eq!(shape_of(&config, &format!("model.layers.25.{name}_layernorm.weight")), [2304]);
    }
    let mut value = gemma2();
    for key in ["attn_logit_softcapping", "final_logit_softcapping", "sliding_window", "query_pre_attn_scalar"] {
        value.as_object_mut().unwrap().remove(key);
    }
    assert_eq!(parse(&value).unwrap(), config, "the family's own");
    for key in ["attn_logit_softcapping", "final_logit_softcapping", "sliding_window"] {
        value[key] = Value::Null;
    }
    let open = parse(&value).unwrap();
    assert_eq!((open.score_cap, open.logit_cap, windows(&open)), (None, None, vec![None; 26]));
    refused(
        &gemma2(),
        &[
            ("attn_logit_softcapping", json!(-1)),
            ("final_logit_softcapping", json!("high")),
            ("query_pre_attn_scalar", json!(0)),
            ("query_pre_attn_scalar", json!(1e-300)),
            ("hidden_activation", json!("gelu")),
            ("use_bidirectional_attention", json!(true)),
            ("layer_types", json!(["full_attention"])),
            ("num_local_experts", json!(4)),
        ],
    );
}

/// As published with gemma-3-1b-it.
fn gemma3() -> Value {
    json!({"architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "attn_logit_softcapping": null, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
        "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
        "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768,
        "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
        "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
        "rope_scaling": null, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
        "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0", "use_cache": true, "vocab_size": 262144})
}

#[test]
fn gemma3_turns_layers_with_windows_by_frequencies_of_their_own() {
    let config = parse(&gemma3()).unwrap();
    assert_eq!((config.score_cap, config.logit_cap, config.tied), (None, None, true));
    let global: Vec<_> = (0..26).filter(|layer| config.layers[*layer].rope == LayerRope::Global).collect();
    assert_eq!(global, [5, 11, 17, 23]);
    for layer in &config.layers {
        assert_eq!(layer.window.is_some(), layer.rope == LayerRope::Local);
        assert!(layer.qk_norm && layer.post_norms);
    }
    let local = RopeConfig { theta: 10_000.0, scaling: RopeScaling::None };
    assert_eq!((config.rope.theta, config.local_rope.as_ref()), (1e6, Some(&local)));
    assert_eq!(config.embedding_scale, 1152_f32.sqrt());
    assert_eq!(shape_of(&config, "model.layers.0.self_attn.q_norm.weight"), [256]);

    // As newer exporters write the same.
    let mut newer = gemma3();
    for key in ["rope_theta", "rope_local_base_freq", "rope_scaling", "sliding_window_pattern"] {
        newer.as_object_mut().unwrap().remove(key);
    }
    let kinds = (1..=26).map(|n| if n % 6 == 0 { "full_attention" } else { "sliding_attention" });
    newer["layer_types"] = kinds.collect();
    newer["rope_parameters"] = json!({"full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}});
    assert_eq!(parse(&newer).unwrap(), config);
    newer["rope_parameters"]["full_attention"] = json!({"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0});
    let stretched = parse(&newer).unwrap();
    assert_eq!(stretched.rope.scaling, RopeScaling::Linear { factor: 8.0 });
    assert_eq!(stretched.local_rope, Some(local));

    // A window that holds everything leaves the layer its frequencies.
    let mut short = gemma3();
    short["max_position_embeddings"] = json!(512);
    let short = parse(&short).unwrap();
    assert_eq!((short.layers[0].window, short.layers[0].rope), (None, LayerRope::Local));
    refused(
        &gemma3(),
        &[
            ("attn_logit_softcapping", json!(50.0)),
            ("rope_local_base_freq", json!("low")),
            ("sliding_window_pattern", json!(0)),
            ("rope_parameters", json!({"full_attention": {}, "chunked_attention": {}})),
        ],
    );
}

/// As published with gemma-3-4b-it, with the start of its vision tower.
fn gemma3_with_vision() -> Value {
    json!({"architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
        "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
        "model_type": "gemma3", "text_config": {"hidden_size": 2560, "intermediate_size": 10240,
            "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
        "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
        "vision_config": {"hidden_size": 1152, "image_size": 896, "model_type": "siglip_vision_model"}})
}

#[test]
fn gemma3_beside_a_vision_tower_takes_the_familys_numbers() {
    let config = parse(&gemma3_with_vision()).unwrap();
    assert_eq!((config.hidden, config.heads, config.kv_heads, config.head_dim), (2560, 8, 4, 256));
    assert_eq!((config.vocab_size, config.context_limit, config.query_scalar), (262_208, 131_072, 256.0));
    assert_eq!(config.rope, RopeConfig { theta: 1e6, scaling: RopeScaling::Linear { factor: 8.0 } });
    assert_eq!(config.local_rope, Some(RopeConfig { theta: 1e4, scaling: RopeScaling::None }));
    let mut unknown = gemma3_with_vision();
    unknown["text_config"]["sparse"] = json!(true);
    let text = parse(&unknown).unwrap_err().to_string();
    assert!(text.contains("text_config: key sparse"), "{text}");
    refused(
        &gemma3_with_vision(),
        &[("text_config", Value::Null), ("tie_word_embeddings", json!(false)), ("audio_config", json!({}))],
    );
}

/// As published with gpt-oss-20b, with four of its layers.
fn gpt_oss() -> Value {
    json!({"architectures": ["GptOssForCausalLM"], "attention_bias": true, "attention_dropout": 0.0,
        "eos_token_id": 200002, "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880,
        "initial_context_length": 4096, "initializer_range": 0.02, "intermediate_size": 2880,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "max_position_embeddings": 131072, "model_type": "gpt_oss", "num_attention_heads": 64, "num_experts_per_tok": 4,
        "num_hidden_layers": 4, "num_key_value_heads": 8, "num_local_experts": 32, "output_router_logits": false,
        "pad_token_id": 199999, "quantization_config": {"modules_to_not_convert": ["model.layers.*.self_attn",
            "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"], "quant_method": "mxfp4"},
        "rms_norm_eps": 1e-05, "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
            "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": false}, "rope_theta": 150000,
        "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0, "tie_word_embeddings": false,
        "transformers_version": "4.55.0.dev0", "use_cache": true, "vocab_size": 201088})
}

#[test]
fn gpt_oss_is_a_mixture_of_experts_with_sinks() {
    let config = parse(&gpt_oss()).unwrap();
    assert_eq!(config.experts, Some(ExpertsConfig { count: 32, chosen: 4, packed: true }));
    assert_eq!(config.activation, Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 });
    assert_eq!(windows(&config), [Some(128), None, Some(128), None]);
    for layer in &config.layers {
        assert!(layer.sinks && layer.qkv_bias && layer.output_bias && layer.mlp_bias && !layer.qk_norm);
    }
    assert!(matches!(config.rope.scaling, RopeScaling::Yarn { truncate: false, factor: 32.0, .. }));
    assert_eq!((config.query_scalar, config.embedding_scale, config.norm_eps), (64.0, 1.0, 1e-5));
    let specs = config.tensors();
    assert_eq!(specs.len(), 4 * 19 + 3);
    let parts: Vec<_> = specs.iter().filter(|spec| spec.name == "model.layers.3.mlp.experts.gate_up_proj").collect();
    let storage: Vec<_> = parts.iter().map(|spec| spec.storage).collect();
    assert_eq!(storage, [0, 1].map(|from| Storage::Packed { from, of: 2 }));
    assert!(parts.iter().all(|spec| spec.shape == [32, 2880, 2880]));
    assert_eq!(shape_of(&config, "model.layers.0.mlp.experts.down_proj_bias"), [32, 2880]);
    assert_eq!(shape_of(&config, "model.layers.0.mlp.router.bias"), [32]);
    assert_eq!(shape_of(&config, "model.layers.0.self_attn.sinks"), [64]);

    // As it is in bf16.
    let mut plain = gpt_oss();
    plain.as_object_mut().unwrap().remove("quantization_config");
    plain.as_object_mut().unwrap().remove("attention_bias");
    let plain = parse(&plain).unwrap();
    assert_eq!(plain.layers, config.layers);
    let gate = plain.tensors().into_iter().find(|spec| spec.role == TensorRole::Layer(0, LayerPart::Gate)).unwrap();
    assert_eq!(gate.storage, Storage::Transposed { from: 0, of: 2 });
    refused(
        &gpt_oss(),
        &[
            ("num_local_experts", Value::Null),
            ("num_local_experts", json!(0)),
            ("num_experts_per_tok", json!(33)),
            ("experts_per_token", json!(3)),
            ("quantization_config", json!({"quant_method": "gptq"})),
            ("quantization_config", json!({"quant_method": "mxfp4", "bits": 4})),
            ("quantization_config", json!("mxfp4")),
            ("swiglu_limit", json!(0)),
        ],
    );
    let mut odd = gpt_oss();
    odd["intermediate_size"] = json!(2890);
    assert!(parse(&odd).unwrap_err().to_string().contains("quantization_config"));
}
