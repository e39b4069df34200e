//! A crash after any committed batch changes nothing that a client can see: same events under same numbers, same end.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use harness::{Disk, World, user, with_tools};
use holdfast_types::{Event, EventKind, OnBusy, SamplingOverrides, Turn, Usage};
use proptest::prelude::*;

/// A conversation with a tool call, a stop string, text of several bytes per character, a queued turn and an early end.
/// Requests are repeated with their ids until they are answered, as a client does.
fn play(crashes: &[usize]) -> (World, usize) {
    let mut world = World::on(Disk::default(), harness::settings(), harness::model(None, "toy/1"));
    let mut crashes = crashes.iter().copied();
    world.commits_left = crashes.next().unwrap_or(usize::MAX);
    let turn = |text: &str, id: &str| {
        let mut turn = user("a", text);
        turn.request_id = Some(id.to_owned());
        turn.on_busy = OnBusy::Queue;
        turn
    };
    let limited = SamplingOverrides { max_output_tokens: Some(3), ..Default::default() };
    let stops = SamplingOverrides { stop: Some(vec!["END".into()]), ..Default::default() };
    let create = holdfast_worker_api::CreateSession {
        session: Some(harness::session("a")),
        config: with_tools(&["look"]),
        request_id: Some("create".into()),
        ..Default::default()
    };
    for step in 0..8 {
        loop {
            use holdfast_worker::core::Request;
            let request = match step {
                0 => Request::CreateSession(create.clone()),
                1 => Request::StartTurn(turn("grüße 🌊", "one")),
                2 => Request::StartTurn(holdfast_worker_api::StartTurn {
                    sampling: stops.clone(),
                    ..turn("so far END never", "two")
                }),
                3 => Request::StartTurn(turn("wait ^look:{}", "three")),
                4 => Request::SubmitToolResults(holdfast_worker_api::SubmitToolResults {
                    session: harness::session("a"),
                    turn: None,
                    results: vec![holdfast_types::Item::tool_result("call_3_0_1", "found")],
                    request_id: Some("four".into()),
                }),
                5 => Request::StartTurn(holdfast_worker_api::StartTurn {
                    sampling: limited.clone(),
                    ..turn("cut short", "five")
                }),
                6 => {
                    let mut on = turn("", "six");
                    on.input.clear();
                    on.continue_last = true;
                    Request::StartTurn(on)
                }
                _ => Request::StartTurn(turn("bye", "seven")),
            };
            let id = world.send(request);
            // Turns one and two overlap: two is queued.
            if step != 1 {
                world.settle();
            } else {
                world.step();
            }
            let reply = world.reply(id);
            let crashed = world.commits_left == 0;
            while world.commits_left == 0 {
                world = world.restart();
                world.commits_left = crashes.next().unwrap_or(usize::MAX);
                world.settle();
            }
            if crashed && reply.is_none() {
                continue;
            }
            reply.expect("a reply").unwrap();
            break;
        }
    }
    let batches = world.disk.batches;
    (world, batches)
}

fn plain(turn: &mut Turn) {
    turn.usage = Usage::default();
    turn.generations.iter_mut().for_each(|generation| generation.usage = Usage::default());
    (turn.created_us, turn.started_us, turn.ended_us) = (0, None, None);
    turn.settings.seed = 0;
}

/// Times, usage and the seeds that this test draws differ; nothing else may.
fn comparable(mut events: Vec<Event>) -> Vec<Event> {
    for event in &mut events {
        event.time_us = 0;
        if let EventKind::TurnStarted { turn } | EventKind::TurnEnded { turn } = &mut event.kind {
            plain(turn);
        }
    }
    events
}

#[test]
fn the_story_without_a_crash_is_as_expected() {
    let (mut world, batches) = play(&[]);
    assert!(batches > 40, "{batches}");
    let texts = world.texts("a");
    let expected = [
        "grüße 🌊",
        "grüße 🌊",
        "so far END never",
        "so far ",
        "wait ^look:{}",
        "wait",
        "{}",
        "found",
        "found",
        "cut short",
        "cut short",
        "bye",
        "bye",
    ];
    assert_eq!(texts, expected);
}

#[test]
fn a_crash_after_any_single_batch_changes_nothing() {
    let (mut whole, batches) = play(&[]);
    let expected = comparable(whole.events("a"));
    let texts = whole.texts("a");
    for at in 1..batches {
        let (mut world, _) = play(&[at]);
        assert_eq!(comparable(world.events("a")), expected, "crash after batch {at}");
        assert_eq!(world.texts("a"), texts);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn crashes_at_any_batches_change_nothing(crashes in prop::collection::vec(1_usize..30, 1..8)) {
        let (mut whole, _) = play(&[]);
        let (mut world, _) = play(&crashes);
        prop_assert_eq!(comparable(world.events("a")), comparable(whole.events("a")));
        prop_assert_eq!(world.texts("a"), whole.texts("a"));
    }
}
