//! SentencePiece tokenizers in GGUF files, beside SentencePiece itself: `make.py` in this directory made the fixtures. By hand, beside
//! llama.cpp too:
//!
//! ```text
//! HOLDFAST_INDEPENDENT=/tmp/independent cargo test -p holdfast-model --test tokenizers -- --ignored
//! python crates/model/tests/tokenizers/check.py /tmp/independent llama-server
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../gguf/file.rs"]
#[expect(dead_code, reason = "the writer of GGUF files, of which other tests use more")]
mod file;
mod fixture;

use std::fs;
use std::path::PathBuf;

use fixture::{fixture, gguf};
use holdfast_model::random::MicroShape;
use holdfast_model::{LogEnd, Model, Next, Prompt};
use holdfast_types::{Item, Role};
use serde_json::json;

const FIXTURES: [(&str, &str); 2] = [("llama", include_str!("llama.json")), ("gemma", include_str!("gemma.json"))];

/// What a text becomes after the start token.
fn encoded(model: &Model, text: &str) -> Vec<u32> {
    let prompt = Prompt { date: "2026-11-20", ..Prompt::default() };
    let items = [Item::message(Role::User, text)];
    let ids = model.text().render(&prompt, LogEnd::Start, &items, Next::Nothing).unwrap();
    ids[1..ids.len() - 1].to_vec()
}

#[test]
fn tokens_are_those_of_sentence_piece() {
    let mut fixtures = FIXTURES.map(|(name, text)| (name, fixture(text))).to_vec();
    // Newer converters write the spaces of tokens that the user defined as spaces.
    let mut newer = fixtures[1].1.clone();
    let is_defined: Vec<bool> = newer["types"].as_array().unwrap().iter().map(|kind| kind == 4).collect();
    for (token, _) in newer["tokens"].as_array_mut().unwrap().iter_mut().zip(is_defined).filter(|(_, defined)| *defined)
    {
        *token = json!(token.as_str().unwrap().replace('▁', " "));
    }
    fixtures.push(("newer gemma", newer));
    for (name, fixture) in fixtures {
        let model = gguf(&fixture, &MicroShape::default()).load().unwrap();
        // Where both are written alike, an escaped space is no space.
        let is_meant = |text: &str| name != "newer gemma" || !text.contains('▁');
        for (text, ids) in fixture["texts"].as_object().unwrap().iter().filter(|(text, _)| is_meant(text)) {
            let ids: Vec<u32> = ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            assert_eq!(encoded(&model, text), ids, "{name}: {text:?}");
            let bytes: Vec<u8> = ids.iter().flat_map(|id| model.text().token_bytes(*id).to_vec()).collect();
            let prefix = if fixture["add_space_prefix"] == true { " " } else { "" };
            // Escaped spaces cannot be told from spaces; that is the format's.
            assert_eq!(String::from_utf8(bytes).unwrap(), format!("{prefix}{text}").replace('▁', " "), "{name}");
        }
    }
}

#[test]
fn a_space_comes_before_a_text_and_not_inside_of_one() {
    let model = gguf(&fixture(FIXTURES[0].1), &MicroShape::default()).load().unwrap();
    let space = model.text().encode(" a");
    assert_eq!(model.text().encode("a").len(), 1, "text that goes on");
    assert_eq!(encoded(&model, "a"), space, "text that begins");
    let prompt = Prompt { date: "2026-11-20", ..Prompt::default() };
    let two = [Item::message(Role::User, "a"), Item::message(Role::Assistant, "a")];
    let ids = model.text().render(&prompt, LogEnd::Start, &two, Next::Nothing).unwrap();
    assert_eq!(ids, [&[1], space.as_slice(), &[2], &space, &[2]].concat(), "after a special token, text begins anew");
}

#[test]
#[ignore = "writes files for check.py"]
fn write_models_and_texts() {
    let all = PathBuf::from(std::env::var("HOLDFAST_INDEPENDENT").expect("HOLDFAST_INDEPENDENT names a directory"));
    for (name, text) in FIXTURES {
        let fixture = fixture(text);
        let file = gguf(&fixture, &MicroShape::default());
        let model = file.load().unwrap();
        let texts = fixture["texts"].as_object().unwrap().keys();
        let ours: Vec<_> = texts.map(|text| json!({"text": text, "ids": encoded(&model, text)})).collect();
        fs::create_dir_all(&all).unwrap();
        fs::write(all.join(format!("{name}.gguf")), file.bytes()).unwrap();
        fs::write(all.join(format!("{name}.tokens.json")), json!(ours).to_string()).unwrap();
    }
}
