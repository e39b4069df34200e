//! Round trips and refusals of the converters.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use holdfast_contracts::v1;
use holdfast_contracts::v1::item::Kind;
use holdfast_types::{
    Digest, Event, EventKind, Failure, FailureDetail, GenerationRecord, Item, ItemNumber, Limits, ModelRevision,
    ModelledUsage, NumericsClass, Reason, RequiredCall, Role, SamplingOverrides, SessionConfig, SessionId,
    SessionState, StopReason, TokenLogprob, TokenRange, ToolChoice, Turn, TurnNumber, TurnState, Usage,
};
use holdfast_worker_api::{CompletionEvent, Session};

use super::{event, item, sampling, session, tool, turn, update};
use crate::field::Field;
use crate::names::Home;

/// A message of a role with one text.
pub(super) fn message(role: v1::Role, text: &str) -> v1::Item {
    let content = vec![v1::ContentPart { part: Some(v1::content_part::Part::Text(text.into())) }];
    v1::Item { kind: Some(Kind::Message(v1::Message { role: role as i32, content })), ..v1::Item::default() }
}

/// A tool result with one text.
pub(super) fn tool_result(call_id: &str, text: &str) -> v1::ToolResult {
    let content = vec![v1::ContentPart { part: Some(v1::content_part::Part::Text(text.into())) }];
    v1::ToolResult { call_id: call_id.into(), content, is_error: true }
}

/// A tool call.
pub(super) fn tool_call(call_id: &str) -> v1::ToolCall {
    v1::ToolCall { call_id: call_id.into(), name: "add".into(), arguments: "{\"a\":".into(), parse_error: None }
}

/// A function.
pub(super) fn function(name: &str, schema: &str) -> v1::Tool {
    v1::Tool {
        kind: Some(v1::tool::Kind::Function(v1::FunctionTool {
            name: name.into(),
            description: "adds".into(),
            parameters_json_schema: schema.into(),
            strict: false,
        })),
    }
}

/// Sampling with every field set.
pub(super) fn full_sampling() -> v1::Sampling {
    v1::Sampling {
        temperature: Some(0.5),
        top_k: Some(7),
        top_p: Some(0.9),
        min_p: Some(0.1),
        seed: Some(u64::MAX),
        stop: vec!["\n\n".into(), "END".into()],
        frequency_penalty: Some(-1.0),
        presence_penalty: Some(1.0),
        repetition_penalty: Some(1.5),
        logit_bias: [(9, f32::NEG_INFINITY), (2, 1.5)].into(),
        logprobs: Some(3),
        max_output_tokens: Some(100),
    }
}

/// A config with every field set.
pub(super) fn full_config() -> v1::SessionConfig {
    v1::SessionConfig {
        model: "models/pebble".into(),
        instructions: "Be brief.\0".into(),
        tools: vec![function("add", "{\"type\":\"object\"}"), function("sub", "")],
        template: "tools".into(),
        reasoning_retention: v1::ReasoningRetention::DropAtNextUserMessage as i32,
        sharing: v1::Sharing::Private as i32,
        numerics_policy: v1::NumericsPolicy::RequireSame as i32,
        sampling: Some(full_sampling()),
        reasoning_effort: v1::ReasoningEffort::Low as i32,
    }
}

fn limits() -> Limits {
    Limits::default()
}

fn reason<T: std::fmt::Debug>(result: Result<T, Failure>) -> Reason {
    result.unwrap_err().reason
}

fn path(failure: &Failure) -> &str {
    let of_field = |detail: &'_ FailureDetail| matches!(detail, FailureDetail::Field { .. });
    match failure.details.iter().find(|detail| of_field(detail)) {
        Some(FailureDetail::Field { path, .. }) => path,
        _ => "",
    }
}

