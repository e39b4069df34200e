//! No request can panic the process: random bytes, and valid requests with random damage, through every converter.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use holdfast_contracts::v1;
use holdfast_types::{Failure, Limits};
use proptest::prelude::*;
use prost::Message;

use crate::field::Field;
use crate::{convert, filter, limits, names, paging, services, status};

/// Reads `bytes` as each request that has a converter, and counts those that accept them; a refusal has to become a status.
fn feed(limits: &Limits, bytes: &[u8]) -> usize {
    let mut accepted = 0;
    let mut outcome = |refusal: Option<Failure>| {
        accepted += usize::from(refusal.is_none());
        if let Some(failure) = refusal {
            let _ = status::turn_error(&failure);
            let status = status::from_failure(failure);
            assert!(status.message().len() < 1024 && status.details().len() < 6 * 1024);
        }
    };
    if let Ok(request) = v1::CreateSessionRequest::decode(bytes) {
        outcome(convert::session::create(limits, request).err());
    }
    if let Ok(request) = v1::UpdateSessionRequest::decode(bytes) {
        outcome(convert::update::update(limits, request).err());
    }
    if let Ok(request) = v1::RunTurnRequest::decode(bytes) {
        outcome(convert::turn::run(limits, request).err());
    }
    if let Ok(request) = v1::CreateTurnRequest::decode(bytes) {
        outcome(convert::turn::start(limits, request).err());
    }
    if let Ok(request) = v1::SubmitToolResultsRequest::decode(bytes) {
        outcome(convert::turn::submit(limits, request).err());
    }
    if let Ok(request) = v1::AppendItemsRequest::decode(bytes) {
        outcome(services::parse_append(limits, request).err());
    }
    if let Ok(request) = v1::GenerateRequest::decode(bytes) {
        outcome(services::parse_generate(limits, request).err());
    }
    if let Ok(request) = v1::CountTokensRequest::decode(bytes) {
        outcome(services::parse_count(limits, request).err());
    }
    if let Ok(request) = v1::ListSessionsRequest::decode(bytes) {
        outcome(filter::parse(limits, &request.filter).err());
        outcome(paging::token(request.page_token).err());
    }
    if let Ok(request) = v1::GetTurnRequest::decode(bytes) {
        outcome(names::parse_turn(Field::Root("name"), &request.name).err());
    }
    accepted
}

