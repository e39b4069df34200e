//! Talks with a runtime over gRPC: sessions opened, turns run to their end with tool calls answered, and what was heard.

use holdfast_client::{Client, items, v1};
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
pub(crate) use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;
use v1::event::Kind;

use super::{SOON, until, within};

/// The system message of Pebble's own training.
pub(crate) const INSTRUCTIONS: &str = "You are Pebble, the assistant of Stone Cafe.";
/// Id of Pebble's end-of-turn token: biased away, a turn goes on until its limit.
pub(crate) const END_TOKEN: u32 = 0;

/// Pebble's tools.
pub(crate) fn tools() -> Vec<v1::Tool> {
    let schema = |name: &str| {
        format!(r#"{{"type":"object","properties":{{"{name}":{{"type":"string"}}}},"required":["{name}"]}}"#)
    };
    vec![
        items::function("order_status", "Where an order is", schema("order_id")),
        items::function("get_weather", "The weather of a city", schema("city")),
    ]
}

/// What the tools answer: a function of the call, so that scripts repeat.
pub(crate) fn tool_answer(name: &str) -> &'static str {
    match name {
        "order_status" => r#"{"status":"delayed","eta":"Tuesday"}"#,
        "get_weather" => r#"{"temp":18,"sky":"cloudy"}"#,
        _ => r#"{"error":"no such tool"}"#,
    }
}

/// The config of a session that talks with Pebble as it was trained.
pub(crate) fn pebble() -> v1::SessionConfig {
    v1::SessionConfig { instructions: INSTRUCTIONS.to_owned(), tools: tools(), ..Default::default() }
}

/// Opens a session; returns its name.
pub(crate) async fn open(client: &Client, config: v1::SessionConfig) -> String {
    open_with(client, config, Vec::new()).await.unwrap().name
}

/// Opens a session with history.
pub(crate) async fn open_with(
    client: &Client,
    config: v1::SessionConfig,
    initial_items: Vec<v1::Item>,
) -> Result<v1::Session, Status> {
    let session = v1::Session { config: Some(config), ..Default::default() };
    let request = v1::CreateSessionRequest { session: Some(session), initial_items, ..Default::default() };
    Ok(client.sessions().create_session(request).await?.into_inner())
}

pub(crate) async fn session(client: &Client, name: &str) -> Result<v1::Session, Status> {
    let request = v1::GetSessionRequest { name: name.to_owned() };
    Ok(client.sessions().get_session(request).await?.into_inner())
}

pub(crate) async fn delete(client: &Client, name: &str) -> Result<v1::Session, Status> {
    let request = v1::DeleteSessionRequest { name: name.to_owned(), etag: String::new() };
    Ok(client.sessions().delete_session(request).await?.into_inner())
}

pub(crate) async fn get_turn(client: &Client, name: &str) -> Result<v1::Turn, Status> {
    let request = v1::GetTurnRequest { name: name.to_owned(), include_modelled_cost: false };
    Ok(client.sessions().get_turn(request).await?.into_inner())
}

pub(crate) async fn cancel(client: &Client, name: &str) -> Result<v1::Turn, Status> {
    Ok(client.sessions().cancel_turn(v1::CancelTurnRequest { name: name.to_owned() }).await?.into_inner())
}

/// All items of a session, oldest first.
pub(crate) async fn list_items(client: &Client, session: &str) -> Vec<v1::Item> {
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let request =
            v1::ListItemsRequest { session: session.to_owned(), page_token, page_size: 100, newest_first: false };
        let page = client.sessions().list_items(request).await.unwrap().into_inner();
        all.extend(page.items);
        if page.next_page_token.is_empty() {
            return all;
        }
        page_token = page.next_page_token;
    }
}

/// A listed item as a request may hold it: without what is output only.
pub(crate) fn as_input(item: &v1::Item) -> v1::Item {
    let kind = item.kind.clone().map(|kind| match kind {
        v1::item::Kind::ToolCall(call) => v1::item::Kind::ToolCall(v1::ToolCall { parse_error: None, ..call }),
        other => other,
    });
    v1::Item { kind, ..Default::default() }
}

/// The runtime as it tells of itself.
pub(crate) async fn runtime(client: &Client) -> v1::Runtime {
    client.runtime().get_runtime(v1::GetRuntimeRequest {}).await.unwrap().into_inner()
}

/// Blocks of KV state in use over all models.
pub(crate) async fn blocks_used(client: &Client) -> u32 {
    runtime(client).await.models.iter().map(|model| model.kv_blocks_used).sum()
}

/// A request for a turn that says `text`.
pub(crate) fn says(session: &str, text: &str) -> v1::RunTurnRequest {
    v1::RunTurnRequest { session: session.to_owned(), input: vec![items::user(text)], ..Default::default() }
}

/// The same with sampling.
pub(crate) fn says_with(session: &str, text: &str, sampling: v1::Sampling) -> v1::RunTurnRequest {
    let options = v1::TurnOptions { sampling: Some(sampling), ..Default::default() };
    v1::RunTurnRequest { options: Some(options), ..says(session, text) }
}