#[test]
fn items_of_every_kind_come_back_as_they_went_in() {
    let sent = vec![
        message(v1::Role::System, "s"),
        message(v1::Role::Developer, "d"),
        message(v1::Role::User, "any UTF-8: \0 \u{1b} ü 🦀"),
        message(v1::Role::Assistant, ""),
        v1::Item { kind: Some(Kind::Reasoning(v1::Reasoning { text: "hm".into() })), ..v1::Item::default() },
        v1::Item { kind: Some(Kind::ToolCall(tool_call("c1"))), ..v1::Item::default() },
        v1::Item {
            kind: Some(Kind::ToolResult(tool_result("c1", "3"))),
            state: v1::ItemState::Complete as i32,
            ..v1::Item::default()
        },
    ];
    let parsed = item::items(&limits(), Field::Root("input"), sent.clone()).unwrap();
    let id = SessionId::parse("session-1").unwrap();
    for (at, (sent, parsed)) in sent.iter().zip(&parsed).enumerate() {
        let number = ItemNumber(u32::try_from(at).unwrap() + 1);
        let back = item::done(Home::Session(&id), number, Some(TurnNumber(2)), TokenRange { start: 3, end: 5 }, parsed);
        assert_eq!(back.kind, sent.kind);
        assert_eq!(back.name, format!("sessions/session-1/items/{}", at + 1));
        assert_eq!(back.turn, "sessions/session-1/turns/2");
        assert_eq!(back.state, v1::ItemState::Complete as i32);
        assert_eq!(back.token_range, Some(v1::TokenRange { start: 3, end: 5 }));
    }
}

#[test]
fn wrong_items_are_refused_by_path() {
    let base = message(v1::Role::User, "x");
    let part = |part| v1::Item {
        kind: Some(Kind::Message(v1::Message { role: v1::Role::User as i32, content: vec![v1::ContentPart { part }] })),
        ..v1::Item::default()
    };
    let image = v1::content_part::Part::Image(v1::ImagePart::default());
    let file = v1::content_part::Part::File(v1::FilePart::default());
    let call = |call| v1::Item { kind: Some(Kind::ToolCall(call)), ..v1::Item::default() };
    for (item, wanted, at) in [
        (v1::Item { name: "x".into(), ..base.clone() }, Reason::InvalidArgument, "input[0].name"),
        (v1::Item { turn: "x".into(), ..base.clone() }, Reason::InvalidArgument, "input[0].turn"),
        (v1::Item { state: 2, ..base.clone() }, Reason::InvalidArgument, "input[0].state"),
        (v1::Item { state: 99, ..base.clone() }, Reason::InvalidArgument, "input[0].state"),
        (
            v1::Item { token_range: Some(v1::TokenRange::default()), ..base.clone() },
            Reason::InvalidArgument,
            "input[0].token_range",
        ),
        (v1::Item::default(), Reason::InvalidArgument, "input[0]"),
        (message(v1::Role::Unspecified, "x"), Reason::InvalidArgument, "input[0].message.role"),
        (
            v1::Item { kind: Some(Kind::Message(v1::Message { role: 3, content: vec![] })), ..v1::Item::default() },
            Reason::InvalidArgument,
            "input[0].message.content",
        ),
        (part(None), Reason::InvalidArgument, "input[0].message.content[0]"),
        (part(Some(image)), Reason::FieldNotImplemented, "input[0].message.content[0].image"),
        (part(Some(file)), Reason::FieldNotImplemented, "input[0].message.content[0].file"),
        (call(tool_call("")), Reason::InvalidArgument, "input[0].tool_call.call_id"),
        (call(tool_call("a\u{7}")), Reason::InvalidArgument, "input[0].tool_call.call_id"),
        (
            call(v1::ToolCall { parse_error: Some("x".into()), ..tool_call("c") }),
            Reason::InvalidArgument,
            "input[0].tool_call.parse_error",
        ),
    ] {
        let failure = item::items(&limits(), Field::Root("input"), vec![item]).unwrap_err();
        assert_eq!((failure.reason, path(&failure)), (wanted, at));
    }
    assert_eq!(reason(item::tool_results(&limits(), Field::Root("results"), vec![])), Reason::InvalidArgument);
}

#[test]
fn configs_come_back_as_they_went_in() {
    let parsed = session::config(&limits(), Field::Root("config"), full_config()).unwrap();
    assert_eq!(parsed.model, "pebble");
    assert_eq!(parsed.sampling.logit_bias.as_deref(), Some(&[(2, 1.5), (9, f32::NEG_INFINITY)][..]), "by token");
    assert_eq!(session::config_out(&parsed), full_config());
    let empty = session::config(&limits(), Field::Root("config"), v1::SessionConfig::default()).unwrap();
    assert_eq!(empty, SessionConfig::default());
    assert_eq!(session::config_out(&empty).sampling, None);
}

