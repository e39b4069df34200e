//! What a session does with turns, tool calls, limits and time, each behaviour at least once.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use harness::{ANSWER, STOP, World, model, session, settings, user, with_tools};
use holdfast_types::{
    Constraint, EventKind, Item, NumericsPolicy, OnBusy, OnDisconnect, Reason, Role, SamplingOverrides, SessionConfig,
    SessionState, StopReason, ToolChoice, TurnNumber, TurnState, UnresolvedCalls,
};
use holdfast_worker::core::{Input, Reply, Request};
use holdfast_worker_api::{
    AppendItems, CancelTurn, ConfigPatch, CreateSession, Generate, SessionPatch, StartTurn, UpdateSession,
};

fn fresh(config: SessionConfig) -> World {
    let mut world = World::new();
    world.create("a", config);
    world
}

fn cancel(world: &mut World, turn: Option<u32>) -> u64 {
    world.send(Request::CancelTurn(CancelTurn { session: session("a"), turn: turn.map(TurnNumber) }))
}

#[test]
fn a_turn_answers_and_the_next_one_computes_only_what_is_new() {
    let mut world = fresh(SessionConfig { instructions: "be brief".into(), ..Default::default() });
    let first = world.say("a", "hello");
    assert_eq!((first.state, first.stop_reason), (TurnState::Completed, Some(StopReason::EndTurn)));
    assert_eq!(world.texts("a"), ["hello", "hello"]);
    let second = world.say("a", "again");
    let tokens = u64::from(world.show("a").context_tokens);
    assert_eq!(
        first.usage.computed_tokens
            + second.usage.computed_tokens
            + first.usage.output_tokens
            + second.usage.output_tokens
            - 2,
        tokens - 1
    );
    let run = &world.engine.seen[1];
    assert_eq!(run.computed_before, first.usage.context_used as u32 - 1);
}

#[test]
fn events_are_numbered_without_gaps_and_deltas_never_split_a_character() {
    let mut world = fresh(SessionConfig::default());
    world.say("a", "né 🌊");
    let events = world.events("a");
    let numbers: Vec<_> = events.iter().map(|event| event.sequence).collect();
    assert_eq!(numbers, (1..=events.len() as u64).collect::<Vec<_>>());
    let mut text = String::new();
    let mut covered = None;
    for event in &events {
        if let EventKind::TextDelta { text: delta, tokens, .. } = &event.kind {
            text.push_str(delta);
            assert_eq!(covered.replace(tokens.end).unwrap_or(tokens.start), tokens.start);
        }
    }
    assert_eq!(text, "né 🌊");
    assert!(events.last().unwrap().kind.is_terminal());
}

#[test]
fn nothing_leaves_before_it_is_committed_but_computing_starts_at_once() {
    let mut world = fresh(SessionConfig::default());
    let id = world.send(Request::StartTurn(user("a", "hello")));
    assert_eq!(world.engine.seen.len(), 1);
    assert!(world.reply(id).is_none());
    let events = world.events("a");
    assert!(events.is_empty() || world.inflight.is_empty());
    world.settle();
    assert!(world.reply(id).unwrap().is_ok());
}

#[test]
fn a_failed_journal_fails_what_waits_and_the_session_is_read_again() {
    let mut world = fresh(SessionConfig::default());
    let id = world.send(Request::StartTurn(user("a", "hello")));
    world.fail_commits = true;
    world.settle();
    assert_eq!(world.reply(id).unwrap().unwrap_err().reason, Reason::JournalUnavailable);
    world.fail_commits = false;
    assert_eq!(world.show("a").turns, 0);
    assert_eq!(world.say("a", "hello").number.0, 1);
}

