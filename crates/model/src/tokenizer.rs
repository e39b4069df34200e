//! Text to tokens, with a wall between what a template says and what a client says.
//!
//! In: `tokenizer.json`, then plain text or a rendered prompt. Out: token ids. A *control token* is an added token that is
//! special, or that looks like markup (`<tool_call>`, `[INST]`): only the template may produce it. The wall: the tokenizer
//! that runs here has no control tokens at all, so text encoded by it can never become one; this module finds them itself,
//! in rendered prompts only; and [`Marker`] breaks every control literal in a client's text with a character that occurs
//! nowhere in the conversation before the template sees it, and that is taken out again after the control tokens
//! were found. So `<|end|>` from a user is the five or so ordinary tokens that spell it. Deliberately not here: templates, and
//! tokens back to bytes.

use std::collections::HashMap;

use holdfast_types::TokenId;
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

/// One control token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ControlToken {
    pub(crate) id: TokenId,
    pub(crate) text: String,
    /// As the tokenizer says; markup that is not special still has bytes when it is sampled.
    pub(crate) special: bool,
    /// Swallows white space before it.
    strip_before: bool,
    /// Swallows white space after it.
    strip_after: bool,
}

/// Encodes plain text and rendered prompts.
pub(crate) struct TextEncoder {
    /// For text at the very start of a log.
    first: Tokenizer,
    /// For text that goes on, where that differs: without SentencePiece's leading space.
    later: Option<Tokenizer>,
    /// Text after a control token is as text at the start.
    restarts: bool,
    controls: Controls,
    /// Every added token by rising id: id, content, special.
    added: Vec<(TokenId, String, bool)>,
    /// The token with the highest id.
    last: (TokenId, String),
}

