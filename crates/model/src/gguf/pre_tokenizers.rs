//! How text is split before merges: the names that GGUF files have for it, and the expressions that they stand for.
//!
//! In: the value of `tokenizer.ggml.pre`. Out: [`PreTokenizer`], as a `tokenizer.json` has it. Deliberately not here: SentencePiece
//! tokenizers, which split nothing.

use serde_json::{Value, json};

/// How text is split before merges.
pub(super) struct PreTokenizer {
    /// Values of `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// Expressions whose matches stand alone, one after the other.
    splits: &'static [&'static str],
    /// GPT-2's own expression after them.
    gpt2: bool,
    /// Text is composed first (Unicode's NFC).
    pub(super) nfc: bool,
    /// A piece that is a token is not merged.
    pub(super) ignore_merges: bool,
    /// `add_bos_token` when the file does not say.
    pub(super) adds_bos: bool,
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
    PreTokenizer { names: &["gpt-2", "phi-2", "olmo", "mpt"], ..PLAIN },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        splits: &[LLAMA3_SPLIT],
        gpt2: false,
        ignore_merges: true,
        adds_bos: true,
        ..PLAIN
    },
    // Phi-4 and SmolLM3.
    PreTokenizer { names: &["dbrx", "smaug-bpe"], splits: &[LLAMA3_SPLIT], gpt2: false, ..PLAIN },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "megrez"],
        splits: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        gpt2: false,
        nfc: true,
        ..PLAIN
    },
    PreTokenizer { names: &["smollm", "starcoder", "refact", "command-r"], splits: &[r"\p{N}"], ..PLAIN },
    // Mistral's from Nemo on.
    PreTokenizer {
        names: &["tekken"],
        splits: &[
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        gpt2: false,
        ignore_merges: true,
        adds_bos: true,
        ..PLAIN
    },
    // gpt-oss, Phi-4-mini and Llama 4.
    PreTokenizer {
        names: &["gpt-4o", "llama4"],
        splits: &[
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        gpt2: false,
        ..PLAIN
    },
];

impl PreTokenizer {
    /// The one that a file names; the error lists those that are understood.
    pub(super) fn named(name: &str) -> Result<&'static Self, String> {
        PRE_TOKENIZERS.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| {
            let known: Vec<_> = PRE_TOKENIZERS.iter().flat_map(|pre| pre.names).copied().collect();
            format!("tokenizer.ggml.pre is {name:?}; understood are {}", known.join(", "))
        })
    }

    /// As a `tokenizer.json` has it.
    pub(super) fn json(&self) -> Value {
        let split =
            |regex| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        let steps: Vec<_> = self.splits.iter().map(split).chain([byte_level(self.gpt2)]).collect();
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

/// GPT-2's spelling of bytes, with its expression or without.
pub(super) fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": use_regex})
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
            ("tekken", &["It", "'s", " ", "1", "2", "3", "4", "5"]),
            ("gpt-4o", &["It's", " ", "123", "45"]),
        ] {
            let pre = PreTokenizer::named(name).unwrap();
            let steps: PreTokenizerWrapper = serde_json::from_value(pre.json()).unwrap();
            let text = "It's 12345  x\n\n";
            let mut pieces = PreTokenizedString::from(text);
            steps.pre_tokenize(&mut pieces).unwrap();
            let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
            let found: Vec<&str> = splits.iter().map(|(_, (from, to), _)| &text[*from..*to]).collect();
            assert_eq!(found, [start, rest].concat(), "{name}");
        }
    }

    #[test]
    fn every_name_is_there_once_and_every_expression_compiles() {
        let names: Vec<_> = PRE_TOKENIZERS.iter().flat_map(|pre| pre.names).collect();
        assert_eq!(names.len(), names.iter().collect::<std::collections::BTreeSet<_>>().len());
        for pre in PRE_TOKENIZERS {
            serde_json::from_value::<PreTokenizerWrapper>(pre.json()).unwrap();
        }
        assert!(PreTokenizer::named("klingon").err().unwrap().contains("tekken"));
    }
}