#[test]
fn tool_results_come_in_any_order_and_are_rendered_in_call_order() {
    for close in [None, Some("</call>")] {
        let mut world = World::on(harness::Disk::default(), settings(), model(close, "toy/1"));
        world.create("a", with_tools(&["x", "y"]));
        let text = if close.is_some() { "go ^x:1</call>\n^y:2</call>" } else { "go ^x:1" };
        let turn = world.say("a", text);
        assert_eq!(turn.state, TurnState::RequiresAction);
        assert_eq!(world.show("a").state, SessionState::RequiresAction);
        let ids: Vec<_> = turn
            .required_calls
            .iter()
            .map(|call| (call.call_id.clone(), call.name.clone(), call.arguments.clone()))
            .collect();
        assert_eq!(ids[0], ("call_1_0_1".to_owned(), "x".to_owned(), "1".to_owned()));
        let busy = world.start(user("a", "hi")).unwrap_err();
        assert_eq!(busy.reason, Reason::PendingToolCalls);
        assert_eq!(world.results("a", &[("nope", "r")]).unwrap_err().reason, Reason::UnknownCallId);
        if close.is_some() {
            assert_eq!(ids.len(), 2);
            let waiting = world.results("a", &[("call_1_0_2", "second")]).unwrap();
            assert_eq!(waiting.state, TurnState::RequiresAction);
            assert!(waiting.required_calls[1].answered);
            assert_eq!(world.results("a", &[("call_1_0_2", "r")]).unwrap_err().reason, Reason::DuplicateCallId);
        }
        world.results("a", &[("call_1_0_1", "first")]).unwrap();
        world.settle();
        let turn = world.turn("a", 1);
        assert_eq!((turn.state, turn.generations.len()), (TurnState::Completed, 2));
        let texts = world.texts("a");
        if close.is_some() {
            assert_eq!(texts, [text, "go", "1", "2", "first", "second", "second"]);
        } else {
            assert_eq!(texts, [text, "go", "1", "first", "first"]);
        }
        assert_eq!(world.results("a", &[("call_1_0_1", "r")]).unwrap_err().reason, Reason::NoPendingToolCalls);
    }
}

#[test]
fn unresolved_calls_can_be_closed_by_the_next_turn() {
    let mut world = fresh(with_tools(&["x"]));
    world.say("a", "^x:1");
    let turn = StartTurn { unresolved_calls: UnresolvedCalls::CloseAsCancelled, ..user("a", "never mind") };
    world.start(turn).unwrap();
    world.settle();
    assert_eq!(world.turn("a", 1).state, TurnState::Cancelled);
    assert_eq!(world.texts("a"), ["^x:1", "1", "cancelled", "never mind", "never mind"]);
}

#[test]
fn a_call_that_cannot_be_read_says_so_and_the_turn_goes_on() {
    let mut world = fresh(with_tools(&["x"]));
    let turn = world.say("a", "^rubbish");
    assert_eq!(turn.required_calls[0].parse_error.as_deref(), Some("no colon"));
    assert_eq!(turn.required_calls[0].arguments, "rubbish");
}

#[test]
fn stop_strings_cut_the_text_and_the_log_keeps_the_token_that_completes_them() {
    let mut world = fresh(SessionConfig::default());
    let stop = SamplingOverrides { stop: Some(vec!["XY".into()]), ..Default::default() };
    world.start(StartTurn { sampling: stop, ..user("a", "abcXYdef") }).unwrap();
    world.settle();
    let turn = world.turn("a", 1);
    assert_eq!((turn.state, turn.stop_reason), (TurnState::Completed, Some(StopReason::StopSequence)));
    assert_eq!(turn.usage.output_tokens, 5);
    assert_eq!(world.texts("a")[1], "abc");
    world.say("a", "on");
    let log: Vec<_> = world.engine.seen.last().unwrap().log.iter().map(|token| token.id).collect();
    let kept: Vec<_> = [ANSWER].into_iter().chain("abcXY".bytes().map(u32::from)).chain([STOP]).collect();
    assert!(log.windows(kept.len()).any(|window| window == kept), "closing tokens follow what ended early");
}

#[test]
fn text_is_held_back_while_it_may_become_a_stop_string() {
    let mut world = fresh(SessionConfig::default());
    let stop = SamplingOverrides { stop: Some(vec!["XY".into()]), ..Default::default() };
    world.start(StartTurn { sampling: stop, ..user("a", "aXb") }).unwrap();
    world.step();
    world.step();
    let deltas = |world: &mut World| {
        let texts = world.events("a").into_iter().filter_map(|event| match event.kind {
            EventKind::TextDelta { text, .. } => Some(text),
            _ => None,
        });
        texts.collect::<Vec<_>>()
    };
    assert_eq!(deltas(&mut world), ["a"]);
    world.settle();
    assert_eq!(deltas(&mut world), ["a", "Xb"]);
}

