//! What is written is a model: for this project's loader, and in GGUF's own terms for any other.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};
use holdfast_model::{LayerWeights, Model, ModelSource, Reference, RopeConfig, RopeScaling};
use holdfast_model_maker::{Format, MakeError, Shape, make, remake};
use proptest::prelude::{ProptestConfig, any, prop_assert_eq, proptest};
use tempfile::TempDir;

fn micro() -> &'static Shape {
    Shape::named("micro").unwrap()
}

fn made(shape: &Shape, format: Format, seed: u64) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model");
    make(shape, format, seed, &path, &mut |_, _| ()).unwrap();
    (directory, path)
}

fn loaded(shape: &Shape, seed: u64) -> Model {
    let (_directory, path) = made(shape, Format::HfBf16, seed);
    Model::load(&ModelSource::Directory(path)).unwrap()
}

/// Every file by name, or the one file.
fn bytes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    if path.is_file() {
        return BTreeMap::from([(String::new(), fs::read(path).unwrap())]);
    }
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

/// A GGUF file read by candle.
struct Gguf {
    file: File,
    content: Content,
}

impl Gguf {
    fn of(shape: &Shape, format: Format, seed: u64) -> Self {
        let (_directory, path) = made(shape, format, seed);
        let mut file = File::open(path).unwrap();
        let content = Content::read(&mut file).unwrap();
        Self { file, content }
    }

