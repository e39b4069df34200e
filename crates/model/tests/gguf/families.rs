//! Gemma and gpt-oss: files as llama.cpp's converter makes them are the same model as their Hugging Face form.

use candle_core::Tensor;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use holdfast_model::random::MicroFamily::{Gemma2, Gemma3, GptOss};
use holdfast_model::random::{MicroFamily, MicroRope, MicroShape};
use holdfast_model::{Activation, ExpertsConfig, RopeScaling};

use crate::file::Gguf;
use crate::{all, logits};

/// The file of a micro model, by the conventions of the converter's `Gemma2Model`, `Gemma3Model` and `GptOssModel`.
fn file(shape: &MicroShape) -> Gguf {
    let mut file = Gguf::of(shape, GgmlDType::F32);
    let theirs = shape.family.names().1;
    let arch = match shape.family {
        Gemma3 => "gemma3",
        GptOss => "gpt-oss",
        _ => theirs,
    };
    for (key, value) in &mut file.metadata {
        *key = key.replace(&format!("{theirs}."), &format!("{arch}."));
        if key == "general.architecture" {
            *value = Value::String(arch.to_owned());
        }
    }
    let config: serde_json::Value = serde_json::from_str(&shape.text_files().config).unwrap();
    let mut set = |key: &str, value: Value| file.metadata.push((format!("{arch}.{key}"), value));
    let number = |key: &str| config[key].as_f64().unwrap() as f32;
    set("attention.sliding_window", Value::U32(shape.window.unwrap()));
    match shape.family {
        Gemma2 => {
            set("attn_logit_softcapping", Value::F32(number("attn_logit_softcapping")));
            set("final_logit_softcapping", Value::F32(number("final_logit_softcapping")));
        }
        Gemma3 => {
            set("final_logit_softcapping", Value::F32(number("final_logit_softcapping")));
            set("attention.sliding_window_pattern", Value::U32(3));
            set("rope.freq_base_swa", Value::F32(number("rope_local_base_freq")));
        }
        _ => {
            set("expert_count", Value::U32(shape.experts as u32));
            set("expert_used_count", Value::U32(2));
            set("expert_feed_forward_length", Value::U32(shape.ffn as u32));
            set("rope.scaling.yarn_beta_fast", Value::F32(8.0));
            set("rope.scaling.yarn_beta_slow", Value::F32(0.25));
        }
    }
    if shape.rope == MicroRope::Linear {
        set("rope.scaling.type", Value::String("linear".to_owned()));
        set("rope.scaling.factor", Value::F32(8.0));
    }
    file.tensors = file.tensors.into_iter().flat_map(|tensor| converted(shape.family, tensor)).collect();
    file
}

type Entry = (String, Tensor, GgmlDType);

fn converted(family: MicroFamily, (name, tensor, dtype): Entry) -> Vec<Entry> {
    let one = |name: String, tensor: Tensor| vec![(name, tensor.contiguous().unwrap(), dtype)];
    // Names that are others' are those of the families before.
    if family != GptOss {
        let name = name
            .replace("ffn_norm", "post_attention_norm")
            .replace("pre_feedforward_layernorm", "ffn_norm")
            .replace("post_feedforward_layernorm", "post_ffw_norm");
        let tensor = if name.ends_with("norm.weight") { (tensor + 1.0).unwrap() } else { tensor };
        return one(name, tensor);
    }
    let name = name
        .replace("ffn_norm", "post_attention_norm")
        .replace("mlp.router", "ffn_gate_inp")
        .replace("self_attn.sinks", "attn_sinks.weight");
    let Some((layer, part)) = name.split_once("mlp.experts.") else { return one(name, tensor) };
    let (kind, tensor) = match part.strip_suffix("_bias") {
        Some(_) => ("bias", tensor),
        None => ("weight", tensor.transpose(1, 2).unwrap().contiguous().unwrap()),
    };
    if part.starts_with("down_proj") {
        return one(format!("{layer}ffn_down_exps.{kind}"), tensor);
    }
    let every_other = |from: u32| {
        let rows: Vec<u32> = (0..tensor.dims()[1] as u32 / 2).map(|row| 2 * row + from).collect();
        tensor.index_select(&Tensor::new(rows, tensor.device()).unwrap(), 1).unwrap()
    };
    let parts = [("gate", every_other(0)), ("up", every_other(1))];
    parts.into_iter().flat_map(|(role, tensor)| one(format!("{layer}ffn_{role}_exps.{kind}"), tensor)).collect()
}

