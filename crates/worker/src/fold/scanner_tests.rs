//! The scanner on answers of every form, whole and cut anywhere.
#![allow(clippy::unwrap_used)]
use holdfast_model::ToolCallForm;
use proptest::prelude::*;

use super::*;

/// What a whole answer became.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Call(String),
    /// Open when the answer ended.
    Open(String),
    Stopped,
}

const HERMES: &str = "<tool_call>";
const PEBBLE: &str = "pebble";
const MISTRAL: &str = "[TOOL_CALLS][";
const LLAMA: &str = "<|start_header_id|>ipython<|end_header_id|>";

fn form(template: &str) -> CallForm {
    match template {
        PEBBLE => CallForm { open: "<|tool_call|>".to_owned(), ..CallForm::default() },
        known => CallForm::from(&ToolCallForm::of_template(known).unwrap()),
    }
}

/// Scans the pieces to the end of the answer.
fn scan<'a>(template: &str, stops: &[String], pieces: impl Iterator<Item = &'a [u8]>) -> Vec<Part> {
    let (form, tools) = (form(template), ["look".to_owned(), "stop".to_owned()]);
    let markers = Markers { stops, form: Some(&form), tools: &tools, reasoning: None };
    let (mut scanner, mut cuts) = (Scanner::default(), Vec::new());
    for piece in pieces {
        if !scanner.stopped() {
            scanner.push(piece, &markers, &mut cuts);
        }
    }
    let mut parts: Vec<Part> = Vec::new();
    let text = |text: String, parts: &mut Vec<Part>| match parts.last_mut() {
        Some(Part::Text(before)) => before.push_str(&text),
        _ => parts.push(Part::Text(text)),
    };
    for cut in cuts {
        match cut {
            Cut::Text(more) => text(more, &mut parts),
            Cut::CallOpened { .. } => {}
            Cut::CallClosed(body) => parts.push(Part::Call(body)),
            Cut::Stopped => parts.push(Part::Stopped),
            Cut::ThoughtOpened | Cut::Thought(_) | Cut::Ended => panic!("nothing is reasoning"),
        }
    }
    if scanner.in_call() {
        parts.push(Part::Open(scanner.call().to_owned()));
    } else {
        let rest = scanner.end(false);
        if !rest.is_empty() {
            text(rest, &mut parts);
        }
    }
    parts
}

fn whole(template: &str, answer: &str) -> Vec<Part> {
    scan(template, &[], std::iter::once(answer.as_bytes()))
}

fn text(text: &str) -> Part {
    Part::Text(text.to_owned())
}

fn call(body: &str) -> Part {
    Part::Call(body.to_owned())
}

