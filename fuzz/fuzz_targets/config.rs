//! The JSON files beside the weights. The first byte says which one the rest is.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use holdfast_fuzz::{Place, bounded, micro_texts};
use holdfast_model::{DecoderConfig, Model, ModelSource, ModelText};
use holdfast_types::Digest;
use libfuzzer_sys::fuzz_target;

static PLACE: LazyLock<Place> = LazyLock::new(Place::with_micro);

fuzz_target!(|bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut files = micro_texts();
    match which % 8 {
        0..3 => {
            let config = bounded(text.len(), || DecoderConfig::parse(text, Path::new("config.json")));
            if let Ok(config) = config {
                // Names and shapes of every tensor, and what is made of them, are the config's own size at most.
                assert!(config.layers.len() <= 4_096, "{} layers", config.layers.len());
                bounded(text.len(), || (config.tensors(), config.inverse_frequencies()));
            }
            return;
        }
        3 => files.generation_config = Some(text.to_owned()),
        4 => files.tokenizer_config = Some(text.to_owned()),
        5 => files.special_tokens_map = Some(text.to_owned()),
        6 => files.tool_call_form = Some(text.to_owned()),
        _ => {
            PLACE.write("model.safetensors.index.json", bytes);
            let source = ModelSource::Directory(PLACE.path().to_owned());
            drop(bounded(bytes.len() + (1 << 16), || Model::load(&source)));
            return;
        }
    }
    drop(bounded(text.len(), || ModelText::new(Path::new("micro"), &files, 278, 512, Digest([0; 32]))));
});
