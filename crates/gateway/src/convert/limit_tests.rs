//! Every limit of the edge, met exactly and exceeded by one.
//!
//! Limits that depend on a session's state are the worker's, `request_bytes`, `reply_bytes` and `open_streams` are tested
//! over a connection, `page_size` in `paging`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use holdfast_contracts::v1;
use holdfast_contracts::v1::item::Kind;
use holdfast_types::{Failure, FailureDetail, Limits, Reason};

use super::tests::{function, message, tool_call, tool_result};
use super::{constraint, item, sampling, session, tool, turn};
use crate::field::Field;
use crate::limits;

/// One limit: its name, a small value of it, and a request that holds so many of what it counts.
type Case = (&'static str, fn(&mut Limits) -> &mut u32, fn(&Limits, usize) -> Result<(), Failure>);

fn create(limits: &Limits, session: v1::Session) -> Result<(), Failure> {
    let request = v1::CreateSessionRequest { session: Some(session), ..v1::CreateSessionRequest::default() };
    session::create(limits, request).map(drop)
}

fn configure(limits: &Limits, config: v1::SessionConfig) -> Result<(), Failure> {
    create(limits, v1::Session { config: Some(config), ..v1::Session::default() })
}

fn sample(limits: &Limits, sampling: v1::Sampling) -> Result<(), Failure> {
    sampling::overrides(limits, Field::Root("sampling"), Some(sampling)).map(drop)
}

fn constrain(limits: &Limits, kind: v1::constraint::Kind) -> Result<(), Failure> {
    let constraint = v1::Constraint { kind: Some(kind) };
    constraint::constraint(limits, Field::Root("constraint"), Some(constraint)).map(drop)
}

fn send(limits: &Limits, item: v1::Item) -> Result<(), Failure> {
    item::items(limits, Field::Root("input"), vec![item]).map(drop)
}

const CASES: &[Case] = &[
    (
        "items_per_request",
        |limits| &mut limits.items_per_request,
        |limits, n| {
            let input = vec![message(v1::Role::User, "x"); n];
            let session = "sessions/session-1".into();
            turn::start(limits, v1::CreateTurnRequest { session, input, ..v1::CreateTurnRequest::default() }).map(drop)
        },
    ),
    (
        "items_per_request",
        |limits| &mut limits.items_per_request,
        |limits, n| item::tool_results(limits, Field::Root("results"), vec![tool_result("c", ""); n]).map(drop),
    ),
    ("item_bytes", |limits| &mut limits.item_bytes, |limits, n| send(limits, message(v1::Role::User, &"x".repeat(n)))),
    (
        "item_bytes",
        |limits| &mut limits.item_bytes,
        |limits, n| {
            let text = "x".repeat(n);
            send(limits, v1::Item { kind: Some(Kind::Reasoning(v1::Reasoning { text })), ..v1::Item::default() })
        },
    ),
    (
        "item_bytes",
        |limits| &mut limits.item_bytes,
        |limits, n| {
            let call = v1::ToolCall { name: String::new(), arguments: "x".repeat(n - 1), ..tool_call("c") };
            send(limits, v1::Item { kind: Some(Kind::ToolCall(call)), ..v1::Item::default() })
        },
    ),
    (
        "item_bytes",
        |limits| &mut limits.item_bytes,
        |limits, n| {
            let results = vec![tool_result("c", &"x".repeat(n - 1))];
            item::tool_results(limits, Field::Root("results"), results).map(drop)
        },
    ),
    (
        "parts_per_item",
        |limits| &mut limits.parts_per_item,
        |limits, n| {
            let part = v1::ContentPart { part: Some(v1::content_part::Part::Text(String::new())) };
            let message = v1::Message { role: v1::Role::User as i32, content: vec![part; n] };
            send(limits, v1::Item { kind: Some(Kind::Message(message)), ..v1::Item::default() })
        },
    ),
    (
        "instructions_bytes",
        |limits| &mut limits.instructions_bytes,
        |limits, n| {
            configure(limits, v1::SessionConfig { instructions: "x".repeat(n), ..v1::SessionConfig::default() })
        },
    ),
    (
        "tools_per_session",
        |limits| &mut limits.tools_per_session,
        |limits, n| {
            let tools = (0..n).map(|at| function(&format!("t{at}"), "")).collect();
            configure(limits, v1::SessionConfig { tools, ..v1::SessionConfig::default() })
        },
    ),
    (
        "tools_per_session",
        |limits| &mut limits.tools_per_session,
        |limits, n| tool::allowed(limits, Field::Root("allowed_tools"), vec!["add".into(); n]).map(drop),
    ),
    (
        "tool_bytes",
        |limits| &mut limits.tool_bytes,
        |limits, n| {
            // The description takes 4 bytes, the schema the rest.
            let tools = vec![function("add", &format!("{{{}}}", " ".repeat(n - 6)))];
            configure(limits, v1::SessionConfig { tools, ..v1::SessionConfig::default() })
        },
    ),
    (
        "labels_per_session",
        |limits| &mut limits.labels_per_session,
        |limits, n| {
            let labels = (0..n).map(|at| (at.to_string(), String::new())).collect();
            create(limits, v1::Session { labels, ..v1::Session::default() })
        },
    ),
    (
        "label_key_chars",
        |limits| &mut limits.label_key_chars,
        |limits, n| {
            create(limits, v1::Session { labels: [("ü".repeat(n), String::new())].into(), ..v1::Session::default() })
        },
    ),
    (
        "label_value_chars",
        |limits| &mut limits.label_value_chars,
        |limits, n| {
            create(limits, v1::Session { labels: [("k".into(), "ü".repeat(n))].into(), ..v1::Session::default() })
        },
    ),
    (
        "label_value_chars",
        |limits| &mut limits.label_value_chars,
        |limits, n| create(limits, v1::Session { display_name: "ü".repeat(n), ..v1::Session::default() }),
    ),
    (
        "request_id_chars",
        |limits| &mut limits.request_id_chars,
        |limits, n| limits::request_id(limits, "ü".repeat(n)).map(drop),
    ),
    (
        "stop_strings",
        |limits| &mut limits.stop_strings,
        |limits, n| sample(limits, v1::Sampling { stop: vec!["x".into(); n], ..v1::Sampling::default() }),
    ),
    (
        "stop_string_bytes",
        |limits| &mut limits.stop_string_bytes,
        |limits, n| sample(limits, v1::Sampling { stop: vec!["x".repeat(n)], ..v1::Sampling::default() }),
    ),
    (
        "logit_bias_entries",
        |limits| &mut limits.logit_bias_entries,
        |limits, n| {
            let logit_bias = (0..u32::try_from(n).unwrap()).map(|token| (token, 1.0)).collect();
            sample(limits, v1::Sampling { logit_bias, ..v1::Sampling::default() })
        },
    ),
    (
        "constraint_bytes",
        |limits| &mut limits.constraint_bytes,
        |limits, n| constrain(limits, v1::constraint::Kind::Regex("x".repeat(n))),
    ),
    (
        "constraint_choices",
        |limits| &mut limits.constraint_choices,
        |limits, n| {
            let values = vec!["x".into(); n];
            constrain(limits, v1::constraint::Kind::Choice(v1::ChoiceConstraint { values }))
        },
    ),
    (
        "top_logprobs",
        |limits| &mut limits.top_logprobs,
        |limits, n| sample(limits, v1::Sampling { logprobs: u32::try_from(n).ok(), ..v1::Sampling::default() }),
    ),
];

#[test]
fn each_limit_admits_its_value_and_refuses_one_more() {
    for (name, of, request) in CASES {
        let mut limits = Limits::default();
        *of(&mut limits) = 20;
        request(&limits, 20).unwrap_or_else(|failure| panic!("{name}: {failure}"));
        let failure = request(&limits, 21).unwrap_err();
        assert_eq!(failure.reason, Reason::LimitExceeded, "{name}");
        let expected = FailureDetail::Limit { name: (*name).into(), limit: 20, requested: 21 };
        assert!(failure.details.contains(&expected), "{name}: {failure:?}");
    }
}

#[test]
fn the_defaults_hold_as_well() {
    let defaults: std::collections::BTreeMap<_, _> = Limits::default().entries().into_iter().collect();
    for (name, _, request) in CASES {
        let limit = usize::try_from(defaults[name]).unwrap();
        assert!(request(&Limits::default(), limit).is_ok(), "{name}");
        assert_eq!(request(&Limits::default(), limit + 1).unwrap_err().reason, Reason::LimitExceeded, "{name}");
    }
}
