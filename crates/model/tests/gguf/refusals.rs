//! Bad files: each is refused by the variant that names the key or the tensor; none panics, none allocates wildly.

use std::io::Cursor;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Tensor};
use holdfast_model::ModelError;
use holdfast_model::random::MicroShape;
use proptest::prelude::*;

use crate::counting::peak;
use crate::file::{Gguf, load_bytes};

/// A good micro file takes less than a tenth of it.
const PEAK_BYTES_MAX: usize = 64 << 20;

fn micro() -> Gguf {
    Gguf::of(&MicroShape::default(), GgmlDType::F32)
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

/// What loading bytes says, as (variant, message).
#[track_caller]
fn refused_bytes(bytes: &[u8]) -> (String, String) {
    let (result, peak) = peak(|| load_bytes(bytes).map(drop));
    assert!(peak < PEAK_BYTES_MAX, "{peak} bytes");
    let error: ModelError = result.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("micro.gguf") && text.contains("; "), "no file or no next step: {text}");
    assert_eq!(error.failure().reason, holdfast_types::Reason::InvalidModel);
    (format!("{error:?}").split([' ', '(']).next().unwrap().to_owned(), text)
}

#[track_caller]
fn refused(change: impl FnOnce(&mut Gguf)) -> (String, String) {
    let mut file = micro();
    change(&mut file);
    refused_bytes(&file.bytes())
}

/// What loading says when a key has this value, or is not there.
#[track_caller]
fn with(key: &str, value: Option<Value>) -> (String, String) {
    refused(|file| {
        file.set(key, value);
    })
}

/// The variant, and words of the message.
#[track_caller]
fn says((variant, text): (String, String), expected: &str, words: &[&str]) {
    assert_eq!(variant, expected, "{text}");
    for word in words {
        assert!(text.contains(word), "no {word:?}: {text}");
    }
}

fn place_of(bytes: &[u8], name: &str) -> usize {
    bytes.windows(name.len()).position(|window| window == name.as_bytes()).unwrap() + name.len()
}

#[test]
fn a_cut_file_is_refused_wherever_it_ends() {
    let bytes = micro().bytes();
    let header = Content::read(&mut Cursor::new(&bytes)).unwrap().tensor_data_offset as usize;
    let ends = (0..40).chain((40..header).step_by(61)).chain((header..bytes.len() - 32).step_by(4_999));
    for end in ends {
        let (variant, text) = refused_bytes(&bytes[..end]);
        assert!(["Truncated", "Weights"].contains(&variant.as_str()), "{end}: {text}");
        assert!(end < header || variant == "Truncated", "{end}: {text}");
    }
}

#[test]
fn what_is_no_gguf_is_said() {
    says(refused_bytes(&[0xff; 64]), "Weights", &["not a GGUF file"]);
    let mut bytes = micro().bytes();
    bytes[4] = 9;
    says(refused_bytes(&bytes), "Weights", &["version 9"]);
    says(with("split.count", Some(Value::U16(3))), "Weights", &["split.count is 3", "merge"]);
}

