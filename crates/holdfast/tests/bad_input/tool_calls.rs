//! Tools that are none, and results that nobody asked for.

use holdfast_client::{items, v1};
use tonic::Status;

use crate::ground::{Ground, Row, rows};
use crate::support::talk;

pub(crate) const ROWS: &[Row] = rows! {
    "a user message while calls wait" => FailedPrecondition, "PENDING_TOOL_CALLS", "PreconditionFailure; metadata `callCount`, `callIds`", |ground| async {
        let (session, _, _) = ground.waiting().await;
        talk::run(&ground.client, talk::says(&session, "Hello")).await
    };
    "AppendItems while calls wait" => FailedPrecondition, "PENDING_TOOL_CALLS", "PreconditionFailure; metadata `callCount`, `callIds`", |ground| async {
        let (session, _, _) = ground.waiting().await;
        let request = v1::AppendItemsRequest { session, items: vec![items::user("Hello")], ..Default::default() };
        ground.client.sessions().append_items(request).await
    };
    "a result with a call id that does not wait" => InvalidArgument, "UNKNOWN_CALL_ID", "BadRequest `results[0].call_id`", |ground| async {
        let (_, turn, _) = ground.waiting().await;
        submit(ground, &turn, &["not-this-one"]).await
    };
    "two results for one call in one request" => InvalidArgument, "DUPLICATE_CALL_ID", "BadRequest `results[1].call_id`", |ground| async {
        let (_, turn, call) = ground.waiting().await;
        submit(ground, &turn, &[&call, &call]).await
    };
    "a result with control bytes in its call id" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `results[0].call_id`", |ground| async {
        let (_, turn, _) = ground.waiting().await;
        submit(ground, &turn, &["call\u{1b}[2J"]).await
    };
    "a result without a call id" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `results[0].call_id`", |ground| async {
        let (_, turn, _) = ground.waiting().await;
        submit(ground, &turn, &[""]).await
    };
    "SubmitToolResults without results" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `results`", |ground| async {
        let (_, turn, _) = ground.waiting().await;
        submit(ground, &turn, &[]).await
    };
    "a result for a turn that has ended" => FailedPrecondition, "NO_PENDING_TOOL_CALLS", "PreconditionFailure", |ground| async {
        let (_, turn) = ground.talked().await;
        submit(ground, &turn, &["call-1"]).await
    };
    "a result for a turn that runs" => FailedPrecondition, "NO_PENDING_TOOL_CALLS", "PreconditionFailure", |ground| async {
        let (_, turn) = ground.busy().await;
        submit(ground, &turn, &["call-1"]).await
    };
    "a result for a turn that was not" => NotFound, "TURN_NOT_FOUND", "ResourceInfo `Turn`", |ground| async {
        let (session, _) = ground.talked().await;
        submit(ground, &format!("{session}/turns/9"), &["call-1"]).await
    };
    "a user message as a tool result" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `input[0]`", |ground| async {
        let (session, turn, _) = ground.waiting().await;
        let request = v1::RunTurnRequest { turn, ..talk::says(&session, "Hello") };
        talk::run(&ground.client, request).await
    };
    "options on a turn that continues" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `options`", |ground| async {
        let (session, turn, call) = ground.waiting().await;
        let input = vec![items::tool_result(call, "{}")];
        let options = Some(v1::TurnOptions::default());
        talk::run(&ground.client, v1::RunTurnRequest { session, turn, input, options, ..Default::default() }).await
    };
    "a tool result in a new turn" => InvalidArgument, "UNKNOWN_CALL_ID", "BadRequest `input[0].tool_result.call_id`", |ground|
        ground.given(vec![items::tool_result("call-1", "{}")]);
    "two calls of one id in the initial items" => InvalidArgument, "DUPLICATE_CALL_ID", "BadRequest `initial_items[2].tool_call.call_id`", |ground|
        talk::open_with(&ground.client, talk::pebble(), vec![call("c1"), items::tool_result("c1", "{}"), call("c1"), items::tool_result("c1", "{}")]);
    "a tool without a name" => InvalidArgument, "INVALID_TOOL", "BadRequest `session.config.tools[0].function.name`", |ground|
        offered(ground, vec![items::function("", "", "")]);
    "a tool name with a blank" => InvalidArgument, "INVALID_TOOL", "BadRequest `session.config.tools[0].function.name`", |ground|
        offered(ground, vec![items::function("order status", "", "")]);
    "a tool without a kind" => InvalidArgument, "INVALID_TOOL", "BadRequest `session.config.tools[0]`", |ground|
        offered(ground, vec![v1::Tool::default()]);
    "two tools of one name" => InvalidArgument, "INVALID_TOOL", "BadRequest `session.config.tools[1]`", |ground|
        offered(ground, vec![items::function("twice", "", ""), items::function("twice", "", "")]);
    "a parameter schema that is not JSON" => InvalidArgument, "INVALID_TOOL", "BadRequest `session.config.tools[0].function.parameters_json_schema`", |ground|
        offered(ground, vec![items::function("broken", "", "{\"type\":")]);
    "a parameter schema that is not an object" => InvalidArgument, "INVALID_TOOL", "BadRequest `session.config.tools[0].function.parameters_json_schema`", |ground|
        offered(ground, vec![items::function("broken", "", "[1,2]")]);
    "a strict tool whose schema cannot be held to" => InvalidArgument, "INVALID_TOOL", "BadRequest `session.config.tools[0].function.parameters_json_schema`", |ground| {
        let schema = r#"{"type":"object","properties":{"a":{"not":{}}}}"#.to_owned();
        let function = v1::FunctionTool { name: "strict".to_owned(), parameters_json_schema: schema, strict: true, ..Default::default() };
        offered(ground, vec![v1::Tool { kind: Some(v1::tool::Kind::Function(function)) }])
    };
    "tool_choice of a tool that the session does not have" => InvalidArgument, "INVALID_TOOL", "BadRequest `options.tool_choice.name`", |ground| async {
        let tool_choice = v1::ToolChoice { choice: Some(v1::tool_choice::Choice::Name("fly".to_owned())) };
        ground.optioned(v1::TurnOptions { tool_choice: Some(tool_choice), ..Default::default() }).await
    };
    "allowed_tools with a tool that the session does not have" => InvalidArgument, "INVALID_TOOL", "BadRequest `options.allowed_tools`", |ground|
        ground.optioned(v1::TurnOptions { allowed_tools: vec!["fly".to_owned()], ..Default::default() });
};

fn call(id: &str) -> v1::Item {
    let call = v1::ToolCall {
        call_id: id.to_owned(),
        name: "order_status".to_owned(),
        arguments: "{}".to_owned(),
        parse_error: None,
    };
    v1::Item { kind: Some(v1::item::Kind::ToolCall(call)), ..Default::default() }
}

async fn submit(ground: &Ground, turn: &str, calls: &[&str]) -> Result<v1::Turn, Status> {
    let results = calls.iter().map(|call| v1::ToolResult { call_id: (*call).to_owned(), ..Default::default() });
    let request =
        v1::SubmitToolResultsRequest { name: turn.to_owned(), results: results.collect(), request_id: String::new() };
    Ok(ground.client.sessions().submit_tool_results(request).await?.into_inner())
}

async fn offered(ground: &Ground, tools: Vec<v1::Tool>) -> Result<(), Status> {
    ground.configure(v1::SessionConfig { tools, ..Default::default() }).await
}
