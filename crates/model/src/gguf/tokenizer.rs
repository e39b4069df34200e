//! Metadata to text files: the tokenizer, its special tokens and the chat template of a GGUF file.
//!
//! In: the keys `tokenizer.*` and `general.sampling.*`. Out: [`TextFiles`], as a directory in Hugging Face layout would hold
//! them. Byte-level BPE with a pre-tokenizer of [`PRE_TOKENIZERS`] is understood. A file without a chat template is refused
//! later, as a directory is: nothing is guessed. Deliberately not here: reading a `tokenizer.json`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::metadata::Metadata;
use crate::{ModelError, TextFiles};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADD_SPACE: &str = "tokenizer.ggml.add_space_prefix";
const TEMPLATE: &str = "tokenizer.chat_template";

/// `llama_token_type` of tokens that only a template may write.
const CONTROL: u64 = 3;
/// Of tokens that are found in text before it is split.
const USER_DEFINED: u64 = 4;
/// Of ids without a token.
const UNUSED: u64 = 5;

/// Roles of special tokens: keys of the file, and of `tokenizer_config.json`.
const ROLES: &[(&str, &str)] = &[
    ("tokenizer.ggml.bos_token_id", "bos_token"),
    ("tokenizer.ggml.eos_token_id", "eos_token"),
    ("tokenizer.ggml.unknown_token_id", "unk_token"),
    ("tokenizer.ggml.padding_token_id", "pad_token"),
];

/// Keys of tokens that end a turn.
const ENDS: &[&str] = &["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// Control tokens that end a turn though converters write no key for them; llama.cpp knows them by their text too.
const END_TEXTS: &[&str] = &["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>"];

/// Keys of sampling, and of `generation_config.json`.
const SAMPLING: &[(&str, &str)] = &[
    ("general.sampling.temp", "temperature"),
    ("general.sampling.top_k", "top_k"),
    ("general.sampling.top_p", "top_p"),
    ("general.sampling.min_p", "min_p"),
    ("general.sampling.penalty_repeat", "repetition_penalty"),
];

/// How text is split before merges.
struct PreTokenizer {
    /// Values of `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// Expressions whose matches stand alone, one after the other.
    splits: &'static [&'static str],
    /// GPT-2's own expression after them.
    gpt2: bool,
    /// Text is composed first (Unicode's NFC).
    nfc: bool,
    /// A piece that is a token is not merged.
    ignore_merges: bool,
    /// `add_bos_token` when the file does not say.
    adds_bos: bool,
}

/// Of Llama 3, and of others after it.
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const PLAIN: PreTokenizer =
    PreTokenizer { names: &[], splits: &[], gpt2: true, nfc: false, ignore_merges: false, adds_bos: false };

/// Every pre-tokenizer that is understood, with the expressions of the `tokenizer.json` that the name stands for; `default` has
/// llama.cpp's own.
static PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer {
        names: &["default"],
        splits: &[
            r"[\p{P}\$\+<=>\^~\|]+",
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
            r"\p{N}+",
            "[0-9][0-9][0-9]",
        ],
        gpt2: false,
        ..PLAIN
    },
    PreTokenizer { names: &["gpt-2"], ..PLAIN },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        splits: &[LLAMA3_SPLIT],
        gpt2: false,
        ignore_merges: true,
        adds_bos: true,
        ..PLAIN
    },
    // Phi-4 and SmolLM3.
    PreTokenizer { names: &["dbrx", "smaug-bpe"], splits: &[LLAMA3_SPLIT], gpt2: false, ..PLAIN },
    PreTokenizer {
        names: &["qwen2"],
        splits: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        gpt2: false,
        nfc: true,
        ..PLAIN
    },
    PreTokenizer { names: &["smollm"], splits: &[r"\p{N}"], ..PLAIN },
];

/// Reads the text files, all but the config. `path` is for messages.
///
/// # Errors
/// [`ModelError::Tokenizer`] with the key.
pub(super) fn read(path: &Path, metadata: &Metadata) -> Result<TextFiles, ModelError> {
    files(metadata).map_err(|problem| ModelError::Tokenizer { path: path.to_owned(), problem })
}

fn files(metadata: &Metadata) -> Result<TextFiles, String> {
    match metadata.text(MODEL)? {
        Some("gpt2") => {}
        Some("llama") => {
            return Err(format!("{MODEL} is \"llama\" (SentencePiece); only \"gpt2\" (BPE) is understood"));
        }
        other => return Err(format!("{MODEL} is {:?}; only \"gpt2\" (BPE) is understood", other.unwrap_or("missing"))),
    }
    if metadata.flag(ADD_SPACE)? == Some(true) {
        return Err(format!("{ADD_SPACE} is true, which is not understood for BPE"));
    }
    let name = metadata.text(PRE)?.unwrap_or("default");
    let pre = PRE_TOKENIZERS.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| {
        let known: Vec<_> = PRE_TOKENIZERS.iter().flat_map(|pre| pre.names).copied().collect();
        format!("{PRE} is {name:?}; understood are {}", known.join(", "))
    })?;
    let vocabulary = Vocabulary::read(metadata)?;
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
    let (chat_template, named_templates) = templates(metadata, pre, &roles)?;
    Ok(TextFiles {
        tokenizer: tokenizer(&vocabulary, &merges(metadata)?, pre).to_string(),
        tokenizer_config: Some(Value::Object(roles).to_string()),
        generation_config: Some(Value::Object(generation).to_string()),
        chat_template,
        named_templates,
        ..TextFiles::default()
    })
}

