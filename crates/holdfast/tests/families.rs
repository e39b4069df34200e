//! Every family of models, and every type of element of a GGUF file, through `holdfast chat`: what it answers is what the reference forward
//! says, greedily. For a GGUF file that is the reference of the Hugging Face form of the same model, whose weights candle rounded.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../model/tests/gguf/file.rs"]
#[allow(dead_code, reason = "the writer of GGUF files, of which the model crate's tests use more")]
mod gguf;
mod support;

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, safetensors};
use holdfast_model::random::{MicroDtype, MicroFamily, MicroRope, MicroShape};
use holdfast_model::{LogEnd, Model, ModelSource, Next, Prompt, Reference};
use holdfast_types::{Item, Role};
use serde_json::{Value, json};

use gguf::Gguf;
use support::process::{command, finished};
use support::{Home, SOON};

/// Tokens that are compared.
const TOKENS: usize = 60;
/// Random models that are tried; many say nothing that a terminal shows, or hesitate.
const SEEDS: u64 = 40;
/// By how much a logit leads where the choice is clear: far more than two orders of summation differ.
const LEAD: f32 = 1e-4;

/// One micro model of each family, with what is its own.
fn shapes() -> Vec<MicroShape> {
    let of = |family| MicroShape { family, dtype: MicroDtype::Bf16, tied: false, ..MicroShape::default() };
    vec![
        of(MicroFamily::Llama),
        MicroShape { rope: MicroRope::Llama3, dtype: MicroDtype::F32, ..of(MicroFamily::Llama) },
        MicroShape { window: Some(9), ..of(MicroFamily::Mistral) },
        of(MicroFamily::Qwen2),
        MicroShape { rope: MicroRope::Yarn, ..of(MicroFamily::Qwen3) },
        MicroShape { window: Some(9), layers: 4, ..of(MicroFamily::SmolLm3) },
        MicroShape { rope: MicroRope::LongRope, rotary_share: 0.5, ..of(MicroFamily::Phi3) },
        MicroShape { window: Some(9), ..of(MicroFamily::Gemma2) },
        MicroShape { window: Some(9), layers: 3, ..of(MicroFamily::Gemma3) },
        MicroShape { window: Some(9), ..of(MicroFamily::GptOss) },
        MicroShape { window: Some(9), packed: true, ffn: 64, ..of(MicroFamily::GptOss) },
    ]
}

/// One micro model of each family that GGUF files hold, each with another type of element.
fn gguf_shapes() -> Vec<(MicroShape, GgmlDType)> {
    let of = |family| MicroShape { family, tied: false, hidden: 64, head_dim: 16, ffn: 64, ..MicroShape::default() };
    // Rows that are whole blocks of 256.
    let large = |family| MicroShape { hidden: 256, head_dim: 64, ffn: 256, layers: 1, ..of(family) };
    vec![
        (MicroShape { rope: MicroRope::Llama3, ..large(MicroFamily::Llama) }, GgmlDType::Q4K),
        (large(MicroFamily::Mistral), GgmlDType::Q5K),
        (of(MicroFamily::Qwen2), GgmlDType::Q8_0),
        (large(MicroFamily::Qwen3), GgmlDType::Q6K),
        (MicroShape { layers: 4, ..of(MicroFamily::SmolLm3) }, GgmlDType::Q4_0),
        (
            MicroShape { rope: MicroRope::LongRope, rotary_share: 0.5, window: Some(9), ..of(MicroFamily::Phi3) },
            GgmlDType::F16,
        ),
        (MicroShape { window: Some(9), ..of(MicroFamily::Gemma2) }, GgmlDType::BF16),
        (MicroShape { window: Some(9), layers: 3, ..of(MicroFamily::Gemma3) }, GgmlDType::F32),
        // The experts are MXFP4.
        (
            MicroShape { rope: MicroRope::Yarn, window: Some(9), packed: true, ..of(MicroFamily::GptOss) },
            GgmlDType::Q8_0,
        ),
    ]
}