/// Answers as models of each form give them, and what they are.
fn answers() -> Vec<(&'static str, &'static str, Vec<Part>)> {
    let open = |body: &str| Part::Open(body.to_owned());
    vec![
        // Hermes and Qwen.
        (
            HERMES,
            "Let me see.\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"é\"}}\n</tool_call>\n<tool_call>\n{}\n</tool_call>",
            vec![
                text("Let me see.\n"),
                call("\n{\"name\": \"look\", \"arguments\": {\"at\": \"é\"}}\n"),
                text("\n"),
                call("\n{}\n"),
            ],
        ),
        (HERMES, "{\"name\": \"look\", \"parameters\": {}}", vec![text("{\"name\": \"look\", \"parameters\": {}}")]),
        (HERMES, "a <tool_ca", vec![text("a <tool_ca")]),
        (HERMES, "<tool_call>{\"na", vec![open("{\"na")]),
        // Pebble.
        (PEBBLE, "<|tool_call|>{}{} and more", vec![open("{}{} and more")]),
        // Mistral's arrays.
        (
            MISTRAL,
            "[TOOL_CALLS] [{\"name\": \"look\", \"arguments\": {\"at\": \"}]\\\"\"}}, {\"name\": \"stop\", \"arguments\": {}}]",
            vec![
                call(" [{\"name\": \"look\", \"arguments\": {\"at\": \"}]\\\"\"}}"),
                call("{\"name\": \"stop\", \"arguments\": {}}"),
            ],
        ),
        (MISTRAL, "Hm.[TOOL_CALLS][{\"a\": [{}]}] Done.", vec![text("Hm."), call("[{\"a\": [{}]}"), text(" Done.")]),
        (MISTRAL, "[TOOL_CALLS][{\"a\": 1}, x", vec![call("[{\"a\": 1}"), text(", x")]),
        (MISTRAL, "[TOOL_CALLS] none [TOOL_CALLS][{}]", vec![call(" none "), call("[{}")]),
        (MISTRAL, "[TOOL_CALLS] I will", vec![open(" I will")]),
        (MISTRAL, "[TOOL_CALLS][{\"a\": \"", vec![open("[{\"a\": \"")]),
        (MISTRAL, "[TOOL] [1, 2]", vec![text("[TOOL] [1, 2]")]),
        // Mistral's names and marks.
        (
            MISTRAL,
            "[TOOL_CALLS]look[ARGS]{\"at\": {\"é\": 1}}[TOOL_CALLS]stop[CALL_ID]abcdefghi[ARGS]{}",
            vec![call("look[ARGS]{\"at\": {\"é\": 1}}"), call("stop[CALL_ID]abcdefghi[ARGS]{}")],
        ),
        // Llama 3.
        (
            LLAMA,
            "{\"name\": \"look\", \"parameters\": {\"at\": \"{\"}}",
            vec![call("{\"name\": \"look\", \"parameters\": {\"at\": \"{\"}}")],
        ),
        (
            LLAMA,
            "{\"name\": \"look\", \"parameters\": {}}; {\"name\": \"new\", \"parameters\": {}};\n",
            vec![call("{\"name\": \"look\", \"parameters\": {}}"), call("{\"name\": \"new\", \"parameters\": {}}")],
        ),
        (
            LLAMA,
            "<|python_tag|>{\"name\": \"new\", \"parameters\": {}}; {\"type\": 1}",
            vec![call("{\"name\": \"new\", \"parameters\": {}}"), call("{\"type\": 1}")],
        ),
        (LLAMA, "<|python_tag|>print({}); look({})", vec![open("print({}); look({})")]),
        (
            LLAMA,
            " {\"type\": \"function\", \"name\": \"stop\", \"parameters\": {}} ok",
            vec![call(" {\"type\": \"function\", \"name\": \"stop\", \"parameters\": {}}"), text(" ok")],
        ),
        (
            LLAMA,
            "{\"name\": \"look\", \"parameters\": {\"at\"",
            vec![open("{\"name\": \"look\", \"parameters\": {\"at\"")],
        ),
        (LLAMA, "{\"name\": \"Ann\", \"parameters\": {}}", vec![text("{\"name\": \"Ann\", \"parameters\": {}}")]),
        (LLAMA, "{\"name\": \"look\", \"age\": {}}", vec![text("{\"name\": \"look\", \"age\": {}}")]),
        (LLAMA, "{\"name\": \"look\", \"param", vec![text("{\"name\": \"look\", \"param")]),
        (LLAMA, "{\"colour\": 1}; {\"name\": \"look\"}", vec![text("{\"colour\": 1}; {\"name\": \"look\"}")]),
        (
            LLAMA,
            "So: {\"name\": \"look\", \"parameters\": {}}",
            vec![text("So: {\"name\": \"look\", \"parameters\": {}}")],
        ),
    ]
}

#[test]
fn answers_become_the_same_parts_however_their_bytes_are_cut() {
    for (template, answer, parts) in answers() {
        assert_eq!(whole(template, answer), parts, "{answer}");
        assert_eq!(scan(template, &[], answer.as_bytes().chunks(1)), parts, "{answer}");
        for at in 0..answer.len() {
            let (left, right) = answer.as_bytes().split_at(at);
            assert_eq!(scan(template, &[], [left, right].into_iter()), parts, "{answer} at {at}");
        }
    }
}