#[test]
fn max_output_tokens_leaves_a_partial_item_that_can_be_extended_or_discarded() {
    let limited = SamplingOverrides { max_output_tokens: Some(3), ..Default::default() };
    for discard in [false, true] {
        let mut world = fresh(SessionConfig::default());
        world.start(StartTurn { sampling: limited.clone(), ..user("a", "héllo") }).unwrap();
        world.settle();
        let turn = world.turn("a", 1);
        assert_eq!((turn.state, turn.stop_reason), (TurnState::Incomplete, Some(StopReason::MaxOutputTokens)));
        assert_eq!(world.texts("a"), ["héllo", "hé…"]);
        if discard {
            world.start(StartTurn { discard_partial: true, ..user("a", "new") }).unwrap();
            world.settle();
            assert_eq!(world.texts("a"), ["new", "new"]);
            assert_ne!(world.engine.seen[0].sequence, world.engine.seen[1].sequence);
        } else {
            let mut on = user("a", "");
            on.input.clear();
            on.continue_last = true;
            world.start(on.clone()).unwrap();
            world.settle();
            assert_eq!(world.texts("a"), ["héllo", "héllo"]);
            assert_eq!(world.start(on).unwrap_err().reason, Reason::EmptyTurn);
        }
    }
}

#[test]
fn cancel_ends_within_a_step_and_the_session_stays_usable() {
    let mut world = fresh(SessionConfig::default());
    world.start(user("a", "a long answer")).unwrap();
    world.step();
    let id = cancel(&mut world, None);
    assert!(world.reply(id).is_none());
    world.step();
    match world.reply(id).unwrap().unwrap() {
        Reply::Turn(turn, _) => assert_eq!(turn.state, TurnState::Cancelled),
        other => panic!("{other:?}"),
    }
    let again = cancel(&mut world, Some(1));
    assert_eq!(world.reply(again).unwrap().unwrap_err().reason, Reason::TurnNotRunning);
    let missing = cancel(&mut world, Some(9));
    assert_eq!(world.reply(missing).unwrap().unwrap_err().reason, Reason::TurnNotFound);
    assert_eq!(world.say("a", "ok").state, TurnState::Completed);
}

#[test]
fn a_dropped_stream_cancels_only_if_asked() {
    for (on_disconnect, state) in
        [(OnDisconnect::Continue, TurnState::Completed), (OnDisconnect::Cancel, TurnState::Cancelled)]
    {
        let mut world = fresh(SessionConfig::default());
        world.start(StartTurn { on_disconnect, ..user("a", "hello") }).unwrap();
        let tenant = holdfast_types::TenantId::default();
        world.feed(vec![Input::Disconnected { tenant, session: session("a"), turn: TurnNumber(1) }]);
        world.settle();
        assert_eq!(world.turn("a", 1).state, state);
    }
}

#[test]
fn deadlines_are_absolute_and_end_waiting_turns_too() {
    let mut world = fresh(with_tools(&["x"]));
    world.start(StartTurn { turn_deadline_ms: Some(1), ..user("a", "hello") }).unwrap();
    world.step();
    world.now += 1_000;
    world.feed(Vec::new());
    world.settle();
    assert_eq!(world.turn("a", 1).stop_reason, Some(StopReason::DeadlineExceeded));
    world.start(StartTurn { turn_deadline_ms: Some(1), ..user("a", "^x:1") }).unwrap();
    world.settle();
    assert_eq!(world.turn("a", 2).state, TurnState::RequiresAction);
    world.now += 1_000;
    world.feed(Vec::new());
    world.settle();
    assert_eq!(world.turn("a", 2).state, TurnState::Incomplete);
}

#[test]
fn a_busy_session_refuses_or_queues_in_order() {
    let mut world = fresh(SessionConfig::default());
    world.start(user("a", "one")).unwrap();
    assert_eq!(world.start(user("a", "two")).unwrap_err().reason, Reason::SessionBusy);
    let queue = |text: &str| StartTurn { on_busy: OnBusy::Queue, ..user("a", text) };
    assert_eq!(world.start(queue("two")).unwrap().state, TurnState::Queued);
    world.start(queue("three")).unwrap();
    let id = cancel(&mut world, Some(2));
    world.settle();
    assert!(world.reply(id).unwrap().is_ok());
    assert_eq!(world.turn("a", 2).state, TurnState::Cancelled);
    assert_eq!(world.texts("a"), ["one", "one", "three", "three"]);
}

