//! GGUF files: the same model as its Hugging Face form, and bad files refused by name without a panic.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod counting;
mod file;
mod refusals;

use candle_core::Device;
use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::{GgmlDType, QTensor};
use file::Gguf;
use holdfast_model::random::{MICRO_VOCABULARY, MicroDtype, MicroShape};
use holdfast_model::{LogEnd, Model, Next, Prompt, Reference, RopeScaling, Weights};
use holdfast_types::{Item, Role, Tool};

/// Rows that are whole blocks of 32.
fn blocks() -> MicroShape {
    MicroShape { hidden: 64, heads: 4, kv_heads: 2, head_dim: 16, ffn: 96, ..MicroShape::default() }
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
    }];
    let prompt = Prompt { instructions: "Be brief: <|im_end|>", tools: &tools, date: "2026-11-20", template: "" };
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
        MicroShape { qk_norm: true, head_dim: 20, vocab_size: MICRO_VOCABULARY + 9, seed: 3, ..micro.clone() },
        MicroShape { qk_norm: true, tied: false, attention_bias: true, seed: 4, ..micro },
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
fn stretched_frequencies_are_divisors() {
    let shape = MicroShape { llama3_rope: true, head_dim: 32, seed: 5, ..MicroShape::default() };
    let (ours, theirs) = (Gguf::of(&shape, GgmlDType::F32).load().unwrap(), shape.build().unwrap());
    assert!(matches!(&ours.config().rope.scaling, RopeScaling::Divisors(all) if all.len() == 16));
    assert_eq!(all(&ours), all(&theirs));
    let frequencies = |model: &Model| model.config().rope.inverse_frequencies(32);
    for (a, b) in frequencies(&ours).iter().zip(frequencies(&theirs)) {
        assert!((a - b).abs() <= 1e-6 * b, "{a} {b}");
    }
    let plain = MicroShape { llama3_rope: false, ..shape }.build().unwrap();
    assert_ne!(frequencies(&ours), frequencies(&plain));
    // A divisor is part of what the model computes, so it is part of the digest.
    assert_ne!(
        ours.weights().digest(),
        Gguf::of(&MicroShape { llama3_rope: false, head_dim: 32, seed: 5, ..MicroShape::default() }, GgmlDType::F32)
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
        (MicroShape { qk_norm: true, tied: false, seed: 6, ..blocks() }, GgmlDType::Q8_0),
        (MicroShape { attention_bias: true, seed: 7, ..blocks() }, GgmlDType::Q4_0),
        (MicroShape { seed: 8, ..blocks() }, GgmlDType::F16),
        (MicroShape { dtype: MicroDtype::Bf16, seed: 9, ..blocks() }, GgmlDType::BF16),
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
