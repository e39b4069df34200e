//! A whole GGUF file: header, config, tokenizer, template and tensors.
#![no_main]

use std::sync::LazyLock;

use holdfast_fuzz::{Place, bounded};
use holdfast_model::{Model, ModelSource};
use libfuzzer_sys::fuzz_target;

static PLACE: LazyLock<Place> = LazyLock::new(Place::new);

fuzz_target!(|bytes: &[u8]| {
    let source = ModelSource::File(PLACE.write("model.gguf", bytes));
    drop(bounded(bytes.len(), || Model::load(&source)));
    drop(bounded(bytes.len(), || source.files()));
});
