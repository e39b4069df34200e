//! Metadata to text files: the tokenizer, its special tokens and the chat template of a GGUF file.
//!
//! In: the keys `tokenizer.*` and `general.sampling.*`. Out: [`TextFiles`], as a directory in Hugging Face layout would hold
//! them. Byte-level BPE and SentencePiece's BPE with bytes to fall back on are understood. A file without a chat template is
//! refused later, as a directory is: nothing is guessed. Deliberately not here: the tokens themselves (`vocabulary`), how text is
//! split (`pre_tokenizers`), and reading a `tokenizer.json`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::metadata::Metadata;
use super::pre_tokenizers::{PreTokenizer, byte_level};
use super::vocabulary::{Merge, Vocabulary, merges};
use crate::{ModelError, TextFiles};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADD_SPACE: &str = "tokenizer.ggml.add_space_prefix";
const REMOVE_SPACES: &str = "tokenizer.ggml.remove_extra_whitespaces";
const CHARACTERS: &str = "tokenizer.ggml.precompiled_charsmap";
const TEMPLATE: &str = "tokenizer.chat_template";
const NAME: &str = "general.name";

/// Keys of tokens that end a turn.
const ENDS: &[&str] = &["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// Keys of sampling, and of `generation_config.json`.
const SAMPLING: &[(&str, &str)] = &[
    ("general.sampling.temp", "temperature"),
    ("general.sampling.top_k", "top_k"),
    ("general.sampling.top_p", "top_p"),
    ("general.sampling.min_p", "min_p"),
    ("general.sampling.penalty_repeat", "repetition_penalty"),
];

/// Special tokens of Phi-3 that leave the white space after them alone.
const PHI3_KEEP_SPACE: &[&str] = &["<unk>", "<s>", "<|endoftext|>"];

/// Reads the text files, all but the config. `path` is for messages.
///
/// # Errors
/// [`ModelError::Tokenizer`] with the key.
pub(super) fn read(path: &Path, metadata: &Metadata) -> Result<TextFiles, ModelError> {
    files(metadata).map_err(|problem| ModelError::Tokenizer { path: path.to_owned(), problem })
}

fn files(metadata: &Metadata) -> Result<TextFiles, String> {
    let vocabulary = Vocabulary::read(metadata)?;
    let (tokenizer, adds_bos) = match metadata.text(MODEL)? {
        Some("gpt2") => byte_level_bpe(metadata, &vocabulary)?,
        Some("llama") => (sentence_piece(metadata, &vocabulary)?, true),
        other => {
            let other = other.unwrap_or("missing");
            return Err(format!(
                "{MODEL} is {other:?}; \"gpt2\" (BPE) and \"llama\" (SentencePiece's BPE) are understood"
            ));
        }
    };
    let roles = vocabulary.roles(metadata)?;
    let mut ends = vocabulary.ends();
    let mut generation = Map::new();
    for (own, theirs) in SAMPLING {
        generation.extend(metadata.scalar(own)?.map(|value| ((*theirs).to_owned(), value)));
    }
    for key in ENDS {
        ends.extend(metadata.count(key)?);
    }
    generation.insert("eos_token_id".to_owned(), ends.into());
    let (chat_template, named_templates) = templates(metadata, adds_bos, &roles)?;
    Ok(TextFiles {
        tokenizer,
        tokenizer_config: Some(Value::Object(roles).to_string()),
        generation_config: Some(Value::Object(generation).to_string()),
        chat_template,
        named_templates,
        ..TextFiles::default()
    })
}

/// A `tokenizer.json` of GPT-2's kind, and whether a prompt begins with a start token unless the file says.
fn byte_level_bpe(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<(String, bool), String> {
    if metadata.flag(ADD_SPACE)? == Some(true) {
        return Err(format!("{ADD_SPACE} is true, which is not understood for BPE"));
    }
    let pre = PreTokenizer::named(metadata.text(PRE)?.unwrap_or("default"))?;
    let json = TokenizerJson {
        added_tokens: vocabulary.added(&|_| false),
        normalizer: if pre.nfc { json!({"type": "NFC"}) } else { Value::Null },
        pre_tokenizer: pre.json(),
        decoder: byte_level(true),
        model: Bpe { ignore_merges: pre.ignore_merges, ..Bpe::new(vocabulary, merges(metadata)?) },
        ..TokenizerJson::default()
    };
    Ok((json.text()?, pre.adds_bos))
}

/// A `tokenizer.json` of SentencePiece's kind: spaces are `▁`, pieces are merged by score, and what no piece spells becomes bytes.
fn sentence_piece(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<String, String> {
    if metadata.flag(REMOVE_SPACES)? == Some(true) {
        return Err(format!("{REMOVE_SPACES} is true: what a text becomes would depend on what follows it"));
    }
    if metadata.asks(CHARACTERS) {
        return Err(format!("{CHARACTERS} is there, which is not understood for {MODEL} \"llama\""));
    }
    if let Some(byte) = vocabulary.missing_byte() {
        return Err(format!("tokenizer.ggml.tokens has no token {byte}, so that some text has none"));
    }
    // As llama.cpp has it: a text begins with a space, at the start of a prompt and after every special token.
    let prefix = metadata.flag(ADD_SPACE)?.unwrap_or(true);
    let escape = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let unescape = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let normalizer = match prefix {
        true => json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, escape]}),
        false => escape,
    };
    // Attributes of tokens are lost in conversion; for this family llama.cpp restores them by the model's name.
    let name = metadata.text(NAME)?.unwrap_or_default().to_lowercase();
    let is_phi3 = name.contains("phi-3") || name.contains("phi3");
    let json = TokenizerJson {
        added_tokens: vocabulary.added(&|token| is_phi3 && !PHI3_KEEP_SPACE.contains(&token)),
        normalizer,
        decoder: json!({"type": "Sequence", "decoders": [unescape, {"type": "ByteFallback"}, {"type": "Fuse"}]}),
        model: Bpe {
            unk_token: vocabulary.unknown(),
            fuse_unk: true,
            byte_fallback: true,
            ..Bpe::new(vocabulary, vocabulary.merges_by_score(metadata)?)
        },
        ..TokenizerJson::default()
    };
    json.text()
}

