//! The chip that a device stands for, as an operator and a client see it: modelled, asked for, and never in the way.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use holdfast_client::{Client, v1};
use serde_json::Value;

use support::process::{command, finished};
use support::{Home, SOON, talk};

fn devices(home: &Home, arguments: &[&str]) -> std::process::Output {
    let mut command = command();
    command.args(["devices", "--data-dir"]).arg(home.data()).args(arguments);
    finished(command, SOON)
}

async fn with_cost(client: &Client, name: &str) -> v1::Turn {
    let request = v1::GetTurnRequest { name: name.to_owned(), include_modelled_cost: true };
    client.sessions().get_turn(request).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_tells_its_modelled_cost_to_whom_asks_and_only_to_them() {
    let home = Home::new();
    let runtime = home.start(&["--set", "chip.name=trn1"]);
    let client = runtime.client().await;
    let session = talk::open(&client, talk::pebble()).await;
    let heard = talk::run_to_end(&client, talk::says(&session, "Hello")).await.unwrap();
    let ended = heard.ended().unwrap();
    assert!(ended.usage.as_ref().unwrap().modelled_cost.is_none(), "events never tell it");
    let unasked = talk::get_turn(&client, &ended.name).await.unwrap();
    assert!(unasked.usage.unwrap().modelled_cost.is_none());

    let asked = with_cost(&client, &ended.name).await;
    let cost = asked.usage.unwrap().modelled_cost.unwrap();
    assert_eq!(cost.chip, "trn1");
    assert!(cost.chip_time_us > 0 && cost.cost_usd_micros.is_some(), "{cost:?}");
    let parts: Vec<_> =
        asked.generations.iter().filter_map(|part| part.usage.as_ref()?.modelled_cost.clone()).collect();
    assert_eq!(parts.len(), asked.generations.len());
    assert!(parts.iter().map(|part| part.chip_time_us).sum::<u64>().abs_diff(cost.chip_time_us) <= parts.len() as u64);

    drop(runtime);
    let runtime = home.start(&["--set", "chip.name=none"]);
    let again = with_cost(&runtime.client().await, &ended.name).await;
    assert_eq!(again.usage.unwrap().modelled_cost, Some(cost), "the journal keeps it, whatever chip comes next");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_lent_tells_its_chip_and_what_turns_would_cost_there() {
    let home = Home::new();
    let _device = home.lend(&["--set", "chip.name=trn1"]);
    let address = format!("device.address={}", home.device_address());
    let runtime = home.start(&["--set", "device.kind=remote", "--set", &address]);
    let client = runtime.client().await;
    let session = talk::open(&client, talk::pebble()).await;
    let heard = talk::run_to_end(&client, talk::says(&session, "Hello")).await.unwrap();
    let cost = with_cost(&client, &heard.ended().unwrap().name).await.usage.unwrap().modelled_cost.unwrap();
    assert_eq!(cost.chip, "trn1");
    assert!(cost.chip_time_us > 0 && cost.cost_usd_micros.is_some(), "{cost:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_chip_there_is_no_modelled_cost() {
    let home = Home::new();
    let runtime = home.start(&["--set", "chip.name=none"]);
    let client = runtime.client().await;
    let session = talk::open(&client, talk::pebble()).await;
    let heard = talk::run_to_end(&client, talk::says(&session, "Hello")).await.unwrap();
    let asked = with_cost(&client, &heard.ended().unwrap().name).await;
    assert!(asked.usage.unwrap().modelled_cost.is_none());
}

#[test]
fn devices_tells_programs_budgets_speed_and_how_far_the_model_is_off() {
    let home = Home::new();
    let output = devices(&home, &[]);
    assert!(output.status.success(), "{output:?}");
    let page = String::from_utf8(output.stdout).unwrap();
    for words in [
        "pebble on neuron:0",
        "stands for trn2",
        "modelled",
        "programs ",
        "HBM ",
        "SBUF ",
        "inf2.48xlarge",
        "padding",
        "GPUs: ",
    ] {
        assert!(page.contains(words), "{words}: {page}");
    }
    let output = devices(&home, &["--json", "--set", "chip.name=inf2", "--set", "prices.inf2_usd_per_hour=2.0"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let device = &report["devices"][0];
    assert_eq!((&device["model"], &device["stands_for"]), (&Value::from("pebble"), &Value::from("inf2")));
    assert_eq!(device["modelled"].as_array().unwrap().len(), 4);
    let held = &device["modelled"][1]["holds"];
    let bytes = |key: &str| held[key].as_u64().unwrap();
    assert_eq!(bytes("hbm_bytes"), bytes("weight_bytes") + bytes("kv_bytes") + bytes("free_bytes"));
    let usd_per_hour = 2.0 * held["cores"].as_f64().unwrap() / 2.0;
    assert_eq!(held["usd_per_hour"].as_f64(), Some(usd_per_hour));
    assert!(held["decode"]["tokens_per_s"].as_f64().unwrap() > 0.0);
    assert_eq!(report["public_points"].as_array().unwrap().len(), 2);
}

#[test]
fn a_named_chip_that_cannot_hold_the_model_ends_the_start_and_the_default_does_not() {
    let home = Home::new();
    let small = ["--set", "chip.hbm_bytes=1048576"];
    let named = home.refused(&["--set", "chip.name=trn2", small[0], small[1]], &[]);
    let said = String::from_utf8_lossy(&named.stderr).into_owned();
    assert!(!named.status.success() && said.contains("HBM: ") && said.contains("trn2"), "{said}");
    let runtime = home.start(&small);
    assert!(home.said().contains("nothing is modelled"), "{}", home.said());
    drop(runtime);
    let page = String::from_utf8(devices(&home, &small).stdout).unwrap();
    assert!(page.contains("stands for no chip") && page.contains("does not hold it. HBM: "), "{page}");
}
