//! Reasoning, then an answer or a call that is held to a form: what the rules of a turn let real templates' models say, token by
//! token, as far as the end of the generation.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;
mod talk;

use holdfast_types::{Constraint, Reason, ReasoningRetention, ToolChoice};
use holdfast_worker::guiding::{ModelGuides, Rules};
use holdfast_worker::language::{Language, Prompt};
use talk::spoken::*;
use talk::{Family, config};

const NUMBER: &str =
    r#"{"type": "object", "properties": {"n": {"enum": [12, 13]}}, "required": ["n"], "additionalProperties": false}"#;

const FREE: Rules<'_> =
    Rules { allowed_tools: None, tool_choice: &ToolChoice::Auto, single_call: false, constraint: None };
const REQUIRED: Rules<'_> = Rules { tool_choice: &ToolChoice::Required, ..FREE };

/// A family's guides, with what opens and closes its reasoning and ends its answers.
struct Speaker {
    family: Family,
    guides: ModelGuides,
    /// Before an answer that was thought about.
    thought: String,
    /// Before an answer, where it is not text alone.
    answer: &'static str,
    end: &'static str,
}

impl Speaker {
    fn new(family: Family, thought: &str, answer: &'static str, end: &'static str) -> Self {
        let guides = ModelGuides::new(&*family.counted);
        Self { family, guides, thought: thought.to_owned(), answer, end }
    }

    /// Whether this may be said and end there.
    fn may_say(&self, tools: bool, rules: Rules<'_>, text: &str) -> bool {
        let config = config(ReasoningRetention::Keep, tools);
        let prompt = Prompt::of(&config, "2026-11-20");
        let said = self.family.tokens(text);
        let language: &dyn Language = &*self.family.counted;
        assert!(text.is_empty() || language.stop_tokens().contains(said.last().unwrap()), "{text} has an end");
        match self.guides.guide(language, &prompt, rules, &said, "options.") {
            Ok(guide) => guide.is_some(),
            Err(failure) => {
                assert_eq!(failure.reason, Reason::InvalidArgument, "{failure}");
                assert!(failure.to_string().contains("what was said before does not follow it"), "{failure}");
                false
            }
        }
    }

    fn check(&self, tools: bool, rules: Rules<'_>, cases: &[(String, bool)]) {
        for (text, may) in cases {
            assert_eq!(self.may_say(tools, rules, text), *may, "{text}");
        }
    }

    /// What is thought comes before what is said; `said` has its own end.
    fn thinks_then(&self, said: &str) -> String {
        format!("{}{said}", self.thought)
    }

    fn answers(&self, text: &str) -> String {
        format!("{}{text}{}", self.answer, self.end)
    }
}

const THOUGHT: &str = "Is it {\"n\": 11}? No: <tool_call>, said \u{1f419}.\n\nSo…";

/// Its marks are control tokens, or text.
fn qwen3(tokens: &[&str]) -> Speaker {
    let thought = format!("<think>\n{THOUGHT}\n</think>\n\n");
    Speaker::new(Family::new(QWEN3, tokens, &[]), &thought, "", "<|im_end|>")
}

/// Its template opens the reasoning.
fn deepseek() -> Speaker {
    let end = "<｜end▁of▁sentence｜>";
    let thought = format!("{THOUGHT}\n</think>\n\n");
    Speaker::new(Family::new(DEEPSEEK, &DEEPSEEK_TOKENS, &[end]), &thought, "", end)
}

fn harmony() -> Speaker {
    let aside = |channel: &str, text: &str| format!("<|channel|>{channel}<|message|>{text}<|end|><|start|>assistant");
    let thought = format!("{}{}", aside("analysis", THOUGHT), aside("commentary", "One moment."));
    let family = Family::new(GPT_OSS, &HARMONY_TOKENS, &HARMONY_STOPS);
    Speaker::new(family, &thought, "<|channel|>final<|message|>", "<|return|>")
}

#[test]
fn an_answer_is_held_to_its_form_after_any_thought() {
    let constraint = Constraint::JsonSchema(NUMBER.to_owned());
    let rules = Rules { constraint: Some(&constraint), ..FREE };
    for (speaker, begun) in [(qwen3(&QWEN3_TOKENS), false), (qwen3(&[]), false), (deepseek(), true), (harmony(), false)]
    {
        let answers = |text: &str| speaker.answers(text);
        let cases = [
            (speaker.thinks_then(&answers("{\"n\": 12}")), true),
            (speaker.thinks_then(&answers("{\"n\":13}")), true),
            // Where a thought is begun already, it has to end.
            (answers("{\"n\": 12}"), !begun),
            (speaker.thinks_then(&answers("It is 12.")), false),
            (speaker.thinks_then(&answers("{\"n\": 11}")), false),
            (speaker.thinks_then(&answers("{\"n\": 12")), false),
            (speaker.thinks_then(&answers("{\"n\": 12} So.")), false),
            (speaker.thinks_then(&answers("")), false),
            (speaker.thinks_then(speaker.end), false),
            (answers("It is 12."), false),
        ];
        speaker.check(false, rules, &cases);
        let cut = speaker.thought.rfind("So…").unwrap();
        speaker.check(false, rules, &[(format!("{}{}", &speaker.thought[..cut], speaker.end), false)]);
    }
}

