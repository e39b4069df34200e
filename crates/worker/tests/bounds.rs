//! What bounds a session and what holds across restarts: limits by name, deadlines, usage of what was interrupted, and
//! completions that leave nothing behind.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use harness::{Disk, World, model, session, settings, user, with_tools};
use holdfast_types::{
    EventKind, Failure, FailureDetail, Item, Limits, OnBusy, Reason, ReasoningEffort, Role, SamplingOverrides,
    SessionConfig, SessionState, StopReason, ToolChoice, Turn, TurnNumber, TurnState,
};
use holdfast_worker::core::{Input, Reply, Request};
use holdfast_worker_api::{
    AppendItems, CancelTurn, ConfigPatch, CountTokens, CreateSession, Generate, SessionPatch, StartTurn, UpdateSession,
};

/// A world with some limits changed and session `a`.
fn limited(config: SessionConfig, change: impl FnOnce(&mut Limits)) -> World {
    let mut settings = settings();
    change(&mut settings.limits);
    let mut world = World::on(Disk::default(), settings, model(None, "toy/1"));
    world.create("a", config);
    world
}

fn names(failure: &Failure, limit: &str) -> bool {
    failure.details.iter().any(|detail| matches!(detail, FailureDetail::Limit { name, .. } if name == limit))
}

fn queued(name: &str, text: &str) -> StartTurn {
    StartTurn { on_busy: OnBusy::Queue, ..user(name, text) }
}

#[test]
fn items_per_session_counts_what_was_sampled_and_leaves_room_for_an_answer() {
    let mut world = limited(SessionConfig::default(), |limits| limits.items_per_session = 5);
    world.say("a", "one");
    world.say("a", "two");
    assert_eq!(world.texts("a").len(), 4, "two questions, two answers");
    let failure = world.start(user("a", "three")).unwrap_err();
    assert_eq!(failure.reason, Reason::LimitExceeded);
    assert!(names(&failure, "items_per_session"), "{failure:?}");
    let append = |text: &str| AppendItems {
        session: session("a"),
        items: vec![Item::message(Role::User, text)],
        prefill: false,
        request_id: None,
    };
    world.ask(Request::AppendItems(append("a fifth, which nobody answers"))).unwrap();
    assert!(names(&world.ask(Request::AppendItems(append("six"))).unwrap_err(), "items_per_session"));
    assert_eq!(world.show("a").items, 5);
}

#[test]
fn calls_per_turn_fails_the_turn_and_leaves_the_session_usable() {
    let mut settings = settings();
    settings.limits.calls_per_turn = 2;
    let mut world = World::on(Disk::default(), settings, model(Some("</call>"), "toy/1"));
    world.create("a", with_tools(&["x"]));
    let two = world.say("a", "^x:1</call>^x:2</call>");
    assert_eq!((two.state, two.required_calls.len()), (TurnState::RequiresAction, 2));
    world.results("a", &[("call_1_0_1", "fine"), ("call_1_0_2", "^x:3</call>")]).unwrap();
    world.settle();
    let turn = world.turn("a", 1);
    let failure = turn.failure.unwrap();
    assert_eq!(
        (turn.state, failure.reason),
        (TurnState::Failed, Reason::LimitExceeded),
        "a third, over all generations"
    );
    assert!(names(&failure, "calls_per_turn"));
    assert_eq!(world.say("a", "go on").state, TurnState::Completed);
}

#[test]
fn turns_in_progress_counts_what_waits_or_runs_anywhere_and_not_what_waits_for_its_client() {
    let mut world = limited(with_tools(&["x"]), |limits| limits.turns_in_progress = 2);
    world.create("b", SessionConfig::default());
    world.create("c", SessionConfig::default());
    world.start(user("a", "a long answer")).unwrap();
    world.start(queued("a", "^x:1")).unwrap();
    let failure = world.start(user("b", "hi")).unwrap_err();
    assert_eq!(failure.reason, Reason::QueueFull);
    assert!(names(&failure, "turns_in_progress"));
    assert!(failure.details.iter().any(|detail| matches!(detail, FailureDetail::RetryAfter { .. })));
    let generate = || Generate { items: vec![Item::message(Role::User, "hi")], ..Default::default() };
    assert!(names(&world.ask(Request::Generate(generate())).unwrap_err(), "turns_in_progress"), "completions too");
    world.settle();
    assert_eq!(world.turn("a", 2).state, TurnState::RequiresAction);
    world.start(user("b", "hi")).unwrap();
    world.ask(Request::Generate(generate())).unwrap();
    assert!(names(&world.start(user("c", "hi")).unwrap_err(), "turns_in_progress"));
    world.settle();
    assert_eq!(world.say("c", "hi").state, TurnState::Completed);
}

