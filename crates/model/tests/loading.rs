//! Bad model files: each is refused by the variant that names the file and the next step, and none panics.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;

use holdfast_model::random::{
    MICRO_LONG_ROPE_CONTEXT, MICRO_VOCABULARY, MicroDtype, MicroFamily, MicroRope, MicroShape,
};
use holdfast_model::{HistoryRendering, LayerRope, Model, ModelError, ModelSource, Reference, RopeScaling};
use proptest::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

fn written() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    MicroShape::default().write(directory.path()).unwrap();
    directory
}

fn load(directory: &TempDir) -> Result<Model, ModelError> {
    Model::load(&ModelSource::Directory(directory.path().to_owned()))
}

/// What loading says after `change`, as (variant, message).
fn refused(change: impl FnOnce(&Path)) -> (String, String) {
    let directory = written();
    change(directory.path());
    let error = load(&directory).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("; ") || text.contains(": "), "no next step: {text}");
    assert_eq!(error.failure().reason, holdfast_types::Reason::InvalidModel);
    (format!("{error:?}").split([' ', '(']).next().unwrap().to_owned(), text)
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = fs::read_to_string(path).map(|text| serde_json::from_str(&text).unwrap()).unwrap_or(json!({}));
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

type Tensors = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

fn edit_weights(directory: &Path, edit: impl FnOnce(&mut Tensors)) {
    let path = directory.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Tensors =
        file.iter().map(|(n, v)| (n.to_owned(), v.dtype(), v.shape().to_vec(), v.data().to_vec())).collect();
    edit(&mut all);
    write_weights(&path, &all);
}

fn write_weights(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(n, d, s, b)| (n.clone(), TensorView::new(*d, s.clone(), b).unwrap()));
    fs::write(path, safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap()).unwrap();
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn checksums(directory: &Path) {
    let bytes = fs::read(directory.join("model.safetensors")).unwrap();
    fs::write(directory.join("B3SUMS"), format!("{}  model.safetensors\n", blake3::hash(&bytes))).unwrap();
}

#[test]
fn a_written_model_is_the_built_one() {
    for shape in [
        MicroShape::default(),
        MicroShape {
            attention_bias: true,
            mlp_bias: true,
            tied: false,
            rope: MicroRope::Llama3,
            seed: 7,
            ..MicroShape::default()
        },
        MicroShape { dtype: MicroDtype::Bf16, vocab_size: MICRO_VOCABULARY + 3, ..MicroShape::default() },
    ] {
        let directory = tempfile::tempdir().unwrap();
        shape.write(directory.path()).unwrap();
        checksums(directory.path());
        let (read, built) = (load(&directory).unwrap(), shape.build().unwrap());
        assert_eq!(read.weights().digest(), built.weights().digest());
        assert_eq!(read.text().revision(), built.text().revision());
        assert_eq!(read.weights().lm_head().values(), built.weights().lm_head().values());
        assert_eq!(read.weights().layer(1).down.values(), built.weights().layer(1).down.values());
        assert_eq!(read.weights().layer(0).q_bias.is_some(), shape.attention_bias);
        let tokens = [1, 5, 60, 99, 2];
        let logits = |model| Reference::new(model).unwrap().logits(&tokens).unwrap();
        assert_eq!(logits(&read), logits(&built));
        assert!(logits(&read).iter().flatten().all(|l| l.is_finite()));
    }
}

