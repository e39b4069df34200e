//! The tokens of a GGUF file: texts, types, roles, and what is merged with what.
//!
//! In: the lists under `tokenizer.ggml`. Out: [`Vocabulary`], and merges by rank: from the file's own list, or from the scores of a
//! SentencePiece model. Deliberately not here: how text is split or normalised before it is merged.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::metadata::Metadata;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";

/// `llama_token_type` of tokens that merges make.
const NORMAL: u64 = 1;
/// Of the token for what has none.
const UNKNOWN: u64 = 2;
/// Of tokens that only a template may write.
const CONTROL: u64 = 3;
/// Of tokens that are found in text before it is split.
const USER_DEFINED: u64 = 4;
/// Of ids without a token.
const UNUSED: u64 = 5;

/// Longest token that merges are derived for: four times the longest of published models. Bounds the work, which grows with the
/// square of a token's length.
const MERGED_BYTES_MAX: usize = 256;

/// Roles of special tokens: keys of the file, and of `tokenizer_config.json`.
const ROLES: &[(&str, &str)] = &[
    ("tokenizer.ggml.bos_token_id", "bos_token"),
    ("tokenizer.ggml.eos_token_id", "eos_token"),
    ("tokenizer.ggml.unknown_token_id", "unk_token"),
    ("tokenizer.ggml.padding_token_id", "pad_token"),
];

/// Control tokens that end a turn though converters write no key for them; llama.cpp knows them by their text too.
const END_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    HARMONY_END_TEXTS[0],
    HARMONY_END_TEXTS[1],
];

/// Where a vocabulary has these, `<|end|>` ends a message of a turn and not the turn: OpenAI's harmony format.
const HARMONY_END_TEXTS: [&str; 2] = ["<|return|>", "<|call|>"];

/// Two pieces that are merged.
pub(super) type Merge<'a> = (&'a str, &'a str);

/// The tokens by id, and their types.
pub(super) struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    /// As many, or none at all.
    types: Vec<u64>,
}

impl<'a> Vocabulary<'a> {
    /// Reads texts and types; no text is there twice.
    pub(super) fn read(metadata: &'a Metadata) -> Result<Self, String> {
        let tokens = metadata.texts(TOKENS)?.ok_or_else(|| format!("{TOKENS} is missing"))?;
        let types = metadata.counts(TYPES)?.unwrap_or_default();
        if !types.is_empty() && types.len() != tokens.len() {
            return Err(format!("{TYPES} has {} entries, {TOKENS} has {}", types.len(), tokens.len()));
        }
        let this = Self { tokens, types };
        let mut seen = HashMap::with_capacity(this.tokens.len());
        for (id, token, _) in this.all() {
            if let Some(before) = seen.insert(token, id) {
                return Err(format!("{TOKENS}: {token:?} is token {before} and token {id}"));
            }
        }
        Ok(this)
    }

    /// Every token in use: id, text and type.
    fn all(&self) -> impl Iterator<Item = (usize, &'a str, u64)> {
        let kinds = self.types.iter().copied().chain(std::iter::repeat(NORMAL));
        let all = self.tokens.iter().enumerate().zip(kinds);
        all.map(|((id, token), kind)| (id, *token, kind))
            .filter(|(_, token, kind)| !token.is_empty() && *kind != UNUSED)
    }

    /// Every token in use with its id.
    pub(super) fn ids(&self) -> impl Iterator<Item = (&'a str, usize)> {
        self.all().map(|(id, token, _)| (token, id))
    }

    /// Tokens that are found in text before it is split, as a `tokenizer.json` lists them. Special ones may swallow the white space
    /// after them.
    pub(super) fn added(&self, strips_after: &dyn Fn(&str) -> bool) -> Vec<Value> {
        let added = self.all().filter(|(.., kind)| matches!(*kind, CONTROL | USER_DEFINED));
        added
            .map(|(id, token, kind)| {
                let special = kind == CONTROL;
                json!({"id": id, "content": token, "single_word": false, "lstrip": false,
                    "rstrip": special && strips_after(token), "normalized": false, "special": special})
            })
            .collect()
    }

