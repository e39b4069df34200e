//! What tool calls may be said, in each form that models write them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod speaking;

use holdfast_guide::{CallSpelling, Calls, Guides, Need, Spec, Spelt, Thinking};
use holdfast_types::Constraint;
use speaking::{
    ARGS, END, OPEN, START, Said, THINK, calls, guides, hermes, llama, mistral_array, mistral_named, pebble, said,
    speech, token,
};

const AT: &str = r##"{"type": "object", "properties": {"at": {"$ref": "#/$defs/at"}}, "required": ["at"], "additionalProperties": false,
    "$defs": {"at": {"type": "string", "maxLength": 4}}}"##;

fn check(guides: &Guides, spec: &Spec, cases: &[(String, Said)]) {
    for (text, result) in cases {
        let found = said(guides, spec, text);
        let agrees = match (found, result) {
            (Said::No(_), Said::No(_)) => true,
            (found, result) => found == *result,
        };
        assert!(agrees, "{text:?}: {found:?}, not {result:?}");
    }
}

fn of(spelling: CallSpelling, need: Need) -> Spec {
    speech(calls(spelling, Some(AT), need))
}

const NO: Said = Said::No(0);

#[test]
fn hermes_calls_are_opened_by_text() {
    let guides = guides();
    let look = "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"é\"}}\n</tool_call>";
    let stop = "<tool_call>{\"name\":\"stop\",\"arguments\":{\"x\":[1]}}</tool_call>";
    let free = [
        ("".to_owned(), Said::Whole),
        ("Some text < and <tool_".to_owned(), Said::Whole),
        (format!("Let me look.{THINK}So\n{look}"), Said::Whole),
        (format!("{look}\n{stop}"), Said::Whole),
        ("text <tool_call>".to_owned(), Said::Part),
        ("<tool_call>x".to_owned(), NO),
        ("<tool_call>\n{\"name\": \"fly\"".to_owned(), NO),
        ("<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": 1".to_owned(), NO),
        ("<tool_call>\n{\"name\": \"look\", \"arguments\": {}".to_owned(), NO),
        (format!("{look} and more"), NO),
    ];
    check(&guides, &of(hermes(), Need::Optional), &free);
    let required = [
        (look.to_owned(), Said::Whole),
        (String::new(), Said::Part),
        ("Let".to_owned(), NO),
        (format!("{look}{stop}"), Said::Whole),
    ];
    check(&guides, &of(hermes(), Need::Required), &required);
    let single = speech(Calls { single: true, ..calls(hermes(), Some(AT), Need::Required) });
    check(&guides, &single, &[(look.to_owned(), Said::Ended), (format!("{look}\n"), NO)]);
}

#[test]
fn no_call_leaves_text_without_its_opening() {
    let guides = guides();
    let none = |spelling| speech(Calls { tools: Vec::new(), ..calls(spelling, None, Need::Optional) });
    let cases = [
        ("Anything, {\"name\": \"look\"} too <tool_cal".to_owned(), Said::Whole),
        ("a <tool_call>".to_owned(), NO),
        (format!("a{THINK}b"), Said::Whole),
    ];
    check(&guides, &none(hermes()), &cases);
    check(
        &guides,
        &none(pebble()),
        &[(format!("a{OPEN}"), NO), ("a <|tool_call|>".to_owned(), NO), ("a".to_owned(), Said::Whole)],
    );
    check(
        &guides,
        &none(llama(true)),
        &[
            ("{\"name\": \"look\"".to_owned(), NO),
            (" { \"type\"".to_owned(), NO),
            ("{\"answer\": 1}".to_owned(), Said::Whole),
            (format!("a {{{OPEN}"), NO),
            ("a {".to_owned(), Said::Whole),
        ],
    );
    check(
        &guides,
        &none(mistral_named()),
        &[(format!("a{OPEN}"), NO), (format!("a{ARGS}"), NO), ("a [TOOL".to_owned(), Said::Whole)],
    );
}

#[test]
fn pebbles_call_ends_with_the_generation() {
    let guides = guides();
    let call = format!("{OPEN}{{\"name\":\"look\",\"arguments\":{{\"at\":\"x\"}}}}");
    let cases = [
        (call.clone(), Said::Ended),
        (format!("Well. {call}"), Said::Ended),
        ("Well.".to_owned(), Said::Whole),
        (format!("{OPEN}{{\"name\":\"loo"), Said::Part),
        (format!("{OPEN}Well"), NO),
        (format!("{call}{OPEN}"), NO),
        ("<|tool_call|>".to_owned(), NO),
    ];
    check(&guides, &of(pebble(), Need::Optional), &cases);
    check(&guides, &of(pebble(), Need::Required), &[(call, Said::Ended), ("W".to_owned(), NO)]);
}

#[test]
fn llamas_calls_may_be_opened_or_begin_the_answer() {
    let guides = guides();
    let look = "{\"name\": \"look\", \"parameters\": {\"at\": \"x\"}}";
    let stop = "{\"name\": \"stop\", \"parameters\": {}}";
    for opened in [true, false] {
        let open = if opened { OPEN.to_string() } else { "<|python_tag|>".to_owned() };
        let cases = [
            (look.to_owned(), Said::Whole),
            (format!("{look}; {stop}"), Said::Whole),
            (format!("{open}{look};{stop}"), Said::Whole),
            (format!("Let me see. {open}{look}"), Said::Whole),
            ("Text with {braces}.".to_owned(), Said::Whole),
            ("{\"answer\": 1}".to_owned(), NO),
            ("{\"name\": \"fly\"".to_owned(), NO),
            (" {".to_owned(), NO),
            (format!("{open}print"), NO),
            (format!("{look} so"), NO),
        ];
        check(&guides, &of(llama(opened), Need::Optional), &cases);
        let required = [(look.to_owned(), Said::Whole), (format!("{open}{look}"), Said::Whole), ("T".to_owned(), NO)];
        check(&guides, &of(llama(opened), Need::Required), &required);
    }
}

#[test]
fn mistrals_calls_are_an_array_or_named() {
    let guides = guides();
    let array = format!(
        "{OPEN} [{{\"name\": \"look\", \"arguments\": {{\"at\": \"x\"}}}}, {{\"name\": \"stop\", \"arguments\": {{}}}}]"
    );
    let cases = [
        (array.clone(), Said::Ended),
        (format!("{OPEN}[]"), NO),
        (format!("{OPEN}[{{\"name\": \"fly\""), NO),
        ("Text [TOOL".to_owned(), Said::Whole),
    ];
    check(&guides, &of(mistral_array(), Need::Optional), &cases);
    let single = speech(Calls { single: true, ..calls(mistral_array(), Some(AT), Need::Required) });
    check(&guides, &single, &[(array, NO)]);
    let named = format!("{OPEN}look{ARGS}{{\"at\": \"x\"}}");
    let cases = [
        (named.clone(), Said::Whole),
        (format!("{named}{OPEN}stop{ARGS}{{}}"), Said::Whole),
        (format!("{OPEN}look{ARGS}{{\"to\""), NO),
        (format!("{OPEN}fly"), NO),
        (format!("So.{named}"), Said::Whole),
        ("look".to_owned(), Said::Whole),
    ];
    check(&guides, &of(mistral_named(), Need::Optional), &cases);
}

#[test]
fn an_answer_in_a_form_and_calls_are_one_or_the_other() {
    let guides = guides();
    let answer = Constraint::JsonSchema(r#"{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false}"#.to_owned());
    let object = "{\"n\": 7}".to_owned();
    for (spelling, call) in [
        (hermes(), "<tool_call>\n{\"name\": \"stop\", \"arguments\": {}}\n</tool_call>".to_owned()),
        (pebble(), format!("{OPEN}{{\"name\": \"stop\", \"arguments\": {{}}}}")),
        (llama(true), "{\"name\": \"stop\", \"parameters\": {}}".to_owned()),
        (llama(false), "<|python_tag|>{\"name\": \"stop\", \"parameters\": {}}".to_owned()),
        (mistral_array(), format!("{OPEN}[{{\"name\": \"stop\", \"arguments\": {{}}}}]")),
        (mistral_named(), format!("{OPEN}stop{ARGS}{{}}")),
    ] {
        let both = Spec { answer: Some(answer.clone()), ..speech(calls(spelling.clone(), Some(AT), Need::Optional)) };
        assert_eq!(said(&guides, &both, &object), Said::Ended, "{spelling:?}");
        assert!(matches!(said(&guides, &both, &call), Said::Whole | Said::Ended), "{spelling:?}");
        assert_eq!(said(&guides, &both, "N"), NO);
        let none = Spec {
            calls: Some(Calls { tools: Vec::new(), ..calls(spelling.clone(), None, Need::Optional) }),
            ..both.clone()
        };
        assert_eq!(said(&guides, &none, &object), Said::Ended);
        assert!(matches!(said(&guides, &none, &call), Said::No(_)), "{spelling:?}");
        let required = Spec { calls: Some(calls(spelling, Some(AT), Need::Required)), ..both };
        assert!(matches!(said(&guides, &required, &object), Said::No(_)));
    }
}

#[test]
fn a_model_that_thinks_does_so_before_it_is_held_to_a_form() {
    let guides = guides();
    let answer = Constraint::Choice(vec!["look".to_owned(), "stop".to_owned()]);
    let text = |text: &str| Spelt { text: text.to_owned(), token: None };
    let marked = |text: &str, c| Spelt { text: text.to_owned(), token: Some(token(c)) };
    for (open, close, opened, closed) in [
        (text("<think>"), text("</think>"), "<think>".to_owned(), "</think>".to_owned()),
        (marked("[THINK]", THINK), marked("[/THINK]", ARGS), THINK.to_string(), ARGS.to_string()),
    ] {
        let thinking = |begun| Some(Thinking::Enclosed { open: open.clone(), close: close.clone(), begun });
        let may = Spec { thinking: thinking(false), answer: Some(answer.clone()), calls: None };
        let thought = format!("\nSo: \"look\".\n{closed}\n\n");
        let cases = [
            ("look".to_owned(), Said::Ended),
            (format!("{opened}{thought}look"), Said::Ended),
            (format!("{opened}{closed}stop"), Said::Ended),
            (format!("{opened}look"), Said::Part),
            (format!("{opened}{thought}So"), NO),
            ("So".to_owned(), NO),
        ];
        check(&guides, &may, &cases);
        let begun = Spec { thinking: thinking(true), ..may };
        check(&guides, &begun, &[(format!("{thought}stop"), Said::Ended), ("look".to_owned(), Said::Part)]);
        let call = "<tool_call>{\"name\": \"stop\", \"arguments\": {}}</tool_call>".to_owned();
        let must = Spec { thinking: thinking(true), ..of(hermes(), Need::Required) };
        check(&guides, &must, &[(format!("Well{closed}\n{call}"), Said::Whole), (format!("Well{closed}So"), NO)]);
        // A thought may mention a call; what follows it is held to as what no thought precedes.
        let mention = format!("So <tool_call> it is.{closed}\n\n");
        let free = |begun| Spec { thinking: thinking(begun), ..of(hermes(), Need::Optional) };
        let cases = [
            (format!("{opened}{mention}Well."), Said::Whole),
            (format!("\n{opened}{mention}{call}"), Said::Whole),
            (format!("{opened}{mention}Well. {call}"), Said::Whole),
            (format!("{opened}{mention}"), Said::Whole),
            (format!("{opened}So"), Said::Part),
            (format!("{opened}{mention}<tool_call>So"), NO),
            ("Well <thin".to_owned(), Said::Whole),
            (format!("Well. {call}"), Said::Whole),
            ("<tool_call>So".to_owned(), NO),
        ];
        check(&guides, &free(false), &cases);
        let cases = [(format!("{mention}{call}"), Said::Whole), (format!("{mention}<tool_call>So"), NO)];
        check(&guides, &free(true), &cases);
    }
}

#[test]
fn harmony_speaks_in_messages() {
    // In the order of the tests' control tokens, whose meanings are of no matter here.
    let [message, channel, constrain] = [OPEN, ARGS, THINK];
    let guides = guides();
    let (start, end) = (token(START), token(END));
    let (message_token, channel_token, constrain_token) = (token(message), token(channel), token(constrain));
    let harmony =
        Thinking::Channels { start, channel: channel_token, constrain: constrain_token, message: message_token, end };
    let aside = format!("{channel}analysis{message}I look.{END}{START}assistant");
    let call = format!("{channel}commentary to=functions.look {constrain}json{message}{{\"at\": \"x\"}}");
    let answer = format!("{channel}final{message}It is there.");
    let of = |need, tools: bool| {
        let calls = calls(hermes(), Some(AT), need);
        let calls = if tools { calls } else { Calls { tools: Vec::new(), ..calls } };
        Spec { thinking: Some(harmony.clone()), ..speech(calls) }
    };
    let free = [
        (answer.clone(), Said::Whole),
        (format!("{aside}{answer}"), Said::Whole),
        (format!("{aside}{aside}{call}"), Said::Ended),
        (format!("{channel}commentary to=functions.fly"), NO),
        ("It".to_owned(), NO),
    ];
    check(&guides, &of(Need::Optional, true), &free);
    check(&guides, &of(Need::Required, true), &[(format!("{aside}{call}"), Said::Ended), (answer.clone(), NO)]);
    check(&guides, &of(Need::Optional, false), &[(answer, Said::Whole), (format!("{aside}{call}"), NO)]);
    let held = Spec { answer: Some(Constraint::Choice(vec!["look".to_owned()])), ..of(Need::Optional, true) };
    let cases =
        [(format!("{aside}{channel}final{message}look"), Said::Ended), (format!("{channel}final{message}It"), NO)];
    check(&guides, &held, &cases);
}
