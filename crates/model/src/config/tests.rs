//! Keys of a `config.json`: what they give, and which are refused by name.
#![allow(clippy::unwrap_used)]
use serde_json::json;

use super::*;

fn base() -> Value {
    json!({"architectures": ["LlamaForCausalLM"], "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64})
}

fn parse(value: &Value) -> Result<DecoderConfig, ModelError> {
    DecoderConfig::parse(&value.to_string(), Path::new("config.json"))
}

#[test]
fn absent_keys_take_the_familys_defaults() {
    let config = parse(&base()).unwrap();
    assert_eq!((config.head_dim, config.kv_heads, config.tied), (4, 2, false));
    assert_eq!(config.rope, RopeConfig { theta: 10_000.0, scaling: RopeScaling::None });
    assert_eq!(config.tensors().len(), 2 * 9 + 3);
}

#[test]
fn biases_are_tensors_of_their_own() {
    let mut value = base();
    value["attention_bias"] = json!(true);
    value["tie_word_embeddings"] = json!(true);
    let specs = parse(&value).unwrap().tensors();
    assert_eq!(specs.len(), 2 * 13 + 2);
    let bias = specs.iter().find(|s| s.name == "model.layers.1.self_attn.k_proj.bias").unwrap();
    assert_eq!((bias.shape.as_slice(), bias.role), ([8].as_slice(), TensorRole::Layer(1, LayerPart::KBias)));
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    for (key, value) in [
        ("sliding_window", json!(4096)),
        ("quantization_config", json!({"bits": 4})),
        ("hidden_act", json!("gelu")),
        ("partial_rotary_factor", json!(0.5)),
        ("rope_scaling", json!({"rope_type": "dynamic", "factor": 4.0})),
        ("rope_scaling", json!({"rope_type": "yarn"})),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0, "beta_fast": 1.0, "beta_slow": 2.0})),
        ("rope_scaling", json!({"rope_type": "linear", "factor": 4.0, "finetuned": true})),
        ("rope_interleaved", json!(true)),
        ("layer_types", json!(["full_attention", "sliding_attention"])),
        ("layer_types", json!(["full_attention"])),
        ("no_rope_layers", json!([1, 0])),
        ("num_key_value_heads", json!(3)),
        ("hidden_size", json!(0)),
        ("hidden_size", json!("wide")),
        ("vocab_size", json!(1_u64 << 40)),
        ("head_dim", json!(3)),
    ] {
        let mut config = base();
        config[key] = value;
        let text = parse(&config).unwrap_err().to_string();
        assert!(text.contains(key), "{key}: {text}");
    }
    for bad in ["", "[]", "{", "{\"architectures\":[\"LlamaForCausalLM\"]}"] {
        assert!(matches!(DecoderConfig::parse(bad, Path::new("c")), Err(ModelError::Config { .. })), "{bad}");
    }
}

#[test]
fn an_unknown_architecture_lists_the_known_ones() {
    let mut config = base();
    config["architectures"] = json!(["MambaForCausalLM"]);
    let text = parse(&config).unwrap_err().to_string();
    assert!(text.contains("MambaForCausalLM") && text.contains("LlamaForCausalLM"), "{text}");
}

#[test]
fn llama3_scaling_keeps_high_and_divides_low_frequencies() {
    let mut value = base();
    value["rope_theta"] = json!(500_000.0);
    let plain = parse(&value).unwrap().rope.inverse_frequencies(64);
    value["rope_scaling"] = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
    let scaled = parse(&value).unwrap().rope.inverse_frequencies(64);
    assert_eq!(plain[0], scaled[0]);
    assert_eq!(plain[31] / 8.0, scaled[31]);
    assert!(scaled.windows(2).all(|pair| pair[0] > pair[1]));
    assert!(scaled.iter().zip(&plain).any(|(s, p)| s < p && *s > p / 8.0), "a blended frequency");
}

/// As published with Qwen3-0.6B.
fn qwen3() -> Value {
    json!({"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
        "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": true,
        "use_sliding_window": false, "vocab_size": 151936})
}

#[test]
fn qwen3_norms_its_heads_and_has_a_head_of_its_own_size() {
    let config = parse(&qwen3()).unwrap();
    assert_eq!((config.q_width(), config.kv_width(), config.hidden, config.tied), (2048, 1024, 1024, true));
    assert_eq!(config.rope, RopeConfig { theta: 1e6, scaling: RopeScaling::None });
    let specs = config.tensors();
    assert_eq!(specs.len(), 28 * 11 + 2);
    let norm = specs.iter().find(|s| s.name == "model.layers.27.self_attn.k_norm.weight").unwrap();
    assert_eq!((norm.shape.as_slice(), norm.role), ([128].as_slice(), TensorRole::Layer(27, LayerPart::KNorm)));
    let mut value = qwen3();
    value["layer_types"] = json!(vec!["full_attention"; 28]);
    value["sliding_window"] = json!(4096);
    assert_eq!(parse(&value).unwrap(), config, "a window that is not used");
    for (key, bad) in [
        ("use_sliding_window", json!("yes")),
        ("use_sliding_window", json!(true)),
        ("layer_types", json!(["sliding_attention"])),
        ("layer_types", json!(vec!["sliding_attention"; 28])),
    ] {
        let mut value = qwen3();
        value[key] = bad;
        let text = parse(&value).unwrap_err().to_string();
        assert!(text.contains(key), "{key}: {text}");
    }
}

