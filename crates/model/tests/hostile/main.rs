//! Files that mean harm: each is refused with the key, the tensor or the bound in the message, and none takes more memory than
//! `docs/models.md` allows ("Hostile files"). A binary of its own, since it counts every allocation.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../gguf/counting.rs"]
mod counting;

use std::fs::{self, File};
use std::path::Path;

use counting::peak;
use holdfast_model::random::MicroShape;
use holdfast_model::{DecoderConfig, Model, ModelError, ModelSource, ModelText, TextFiles};
use holdfast_types::Digest;

/// Bytes that any load may hold.
const BASE_BYTES: usize = 64 << 20;
/// Bytes that a rendering may hold besides.
const TEMPLATE_BYTES: usize = 256 << 20;
/// Bytes for each byte of text, or of the header of a file of tensors.
const BYTES_PER_BYTE: usize = 128;

/// What refusing says, having held no more than allowed for so many bytes.
#[track_caller]
fn refused<T>(input: usize, more: usize, work: impl FnOnce() -> Result<T, ModelError>) -> String {
    let (result, held) = peak(|| work().map(drop));
    let allowed = BASE_BYTES + more + BYTES_PER_BYTE * input;
    let told = result.as_ref().err().map(ModelError::to_string);
    assert!(held <= allowed, "{held} bytes of {allowed}: {told:.300?}");
    told.expect("a refusal")
}

fn micro() -> TextFiles {
    MicroShape::default().text_files()
}

fn text(files: &TextFiles) -> Result<ModelText, ModelError> {
    ModelText::new(Path::new("micro"), files, 278, 512, Digest([0; 32]))
}

/// What loading the micro model's directory says with one file replaced.
#[track_caller]
fn with_file(name: &str, bytes: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    MicroShape::default().write(directory.path()).unwrap();
    fs::write(directory.path().join(name), bytes).unwrap();
    refused(bytes.len(), 0, || Model::load(&ModelSource::Directory(directory.path().to_owned())))
}

/// JSON of many values in few bytes.
fn swarms() -> [String; 4] {
    const BYTES: usize = 4 << 20;
    [
        format!("[{}0]", "0,".repeat(BYTES / 2)),
        format!("[{}[]]", "[],".repeat(BYTES / 3)),
        format!("[{}\"\"]", "\"\",".repeat(BYTES / 3)),
        format!("{{{}\"\":0}}", (0..BYTES / 16).map(|i| format!("\"{i:08}\":0,")).collect::<String>()),
    ]
}

#[test]
fn a_swarm_of_values_takes_no_more_than_its_share() {
    for swarm in swarms() {
        let wrapped = format!("{{\"hidden_act\":{swarm}}}");
        refused(wrapped.len(), 0, || DecoderConfig::parse(&wrapped, Path::new("config.json")));
        let mut files = micro();
        files.generation_config = Some(format!("{{\"temperature\":{swarm}}}"));
        refused(wrapped.len(), 0, || text(&files));
        let mut files = micro();
        files.tokenizer = format!(
            "{{\"decoder\":{{\"type\":\"ByteLevel\"}},\"model\":{{\"type\":\"BPE\",\"vocab\":{swarm},\"merges\":{swarm}}}}}"
        );
        refused(files.tokenizer.len(), 0, || text(&files));
        let index = format!("{{\"weight_map\":{swarm}}}");
        with_file("model.safetensors.index.json", index.as_bytes());
        let mut safetensors = (swarm.len() as u64).to_le_bytes().to_vec();
        safetensors.extend(swarm.as_bytes());
        with_file("model.safetensors", &safetensors);
    }
}

#[test]
fn deep_json_is_refused_and_overflows_nothing() {
    for deep in ["[".repeat(100_000), "{\"a\":".repeat(100_000), format!("{}{}", "[".repeat(300), "]".repeat(300))] {
        let wrapped = format!("{{\"hidden_act\":{deep}}}");
        let said = refused(wrapped.len(), 0, || DecoderConfig::parse(&wrapped, Path::new("config.json")));
        assert!(said.contains("config.json"), "{said}");
        for name in [
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
            "special_tokens_map.json",
            "tool_call_form.json",
            "model.safetensors.index.json",
        ] {
            let said = with_file(name, wrapped.as_bytes());
            assert!(said.contains(name), "{name}: {said}");
        }
    }
}

#[test]
fn files_beyond_their_bound_are_not_read() {
    for (name, bytes) in [
        ("config.json", 9_u64 << 20),
        ("tokenizer.json", 65 << 20),
        ("tokenizer_config.json", 1 << 40),
        ("generation_config.json", 9 << 20),
        ("chat_template.jinja", 9 << 20),
        ("model.safetensors.index.json", 33 << 20),
        ("B3SUMS", 9 << 20),
    ] {
        let directory = tempfile::tempdir().unwrap();
        MicroShape::default().write(directory.path()).unwrap();
        // A file with a hole takes no place on the disk.
        File::create(directory.path().join(name)).unwrap().set_len(bytes).unwrap();
        let said = refused(0, 0, || Model::load(&ModelSource::Directory(directory.path().to_owned())));
        assert!(said.contains(name) && said.contains("more than"), "{name}: {said}");
    }
}

