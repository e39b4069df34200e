//! Tokens to text: the exact bytes of every token, and bytes to whole characters.
//!
//! In: the parsed `tokenizer.json`, then sampled tokens. Out: [`TokenBytes`] and the text of [`Utf8Assembler`]. A decoder
//! whose text for a token depends on its neighbours is refused: the fold from tokens to events needs exact bytes.
//! Deliberately not here: encoding, and what is special about a special token.

use serde_json::Value;

/// How a vocabulary spells bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// GPT-2's: every byte has a printable character.
    ByteLevel,
    /// SentencePiece's: `▁` is a space, `<0xAB>` a byte.
    Metaspace(char),
}

impl Spelling {
    /// Reads the decoder of a `tokenizer.json`; the error says what it is instead.
    pub(crate) fn of(json: &Value) -> Result<Self, String> {
        spelling(json.get("decoder").unwrap_or(&Value::Null))
    }
}

/// The exact bytes of every token; empty for special tokens and for ids without a token.
#[derive(Debug)]
pub(crate) struct TokenBytes {
    ends: Vec<u32>,
    bytes: Vec<u8>,
}

impl TokenBytes {
    /// Reads the vocabulary. `added` are the added tokens by id with their content and whether they
    /// are special; `size` is the number of ids.
    pub(crate) fn new(
        spelling: Spelling,
        json: &Value,
        added: &[(u32, String, bool)],
        size: u32,
    ) -> Result<Self, String> {
        let vocab = json["model"]["vocab"].as_object().ok_or("model.vocab is not an object")?;
        let mut pieces: Vec<Option<Vec<u8>>> = vec![None; size as usize];
        for (piece, id) in vocab {
            let slot = id.as_u64().and_then(|id| pieces.get_mut(id as usize));
            *slot.ok_or_else(|| format!("token {piece:?} has id {id}, expected below {size}"))? =
                Some(spell(spelling, piece)?);
        }
        for (id, content, special) in added {
            if let Some(slot) = pieces.get_mut(*id as usize) {
                *slot = Some(match (special, spelling) {
                    (true, _) => Vec::new(),
                    // Runs of spaces, as Gemma has them, are spelled as pieces are.
                    (false, Spelling::Metaspace(_)) => spell(spelling, content)?,
                    (false, Spelling::ByteLevel) => content.clone().into_bytes(),
                });
            }
        }
        let mut this = Self { ends: Vec::with_capacity(pieces.len()), bytes: Vec::new() };
        for piece in pieces {
            this.bytes.extend(piece.unwrap_or_default());
            this.ends
                .push(u32::try_from(this.bytes.len()).map_err(|_| "the vocabulary holds more than 4 GiB of text")?);
        }
        Ok(this)
    }

    /// The token's bytes.
    pub(crate) fn get(&self, id: u32) -> &[u8] {
        let i = id as usize;
        let Some(&end) = self.ends.get(i) else { return &[] };
        let start = i.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        &self.bytes[start as usize..end as usize]
    }
}

fn spelling(decoder: &Value) -> Result<Spelling, String> {
    let steps: Vec<&Value> = match decoder["type"].as_str() {
        None => return Err("the tokenizer has no decoder".to_owned()),
        Some("Sequence") => decoder["decoders"].as_array().map(|list| list.iter().collect()).unwrap_or_default(),
        Some(_) => vec![decoder],
    };
    let mut found = None;
    for step in steps {
        let next = match step["type"].as_str().unwrap_or("none") {
            "ByteLevel" => Spelling::ByteLevel,
            "Metaspace" => {
                Spelling::Metaspace(step["replacement"].as_str().and_then(|s| s.chars().next()).unwrap_or('▁'))
            }
            "Replace" if step["content"] == " " => {
                match step["pattern"]["String"].as_str().map(|s| (s, s.chars().next())) {
                    Some((pattern, Some(c))) if pattern.chars().count() == 1 => Spelling::Metaspace(c),
                    _ => return Err(format!("decoder Replace {} by a space", step["pattern"])),
                }
            }
            // Fuse joins, ByteFallback is part of the spelling, Strip drops a leading space of a whole text: none changes the
            // bytes of a token within a text.
            "Fuse" | "ByteFallback" | "Strip" => continue,
            other => return Err(format!("decoder {other} gives no exact bytes per token")),
        };
        if found.replace(next).is_some_and(|before| before != next) {
            return Err("the decoder mixes two spellings of bytes".to_owned());
        }
    }
    found.ok_or_else(|| "the decoder neither is ByteLevel nor names a space".to_owned())
}

