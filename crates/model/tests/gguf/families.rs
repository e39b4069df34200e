//! Gemma and gpt-oss: files as llama.cpp's converter makes them are the same model as their Hugging Face form.

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use holdfast_model::random::MicroFamily::{Gemma2, Gemma3, GptOss};
use holdfast_model::random::{MicroRope, MicroShape};
use holdfast_model::{Activation, ExpertsConfig, RopeScaling};

use crate::file::Gguf;
use crate::{all, logits};

fn file(shape: &MicroShape) -> Gguf {
    Gguf::of(shape, GgmlDType::F32)
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
        MicroShape { family: GptOss, rope: MicroRope::Yarn, experts: 3, head_dim: 16, seed: 35, ..micro.clone() },
        // As published: each layer's experts as tensors of three dimensions, of MXFP4.
        MicroShape { family: GptOss, rope: MicroRope::Yarn, packed: true, ffn: 64, seed: 36, ..micro },
    ] {
        let (ours, theirs) = (file(&shape).load().unwrap(), shape.build().unwrap());
        let mut config = theirs.config().clone();
        if shape.family == GptOss {
            // The files do not tell its bounds.
            config.activation = Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };
            // Each tensor says it of itself.
            config.experts = config.experts.map(|experts| ExpertsConfig { packed: false, ..experts });
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
