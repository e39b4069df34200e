//! Tool calls as each family of models writes them, from sampled tokens to a turn that waits for their results.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use harness::{Disk, Toy, World, settings, speaking, user, with_tools};
use holdfast_types::{EventKind, SamplingOverrides, StopReason, TurnState};
use holdfast_worker_api::StartTurn;

/// A session with the tools `x` and `y`, of a model whose chat template says this.
fn world(template: &str) -> World {
    let mut world = World::on(Disk::default(), settings(), speaking(Toy::of_template(template), "toy/1"));
    world.create("a", with_tools(&["x", "y"]));
    world
}

/// Names and arguments.
type Calls = &'static [(&'static str, &'static str)];

/// What a model of a family answers (`^` is the token that opens a call) and what a client gets: text, then calls.
const FAMILIES: [(&str, &str, &str, Calls); 6] = [
    (
        "<tool_call>",
        "Both.\n^\n{\"name\": \"x\", \"arguments\": {\"a\":  1}}\n</tool_call>\n^{\"name\": \"y\", \"arguments\": {}}</tool_call>",
        "Both.",
        &[("x", "{\"a\":  1}"), ("y", "{}")],
    ),
    (
        "[TOOL_CALLS][",
        "^[{\"name\": \"x\", \"arguments\": {\"a\":  \"é]\"}}, {\"name\": \"y\", \"arguments\": {}}]",
        "",
        &[("x", "{\"a\":  \"é]\"}"), ("y", "{}")],
    ),
    (
        "[TOOL_CALLS] [ARGS]",
        "Both.^x[ARGS]{\"a\":  1}^y[CALL_ID]abcdefghi[ARGS]{}",
        "Both.",
        &[("x", "{\"a\":  1}"), ("y", "{}")],
    ),
    (
        "<|start_header_id|>ipython<|end_header_id|>",
        "{\"name\": \"x\", \"parameters\": {\"a\":  1}}; {\"name\": \"y\", \"parameters\": {}}",
        "",
        &[("x", "{\"a\":  1}"), ("y", "{}")],
    ),
    (
        "<|start_header_id|>ipython<|end_header_id|>",
        "^{\"type\": \"function\", \"name\": \"x\", \"parameters\": {}}",
        "",
        &[("x", "{}")],
    ),
    (
        "<|start_header_id|>ipython<|end_header_id|>",
        "{\"name\": \"z\", \"parameters\": {}}",
        "{\"name\": \"z\", \"parameters\": {}}",
        &[],
    ),
];

#[test]
fn calls_of_every_family_are_read_and_answered() {
    for (template, answer, text, calls) in FAMILIES {
        let mut world = world(template);
        let turn = world.say("a", answer);
        let read = turn.required_calls.iter().map(|call| (call.name.as_str(), call.arguments.as_str()));
        assert_eq!(read.collect::<Vec<_>>(), calls, "{answer}");
        assert!(turn.required_calls.iter().all(|call| call.parse_error.is_none()), "{answer}");
        let said: Vec<&str> = [answer, text].into_iter().filter(|text| !text.is_empty()).collect();
        assert_eq!(world.texts("a")[..said.len()], said, "{answer}");
        let events = world.events("a");
        let deltas = events.iter().filter_map(|event| match &event.kind {
            EventKind::TextDelta { text, .. } => Some(text.as_str()),
            _ => None,
        });
        assert_eq!(deltas.collect::<String>(), text, "{answer}");
        let reason = if calls.is_empty() { StopReason::EndTurn } else { StopReason::ToolCall };
        assert_eq!(turn.generations[0].stop_reason, reason, "{answer}");
        let results: Vec<_> = turn.required_calls.iter().map(|call| (call.call_id.as_str(), "done")).collect();
        if !results.is_empty() {
            world.results("a", &results).unwrap();
            world.settle();
        }
        assert_eq!(world.turn("a", 1).state, TurnState::Completed, "{answer}");
    }
}

#[test]
fn a_call_of_any_family_that_cannot_be_read_says_so_and_loses_nothing() {
    for (template, answer, arguments) in [
        ("<tool_call>", "^{\"name\": x}</tool_call>", "{\"name\": x}"),
        ("[TOOL_CALLS][", "^ I would call x", "I would call x"),
        ("[TOOL_CALLS][", "^[{\"name\": \"x\", \"argum", "[{\"name\": \"x\", \"argum"),
        ("[ARGS]", "^x[ARGS]{\"a\": }", "{\"a\": }"),
        ("<|start_header_id|>ipython<|end_header_id|>", "^x(a=1)", "x(a=1)"),
        (
            "<|start_header_id|>ipython<|end_header_id|>",
            "{\"name\": \"x\", \"parameters\": {]}",
            "{\"name\": \"x\", \"parameters\": {]}",
        ),
    ] {
        let mut world = world(template);
        let turn = world.say("a", answer);
        assert_eq!(turn.state, TurnState::RequiresAction, "{answer}");
        assert_eq!(turn.required_calls.len(), 1, "{answer}");
        assert!(turn.required_calls[0].parse_error.is_some(), "{answer}");
        assert_eq!(turn.required_calls[0].arguments, arguments, "{answer}");
    }
}

#[test]
fn calls_that_end_early_go_on_where_they_were() {
    let answer = "^[{\"name\": \"x\", \"arguments\": {\"a\": 1}}, {\"name\": \"y\", \"arguments\": {}}]";
    for limit in 1..answer.len() as u32 - 2 {
        let mut world = world("[TOOL_CALLS][");
        let sampling = SamplingOverrides { max_output_tokens: Some(limit), ..Default::default() };
        world.start(StartTurn { sampling, ..user("a", answer) }).unwrap();
        world.settle();
        assert_eq!(world.turn("a", 1).state, TurnState::Incomplete, "{limit}");
        let mut on = user("a", "");
        on.input.clear();
        on.continue_last = true;
        world.start(on).unwrap();
        world.settle();
        let texts = world.texts("a");
        assert_eq!(texts[1..3], ["{\"a\": 1}", "{}"], "{limit}: {texts:?}");
    }
}