    /// Tokens that end a turn by their text.
    pub(super) fn ends(&self) -> Vec<u64> {
        let controls = || self.all().filter(|(.., kind)| *kind == CONTROL);
        let is_harmony = HARMONY_END_TEXTS.iter().all(|end| controls().any(|(_, token, _)| token == *end));
        let ends = |token: &str| END_TEXTS.contains(&token) && !(is_harmony && token == "<|end|>");
        controls().filter(|(_, token, _)| ends(token)).map(|(id, ..)| id as u64).collect()
    }

    /// Texts of the special tokens by their roles.
    pub(super) fn roles(&self, metadata: &Metadata) -> Result<Map<String, Value>, String> {
        let mut roles = Map::new();
        for (key, role) in ROLES {
            let Some(id) = metadata.count(key)? else { continue };
            let token = usize::try_from(id).ok().and_then(|id| self.tokens.get(id));
            let token = token.ok_or_else(|| format!("{key} is {id}; there are {} tokens", self.tokens.len()))?;
            roles.insert((*role).to_owned(), (*token).into());
        }
        Ok(roles)
    }

    /// The token for what has none: the one of that type.
    pub(super) fn unknown(&self) -> Option<&'a str> {
        self.all().find(|(.., kind)| *kind == UNKNOWN).map(|(_, token, _)| token)
    }

    /// The first byte without a token of its own, as SentencePiece spells it.
    pub(super) fn missing_byte(&self) -> Option<String> {
        let all: HashSet<&str> = self.ids().map(|(token, _)| token).collect();
        (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>")).find(|byte| !all.contains(byte.as_str()))
    }

    /// Merges of a SentencePiece model, which has scores in their place: where two pieces make a token, the token with the
    /// highest score is made first. Ranked as Hugging Face's converters rank them (`generate_merges`): by falling score, then
    /// falling lengths of both pieces in characters, then ids. Control tokens are made of nothing.
    pub(super) fn merges_by_score(&self, metadata: &Metadata) -> Result<Vec<Merge<'a>>, String> {
        let scores = metadata.numbers(SCORES)?.ok_or_else(|| format!("{SCORES} is missing"))?;
        if scores.len() != self.tokens.len() {
            return Err(format!("{SCORES} has {} entries, {TOKENS} has {}", scores.len(), self.tokens.len()));
        }
        let pieces = || self.all().filter(|(.., kind)| matches!(*kind, NORMAL | USER_DEFINED));
        let ids: HashMap<&str, usize> = pieces().map(|(id, token, _)| (token, id)).collect();
        let mut merges = Vec::new();
        for (id, token, kind) in pieces() {
            if token.len() > MERGED_BYTES_MAX {
                match kind {
                    // Found before anything is merged.
                    USER_DEFINED => continue,
                    _ => {
                        return Err(format!(
                            "{TOKENS}: token {id} has {} bytes, at most {MERGED_BYTES_MAX} are read",
                            token.len()
                        ));
                    }
                }
            }
            let splits = || token.char_indices().skip(1);
            let characters = splits().count() + 1;
            for (before, (at, _)) in splits().enumerate() {
                let (left, right) = token.split_at(at);
                if let (Some(left_id), Some(right_id)) = (ids.get(left), ids.get(right)) {
                    let lengths = (before + 1, characters - before - 1);
                    // The first piece that was learnt may have a score of -0.
                    merges.push((scores[id] + 0.0, lengths, id, (*left_id, *right_id), (left, right)));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(a.2.cmp(&b.2)).then(a.3.cmp(&b.3)));
        Ok(merges.into_iter().map(|(.., merge)| merge).collect())
    }
}

/// The file's own merges, by rank. Neither piece of a pair holds a space, but the first may start with one.
pub(super) fn merges(metadata: &Metadata) -> Result<Vec<Merge<'_>>, String> {
    let list = metadata.texts(MERGES)?.ok_or_else(|| format!("{MERGES} is missing"))?;
    let pair = |merge: &'_ str| merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
    let split = |merge| {
        let at = pair(merge).ok_or_else(|| format!("{MERGES}: {merge:?} is no pair"))?;
        Ok((&merge[..at], &merge[at + 1..]))
    };
    list.into_iter().map(split).collect()
}
