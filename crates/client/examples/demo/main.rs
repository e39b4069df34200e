//! `cargo xtask demo`: an agent talks to a runtime, the runtime is killed in mid-turn and started again, the turn goes on,
//! and the same conversation is repeated through the stateless API, side by side.
//!
//! In: the path of the `holdfast` binary. Out: a transcript and two columns of figures. Every figure is read from the runtime's
//! own usage reports; nothing is assumed.
#![allow(clippy::print_stdout, reason = "an example that talks to a person")]

mod server;
mod show;

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Parser;
use holdfast_client::{Client, items, v1};
use server::Server;
use tokio_stream::StreamExt;
use v1::event::Kind;

const INSTRUCTIONS: &str = "You are Pebble, the assistant of Stone Cafe. Handbook: The cancellation fee is 15 euros.";

/// What the user says, turn by turn. The model may call tools in any of them.
const SCRIPT: &[&str] = &[
    "hello",
    "who are you?",
    "my name is Ada",
    "My locker code is 4471.",
    "what is my name?",
    "What is the weather in Lisbon?",
    "Actually, my locker code is 5512.",
    "What is my locker code?",
    "What is the cancellation fee?",
    "Book a table for 4 people at 19:30.",
];

/// The turn that the runtime does not survive: its end-of-turn token is biased away, so that it is long enough to be hit.
const LONG_TURN: &str = "What can you do?";
const LONG_TURN_TOKENS: u32 = 160;
/// Id of Pebble's end-of-turn token.
const END_TOKEN: u32 = 0;
/// Events that are seen before the kill.
const KILL_AFTER: usize = 40;

#[derive(Parser)]
struct Args {
    /// The runtime's binary.
    #[arg(long)]
    binary: PathBuf,
}

/// What one turn cost.
struct Cost {
    said: String,
    stateful: v1::Usage,
    stateless: v1::Usage,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let data = tempfile::tempdir()?;
    let mut server = Server::start(&args.binary, data.path(), 0)?;
    show::heading("An agent opens a session and talks");
    let client = Client::connect(&server.address).await?;
    let session = open(&client).await?;
    let mut costs = Vec::new();
    for said in SCRIPT {
        let usage = turn(&client, &session, said).await?;
        costs.push(Cost { said: (*said).to_owned(), stateful: usage, stateless: v1::Usage::default() });
    }

    show::heading("The runtime is killed in mid-turn (SIGKILL) and started again");
    let (name, seen, before) = run_until_killed(&client, &session, &mut server).await?;
    drop(client);
    let port = server.port();
    drop(server);
    let server = Server::start(&args.binary, data.path(), port)?;
    let client = Client::connect(&server.address).await?;
    let (after, ended) = follow(&client, &name, seen + 1).await?;
    println!("  started again in {:.0} ms; attached from event {}", server.start_ms, seen + 1);
    let replayed = follow(&client, &name, 0).await?.0;
    println!("  before the kill: {:?}", show::short(&before));
    println!("  after the start: {:?}", show::short(&after));
    if replayed != format!("{before}{after}") {
        bail!("the replayed turn reads {replayed:?}");
    }
    println!("  the whole turn replayed from its first event reads the same: nothing lost, nothing twice");
    costs.push(Cost {
        said: LONG_TURN.to_owned(),
        stateful: ended.usage.clone().unwrap_or_default(),
        stateless: v1::Usage::default(),
    });

    show::heading("The same conversation through a stateless API: the history is sent and computed again each time");
    let history = list_items(&client, &session).await?;
    repeat_stateless(&client, &history, &mut costs).await?;
    show::table(&costs);
    Ok(())
}

fn tools() -> Vec<v1::Tool> {
    let schema = |name: &str| {
        format!(r#"{{"type":"object","properties":{{"{name}":{{"type":"string"}}}},"required":["{name}"]}}"#)
    };
    vec![
        items::function("order_status", "Where an order is", schema("order_id")),
        items::function("get_weather", "The weather of a city", schema("city")),
    ]
}

/// What the agent's tools answer.
fn run_tool(name: &str) -> &'static str {
    match name {
        "order_status" => r#"{"status":"delayed","eta":"Tuesday"}"#,
        "get_weather" => r#"{"temp":18,"sky":"cloudy"}"#,
        _ => r#"{"error":"no such tool"}"#,
    }
}

async fn open(client: &Client) -> anyhow::Result<String> {
    let config = v1::SessionConfig { instructions: INSTRUCTIONS.to_owned(), tools: tools(), ..Default::default() };
    let session = v1::Session { config: Some(config), ..Default::default() };
    let request = v1::CreateSessionRequest { session: Some(session), ..Default::default() };
    Ok(client.sessions().create_session(request).await?.into_inner().name)
}