#[test]
fn shards_do_not_lead_out_of_their_directory() {
    let outside = tempfile::tempdir().unwrap();
    MicroShape::default().write(outside.path()).unwrap();
    for shard in ["../model.safetensors", "/etc/passwd", "a/../../b", "..", "a\\b", "", "a\u{0}b"] {
        let index = serde_json::json!({"weight_map": {"model.norm.weight": shard}}).to_string();
        let said = with_file("model.safetensors.index.json", index.as_bytes());
        assert!(said.contains("weight_map") && said.contains("model.norm.weight"), "{shard:?}: {said}");
    }
}

#[test]
fn links_of_a_hub_cache_are_followed() {
    let cache = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (cache.path().join("blobs"), cache.path().join("snapshots/abc"));
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(&blobs).unwrap();
    MicroShape::default().write(&blobs).unwrap();
    for entry in fs::read_dir(&blobs).unwrap() {
        let name = entry.unwrap().file_name();
        std::os::unix::fs::symlink(Path::new("../../blobs").join(&name), snapshot.join(&name)).unwrap();
    }
    Model::load(&ModelSource::at(cache.path()).unwrap()).unwrap();
}

#[test]
fn text_that_is_no_utf_8_is_refused() {
    for name in ["config.json", "tokenizer.json", "chat_template.jinja"] {
        let said = with_file(name, b"{\"a\": \"\xff\xfe\"}");
        assert!(said.contains(name) && said.contains("UTF-8"), "{said}");
    }
}

#[test]
fn templates_that_grow_or_never_end_are_refused_by_name() {
    let say = "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{% endfor %}";
    for bomb in [
        "{{ 'x' * 10**9 }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='0123456789') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=['a']) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | join }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}",
    ] {
        let mut files = micro();
        files.chat_template = Some(format!("{bomb}{say}"));
        let said = refused(bomb.len(), TEMPLATE_BYTES, || text(&files));
        assert!(said.contains("chat template \"default\""), "{bomb}: {said}");
    }
    let mut files = micro();
    files.chat_template = Some("{{ x }}".repeat(1 << 20));
    assert!(refused(7 << 20, 0, || text(&files)).contains("at most"));
}

/// A GGUF file that is only a header: keys as they are given, and so many tensors that are not there.
fn gguf(keys: &[(&str, Vec<u8>)], tensors: u64) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(tensors.to_le_bytes());
    bytes.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        bytes.extend((key.len() as u64).to_le_bytes());
        bytes.extend(key.as_bytes());
        bytes.extend(value);
    }
    bytes
}

#[track_caller]
fn gguf_says(bytes: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.gguf");
    fs::write(&path, bytes).unwrap();
    refused(bytes.len(), 0, || Model::load(&ModelSource::File(path)))
}

#[test]
fn lists_of_a_gguf_file_take_no_more_than_their_share() {
    const COUNT: u64 = 1 << 20;
    let list = |kind: u32, element: &[u8]| {
        let mut value = 9_u32.to_le_bytes().to_vec();
        value.extend(kind.to_le_bytes());
        value.extend(COUNT.to_le_bytes());
        value.extend(element.repeat(COUNT as usize));
        value
    };
    let architecture = [8_u32.to_le_bytes().as_slice(), &5_u64.to_le_bytes(), b"llama"].concat();
    for key in [
        "a.list",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.scores",
        "tokenizer.ggml.token_type",
    ] {
        for value in [list(8, &[0; 8]), list(0, &[7]), list(6, &[0; 4]), list(12, &[0; 8])] {
            gguf_says(&gguf(&[("general.architecture", architecture.clone()), (key, value)], 0));
        }
    }
    let nested = [9_u32, 9].map(u32::to_le_bytes).concat();
    assert!(gguf_says(&gguf(&[("a.list", [nested, vec![0; 64]].concat())], 0)).contains("a.list"));
    let many: Vec<_> = (0..60_000).map(|i| format!("k{i}")).collect();
    let many: Vec<_> = many.iter().map(|key| (key.as_str(), vec![0, 0, 0, 0, 1])).collect();
    gguf_says(&gguf(&many, 0));
}

#[test]
fn names_of_a_gguf_file_are_text_and_there_once() {
    let number = vec![4, 0, 0, 0, 1, 0, 0, 0];
    let twice = gguf(&[("a.key", number.clone()), ("a.key", number.clone())], 0);
    assert!(gguf_says(&twice).contains("key a.key is there twice"));
    for name in ["", "a\0b"] {
        assert!(gguf_says(&gguf(&[(name, number.clone())], 0)).contains("a key"));
    }
    let text = [8_u32.to_le_bytes().as_slice(), &2_u64.to_le_bytes(), b"\xff\xfe"].concat();
    let said = gguf_says(&gguf(&[("a.text", text)], 0));
    assert!(said.contains("a.text") && said.contains("UTF-8"), "{said}");
    assert!(gguf_says(&gguf(&[], u64::MAX)).contains("tensors"));
}
