//! A `tokenizer.json`: read, and used on texts that tokenizers trip over.
#![no_main]

use std::path::Path;

use holdfast_fuzz::{bounded, micro_texts};
use holdfast_model::ModelText;
use holdfast_types::Digest;
use libfuzzer_sys::fuzz_target;

const TEXTS: &[&str] = &["", " ", "\0", "  the user's\t\n\n", "é 😀 <tool_call>", "\u{feff}▁▁<0x0A>", "12345 ' ' '"];

fuzz_target!(|json: &str| {
    let mut files = micro_texts();
    files.tokenizer = json.to_owned();
    let loaded = bounded(json.len(), || ModelText::new(Path::new("micro"), &files, 278, 512, Digest([0; 32])));
    let Ok(text) = loaded else { return };
    for plain in TEXTS {
        for id in bounded(json.len(), || text.encode(plain)) {
            assert!(id < text.vocab_size(), "token {id}");
            assert!(text.special_text(id).is_none(), "{plain:?} became the special token {id}");
            text.token_bytes(id);
        }
    }
});
