//! A device in a process of its own: a runtime computes on it as on one of its own, waits while it is away, and refuses what is not the
//! device of its model.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use holdfast_client::{Client, v1};
use holdfast_model::random::MicroShape;
use support::talk;
use support::{Home, SOON, model_dir, until};

/// A turn that goes on for long enough to be in progress when its device dies.
const LONG_TURN_TOKENS: u32 = 1_500;

/// A model whose context holds long turns, and the argument that names it.
fn model(home: &Home) -> String {
    model_dir::with_context(&home.path().join("long-pebble"), 4_096).display().to_string()
}

async fn start_turn(client: &Client) -> v1::Turn {
    let session = talk::open(client, talk::pebble()).await;
    let sampling = v1::Sampling { temperature: Some(0.8), seed: Some(11), ..talk::long(LONG_TURN_TOKENS) };
    talk::start(client, talk::says_with(&session, "My locker code is 4471.", sampling)).await.unwrap()
}

/// Settings of a runtime that uses the home's device.
fn remote(home: &Home) -> [String; 2] {
    ["device.kind=remote".to_owned(), format!("device.address={}", home.device_address())]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_goes_on_when_its_device_was_killed_and_started_again() {
    let home = Home::new();
    let model = model(&home);
    let local = home.start(&["--model", &model]);
    let client = local.client().await;
    let turn = start_turn(&client).await;
    let twin = talk::attach(&client, &turn.name, 0).await.unwrap();
    drop((client, local));

    let mut device = home.lend(&["--model", &model]);
    assert_eq!(device.address, home.device_address());
    let [kind, address] = remote(&home);
    let mut runtime = home.start(&["--model", &model, "--set", &kind, "--set", &address]);
    let client = runtime.client().await;
    let turn = start_turn(&client).await;
    until("the turn has sampled something", SOON, async || {
        let turn = talk::get_turn(&client, &turn.name).await.unwrap();
        (turn.last_sequence > turn.first_sequence + 20).then_some(())
    })
    .await;
    device.kill();
    // While the device is away, the turn is neither failed nor forgotten, and others are taken.
    let parked = start_turn(&client).await;
    until("the runtime notices", SOON, async || home.said().contains("device lost").then_some(())).await;
    for name in [&turn.name, &parked.name] {
        let state = talk::get_turn(&client, name).await.unwrap().state();
        assert!(matches!(state, v1::TurnState::Queued | v1::TurnState::Running), "{state:?}");
    }
    let _device = home.lend(&["--model", &model]);
    for name in [&turn.name, &parked.name] {
        let heard = talk::attach(&client, name, 0).await.unwrap();
        let ended = heard.ended().unwrap();
        assert_eq!(ended.stop_reason(), v1::StopReason::MaxOutputTokens);
        assert_eq!(heard.text(), twin.text(), "as if nobody had pulled the plug");
    }
    runtime.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_stops_lets_go_of_its_socket() {
    let home = Home::new();
    let mut device = home.lend(&[]);
    device.stop().await;
    assert!(!home.path().join("device.sock").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_refuses_a_device_that_is_not_there_or_holds_another_model() {
    let home = Home::new();
    let [kind, address] = remote(&home);
    let arguments = ["--set", &kind, "--set", &address, "--set", "device.connect_timeout_s=1"];
    let refused = home.refused(&arguments, &[]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("DEVICE_LOST"), "{said}");
    assert!(said.contains(&format!("no device answers at {}", home.device_address())), "{said}");
    assert!(said.contains("holdfast device serve --listen"), "it says what to do: {said}");

    let other = home.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let shape = MicroShape::default();
    shape.write(&other).unwrap();
    let _device = home.lend(&["--model", &other.display().to_string()]);
    let refused = home.refused(&arguments, &[]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("INVALID_SETTING: device.address"), "{said}");
    assert!(said.contains(&shape.build().unwrap().weights().digest().to_string()), "it names both: {said}");
}