#[test]
fn sampling_values_that_are_no_numbers_are_refused_by_name() {
    for (sampling, at) in [
        (v1::Sampling { temperature: Some(f32::NAN), ..v1::Sampling::default() }, "sampling.temperature"),
        (v1::Sampling { top_p: Some(f32::INFINITY), ..v1::Sampling::default() }, "sampling.top_p"),
        (v1::Sampling { min_p: Some(f32::NEG_INFINITY), ..v1::Sampling::default() }, "sampling.min_p"),
        (v1::Sampling { frequency_penalty: Some(f32::NAN), ..v1::Sampling::default() }, "sampling.frequency_penalty"),
        (v1::Sampling { presence_penalty: Some(f32::NAN), ..v1::Sampling::default() }, "sampling.presence_penalty"),
        (v1::Sampling { repetition_penalty: Some(f32::NAN), ..v1::Sampling::default() }, "sampling.repetition_penalty"),
        (v1::Sampling { logit_bias: [(1, f32::NAN)].into(), ..v1::Sampling::default() }, "sampling.logit_bias"),
        (v1::Sampling { logit_bias: [(1, f32::INFINITY)].into(), ..v1::Sampling::default() }, "sampling.logit_bias"),
        (v1::Sampling { stop: vec!["a".into(), String::new()], ..v1::Sampling::default() }, "sampling.stop[1]"),
    ] {
        let failure = sampling::overrides(&limits(), Field::Root("sampling"), Some(sampling)).unwrap_err();
        assert_eq!((failure.reason, path(&failure)), (Reason::InvalidSampling, at));
    }
    let control = v1::Sampling { stop: vec!["\0".into()], ..v1::Sampling::default() };
    assert_eq!(reason(sampling::overrides(&limits(), Field::Root("sampling"), Some(control))), Reason::InvalidArgument);
}

#[test]
fn settings_in_force_are_written_whole() {
    let layer = sampling::overrides(&limits(), Field::Root("sampling"), Some(full_sampling())).unwrap();
    assert_eq!(sampling::settings(&layer.resolve(0, 0)), full_sampling());
    let built_in = sampling::settings(&SamplingOverrides::default().resolve(5, 512));
    assert_eq!((built_in.seed, built_in.max_output_tokens, built_in.temperature), (Some(5), Some(512), Some(0.0)));
}

#[test]
fn log_probabilities_stand_at_their_positions() {
    let one = |id, logprob| TokenLogprob { id, logprob };
    let range = TokenRange { start: 10, end: 12 };
    let out = sampling::logprobs(range, &[vec![one(1, -0.5), one(1, -0.5), one(2, -1.0)], vec![one(3, f32::MIN)]]);
    assert_eq!(out.len(), 2);
    assert_eq!((out[0].position, out[0].token, out[0].top.len()), (10, 1, 2));
    assert_eq!((out[1].position, out[1].token, out[1].top.len()), (11, 3, 0));
}

#[test]
fn tools_are_checked() {
    let tools = |tools| tool::tools(&limits(), Field::Root("tools"), tools);
    assert!(tools(vec![function("a.b-c_D1", "{}")]).is_ok());
    for bad in [
        vec![v1::Tool::default()],
        vec![function("", "")],
        vec![function("has space", "")],
        vec![function(&"x".repeat(65), "")],
        vec![function("a", "[]")],
        vec![function("a", "{")],
        vec![function("a", &"{\"a\":".repeat(1000))],
        vec![function("a", ""), function("b", ""), function("a", "")],
    ] {
        assert_eq!(reason(tools(bad)), Reason::InvalidTool);
    }
    let choose = |choice| tool::choice(Field::Root("tool_choice"), Some(v1::ToolChoice { choice: Some(choice) }));
    use v1::tool_choice::Choice;
    assert_eq!(choose(Choice::Auto(())).unwrap(), ToolChoice::Auto);
    assert_eq!(choose(Choice::None(())).unwrap(), ToolChoice::None);
    assert_eq!(choose(Choice::Required(())).unwrap(), ToolChoice::Required);
    assert_eq!(choose(Choice::Name("add".into())).unwrap(), ToolChoice::Name("add".into()));
    assert_eq!(reason(choose(Choice::Name(String::new()))), Reason::InvalidTool);
    assert_eq!(tool::choice(Field::Root("tool_choice"), None).unwrap(), ToolChoice::Auto);
    assert_eq!(tool::allowed(&limits(), Field::Root("allowed_tools"), vec![]).unwrap(), None);
}