fn windows(config: &DecoderConfig) -> Vec<Option<u32>> {
    config.layers.iter().map(|layer| layer.window).collect()
}

fn family(name: &str) -> Value {
    let mut value = base();
    value["architectures"] = json!([name]);
    value
}

#[test]
fn mistral_windows_every_layer_or_none() {
    let mut value = family("MistralForCausalLM");
    value["max_position_embeddings"] = json!(32_768);
    assert_eq!(windows(&parse(&value).unwrap()), [Some(4_096); 2], "the family's own");
    value["sliding_window"] = Value::Null;
    assert_eq!(windows(&parse(&value).unwrap()), [None; 2]);
    value["sliding_window"] = json!(100);
    assert_eq!(windows(&parse(&value).unwrap()), [Some(100); 2]);
    value["max_position_embeddings"] = json!(100);
    assert_eq!(windows(&parse(&value).unwrap()), [None; 2], "a window that holds everything");
    for (key, bad) in [("sliding_window", json!(0)), ("attention_bias", json!(true))] {
        let mut value = value.clone();
        value[key] = bad;
        let text = parse(&value).unwrap_err().to_string();
        assert!(text.contains(key), "{key}: {text}");
    }
}

#[test]
fn qwen2_has_biases_and_windows_its_upper_layers() {
    let mut value = family("Qwen2ForCausalLM");
    value["use_sliding_window"] = json!(false);
    value["sliding_window"] = json!(9);
    value["max_window_layers"] = json!(21);
    let config = parse(&value).unwrap();
    assert_eq!(windows(&config), [None; 2]);
    assert!(config.layers.iter().all(|layer| layer.qkv_bias && !layer.output_bias && !layer.mlp_bias));
    value["use_sliding_window"] = json!(true);
    value["max_window_layers"] = json!(1);
    assert_eq!(windows(&parse(&value).unwrap()), [None, Some(9)]);
    value["layer_types"] = json!(["sliding_attention", "full_attention"]);
    assert_eq!(windows(&parse(&value).unwrap()), [Some(9), None], "the list wins");
}

