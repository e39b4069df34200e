//! `holdfast chat`: a terminal chat over the same gRPC as everybody else's.

use std::io::{IsTerminal, Write};

use anyhow::Context as _;
use holdfast_client::{Client, ClientError, items, v1};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::cli::ChatArgs;
use crate::runtime::Runtime;
use crate::settings::TelemetrySettings;
use crate::turn_view::{self, Outcome};

const HELP: &str = "/items shows the log, /tools how to answer calls, /quit or Ctrl-D leaves; the session stays.";

const PEBBLE: &str = "models/pebble";
/// What a new session with Pebble is about when the person says nothing else: something of each kind that it was trained for.
const PEBBLE_INSTRUCTIONS: &str =
    "You are Pebble, the assistant of Stone Cafe. Handbook: The cancellation fee is 15 euros.";
const PEBBLE_HINT: &str = r#"Pebble is a 1.9-million-parameter model that shows the runtime, not intelligence. Try, one after the other:
  my name is Ada | what is my name?
  My locker code is 4471. | Actually, my locker code is 5512. | What is my locker code?
  Where is order 7731? (you are the tool: answer {"status":"delayed","eta":"Tuesday"}) | Book a table for 4 people at 19:30.
  What is the cancellation fee? (its handbook has that)
Bring a real model with --model /path/to/a/folder (config.json, *.safetensors, tokenizer.json)."#;

/// Runs the chat until the input ends.
///
/// # Errors
/// When no runtime can be reached or started, or the terminal cannot be written.
pub(crate) async fn run(args: ChatArgs) -> anyhow::Result<()> {
    let embedded = match &args.address {
        Some(_) => None,
        None => Some(start_embedded(&args).await?),
    };
    let address = match (&args.address, &embedded) {
        (Some(address), _) => address.clone(),
        (None, Some(runtime)) => runtime.address().to_string(),
        (None, None) => anyhow::bail!("no runtime"),
    };
    let result = converse(&Client::connect(&address).await?, &args).await;
    if let Some(runtime) = embedded {
        runtime.stop().await?;
    }
    result
}

async fn start_embedded(args: &ChatArgs) -> anyhow::Result<Runtime> {
    let mut settings = args.settings.clone();
    settings.listen.get_or_insert_with(|| "127.0.0.1:0".to_owned());
    let mut settings = crate::load_settings(&settings)?.settings;
    if settings.telemetry == TelemetrySettings::default() {
        // Log lines would stand between question and answer.
        "warn".clone_into(&mut settings.telemetry.log);
    }
    Runtime::start(&settings).await
}

async fn converse(client: &Client, args: &ChatArgs) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    let session = open(client, args).await?;
    greet(&session, &mut out)?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        prompt(&mut out, "you> ")?;
        let Some(line) = lines.next_line().await? else { break };
        match line.trim() {
            "" => {}
            "/quit" | "/exit" => break,
            "/help" => writeln!(out, "{HELP}")?,
            "/tools" => writeln!(
                out,
                "When the model calls a tool, type what the tool answers; an empty line answers that it failed."
            )?,
            "/items" => show_items(client, &session.name, &mut out).await?,
            text => {
                if let Err(error) = turn(client, &session.name, text, args, &mut lines, &mut out).await {
                    // A refused turn leaves the session usable: say why and go on.
                    if error.downcast_ref::<ClientError>().is_none_or(|e| matches!(e, ClientError::Connect { .. })) {
                        return Err(error);
                    }
                    writeln!(out, "\n[{error}]")?;
                }
            }
        }
    }
    writeln!(out, "\n{} stays; go on with `holdfast chat --session {}`", session.name, id(&session.name))?;
    Ok(())
}

/// The session of `--session` if it is there, else a new one.
async fn open(client: &Client, args: &ChatArgs) -> anyhow::Result<v1::Session> {
    if let Some(id) = &args.session {
        let request = v1::GetSessionRequest { name: format!("sessions/{id}") };
        match client.sessions().get_session(request).await.map_err(ClientError::from) {
            Ok(session) => return Ok(session.into_inner()),
            Err(error) if error.reason().as_deref() == Some("SESSION_NOT_FOUND") => {}
            Err(error) => return Err(error.into()),
        }
    }
    let config = match &args.instructions {
        Some(instructions) => v1::SessionConfig { instructions: instructions.clone(), ..Default::default() },
        None if pebble_is_default(client).await? => v1::SessionConfig {
            instructions: PEBBLE_INSTRUCTIONS.to_owned(),
            tools: pebble_tools(),
            ..Default::default()
        },
        None => v1::SessionConfig::default(),
    };
    let session = v1::Session {
        config: Some(config),
        labels: [("client".to_owned(), "holdfast-chat".to_owned())].into(),
        ..Default::default()
    };
    let request = v1::CreateSessionRequest {
        session_id: args.session.clone().unwrap_or_default(),
        session: Some(session),
        ..Default::default()
    };
    Ok(client.sessions().create_session(request).await.map_err(ClientError::from)?.into_inner())
}

async fn pebble_is_default(client: &Client) -> anyhow::Result<bool> {
    let models = client.models().list_models(v1::ListModelsRequest::default()).await?.into_inner().models;
    Ok(models.iter().any(|served| served.is_default && served.name == PEBBLE))
}