#[test]
fn turns_per_session_ends_a_session_by_name() {
    let mut world = limited(SessionConfig::default(), |limits| limits.turns_per_session = 2);
    world.say("a", "one");
    world.say("a", "two");
    let failure = world.start(user("a", "three")).unwrap_err();
    assert_eq!(failure.reason, Reason::LimitExceeded);
    assert!(names(&failure, "turns_per_session"));
    assert_eq!(world.turn("a", 2).state, TurnState::Completed);
}

#[test]
fn a_turn_that_waits_for_its_client_ends_at_its_deadline_also_after_a_restart() {
    let mut world = limited(with_tools(&["x"]), |_| ());
    world.start(StartTurn { turn_deadline_ms: Some(60_000), ..user("a", "^x:1") }).unwrap();
    world.settle();
    let deadline = world.turn("a", 1).deadline_us.unwrap();
    let mut world = world.restart();
    assert_eq!(world.core.stats().sessions_requires_action, 0, "nobody has asked for it");
    world.now = deadline - 1;
    world.feed(Vec::new());
    world.settle();
    assert_eq!(world.disk.heads[&session("a")].state, SessionState::RequiresAction, "not yet");
    world.now = deadline + settings().attention_interval_us;
    world.feed(Vec::new());
    world.settle();
    let ended = world.disk.heads[&session("a")].clone();
    assert_eq!((ended.state, ended.expires_us), (SessionState::Idle, None), "without a request");
    let turn = world.turn("a", 1);
    assert_eq!((turn.state, turn.stop_reason), (TurnState::Incomplete, Some(StopReason::DeadlineExceeded)));
}

#[test]
fn results_that_come_after_the_deadline_find_the_turn_ended() {
    let mut world = limited(with_tools(&["x"]), |_| ());
    world.start(StartTurn { turn_deadline_ms: Some(60_000), ..user("a", "^x:1") }).unwrap();
    world.settle();
    let deadline = world.turn("a", 1).deadline_us.unwrap();
    let mut world = world.restart();
    // Before anyone has looked after the session by itself.
    world.now = deadline;
    let late = world.results("a", &[("call_1_0_1", "late")]).unwrap_err();
    assert_eq!(late.reason, Reason::NoPendingToolCalls);
    world.settle();
    assert_eq!(world.turn("a", 1).stop_reason, Some(StopReason::DeadlineExceeded));
    assert!(world.engine.seen.is_empty());
}

#[test]
fn sessions_that_wait_with_a_deadline_do_not_stay_loaded_beyond_the_bound() {
    let mut world = limited(with_tools(&["x"]), |_| ());
    for i in 0..20 {
        let name = format!("n{i}");
        world.create(&name, with_tools(&["x"]));
        world.start(StartTurn { turn_deadline_ms: Some(60_000), ..user(&name, "^x:1") }).unwrap();
        world.settle();
    }
    assert!(world.core.stats().sessions_requires_action <= 8);
    world.now += 60_000_000 + settings().attention_interval_us;
    world.feed(Vec::new());
    world.settle();
    for i in 0..20 {
        assert_eq!(world.turn(&format!("n{i}"), 1).stop_reason, Some(StopReason::DeadlineExceeded));
    }
}

/// A conversation of two turns whose second is interrupted once it has sampled so many tokens.
fn interrupted(after: usize) -> (World, Turn) {
    let mut world = limited(SessionConfig::default(), |_| ());
    world.say("a", "hello");
    world.start(user("a", "a long answer")).unwrap();
    (0..after).for_each(|_| assert!(world.step()));
    let mut world = world.restart();
    world.settle();
    let turn = world.turn("a", 2);
    (world, turn)
}

