//! How a model marks what it thinks, as data, and what its template is told of how much to think.
//!
//! In: a template's words. Out: [`ReasoningForm`], and which efforts a template knows. Deliberately not here: watching sampled
//! text for marks, which is a fold of the worker's, and what reasoning becomes once it is history (the worker's policy, the
//! template's words).

use holdfast_types::{ReasoningEffort, TokenId};
use serde_json::{Map, Value};

/// How a model marks reasoning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReasoningForm {
    /// Between two marks, before the answer. Line breaks beside a mark belong to it.
    Enclosed {
        /// What begins it; where the generation prompt ends with it, reasoning has begun before the first token.
        open: String,
        /// The special token that spells `open`, if one does: its bytes are empty.
        open_token: Option<TokenId>,
        /// What ends it.
        close: String,
        /// The special token that spells `close`, if one does.
        close_token: Option<TokenId>,
    },
    /// On a channel of its own: an answer is several messages, each with a header. Harmony, as gpt-oss speaks it.
    Channels {
        /// The special tokens that messages are made of, with what they do and how they are spelt.
        marks: Vec<(TokenId, ChannelMark, &'static str)>,
    },
}

/// What a special token of harmony does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelMark {
    /// `<|start|>`: a header begins, with the role.
    Start,
    /// `<|channel|>`: the channel's name follows.
    Channel,
    /// `<|constrain|>`: the type of the content follows.
    Constrain,
    /// `<|message|>`: the header ends.
    Message,
    /// `<|end|>`, `<|call|>` or `<|return|>`: the message ends.
    End,
}

impl ChannelMark {
    /// Every mark that harmony has, as it is spelt.
    pub const SPELT: [(&'static str, Self); 7] = [
        ("<|start|>", Self::Start),
        ("<|channel|>", Self::Channel),
        ("<|constrain|>", Self::Constrain),
        ("<|message|>", Self::Message),
        ("<|end|>", Self::End),
        ("<|call|>", Self::End),
        ("<|return|>", Self::End),
    ];
}

/// Marks that enclose reasoning: DeepSeek, Qwen3, SmolLM3 and many more; Mistral's Magistral.
const ENCLOSED: [(&str, &str); 2] = [("<think>", "</think>"), ("[THINK]", "[/THINK]")];
/// What tells harmony from others.
const HARMONY: &str = "<|channel|>analysis<|message|>";

impl ReasoningForm {
    /// The form of a chat template that says one; `special` finds special tokens by their text.
    pub(crate) fn of_template(source: &str, special: impl Fn(&str) -> Option<TokenId>) -> Option<Self> {
        if source.contains(HARMONY) {
            let marks: Vec<_> =
                ChannelMark::SPELT.iter().filter_map(|(text, mark)| Some((special(text)?, *mark, *text))).collect();
            // Without its tokens nobody could speak it.
            return (marks.len() == ChannelMark::SPELT.len()).then_some(Self::Channels { marks });
        }
        let (open, close) = ENCLOSED.into_iter().find(|(_, close)| source.contains(close))?;
        Some(Self::Enclosed {
            open: open.to_owned(),
            open_token: special(open),
            close: close.to_owned(),
            close_token: special(close),
        })
    }

    /// Whether a generation prompt of this text leaves reasoning open.
    pub(crate) fn opened_by(&self, prompt: &str) -> bool {
        match self {
            Self::Enclosed { open, .. } => prompt.trim_end().ends_with(open.as_str()),
            Self::Channels { .. } => false,
        }
    }
}

/// What a template knows of effort, by its words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Efforts {
    /// Thinking can be switched on and off.
    switch: bool,
    /// How much is said in words.
    levels: bool,
}

impl Efforts {
    /// Reads the source.
    pub(crate) fn of(source: &str) -> Self {
        let switches = ["enable_thinking", "thinking is defined", "if thinking"];
        Self {
            switch: switches.iter().any(|words| source.contains(words)),
            levels: source.contains("reasoning_effort"),
        }
    }

    /// The efforts that it knows, rising. One that only switches takes every effort but none as on.
    pub(crate) fn known(self) -> Vec<ReasoningEffort> {
        let knows = |effort: &ReasoningEffort| match effort {
            ReasoningEffort::None => self.switch,
            ReasoningEffort::Low | ReasoningEffort::Medium | ReasoningEffort::High => self.switch || self.levels,
        };
        ReasoningEffort::ALL.into_iter().filter(knows).collect()
    }
}

/// What templates are told: the variables that they are written for.
pub(crate) fn tell(effort: Option<ReasoningEffort>, context: &mut Map<String, Value>) {
    let Some(effort) = effort else { return };
    let thinks = effort != ReasoningEffort::None;
    context.insert("enable_thinking".to_owned(), thinks.into());
    context.insert("thinking".to_owned(), thinks.into());
    if thinks {
        context.insert("reasoning_effort".to_owned(), effort.name().into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_tells_its_marks_and_its_efforts() {
        let special = |text: &str| text.starts_with("<|").then_some(7);
        assert_eq!(ReasoningForm::of_template("<|im_start|>", special), None);
        let think = ReasoningForm::of_template("split('</think>')", special);
        assert!(matches!(&think, Some(ReasoningForm::Enclosed { open, open_token: None, .. }) if open == "<think>"));
        assert!(think.is_some_and(|form| form.opened_by("<|im_start|>assistant\n<think>\n") && !form.opened_by("a\n")));
        let harmony = ReasoningForm::of_template(HARMONY, special);
        assert!(matches!(harmony, Some(ReasoningForm::Channels { marks }) if marks.len() == 7));
        assert_eq!(ReasoningForm::of_template(HARMONY, |_| None), None);
        use ReasoningEffort::{High, Low, Medium, None as Off};
        let known = |source: &str| Efforts::of(source).known();
        assert_eq!(known("enable_thinking"), [Off, Low, Medium, High]);
        assert_eq!(known("reasoning_effort"), [Low, Medium, High]);
        assert_eq!(known("think"), []);
    }
}
