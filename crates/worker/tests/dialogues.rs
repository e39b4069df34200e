//! Thirty turns with tools, called two at a time, on the templates of several families: nothing of history is rendered twice,
//! the log only grows, and at every generation it is what rendering all of the history at once gives.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;
mod talk;

use holdfast_journal::Body;
use holdfast_types::{Item, ReasoningRetention};
use talk::spoken::*;
use talk::{Family, Step, config, folded, log_of, play};

const TURNS: u32 = 30;

/// What a family's template can say of one answer.
#[derive(Clone, Copy)]
struct Speech {
    reasoning: bool,
    /// Words before calls.
    preamble: bool,
    /// Calls of one answer.
    calls: usize,
}

/// What a log is compared with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whole {
    /// The tokens of rendering everything at once.
    Tokens,
    /// Its text: the micro tokenizer takes line breaks together with what follows.
    Text,
    /// Nothing: the template cannot say it.
    Nothing,
}

/// One generation: what is in its context, and what it says.
struct Generation {
    before: Vec<Item>,
    says: Vec<Item>,
}

fn dialogue(speech: Speech) -> (Vec<Generation>, Vec<Step>, Vec<Item>) {
    let (mut generations, mut steps, mut items) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 1..=TURNS {
        let question = format!("Question {turn}: where is the \u{1f419}?");
        items.push(user(&question));
        steps.push(Step::Say(question));
        let rounds = if turn % 6 == 0 { 2 } else { u32::from(turn % 3 == 0) };
        for round in 0..=rounds {
            let mut says = Vec::new();
            if speech.reasoning && turn % 2 == 0 {
                says.push(thought(&format!("Turn {turn}, round {round}.\nSo…")));
            }
            if round == rounds {
                says.push(assistant(&format!("Answer {turn}.")));
            } else {
                if speech.preamble {
                    says.push(assistant("Let me see."));
                }
                let id = |n: usize| format!("call_{turn}_{round}_{n}");
                says.extend((1..=speech.calls).map(|n| call(&id(n), &format!("{{\"at\": \"{turn} é {n}\"}}"))));
            }
            generations.push(Generation { before: items.clone(), says: says.clone() });
            items.extend(says);
            if round < rounds {
                let found: Vec<_> = (1..=speech.calls).map(|n| format!("found {turn}, {round}, {n}")).collect();
                let ids = (1..=speech.calls).map(|n| format!("call_{turn}_{round}_{n}"));
                items.extend(ids.zip(&found).map(|(id, text)| Item::tool_result(id, text.as_str())));
                steps.push(Step::Answer(found));
            }
        }
    }
    (generations, steps, items)
}

fn check(family: &Family, speech: Speech, script: impl Fn(&Family, &[Item]) -> Vec<u32>, whole: Whole) {
    let config = config(ReasoningRetention::Keep, true);
    let (generations, steps, items) = dialogue(speech);
    let scripts: Vec<_> = generations.iter().map(|generation| script(family, &generation.says)).collect();
    family.counted.rendered.lock().unwrap().clear();
    let world = play(family, &config, &scripts, &steps, &[]);
    let rendered = family.counted.rendered.lock().unwrap().clone();
    let fold = folded(&world, family);
    let found: Vec<_> = fold.items().iter().map(|item| without_leading_space(&item.item)).collect();
    assert_eq!(found, items);

    // What clients sent was rendered once, and what was sampled never.
    let sent = items.iter().zip(fold.items()).filter(|(_, item)| !is_sampled(&item.item));
    assert_eq!(rendered.iter().map(|(items, _)| items).sum::<usize>(), sent.count());
    assert_eq!(rendered.len(), generations.len());
    let tokens: usize = rendered.iter().map(|(_, tokens)| tokens).sum();
    assert_eq!(tokens + scripts.iter().map(Vec::len).sum::<usize>(), fold.log().len());
    let entries = &world.disk.entries[&harness::session("a")];
    assert!(!entries.iter().any(|entry| matches!(entry.body, Body::Rebase { .. })));

    let logs: Vec<Vec<u32>> =
        world.engine.seen.iter().map(|run| run.log.iter().map(|token| token.id).collect()).collect();
    assert_eq!(logs.len(), generations.len());
    let ends = logs[1..].iter().cloned().chain([log_of(&fold)]);
    for (((log, script), after), generation) in logs.iter().zip(&scripts).zip(ends).zip(&generations) {
        let grown: Vec<u32> = log.iter().chain(script).copied().collect();
        assert!(after.starts_with(&grown), "the log only grows");
        if whole != Whole::Nothing {
            let all = family.whole(&config, &generation.before);
            assert_eq!(family.spelt(log), family.spelt(&all));
            assert!(whole == Whole::Text || *log == all);
        }
    }
}

/// Mistral's first templates write a space before an answer, which is then sampled.
fn without_leading_space(item: &Item) -> Item {
    use holdfast_types::{ItemContent, Part, Role};
    let mut item = item.clone();
    if let ItemContent::Message { role: Role::Assistant, parts } = &mut item.content {
        parts.iter_mut().for_each(|part| *part = Part::Text(part.text().trim_start().to_owned()));
    }
    item
}

