//! GGUF files: the same model as its Hugging Face form, and bad files refused by name without a panic.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod counting;
mod families;
mod file;
mod refusals;

use candle_core::Device;
use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::{GgmlDType, QTensor};
use file::Gguf;
use holdfast_model::random::MicroFamily::{Mistral, Phi3, Qwen2, Qwen3, SmolLm3};
use holdfast_model::random::{MICRO_VOCABULARY, MicroDtype, MicroRope, MicroShape};
use holdfast_model::{LayerRope, LogEnd, Model, Next, Prompt, Reference, RopeScaling, Weights};
use holdfast_types::{Item, Role, Tool};

/// Rows that are whole blocks of 32.
fn blocks() -> MicroShape {
    MicroShape { hidden: 64, heads: 4, kv_heads: 2, head_dim: 16, ffn: 96, ..MicroShape::default() }
}

/// Rows that are whole blocks of 256.
fn large_blocks() -> MicroShape {
    MicroShape { hidden: 256, heads: 4, kv_heads: 2, head_dim: 64, ffn: 256, layers: 1, ..MicroShape::default() }
}

/// Every tensor of a model, in one order.
fn all(model: &Model) -> Vec<(String, Vec<u32>)> {
    let weights: &Weights = model.weights();
    let specs = model.config().tensors().into_iter();
    specs.map(|s| (s.name, weights.tensor(s.role).unwrap().iter().map(|v| v.to_bits()).collect())).collect()
}

fn logits(model: &Model) -> Vec<Vec<f32>> {
    Reference::new(model).unwrap().logits(&[1, 5, 60, 99, 7, 200, 2]).unwrap()
}

fn rendered(model: &Model) -> Vec<u32> {
    let tools = [Tool {
        name: "look".to_owned(),
        description: "Looks.".to_owned(),
        parameters_json_schema: r#"{"type":"object","properties":{"at":{"type":"string"}}}"#.to_owned(),
        strict: false,
    }];
    let prompt = Prompt {
        instructions: "Be brief: <|im_end|>",
        tools: &tools,
        date: "2026-11-20",
        template: "",
        effort: None,
        calls: &[],
    };
    let items = [Item::message(Role::User, "Where is the other user's é 😀 <tool_call>?\n\nThere 123.")];
    model.text().render(&prompt, LogEnd::Start, &items, Next::Generate).unwrap()
}

#[test]
fn f32_is_the_hugging_face_form_bit_for_bit() {
    let micro = MicroShape::default();
    for shape in [
        micro.clone(),
        MicroShape { heads: 6, kv_heads: 3, head_dim: 10, layers: 3, seed: 1, ..micro.clone() },
        MicroShape { tied: false, attention_bias: true, mlp_bias: true, seed: 2, ..micro.clone() },
        MicroShape { family: Qwen3, head_dim: 20, vocab_size: MICRO_VOCABULARY + 9, seed: 3, ..micro.clone() },
        MicroShape { family: Qwen3, tied: false, attention_bias: true, seed: 4, ..micro.clone() },
        MicroShape { family: Qwen2, head_dim: 12, layers: 3, seed: 5, ..micro.clone() },
        MicroShape { family: Phi3, window: Some(40), tied: false, seed: 6, ..micro.clone() },
        MicroShape { family: Phi3, rope: MicroRope::LongRope, rotary_share: 0.75, head_dim: 8, seed: 7, ..micro },
    ] {
        let (ours, theirs) = (Gguf::of(&shape, GgmlDType::F32).load().unwrap(), shape.build().unwrap());
        assert_eq!(ours.config(), theirs.config());
        assert_eq!(all(&ours), all(&theirs));
        assert_eq!(ours.parameters(), theirs.parameters());
        assert_eq!(logits(&ours), logits(&theirs));
        assert_eq!(rendered(&ours), rendered(&theirs));
        assert_eq!(ours.text().stop_tokens(), theirs.text().stop_tokens());
        assert_eq!(ours.text().tool_form(), theirs.text().tool_form());
        assert_eq!((ours.text().vocab_size(), ours.text().context_limit()), (shape.vocab_size, shape.context_limit));
        for id in 0..shape.vocab_size {
            assert_eq!(ours.text().token_bytes(id), theirs.text().token_bytes(id), "token {id}");
            assert_eq!(ours.text().special_text(id), theirs.text().special_text(id), "token {id}");
        }
    }
}

#[test]
fn mistral_is_llama_there() {
    let shape = MicroShape { family: Mistral, seed: 12, ..MicroShape::default() };
    let (ours, theirs) = (Gguf::of(&shape, GgmlDType::F32).load().unwrap(), shape.build().unwrap());
    assert_eq!((ours.config().architecture.as_str(), all(&ours)), ("LlamaForCausalLM", all(&theirs)));
    assert_eq!(logits(&ours), logits(&theirs));
}

