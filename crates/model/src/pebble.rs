//! The built-in model, Pebble.
//!
//! In: the files of `crates/model/pebble`, embedded. Out: a [`Model`]. Deliberately not here: anything that only Pebble does;
//! its files describe it as any directory's would.

use std::path::Path;

use crate::weights::WeightBytes;
use crate::{Model, ModelError, TextFiles};

/// The name that `--model` and clients use.
pub(crate) const NAME: &str = "pebble";

/// Digest of the weights. Sessions are pinned to it, so it changes only with the model.
const WEIGHTS_DIGEST: &str = "2fef98a94b840e7097b99e39fdd806983f59295cd672acf5f62cf1f926bc93d9";

/// Aligned as any element wants it: the file's bytes are read as such where they lie in the binary.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

static WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("../pebble/model.safetensors"));

/// Its text files.
pub(crate) fn text_files() -> TextFiles {
    TextFiles {
        config: include_str!("../pebble/config.json").to_owned(),
        tokenizer: include_str!("../pebble/tokenizer.json").to_owned(),
        generation_config: Some(include_str!("../pebble/generation_config.json").to_owned()),
        chat_template: Some(include_str!("../pebble/chat_template.jinja").to_owned()),
        ..TextFiles::default()
    }
}

/// Loads it.
pub(crate) fn load() -> Result<Model, ModelError> {
    let path = Path::new("built-in/pebble");
    let model = Model::from_memory(path, &text_files(), WeightBytes::Static(&WEIGHTS.0))?;
    let found = model.weights().digest().to_string();
    if found != WEIGHTS_DIGEST {
        let problem = format!("the embedded weights have digest {found}, expected {WEIGHTS_DIGEST}");
        return Err(ModelError::Weights { path: path.to_owned(), problem });
    }
    Ok(model)
}