#[test]
fn every_family_is_read_from_its_files() {
    use MicroFamily::{Gemma2, Gemma3, GptOss, Mistral, Phi3, Qwen2, Qwen3, SmolLm3};
    let tokens: Vec<u32> = (0..40).map(|at| at * 7 % MICRO_VOCABULARY).collect();
    let logits = |model: &Model| Reference::new(model).unwrap().logits(&tokens).unwrap();
    for (family, windows, turned) in [
        (Mistral, [Some(9); 3], [true; 3]),
        (Qwen2, [None, Some(9), Some(9)], [true; 3]),
        (Qwen3, [None, Some(9), Some(9)], [true; 3]),
        (SmolLm3, [None, Some(9), None], [true, false, true]),
        (Phi3, [Some(9); 3], [true; 3]),
        (Gemma2, [Some(9), None, Some(9)], [true; 3]),
        (Gemma3, [Some(9), Some(9), None], [true; 3]),
        (GptOss, [Some(9), None, Some(9)], [true; 3]),
    ] {
        let shape = MicroShape { family, window: Some(9), layers: 3, seed: 20, ..MicroShape::default() };
        let directory = tempfile::tempdir().unwrap();
        shape.write(directory.path()).unwrap();
        let model = load(&directory).unwrap();
        let config = model.config();
        assert_eq!(config.architecture, family.names().0);
        assert_eq!(config.layers.iter().map(|layer| layer.window).collect::<Vec<_>>(), windows, "{family:?}");
        assert_eq!(config.layers.iter().map(|layer| layer.rope != LayerRope::Unturned).collect::<Vec<_>>(), turned);
        let layer = model.weights().layer(0);
        assert_eq!(layer.q_bias.is_some(), matches!(family, Qwen2 | GptOss), "{family:?}");
        assert_eq!(layer.output_bias.is_some(), family == GptOss);
        assert_eq!((layer.router.is_some(), layer.sinks.is_some()), (family == GptOss, family == GptOss));
        assert_eq!(layer.post_ffn_norm.is_some(), matches!(family, Gemma2 | Gemma3));
        assert!(logits(&model).iter().flatten().all(|l| l.is_finite()));
        // A window shows from the first token on that it hides one from.
        let open = MicroShape { window: None, ..shape }.build().unwrap();
        let (narrow, wide) = (logits(&model), logits(&open));
        assert_eq!(narrow[..9], wide[..9], "{family:?}");
        assert_ne!(narrow[9], wide[9], "{family:?}");
    }
}

#[test]
fn fused_tensors_are_split_by_rows() {
    let plain = MicroShape { seed: 21, ..MicroShape::default() }.build().unwrap();
    for dtype in [MicroDtype::F32, MicroDtype::Bf16] {
        let shape = MicroShape { family: MicroFamily::Phi3, dtype, seed: 21, ..MicroShape::default() };
        let directory = tempfile::tempdir().unwrap();
        shape.write(directory.path()).unwrap();
        let names = fs::read(directory.path().join("model.safetensors")).unwrap();
        let names = SafeTensors::deserialize(&names).unwrap().names().join(" ");
        assert!(names.contains("qkv_proj") && names.contains("gate_up_proj") && !names.contains("q_proj.w"), "{names}");
        let phi = load(&directory).unwrap();
        assert_eq!(phi.parameters(), plain.parameters());
        if dtype == MicroDtype::F32 {
            for spec in plain.config().tensors() {
                assert_eq!(phi.weights().tensor(spec.role), plain.weights().tensor(spec.role), "{}", spec.name);
            }
        }
        edit_weights(directory.path(), |all| {
            let fused = all.iter_mut().find(|t| t.0 == "model.layers.1.self_attn.qkv_proj.weight").unwrap();
            let row = fused.3.len() / fused.2[0];
            (fused.2[0], fused.3) = (fused.2[0] - 1, fused.3[row..].to_vec());
        });
        let error = load(&directory).unwrap_err();
        let ModelError::WrongShape { name, expected, found, .. } = &error else { panic!("{error}") };
        assert!(name.ends_with("1.self_attn.qkv_proj.weight"), "{error}");
        assert_eq!((expected.as_slice(), found.as_slice()), ([64, 32].as_slice(), [63, 32].as_slice()));
    }
}

