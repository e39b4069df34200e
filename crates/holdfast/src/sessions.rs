//! `holdfast sessions`: what an operator looks at and cleans up.

use std::io::Write;

use anyhow::bail;
use holdfast_client::{Client, ClientError, v1};
use tokio_stream::StreamExt;
use v1::event::Kind;

use crate::cli::{SessionsArgs, SessionsCommand};
use crate::{chat, turn_view};

/// Runs one of the sessions commands.
///
/// # Errors
/// When the runtime cannot be reached or refuses.
pub(crate) async fn run(args: SessionsArgs) -> anyhow::Result<()> {
    let client = Client::connect(&args.remote.address).await?;
    let mut out = std::io::stdout();
    match args.command {
        SessionsCommand::List { filter, limit } => list(&client, &filter, limit, &mut out).await,
        SessionsCommand::Show { session } => show(&client, &full(&session), &mut out).await,
        SessionsCommand::Delete { sessions } => delete(&client, &sessions, &mut out).await,
        SessionsCommand::Tail { session, from } => tail(&client, &full(&session), from, &mut out).await,
    }
}

/// Accepts an id or a full name.
fn full(session: &str) -> String {
    if session.starts_with("sessions/") { session.to_owned() } else { format!("sessions/{session}") }
}

async fn list(client: &Client, filter: &str, limit: usize, out: &mut impl Write) -> anyhow::Result<()> {
    let (mut page_token, mut left) = (String::new(), limit);
    writeln!(out, "{:<40} {:<16} {:>6} {:>8}  updated (UTC, s)", "session", "state", "turns", "tokens")?;
    while left > 0 {
        let page_size = u32::try_from(left.min(100))?;
        let request = v1::ListSessionsRequest { page_size, page_token, filter: filter.to_owned() };
        let page = client.sessions().list_sessions(request).await.map_err(ClientError::from)?.into_inner();
        for session in page.sessions.iter().take(left) {
            let state = session.state().as_str_name().trim_start_matches("SESSION_STATE_").to_lowercase();
            let updated = session.update_time.map_or(0, |time| time.seconds);
            writeln!(
                out,
                "{:<40} {state:<16} {:>6} {:>8}  {updated}",
                session.name.trim_start_matches("sessions/"),
                session.last_turn,
                session.context_used_tokens
            )?;
        }
        left = left.saturating_sub(page.sessions.len());
        if page.next_page_token.is_empty() {
            return Ok(());
        }
        page_token = page.next_page_token;
    }
    writeln!(out, "… there are more; raise --limit or set --filter")?;
    Ok(())
}

async fn show(client: &Client, name: &str, out: &mut impl Write) -> anyhow::Result<()> {
    let request = v1::GetSessionRequest { name: name.to_owned() };
    let session = client.sessions().get_session(request).await.map_err(ClientError::from)?.into_inner();
    let config = session.config.clone().unwrap_or_default();
    writeln!(
        out,
        "{}  {}\n  model {}, {} of {} tokens, {} turns, {} items, {} events, etag {}",
        session.name,
        session.state().as_str_name().trim_start_matches("SESSION_STATE_").to_lowercase(),
        config.model,
        session.context_used_tokens,
        session.context_limit_tokens,
        session.last_turn,
        session.last_item,
        session.last_sequence,
        session.etag,
    )?;
    for (key, value) in &session.labels {
        writeln!(out, "  {} = {}", turn_view::plain(key), turn_view::plain(value))?;
    }
    chat::show_items(client, name, out).await
}

async fn delete(client: &Client, sessions: &[String], out: &mut impl Write) -> anyhow::Result<()> {
    let mut failed = 0;
    for session in sessions {
        let name = full(session);
        let request = v1::DeleteSessionRequest { name: name.clone(), etag: String::new() };
        match client.sessions().delete_session(request).await.map_err(ClientError::from) {
            Ok(_) => writeln!(out, "{name} deleted")?,
            Err(error) => {
                failed += 1;
                writeln!(out, "{name}: {error}")?;
            }
        }
    }
    if failed > 0 {
        bail!("{failed} of {} sessions were not deleted", sessions.len());
    }
    Ok(())
}

/// Follows a session, attaching again from the next event when the stream breaks.
async fn tail(client: &Client, name: &str, from: u64, out: &mut impl Write) -> anyhow::Result<()> {
    let mut next = from;
    loop {
        let request = v1::WatchSessionRequest { name: name.to_owned(), from_sequence: next };
        let mut events = client.sessions().watch_session(request).await.map_err(ClientError::from)?.into_inner();
        while let Some(event) = events.next().await {
            let event = match event {
                Ok(event) => event,
                Err(status) if status.code() == tonic::Code::Unavailable => break,
                Err(status) => return Err(ClientError::from(status).into()),
            };
            if event.sequence > 0 {
                next = event.sequence + 1;
            }
            writeln!(out, "{}", line(&event))?;
        }
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
}

fn line(event: &v1::Event) -> String {
    let turn = event.turn.rsplit('/').next().unwrap_or_default();
    let what = match &event.kind {
        Some(Kind::TurnQueued(queued)) => format!("queued, {} before it", queued.position),
        Some(Kind::TurnStarted(_)) => "turn started".to_owned(),
        Some(Kind::PrefillProgress(progress)) => {
            format!("computed {} of {} tokens", progress.done_tokens, progress.total_tokens)
        }
        Some(Kind::RequiresAction(action)) => format!("waits for {} tool results", action.calls.len()),
        Some(Kind::TurnEnded(ended)) => match &ended.turn {
            Some(turn) => format!("turn ended, {}; {}", turn.state().as_str_name(), turn_view::cost(turn)),
            None => "turn ended".to_owned(),
        },
        Some(Kind::ItemStarted(_)) => "item started".to_owned(),
        Some(Kind::TextDelta(delta)) => format!("text {:?}", delta.text),
        Some(Kind::ReasoningDelta(delta)) => format!("reasoning {:?}", delta.text),
        Some(Kind::ToolArgumentsDelta(delta)) => format!("arguments {:?}", delta.arguments),
        Some(Kind::ItemDone(done)) => {
            format!("item done {:?}", done.item.as_ref().map(holdfast_client::items::text).unwrap_or_default())
        }
        None => "an event of a kind that this version does not know".to_owned(),
    };
    format!("{:>6}  turn {turn:<4} {what}", event.sequence)
}