#[test]
fn every_family_answers_as_its_reference() {
    for shape in shapes() {
        let home = Home::new();
        let directory = home.path().join("model");
        let (_, expected) = clear(&shape, &directory, |shape| shape.write(&directory).unwrap());
        let said = chat(&home, &directory);
        assert!(letters(&said).contains(&expected), "{:?}: {expected}\n{said}", shape.family);
    }
}

#[test]
fn every_gguf_file_answers_as_its_reference() {
    for (shape, dtype) in gguf_shapes() {
        let home = Home::new();
        let (directory, path) = (home.path().join("model"), home.path().join("model.gguf"));
        let (shape, expected) = clear(&shape, &directory, |shape| write_rounded(shape, dtype, &directory));
        fs::write(&path, Gguf::of(&shape, dtype).bytes()).unwrap();
        let said = chat(&home, &path);
        assert!(letters(&said).contains(&expected), "{:?} as {dtype:?}: {expected}\n{said}", shape.family);
    }
}

/// The first of the random models whose answer can be compared, as written into the directory, and its answer.
fn clear(shape: &MicroShape, directory: &Path, write: impl Fn(&MicroShape)) -> (MicroShape, String) {
    fs::create_dir(directory).unwrap();
    (0..SEEDS)
        .map(|seed| MicroShape { seed, ..shape.clone() })
        .find_map(|shape| {
            write(&shape);
            let expected = letters(&reference(directory)?);
            (expected.len() > TOKENS / 6).then_some((shape, expected))
        })
        .unwrap_or_else(|| panic!("{:?}: no seed whose model says enough to compare", shape.family))
}

/// The same model as its GGUF file: what the file does not tell is the family's, and matrices are what is left of them.
fn write_rounded(shape: &MicroShape, dtype: GgmlDType, directory: &Path) {
    shape.write(directory).unwrap();
    let path = directory.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    match shape.family {
        MicroFamily::SmolLm3 => config["no_rope_layer_interval"] = json!(4),
        MicroFamily::GptOss => config["swiglu_limit"] = json!(7.0),
        _ => {}
    }
    fs::write(&path, config.to_string()).unwrap();
    let path = directory.join("model.safetensors");
    let mut tensors: HashMap<_, _> = safetensors::load(&path, &Device::Cpu).unwrap();
    for tensor in tensors.values_mut().filter(|tensor| tensor.rank() == 2 && tensor.dtype() == DType::F32) {
        *tensor = QTensor::quantize(tensor, dtype).unwrap().dequantize(&Device::Cpu).unwrap();
    }
    safetensors::save(&tensors, &path).unwrap();
}

/// The reference's greedy answer to "Hello", if every choice is clear.
fn reference(directory: &Path) -> Option<String> {
    let model = Model::load(&ModelSource::Directory(directory.to_owned())).unwrap();
    let (text, reference) = (model.text(), Reference::new(&model).unwrap());
    let mut log =
        text.render(&Prompt::default(), LogEnd::Start, &[Item::message(Role::User, "Hello")], Next::Generate).unwrap();
    let begun = log.len();
    while log.len() < begun + TOKENS {
        let logits = reference.logits(&log).unwrap();
        let last = logits.last().unwrap();
        let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        let is_led = |(id, logit): (usize, &f32)| id == best || logit + LEAD < last[best];
        if !last.iter().enumerate().all(is_led) {
            return None;
        }
        if text.stop_tokens().contains(&(best as u32)) {
            break;
        }
        log.push(best as u32);
    }
    let bytes: Vec<u8> = log[begun..].iter().flat_map(|token| text.token_bytes(*token).to_vec()).collect();
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn chat(home: &Home, model: &Path) -> String {
    let input = home.path().join("input.txt");
    fs::write(&input, "Hello\n").unwrap();
    let mut command = command();
    command.args(["chat", "--data-dir", home.data().to_str().unwrap(), "--model", model.to_str().unwrap()]);
    command.stdin(File::open(&input).unwrap());
    let output = finished(command, SOON);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a terminal shows of a text, whatever becomes of control characters and broken letters there.
fn letters(text: &str) -> String {
    text.chars().filter(|letter| letter.is_ascii_graphic()).collect()
}