impl TextEncoder {
    /// Reads a `tokenizer.json` that was parsed to `json`.
    pub(crate) fn new(json: &Value) -> Result<Self, String> {
        let kind = json["model"]["type"].as_str().unwrap_or("none");
        if kind != "BPE" {
            return Err(format!("the tokenizer's model is {kind}; only BPE is understood"));
        }
        let listed = json["added_tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut added = Vec::with_capacity(listed.len());
        let mut controls = Vec::new();
        let mut ordinary = Vec::new();
        for token in listed {
            let id = token["id"].as_u64().and_then(|id| u32::try_from(id).ok());
            let (Some(id), Some(text)) = (id, token["content"].as_str().filter(|text| !text.is_empty())) else {
                return Err(format!("added token {token:.80} has no id or no content"));
            };
            let special = token["special"] == true;
            added.push((id, text.to_owned(), special));
            if special || looks_like_markup(text) {
                let (strip_before, strip_after) = (token["lstrip"] == true, token["rstrip"] == true);
                controls.push(ControlToken { id, text: text.to_owned(), special, strip_before, strip_after });
            } else {
                ordinary.push(token.clone());
            }
        }
        added.sort();
        let vocab = json["model"]["vocab"].as_object().ok_or("model.vocab is not an object")?;
        let moved = |(id, text, _): &&(TokenId, String, bool)| {
            vocab.get(text).is_some_and(|v| v.as_u64() != Some((*id).into()))
        };
        if let Some((id, text, _)) = added.iter().find(moved) {
            return Err(format!("added token {text:?} has id {id} in one list and {} in another", vocab[text]));
        }
        let highest = vocab.iter().filter_map(|(text, id)| Some((id.as_u64()? as u32, text.clone()))).max();
        let last = highest.into_iter().chain(added.last().map(|(id, text, _)| (*id, text.clone()))).max();
        let last = last.ok_or("the vocabulary is empty")?;

        let mut plain = json.clone();
        // The tokenizer numbers added tokens anew unless the vocabulary knows them: theirs must stay when others are left out.
        for token in &ordinary {
            if let Some(text) = token["content"].as_str() {
                plain["model"]["vocab"][text] = token["id"].clone();
            }
        }
        plain["added_tokens"] = Value::Array(ordinary);
        plain["truncation"] = Value::Null;
        plain["padding"] = Value::Null;
        plain["post_processor"] = Value::Null;
        let first = build(&plain)?;
        let prefix = Prefix::take(&mut plain);
        Ok(Self {
            first,
            later: (prefix != Prefix::None).then(|| build(&plain)).transpose()?,
            restarts: prefix == Prefix::Everywhere,
            controls: Controls::new(controls),
            added,
            last,
        })
    }

    /// Every added token by rising id: id, content, special.
    pub(crate) fn added(&self) -> &[(TokenId, String, bool)] {
        &self.added
    }

    /// The token with the highest id.
    pub(crate) fn last(&self) -> &(TokenId, String) {
        &self.last
    }

    /// Every control token.
    pub(crate) fn controls(&self) -> &[ControlToken] {
        &self.controls.tokens
    }

    /// Text without any control token, as it continues a log.
    pub(crate) fn plain(&self, text: &str) -> Vec<TokenId> {
        let mut ids = Vec::new();
        self.append_plain(text, Before::Text, &mut ids);
        ids
    }

    /// A rendered prompt: control literals become control tokens, except where `mark` breaks them. `at_start` says that
    /// nothing comes before it.
    pub(crate) fn rendered(&self, text: &str, mark: Option<char>, at_start: bool) -> Vec<TokenId> {
        let mut ids = Vec::new();
        let mut rest = text;
        let mut place = if at_start { Before::Nothing } else { Before::Text };
        while let Some((at, token)) = self.controls.first_in(rest) {
            let before = &rest[..at];
            let before = if token.strip_before { before.trim_end() } else { before };
            self.append_unmarked(before, mark, place, &mut ids);
            ids.push(token.id);
            place = Before::Control;
            rest = &rest[at + token.text.len()..];
            if token.strip_after {
                rest = rest.trim_start();
            }
        }
        self.append_unmarked(rest, mark, place, &mut ids);
        ids
    }

    fn append_unmarked(&self, text: &str, mark: Option<char>, place: Before, ids: &mut Vec<TokenId>) {
        match mark {
            Some(mark) if text.contains(mark) => self.append_plain(&text.replace(mark, ""), place, ids),
            _ => self.append_plain(text, place, ids),
        }
    }

    fn append_plain(&self, text: &str, place: Before, ids: &mut Vec<TokenId>) {
        if text.is_empty() {
            return;
        }
        let later = self.later.as_ref().unwrap_or(&self.first);
        let tokenizer = match place {
            Before::Nothing => &self.first,
            Before::Control if self.restarts => &self.first,
            Before::Control | Before::Text => later,
        };
        // Encoding fails only for a model that refuses unknown text; what it refuses has no tokens.
        let Ok(encoding) = tokenizer.encode_fast(text, false) else { return };
        let is_control = |id: &TokenId| self.controls.ids.contains_key(id);
        if !encoding.get_ids().iter().any(is_control) {
            return ids.extend_from_slice(encoding.get_ids());
        }
        // A merge that spells a control token: no character alone can.
        for (i, c) in text.chars().enumerate() {
            if let Ok(encoding) = if i == 0 { tokenizer } else { later }.encode_fast(c.to_string(), false) {
                ids.extend(encoding.get_ids().iter().filter(|id| !is_control(id)));
            }
        }
    }

    /// A marker for a conversation whose texts are `texts`; `None` when every candidate occurs in them.
    pub(crate) fn marker<'a>(&'a self, texts: &[&str]) -> Option<Marker<'a>> {
        // Private-use planes: no text that means something to others holds them.
        let mut candidates = ('\u{f0000}'..='\u{ffffd}').chain('\u{100000}'..='\u{10fffd}');
        let mark = candidates.find(|c| texts.iter().all(|text| !text.contains(*c)))?;
        Some(Marker { mark, controls: &self.controls })
    }
}

fn build(json: &Value) -> Result<Tokenizer, String> {
    Tokenizer::deserialize(json).map_err(|e| e.to_string())
}

/// `<…>`, `[…]` without white space, longer than the brackets.
fn looks_like_markup(text: &str) -> bool {
    let bracketed = (text.starts_with('<') && text.ends_with('>')) || (text.starts_with('[') && text.ends_with(']'));
    bracketed && text.len() > 2 && !text.contains(char::is_whitespace)
}

/// What is before a text that is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    Control,
    Text,
}

/// Where a tokenizer puts a space before a text that has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Prefix {
    None,
    /// At the very start.
    Start,
    /// Wherever text begins: at the start, and after tokens that are found before it is split.
    Everywhere,
}

