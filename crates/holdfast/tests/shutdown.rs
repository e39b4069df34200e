//! How a runtime ends: SIGTERM drains within a bound and loses nothing; a second signal does not wait.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use holdfast_client::{Client, v1};
use support::talk::{self, ServingStatus, health};
use support::{Home, SOON, model_dir, until};
use tonic::Code;

/// Turns that go on for long enough to be in progress when a signal comes.
const LONG_TURN_TOKENS: u32 = 3_000;

/// A home with a model whose context holds long turns, and the argument that serves it.
fn home() -> (Home, String) {
    let home = Home::new();
    let model = model_dir::with_context(&home.path().join("long-pebble"), 8_192);
    let argument = format!("long-pebble={}", model.display());
    (home, argument)
}

async fn start_long_turn(client: &Client, tokens: u32) -> v1::Turn {
    let session = talk::open(client, talk::pebble()).await;
    let sampling = v1::Sampling { temperature: Some(0.8), seed: Some(11), ..talk::long(tokens) };
    talk::start(client, talk::says_with(&session, "My locker code is 4471.", sampling)).await.unwrap()
}

async fn wait_running(client: &Client, turn: &str) {
    until("the turn has sampled something", SOON, async || {
        let turn = talk::get_turn(client, turn).await.unwrap();
        (turn.last_sequence > turn.first_sequence + 20).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_drains_and_what_is_unfinished_goes_on_at_the_next_start() {
    let (home, model) = home();
    let arguments = ["--model", model.as_str(), "--set", "shutdown.drain_timeout_s=1"];
    let mut runtime = home.start(&arguments);
    let client = runtime.client().await;
    assert_eq!(health(&client).await.unwrap(), ServingStatus::Serving);
    let twin = start_long_turn(&client, LONG_TURN_TOKENS).await;
    let twin = talk::attach(&client, &twin.name, 0).await.unwrap();

    let long = start_long_turn(&client, LONG_TURN_TOKENS).await;
    wait_running(&client, &long.name).await;
    let idle = talk::open(&client, talk::pebble()).await;
    runtime.terminate();
    until("health turns NOT_SERVING, or nobody answers any more", SOON, async || match health(&client).await {
        Ok(ServingStatus::NotServing) => Some(()),
        Ok(_) => None,
        Err(status) => {
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            Some(())
        }
    })
    .await;
    if let Err(status) = talk::start(&client, talk::says(&idle, "Hello")).await {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    } else {
        panic!("a draining runtime took a turn");
    }
    let status = runtime.exit(Duration::from_secs(20)).await;
    assert!(status.success(), "{status}");

    let runtime = home.start(&arguments);
    let client = runtime.client().await;
    let resumed = talk::attach(&client, &long.name, 0).await.unwrap();
    let ended = resumed.ended().unwrap();
    assert_eq!(ended.state(), v1::TurnState::Incomplete);
    assert_eq!(ended.stop_reason(), v1::StopReason::MaxOutputTokens);
    assert!(ended.usage.as_ref().unwrap().output_tokens == u64::from(LONG_TURN_TOKENS), "{:?}", ended.usage);
    assert_eq!(resumed.text(), twin.text(), "as if nobody had interrupted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_does_not_wait() {
    let (home, model) = home();
    let arguments = ["--model", model.as_str(), "--set", "shutdown.drain_timeout_s=600"];
    let mut runtime = home.start(&arguments);
    let client = runtime.client().await;
    let mut turns = Vec::new();
    let mut followers = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let turn = start_long_turn(&client, 7_000).await;
        let (client, name) = (client.clone(), turn.name.clone());
        followers.spawn(async move { talk::attach(&client, &name, 0).await });
        turns.push(turn);
    }
    wait_running(&client, &turns[0].name).await;
    runtime.terminate();
    until("it drains", SOON, async || {
        let state = health(&client).await;
        (!matches!(state, Ok(ServingStatus::Serving))).then_some(())
    })
    .await;
    assert!(runtime.is_running(), "sixteen long turns take longer than this");
    runtime.terminate();
    runtime.exit(Duration::from_secs(20)).await;
    while let Some(followed) = followers.join_next().await {
        let cut_off = followed.unwrap().unwrap_err();
        assert_eq!(cut_off.code(), Code::Unavailable, "to be attached again: {cut_off:?}");
    }

    let runtime = home.start(&arguments);
    let client = runtime.client().await;
    for turn in &turns {
        let ended = talk::cancel(&client, &turn.name).await.unwrap();
        assert_eq!(ended.state(), v1::TurnState::Cancelled, "it was still there, and went on");
        assert!(ended.usage.unwrap().output_tokens > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_runtime_ends_at_once() {
    let home = Home::new();
    let mut runtime = home.start(&[]);
    let client = runtime.client().await;
    let session = talk::open(&client, talk::pebble()).await;
    let request = v1::WatchSessionRequest { name: session, from_sequence: 0 };
    let watch = client.sessions().watch_session(request).await.unwrap().into_inner();
    let watched = tokio::spawn(talk::hear(watch));
    runtime.terminate();
    assert!(runtime.exit(Duration::from_secs(20)).await.success(), "an open stream does not hold it up");
    let ended = support::within("the watch ends", SOON, watched).await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    assert_eq!(talk::reason(&ended), "RUNTIME_DRAINING", "{ended:?}");
}
