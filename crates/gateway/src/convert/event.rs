//! Events, outwards.
//!
//! In: events of a session or completion. Out: the contract's events, with full names. Deliberately not here: their order
//! and numbers, which are the worker's; only a completion's events are numbered here, in the stream.

use holdfast_contracts::v1;
use holdfast_contracts::v1::event::Kind;
use holdfast_types::{Event, EventKind, SessionId, TurnNumber};
use holdfast_worker_api::CompletionEvent;

use super::{item, sampling, time, turn};
use crate::names::Home;

/// Writes an event of a session.
pub fn of_session(session: &SessionId, event: &Event) -> v1::Event {
    let home = Home::Session(session);
    v1::Event {
        session: home.session(),
        turn: home.turn(event.turn),
        sequence: event.sequence,
        first_sequence: event.sequence,
        time: Some(time::timestamp(event.time_us)),
        kind: Some(kind(home, Some(event.turn), &event.kind)),
    }
}

/// Writes an event of a completion; `last_sequence` counts those that are not ephemeral.
pub(crate) fn of_completion(last_sequence: &mut u64, event: &CompletionEvent) -> v1::Event {
    let ephemeral = matches!(event.kind, EventKind::TurnQueued { .. } | EventKind::PrefillProgress { .. });
    let sequence = if ephemeral {
        0
    } else {
        *last_sequence += 1;
        *last_sequence
    };
    v1::Event {
        session: String::new(),
        turn: String::new(),
        sequence,
        first_sequence: sequence,
        time: Some(time::timestamp(event.time_us)),
        kind: Some(kind(Home::Completion, None, &event.kind)),
    }
}

fn kind(home: Home<'_>, turn: Option<TurnNumber>, kind: &EventKind) -> Kind {
    match kind {
        EventKind::TurnQueued { position } => Kind::TurnQueued(v1::TurnQueued { position: *position }),
        EventKind::TurnStarted { turn } => Kind::TurnStarted(v1::TurnStarted { turn: Some(turn::turn(home, turn)) }),
        EventKind::PrefillProgress { done, total } => Kind::PrefillProgress(v1::PrefillProgress {
            done_tokens: u64::from(*done),
            total_tokens: u64::from(*total),
        }),
        EventKind::ItemStarted { number, item } => {
            Kind::ItemStarted(v1::ItemStarted { item: Some(item::started(home, *number, turn, item)) })
        }
        EventKind::TextDelta { item, text, tokens, logprobs } => Kind::TextDelta(v1::TextDelta {
            item: home.item(*item),
            text: text.clone(),
            token_range: Some(item::token_range(*tokens)),
            logprobs: sampling::logprobs(*tokens, logprobs),
        }),
        EventKind::ReasoningDelta { item, text, tokens } => Kind::ReasoningDelta(v1::ReasoningDelta {
            item: home.item(*item),
            text: text.clone(),
            token_range: Some(item::token_range(*tokens)),
        }),
        EventKind::ToolArgumentsDelta { item, arguments, tokens } => Kind::ToolArgumentsDelta(v1::ToolArgumentsDelta {
            item: home.item(*item),
            arguments: arguments.clone(),
            token_range: Some(item::token_range(*tokens)),
        }),
        EventKind::ItemDone { number, item, tokens } => {
            Kind::ItemDone(v1::ItemDone { item: Some(item::done(home, *number, turn, *tokens, item)) })
        }
        EventKind::RequiresAction { calls } => {
            Kind::RequiresAction(v1::RequiresAction { calls: calls.iter().map(turn::required_call).collect() })
        }
        EventKind::TurnEnded { turn } => Kind::TurnEnded(v1::TurnEnded { turn: Some(turn::turn(home, turn)) }),
    }
}