#[test]
fn a_session_to_make_holds_no_output_only_field() {
    let request = |session| v1::CreateSessionRequest { session: Some(session), ..v1::CreateSessionRequest::default() };
    let stamp = Some(prost_types::Timestamp::default());
    for (session, at) in [
        (v1::Session { name: "sessions/session-1".into(), ..v1::Session::default() }, "session.name"),
        (v1::Session { state: 1, ..v1::Session::default() }, "session.state"),
        (v1::Session { revision: Some(v1::ModelRevision::default()), ..v1::Session::default() }, "session.revision"),
        (v1::Session { etag: "x".into(), ..v1::Session::default() }, "session.etag"),
        (v1::Session { create_time: stamp, ..v1::Session::default() }, "session.create_time"),
        (v1::Session { update_time: stamp, ..v1::Session::default() }, "session.update_time"),
        (v1::Session { purge_time: stamp, ..v1::Session::default() }, "session.purge_time"),
        (v1::Session { last_turn: 1, ..v1::Session::default() }, "session.last_turn"),
        (v1::Session { last_item: 1, ..v1::Session::default() }, "session.last_item"),
        (v1::Session { last_sequence: 1, ..v1::Session::default() }, "session.last_sequence"),
        (v1::Session { context_used_tokens: 1, ..v1::Session::default() }, "session.context_used_tokens"),
        (v1::Session { context_limit_tokens: 1, ..v1::Session::default() }, "session.context_limit_tokens"),
    ] {
        let failure = session::create(&limits(), request(session)).unwrap_err();
        assert_eq!((failure.reason, path(&failure)), (Reason::InvalidArgument, at));
    }
    let made = session::create(&limits(), v1::CreateSessionRequest::default()).unwrap();
    assert_eq!(made, holdfast_worker_api::CreateSession::default());
}

#[test]
fn an_update_without_a_mask_changes_what_is_set() {
    let request = |session| v1::UpdateSessionRequest { session: Some(session), update_mask: None };
    let name = || "sessions/session-1".to_owned();
    let update = update::update(
        &limits(),
        request(v1::Session {
            name: name(),
            etag: "e1".into(),
            labels: [("k".into(), "v".into())].into(),
            expiration: Some(v1::session::Expiration::Ttl(prost_types::Duration { seconds: 60, nanos: 0 })),
            config: Some(v1::SessionConfig { sampling: Some(full_sampling()), ..v1::SessionConfig::default() }),
            ..v1::Session::default()
        }),
    )
    .unwrap();
    assert_eq!(update.etag.as_deref(), Some("e1"));
    assert_eq!((update.patch.display_name, update.patch.expire_time_us, update.patch.ttl_s), (None, None, Some(60)));
    assert_eq!(update.patch.labels.unwrap()["k"], "v");
    let config = update.config.unwrap();
    assert_eq!(config.fields, ["sampling"]);
    assert_eq!(config.values.sampling.top_k, Some(7));
    let output_only = v1::Session { name: name(), last_turn: 3, ..v1::Session::default() };
    assert_eq!(path(&update::update(&limits(), request(output_only)).unwrap_err()), "session.last_turn");
    let absent = v1::UpdateSessionRequest::default();
    assert_eq!(path(&update::update(&limits(), absent).unwrap_err()), "session");
}

