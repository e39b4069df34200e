//! The runtime through a public client that knows nothing but reflection: create, three turns with a tool call answered,
//! list, attach, cancel, delete, health. The client is the `grpcurl` of the crate grpcurl-rs; without it the test says
//! `skipped`.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use std::process::{Command, Output};

use serde_json::{Value, json};
use support::process::finished;
use support::{Home, SOON};

/// A runtime and the public client.
struct Grpcurl {
    address: String,
}

impl Grpcurl {
    fn output(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("grpcurl");
        command.args(["-plaintext", "-max-time", "60"]).args(arguments);
        finished(command, SOON)
    }

    /// Calls a method; the messages of the answer.
    fn call(&self, method: &str, request: &Value) -> Vec<Value> {
        let output = self.output(&["-d", &request.to_string(), &self.address, method]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{method} {request}: {said}");
        serde_json::Deserializer::from_slice(&output.stdout).into_iter().collect::<Result<_, _>>().unwrap()
    }

    fn session(&self, method: &str, request: &Value) -> Vec<Value> {
        self.call(&format!("holdfast.v1.SessionService/{method}"), request)
    }

    /// The only message of a unary answer.
    fn one(&self, method: &str, request: &Value) -> Value {
        let mut messages = self.session(method, request);
        assert_eq!(messages.len(), 1, "{method}: {messages:?}");
        messages.remove(0)
    }

    /// `list` and `describe`.
    fn ask(&self, arguments: &[&str]) -> String {
        let mut all = vec![self.address.as_str()];
        all.extend(arguments);
        let output = self.output(&all);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

fn user(text: &str) -> Value {
    json!({"message": {"role": "ROLE_USER", "content": [{"text": text}]}})
}

fn text(messages: &[Value]) -> String {
    messages.iter().filter_map(|event| event["textDelta"]["text"].as_str()).collect()
}

/// Protobuf's JSON writes 64-bit numbers as strings.
fn number(value: &Value) -> u64 {
    value.as_str().map_or_else(|| value.as_u64().unwrap_or(0), |text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_knows_only_reflection_does_everything() {
    if Command::new("grpcurl").arg("--version").output().is_err() {
        eprintln!("skipped: grpcurl is not installed (cargo install --locked grpcurl-rs)");
        return;
    }
    let home = Home::new();
    let runtime = home.start(&[]);
    let grpcurl = Grpcurl { address: runtime.address.clone() };

    let services = grpcurl.ask(&["list"]);
    for service in ["Session", "Completion", "Model", "Token", "Runtime"] {
        assert!(services.contains(&format!("holdfast.v1.{service}Service")), "{services}");
    }
    assert!(services.contains("grpc.health.v1.Health"), "{services}");
    assert!(grpcurl.ask(&["describe", "holdfast.v1.Turn"]).contains("required_calls"));
    let health = grpcurl.call("grpc.health.v1.Health/Check", &json!({}));
    assert_eq!(health[0]["status"], "SERVING");
    let models = grpcurl.call("holdfast.v1.ModelService/ListModels", &json!({}));
    assert_eq!(models[0]["models"][0]["name"], "models/pebble");

    conversation(&grpcurl);
    refusals(&grpcurl);
}

fn conversation(grpcurl: &Grpcurl) {
    let schema = r#"{"type":"object","properties":{"order_id":{"type":"string"}},"required":["order_id"]}"#;
    let weather = r#"{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}"#;
    let config = json!({
        "instructions": support::talk::INSTRUCTIONS,
        "tools": [
            {"function": {"name": "order_status", "parametersJsonSchema": schema}},
            {"function": {"name": "get_weather", "parametersJsonSchema": weather}},
        ],
    });
    let request = json!({"sessionId": "by-reflection", "session": {"config": config, "labels": {"via": "grpcurl"}}});
    let session = grpcurl.one("CreateSession", &request);
    assert_eq!(session["name"], "sessions/by-reflection");
    assert_eq!(session["config"]["model"], "models/pebble", "the default model is filled in");
    let name = "sessions/by-reflection";

    let first = grpcurl.session("RunTurn", &json!({"session": name, "input": [user("My locker code is 4471.")]}));
    assert_eq!(first.last().unwrap()["turnEnded"]["turn"]["state"], "TURN_STATE_COMPLETED", "{first:?}");

    let second = grpcurl.session("RunTurn", &json!({"session": name, "input": [user("Where is order 7731?")]}));
    let calls = &second.last().unwrap()["requiresAction"]["calls"];
    assert_eq!(calls[0]["name"], "order_status", "{second:?}");
    assert!(calls[0]["arguments"].as_str().unwrap().contains("7731"), "{calls}");
    let waiting = grpcurl.one("GetSession", &json!({"name": name}));
    assert_eq!(waiting["state"], "SESSION_STATE_REQUIRES_ACTION");
    let result = json!({"toolResult": {
        "callId": calls[0]["callId"],
        "content": [{"text": r#"{"status":"delayed","eta":"Tuesday"}"#}],
    }});
    let turn = second[0]["turn"].as_str().unwrap();
    let answered = grpcurl.session("RunTurn", &json!({"session": name, "turn": turn, "input": [result]}));
    assert_eq!(text(&answered), "Order 7731 is delayed, expected on Tuesday.");

    let third = grpcurl.session("RunTurn", &json!({"session": name, "input": [user("What is my locker code?")]}));
    assert!(text(&third).contains("4471"), "it is in the context: {}", text(&third));
    let ended = &third.last().unwrap()["turnEnded"]["turn"];
    assert!(number(&ended["usage"]["cachedTokens"]) > 0, "{ended}");

    let turns = grpcurl.one("ListTurns", &json!({"session": name}));
    assert_eq!(turns["turns"].as_array().unwrap().len(), 3);
    let items = grpcurl.one("ListItems", &json!({"session": name}));
    let kinds: Vec<&str> = items["items"].as_array().unwrap().iter().map(kind).collect();
    assert_eq!(kinds, ["user", "assistant", "user", "call", "result", "assistant", "user", "assistant"], "{items}");
    let listed = grpcurl.one("ListSessions", &json!({"filter": "labels.via = \"grpcurl\""}));
    assert_eq!(listed["sessions"].as_array().unwrap().len(), 1);

    let replayed = grpcurl.session("AttachTurn", &json!({"name": ended["name"]}));
    assert_eq!(text(&replayed), text(&third), "a replay tells the same");
    // A turn that waits for its tool's result ends by nothing else.
    let waits = grpcurl.session("RunTurn", &json!({"session": name, "input": [user("Where is order 7731?")]}));
    assert!(waits.last().unwrap()["requiresAction"].is_object(), "{waits:?}");
    let cancelled = grpcurl.one("CancelTurn", &json!({"name": waits[0]["turn"]}));
    assert_eq!(cancelled["state"], "TURN_STATE_CANCELLED");

    let schema = r#"{"type":"object","properties":{"code":{"type":"integer","minimum":0,"maximum":9999}},"required":["code"],"additionalProperties":false}"#;
    let options =
        json!({"constraint": {"jsonSchema": schema}, "toolChoice": {"none": {}}, "sampling": {"maxOutputTokens": 100}});
    let asked = json!({"session": name, "input": [user("What is my locker code?")], "options": options});
    let held = text(&grpcurl.session("RunTurn", &asked));
    let value: Value = serde_json::from_str(&held).unwrap_or_else(|e| panic!("{held}: {e}"));
    assert!(value["code"].is_i64() && value.as_object().unwrap().len() == 1, "{held}");

    let runtime = grpcurl.call("holdfast.v1.RuntimeService/GetRuntime", &json!({}));
    assert!(runtime[0]["limits"].as_array().unwrap().len() > 10);
    let deleted = grpcurl.one("DeleteSession", &json!({"name": name}));
    assert_eq!(deleted["state"], "SESSION_STATE_DELETING");
}

fn kind(item: &Value) -> &'static str {
    match item {
        item if item["toolCall"].is_object() => "call",
        item if item["toolResult"].is_object() => "result",
        item if item["message"]["role"] == "ROLE_USER" => "user",
        item if item["message"]["role"] == "ROLE_ASSISTANT" => "assistant",
        _ => "else",
    }
}

/// A refusal is readable to somebody who has nothing but the client's words.
fn refusals(grpcurl: &Grpcurl) {
    let request = json!({"name": "sessions/by-reflection"}).to_string();
    let output = grpcurl.output(&["-d", &request, &grpcurl.address, "holdfast.v1.SessionService/GetSession"]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("NotFound") && said.contains("by-reflection"), "{said}");
}