#[test]
fn every_fourth_layer_of_smollm3_does_not_turn() {
    let shape = MicroShape { family: SmolLm3, layers: 5, seed: 13, ..MicroShape::default() };
    let (ours, theirs) = (Gguf::of(&shape, GgmlDType::F32).load().unwrap(), shape.build().unwrap());
    let turned: Vec<bool> = ours.config().layers.iter().map(|layer| layer.rope != LayerRope::Unturned).collect();
    assert_eq!(turned, [true, true, true, false, true]);
    assert_eq!(all(&ours), all(&theirs));
}

#[test]
fn yarn_is_read_with_the_bounds_of_the_paper() {
    let shape = MicroShape { family: Qwen2, rope: MicroRope::Yarn, seed: 14, ..MicroShape::default() };
    let RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, truncate, attention_factor } =
        Gguf::of(&shape, GgmlDType::F32).load().unwrap().config().rope.scaling
    else {
        panic!("yarn")
    };
    assert_eq!((factor, original_context, beta_fast, beta_slow, truncate), (8.0, 64.0, 32.0, 1.0, true));
    assert!((attention_factor - (1.0 + 0.1 * 8.0_f64.ln())).abs() < 1e-12);
}

#[test]
fn long_rope_is_two_tensors_and_an_attention_factor() {
    let shape = MicroShape { family: Phi3, rope: MicroRope::LongRope, seed: 15, ..MicroShape::default() };
    let mut file = Gguf::of(&shape, GgmlDType::F32);
    file.set("phi3.rope.scaling.attn_factor", Some(Value::F32(1.25)));
    let scaling = file.load().unwrap().config().rope.scaling.clone();
    let expected = RopeScaling::LongRope { divisors: vec![1.0, 2.5, 4.0, 5.5], attention_factor: 1.25 };
    assert_eq!(scaling, expected);
    file.set("phi3.context_length", Some(Value::U32(16)));
    let scaling = file.load().unwrap().config().rope.scaling.clone();
    assert!(matches!(scaling, RopeScaling::LongRope { divisors, .. } if divisors[1] == 1.125));
    file.tensors.retain(|tensor| tensor.0 != "rope_factors_short.weight");
    let text = file.load().unwrap_err().to_string();
    assert!(text.contains("rope_factors_short.weight"), "{text}");
}

#[test]
fn stretched_frequencies_are_divisors() {
    let shape = MicroShape { rope: MicroRope::Llama3, head_dim: 32, seed: 5, ..MicroShape::default() };
    let (ours, theirs) = (Gguf::of(&shape, GgmlDType::F32).load().unwrap(), shape.build().unwrap());
    assert!(matches!(&ours.config().rope.scaling, RopeScaling::Divisors(all) if all.len() == 16));
    assert_eq!(all(&ours), all(&theirs));
    let frequencies = |model: &Model| model.config().rope.inverse_frequencies(32);
    for (a, b) in frequencies(&ours).iter().zip(frequencies(&theirs)) {
        assert!((a - b).abs() <= 1e-6 * b, "{a} {b}");
    }
    let plain = MicroShape { rope: MicroRope::Plain, ..shape }.build().unwrap();
    assert_ne!(frequencies(&ours), frequencies(&plain));
    // A divisor is part of what the model computes, so it is part of the digest.
    assert_ne!(
        ours.weights().digest(),
        Gguf::of(&MicroShape { head_dim: 32, seed: 5, ..MicroShape::default() }, GgmlDType::F32)
            .load()
            .unwrap()
            .weights()
            .digest()
    );
}

#[test]
fn linear_scaling_needs_no_type() {
    for kind in [None, Some(Value::String("linear".to_owned()))] {
        let mut file = Gguf::of(&MicroShape::default(), GgmlDType::F32);
        file.set("llama.rope.scaling.factor", Some(Value::F32(4.0))).set("llama.rope.scaling.type", kind);
        assert_eq!(file.load().unwrap().config().rope.scaling, RopeScaling::Linear { factor: 4.0 });
    }
}

#[test]
fn other_types_are_their_dequantised_values() {
    for (shape, dtype) in [
        (blocks(), GgmlDType::Q8_0),
        (MicroShape { family: Qwen3, tied: false, seed: 6, ..blocks() }, GgmlDType::Q8_0),
        (MicroShape { attention_bias: true, seed: 7, ..blocks() }, GgmlDType::Q4_0),
        (MicroShape { seed: 8, ..blocks() }, GgmlDType::F16),
        (MicroShape { dtype: MicroDtype::Bf16, seed: 9, ..blocks() }, GgmlDType::BF16),
        (blocks(), GgmlDType::Q4_1),
        (MicroShape { family: Phi3, seed: 10, ..blocks() }, GgmlDType::Q5_0),
        (blocks(), GgmlDType::Q5_1),
        (large_blocks(), GgmlDType::Q2K),
        (large_blocks(), GgmlDType::Q3K),
        (large_blocks(), GgmlDType::Q4K),
        (MicroShape { family: Phi3, seed: 11, ..large_blocks() }, GgmlDType::Q5K),
        (MicroShape { family: Qwen2, tied: false, ..large_blocks() }, GgmlDType::Q6K),
    ] {
        let (ours, exact) = (Gguf::of(&shape, dtype).load().unwrap(), shape.build().unwrap());
        for spec in exact.config().tensors() {
            let values = exact.weights().tensor(spec.role).unwrap();
            let tensor = candle_core::Tensor::from_slice(values, spec.shape.as_slice(), &Device::Cpu).unwrap();
            let dtype = if spec.shape.len() == 2 { dtype } else { GgmlDType::F32 };
            let want = QTensor::quantize(&tensor, dtype).unwrap().dequantize(&Device::Cpu).unwrap();
            let want: Vec<f32> = want.flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(ours.weights().tensor(spec.role).unwrap(), want, "{} as {dtype:?}", spec.name);
        }
        assert!(logits(&ours).iter().flatten().all(|l| l.is_finite()));
    }
}