#[test]
fn nothing_is_held_that_is_decided() {
    let released = |template: &str, answer: &str| {
        let (form, tools) = (form(template), ["look".to_owned()]);
        let (mut scanner, mut cuts) = (Scanner::default(), Vec::new());
        scanner.push(
            answer.as_bytes(),
            &Markers { stops: &[], form: Some(&form), tools: &tools, reasoning: None },
            &mut cuts,
        );
        cuts
    };
    let text = |text: &str| vec![Cut::Text(text.to_owned())];
    assert_eq!(released(LLAMA, "{\"name\": \"Ann"), text("{\"name\": \"Ann"));
    assert_eq!(released(LLAMA, "{\"name\": \"lo"), []);
    assert_eq!(released(LLAMA, "[1"), text("[1"));
    assert_eq!(released(LLAMA, "{\"name\": \"look\", \"parameters\": {"), [Cut::CallOpened { bare: true }]);
    assert_eq!(released(MISTRAL, "[1] [TOOL_"), text("[1] "));
    // A call is there as soon as its object is.
    let calls = released(MISTRAL, "[TOOL_CALLS][{}, {");
    assert_eq!(calls.len(), 3, "{calls:?}");
}

#[test]
fn a_stop_string_counts_until_a_call_is_known() {
    let answer = "{\"name\": \"look\", \"parameters\": {\"name\": 1}}";
    for (stop, parts) in [
        ("name", vec![text("{\""), Part::Stopped]),
        ("\": {", vec![text("{\"name\": \"look\", \"parameters"), Part::Stopped]),
        ("{\"n", vec![Part::Stopped]),
        (": {\"", vec![call(answer)]),
        ("1", vec![call(answer)]),
    ] {
        let stops = [stop.to_owned()];
        assert_eq!(scan(LLAMA, &stops, std::iter::once(answer.as_bytes())), parts, "{stop}");
        assert_eq!(scan(LLAMA, &stops, answer.as_bytes().chunks(1)), parts, "{stop}");
    }
}

#[test]
fn nothing_follows_a_stop_string_not_even_half_a_character() {
    let stops = ["STOP".to_owned()];
    assert_eq!(scan(HERMES, &stops, [&b"aSTOP\xC3"[..]].into_iter()), [text("a"), Part::Stopped]);
}

fn answer() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("<tool_call>"),
        Just("</tool_call>"),
        Just("<|tool_call|>"),
        Just("<|python_tag|>"),
        Just("[TOOL_CALLS]"),
        Just("[ARGS]"),
        Just("{\"name\": \"look\", \"parameters\": {"),
        Just("{\"name\": \"look\","),
        Just("\"}}"),
        Just("{"),
        Just("}"),
        Just("["),
        Just("]"),
        Just("\""),
        Just("\\"),
        Just(";"),
        Just(","),
        Just(" \n"),
        Just("é🌊"),
        Just("STOP"),
        Just("a"),
    ];
    prop::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
}

/// A text without marks, separators and white space.
fn said(text: &str) -> String {
    let marks = ["<tool_call>", "</tool_call>", "<|tool_call|>", "<|python_tag|>", "[TOOL_CALLS]"];
    let text = marks.iter().fold(text.to_owned(), |text, mark| text.replace(mark, "\0"));
    text.chars().filter(|c| !c.is_whitespace() && !";,]\0".contains(*c)).collect()
}

proptest! {
    #[test]
    fn no_cut_changes_what_an_answer_is(
        template in prop::sample::select(vec![HERMES, PEBBLE, MISTRAL, LLAMA]),
        answer in answer(),
        stop in any::<bool>(),
        sizes in prop::collection::vec(1_usize..9, 1..20),
    ) {
        let stops = if stop { vec!["STOP".to_owned()] } else { Vec::new() };
        let one = scan(template, &stops, std::iter::once(answer.as_bytes()));
        let mut rest = answer.as_bytes();
        let mut pieces = Vec::new();
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*size).min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        prop_assert_eq!(&scan(template, &stops, pieces.into_iter()), &one);
        // Nothing is lost but what opens, closes and separates calls, and nothing is there twice.
        if !one.contains(&Part::Stopped) {
            let parts = one.iter().map(|part| match part {
                Part::Text(text) | Part::Call(text) | Part::Open(text) => text.as_str(),
                Part::Stopped => "",
            });
            prop_assert_eq!(said(&parts.collect::<Vec<_>>().join("\0")), said(&answer));
        }
    }
}
