//! A byte-level BPE tokenizer of any size, with merges that are made up and not learned.
//!
//! In: a vocabulary's size. Out: [`Tokenizer`], as `tokenizer.json` and as the lists that GGUF keeps. Added tokens, byte
//! alphabet and chat template are those of the model crate's micro models. Merges follow how often letters meet in English,
//! so that lower-case prose becomes tokens of about three characters, as with learned tokenizers. Deliberately not here:
//! encoding.

use std::ops::RangeInclusive;

use holdfast_model::random::{MICRO_TOKENS, MicroShape};
use serde_json::{Map, Value, json};

/// Added tokens; they have the lowest ids.
pub(crate) const ADDED: usize = MICRO_TOKENS.len();
/// Ends a document; also stands for a beginning and for padding.
pub(crate) const END_OF_TEXT: u32 = 0;
/// Ends a turn.
pub(crate) const END_OF_TURN: u32 = 2;
/// Sizes that can be made: at least all bytes, at most all merges.
pub(crate) const SIZES: RangeInclusive<u32> = (ADDED + 256) as u32..=400_000;

/// English letters, most frequent first.
const LETTERS: &str = "etaoinshrdlcumwfgypbvkjxqz";
/// Frequent pairs of English letters, most frequent first (Norvig, "English Letter Frequency Counts", 2012).
const PAIRS: &str = "th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou io le ve co me de hi \
    ri ro ic ne ea ra ce li ch ll be ma si om ur";
/// A space, as the byte alphabet writes it.
const SPACE: &str = "Ġ";

/// What text becomes, in the words of both formats.
pub(crate) struct Tokenizer {
    /// Spelling by id.
    pub(crate) tokens: Vec<String>,
    /// First is strongest.
    pub(crate) merges: Vec<(String, String)>,
    /// `tokenizer.json`.
    pub(crate) json: Value,
}

impl Tokenizer {
    /// A tokenizer with exactly this many tokens, one of [`SIZES`].
    pub(crate) fn new(vocab_size: u32) -> Self {
        let mut json = micro();
        let vocab = json["model"]["vocab"].as_object().cloned().unwrap_or_default();
        let mut base: Vec<_> = vocab.into_iter().filter_map(|(text, id)| Some((id.as_u64()?, text))).collect();
        base.sort();
        let mut tokens: Vec<String> = base.into_iter().take(ADDED + 256).map(|(_, text)| text).collect();
        let merges: Vec<_> = merges().take(vocab_size as usize - tokens.len()).collect();
        tokens.extend(merges.iter().map(|(left, right)| format!("{left}{right}")));
        let vocab: Map<_, _> = tokens.iter().enumerate().map(|(id, text)| (text.clone(), id.into())).collect();
        json["model"]["vocab"] = Value::Object(vocab);
        json["model"]["merges"] = merges.iter().map(|(left, right)| json!([left, right])).collect();
        Self { tokens, merges, json }
    }
}

/// ChatML with Hermes tool calls.
pub(crate) fn chat_template() -> String {
    MicroShape::default().text_files().chat_template.unwrap_or_default()
}

/// Whether an added token is special; `None` for the others.
pub(crate) fn added(id: usize) -> Option<bool> {
    MICRO_TOKENS.get(id).map(|(_, special)| *special)
}

/// Text of an added token.
pub(crate) fn text_of(id: u32) -> &'static str {
    MICRO_TOKENS[id as usize].0
}

fn micro() -> Value {
    #[expect(clippy::expect_used, reason = "the model crate wrote it as JSON a moment ago")]
    serde_json::from_str(&MicroShape::default().text_files().tokenizer).expect("JSON")
}

/// Every merge, strongest first: pairs of letters, a letter or a pair after a space, triples, quadruples. Both parts of a
/// merge come before it, and no two make the same token.
fn merges() -> impl Iterator<Item = (String, String)> {
    let letters: Vec<String> = LETTERS.chars().map(String::from).collect();
    let frequent: Vec<&str> = PAIRS.split_whitespace().collect();
    let rest = diagonal(&letters, &letters).map(|(left, right)| left + &right);
    let rest = rest.filter(|pair| !frequent.contains(&pair.as_str()));
    let pairs: Vec<String> = frequent.iter().map(|pair| (*pair).to_owned()).chain(rest).collect();
    let split = |pair: &String| (pair[..1].to_owned(), pair[1..].to_owned());
    let after_space = |part: &String| (SPACE.to_owned(), part.clone());
    let first: Vec<_> = pairs.iter().map(split).chain(letters.iter().chain(&pairs).map(after_space)).collect();
    first.into_iter().chain(diagonal(&pairs, &letters)).chain(diagonal(&pairs, &pairs))
}

/// Every combination of a left and a right part, by rising sum of their ranks.
fn diagonal(left: &[String], right: &[String]) -> impl Iterator<Item = (String, String)> + use<> {
    let (left, right) = (left.to_vec(), right.to_vec());
    (0..left.len() + right.len() - 1).flat_map(move |sum| {
        let ranks = sum.saturating_sub(right.len() - 1)..=sum.min(left.len() - 1);
        ranks.map(|i| (left[i].clone(), right[sum - i].clone())).collect::<Vec<_>>()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::SHAPES;

    #[test]
    fn tokens_are_exactly_as_many_as_asked_and_all_different() {
        for size in SHAPES.iter().map(|shape| shape.vocab_size).chain([*SIZES.start(), *SIZES.end()]) {
            let tokens = Tokenizer::new(size).tokens;
            assert_eq!(tokens.len(), size as usize);
            assert_eq!(tokens.iter().collect::<HashSet<_>>().len(), tokens.len(), "{size}");
        }
    }

    #[test]
    fn parts_of_a_merge_come_before_it() {
        let Tokenizer { tokens, merges, .. } = Tokenizer::new(151_936);
        let mut known: HashSet<&str> = tokens[..ADDED + 256].iter().map(String::as_str).collect();
        for ((left, right), whole) in merges.iter().zip(&tokens[ADDED + 256..]) {
            assert!(known.contains(left.as_str()) && known.contains(right.as_str()), "{left} {right}");
            known.insert(whole);
        }
    }

    #[test]
    fn ids_of_added_tokens_are_as_named() {
        assert_eq!((text_of(END_OF_TEXT), text_of(END_OF_TURN)), ("<|endoftext|>", "<|im_end|>"));
        assert_eq!(Tokenizer::new(512).tokens[..ADDED], MICRO_TOKENS.map(|(text, _)| text));
        assert_eq!((added(2), added(3), added(ADDED)), (Some(true), Some(false), None));
    }
}
