//! Writes what the targets start from: the files of micro models, each in the form that its target reads.
//!
//! In: the directory of the corpora, `corpus` by default. Out: files in a directory for each target. Deliberately not here: what the
//! fuzzer finds from there.

#[path = "../../crates/model/tests/gguf/file.rs"]
#[expect(dead_code, reason = "the tests' own writer of GGUF files, of which the tests use more")]
mod file;
#[path = "../../crates/model/tests/tokenizers/fixture.rs"]
mod fixture;

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use holdfast_fuzz::{Place, micro};
use holdfast_model::random::{MicroFamily, MicroRope, MicroShape};

fn main() {
    let corpora = PathBuf::from(std::env::args_os().nth(1).unwrap_or_else(|| "corpus".into()));
    let write = |target: &str, name: &str, bytes: &[u8]| {
        let directory = corpora.join(target);
        fs::create_dir_all(&directory).expect("a corpus");
        fs::write(directory.join(name), bytes).expect("a seed");
    };
    for (name, shape) in shapes() {
        for (kind, dtype) in [("f32", GgmlDType::F32), ("f16", GgmlDType::F16)] {
            write("gguf", &format!("{name}-{kind}"), &file::Gguf::of(&shape, dtype).bytes());
        }
        let place = Place::new();
        shape.write(place.path()).expect("a micro model");
        let read = |name: &str| fs::read(place.path().join(name)).expect("a file of the micro model");
        let with_byte = |byte: u8, bytes: &[u8]| [&[byte], bytes].concat();
        let weights = read("model.safetensors");
        write("safetensors", &name, &with_byte(0, &weights));
        write("safetensors", &format!("{name}-framed"), &with_byte(1, &framed(&weights)));
        write("config", &name, &with_byte(0, &read("config.json")));
        write("tokenizer", &name, &read("tokenizer.json"));
        write("template", &name, &read("chat_template.jinja"));
        write("config", &format!("{name}-generation"), &with_byte(3, &read("generation_config.json")));
    }
    for (which, text) in [
        (
            3,
            r#"{"temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1, "eos_token_id": 2, "do_sample": true, "max_new_tokens": 9}"#,
        ),
        (
            4,
            r#"{"eos_token": {"content": "<|im_end|>"}, "bos_token": null, "chat_template": [{"name": "default", "template": "{{ messages }}"}]}"#,
        ),
        (5, r#"{"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>"}}"#),
        (7, r#"{"metadata": {"total_size": 1}, "weight_map": {"model.norm.weight": "model.safetensors"}}"#),
    ] {
        write("config", &format!("text-{which}"), &[&[which], text.as_bytes()].concat());
    }
    for name in ["llama", "gemma"] {
        let path = format!("{}/../crates/model/tests/tokenizers/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let text = fs::read_to_string(path).expect("a fixture");
        write("gguf", &format!("sentencepiece-{name}"), &fixture::gguf(&fixture::fixture(&text), &micro()).bytes());
    }
    let form = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/model/pebble/tool_call_form.json");
    write("config", "form", &[&[6][..], &fs::read(form).expect("Pebble's form")].concat());
    let templates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/model/tests/templates");
    for entry in fs::read_dir(templates).expect("the tests' templates") {
        let path = entry.expect("a template").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        write("template", &name, &fs::read(path).expect("a template"));
    }
}

/// Micro models of every family, so small that a mutation is likely to meet something that matters.
fn shapes() -> Vec<(String, MicroShape)> {
    use MicroFamily::{Gemma2, Gemma3, GptOss, Llama, Mistral, Phi3, Qwen2, Qwen3, SmolLm3};
    let families = [Llama, Mistral, Qwen2, Qwen3, SmolLm3, Phi3, Gemma2, Gemma3, GptOss];
    let plain = families.map(|family| (format!("{family:?}"), MicroShape { family, window: Some(9), ..micro() }));
    let stretched = [(Llama, MicroRope::Llama3), (Qwen2, MicroRope::Yarn), (Phi3, MicroRope::LongRope)]
        .map(|(family, rope)| (format!("{family:?}-{rope:?}"), MicroShape { family, rope, tied: false, ..micro() }));
    let packed = MicroShape { family: GptOss, packed: true, hidden: 32, ffn: 32, experts: 2, ..micro() };
    plain.into_iter().chain(stretched).chain([("packed".to_owned(), packed)]).collect()
}

/// A safetensors file as the target `safetensors` frames it: the header, a zero byte, the data.
fn framed(file: &[u8]) -> Vec<u8> {
    let length = u64::from_le_bytes(*file.first_chunk().expect("a length")) as usize;
    let (header, data) = file[8..].split_at(length);
    [header, &[0], data].concat()
}
