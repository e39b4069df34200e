//! A turn as the terminal shows it: text as it streams, reasoning on lines of its own, calls, and one line of what it cost.

use std::io::Write;

use holdfast_client::{ClientError, TurnEvents, v1};
use v1::event::Kind;

/// What a turn led to.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It ended.
    Ended(Box<v1::Turn>),
    /// It waits for answers to these calls.
    Waits(Vec<v1::RequiredCall>),
}

/// Shows a turn until it ends or waits.
///
/// # Errors
/// When the stream fails or the terminal cannot be written.
pub(crate) async fn show(events: &mut TurnEvents, out: &mut impl Write) -> anyhow::Result<Outcome> {
    while let Some(event) = events.next().await? {
        match event.kind {
            Some(Kind::TextDelta(delta)) => {
                write!(out, "{}", plain(&delta.text))?;
                out.flush()?;
            }
            Some(Kind::ReasoningDelta(delta)) => {
                write!(out, "{}", plain(&delta.text))?;
                out.flush()?;
            }
            Some(Kind::ItemStarted(started)) if is_reasoning(started.item.as_ref()) => write!(out, "[thinks] ")?,
            Some(Kind::ItemDone(done)) if is_reasoning(done.item.as_ref()) => writeln!(out)?,
            Some(Kind::TurnQueued(queued)) => writeln!(out, "[queued, {} before it]", queued.position)?,
            Some(Kind::RequiresAction(action)) => return Ok(Outcome::Waits(action.calls)),
            Some(Kind::TurnEnded(v1::TurnEnded { turn: Some(turn) })) => return Ok(Outcome::Ended(Box::new(turn))),
            Some(
                Kind::TurnStarted(_)
                | Kind::PrefillProgress(_)
                | Kind::ItemStarted(_)
                | Kind::ItemDone(_)
                | Kind::ToolArgumentsDelta(_)
                | Kind::TurnEnded(_),
            )
            | None => {}
        }
    }
    let status = tonic::Status::unavailable("the turn's stream ended without a terminal event");
    Err(ClientError::from(status).into())
}

fn is_reasoning(item: Option<&v1::Item>) -> bool {
    item.is_some_and(|item| matches!(item.kind, Some(v1::item::Kind::Reasoning(_))))
}

/// One line: tokens reused, computed, sampled, and the time to the first token.
pub(crate) fn cost(turn: &v1::Turn) -> String {
    let usage = turn.usage.clone().unwrap_or_default();
    let mut line = format!(
        "{} tokens reused, {} computed, {} sampled, first token after {:.1} ms",
        usage.cached_tokens,
        usage.computed_tokens,
        usage.output_tokens,
        ms(usage.time_to_first_token_us),
    );
    if usage.recomputed_tokens + usage.preempted_tokens > 0 {
        line.push_str(&format!(", {} recomputed", usage.recomputed_tokens + usage.preempted_tokens));
    }
    line
}

/// Text without control characters other than line breaks and tabs: a model's output must not drive the terminal.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{fffd}' } else { c }).collect()
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
fn ms(us: u64) -> f64 {
    us as f64 / 1000.0
}