    fn values(&mut self, name: &str) -> Vec<f32> {
        let tensor = self.content.tensor(&mut self.file, name, &Device::Cpu).unwrap();
        tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn number(&self, key: &str) -> u32 {
        self.content.metadata[key].to_u32().unwrap()
    }

    fn texts(&self, key: &str) -> Vec<&str> {
        self.content.metadata[key].to_vec().unwrap().iter().map(|text| text.to_string().unwrap().as_str()).collect()
    }
}

#[test]
fn a_directory_loads_and_answers_without_ending_early() {
    let model = loaded(micro(), 1);
    assert_eq!(model.parameters(), micro().parameters());
    assert_eq!(model.text().stop_tokens(), [0, 2]);
    assert!(model.text().tool_form().is_some());
    let reference = Reference::new(&model).unwrap();
    let mut log = model.text().encode("the quick brown fox jumps over the lazy dog");
    let prompt = log.len();
    for _ in 0..96 {
        let logits = reference.logits(&log).unwrap().pop().unwrap();
        let spread = (logits.iter().map(|l| l * l).sum::<f32>() / logits.len() as f32).sqrt();
        assert!((2.0..4.5).contains(&spread), "logits of spread {spread}");
        assert!(logits[..5].iter().all(|logit| logit.abs() < 0.2), "quiet special tokens");
        log.push((0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32);
    }
    let answer: HashSet<_> = log[prompt..].iter().collect();
    assert!(answer.iter().all(|token| **token > 4), "no special token");
    assert!(answer.len() > 48, "{} different tokens in 96", answer.len());
}

#[test]
fn a_seed_decides_every_byte_of_weights() {
    for format in Format::ALL {
        let files = |seed| bytes(&made(micro(), format, seed).1);
        let (first, again, other) = (files(1), files(1), files(2));
        assert_eq!(first, again, "{format}");
        assert_ne!(first, other, "{format}");
    }
}

#[test]
fn a_target_that_exists_is_kept_unless_told_otherwise() {
    let (_directory, path) = made(micro(), Format::HfBf16, 1);
    let before = bytes(&path);
    let refused = make(micro(), Format::GgufF16, 2, &path, &mut |_, _| ()).unwrap_err();
    assert!(matches!(&refused, MakeError::Exists { .. }) && refused.to_string().contains("--force"));
    assert_eq!(bytes(&path), before);
    remake(micro(), Format::GgufF16, 2, &path, &mut |_, _| ()).unwrap();
    assert!(path.is_file());
}

#[test]
fn progress_ends_at_the_bytes_that_were_promised() {
    for format in Format::ALL {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model");
        let mut heard = Vec::new();
        make(micro(), format, 0, &path, &mut |done, total| heard.push((done, total))).unwrap();
        let all = format.weight_bytes(micro());
        assert_eq!(heard.last(), Some(&(all, all)), "{format}");
        assert!(heard.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let file = if path.is_file() { path } else { path.join("model.safetensors") };
        assert!((all..all + 60_000).contains(&file.metadata().unwrap().len()), "{format}");
    }
}

#[test]
fn gguf_holds_the_same_weights_up_to_rounding() {
    let shape = Shape { tied: false, ..micro().clone() };
    let model = loaded(&shape, 9);
    let weights = model.weights();
    let (q_rows, k_rows) = (rotary_order(4, 16), rotary_order(2, 16));
    for (format, dtype, tolerance) in [
        (Format::GgufF16, GgmlDType::F16, 1e-6),
        // Half a step of the largest weight of a block: 3.5 spreads over 127, over 8.
        (Format::GgufQ8_0, GgmlDType::Q8_0, 0.015),
        (Format::GgufQ4_0, GgmlDType::Q4_0, 0.45),
    ] {
        let mut gguf = Gguf::of(&shape, format, 9);
        let LayerWeights { q, k, v, output, gate, up, down, attention_norm, ffn_norm, .. } = weights.layer(1);
        let expected = [
            ("token_embd", weights.embeddings().values().to_vec(), 1.0),
            ("output", weights.lm_head().values().to_vec(), 3.0 / 8.0),
            ("output_norm", weights.final_norm().to_vec(), 0.0),
            ("blk.1.attn_norm", attention_norm.to_vec(), 0.0),
            ("blk.1.ffn_norm", ffn_norm.to_vec(), 0.0),
            ("blk.1.attn_q", reordered(q.values(), &q_rows), 2.0_f32.sqrt() / 8.0),
            ("blk.1.attn_k", reordered(k.values(), &k_rows), 2.0_f32.sqrt() / 8.0),
            ("blk.1.attn_v", v.values().to_vec(), 1.0 / 8.0),
            ("blk.1.attn_output", output.values().to_vec(), 1.0 / 8.0),
            ("blk.1.ffn_gate", gate.values().to_vec(), 1.0 / 8.0),
            ("blk.1.ffn_up", up.values().to_vec(), 1.0 / 8.0),
            ("blk.1.ffn_down", down.values().to_vec(), 128.0_f32.sqrt().recip()),
        ];
        assert_eq!(gguf.content.tensor_infos.len(), 2 * 9 + 3);
        for (name, expected, spread) in expected {
            let name = format!("{name}.weight");
            let is_norm = name.contains("norm");
            assert_eq!(gguf.content.tensor_infos[&name].ggml_dtype, if is_norm { GgmlDType::F32 } else { dtype });
            let values = gguf.values(&name);
            assert_eq!(values.len(), expected.len(), "{name}");
            let worst = values.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= tolerance * spread, "{format} {name}: off by {worst}");
        }
    }
}

/// For each row of a head in GGUF, where Hugging Face has it: `reshape(heads, 2, dim / 2).swapaxes(1, 2)`.
fn rotary_order(heads: usize, dim: usize) -> Vec<usize> {
    let pairs = |head: usize| (0..dim / 2).flat_map(move |i| [head * dim + i, head * dim + dim / 2 + i]);
    (0..heads).flat_map(pairs).collect()
}

fn reordered(matrix: &[f32], rows: &[usize]) -> Vec<f32> {
    let width = matrix.len() / rows.len();
    rows.iter().flat_map(|row| matrix[row * width..(row + 1) * width].iter().copied()).collect()
}

#[test]
fn gguf_metadata_is_what_llama_cpp_reads() {
    let scaling =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 512.0 };
    let shape = Shape { rope: RopeConfig { theta: 10_000.0, scaling }, ..micro().clone() };
    let mut gguf = Gguf::of(&shape, Format::GgufQ8_0, 0);
    for (key, number) in [
        ("general.file_type", 7),
        ("general.alignment", 32),
        ("llama.block_count", 2),
        ("llama.context_length", 2_048),
        ("llama.embedding_length", 64),
        ("llama.feed_forward_length", 128),
        ("llama.attention.head_count", 4),
        ("llama.attention.head_count_kv", 2),
        ("llama.rope.dimension_count", 16),
        ("llama.vocab_size", 512),
        ("tokenizer.ggml.bos_token_id", 0),
        ("tokenizer.ggml.eos_token_id", 2),
    ] {
        assert_eq!(gguf.number(key), number, "{key}");
    }
    assert_eq!(gguf.texts("tokenizer.ggml.tokens").len(), 512);
    assert_eq!(gguf.texts("tokenizer.ggml.merges")[0], "t h");
    let kinds = gguf.content.metadata["tokenizer.ggml.token_type"].to_vec().unwrap();
    let kinds: Vec<i32> = kinds[..6].iter().map(|kind| kind.to_i32().unwrap()).collect();
    assert_eq!(kinds, [3, 3, 3, 4, 4, 1]);
    assert!(
        matches!(&gguf.content.metadata["tokenizer.chat_template"], Value::String(text) if text.contains("im_start"))
    );
    let factors = gguf.values("rope_freqs.weight");
    assert_eq!((factors.len(), factors[0], factors[7]), (8, 1.0, 8.0));
    assert!(!gguf.content.tensor_infos.contains_key("output.weight"), "tied");
}

#[test]
fn qwen3_keeps_the_order_of_rows_and_norms_its_heads() {
    let shape = Shape::named("micro-qwen3").unwrap();
    let (_directory, path) = made(shape, Format::HfBf16, 3);
    let hf = candle_core::safetensors::load(path.join("model.safetensors"), &Device::Cpu).unwrap();
    let mut gguf = Gguf::of(shape, Format::GgufF16, 3);
    assert_eq!(gguf.number("qwen3.attention.key_length"), 32);
    assert_eq!(gguf.content.tensor_infos.len(), hf.len());
    for (ours, theirs) in
        [("attn_q", "self_attn.q_proj"), ("attn_k", "self_attn.k_proj"), ("attn_q_norm", "self_attn.q_norm")]
    {
        let expected = hf[&format!("model.layers.1.{theirs}.weight")].to_dtype(candle_core::DType::F32).unwrap();
        let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
        let values = gguf.values(&format!("blk.1.{ours}.weight"));
        assert!(values.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{ours}");
    }
}

#[test]
fn prose_becomes_tokens_of_a_few_characters() {
    let prose = "the agent reads the results of the last tool call and writes a short answer for the user. it then waits \
        for more work, while the state of the conversation stays in memory until somebody asks the next question about it";
    for name in ["llama-22m", "qwen3-0.6b"] {
        let vocab_size = Shape::named(name).unwrap().vocab_size;
        let shape = Shape { vocab_size, hidden: 32, heads: 2, kv_heads: 1, layers: 1, ffn: 32, ..micro().clone() };
        let model = loaded(&shape, 0);
        let per_token = prose.len() as f64 / model.text().encode(prose).len() as f64;
        assert!((2.5..4.0).contains(&per_token), "{name}: {per_token} characters per token");
        assert!(!model.text().token_bytes(vocab_size - 1).is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_text_survives_the_tokenizer(texts in proptest::collection::vec(any::<String>(), 16)) {
        static MODEL: LazyLock<Model> = LazyLock::new(|| loaded(micro(), 0));
        let model = &*MODEL;
        for text in texts {
            let tokens = model.text().encode(&text);
            let bytes: Vec<u8> = tokens.iter().flat_map(|token| model.text().token_bytes(*token).to_vec()).collect();
            prop_assert_eq!(bytes, text.into_bytes());
        }
    }
}