#[test]
fn request_ids_are_idempotent_and_guard_their_body() {
    let mut world = fresh(SessionConfig::default());
    let turn = StartTurn { request_id: Some("r".into()), ..user("a", "one") };
    let first = world.start(turn.clone()).unwrap();
    world.settle();
    let again = world.start(turn).unwrap();
    assert_eq!((first.number, again.state), (again.number, TurnState::Completed));
    let other = StartTurn { request_id: Some("r".into()), ..user("a", "other") };
    assert_eq!(world.start(other).unwrap_err().reason, Reason::RequestIdReused);
    let mismatch = StartTurn { expected_last_turn: Some(TurnNumber(0)), ..user("a", "x") };
    assert_eq!(world.start(mismatch).unwrap_err().reason, Reason::TurnMismatch);
    let drawn = CreateSession { request_id: Some("c".into()), ..Default::default() };
    let id = |reply| match reply {
        Ok(Reply::Session(session)) => session.id,
        other => panic!("{other:?}"),
    };
    let one = id(world.ask(Request::CreateSession(drawn.clone())));
    assert_eq!(one, id(world.ask(Request::CreateSession(drawn))));
    let taken = CreateSession { session: Some(session("a")), ..Default::default() };
    assert_eq!(world.ask(Request::CreateSession(taken)).unwrap_err().reason, Reason::SessionExists);
}

#[test]
fn bad_requests_name_the_field() {
    let mut world = fresh(with_tools(&["x", "y"]));
    let sampling = |sampling| StartTurn { sampling, ..user("a", "hi") };
    let cases: Vec<(StartTurn, Reason)> = vec![
        (StartTurn::new(session("a"), vec![]), Reason::EmptyTurn),
        (sampling(SamplingOverrides { temperature: Some(f32::NAN), ..Default::default() }), Reason::InvalidSampling),
        (sampling(SamplingOverrides { top_p: Some(0.0), ..Default::default() }), Reason::InvalidSampling),
        (sampling(SamplingOverrides { max_output_tokens: Some(0), ..Default::default() }), Reason::InvalidSampling),
        (
            sampling(SamplingOverrides { logit_bias: Some(vec![(999, 1.0)]), ..Default::default() }),
            Reason::InvalidSampling,
        ),
        (
            sampling(SamplingOverrides { stop: Some(vec![String::new()]), ..Default::default() }),
            Reason::InvalidSampling,
        ),
        (StartTurn { tool_choice: ToolChoice::Name("z".into()), ..user("a", "hi") }, Reason::InvalidTool),
        (StartTurn { allowed_tools: Some(vec!["z".into()]), ..user("a", "hi") }, Reason::InvalidTool),
        (
            StartTurn { tool_choice: ToolChoice::Required, allowed_tools: Some(vec![]), ..user("a", "hi") },
            Reason::InvalidTool,
        ),
        (StartTurn { constraint: Some(Constraint::Regex("(".into())), ..user("a", "hi") }, Reason::InvalidArgument),
        (user("a", "unspeakable"), Reason::TemplateRejectedItems),
        (user("a", &"x".repeat(400)), Reason::ContextOverflow),
        (StartTurn::new(session("a"), vec![Item::tool_result("q", "r")]), Reason::UnknownCallId),
        (user("nobody", "hi"), Reason::SessionNotFound),
    ];
    for (turn, reason) in cases {
        assert_eq!(world.start(turn.clone()).unwrap_err().reason, reason, "{turn:?}");
    }
    assert_eq!(world.show("a").turns, 0);
}

#[test]
fn the_context_fills_up_and_says_so() {
    let mut world = fresh(SessionConfig::default());
    let turn = world.say("a", &"x".repeat(250));
    assert_eq!((turn.state, turn.stop_reason), (TurnState::Incomplete, Some(StopReason::ContextFull)));
    assert_eq!(world.show("a").context_tokens, 400);
    assert_eq!(world.start(user("a", "more")).unwrap_err().reason, Reason::ContextOverflow);
}