fn is_sampled(item: &Item) -> bool {
    use holdfast_types::{ItemContent, Role};
    match &item.content {
        ItemContent::Message { role, .. } => *role == Role::Assistant,
        ItemContent::Reasoning { .. } | ItemContent::ToolCall { .. } => true,
        ItemContent::ToolResult { .. } => false,
    }
}

fn as_the_template_writes(family: &Family, items: &[Item]) -> Vec<u32> {
    family.says(&config(ReasoningRetention::Keep, true), items)
}

#[test]
fn hermes_and_qwen() {
    let speech = Speech { reasoning: false, preamble: true, calls: 2 };
    check(&Family::new(QWEN25, &[], &[]), speech, as_the_template_writes, Whole::Tokens);
}

#[test]
fn qwen3_with_reasoning_that_stays() {
    let speech = Speech { reasoning: true, preamble: true, calls: 2 };
    check(&Family::new(QWEN3, &QWEN3_TOKENS, &[]), speech, as_the_template_writes, Whole::Tokens);
}

#[test]
fn llama3() {
    let family = Family::new(LLAMA3, &LLAMA3_TOKENS, &["<|eot_id|>"]);
    let speech = Speech { reasoning: false, preamble: false, calls: 1 };
    check(&family, speech, as_the_template_writes, Whole::Text);
    // Its template refuses a message of several calls, which its models make nevertheless.
    let at_once = |family: &Family, items: &[Item]| {
        let said = items.iter().map(|item| match &item.content {
            holdfast_types::ItemContent::ToolCall { name, arguments, .. } => {
                format!("{{\"name\": \"{name}\", \"parameters\": {arguments}}}")
            }
            holdfast_types::ItemContent::Message { parts, .. } => parts[0].text().to_owned(),
            other => panic!("{other:?}"),
        });
        family.tokens(&(said.collect::<Vec<_>>().join("; ") + "<|eot_id|>"))
    };
    check(&family, Speech { calls: 2, ..speech }, at_once, Whole::Nothing);
}

#[test]
fn mistral_with_an_array_and_with_marks() {
    let speech = Speech { reasoning: false, preamble: false, calls: 2 };
    check(&Family::new(MISTRAL, &MISTRAL_TOKENS, &["</s>"]), speech, as_the_template_writes, Whole::Tokens);
    let family = Family::new(MISTRAL_V11, &MISTRAL_V11_TOKENS, &["</s>"]);
    check(&family, Speech { preamble: true, ..speech }, as_the_template_writes, Whole::Tokens);
}

#[test]
fn harmony() {
    // Several calls follow each other where `<|call|>` does not end the generation; where it does, one at a time is made.
    let speech = Speech { reasoning: true, preamble: true, calls: 2 };
    let family = Family::new(GPT_OSS, &HARMONY_TOKENS, &HARMONY_STOPS);
    check(&family.ended_by("<|return|>"), speech, with_a_return, Whole::Nothing);
    let speech = Speech { calls: 1, ..speech };
    check(&Family::new(GPT_OSS, &HARMONY_TOKENS, &HARMONY_STOPS), speech, as_the_template_writes, Whole::Tokens);
}

/// The same items, with `<|return|>` behind the last call.
fn with_a_return(family: &Family, items: &[Item]) -> Vec<u32> {
    let said = family.spelt(&as_the_template_writes(family, items));
    let end = if said.ends_with("<|return|>") { "" } else { "<|return|>" };
    family.tokens(&(said + end))
}

#[test]
fn a_harmony_call_that_cannot_be_read_says_so_and_the_effort_is_in_the_prompt() {
    use holdfast_types::{ItemContent, ReasoningEffort};
    let family = Family::new(GPT_OSS, &HARMONY_TOKENS, &HARMONY_STOPS);
    let config = holdfast_types::SessionConfig {
        reasoning_effort: Some(ReasoningEffort::High),
        ..config(ReasoningRetention::Keep, true)
    };
    let scripts = [
        "<|channel|>commentary<|message|>One moment.<|end|><|start|>assistant<|channel|>commentary to=functions.look \
         <|constrain|>json<|message|>{\"at\":  <|call|>",
        "<|channel|>final<|message|>Sorry.<|return|>",
    ];
    let steps = [Step::Say("a".into()), Step::Answer(vec!["not JSON".into()])];
    let mut world = play(&family, &config, &scripts.map(|script| family.tokens(script)), &steps, &[]);
    let items = world.items("a");
    let ItemContent::ToolCall { name, arguments, parse_error, .. } = &items[2].content else { panic!("{items:?}") };
    assert_eq!((name.as_str(), arguments.as_str()), ("look", "{\"at\":"));
    assert!(parse_error.is_some());
    assert_eq!((&items[1], &items[4]), (&assistant("One moment."), &assistant("Sorry.")));
    let log: Vec<u32> = world.engine.seen[0].log.iter().map(|token| token.id).collect();
    assert!(family.spelt(&log).contains("Reasoning: high"));
}