#[test]
fn files_of_gemma_and_gpt_oss_are_the_hugging_face_form_bit_for_bit() {
    let micro = MicroShape { window: Some(5), layers: 3, ..MicroShape::default() };
    for shape in [
        MicroShape { family: Gemma2, head_dim: 12, seed: 30, ..micro.clone() },
        MicroShape { family: Gemma2, attention_bias: true, seed: 31, ..micro.clone() },
        MicroShape { family: Gemma3, seed: 32, ..micro.clone() },
        MicroShape { family: Gemma3, rope: MicroRope::Linear, kv_heads: 1, seed: 33, ..micro.clone() },
        MicroShape { family: GptOss, rope: MicroRope::Yarn, tied: false, seed: 34, ..micro.clone() },
        MicroShape { family: GptOss, rope: MicroRope::Yarn, experts: 3, head_dim: 16, seed: 35, ..micro },
    ] {
        let (ours, theirs) = (file(&shape).load().unwrap(), shape.build().unwrap());
        let mut config = theirs.config().clone();
        if shape.family == GptOss {
            // The files do not tell its bounds.
            config.activation = Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };
        }
        assert_eq!(*ours.config(), config);
        assert_eq!(all(&ours), all(&theirs));
        if shape.family != GptOss {
            assert_eq!(logits(&ours), logits(&theirs));
        }
    }
}

#[test]
fn what_files_of_gemma_and_gpt_oss_do_not_tell_is_the_familys() {
    let micro = MicroShape { window: Some(5), ..MicroShape::default() };
    let mut gemma = file(&MicroShape { family: Gemma3, layers: 7, ..micro.clone() });
    gemma.set("gemma3.attention.sliding_window_pattern", None).set("gemma3.rope.freq_base_swa", None);
    let config = gemma.load().unwrap().config().clone();
    let windows: Vec<_> = config.layers.iter().map(|layer| layer.window.is_some()).collect();
    assert_eq!(windows, [true, true, true, true, true, false, true]);
    assert_eq!((config.local_rope.unwrap().theta, config.query_scalar), (10_000.0, 8.0));
    let window = "gemma3.attention.sliding_window";
    let open = gemma.set(window, Some(Value::U32(0))).load().unwrap();
    assert!(open.config().layers.iter().all(|layer| layer.window.is_none()));
    assert!(gemma.set(window, None).load().unwrap_err().to_string().contains(window));
    // The one Gemma 2 whose scores are divided by another number has 46 layers.
    let wide = MicroShape { family: Gemma2, layers: 46, head_dim: 4, ..micro.clone() };
    assert_eq!(file(&wide).load().unwrap().config().query_scalar, 8.0);

    let mut moe = file(&MicroShape { family: GptOss, rope: MicroRope::Yarn, ..micro });
    let config = moe.load().unwrap().config().clone();
    assert!(matches!(config.rope.scaling, RopeScaling::Yarn { truncate: false, .. }));
    assert_eq!(config.experts, Some(ExpertsConfig { count: 5, chosen: 2, packed: false }));
    for (key, value) in [("expert_feed_forward_length", Value::U32(9)), ("expert_shared_count", Value::U32(1))] {
        let key = format!("gpt-oss.{key}");
        let text = moe.clone().set(&key, Some(value)).load().unwrap_err().to_string();
        assert!(text.contains(&key), "{text}");
    }
    moe.set("gpt-oss.expert_count", None);
    let text = moe.load().unwrap_err().to_string();
    assert!(text.contains("gpt-oss.expert_count"), "{text}");
    let mut missing = file(&MicroShape { family: GptOss, window: Some(5), ..MicroShape::default() });
    missing.tensors.retain(|tensor| tensor.0 != "blk.1.ffn_up_exps.bias" && tensor.0 != "blk.0.attn_sinks.weight");
    let text = missing.load().unwrap_err().to_string();
    assert!(text.contains("blk.1.ffn_up_exps.bias") && text.contains("blk.0.attn_sinks.weight"), "{text}");
}