/// The tokens by id, and their types.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    /// As many, or none at all.
    types: Vec<u64>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self, String> {
        let tokens = metadata.texts(TOKENS)?.ok_or_else(|| format!("{TOKENS} is missing"))?;
        let types = metadata.counts(TYPES)?.unwrap_or_default();
        if !types.is_empty() && types.len() != tokens.len() {
            return Err(format!("{TYPES} has {} entries, {TOKENS} has {}", types.len(), tokens.len()));
        }
        let this = Self { tokens, types };
        let mut seen = BTreeMap::new();
        for (id, token, _) in this.all() {
            if let Some(before) = seen.insert(token, id) {
                return Err(format!("{TOKENS}: {token:?} is token {before} and token {id}"));
            }
        }
        Ok(this)
    }

    /// Every token in use: id, text and type.
    fn all(&self) -> impl Iterator<Item = (usize, &'a str, u64)> {
        let kinds = self.types.iter().copied().chain(std::iter::repeat(0));
        let all = self.tokens.iter().enumerate().zip(kinds);
        all.map(|((id, token), kind)| (id, *token, kind))
            .filter(|(_, token, kind)| !token.is_empty() && *kind != UNUSED)
    }

    /// Tokens that end a turn by their text.
    fn ends(&self) -> Vec<u64> {
        let ends = self.all().filter(|(_, token, kind)| *kind == CONTROL && END_TEXTS.contains(token));
        ends.map(|(id, ..)| id as u64).collect()
    }

    /// Texts of the special tokens by their roles.
    fn roles(&self, metadata: &Metadata) -> Result<Map<String, Value>, String> {
        let mut roles = Map::new();
        for (key, role) in ROLES {
            let Some(id) = metadata.count(key)? else { continue };
            let token = usize::try_from(id).ok().and_then(|id| self.tokens.get(id));
            let token = token.ok_or_else(|| format!("{key} is {id}; there are {} tokens", self.tokens.len()))?;
            roles.insert((*role).to_owned(), (*token).into());
        }
        Ok(roles)
    }
}

/// Pairs of pieces; neither holds a space, but the first may start with one.
fn merges(metadata: &Metadata) -> Result<Vec<Value>, String> {
    let list = metadata.texts(MERGES)?.ok_or_else(|| format!("{MERGES} is missing"))?;
    let pair = |merge: &&str| {
        let (at, _) = merge.char_indices().skip(1).find(|(_, c)| *c == ' ')?;
        Some(json!([merge[..at], merge[at + 1..]]))
    };
    list.iter().map(|merge| pair(merge).ok_or_else(|| format!("{MERGES}: {merge:?} is no pair"))).collect()
}

/// The `tokenizer.json`.
fn tokenizer(vocabulary: &Vocabulary<'_>, merges: &[Value], pre: &PreTokenizer) -> Value {
    let mut vocab = Map::new();
    let mut added = Vec::new();
    for (id, token, kind) in vocabulary.all() {
        vocab.insert(token.to_owned(), id.into());
        if kind == CONTROL || kind == USER_DEFINED {
            added.push(json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind == CONTROL}));
        }
    }
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": use_regex});
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": if pre.nfc { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": pre.json(), "post_processor": null,
        "decoder": byte_level(true),
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre.ignore_merges, "vocab": vocab, "merges": merges}})
}

impl PreTokenizer {
    /// As a `tokenizer.json` has it.
    fn json(&self) -> Value {
        let split =
            |regex| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        let steps: Vec<_> = self.splits.iter().map(split).chain([byte_level(self.gpt2)]).collect();
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": use_regex})
}

/// The chat template, and those with names.
type Templates = (Option<String>, BTreeMap<String, String>);

/// Reads the templates. Where the file asks for a start token that a template does not write, the template is made to.
fn templates(metadata: &Metadata, pre: &PreTokenizer, roles: &Map<String, Value>) -> Result<Templates, String> {
    let bos = roles.get("bos_token").and_then(Value::as_str);
    let asked = metadata.flag(ADD_BOS)?;
    let adds_bos = asked.unwrap_or(pre.adds_bos);
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _, PreTokenizerWrapper};

    use super::*;

    #[test]
    fn text_is_split_as_the_names_say() {
        let rest = [" ", " x", "\n\n"].as_slice();
        for (name, start) in [
            ("default", ["It", "'", "s", " ", "123", "45"].as_slice()),
            ("gpt-2", &["It", "'s", " 12345"]),
            ("llama-bpe", &["It", "'s", " ", "123", "45"]),
            ("qwen2", &["It", "'s", " ", "1", "2", "3", "4", "5"]),
            ("smollm", &["It", "'s", " ", "1", "2", "3", "4", "5"]),
        ] {
            let pre = PRE_TOKENIZERS.iter().find(|pre| pre.names.contains(&name)).unwrap();
            let steps: PreTokenizerWrapper = serde_json::from_value(pre.json()).unwrap();
            let text = "It's 12345  x\n\n";
            let mut pieces = PreTokenizedString::from(text);
            steps.pre_tokenize(&mut pieces).unwrap();
            let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
            let found: Vec<&str> = splits.iter().map(|(_, (from, to), _)| &text[*from..*to]).collect();
            assert_eq!(found, [start, rest].concat(), "{name}");
        }
    }
}