/// Sampling of a turn that does not end before `tokens` are sampled.
pub(crate) fn long(tokens: u32) -> v1::Sampling {
    v1::Sampling {
        max_output_tokens: Some(tokens),
        logit_bias: [(END_TOKEN, f32::NEG_INFINITY)].into(),
        ..Default::default()
    }
}

/// Starts a turn in the background.
pub(crate) async fn start(client: &Client, run: v1::RunTurnRequest) -> Result<v1::Turn, Status> {
    let request = v1::CreateTurnRequest {
        session: run.session,
        input: run.input,
        options: run.options,
        request_id: run.request_id,
    };
    Ok(client.sessions().create_turn(request).await?.into_inner())
}

/// What a stream of a turn brought, up to its end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard {
    pub(crate) events: Vec<v1::Event>,
}

impl Heard {
    /// The turn as its terminal event tells it.
    pub(crate) fn ended(&self) -> Option<&v1::Turn> {
        match &self.events.last()?.kind {
            Some(Kind::TurnEnded(ended)) => ended.turn.as_ref(),
            _ => None,
        }
    }

    /// Calls that wait for an answer, if the stream ended with them.
    pub(crate) fn waits(&self) -> Option<&[v1::RequiredCall]> {
        match &self.events.last()?.kind {
            Some(Kind::RequiresAction(action)) => Some(&action.calls),
            _ => None,
        }
    }

    /// Text of the assistant, all deltas together.
    pub(crate) fn text(&self) -> String {
        let deltas = self.events.iter().filter_map(|event| match &event.kind {
            Some(Kind::TextDelta(delta)) => Some(delta.text.as_str()),
            _ => None,
        });
        deltas.collect()
    }

    pub(crate) fn turn_name(&self) -> &str {
        self.events.first().map_or("", |event| event.turn.as_str())
    }
}

/// Reads a stream to its end.
pub(crate) async fn hear(mut stream: tonic::Streaming<v1::Event>) -> Result<Heard, Status> {
    let mut heard = Heard::default();
    while let Some(event) = stream.next().await {
        heard.events.push(event?);
    }
    Ok(heard)
}

/// Runs a request and reads its stream to its end.
pub(crate) async fn run(client: &Client, request: v1::RunTurnRequest) -> Result<Heard, Status> {
    hear(client.sessions().run_turn(request).await?.into_inner()).await
}

/// Follows a turn from an event on.
pub(crate) async fn attach(client: &Client, turn: &str, from_sequence: u64) -> Result<Heard, Status> {
    let request = v1::AttachTurnRequest { name: turn.to_owned(), from_sequence };
    hear(client.sessions().attach_turn(request).await?.into_inner()).await
}

/// The request that answers the calls that a stream ended with.
pub(crate) fn answers(session: &str, heard: &Heard) -> Option<v1::RunTurnRequest> {
    let calls = heard.waits()?;
    let input = calls.iter().filter(|call| !call.answered);
    Some(v1::RunTurnRequest {
        session: session.to_owned(),
        turn: heard.turn_name().to_owned(),
        input: input.map(|call| items::tool_result(&call.call_id, tool_answer(&call.name))).collect(),
        ..Default::default()
    })
}

/// Runs a turn to its terminal event, answering every tool call; all that was heard on the way.
pub(crate) async fn run_to_end(client: &Client, mut request: v1::RunTurnRequest) -> Result<Heard, Status> {
    let session = request.session.clone();
    let mut all = Heard::default();
    loop {
        let heard = within("a turn's stream ends", SOON, run(client, request)).await?;
        let next = answers(&session, &heard);
        all.events.extend(heard.events);
        match next {
            Some(answer) => request = answer,
            None if all.ended().is_some() => return Ok(all),
            None => return Err(Status::unavailable("the stream ended before the turn did")),
        }
    }
}

/// Waits for a turn to end in the background.
pub(crate) async fn wait_ended(client: &Client, turn: &str) -> v1::Turn {
    until(&format!("{turn} ends"), SOON, async || {
        let turn = get_turn(client, turn).await.unwrap();
        is_final(turn.state()).then_some(turn)
    })
    .await
}

pub(crate) fn is_final(state: v1::TurnState) -> bool {
    use v1::TurnState as S;
    matches!(state, S::Completed | S::Incomplete | S::Cancelled | S::Failed)
}

/// Tokens that a device computed, over all precisions.
pub(crate) fn device_tokens(usage: &v1::Usage) -> u64 {
    usage.tokens_by_precision.as_ref().map_or(0, |tokens| tokens.native + tokens.int8 + tokens.int4)
}

/// The UPPER_SNAKE reason of a status; empty if it carries none.
pub(crate) fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// Asserts code and reason.
#[track_caller]
pub(crate) fn assert_refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, wanted: &str) {
    let status = result.expect_err("refused");
    assert_eq!((status.code(), reason(&status).as_str()), (code, wanted), "{status:?}");
}

/// A connection without the client's layer, for calls that no client makes.
pub(crate) async fn channel(address: &str) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

/// What the standard health service says of the whole runtime; an error if nobody answers.
pub(crate) async fn health(client: &Client) -> Result<ServingStatus, Status> {
    let mut health = HealthClient::new(client.connection());
    Ok(health.check(HealthCheckRequest { service: String::new() }).await?.into_inner().status())
}