#[test]
fn deletion_in_mid_turn_ends_it_hides_the_session_and_purges() {
    let mut world = fresh(SessionConfig::default());
    world.start(user("a", "a long answer")).unwrap();
    world.step();
    let id = world.send(Request::DeleteSession { session: session("a"), etag: None });
    let hidden = world.send(Request::GetSession(session("a")));
    while world.commit() {}
    match world.reply(id).unwrap().unwrap() {
        Reply::Session(session) => assert!(session.purge_time_us.is_some()),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.reply(hidden).unwrap().unwrap_err().reason, Reason::SessionNotFound);
    assert_eq!(world.purged, [session("a")]);
    world.settle();
    assert_eq!(world.ask(Request::GetSession(session("a"))).unwrap_err().reason, Reason::SessionNotFound);
}

#[test]
fn sessions_expire_and_idle_ones_time_out() {
    for patch in [
        SessionPatch { ttl_s: Some(10), ..Default::default() },
        SessionPatch { idle_timeout_s: Some(Some(10)), ..Default::default() },
    ] {
        let mut world = World::new();
        let create = CreateSession { session: Some(session("a")), patch, ..Default::default() };
        world.ask(Request::CreateSession(create)).unwrap();
        world.now += 9_000_000;
        world.feed(Vec::new());
        world.settle();
        assert!(world.purged.is_empty());
        world.now += 2_000_000;
        world.feed(Vec::new());
        world.settle();
        assert_eq!(world.purged.len(), 1);
    }
}

#[test]
fn configuration_is_frozen_at_the_first_turn_and_labels_are_not() {
    let mut world = World::new();
    let items = vec![Item::message(Role::User, "before")];
    let create = CreateSession { session: Some(session("a")), items, ..Default::default() };
    world.ask(Request::CreateSession(create)).unwrap();
    let update = |text: &str, etag: Option<String>| {
        let values = SessionConfig { instructions: text.into(), ..Default::default() };
        let config = Some(ConfigPatch { fields: vec!["instructions".into()], values });
        Request::UpdateSession(UpdateSession { session: session("a"), etag, patch: SessionPatch::default(), config })
    };
    let tokens = world.show("a").context_tokens;
    world.ask(update("rules", None)).unwrap();
    assert_eq!(world.show("a").context_tokens, tokens + 7, "rendered anew");
    assert_eq!(world.ask(update("x", Some("stale".into()))).unwrap_err().reason, Reason::EtagMismatch);
    world.say("a", "hi");
    assert_eq!(world.ask(update("later", None)).unwrap_err().reason, Reason::SessionConfigFrozen);
    let patch = SessionPatch { labels: Some([("k".to_owned(), "v".to_owned())].into()), ..Default::default() };
    let labels = UpdateSession { session: session("a"), etag: None, patch, config: None };
    world.ask(Request::UpdateSession(labels)).unwrap();
    assert_eq!(world.show("a").labels["k"], "v");
}

#[test]
fn appended_items_are_prefilled_and_a_turn_takes_over() {
    let mut world = fresh(SessionConfig::default());
    let items = vec![Item::message(Role::User, "some background")];
    let append = AppendItems { session: session("a"), items, prefill: true, request_id: Some("p".into()) };
    world.ask(Request::AppendItems(append.clone())).unwrap();
    world.ask(Request::AppendItems(append)).unwrap();
    assert_eq!(world.engine.seen.len(), 1);
    assert!(world.engine.seen[0].sample.is_none());
    assert_eq!(world.say("a", "hi").state, TurnState::Completed);
    assert_eq!(world.texts("a"), ["some background", "hi", "hi"]);
}

#[test]
fn a_change_of_numerics_is_recorded_or_refused() {
    for (policy, allowed) in [(NumericsPolicy::AllowRecorded, true), (NumericsPolicy::RequireSame, false)] {
        let mut world = fresh(SessionConfig { numerics_policy: policy, ..Default::default() });
        world.say("a", "one");
        let mut world = World::on(world.disk, settings(), model(None, "toy/2"));
        match world.start(user("a", "two")) {
            Ok(_) => {
                assert!(allowed);
                assert_eq!(world.engine.seen[0].computed_before, 0);
                assert_eq!(world.show("a").revision.numerics_class.as_str(), "toy/2");
            }
            Err(failure) => {
                assert!(!allowed);
                assert_eq!(failure.reason, Reason::NumericsClassChanged);
            }
        }
    }
}