#[test]
fn a_mask_says_what_is_set_and_what_is_cleared() {
    let request = |paths: &[&str], session: v1::Session| v1::UpdateSessionRequest {
        session: Some(v1::Session { name: "sessions/session-1".into(), ..session }),
        update_mask: Some(prost_types::FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() }),
    };
    let update = |paths: &[&str], session| update::update(&limits(), request(paths, session));
    let cleared =
        update(&["display_name", "labels", "ttl", "idle_timeout", "config.tools"], v1::Session::default()).unwrap();
    assert_eq!(cleared.patch.display_name.as_deref(), Some(""));
    assert!(cleared.patch.labels.unwrap().is_empty());
    assert_eq!((cleared.patch.expire_time_us, cleared.patch.idle_timeout_s), (Some(None), Some(None)));
    assert_eq!(cleared.config.unwrap().fields, ["tools"]);

    let whole = v1::Session { config: Some(full_config()), last_turn: 9, ..v1::Session::default() };
    let config = update(&["config"], whole.clone()).unwrap().config.unwrap();
    assert_eq!(config.fields.len(), 9);
    assert_eq!(session::config_out(&config.values), full_config());
    let config = update(&["config.instructions"], whole).unwrap().config.unwrap();
    assert_eq!((config.values.instructions.as_str(), config.values.model.as_str()), ("Be brief.\0", ""));

    for bad in ["name", "etag", "state", "config.nothing", "config.sampling.temperature", "labels.k", "*", ""] {
        let failure = update(&["labels", bad], v1::Session::default()).unwrap_err();
        assert_eq!((failure.reason, path(&failure)), (Reason::InvalidArgument, "update_mask.paths[1]"), "{bad:?}");
    }
    let ttl = v1::session::Expiration::Ttl(prost_types::Duration { seconds: 60, nanos: 0 });
    let other = v1::Session { expiration: Some(ttl), ..v1::Session::default() };
    assert_eq!(path(&update(&["expire_time"], other).unwrap_err()), "session.ttl");
}

#[test]
fn turns_are_read_with_their_options() {
    let options = v1::TurnOptions {
        sampling: Some(full_sampling()),
        allowed_tools: vec!["add".into()],
        on_busy: v1::OnBusy::Queue as i32,
        unresolved_calls: v1::UnresolvedCalls::CloseAsCancelled as i32,
        turn_deadline: Some(prost_types::Duration { seconds: 2, nanos: 500_000_000 }),
        expected_last_turn: Some(0),
        discard_partial: true,
        constraint: Some(v1::Constraint { kind: Some(v1::constraint::Kind::JsonSchema("{}".into())) }),
        parallel_tool_calls: Some(false),
        ..v1::TurnOptions::default()
    };
    let request = v1::RunTurnRequest {
        session: "sessions/session-1".into(),
        input: vec![message(v1::Role::User, "hi")],
        options: Some(options),
        request_id: "r1".into(),
        on_disconnect: v1::OnDisconnect::Cancel as i32,
        ..v1::RunTurnRequest::default()
    };
    let turn::Run::Start(start) = turn::run(&limits(), request).unwrap() else { panic!("not a new turn") };
    assert_eq!(start.input, [Item::message(Role::User, "hi")]);
    assert_eq!(start.on_busy, holdfast_types::OnBusy::Queue);
    assert_eq!(start.on_disconnect, holdfast_types::OnDisconnect::Cancel);
    assert_eq!(start.unresolved_calls, holdfast_types::UnresolvedCalls::CloseAsCancelled);
    assert_eq!((start.turn_deadline_ms, start.expected_last_turn), (Some(2500), Some(TurnNumber(0))));
    assert_eq!(start.constraint, Some(holdfast_types::Constraint::JsonSchema("{}".into())));
    assert!(start.single_call);
    assert_eq!((start.request_id.as_deref(), start.discard_partial, start.continue_last), (Some("r1"), true, false));
}

#[test]
fn turns_that_contradict_themselves_are_refused() {
    let input = || vec![message(v1::Role::User, "hi")];
    let run = |input, options: v1::TurnOptions| {
        let session = "sessions/session-1".to_owned();
        let request = v1::RunTurnRequest { session, input, options: Some(options), ..v1::RunTurnRequest::default() };
        turn::run(&limits(), request).unwrap_err()
    };
    let options = v1::TurnOptions::default;
    assert_eq!(run(vec![], options()).reason, Reason::EmptyTurn);
    for (input, options, wanted, at) in [
        (
            input(),
            v1::TurnOptions { continue_last: true, ..options() },
            Reason::InvalidArgument,
            "options.continue_last",
        ),
        (
            vec![],
            v1::TurnOptions { continue_last: true, discard_partial: true, ..options() },
            Reason::InvalidArgument,
            "options.discard_partial",
        ),
        (input(), v1::TurnOptions { on_busy: 3, ..options() }, Reason::FieldNotImplemented, "options.on_busy.STEER"),
        (
            input(),
            v1::TurnOptions { on_busy: 4, ..options() },
            Reason::FieldNotImplemented,
            "options.on_busy.INTERRUPT",
        ),
        (input(), v1::TurnOptions { on_busy: 5, ..options() }, Reason::InvalidArgument, "options.on_busy"),
        (
            input(),
            v1::TurnOptions { constraint: Some(v1::Constraint::default()), ..options() },
            Reason::InvalidArgument,
            "options.constraint",
        ),
        (
            input(),
            v1::TurnOptions { turn_deadline: Some(prost_types::Duration::default()), ..options() },
            Reason::InvalidArgument,
            "options.turn_deadline",
        ),
    ] {
        let failure = run(input, options);
        assert_eq!((failure.reason, path(&failure)), (wanted, at));
    }
}