/// A request of each kind with as much in it as it can hold.
fn full_requests() -> Vec<Vec<u8>> {
    let content = vec![v1::ContentPart { part: Some(v1::content_part::Part::Text("text".into())) }];
    let kinds = [
        v1::item::Kind::Message(v1::Message { role: 3, content: content.clone() }),
        v1::item::Kind::Reasoning(v1::Reasoning { text: "hm".into() }),
        v1::item::Kind::ToolCall(v1::ToolCall { call_id: "c1".into(), name: "add".into(), ..v1::ToolCall::default() }),
        v1::item::Kind::ToolResult(v1::ToolResult { call_id: "c1".into(), content, is_error: true }),
    ];
    let items: Vec<_> = kinds.map(|kind| v1::Item { kind: Some(kind), ..v1::Item::default() }).into();
    let sampling = v1::Sampling {
        temperature: Some(1.0),
        logit_bias: [(1, 2.0)].into(),
        stop: vec!["x".into()],
        logprobs: Some(2),
        ..v1::Sampling::default()
    };
    let tools = vec![v1::Tool {
        kind: Some(v1::tool::Kind::Function(v1::FunctionTool {
            name: "add".into(),
            description: "adds".into(),
            parameters_json_schema: "{\"type\":\"object\"}".into(),
            strict: false,
        })),
    }];
    let config = v1::SessionConfig {
        model: "models/pebble".into(),
        tools: tools.clone(),
        sampling: Some(sampling.clone()),
        ..v1::SessionConfig::default()
    };
    let session = v1::Session {
        name: "sessions/session-1".into(),
        config: Some(config),
        labels: [("k".into(), "v".into())].into(),
        expiration: Some(v1::session::Expiration::Ttl(prost_types::Duration { seconds: 5, nanos: 0 })),
        idle_timeout: Some(prost_types::Duration { seconds: 5, nanos: 0 }),
        ..v1::Session::default()
    };
    let options = v1::TurnOptions {
        sampling: Some(sampling),
        tool_choice: Some(v1::ToolChoice { choice: Some(v1::tool_choice::Choice::Name("add".into())) }),
        allowed_tools: vec!["add".into()],
        constraint: Some(v1::Constraint { kind: Some(v1::constraint::Kind::JsonSchema("{}".into())) }),
        parallel_tool_calls: Some(false),
        turn_deadline: Some(prost_types::Duration { seconds: 5, nanos: 1 }),
        expected_last_turn: Some(3),
        ..v1::TurnOptions::default()
    };
    let mut create = session.clone();
    create.name = String::new();
    vec![
        v1::CreateSessionRequest {
            session_id: "session-1".into(),
            session: Some(create),
            initial_items: items.clone(),
            request_id: "r".into(),
        }
        .encode_to_vec(),
        v1::UpdateSessionRequest {
            session: Some(session),
            update_mask: Some(prost_types::FieldMask { paths: vec!["labels".into(), "config.tools".into()] }),
        }
        .encode_to_vec(),
        v1::RunTurnRequest {
            session: "sessions/session-1".into(),
            input: items.clone(),
            options: Some(options),
            ..v1::RunTurnRequest::default()
        }
        .encode_to_vec(),
        v1::GenerateRequest { items, tools, ..v1::GenerateRequest::default() }.encode_to_vec(),
        v1::ListSessionsRequest {
            filter: "state = IDLE AND labels.k = \"v\\\"\"".into(),
            page_token: "t".into(),
            ..v1::ListSessionsRequest::default()
        }
        .encode_to_vec(),
        v1::GetTurnRequest { name: "sessions/session-1/turns/1".into(), ..v1::GetTurnRequest::default() }
            .encode_to_vec(),
    ]
}

#[test]
fn whole_requests_are_what_the_damage_starts_from() {
    for bytes in full_requests() {
        assert!(feed(&Limits::default(), &bytes) > 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        feed(&Limits::default(), &bytes);
    }

    #[test]
    fn damaged_requests_are_read_or_refused(
        which in 0..6_usize,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = full_requests().swap_remove(which);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        feed(&Limits::default(), &bytes);
    }

    #[test]
    fn any_filter_and_name_is_read_or_refused(text in "\\PC{0,40}|(state|model|labels\\.[a-z]*|AND|=|\"|\\\\| |IDLE){0,12}") {
        let _ = filter::parse(&Limits::default(), &text);
        let _ = names::parse_session(Field::Root("name"), &text);
        let _ = names::parse_turn(Field::Root("name"), &format!("sessions/{text}/turns/{text}"));
        let _ = names::parse_model(Field::Root("name"), &text);
    }

    #[test]
    fn any_text_comes_back_from_an_item(text in any::<String>(), call_id in "[ -~]{1,20}") {
        let content = vec![v1::ContentPart { part: Some(v1::content_part::Part::Text(text)) }];
        let kind = v1::item::Kind::ToolResult(v1::ToolResult { call_id, content, is_error: false });
        let sent = v1::Item { kind: Some(kind), ..v1::Item::default() };
        let parsed = convert::item::items(&Limits::default(), Field::Root("input"), vec![sent.clone()]).unwrap();
        let back = convert::item::started(names::Home::Completion, holdfast_types::ItemNumber(1), None, &parsed[0]);
        prop_assert_eq!(back.kind, sent.kind);
    }

    #[test]
    fn clipping_never_splits_a_character(text in any::<String>(), bytes in 0..64_usize) {
        let clipped = limits::clip(&text, bytes);
        prop_assert!(clipped.len() <= bytes && text.starts_with(clipped));
    }
}
