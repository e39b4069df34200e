//! Constraints and tool choice over gRPC, against the real binary with Pebble: answers in their form at any temperature, calls as
//! they are chosen, and the same tokens after a kill in the middle.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use holdfast_client::{Client, items, v1};
use serde_json::Value;
use support::talk::{self, Heard};
use support::{Home, SOON, within};
use v1::constraint::Kind;
use v1::tool_choice::Choice;

const ORDER: &str = r##"{"type": "object", "properties": {
    "order_id": {"type": "string", "pattern": "^[0-9]{4}$"},
    "status": {"enum": ["late", "sent"]},
    "items": {"type": "array", "items": {"$ref": "#/$defs/item"}, "minItems": 2, "maxItems": 3}},
  "required": ["order_id", "items"], "additionalProperties": false,
  "$defs": {"item": {"type": "integer", "minimum": 1, "maximum": 99}}}"##;

fn held(kind: Kind) -> Option<v1::Constraint> {
    Some(v1::Constraint { kind: Some(kind) })
}

/// Hot, seeded, and never cut short.
fn hot(seed: u64) -> Option<v1::Sampling> {
    Some(v1::Sampling {
        temperature: Some(1.5),
        seed: Some(seed),
        max_output_tokens: Some(400),
        logprobs: Some(0),
        ..Default::default()
    })
}

async fn turn(client: &Client, session: &str, text: &str, options: v1::TurnOptions) -> Heard {
    let request = v1::RunTurnRequest { options: Some(options), ..talk::says(session, text) };
    within("a turn", SOON, talk::run(client, request)).await.unwrap()
}

fn check_order(text: &str) {
    let order: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    let id = order["order_id"].as_str().unwrap();
    assert!(id.len() == 4 && id.bytes().all(|byte| byte.is_ascii_digit()), "{text}");
    assert!(order.get("status").is_none_or(|status| status == "late" || status == "sent"), "{text}");
    let numbers = order["items"].as_array().unwrap();
    assert!((2..=3).contains(&numbers.len()), "{text}");
    assert!(numbers.iter().all(|n| n.as_i64().is_some_and(|n| (1..=99).contains(&n))), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_have_their_form_and_calls_are_as_chosen() {
    let home = Home::new();
    let runtime = home.start(&[]);
    let client = runtime.client().await;
    let features = talk::runtime(&client).await.features;
    for feature in ["constraint.json_schema", "constraint.choice", "allowed_tools", "parallel_tool_calls"] {
        assert!(features.iter().any(|known| known == feature), "{features:?}");
    }
    let session = talk::open(&client, talk::pebble()).await;
    for seed in 0..4 {
        let options = v1::TurnOptions {
            constraint: held(Kind::JsonSchema(ORDER.to_owned())),
            sampling: hot(seed),
            ..Default::default()
        };
        let options = v1::TurnOptions { tool_choice: Some(choice(Choice::None(()))), ..options };
        let heard = turn(&client, &session, "Write an order.", options).await;
        check_order(&heard.text());
        assert_eq!(heard.ended().unwrap().stop_reason(), v1::StopReason::EndTurn);
    }
    let values = vec!["yes".to_owned(), "no".to_owned()];
    let options = v1::TurnOptions {
        constraint: held(Kind::Choice(v1::ChoiceConstraint { values })),
        tool_choice: Some(choice(Choice::None(()))),
        ..Default::default()
    };
    assert!(["yes", "no"].contains(&turn(&client, &session, "Is it late?", options).await.text().as_str()));

    let generate = v1::GenerateRequest {
        items: vec![items::user("Write a code.")],
        constraint: held(Kind::Regex("[A-F]{3}-[0-9]{3}".to_owned())),
        sampling: hot(9),
        ..Default::default()
    };
    let heard = talk::hear(client.completions().generate(generate).await.unwrap().into_inner()).await.unwrap();
    let code = heard.text();
    assert!(code.len() == 7 && code.as_bytes()[3] == b'-' && code[4..].bytes().all(|b| b.is_ascii_digit()), "{code}");

    // Greedy, so that what the model would do by itself is known.
    let asks = "Where is order 7731?";
    let calls = |heard: &Heard| -> Vec<String> {
        heard.waits().unwrap_or_default().iter().map(|call| call.name.clone()).collect()
    };
    let chosen = |chosen: Choice| v1::TurnOptions { tool_choice: Some(choice(chosen)), ..Default::default() };
    let allowed = |name: &str| v1::TurnOptions { allowed_tools: vec![name.to_owned()], ..Default::default() };
    for (options, expected) in [
        (v1::TurnOptions::default(), vec!["order_status"]),
        (chosen(Choice::None(())), vec![]),
        (chosen(Choice::Required(())), vec!["order_status"]),
        (chosen(Choice::Name("get_weather".to_owned())), vec!["get_weather"]),
        (allowed("order_status"), vec!["order_status"]),
    ] {
        let session = talk::open(&client, talk::pebble()).await;
        let heard = turn(&client, &session, asks, options.clone()).await;
        assert_eq!(calls(&heard), expected, "{options:?}: {}", heard.text());
    }
    let session = talk::open(&client, talk::pebble()).await;
    let heard = turn(&client, &session, asks, allowed("get_weather")).await;
    assert!(!calls(&heard).contains(&"order_status".to_owned()), "{}", heard.text());
    assert!(heard.waits().unwrap_or_default().iter().all(|call| call.parse_error.is_none()));
}

fn choice(choice: Choice) -> v1::ToolChoice {
    v1::ToolChoice { choice: Some(choice) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_turn_goes_on_in_its_form_to_the_same_tokens() {
    let long = r#"{"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}, "w": {"enum": ["tide", "kelp"]}},
        "required": ["n", "w"], "additionalProperties": false}, "minItems": 14, "maxItems": 14}"#;
    let options = || v1::TurnOptions {
        constraint: held(Kind::JsonSchema(long.to_owned())),
        sampling: Some(v1::Sampling { max_output_tokens: Some(700), ..hot(3).unwrap() }),
        ..Default::default()
    };
    let request = |session: &str| v1::RunTurnRequest { options: Some(options()), ..talk::says(session, "Count.") };
    let config = || v1::SessionConfig { tools: Vec::new(), ..talk::pebble() };

    let calm = Home::new();
    let runtime = calm.start(&[]);
    let client = runtime.client().await;
    let session = talk::open(&client, config()).await;
    let whole = within("a turn", SOON, talk::run(&client, request(&session))).await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&whole.text()).unwrap().as_array().unwrap().len(), 14);

    let home = Home::new();
    let mut runtime = home.start(&[]);
    let client = runtime.client().await;
    let session = talk::open(&client, config()).await;
    let mut stream = client.sessions().run_turn(request(&session)).await.unwrap().into_inner();
    let mut heard = Heard::default();
    while heard.text().len() < whole.text().len() / 3 {
        heard.events.push(within("an event", SOON, stream.message()).await.unwrap().unwrap());
    }
    let name = heard.turn_name().to_owned();
    runtime.kill();
    let runtime = home.start(&[]);
    let client = runtime.client().await;
    let replayed = within("the turn ends", SOON, talk::attach(&client, &name, 0)).await.unwrap();
    assert_eq!(replayed.text(), whole.text());
    assert_eq!(replayed.ended().unwrap().stop_reason(), v1::StopReason::EndTurn);
}