fn spell(spelling: Spelling, piece: &str) -> Result<Vec<u8>, String> {
    match spelling {
        // A character outside of the alphabet stands for itself, as the decoder has it for a piece that is no spelling.
        Spelling::ByteLevel => Ok(piece.chars().map(byte_of).collect::<Option<_>>().unwrap_or_else(|| piece.into())),
        Spelling::Metaspace(space) => {
            if let Some(hex) = piece.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'))
                && hex.len() == 2
            {
                return u8::from_str_radix(hex, 16).map(|b| vec![b]).map_err(|e| format!("token {piece:?}: {e}"));
            }
            Ok(piece.replace(space, " ").into_bytes())
        }
    }
}

/// GPT-2's printable stand-in for a byte: printable Latin-1 is itself, the others follow from U+0100 in rising order.
pub(crate) fn char_of(byte: u8) -> char {
    if is_printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !is_printable(*b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or('\u{fffd}')
}

fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ 0..=0xff => Some(code as u8).filter(|b| is_printable(*b)),
        // 68 bytes have stand-ins; the table is small enough to walk.
        0x100..0x144 => (0..=u8::MAX).find(|b| char_of(*b) == c),
        _ => None,
    }
}

fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// Bytes in, whole characters out.
///
/// Text is never split inside a character; bytes that cannot be UTF-8 become U+FFFD by the Unicode standard's maximal
/// subparts, as `String::from_utf8_lossy` does for the whole. What comes out in sum does not depend on how the bytes were
/// cut. Holds back at most three bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Utf8Assembler {
    held: Vec<u8>,
}

impl Utf8Assembler {
    /// An assembler that holds nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes and gives the text that is now whole.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.held.len());
        let mut rest = self.held.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(all) => {
                    text.push_str(all);
                    rest = &[];
                    break;
                }
                Err(e) => {
                    let (good, bad) = rest.split_at(e.valid_up_to());
                    // `good` is valid by the error's word; lossy conversion leaves it as it is.
                    text.push_str(&String::from_utf8_lossy(good));
                    rest = bad;
                    let Some(skip) = e.error_len() else { break };
                    text.push('\u{fffd}');
                    rest = &rest[skip..];
                }
            }
        }
        self.held = rest.to_vec();
        text
    }

    /// Whether part of a character is held back.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Ends the text: what is held back can no longer become a character.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn every_byte_has_one_character_and_back() {
        let all: std::collections::BTreeSet<char> = (0..=u8::MAX).map(char_of).collect();
        assert_eq!(all.len(), 256);
        assert!((0..=u8::MAX).all(|b| byte_of(char_of(b)) == Some(b)));
        assert_eq!((char_of(b' '), char_of(b'\n'), char_of(0xad)), ('Ġ', 'Ċ', 'Ń'));
        assert_eq!(byte_of('\u{144}'), None);
    }

    #[test]
    fn byte_level_and_metaspace_give_exact_bytes() {
        let added = [(2, "<|end|>".to_owned(), true), (3, "<x>".to_owned(), false)];
        let json = json!({"decoder": {"type": "ByteLevel"}, "model": {"vocab": {"Ġa": 0, "Ã": 1, "<|end|>": 2}}});
        let bytes = TokenBytes::new(Spelling::of(&json).unwrap(), &json, &added, 5).unwrap();
        let all: Vec<_> = (0..6).map(|id| bytes.get(id)).collect();
        assert_eq!(all, [b" a".as_slice(), &[0xc3], b"", b"<x>", b"", b""]);

        let decoder = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        let json = json!({"decoder": decoder, "model": {"vocab": {"▁a": 0, "<0xC3>": 1}}});
        let bytes = TokenBytes::new(Spelling::of(&json).unwrap(), &json, &[], 2).unwrap();
        assert_eq!((bytes.get(0), bytes.get(1)), (b" a".as_slice(), [0xc3].as_slice()));
    }

    #[test]
    fn other_decoders_are_refused_by_name() {
        for decoder in
            [json!(null), json!({"type": "WordPiece"}), json!({"type": "BPEDecoder"}), json!({"type": "Fuse"})]
        {
            assert!(spelling(&decoder).is_err(), "{decoder}");
        }
        assert!(spelling(&json!({"type": "WordPiece"})).unwrap_err().contains("WordPiece"));
    }

    proptest! {
        #[test]
        fn text_does_not_depend_on_how_bytes_are_cut(
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0xe2), Just(0x82), Just(0xf0), Just(0x9f)], 0..40),
            cuts in proptest::collection::vec(0_usize..40, 0..8),
        ) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|c| c.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let mut assembler = Utf8Assembler::new();
            let mut text = String::new();
            for pair in cuts.windows(2) {
                text += &assembler.push(&bytes[pair[0]..pair[1]]);
                prop_assert!(assembler.held.len() <= 3);
            }
            text += &assembler.finish();
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
            prop_assert!(!assembler.is_holding());
        }
    }
}