#[test]
fn lying_counts_are_refused_before_anything_is_allocated() {
    let good = micro().bytes();
    let patched = |at: usize, value: u64| {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    for value in [u64::MAX, 1 << 40, 1 << 29, 1 << 12] {
        for at in [8, 16] {
            says(refused_bytes(&patched(at, value)), "Weights", &["header"]);
        }
        // The length of the first key, and of the list of tokens.
        says(refused_bytes(&patched(24, value)), "Weights", &["header"]);
        let tokens = place_of(&good, "tokenizer.ggml.tokens") + 8;
        if value > 1 << 12 {
            says(refused_bytes(&patched(tokens, value)), "Weights", &["header"]);
        }
        let rows = place_of(&good, "blk.0.ffn_up.weight") + 4;
        let (variant, text) = refused_bytes(&patched(rows, value));
        assert!(["Weights", "Truncated"].contains(&variant.as_str()), "{text}");
        assert!(text.contains("blk.0.ffn_up.weight"), "{text}");
        let offset = rows + 16 + 4;
        let (variant, text) = refused_bytes(&patched(offset, value));
        assert!(["Weights", "Truncated"].contains(&variant.as_str()), "{text}");
    }
    // A list of bytes takes much more memory than the file: up to the bytes that there are.
    let mut file = micro();
    file.set("a.list", Some(Value::Array(vec![Value::U8(7); 1 << 16])));
    let (result, peak) = peak(|| file.bytes().len());
    assert!(peak > result, "the counter counts");
    assert!(file.load().is_ok(), "a key of someone else");
}

#[test]
fn a_file_that_needs_a_zero_alignment_does_not_divide_by_it() {
    says(with("general.alignment", Some(Value::U32(0))), "Weights", &["general.alignment is 0"]);
    for value in [Value::U32(12), Value::U64(1 << 40), text("32")] {
        says(with("general.alignment", Some(value)), "Weights", &["general.alignment"]);
    }
}

#[test]
fn wrong_tensors_are_refused_by_name() {
    says(
        refused(|f| f.tensors.retain(|t| t.0 != "blk.1.ffn_down.weight")),
        "MissingTensors",
        &["blk.1.ffn_down.weight"],
    );
    says(
        refused(|f| {
            let extra = f.tensors[0].clone();
            f.tensors.push(("blk.0.ffn_gate_inp.weight".to_owned(), extra.1, extra.2));
        }),
        "ExtraTensors",
        &["blk.0.ffn_gate_inp.weight"],
    );
    says(
        refused(|f| {
            let twice = f.tensors[0].clone();
            f.tensors.push(twice);
        }),
        "Weights",
        &["two tensors", "token_embd.weight"],
    );
    says(
        refused(|f| {
            let tensor = &mut f.tensor("blk.0.attn_q.weight").1;
            *tensor = tensor.t().unwrap().narrow(0, 0, 16).unwrap();
        }),
        "WrongShape",
        &["blk.0.attn_q.weight", "[16, 32]", "[32, 32]"],
    );
    for value in [f32::NAN, f32::INFINITY] {
        says(
            refused(|f| {
                let values: Vec<f32> = (0..32).map(|i| if i == 3 { value } else { 1.0 }).collect();
                f.tensor("output_norm.weight").1 = Tensor::from_vec(values, 32, &Device::Cpu).unwrap();
            }),
            "NonFinite",
            &["output_norm.weight", "element 3"],
        );
    }
    let wide = MicroShape { hidden: 256, layers: 1, ffn: 256, ..MicroShape::default() };
    let mut file = Gguf::of(&wide, GgmlDType::F32);
    file.tensor("blk.0.ffn_up.weight").2 = GgmlDType::Q8K;
    says(
        refused_bytes(&file.bytes()),
        "WrongDtype",
        &["blk.0.ffn_up.weight", "Q8_K", "Q2_K to Q6_K and MXFP4 are read"],
    );
    let mut bytes = file.bytes();
    let dtype = place_of(&bytes, "blk.0.ffn_up.weight") + 20;
    for (number, name) in [(16_u32, "IQ2_XXS"), (23, "IQ4_XS"), (29, "IQ1_M"), (34, "TQ1_0"), (40, "NVFP4")] {
        bytes[dtype..dtype + 4].copy_from_slice(&number.to_le_bytes());
        says(refused_bytes(&bytes), "WrongDtype", &["blk.0.ffn_up.weight", name]);
    }
    bytes[dtype..dtype + 4].copy_from_slice(&99_u32.to_le_bytes());
    says(refused_bytes(&bytes), "Weights", &["blk.0.ffn_up.weight", "99", "are read"]);
}

#[test]
fn a_bad_config_is_refused_in_the_files_own_keys() {
    for (key, value, words) in [
        ("llama.block_count", None, ["llama.block_count", "missing"]),
        ("llama.context_length", Some(text("long")), ["llama.context_length", "long"]),
        ("llama.embedding_length", Some(Value::U64(1 << 40)), ["llama.embedding_length", "expected"]),
        ("llama.attention.head_count_kv", Some(Value::U32(3)), ["llama.attention.head_count_kv", "no multiple"]),
        (
            "llama.attention.head_count",
            Some(Value::Array(vec![Value::U32(4)])),
            ["llama.attention.head_count", "Array"],
        ),
        ("llama.attention.layer_norm_rms_epsilon", Some(Value::F32(f32::NAN)), ["rms_epsilon", "NaN"]),
        ("llama.rope.dimension_count", Some(Value::U32(4)), ["llama.rope.dimension_count", "4"]),
        ("llama.rope.scaling.type", Some(text("dynamic")), ["llama.rope.scaling", "dynamic"]),
        ("llama.rope.scaling.type", Some(text("yarn")), ["llama.rope.scaling", "factor is missing"]),
        ("llama.rope.scaling.attn_factor", Some(Value::F32(1.5)), ["attn_factor", "not understood"]),
        ("llama.expert_count", Some(Value::U32(8)), ["llama.expert_count", "not understood"]),
        ("llama.attention.sliding_window", Some(Value::U32(64)), ["sliding_window", "not understood"]),
    ] {
        says(with(key, value), "Config", &words);
    }
    let mut zero = micro();
    zero.set("llama.expert_count", Some(Value::U32(0)));
    assert!(zero.load().is_ok(), "zero asks for nothing");
    for value in [Some(text("mamba")), None] {
        let (variant, text) = with("general.architecture", value);
        assert_eq!(variant, "UnknownArchitecture");
        assert!(text.contains("llama, qwen2, qwen3, smollm3, phi3"), "{text}");
    }
    for bad in [vec![1.0_f32; 3], vec![1.0, 1.0, 0.0, 1.0]] {
        let (variant, text) = refused(|f| {
            let divisors = Tensor::from_slice(&bad, bad.len(), &Device::Cpu).unwrap();
            f.tensors.push(("rope_freqs.weight".to_owned(), divisors, GgmlDType::F32));
        });
        assert_eq!(variant, "Config");
        assert!(text.contains("rope_freqs.weight"), "{text}");
    }
}

#[test]
fn a_bad_tokenizer_is_refused_by_key() {
    let list = |all: &[&str]| Some(Value::Array(all.iter().map(|t| text(t)).collect()));
    for (key, value, word) in [
        ("tokenizer.ggml.model", Some(text("llama")), "<0x00>"),
        ("tokenizer.ggml.model", Some(text("t5")), "t5"),
        ("tokenizer.ggml.model", Some(text("bert")), "bert"),
        ("tokenizer.ggml.model", None, "missing"),
        ("tokenizer.ggml.pre", Some(text("klingon")), "understood are"),
        ("tokenizer.ggml.tokens", None, "missing"),
        ("tokenizer.ggml.tokens", list(&["a", "b"]), "token_type has"),
        ("tokenizer.ggml.token_type", Some(text("x")), "list of whole numbers"),
        ("tokenizer.ggml.merges", None, "missing"),
        ("tokenizer.ggml.merges", list(&["ab"]), "no pair"),
        ("tokenizer.ggml.merges", list(&["q zz"]), "zz"),
        ("tokenizer.ggml.bos_token_id", Some(Value::U32(9_999)), "9999"),
        ("tokenizer.ggml.add_bos_token", Some(Value::Bool(true)), "bos_token_id"),
        ("tokenizer.ggml.add_space_prefix", Some(Value::Bool(true)), "add_space_prefix"),
    ] {
        says(with(key, value), "Tokenizer", &[word]);
    }
    says(with("tokenizer.ggml.eot_token_id", Some(Value::U32(9_999))), "Settings", &["9999"]);
    says(with("tokenizer.chat_template", None), "NoTemplate", &["tokenizer.chat_template"]);
    says(
        refused(|f| {
            let (_, Value::Array(tokens)) =
                f.metadata.iter_mut().find(|(key, _)| key.ends_with("ggml.tokens")).unwrap()
            else {
                panic!("a list")
            };
            tokens[9] = tokens[8].clone();
        }),
        "Tokenizer",
        &["token 8 and token 9"],
    );
}

#[test]
fn blocks_of_any_bytes_are_numbers_or_refused() {
    use GgmlDType::{Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    let shape =
        MicroShape { hidden: 256, heads: 4, kv_heads: 2, head_dim: 64, ffn: 256, layers: 1, ..MicroShape::default() };
    let mut random = fastrand::Rng::with_seed(3);
    for dtype in [Q8_0, Q5_0, Q5_1, Q4_0, Q4_1, Q6K, Q5K, Q4K, Q3K, Q2K] {
        let mut file = Gguf::of(&shape, GgmlDType::F32);
        file.tensor("blk.0.ffn_up.weight").2 = dtype;
        let good = file.bytes();
        let content = Content::read(&mut Cursor::new(&good)).unwrap();
        let info = &content.tensor_infos["blk.0.ffn_up.weight"];
        let start = (content.tensor_data_offset + info.offset) as usize;
        let size = 256 * 256 / dtype.block_size() * dtype.type_size();
        for _ in 0..4 {
            let mut bytes = good.clone();
            random.fill(&mut bytes[start..start + size]);
            match load_bytes(&bytes) {
                Ok(_) | Err(ModelError::NonFinite { .. }) => {}
                Err(error) => panic!("{dtype:?}: {error}"),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_damage_to_a_header_panics_or_allocates_wildly(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<[u8; 8]>(), 1_usize..9), 1..4),
        extreme in any::<bool>(),
    ) {
        let mut bytes = micro().bytes();
        let header = Content::read(&mut Cursor::new(&bytes)).unwrap().tensor_data_offset as usize;
        for (at, values, count) in changes {
            let at = at.index(header);
            for (byte, value) in bytes[at..at + count].iter_mut().zip(values) {
                *byte = if extreme { value.wrapping_neg() | 0x80 } else { value };
            }
        }
        let (result, peak) = peak(|| load_bytes(&bytes).map(drop));
        prop_assert!(peak < PEAK_BYTES_MAX, "{} bytes, {:?}", peak, result);
    }
}
