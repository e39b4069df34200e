//! GGUF files: a whole model in one file, as llama.cpp's converters write it.
//!
//! In: a path. Out: [`Parts`]: the decoder's config, the tensors where they lie, and the text files that a directory in Hugging
//! Face layout would have, so that one path reads both forms. Split files, other tokenizers than BPE, and architectures
//! without a row in the table are refused by name. Deliberately not here: turning tensors to f32 (`weights`).
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod config;
mod container;
mod header;
mod metadata;
mod pre_tokenizers;
mod tokenizer;
mod vocabulary;

use std::path::Path;

use crate::{DecoderConfig, GgufForm, ModelError, TextFiles};
pub(crate) use config::ROPE_TENSORS;
pub(crate) use container::{READ, Tensors};

/// What a GGUF file holds.
pub(crate) struct Parts {
    pub(crate) config: DecoderConfig,
    pub(crate) form: &'static GgufForm,
    pub(crate) tensors: Tensors,
    pub(crate) text: TextFiles,
}

/// Reads the header and maps the rest.
///
/// # Errors
/// The [`ModelError`] that names the key or the tensor that is wrong.
pub(crate) fn read(path: &Path) -> Result<Parts, ModelError> {
    let (metadata, tensors) = container::open(path)?;
    let (config, form, json) = config::read(path, &metadata, &tensors)?;
    let mut text = tokenizer::read(path, &metadata)?;
    text.config = json;
    Ok(Parts { config, form, tensors, text })
}