#[test]
fn a_turn_is_continued_by_its_results_alone() {
    let result = v1::Item { kind: Some(Kind::ToolResult(tool_result("c1", "3"))), ..v1::Item::default() };
    let good = v1::RunTurnRequest {
        session: "sessions/session-1".into(),
        turn: "sessions/session-1/turns/4".into(),
        input: vec![result],
        ..v1::RunTurnRequest::default()
    };
    let turn::Run::Continue(submit) = turn::run(&limits(), good.clone()).unwrap() else { panic!("a new turn") };
    assert_eq!((submit.turn, submit.results.len()), (Some(TurnNumber(4)), 1));
    let user = message(v1::Role::User, "x");
    for (bad, at) in [
        (v1::RunTurnRequest { turn: "sessions/session-2/turns/4".into(), ..good.clone() }, "turn"),
        (v1::RunTurnRequest { options: Some(v1::TurnOptions::default()), ..good.clone() }, "options"),
        (v1::RunTurnRequest { on_disconnect: 1, ..good.clone() }, "on_disconnect"),
        (v1::RunTurnRequest { input: vec![], ..good.clone() }, "input"),
        (v1::RunTurnRequest { input: vec![user], ..good.clone() }, "input[0]"),
    ] {
        let failure = turn::run(&limits(), bad).unwrap_err();
        assert_eq!((failure.reason, path(&failure)), (Reason::InvalidArgument, at));
    }
}

#[test]
fn modelled_cost_is_added_to_a_turn_and_its_generations_only_when_asked_for() {
    let modelled = ModelledUsage { chip: "inf2".parse().unwrap(), chip_time_ns: 7_000, cost_usd: Some(2e-6) };
    let mut told = a_turn();
    told.usage.modelled = Some(modelled);
    let mut answer = turn::of_session(&SessionId::parse("session-1").unwrap(), &told);
    let cost = |usage: &Option<v1::Usage>| usage.as_ref().and_then(|usage| usage.modelled_cost.clone());
    assert_eq!(cost(&answer.usage), None);
    turn::add_modelled_cost(&mut answer, &told);
    let sum = cost(&answer.usage).unwrap();
    assert_eq!((sum.chip.as_str(), sum.chip_time_us, sum.cost_usd_micros), ("inf2", 7, Some(2)));
    assert_eq!(cost(&answer.generations[0].usage), None, "what was not modelled stays absent");
}

fn a_turn() -> Turn {
    let usage = Usage { output_tokens: 3, ..Usage::default() };
    Turn {
        number: TurnNumber(2),
        state: TurnState::Failed,
        stop_reason: None,
        generations: vec![GenerationRecord { stop_reason: StopReason::ToolCall, usage }],
        usage,
        required_calls: vec![RequiredCall {
            call_id: "c1".into(),
            name: "add".into(),
            arguments: "{".into(),
            parse_error: Some("no".into()),
            answered: true,
        }],
        settings: SamplingOverrides::default().resolve(1, 512),
        created_us: 1_000_000,
        started_us: Some(2_000_000),
        ended_us: None,
        deadline_us: Some(3_000_001),
        failure: Some(Failure::limit("turns_in_progress", 1, 2)),
        first_sequence: 5,
        last_sequence: 9,
    }
}