#[test]
fn usage_after_a_restart_is_that_of_the_generation_as_it_first_began() {
    let (mut whole, expected) = interrupted(0);
    assert_eq!(whole.engine.seen[0].resumed, 0);
    for after in [1, 3, 9] {
        let (mut world, turn) = interrupted(after);
        let run = &world.engine.seen[0];
        assert_eq!(run.resumed as usize, after, "all that was sampled was journaled");
        assert_eq!(run.computed_before, whole.engine.seen[0].computed_before);
        assert_eq!(run.log.len() - after, whole.engine.seen[0].log.len());
        assert_eq!(turn.usage.output_tokens, expected.usage.output_tokens, "what was sampled before counts too");
        assert_eq!(turn.usage.context_used, expected.usage.context_used);
        assert_eq!(world.texts("a"), whole.texts("a"));
    }
}

#[test]
fn a_class_that_changes_under_a_running_turn_is_recorded() {
    let mut world = limited(SessionConfig::default(), |_| ());
    world.start(user("a", "a long answer")).unwrap();
    (0..3).for_each(|_| assert!(world.step()));
    let mut world = World::on(world.disk, settings(), model(None, "toy/2"));
    world.settle();
    assert_eq!(world.turn("a", 1).state, TurnState::Completed);
    assert_eq!(world.show("a").revision.numerics_class.as_str(), "toy/2");
    assert_eq!(world.engine.seen[0].computed_before, 0);
    let changes = world.disk.entries[&session("a")]
        .iter()
        .filter(|entry| matches!(entry.body, holdfast_journal::Body::NumericsChanged { .. }));
    assert_eq!(changes.count(), 1);
}

#[test]
fn a_cancelled_turn_frees_its_place_in_the_step_that_follows() {
    let mut world = limited(SessionConfig::default(), |_| ());
    world.start(user("a", "a long answer")).unwrap();
    world.start(queued("a", "next")).unwrap();
    world.step();
    assert_eq!(world.engine.running(), 1);
    let id = world.send(Request::CancelTurn(CancelTurn { session: session("a"), turn: Some(TurnNumber(1)) }));
    assert_eq!(world.engine.cancelled(), 1, "the engine hears of it in the poll that takes the request");
    world.step();
    assert!(matches!(world.reply(id), Some(Ok(Reply::Turn(turn, _))) if turn.state == TurnState::Cancelled));
    assert_eq!((world.engine.running(), world.engine.cancelled()), (1, 0), "the next turn has the place");
    world.settle();
    assert_eq!(world.turn("a", 2).state, TurnState::Completed);
}

#[test]
fn completions_share_nothing_and_are_marked_as_passing() {
    let mut world = limited(SessionConfig::default(), |_| ());
    world.say("a", "the same");
    for _ in 0..2 {
        let items = vec![Item::message(Role::User, "the same")];
        let Reply::Completion(completion) =
            world.ask(Request::Generate(Generate { items, ..Default::default() })).unwrap()
        else {
            panic!()
        };
        world.settle();
        let Reply::Events(batch) = world.ask(Request::ReadCompletion { completion, from: 1, limit: 1_000 }).unwrap()
        else {
            panic!()
        };
        match &batch.events.last().unwrap().kind {
            EventKind::TurnEnded { turn } => {
                assert_eq!(turn.usage.computed_tokens, turn.usage.input_tokens, "all of it, each time");
            }
            other => panic!("{other:?}"),
        }
        world.feed(vec![Input::CompletionDropped { completion }]);
    }
    let runs = &world.engine.seen;
    assert_eq!(runs.iter().map(|run| run.transient).collect::<Vec<_>>(), [false, true, true]);
    assert!(runs[0].domain != runs[1].domain && runs[1].domain != runs[2].domain && runs[0].domain != runs[2].domain);
    assert!(runs.iter().all(|run| run.computed_before == 0));
}