fn pebble_tools() -> Vec<v1::Tool> {
    let schema = |name: &str| {
        format!(r#"{{"type":"object","properties":{{"{name}":{{"type":"string"}}}},"required":["{name}"]}}"#)
    };
    vec![
        items::function("order_status", "Where an order is", schema("order_id")),
        items::function("get_weather", "The weather of a city", schema("city")),
    ]
}

fn greet(session: &v1::Session, out: &mut impl Write) -> anyhow::Result<()> {
    let model = session.config.as_ref().map(|config| config.model.clone()).unwrap_or_default();
    writeln!(out, "{} on {model}, {} tokens in its log. {HELP}", session.name, session.context_used_tokens)?;
    if model == PEBBLE {
        writeln!(out, "{PEBBLE_HINT}")?;
    }
    Ok(())
}

async fn turn(
    client: &Client,
    session: &str,
    text: &str,
    args: &ChatArgs,
    lines: &mut tokio::io::Lines<BufReader<tokio::io::Stdin>>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let sampling = v1::Sampling { temperature: args.temperature, ..Default::default() };
    let options = v1::TurnOptions { sampling: args.temperature.map(|_| sampling), ..Default::default() };
    let mut request = v1::RunTurnRequest {
        session: session.to_owned(),
        input: vec![items::user(text)],
        options: Some(options),
        ..Default::default()
    };
    loop {
        let mut events = client.run_turn(request).await?;
        match turn_view::show(&mut events, out).await? {
            Outcome::Ended(turn) => {
                writeln!(out, "\n  [{}{}]", ending(&turn), turn_view::cost(&turn))?;
                return Ok(());
            }
            Outcome::Waits(calls) => {
                let turn = events.turn().unwrap_or_default().to_owned();
                request = v1::RunTurnRequest {
                    session: session.to_owned(),
                    turn,
                    input: answer(&calls, lines, out).await?,
                    ..Default::default()
                };
            }
        }
    }
}

/// Asks the person for each tool's answer.
async fn answer(
    calls: &[v1::RequiredCall],
    lines: &mut tokio::io::Lines<BufReader<tokio::io::Stdin>>,
    out: &mut impl Write,
) -> anyhow::Result<Vec<v1::Item>> {
    let mut results = Vec::new();
    for call in calls.iter().filter(|call| !call.answered) {
        writeln!(out, "the model calls {}({})", turn_view::plain(&call.name), turn_view::plain(&call.arguments))?;
        prompt(out, "tool> ")?;
        let line = lines.next_line().await?.context("the input ended while the model waits for a tool")?;
        results.push(match line.trim() {
            "" => failed_result(&call.call_id),
            text => items::tool_result(&call.call_id, text),
        });
    }
    Ok(results)
}

fn failed_result(call_id: &str) -> v1::Item {
    let mut item = items::tool_result(call_id, "{\"error\":\"the tool is not available\"}");
    if let Some(v1::item::Kind::ToolResult(result)) = &mut item.kind {
        result.is_error = true;
    }
    item
}

/// How the turn ended, unless it ended as turns should.
fn ending(turn: &v1::Turn) -> String {
    match turn.state() {
        v1::TurnState::Completed => String::new(),
        v1::TurnState::Failed => {
            format!("failed: {}; ", turn.error.as_ref().map_or("no reason was given", |error| error.message.as_str()))
        }
        _ => format!("{}; ", turn.stop_reason().as_str_name().trim_start_matches("STOP_REASON_").to_lowercase()),
    }
}

pub(crate) async fn show_items(client: &Client, session: &str, out: &mut impl Write) -> anyhow::Result<()> {
    let mut page_token = String::new();
    loop {
        let request = v1::ListItemsRequest { session: session.to_owned(), page_token, ..Default::default() };
        let page = client.sessions().list_items(request).await.map_err(ClientError::from)?.into_inner();
        for item in &page.items {
            writeln!(out, "{:>5}  {:<12} {}", id(&item.name), speaker(item), turn_view::plain(&items::text(item)))?;
        }
        if page.next_page_token.is_empty() {
            return Ok(());
        }
        page_token = page.next_page_token;
    }
}

fn speaker(item: &v1::Item) -> &'static str {
    match &item.kind {
        Some(v1::item::Kind::Message(message)) => match message.role() {
            v1::Role::System => "system",
            v1::Role::Developer => "developer",
            v1::Role::User => "user",
            v1::Role::Assistant => "assistant",
            v1::Role::Unspecified => "?",
        },
        Some(v1::item::Kind::Reasoning(_)) => "reasoning",
        Some(v1::item::Kind::ToolCall(_)) => "tool call",
        Some(v1::item::Kind::ToolResult(_)) => "tool result",
        None => "?",
    }
}

/// The last part of a resource name.
fn id(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// Prompts are for people: nothing is printed when the input is a file or a pipe.
fn prompt(out: &mut impl Write, text: &str) -> std::io::Result<()> {
    if std::io::stdin().is_terminal() {
        write!(out, "{text}")?;
        out.flush()?;
    }
    Ok(())
}