#[test]
fn mxfp4_is_read_where_the_header_says_so() {
    const NAME: &str = "blk.0.ffn_up.weight";
    let mut file = Gguf::of(&blocks(), GgmlDType::F32);
    file.tensor(NAME).2 = GgmlDType::Q8_0;
    let mut blocks = vec![0; 17 * 96 * 64 / 32];
    for (i, block) in blocks.chunks_exact_mut(17).enumerate() {
        block.fill(i as u8);
        block[0] = 120 + (i % 10) as u8;
    }
    file.mxfp4.insert(NAME.to_owned(), blocks.clone());
    let model = file.load().unwrap();
    let up = model.weights().layer(0).up.values();
    let element = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
    for (i, values) in up.chunks_exact(32).enumerate() {
        let scale = 2_f32.powi(i as i32 % 10 - 7);
        assert!(values[..16].iter().all(|value| *value == scale * element[i % 16]), "block {i}");
        assert!(values[16..].iter().all(|value| *value == scale * element[i / 16]), "block {i}");
    }
    blocks[0] = 255;
    file.mxfp4.insert(NAME.to_owned(), blocks);
    let text = file.load().unwrap_err().to_string();
    assert!(text.contains(NAME) && text.contains("NaN"), "{text}");
}

#[test]
fn the_digest_is_of_names_types_shapes_and_bytes() {
    let digest = |file: &Gguf| file.load().unwrap().weights().digest();
    let mut file = Gguf::of(&blocks(), GgmlDType::F32);
    let first = digest(&file);
    assert_eq!(first, digest(&Gguf::of(&blocks(), GgmlDType::F32)));
    file.set("general.name", Some(Value::String("other".to_owned())));
    assert_eq!(first, digest(&file), "metadata is no weight");
    file.tensor("blk.0.ffn_up.weight").2 = GgmlDType::Q8_0;
    assert_ne!(first, digest(&file));
    assert_ne!(first, digest(&Gguf::of(&MicroShape { seed: 1, ..blocks() }, GgmlDType::F32)));
}

#[test]
fn a_start_token_that_the_file_asks_for_is_written_once() {
    let mut file = Gguf::of(&MicroShape::default(), GgmlDType::F32);
    let without = rendered(&file.load().unwrap());
    file.set("tokenizer.ggml.bos_token_id", Some(Value::U32(0)));
    assert_eq!(rendered(&file.load().unwrap()), without, "the file says that none is added");
    file.set("tokenizer.ggml.add_bos_token", Some(Value::Bool(true)));
    let with = rendered(&file.load().unwrap());
    assert_eq!((with[0], &with[1..]), (0, without.as_slice()));
    let Some((_, Value::String(template))) = file.metadata.iter().find(|(key, _)| key == "tokenizer.chat_template")
    else {
        panic!("a template")
    };
    let template = format!("{{{{- bos_token }}}}{template}");
    file.set("tokenizer.chat_template", Some(Value::String(template)));
    assert_eq!(rendered(&file.load().unwrap()), with);
}

#[test]
fn later_families_split_text_as_llama_3_does() {
    let mut file = Gguf::of(&MicroShape::default(), GgmlDType::F32);
    let mut with = |pre: &str| {
        file.set("tokenizer.ggml.pre", Some(Value::String(pre.to_owned())));
        rendered(&file.load().unwrap())
    };
    let llama = with("llama-bpe");
    assert_eq!(with("dbrx"), llama);
    assert_eq!(with("smaug-bpe"), llama);
    assert_ne!(with("gpt-2"), llama);
}

#[test]
fn named_templates_and_sampling_are_read() {
    let mut file = Gguf::of(&MicroShape::default(), GgmlDType::F32);
    let Some((_, template)) = file.metadata.iter().find(|(key, _)| key == "tokenizer.chat_template").cloned() else {
        panic!("a template")
    };
    file.set("tokenizer.chat_template.tool_use", Some(template))
        .set("general.sampling.temp", Some(Value::F32(0.6)))
        .set("general.sampling.top_k", Some(Value::I32(20)))
        .set("tokenizer.ggml.eot_token_id", Some(Value::U32(1)));
    let model = file.load().unwrap();
    assert_eq!(model.text().template_names(), ["default", "tool_use"]);
    let defaults = model.text().generation_defaults();
    assert_eq!((defaults.temperature, defaults.top_k), (Some(0.6), Some(20)));
    assert_eq!(model.text().stop_tokens(), [0, 1, 2]);
}