#[test]
fn a_bad_element_of_a_fused_tensor_is_named_by_its_place_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    MicroShape { family: MicroFamily::Phi3, ..MicroShape::default() }.write(directory.path()).unwrap();
    // A row of v, which begins after 32 rows of q and 16 of k.
    let at = 50 * 32 + 3;
    edit_weights(directory.path(), |all| {
        let fused = all.iter_mut().find(|t| t.0 == "model.layers.0.self_attn.qkv_proj.weight").unwrap();
        fused.3[at * 4..at * 4 + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let error = load(&directory).unwrap_err();
    assert!(matches!(&error, ModelError::NonFinite { index, .. } if *index == at), "{error}");
}

#[test]
fn norms_are_stored_less_one_where_the_family_adds_one() {
    let shape = MicroShape { family: MicroFamily::Gemma3, seed: 22, ..MicroShape::default() };
    let directory = tempfile::tempdir().unwrap();
    shape.write(directory.path()).unwrap();
    let bytes = fs::read(directory.path().join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let model = load(&directory).unwrap();
    let layer = model.weights().layer(1);
    for (name, read) in [
        ("model.layers.1.input_layernorm.weight", layer.attention_norm),
        ("model.layers.1.self_attn.k_norm.weight", layer.k_norm.unwrap()),
        ("model.layers.1.post_attention_layernorm.weight", layer.post_attention_norm.unwrap()),
        ("model.layers.1.pre_feedforward_layernorm.weight", layer.ffn_norm),
        ("model.layers.1.post_feedforward_layernorm.weight", layer.post_ffn_norm.unwrap()),
        ("model.norm.weight", model.weights().final_norm()),
    ] {
        let stored = floats(file.tensor(name).unwrap().data());
        assert!(stored.iter().all(|weight| weight.abs() <= 0.1), "{name}: {stored:?}");
        assert!(stored.iter().zip(read).all(|(stored, read)| stored + 1.0 == *read), "{name}");
    }
}

#[test]
fn a_decoder_beside_a_vision_tower_is_found_under_either_root() {
    let shape = MicroShape { family: MicroFamily::Gemma3, window: Some(9), seed: 23, ..MicroShape::default() };
    let plain = shape.build().unwrap();
    for root in ["language_model.model.", "model.language_model."] {
        let directory = tempfile::tempdir().unwrap();
        shape.write(directory.path()).unwrap();
        edit_json(&directory.path().join("config.json"), |config| {
            let mut text = config.take();
            text.as_object_mut().unwrap().remove("architectures");
            *config = json!({"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
                "eos_token_id": 2, "text_config": text, "vision_config": {"hidden_size": 8}});
        });
        edit_weights(directory.path(), |all| {
            for tensor in all.iter_mut() {
                tensor.0 = tensor.0.replace("model.", root);
            }
            for name in ["vision_tower.norm.weight", "model.multi_modal_projector.norm.weight"] {
                all.push((name.to_owned(), Dtype::F32, vec![1], vec![0; 4]));
            }
        });
        let model = load(&directory).unwrap();
        assert_eq!(model.config().layers, plain.config().layers);
        for spec in plain.config().tensors() {
            assert_eq!(model.weights().tensor(spec.role), plain.weights().tensor(spec.role), "{}", spec.name);
        }
        edit_weights(directory.path(), |all| all.retain(|tensor| !tensor.0.ends_with("1.mlp.up_proj.weight")));
        let text = load(&directory).unwrap_err().to_string();
        assert!(text.contains(&format!("{root}layers.1.mlp.up_proj.weight")), "{text}");
    }
}

/// One matrix of one expert as transformers' `convert_moe_packed_tensors` gives it, transposed back.
fn unpacked(blocks: &[u8], scales: &[u8], row: usize, depth: usize) -> Vec<f32> {
    const NUMBERS: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let number = |bits: u8| NUMBERS[usize::from(bits & 7)] * if bits & 8 == 0 { 1.0 } else { -1.0 };
    (0..depth)
        .map(|at| {
            let byte = blocks[(row * depth + at) / 2];
            let bits = if at % 2 == 0 { byte & 15 } else { byte >> 4 };
            number(bits) * 2_f32.powi(i32::from(scales[(row * depth + at) / 32]) - 127)
        })
        .collect()
}

#[test]
fn packed_experts_are_taken_apart() {
    let shape = MicroShape {
        family: MicroFamily::GptOss,
        packed: true,
        ffn: 64,
        tied: false,
        seed: 24,
        ..MicroShape::default()
    };
    let directory = tempfile::tempdir().unwrap();
    shape.write(directory.path()).unwrap();
    let model = load(&directory).unwrap();
    let bytes = fs::read(directory.path().join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let stored = |name: &str| file.tensor(&format!("model.layers.1.mlp.experts.{name}")).unwrap().data();
    let layer = model.weights().layer(1);
    let (hidden, ffn) = (shape.hidden, shape.ffn);
    for expert in 0..shape.experts {
        for row in 0..ffn {
            for (part, matrix) in [layer.gate, layer.up].into_iter().enumerate() {
                let theirs = unpacked(
                    stored("gate_up_proj_blocks"),
                    stored("gate_up_proj_scales"),
                    expert * 2 * ffn + 2 * row + part,
                    hidden,
                );
                assert_eq!(matrix.values()[(expert * ffn + row) * hidden..][..hidden], theirs);
            }
        }
        for row in 0..hidden {
            let theirs = unpacked(stored("down_proj_blocks"), stored("down_proj_scales"), expert * hidden + row, ffn);
            assert_eq!(layer.down.values()[(expert * hidden + row) * ffn..][..ffn], theirs);
        }
    }
    assert!(layer.gate.values().iter().any(|weight| *weight != 0.0));
    let name = "model.layers.0.mlp.experts.down_proj_scales";
    edit_weights(directory.path(), |all| all.iter_mut().find(|t| t.0 == name).unwrap().3[5] = 255);
    let error = load(&directory).unwrap_err();
    assert!(matches!(&error, ModelError::NonFinite { name: found, index: 5, .. } if found == name), "{error}");
    edit_weights(directory.path(), |all| {
        let scales = all.iter_mut().find(|t| t.0 == name).unwrap();
        (scales.1, scales.2[2]) = (Dtype::U16, 1);
    });
    assert!(load(&directory).unwrap_err().to_string().contains(name));
    edit_weights(directory.path(), |all| all.retain(|t| t.0 != name));
    let error = load(&directory).unwrap_err();
    assert!(matches!(&error, ModelError::MissingTensors { names, .. } if names.contains(name)), "{error}");
}

#[test]
fn a_bad_element_of_an_expert_is_named_by_its_place_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    MicroShape { family: MicroFamily::GptOss, ..MicroShape::default() }.write(directory.path()).unwrap();
    let at = 7 * 96 + 5;
    edit_weights(directory.path(), |all| {
        let fused = all.iter_mut().find(|t| t.0 == "model.layers.0.mlp.experts.gate_up_proj").unwrap();
        assert_eq!(fused.2, [5, 32, 96]);
        fused.3[at * 4..at * 4 + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let error = load(&directory).unwrap_err();
    assert!(matches!(&error, ModelError::NonFinite { index, .. } if *index == at), "{error}");
}

#[test]
fn long_factors_are_taken_where_the_context_is_long() {
    let long = MicroShape { family: MicroFamily::Phi3, rope: MicroRope::LongRope, ..MicroShape::default() };
    let short = MicroShape { context_limit: MICRO_LONG_ROPE_CONTEXT, ..long.clone() };
    let read = |shape: &MicroShape| match shape.build().unwrap().config().rope.scaling.clone() {
        RopeScaling::LongRope { divisors, attention_factor } => (divisors, attention_factor),
        other => panic!("{other:?}"),
    };
    assert_eq!(read(&short), (vec![1.0, 1.125, 1.25, 1.375], 1.0));
    // 512 tokens are 32 times 16: 1 + 5 ln 2 / (4 ln 2).
    assert_eq!(read(&long), (vec![1.0, 2.5, 4.0, 5.5], 1.5));
    let part = MicroShape { rotary_share: 0.5, ..long };
    assert_eq!((read(&part).0, part.build().unwrap().config().rotary_dim), (vec![1.0, 2.5], 4));
}

#[test]
fn seeds_decide_the_weights() {
    let digest = |seed| MicroShape { seed, ..MicroShape::default() }.build().unwrap().weights().digest();
    assert_eq!(digest(3), digest(3));
    assert_ne!(digest(3), digest(4));
}

#[test]
fn shards_are_one_model() {
    let directory = written();
    let whole = load(&directory).unwrap().weights().digest();
    let path = directory.path().join("model.safetensors");
    let mut map = serde_json::Map::new();
    edit_weights(directory.path(), |all| {
        let second = all.split_off(all.len() / 2);
        for (name, part) in [("a.safetensors", &*all), ("b.safetensors", &second)] {
            write_weights(&directory.path().join(name), part);
            map.extend(part.iter().map(|t| (t.0.clone(), name.into())));
        }
    });
    fs::remove_file(path).unwrap();
    let index = directory.path().join("model.safetensors.index.json");
    fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
    assert_eq!(load(&directory).unwrap().weights().digest(), whole);

    fs::remove_file(directory.path().join("b.safetensors")).unwrap();
    assert!(matches!(load(&directory).unwrap_err(), ModelError::Read { path, .. } if path.ends_with("b.safetensors")));
    fs::write(&index, json!({"weight_map": {"x": "../b.safetensors"}}).to_string()).unwrap();
    assert!(matches!(load(&directory).unwrap_err(), ModelError::Weights { .. }));
}

#[test]
fn damaged_weights_are_refused_by_name() {
    let weights = "model.safetensors";
    let (variant, text) = refused(|d| {
        let bytes = fs::read(d.join(weights)).unwrap();
        fs::write(d.join(weights), &bytes[..bytes.len() - 5]).unwrap();
    });
    assert_eq!(variant, "Truncated");
    assert!(text.contains(weights), "{text}");
    assert_eq!(refused(|d| fs::write(d.join(weights), b"").unwrap()).0, "Truncated");
    assert_eq!(refused(|d| fs::write(d.join(weights), [0xff; 64]).unwrap()).0, "Weights");
    assert_eq!(refused(|d| fs::remove_file(d.join(weights)).unwrap()).0, "Read");

    let (variant, text) = refused(|d| {
        checksums(d);
        let mut bytes = fs::read(d.join(weights)).unwrap();
        let at = bytes.len() - 100;
        bytes[at] ^= 1;
        fs::write(d.join(weights), bytes).unwrap();
    });
    assert_eq!(variant, "Checksum");
    assert!(text.contains("B3SUMS"), "{text}");
    for bad in ["nonsense", "00  model.safetensors", &format!("{}  ../x", "0".repeat(64))] {
        assert_eq!(refused(|d| fs::write(d.join("B3SUMS"), bad).unwrap()).0, "ChecksumList");
    }

    let (variant, text) = refused(|d| edit_weights(d, |all| all.retain(|t| t.0 != "model.norm.weight")));
    assert_eq!(variant, "MissingTensors");
    assert!(text.contains("model.norm.weight"), "{text}");
    let (variant, text) = refused(|d| {
        edit_weights(d, |all| all.push(("model.layers.9.extra".to_owned(), Dtype::F32, vec![1], vec![0; 4])))
    });
    assert_eq!(variant, "ExtraTensors");
    assert!(text.contains("model.layers.9.extra"), "{text}");
    let (variant, text) = refused(|d| edit_weights(d, |all| all[0].2.insert(0, 1)));
    assert_eq!(variant, "WrongShape");
    assert!(text.contains("the config asks for"), "{text}");
    let (variant, text) = refused(|d| edit_weights(d, |all| all[0].1 = Dtype::I32));
    assert_eq!(variant, "WrongDtype");
    assert!(text.contains("I32"), "{text}");
    for value in [f32::NAN, f32::INFINITY] {
        let (variant, text) = refused(|d| edit_weights(d, |all| all[2].3[8..12].copy_from_slice(&value.to_le_bytes())));
        assert_eq!(variant, "NonFinite");
        assert!(text.contains("element 2"), "{text}");
    }
}

#[test]
fn a_tied_matrix_written_twice_is_one_and_a_different_one_is_extra() {
    let copy = |change: u8| {
        move |all: &mut Tensors| {
            let mut head = all.iter().find(|t| t.0 == "model.embed_tokens.weight").unwrap().clone();
            head.0 = "lm_head.weight".to_owned();
            head.3[0] ^= change;
            all.push(head);
        }
    };
    let directory = written();
    let before = load(&directory).unwrap().weights().digest();
    edit_weights(directory.path(), copy(0));
    assert_eq!(load(&directory).unwrap().weights().digest(), before);
    assert_eq!(refused(|d| edit_weights(d, copy(1))).0, "ExtraTensors");
}

#[test]
fn a_bad_config_is_refused_by_key() {
    assert_eq!(refused(|d| fs::write(d.join("config.json"), "{").unwrap()).0, "Config");
    assert_eq!(refused(|d| fs::remove_file(d.join("config.json")).unwrap()).0, "Read");
    let (variant, text) = refused(|d| edit_json(&d.join("config.json"), |c| c["architectures"] = json!(["Mamba"])));
    assert_eq!(variant, "UnknownArchitecture");
    assert!(text.contains("Mamba") && text.contains("LlamaForCausalLM"), "{text}");
    let (variant, text) = refused(|d| edit_json(&d.join("config.json"), |c| c["sliding_window"] = json!(9)));
    assert_eq!(variant, "Config");
    assert!(text.contains("sliding_window"), "{text}");
}

#[test]
fn a_bad_tokenizer_is_refused() {
    let tokenizer = "tokenizer.json";
    assert_eq!(refused(|d| fs::remove_file(d.join(tokenizer)).unwrap()).0, "Read");
    assert_eq!(refused(|d| fs::write(d.join(tokenizer), "[]").unwrap()).0, "Tokenizer");
    assert_eq!(refused(|d| fs::write(d.join(tokenizer), "not json").unwrap()).0, "Tokenizer");
    assert_eq!(refused(|d| edit_json(&d.join(tokenizer), |t| t["model"]["type"] = json!("WordPiece"))).0, "Tokenizer");
    assert_eq!(
        refused(|d| edit_json(&d.join(tokenizer), |t| t["model"]["merges"] = json!([["q", "zz"]]))).0,
        "Tokenizer"
    );
    let (variant, text) = refused(|d| edit_json(&d.join(tokenizer), |t| t["decoder"] = json!({"type": "WordPiece"})));
    assert_eq!(variant, "UnsupportedDecoder");
    assert!(text.contains("WordPiece") && text.contains("ByteLevel"), "{text}");
    let (variant, text) =
        refused(|d| edit_json(&d.join(tokenizer), |t| t["model"]["vocab"]["zzz"] = MICRO_VOCABULARY.into()));
    assert_eq!(variant, "Vocabulary");
    assert!(text.contains("zzz"), "{text}");
}

#[test]
fn bad_settings_beside_the_tokenizer_are_refused() {
    let generation = "generation_config.json";
    assert_eq!(refused(|d| fs::write(d.join(generation), "{").unwrap()).0, "Settings");
    let (variant, text) = refused(|d| edit_json(&d.join(generation), |g| g["temperature"] = json!(-1)));
    assert_eq!(variant, "Settings");
    assert!(text.contains("temperature"), "{text}");
    assert_eq!(refused(|d| edit_json(&d.join(generation), |g| g["eos_token_id"] = json!([99_999]))).0, "Settings");
    let none = refused(|d| {
        edit_json(&d.join(generation), |g| g["eos_token_id"] = Value::Null);
        edit_json(&d.join("config.json"), |c| c["eos_token_id"] = Value::Null);
    });
    assert_eq!(none.0, "NoStopToken");
    assert_eq!(refused(|d| fs::write(d.join("tool_call_form.json"), "{\"open\": \"<\"}").unwrap()).0, "ToolForm");
}

#[test]
fn generation_defaults_are_read() {
    let directory = written();
    edit_json(&directory.path().join("generation_config.json"), |g| {
        g["temperature"] = json!(0.6);
        g["top_k"] = json!(20);
        g["max_new_tokens"] = json!(99);
    });
    let model = load(&directory).unwrap();
    let defaults = model.text().generation_defaults();
    assert_eq!((defaults.temperature, defaults.top_k, defaults.max_output_tokens), (Some(0.6), Some(20), Some(99)));
    assert_eq!(model.text().stop_tokens(), [0, 2]);
}

#[test]
fn a_bad_template_is_refused() {
    let template = |source: &'static str| refused(move |d| fs::write(d.join("chat_template.jinja"), source).unwrap());
    assert_eq!(refused(|d| fs::remove_file(d.join("chat_template.jinja")).unwrap()).0, "NoTemplate");
    assert_eq!(template("{% for m in messages %}").0, "Template");
    assert_eq!(template("{{ raise_exception('no') }}").0, "Template");
    assert_eq!(template("hello").0, "Template");
    let (variant, text) = template("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}");
    assert_eq!(variant, "Template");
    assert!(text.contains("stop token"), "{text}");
}

#[test]
fn a_template_that_looks_back_is_rendered_piece_by_piece() {
    let rendering = |source: &str| {
        let directory = written();
        fs::write(directory.path().join("chat_template.jinja"), source).unwrap();
        load(&directory).unwrap().text().stability()[0].rendering
    };
    let plain = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
    assert_eq!(rendering(plain), HistoryRendering::Published);
    // The last message is told apart; messages are numbered: what new ones become depends on how many were before.
    for role in ["{{ m.role }}{{ ' (last)' if loop.last }}", "{{ loop.index }} {{ m.role }}"] {
        assert_eq!(rendering(&plain.replace("{{ m.role }}", role)), HistoryRendering::Incremental, "{role}");
    }
}

#[test]
fn a_name_that_is_nothing_says_what_there_is() {
    let error = Model::load(&ModelSource::BuiltIn("granite".to_owned())).unwrap_err();
    assert!(matches!(error, ModelError::UnknownName { .. }));
    assert_eq!(error.failure().reason, holdfast_types::Reason::ModelNotFound);
    let nowhere = Model::load(&ModelSource::Directory("/nonexistent/model".into())).unwrap_err();
    assert!(matches!(nowhere, ModelError::Read { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn no_cut_and_no_flip_panics_and_checksums_find_every_flip(at in any::<prop::sample::Index>(), bit in 0_u8..8, cut in any::<bool>()) {
        let directory = written();
        checksums(directory.path());
        let path = directory.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
        fs::write(&path, &bytes).unwrap();
        let is_checksum = matches!(load(&directory), Err(ModelError::Checksum { .. }));
        prop_assert!(is_checksum);
        fs::remove_file(directory.path().join("B3SUMS")).unwrap();
        let result = load(&directory);
        prop_assert!(!cut || result.is_err());
    }
}