impl Prefix {
    /// Takes the prefix out of a `tokenizer.json`: out of the normaliser or the pre-tokenizer.
    fn take(json: &mut Value) -> Self {
        Self::of_step(&mut json["normalizer"]).max(Self::of_step(&mut json["pre_tokenizer"]))
    }

    fn of_step(step: &mut Value) -> Self {
        for key in ["normalizers", "pretokenizers"] {
            if let Some(list) = step.get_mut(key).and_then(Value::as_array_mut) {
                let found = list.iter_mut().map(Self::of_step).max().unwrap_or(Self::None);
                return found;
            }
        }
        if step["type"] == "Prepend" {
            *step = json!({"type": "Sequence", "normalizers": []});
            return Self::Everywhere;
        }
        let (scheme, found) = match (step["type"].as_str(), step["prepend_scheme"].as_str()) {
            (Some("Metaspace"), Some("never")) => return Self::None,
            (Some("Metaspace"), Some("first")) => ("never", Self::Start),
            (Some("Metaspace"), _) => ("never", Self::Everywhere),
            _ if step["add_prefix_space"] == true => ("", Self::Everywhere),
            _ => return Self::None,
        };
        step["add_prefix_space"] = json!(false);
        if !scheme.is_empty() {
            step["prepend_scheme"] = json!(scheme);
        }
        found
    }
}

/// Finds control literals: the leftmost, of those the longest.
struct Controls {
    tokens: Vec<ControlToken>,
    ids: HashMap<TokenId, usize>,
    /// Indices into `tokens` by first byte, longest first.
    by_first: HashMap<u8, Vec<usize>>,
}

impl Controls {
    fn new(tokens: Vec<ControlToken>) -> Self {
        let mut by_first: HashMap<u8, Vec<usize>> = HashMap::new();
        for (i, token) in tokens.iter().enumerate() {
            by_first.entry(token.text.as_bytes()[0]).or_default().push(i);
        }
        for list in by_first.values_mut() {
            list.sort_by_key(|&i| std::cmp::Reverse(tokens[i].text.len()));
        }
        let ids = tokens.iter().enumerate().map(|(i, token)| (token.id, i)).collect();
        Self { tokens, ids, by_first }
    }

    fn first_in(&self, text: &str) -> Option<(usize, &ControlToken)> {
        let bytes = text.as_bytes();
        bytes.iter().enumerate().find_map(|(at, byte)| {
            let list = self.by_first.get(byte)?;
            list.iter().map(|&i| &self.tokens[i]).find(|t| bytes[at..].starts_with(t.text.as_bytes())).map(|t| (at, t))
        })
    }

    /// Whether a control literal starts at the start of `text`, or `text` ends inside of one.
    fn may_start(&self, text: &str) -> bool {
        let bytes = text.as_bytes();
        bytes.first().and_then(|first| self.by_first.get(first)).is_some_and(|list| {
            list.iter().any(|&i| {
                let literal = self.tokens[i].text.as_bytes();
                bytes.starts_with(literal) || literal.starts_with(bytes)
            })
        })
    }

    /// Whether the start of `text` could end a literal that something else began.
    fn may_end(&self, text: &str) -> bool {
        self.tokens
            .iter()
            .any(|token| token.text.char_indices().skip(1).any(|(at, _)| text.starts_with(&token.text[at..])))
    }
}

/// Breaks control literals in clients' texts, so that only the template can speak control tokens.
pub(crate) struct Marker<'a> {
    mark: char,
    controls: &'a Controls,
}

impl Marker<'_> {
    /// The character that breaks them.
    pub(crate) fn mark(&self) -> char {
        self.mark
    }

    /// The text with the mark after the first character of every control literal in it, of one that its end may begin, and
    /// before a start that may end one.
    pub(crate) fn text(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len() + 8);
        if self.controls.may_end(text) {
            out.push(self.mark);
        }
        for (at, c) in text.char_indices() {
            out.push(c);
            if self.controls.may_start(&text[at..]) {
                out.push(self.mark);
            }
        }
        out
    }

    /// Every string inside a JSON value, keys included.
    pub(crate) fn json(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(list) => list.iter().map(|v| self.json(v)).collect(),
            Value::Object(map) => Value::Object(map.iter().map(|(k, v)| (self.text(k), self.json(v))).collect()),
            other => other.clone(),
        }
    }
}