/// A `tokenizer.json`, written as it is read: a vocabulary of 256 thousand tokens is not held as a tree of values.
#[derive(Serialize)]
struct TokenizerJson<'a> {
    version: &'static str,
    truncation: (),
    padding: (),
    added_tokens: Vec<Value>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: (),
    decoder: Value,
    model: Bpe<'a>,
}

/// The model of a `tokenizer.json`.
#[derive(Serialize)]
struct Bpe<'a> {
    r#type: &'static str,
    dropout: (),
    unk_token: Option<&'a str>,
    continuing_subword_prefix: (),
    end_of_word_suffix: (),
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    #[serde(serialize_with = "as_map")]
    vocab: Vec<(&'a str, usize)>,
    merges: Vec<Merge<'a>>,
}

fn as_map<S: Serializer>(vocab: &[(&str, usize)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(vocab.iter().copied())
}

impl Default for TokenizerJson<'_> {
    fn default() -> Self {
        Self {
            version: "1.0",
            truncation: (),
            padding: (),
            added_tokens: Vec::new(),
            normalizer: Value::Null,
            pre_tokenizer: Value::Null,
            post_processor: (),
            decoder: Value::Null,
            model: Bpe::of(Vec::new(), Vec::new()),
        }
    }
}

impl TokenizerJson<'_> {
    fn text(&self) -> Result<String, String> {
        serde_json::to_string(self).map_err(|e| e.to_string())
    }
}

impl<'a> Bpe<'a> {
    fn new(vocabulary: &Vocabulary<'a>, merges: Vec<Merge<'a>>) -> Self {
        Self::of(vocabulary.ids().collect(), merges)
    }

    fn of(vocab: Vec<(&'a str, usize)>, merges: Vec<Merge<'a>>) -> Self {
        Self {
            r#type: "BPE",
            dropout: (),
            unk_token: None,
            continuing_subword_prefix: (),
            end_of_word_suffix: (),
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: false,
            vocab,
            merges,
        }
    }
}

/// The chat template, and those with names.
type Templates = (Option<String>, BTreeMap<String, String>);

/// Reads the templates. Where the file asks for a start token that a template does not write, the template is made to.
fn templates(metadata: &Metadata, adds_bos: bool, roles: &Map<String, Value>) -> Result<Templates, String> {
    let bos = roles.get("bos_token").and_then(Value::as_str);
    let asked = metadata.flag(ADD_BOS)?;
    let adds_bos = asked.unwrap_or(adds_bos);
    if asked == Some(true) && bos.is_none() {
        return Err(format!("{ADD_BOS} is true, but there is no tokenizer.ggml.bos_token_id"));
    }
    let whole = |source: &str| match bos {
        Some(bos) if adds_bos && !source.contains("bos_token") && !source.contains(bos) => {
            format!("{{{{ bos_token }}}}{source}")
        }
        _ => source.to_owned(),
    };
    let mut named = BTreeMap::new();
    for key in metadata.keys() {
        if let Some(name) = key.strip_prefix(TEMPLATE).and_then(|rest| rest.strip_prefix('.')) {
            named.extend(metadata.text(key)?.map(|source| (name.to_owned(), whole(source))));
        }
    }
    Ok((metadata.text(TEMPLATE)?.map(whole), named))
}
