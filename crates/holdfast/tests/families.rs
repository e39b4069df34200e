//! Every family of models through `holdfast chat`: what it answers is what the reference forward says, greedily.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::{self, File};
use std::path::Path;

use holdfast_model::random::{MicroDtype, MicroFamily, MicroRope, MicroShape};
use holdfast_model::{LogEnd, Model, ModelSource, Next, Prompt, Reference};
use holdfast_types::{Item, Role};

use support::process::{command, finished};
use support::{Home, SOON};

/// Tokens that are compared.
const TOKENS: usize = 60;
/// Random models that are tried; many say nothing that a terminal shows.
const SEEDS: u64 = 30;

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

#[test]
fn every_family_answers_as_its_reference() {
    for shape in shapes() {
        let home = Home::new();
        let directory = home.path().join("model");
        fs::create_dir(&directory).unwrap();
        let expected = (0..SEEDS)
            .map(|seed| {
                MicroShape { seed, ..shape.clone() }.write(&directory).unwrap();
                letters(&reference(&directory))
            })
            .find(|expected| expected.len() > TOKENS / 6)
            .expect("a seed whose model says enough to compare");
        let said = chat(&home, &directory);
        assert!(letters(&said).contains(&expected), "{:?}: {expected}\n{said}", shape.family);
    }
}

/// The reference's greedy answer to "Hello".
fn reference(directory: &Path) -> String {
    let model = Model::load(&ModelSource::Directory(directory.to_owned())).unwrap();
    let (text, reference) = (model.text(), Reference::new(&model).unwrap());
    let mut log =
        text.render(&Prompt::default(), LogEnd::Start, &[Item::message(Role::User, "Hello")], Next::Generate).unwrap();
    let begun = log.len();
    while log.len() < begun + TOKENS {
        let logits = reference.logits(&log).unwrap();
        let last = logits.last().unwrap();
        let best = (0..last.len()).rev().max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap() as u32;
        if text.stop_tokens().contains(&best) {
            break;
        }
        log.push(best);
    }
    let bytes: Vec<u8> = log[begun..].iter().flat_map(|token| text.token_bytes(*token).to_vec()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
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