#[test]
fn what_was_said_goes_on_where_it_stopped() {
    let constraint = Constraint::JsonSchema(NUMBER.to_owned());
    let rules = Rules { constraint: Some(&constraint), ..FREE };
    for speaker in [qwen3(&QWEN3_TOKENS), qwen3(&[]), deepseek(), harmony()] {
        let config = config(ReasoningRetention::Keep, false);
        let (prompt, language) = (Prompt::of(&config, "2026-11-20"), &*speaker.family.counted);
        let whole = speaker.family.tokens(&speaker.thinks_then(&speaker.answers("{\"n\": 12}")));
        for cut in 0..whole.len() {
            let mut guide = speaker.guides.guide(language, &prompt, rules, &whole[..cut], "").unwrap().unwrap();
            assert!(guide.mask().unwrap().allows(whole[cut]), "{}", speaker.family.spelt(&whole[..=cut]));
        }
    }
}

#[test]
fn a_call_that_is_required_comes_after_any_thought() {
    for tokens in [&QWEN3_TOKENS[..], &[]] {
        hermes_calls_after_thoughts(&qwen3(tokens));
    }
}

fn hermes_calls_after_thoughts(speaker: &Speaker) {
    let call = |name: &str, arguments: &str| {
        format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
    };
    let says = |text: &str| format!("{text}<|im_end|>");
    let cases = |stop: bool, answer: bool| {
        [
            (speaker.thinks_then(&says(&call("look", "{\"at\": \"x\"}"))), true),
            (says(&call("look", "{}")), true),
            (speaker.thinks_then(&says(&format!("{}\n{}", call("look", "{}"), call("look", "{}")))), true),
            (speaker.thinks_then(&says(&call("stop", "{}"))), stop),
            (speaker.thinks_then(&says(&call("fly", "{}"))), false),
            (speaker.thinks_then(&says(&call("look", "{\"at\": }"))), false),
            (speaker.thinks_then(&says("<tool_call>\n{\"name\": \"look\"")), false),
            (speaker.thinks_then(&says("It is there.")), answer),
            (speaker.thinks_then(&says(&format!("Well. {}", call("look", "{}")))), answer),
        ]
    };
    check_calls(speaker, &cases);
}

#[test]
fn harmonys_calls_are_messages_that_end_with_their_own_mark() {
    let speaker = harmony();
    let call = |name: &str, arguments: &str| {
        format!("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}<|call|>")
    };
    let cases = |stop: bool, answer: bool| {
        [
            (speaker.thinks_then(&call("look", "{\"at\": \"x\"}")), true),
            (call("look", "{}"), true),
            (speaker.thinks_then(&call("stop", "{}")), stop),
            (speaker.thinks_then(&call("fly", "{}")), false),
            (speaker.thinks_then(&call("look", "{\"at\": }")), false),
            (speaker.thinks_then(&call("look", "")), false),
            (speaker.thinks_then(&speaker.answers("It is there.")), answer),
            (speaker.answers("It is there."), answer),
        ]
    };
    check_calls(&speaker, &cases);
    let constraint = Constraint::JsonSchema(NUMBER.to_owned());
    let rules = Rules { constraint: Some(&constraint), ..FREE };
    let both = [
        (speaker.thinks_then(&call("look", "{}")), true),
        (speaker.thinks_then(&speaker.answers("{\"n\": 12}")), true),
        (speaker.thinks_then(&speaker.answers("It is there.")), false),
    ];
    speaker.check(true, rules, &both);
}

/// `cases` are told whether the tool `stop` may be called, and whether an answer in words may be given.
fn check_calls<const N: usize>(speaker: &Speaker, cases: &dyn Fn(bool, bool) -> [(String, bool); N]) {
    let look = ["look".to_owned()];
    let name = ToolChoice::Name("look".to_owned());
    speaker.check(true, REQUIRED, &cases(true, false));
    speaker.check(true, Rules { allowed_tools: Some(&look), ..REQUIRED }, &cases(false, false));
    speaker.check(true, Rules { allowed_tools: Some(&look), ..FREE }, &cases(false, true));
    let single = |(text, may): &(String, bool)| (text.clone(), *may && text.matches("look").count() == 1);
    let named: Vec<_> = cases(false, false).iter().map(single).collect();
    speaker.check(true, Rules { tool_choice: &name, ..FREE }, &named);
}
