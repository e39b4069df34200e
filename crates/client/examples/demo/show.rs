//! How the demo looks on a terminal.

use holdfast_client::{items, v1};
use v1::item::Kind;

use crate::Cost;

/// A step of the story.
pub(crate) fn heading(text: &str) {
    println!("\n== {text} ==");
}

/// An item of the conversation, unless the user said it.
pub(crate) fn item(item: &v1::Item) {
    let speaker = match &item.kind {
        Some(Kind::Message(message)) if message.role() == v1::Role::Assistant => "assistant",
        Some(Kind::ToolCall(_)) => "tool call",
        Some(Kind::ToolResult(_)) => "tool",
        _ => return,
    };
    println!("  {speaker:<10} {}", items::text(item));
}

/// What a turn cost, from its own report.
pub(crate) fn usage(turn: &v1::Turn) {
    let usage = turn.usage.clone().unwrap_or_default();
    println!(
        "             {:>4} tokens of context reused, {:>3} computed, {:>3} sampled, first token after {:.1} ms",
        usage.cached_tokens,
        usage.computed_tokens,
        usage.output_tokens,
        usage.time_to_first_token_us as f64 / 1e3
    );
}

/// The stateful and the stateless column.
pub(crate) fn table(costs: &[Cost]) {
    println!("\n  {:<36} {:>22}   {:>22}", "", "session", "stateless");
    println!("  {:<36} {:>10} {:>11}   {:>10} {:>11}", "turn", "computed", "reused", "computed", "reused");
    let (mut stateful, mut stateless) = (v1::Usage::default(), v1::Usage::default());
    for cost in costs {
        row(&cost.said, &cost.stateful, &cost.stateless);
        add(&mut stateful, &cost.stateful);
        add(&mut stateless, &cost.stateless);
    }
    row("all turns", &stateful, &stateless);
    if computed(&stateful) > 0 {
        println!(
            "\n  The stateless API computed {:.1} times as many input tokens for the same answers, and the gap grows with every turn.",
            computed(&stateless) as f64 / computed(&stateful) as f64
        );
    }
    let repeated = stateful.recomputed_tokens;
    if repeated > 0 {
        println!(
            "  (The session's figures leave out {repeated} tokens computed again after the kill: the journal kept them, the device did not.)"
        );
    }
}

fn row(name: &str, stateful: &v1::Usage, stateless: &v1::Usage) {
    println!(
        "  {:<36} {:>10} {:>11}   {:>10} {:>11}",
        short(name),
        computed(stateful),
        stateful.cached_tokens,
        computed(stateless),
        stateless.cached_tokens
    );
}

fn computed(usage: &v1::Usage) -> u64 {
    usage.computed_tokens
}

/// Sums what the table shows.
pub(crate) fn add(sum: &mut v1::Usage, usage: &v1::Usage) {
    sum.computed_tokens += usage.computed_tokens;
    sum.recomputed_tokens += usage.recomputed_tokens;
    sum.cached_tokens += usage.cached_tokens;
}

/// At most 60 characters.
pub(crate) fn short(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// Whether a user said it.
pub(crate) fn is_user(item: &v1::Item) -> bool {
    matches!(&item.kind, Some(Kind::Message(message)) if message.role() == v1::Role::User)
}

/// Whether the model said it.
pub(crate) fn is_sampled(item: &v1::Item) -> bool {
    match &item.kind {
        Some(Kind::Message(message)) => message.role() == v1::Role::Assistant,
        Some(Kind::ToolCall(_) | Kind::Reasoning(_)) => true,
        _ => false,
    }
}

/// The item as a client that keeps the history itself would send it.
pub(crate) fn as_input(item: &v1::Item) -> v1::Item {
    v1::Item { kind: item.kind.clone(), ..v1::Item::default() }
}