#[test]
fn turns_are_written_with_names_times_and_their_error() {
    let id = SessionId::parse("session-1").unwrap();
    let out = turn::of_session(&id, &a_turn());
    assert_eq!(out.name, "sessions/session-1/turns/2");
    assert_eq!(out.state(), v1::TurnState::Failed);
    assert_eq!(out.stop_reason(), v1::StopReason::Unspecified);
    assert_eq!(out.generations[0].stop_reason(), v1::StopReason::ToolCall);
    assert_eq!(out.deadline_time, Some(prost_types::Timestamp { seconds: 3, nanos: 1_000 }));
    assert_eq!(out.end_time, None);
    assert_eq!((out.first_sequence, out.last_sequence), (5, 9));
    assert!(out.required_calls[0].answered);
    let error = out.error.unwrap();
    assert_eq!((error.code, error.reason()), (8, v1::ErrorReason::LimitExceeded));
    assert_eq!(error.metadata["limitName"], "turns_in_progress");
}

#[test]
fn events_keep_their_numbers_and_get_full_names() {
    let id = SessionId::parse("session-1").unwrap();
    let delta = EventKind::TextDelta {
        item: ItemNumber(4),
        text: "hé".into(),
        tokens: TokenRange { start: 1, end: 3 },
        logprobs: vec![],
    };
    let out = event::of_session(&id, &Event { sequence: 7, turn: TurnNumber(2), time_us: 1, kind: delta });
    assert_eq!((out.session.as_str(), out.turn.as_str()), ("sessions/session-1", "sessions/session-1/turns/2"));
    assert_eq!((out.sequence, out.first_sequence), (7, 7));
    let Some(v1::event::Kind::TextDelta(delta)) = out.kind else { panic!("not a delta") };
    assert_eq!((delta.item.as_str(), delta.text.as_str()), ("sessions/session-1/items/4", "hé"));
}

#[test]
fn a_completion_s_events_are_numbered_in_the_stream() {
    let mut last = 0;
    let started = || EventKind::ItemStarted { number: ItemNumber(1), item: Item::message(Role::Assistant, "") };
    let kinds = [
        EventKind::TurnQueued { position: 1 },
        EventKind::TurnStarted { turn: Box::new(a_turn()) },
        EventKind::PrefillProgress { done: 1, total: 2 },
        started(),
        EventKind::TurnEnded { turn: Box::new(a_turn()) },
    ];
    let out = kinds.map(|kind| event::of_completion(&mut last, &CompletionEvent { time_us: 1, kind }));
    assert_eq!(out.each_ref().map(|event| event.sequence), [0, 1, 0, 2, 3]);
    assert!(out.iter().all(|event| event.session.is_empty() && event.turn.is_empty()));
    let Some(v1::event::Kind::ItemStarted(started)) = &out[3].kind else { panic!("not an item") };
    let item = started.item.as_ref().unwrap();
    assert_eq!((item.name.as_str(), item.turn.as_str(), item.state, item.token_range), ("items/1", "", 0, None));
    let Some(v1::event::Kind::TurnEnded(ended)) = &out[4].kind else { panic!("not the end") };
    assert_eq!(ended.turn.as_ref().unwrap().name, "");
}

#[test]
fn sessions_are_written_with_what_they_are_pinned_to() {
    let out = session::session(&Session {
        id: SessionId::parse("session-1").unwrap(),
        state: SessionState::Suspended,
        config: SessionConfig { model: "pebble".into(), ..SessionConfig::default() },
        revision: ModelRevision {
            weights: Digest([0xab; 32]),
            tokenizer: Digest::default(),
            template: Digest::default(),
            numerics_class: NumericsClass::new("neuron/f32/r1"),
            build: "0.1.0+abc".into(),
        },
        display_name: "n".into(),
        labels: [("k".into(), "v".into())].into(),
        etag: "e".into(),
        created_us: 1,
        updated_us: 2,
        expire_time_us: Some(3_000_000),
        idle_timeout_s: Some(60),
        purge_time_us: None,
        turns: 4,
        items: 5,
        context_tokens: 6,
        context_limit: 7,
        last_sequence: 8,
    });
    assert_eq!((out.name.as_str(), out.state()), ("sessions/session-1", v1::SessionState::Suspended));
    let revision = out.revision.unwrap();
    assert_eq!((revision.model.as_str(), revision.weights_digest), ("models/pebble", "ab".repeat(32)));
    assert_eq!((out.last_turn, out.last_item, out.last_sequence), (4, 5, 8));
    assert_eq!((out.context_used_tokens, out.context_limit_tokens), (6, 7));
    assert_eq!(out.idle_timeout.unwrap().seconds, 60);
    assert!(matches!(out.expiration, Some(v1::session::Expiration::ExpireTime(at)) if at.seconds == 3));
}