#[test]
fn times_beyond_all_calendars_are_the_last_time_there_is() {
    let mut world = World::new();
    let patch = SessionPatch {
        ttl_s: Some(u64::MAX),
        expire_time_us: Some(Some(u64::MAX)),
        idle_timeout_s: Some(Some(u64::MAX)),
        ..Default::default()
    };
    let create = CreateSession { session: Some(session("a")), patch, ..Default::default() };
    world.ask(Request::CreateSession(create)).unwrap();
    world.start(StartTurn { turn_deadline_ms: Some(u64::MAX), ..user("a", "hi") }).unwrap();
    world.settle();
    let turn = world.turn("a", 1);
    assert_eq!(turn.state, TurnState::Completed);
    for time in [turn.deadline_us, world.show("a").expire_time_us, world.disk.heads[&session("a")].expires_us] {
        assert!(i64::try_from(time.unwrap()).is_ok(), "a time that the journal can keep: {time:?}");
    }
}

#[test]
fn the_lowest_number_is_no_bias_because_the_journal_cannot_tell_it_from_infinity() {
    let mut world = limited(SessionConfig::default(), |_| ());
    let biased = |value| StartTurn {
        sampling: SamplingOverrides { logit_bias: Some(vec![(7, value)]), ..Default::default() },
        ..user("a", "hi")
    };
    for value in [f32::MIN, f32::NAN, f32::INFINITY] {
        assert_eq!(world.start(biased(value)).unwrap_err().reason, Reason::InvalidSampling, "{value}");
    }
    for value in [f32::NEG_INFINITY, f32::MAX, f32::MIN.next_up(), -0.0] {
        world.start(biased(value)).unwrap();
        world.settle();
    }
}

#[test]
fn refusals_name_the_field_as_the_proto_does() {
    let mut world = limited(with_tools(&["x"]), |_| ());
    let hot = || SamplingOverrides { temperature: Some(9.0), ..Default::default() };
    let config = |config| Generate { config, items: vec![Item::message(Role::User, "hi")], ..Default::default() };
    let sampled = || SessionConfig { sampling: hot(), ..Default::default() };
    let template = || SessionConfig { template: "nowhere".into(), ..Default::default() };
    let eager = || SessionConfig { reasoning_effort: Some(ReasoningEffort::High), ..SessionConfig::default() };
    let create = |config, items| CreateSession { session: Some(session("b")), config, items, ..Default::default() };
    let update = |values| UpdateSession {
        session: session("a"),
        etag: None,
        patch: SessionPatch::default(),
        config: Some(ConfigPatch { fields: vec!["sampling".into()], values }),
    };
    let named = ToolChoice::Name("z".into());
    let cases = [
        ("session.config.sampling.temperature", Request::CreateSession(create(sampled(), vec![]))),
        ("session.config.sampling.temperature", Request::UpdateSession(update(sampled()))),
        ("session.config.template", Request::CreateSession(create(template(), vec![]))),
        ("session.config.tools[1].function.name", Request::CreateSession(create(with_tools(&["x", "x"]), vec![]))),
        ("session.config.reasoning_effort", Request::CreateSession(create(eager(), vec![]))),
        ("options.sampling.temperature", Request::StartTurn(StartTurn { sampling: hot(), ..user("a", "hi") })),
        ("options.tool_choice.name", Request::StartTurn(StartTurn { tool_choice: named.clone(), ..user("a", "hi") })),
        ("sampling.temperature", Request::Generate(config(sampled()))),
        ("template", Request::Generate(config(template()))),
        ("tool_choice.name", Request::Generate(Generate { tool_choice: named, ..config(with_tools(&["x"])) })),
        ("conversation.template", Request::CountTokens(CountTokens { config: template(), ..Default::default() })),
    ];
    for (expected, request) in cases {
        let failure = world.ask(request).unwrap_err();
        let paths = failure.details.iter().filter_map(|detail| match detail {
            FailureDetail::Field { path, .. } => Some(path.as_str()),
            _ => None,
        });
        assert_eq!(paths.collect::<Vec<_>>(), [expected], "{failure:?}");
    }
}
