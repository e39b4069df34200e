//! What agents say: seeded texts of about the lengths that agents send.
//!
//! In: a seed. Out: turns and conversations, the same for the same seed, for every player. The words are made of common English
//! syllables, so that a byte-level tokenizer cuts them as it cuts English. Deliberately not here: who answers.

use fastrand::Rng;

use crate::player::Said;

/// Syllables of the words.
const SYLLABLES: &[&str] = &[
    "the", "in", "er", "an", "re", "on", "at", "en", "nd", "ti", "es", "or", "te", "of", "ed", "is", "it", "al", "ar",
    "st", "to", "nt", "ng", "se", "ha", "as", "ou", "io", "le", "ve", "co", "me", "de", "hi", "ri", "ro", "ic",
];

/// Characters of one token, about; what is sent is counted by the server, this only chooses lengths.
const CHARACTERS_PER_TOKEN: usize = 3;

/// Text of about `tokens` tokens.
pub(crate) fn text(rng: &mut Rng, tokens: usize) -> String {
    let target = tokens * CHARACTERS_PER_TOKEN;
    let mut text = String::with_capacity(target + 8);
    while text.len() < target {
        if !text.is_empty() {
            text.push(' ');
        }
        for _ in 0..rng.usize(1..=4) {
            text.push_str(SYLLABLES[rng.usize(..SYLLABLES.len())]);
        }
    }
    text
}

/// The turns of one conversation of an agent: short requests of the user and results of tools of 50 to 200 tokens, about as many
/// of either; a hundred of them, with short answers, grow to about ten thousand tokens.
pub(crate) fn agent_turns(rng: &mut Rng, count: usize) -> Vec<Said> {
    (0..count)
        .map(|turn| {
            if turn == 0 || rng.bool() {
                let tokens = rng.usize(8..=24);
                Said::User(text(rng, tokens))
            } else {
                let tokens = rng.usize(50..=200);
                Said::ToolOutput(text(rng, tokens))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_says_the_same() {
        let say = |seed| agent_turns(&mut Rng::with_seed(seed), 20);
        assert_eq!(say(3), say(3));
        assert_ne!(say(3), say(4));
    }

    #[test]
    fn lengths_are_about_what_was_asked() {
        let mut rng = Rng::with_seed(1);
        for tokens in [1, 10, 500] {
            let length = text(&mut rng, tokens).len();
            assert!((tokens * CHARACTERS_PER_TOKEN..tokens * CHARACTERS_PER_TOKEN + 16).contains(&length), "{length}");
        }
        assert!(matches!(agent_turns(&mut rng, 1)[..], [Said::User(_)]));
    }
}
