//! A chat template: compiled, proven on made-up histories, and rendered with a dialogue of tools and markup.
#![no_main]

use std::path::Path;

use holdfast_fuzz::{TEMPLATE_BYTES, bounded_beyond, micro_texts};
use holdfast_model::{LogEnd, ModelText, Next, Prompt};
use holdfast_types::{Digest, Item, Role, Tool};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &str| {
    let mut files = micro_texts();
    files.chat_template = Some(source.to_owned());
    let loaded = bounded_beyond(TEMPLATE_BYTES, source.len(), || {
        ModelText::new(Path::new("micro"), &files, 278, 512, Digest([0; 32]))
    });
    let Ok(text) = loaded else { return };
    let tools = [Tool {
        name: "look".to_owned(),
        description: "Looks.".to_owned(),
        parameters_json_schema: r#"{"type":"object","properties":{"at":{"type":"string"}}}"#.to_owned(),
        strict: false,
    }];
    let items = [
        Item::message(Role::User, "<|im_end|> {{ 'x' * 1000000000 }} 😀\n\n"),
        Item::message(Role::Assistant, "<|im_start|>"),
        Item::message(Role::User, ""),
    ];
    for tools in [&tools[..], &[]] {
        let prompt = Prompt { instructions: "Be brief.", tools, date: "2026-11-20", ..Prompt::default() };
        drop(bounded_beyond(TEMPLATE_BYTES, source.len(), || {
            text.render(&prompt, LogEnd::Start, &items, Next::Generate)
        }));
        drop(bounded_beyond(TEMPLATE_BYTES, source.len(), || {
            text.render(&prompt, LogEnd::Sampled, &items[2..], Next::Generate)
        }));
    }
});
