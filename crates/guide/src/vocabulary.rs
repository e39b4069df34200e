//! A model's tokens as grammars see them.
//!
//! In: the bytes of every token, which of them are control tokens, which end a generation. Out: a trie over the bytes. A control
//! token is no text: its bytes in the trie begin with 0xFF, which no UTF-8 text does, so that a grammar reaches it by its id
//! alone. Deliberately not here: masks.

use std::fmt::Write as _;
use std::sync::Arc;

use holdfast_types::TokenId;
use toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

/// Longest token that the trie takes, bytes; a longer one is never allowed while something is held to a form.
const TOKEN_BYTES_MAX: usize = 512;

/// The tokens of one model.
#[derive(Clone)]
pub struct Vocabulary {
    pub(crate) env: TokEnv,
    pub(crate) stop_tokens: Arc<[TokenId]>,
    /// Control tokens that do not end a generation, rising.
    controls: Arc<[TokenId]>,
    /// Bit t of word t / 64: token t does not end a generation.
    pub(crate) going_on: Arc<[u64]>,
}

impl Vocabulary {
    /// A vocabulary of `size` tokens. `bytes` gives the exact bytes of a token (empty: it has none), `is_control` whether it is a
    /// control token; `stop_tokens` end a generation, at least one.
    pub fn new<'a>(
        size: u32,
        bytes: impl Fn(TokenId) -> &'a [u8],
        is_control: impl Fn(TokenId) -> bool,
        stop_tokens: &[TokenId],
    ) -> Self {
        let is_control = |id: TokenId| is_control(id) || stop_tokens.contains(&id);
        let word = |id: TokenId| match bytes(id) {
            _ if is_control(id) => [&[TokTrie::SPECIAL_TOKEN_MARKER], format!("[{id}]").as_bytes()].concat(),
            text if text.len() > TOKEN_BYTES_MAX => Vec::new(),
            text => text.to_vec(),
        };
        let words: Vec<Vec<u8>> = (0..size).map(word).collect();
        let first_stop = stop_tokens.first().copied().unwrap_or_default();
        let mut trie = TokTrie::from(&TokRxInfo::new(size, first_stop), &words);
        if !stop_tokens.is_empty() {
            trie = trie.with_eos_tokens(stop_tokens);
        }
        let mut going_on = vec![0_u64; (size as usize).div_ceil(64)];
        for id in (0..size).filter(|id| !stop_tokens.contains(id)) {
            going_on[id as usize / 64] |= 1 << (id % 64);
        }
        Self {
            env: Arc::new(ApproximateTokEnv::new(trie)),
            stop_tokens: stop_tokens.into(),
            controls: (0..size).filter(|&id| is_control(id) && !stop_tokens.contains(&id)).collect(),
            going_on: going_on.into(),
        }
    }

    /// Control tokens other than those that end a generation and `but`, as a token range of a grammar; `None` for none.
    pub(crate) fn control_ranges(&self, but: &[TokenId]) -> Option<String> {
        let mut ranges: Vec<(TokenId, TokenId)> = Vec::new();
        for &id in self.controls.iter().filter(|id| !but.contains(id)) {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == id => *last = id,
                _ => ranges.push((id, id)),
            }
        }
        let mut text = String::new();
        for (first, last) in &ranges {
            let comma = if text.is_empty() { "" } else { "," };
            // Writing into a string cannot fail.
            let _ = write!(text, "{comma}{first}-{last}");
        }
        (!text.is_empty()).then(|| format!("<[{text}]>"))
    }
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vocabulary").field("size", &self.env.tok_trie().vocab_size()).finish_non_exhaustive()
    }
}