/// One turn, tool calls answered; its usage over all generations.
async fn turn(client: &Client, session: &str, said: &str) -> anyhow::Result<v1::Usage> {
    println!("\n  user       {said}");
    let mut request =
        v1::RunTurnRequest { session: session.to_owned(), input: vec![items::user(said)], ..Default::default() };
    loop {
        let mut events = client.run_turn(request.clone()).await?;
        let mut calls = Vec::new();
        while let Some(event) = events.next().await? {
            match event.kind {
                Some(Kind::ItemDone(v1::ItemDone { item: Some(item) })) => show::item(&item),
                Some(Kind::RequiresAction(action)) => calls = action.calls,
                Some(Kind::TurnEnded(ended)) => {
                    let turn = ended.turn.context("a terminal event without its turn")?;
                    show::usage(&turn);
                    return Ok(turn.usage.unwrap_or_default());
                }
                _ => {}
            }
        }
        request.turn = events.turn().context("a turn without a name")?.to_owned();
        request.input = calls.iter().map(|call| items::tool_result(&call.call_id, run_tool(&call.name))).collect();
    }
}

/// Sampling of the long turn.
fn endless() -> v1::Sampling {
    v1::Sampling {
        max_output_tokens: Some(LONG_TURN_TOKENS),
        logit_bias: [(END_TOKEN, -100.0)].into(),
        ..Default::default()
    }
}

/// The long turn would wait for a tool if it called one.
fn no_call() -> v1::ToolChoice {
    v1::ToolChoice { choice: Some(v1::tool_choice::Choice::None(())) }
}

/// Starts the long turn, kills the runtime after some events; the turn's name, the last number seen, the text seen.
async fn run_until_killed(
    client: &Client,
    session: &str,
    server: &mut Server,
) -> anyhow::Result<(String, u64, String)> {
    println!("\n  user       {LONG_TURN}");
    let options = v1::TurnOptions { sampling: Some(endless()), tool_choice: Some(no_call()), ..Default::default() };
    let request = v1::RunTurnRequest {
        session: session.to_owned(),
        input: vec![items::user(LONG_TURN)],
        options: Some(options),
        ..Default::default()
    };
    let mut events = client.sessions().run_turn(request).await?.into_inner();
    let (mut name, mut seen, mut text, mut count) = (String::new(), 0, String::new(), 0);
    while let Some(Ok(event)) = events.next().await {
        if count == KILL_AFTER {
            server.kill()?;
        }
        count += 1;
        name = event.turn;
        seen = seen.max(event.sequence);
        match event.kind {
            Some(Kind::TextDelta(delta)) => text.push_str(&delta.text),
            Some(Kind::TurnEnded(_)) => bail!("the turn ended before the kill; raise LONG_TURN_TOKENS"),
            _ => {}
        }
    }
    println!("  killed: the stream broke after event {seen}");
    Ok((name, seen, text))
}

/// The text of a turn from an event on, and the turn as it ended.
async fn follow(client: &Client, turn: &str, from_sequence: u64) -> anyhow::Result<(String, v1::Turn)> {
    let mut events = client.attach_turn(turn, from_sequence).await?;
    let mut text = String::new();
    while let Some(event) = events.next().await? {
        match event.kind {
            Some(Kind::TextDelta(delta)) => text.push_str(&delta.text),
            Some(Kind::TurnEnded(ended)) => return Ok((text, ended.turn.context("no turn")?)),
            _ => {}
        }
    }
    bail!("{turn} did not end")
}

async fn list_items(client: &Client, session: &str) -> anyhow::Result<Vec<v1::Item>> {
    let request = v1::ListItemsRequest { session: session.to_owned(), page_size: 1000, ..Default::default() };
    Ok(client.sessions().list_items(request).await?.into_inner().items)
}

/// Sends, for each point at which the agent's model spoke, everything before it.
async fn repeat_stateless(client: &Client, history: &[v1::Item], costs: &mut [Cost]) -> anyhow::Result<()> {
    let mut turn = 0;
    for (at, item) in history.iter().enumerate() {
        if show::is_user(item) {
            turn += 1;
        }
        if !show::is_sampled(item) {
            continue;
        }
        let last = turn == costs.len();
        let short = v1::Sampling { max_output_tokens: Some(64), ..Default::default() };
        let request = v1::GenerateRequest {
            instructions: INSTRUCTIONS.to_owned(),
            tools: tools(),
            items: history[..at].iter().map(show::as_input).collect(),
            sampling: Some(if last { endless() } else { short }),
            tool_choice: last.then(no_call),
            ..Default::default()
        };
        let mut events = client.completions().generate(request).await?.into_inner();
        while let Some(event) = events.next().await {
            if let Some(Kind::TurnEnded(v1::TurnEnded { turn: Some(ended) })) = event?.kind {
                let cost = costs.get_mut(turn.saturating_sub(1)).context("an answer before the first message")?;
                show::add(&mut cost.stateless, &ended.usage.unwrap_or_default());
            }
        }
    }
    Ok(())
}