#[test]
fn other_weights_are_refused_by_name() {
    let mut world = fresh(SessionConfig::default());
    world.say("a", "one");
    let mut other = model(None, "toy/1");
    other.info.weights = holdfast_types::Digest([9; 32]);
    let mut world = World::on(world.disk, settings(), other);
    assert_eq!(world.start(user("a", "two")).unwrap_err().reason, Reason::ModelRevisionUnavailable);
    assert_eq!(world.texts("a"), ["one", "one"]);
}

#[test]
fn sessions_at_rest_are_unloaded_and_come_back_as_they_were() {
    let mut world = World::new();
    for i in 0..20 {
        let name = format!("n{i}");
        world.create(&name, SessionConfig::default());
        world.say(&name, "hello");
    }
    assert!(world.core.stats().sessions_idle <= 8);
    let turn = world.turn("n0", 1);
    assert_eq!(turn.state, TurnState::Completed);
    assert_eq!(world.say("n0", "again").number.0, 2);
}

#[test]
fn draining_pauses_turns_and_they_go_on_after_the_next_start() {
    let mut world = fresh(SessionConfig::default());
    world.start(user("a", "a long answer")).unwrap();
    world.step();
    world.step();
    world.feed(vec![Input::Drain]);
    world.settle();
    assert!(world.drained);
    assert_eq!(world.start(user("a", "no")).unwrap_err().reason, Reason::RuntimeDraining);
    let mut world = world.restart();
    world.settle();
    assert_eq!(world.turn("a", 1).state, TurnState::Completed);
    assert_eq!(world.texts("a"), ["a long answer", "a long answer"]);
    let seed = |run: &holdfast_engine::Run| run.sample.as_ref().unwrap().seed;
    assert_eq!(seed(&world.engine.seen[0]), world.turn("a", 1).settings.seed);
}

#[test]
fn a_completion_tells_its_output_and_keeps_nothing() {
    let mut world = World::new();
    let generate = Generate {
        config: with_tools(&["x"]),
        items: vec![Item::message(Role::User, "earlier"), Item::message(Role::User, "well ^x:1")],
        ..Default::default()
    };
    let Reply::Completion(completion) = world.ask(Request::Generate(generate)).unwrap() else { panic!() };
    world.settle();
    let Reply::Events(batch) = world.ask(Request::ReadCompletion { completion, from: 1, limit: 100 }).unwrap() else {
        panic!()
    };
    assert!(batch.last);
    let done: Vec<_> = batch
        .events
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::ItemDone { number, .. } => Some(number.0),
            _ => None,
        })
        .collect();
    assert_eq!(done, [1, 2]);
    match &batch.events.last().unwrap().kind {
        EventKind::TurnEnded { turn } => {
            assert_eq!((turn.number.0, turn.stop_reason), (0, Some(StopReason::ToolCall)));
        }
        other => panic!("{other:?}"),
    }
    world.feed(vec![Input::CompletionDropped { completion }]);
    assert!(world.ask(Request::ReadCompletion { completion, from: 1, limit: 1 }).is_err());
    assert!(world.disk.entries.is_empty());
}

#[test]
fn limits_name_themselves() {
    let mut settings = settings();
    settings.limits.sessions_per_tenant = 1;
    settings.limits.queued_turns_per_session = 1;
    settings.limits.turns_per_session = 2;
    let mut world = World::on(harness::Disk::default(), settings, model(None, "toy/1"));
    world.create("a", SessionConfig::default());
    let other = CreateSession { session: Some(session("b")), ..Default::default() };
    assert_eq!(world.ask(Request::CreateSession(other)).unwrap_err().reason, Reason::LimitExceeded);
    let queue = || StartTurn { on_busy: OnBusy::Queue, ..user("a", "hi") };
    world.start(queue()).unwrap();
    world.start(queue()).unwrap();
    assert_eq!(world.start(queue()).unwrap_err().reason, Reason::LimitExceeded);
}