/// As published with SmolLM2-135M.
#[test]
fn smollm2_is_a_llama() {
    let value = json!({"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576,
        "initializer_range": 0.041666666666666664, "intermediate_size": 1536, "is_llama_config": true,
        "max_position_embeddings": 8192, "mlp_bias": false, "model_type": "llama", "num_attention_heads": 9,
        "num_hidden_layers": 30, "num_key_value_heads": 3, "pad_token_id": 2, "pretraining_tp": 1,
        "rms_norm_eps": 1e-5, "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
        "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 49152});
    let config = parse(&value).unwrap();
    assert_eq!((config.head_dim, config.rotary_dim, config.rope.theta), (64, 64, 1e5));
}

#[test]
fn smollm3_leaves_layers_unturned() {
    let turned = |value: &Value| {
        parse(value).unwrap().layers.iter().map(|layer| layer.rope != LayerRope::Unturned).collect::<Vec<_>>()
    };
    let mut value = family("SmolLM3ForCausalLM");
    value["num_hidden_layers"] = json!(4);
    assert!(parse(&value).unwrap().tied, "the family's own");
    assert_eq!(turned(&value), [true, true, true, false]);
    value["no_rope_layer_interval"] = json!(2);
    assert_eq!(turned(&value), [true, false, true, false]);
    value["no_rope_layers"] = json!([0, 1, 1, 1]);
    assert_eq!(turned(&value), [false, true, true, true]);
    value["use_sliding_window"] = json!(true);
    value["sliding_window"] = json!(5);
    assert_eq!(windows(&parse(&value).unwrap()), [Some(5), None, None, None]);
    for bad in [json!([0, 1]), json!([0, 1, 2, 1]), json!(4)] {
        value["no_rope_layers"] = bad;
        let text = parse(&value).unwrap_err().to_string();
        assert!(text.contains("no_rope_layers"), "{text}");
    }
}

/// As published with Phi-4-mini, with shorter lists.
fn phi3() -> Value {
    let mut value = family("Phi3ForCausalLM");
    let factors = |last: f64| json!([1.0, 1.5, last]);
    for (key, part) in [
        ("auto_map", json!({"AutoConfig": "configuration_phi3.Phi3Config"})),
        ("attention_bias", json!(false)),
        ("embd_pdrop", json!(0.0)),
        ("resid_pdrop", json!(0.0)),
        ("lm_head_bias", json!(false)),
        ("hidden_size", json!(32)),
        ("max_position_embeddings", json!(131_072)),
        ("original_max_position_embeddings", json!(4_096)),
        ("partial_rotary_factor", json!(0.75)),
        ("sliding_window", json!(262_144)),
        ("rope_scaling", json!({"type": "longrope", "short_factor": factors(2.0), "long_factor": factors(40.0)})),
    ] {
        value[key] = part;
    }
    value
}

#[test]
fn phi3_turns_a_part_of_its_heads_and_fuses_its_matrices() {
    let config = parse(&phi3()).unwrap();
    assert_eq!((config.head_dim, config.rotary_dim, windows(&config)), (8, 6, vec![None; 2]));
    let attention_factor = (1.0 + 32_f64.ln() / 4_096_f64.ln()).sqrt();
    assert_eq!(config.rope.attention_factor(), attention_factor);
    let plain = RopeConfig { scaling: RopeScaling::None, ..config.rope.clone() }.inverse_frequencies(6);
    let want = [plain[0], plain[1] / 1.5, plain[2] / 40.0];
    assert!(config.inverse_frequencies().iter().zip(want).all(|(got, want)| (got - want).abs() <= 1e-6 * want));
    let names: Vec<_> = config.tensors().into_iter().map(|spec| (spec.name, spec.shape)).collect();
    let fused: Vec<_> = names.iter().filter(|(name, _)| name == "model.layers.1.self_attn.qkv_proj.weight").collect();
    assert_eq!(fused.iter().map(|(_, shape)| shape.as_slice()).collect::<Vec<_>>(), [[32, 32], [16, 32], [16, 32]]);
}

#[test]
fn phi3s_long_factors_are_refused_by_key() {
    for (key, bad) in [
        ("partial_rotary_factor", json!(0.3)),
        ("partial_rotary_factor", json!(1.25)),
        ("original_max_position_embeddings", Value::Null),
        ("rope_scaling", json!({"type": "longrope", "short_factor": [1, 1, 1]})),
        ("rope_scaling", json!({"type": "longrope", "short_factor": [1, 1], "long_factor": [1, 1, 1]})),
        ("rope_scaling", json!({"type": "longrope", "short_factor": [1, 1, 1], "long_factor": [1, 0, 1]})),
        ("rope_scaling", json!({"type": "yarn", "short_factor": [1, 1, 1], "long_factor": [1, 1, 1]})),
        (
            "rope_scaling",
            json!({"type": "su", "short_factor": [1, 1, 1], "long_factor": [1, 1, 1], "short_mscale": 1.1}),
        ),
    ] {
        let mut value = phi3();
        value[key] = bad;
        let text = parse(&value).unwrap_err().to_string();
        assert!(text.contains(key), "{key}: {text}");
    }
}

/// As Qwen's model cards ask for, and the same in the newer form.
#[test]
fn yarn_keeps_fast_frequencies_and_divides_slow_ones() {
    let mut value = qwen3();
    let plain = parse(&value).unwrap().rope.inverse_frequencies(64);
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768});
    value["rope_scaling"] = yarn.clone();
    let config = parse(&value).unwrap();
    let scaled = config.rope.inverse_frequencies(64);
    // 64 ln(32768 / 2π32) / 2 ln(1e6) is 11.8, and for one turn 19.8: 11 and 20 are the bounds.
    for (i, (scaled, plain)) in scaled.iter().zip(&plain).enumerate() {
        let divided = (i.saturating_sub(11) as f32 / 9.0).min(1.0);
        let want = plain * (1.0 - 0.75 * divided);
        assert!((scaled - want).abs() <= 1e-6 * want, "{i}: {scaled} {want}");
    }
    assert_eq!(config.rope.attention_factor(), 1.0 + 0.1 * 4_f64.ln());
    value["rope_parameters"] = yarn;
    value["rope_parameters"]["rope_theta"] = json!(1e6);
    for key in ["rope_scaling", "rope_theta"] {
        value[key] = Value::Null;
    }
    assert_eq!(parse(&value).unwrap(), config);
    value["rope_parameters"]["mscale"] = json!(1.0);
    value["rope_parameters"]["mscale_all_dim"] = json!(1.0);
    assert_eq!(parse(&value).unwrap().rope.attention_factor(), 1.0);
    value["rope_parameters"]["attention_factor"] = json!(1.5);
    assert_eq!(parse(&value).unwrap().rope.attention_factor(), 1.5);
    value["rope_parameters"]["rope_theta"] = json!(1.0);
    assert!(parse(&value).unwrap_err().to_string().contains("rope_theta"));
}
