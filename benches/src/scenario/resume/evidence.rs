//! Whether a session tells the same story after a restart as before it.
//!
//! In: events and items that a client has read, and what the runtime gives now. Out: the numbers of events that it does not give
//! again, or gives differently. Deltas of one item may come as one on replay, so runs of them are compared by what they add up
//! to. Pure.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_client::v1;
use v1::event::Kind;

/// Numbers of `before` that `after` lacks or tells differently. Both are whole from the beginning of each item on; `before` may end
/// within one. A run of deltas that differs counts as a whole.
pub(super) fn lost_events(before: &[v1::Event], after: &[v1::Event]) -> BTreeSet<u64> {
    let after: BTreeMap<_, _> = runs(after).into_iter().map(|run| (run.first_sequence, run)).collect();
    let lost = |run: &v1::Event| !after.get(&run.first_sequence).is_some_and(|again| tells(again, run));
    runs(before).into_iter().filter(lost).flat_map(|run| run.first_sequence..=run.sequence).collect()
}

/// Items of `before` that `after` lacks or gives differently.
pub(super) fn lost_items(before: &[v1::Item], after: &[v1::Item]) -> usize {
    let after: BTreeMap<_, _> = after.iter().map(|item| (&item.name, item)).collect();
    before.iter().filter(|item| after.get(&item.name) != Some(item)).count()
}

/// What was sampled, token by token: its place in the log, its id, and the bits of its log probability.
pub(super) fn samples(events: &[v1::Event]) -> Vec<(u64, u32, u32)> {
    let deltas = events.iter().filter_map(|event| match &event.kind {
        Some(Kind::TextDelta(delta)) => Some(&delta.logprobs),
        _ => None,
    });
    deltas.flatten().map(|sample| (sample.position, sample.token, sample.logprob.to_bits())).collect()
}

/// The numbered events, deltas that follow each other in one item joined.
fn runs(events: &[v1::Event]) -> Vec<v1::Event> {
    let mut runs: Vec<v1::Event> = Vec::new();
    for event in events.iter().filter(|event| event.sequence > 0) {
        if !runs.last_mut().is_some_and(|run| join(run, event)) {
            runs.push(event.clone());
        }
    }
    runs
}

/// Joins `next` to `run` if it continues it.
fn join(run: &mut v1::Event, next: &v1::Event) -> bool {
    if next.first_sequence != run.sequence + 1 {
        return false;
    }
    let joined = match (&mut run.kind, &next.kind) {
        (Some(Kind::TextDelta(run)), Some(Kind::TextDelta(next))) if run.item == next.item => {
            run.text.push_str(&next.text);
            run.logprobs.extend_from_slice(&next.logprobs);
            extend(&mut run.token_range, next.token_range);
            true
        }
        (Some(Kind::ReasoningDelta(run)), Some(Kind::ReasoningDelta(next))) if run.item == next.item => {
            run.text.push_str(&next.text);
            extend(&mut run.token_range, next.token_range);
            true
        }
        (Some(Kind::ToolArgumentsDelta(run)), Some(Kind::ToolArgumentsDelta(next))) if run.item == next.item => {
            run.arguments.push_str(&next.arguments);
            extend(&mut run.token_range, next.token_range);
            true
        }
        _ => false,
    };
    if joined {
        run.sequence = next.sequence;
    }
    joined
}

fn extend(range: &mut Option<v1::TokenRange>, next: Option<v1::TokenRange>) {
    match (range, next) {
        (Some(range), Some(next)) => range.end = range.end.max(next.end),
        (range @ None, next) => *range = next,
        (Some(_), None) => {}
    }
}

/// Whether `again` says everything that `run` said, and goes on if at all.
fn tells(again: &v1::Event, run: &v1::Event) -> bool {
    let begins = |again: &str, run: &str| again.starts_with(run);
    let covers = |again: Option<v1::TokenRange>, run: Option<v1::TokenRange>| match (again, run) {
        (Some(again), Some(run)) => again.start == run.start && again.end >= run.end,
        (again, run) => again.is_some() || run.is_none(),
    };
    let content = match (&again.kind, &run.kind) {
        (Some(Kind::TextDelta(again)), Some(Kind::TextDelta(run))) => {
            again.item == run.item
                && begins(&again.text, &run.text)
                && again.logprobs.starts_with(&run.logprobs)
                && covers(again.token_range, run.token_range)
        }
        (Some(Kind::ReasoningDelta(again)), Some(Kind::ReasoningDelta(run))) => {
            again.item == run.item && begins(&again.text, &run.text) && covers(again.token_range, run.token_range)
        }
        (Some(Kind::ToolArgumentsDelta(again)), Some(Kind::ToolArgumentsDelta(run))) => {
            again.item == run.item
                && begins(&again.arguments, &run.arguments)
                && covers(again.token_range, run.token_range)
        }
        (again_kind, run_kind) => again_kind == run_kind && again.time == run.time && again.sequence == run.sequence,
    };
    content && again.session == run.session && again.turn == run.turn && again.sequence >= run.sequence
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(first_sequence: u64, sequence: u64, kind: Kind) -> v1::Event {
        v1::Event { first_sequence, sequence, kind: Some(kind), ..v1::Event::default() }
    }

    /// Text of item 1, one character for each number and token.
    fn text(first: u64, text: &str) -> v1::Event {
        let (last, start) = (first + text.len() as u64 - 1, 10 + first);
        let token_range = Some(v1::TokenRange { start, end: start + text.len() as u64 });
        let logprobs = (start..).zip(text.bytes());
        let logprobs = logprobs.map(|(position, byte)| v1::TokenLogprob {
            position,
            token: u32::from(byte),
            ..v1::TokenLogprob::default()
        });
        let delta =
            v1::TextDelta { item: "1".to_owned(), text: text.to_owned(), token_range, logprobs: logprobs.collect() };
        event(first, last, Kind::TextDelta(delta))
    }

    fn end(sequence: u64, output_tokens: u64) -> v1::Event {
        let usage = Some(v1::Usage { output_tokens, ..v1::Usage::default() });
        let turn = Some(v1::Turn { usage, ..v1::Turn::default() });
        event(sequence, sequence, Kind::TurnEnded(v1::TurnEnded { turn }))
    }

    #[test]
    fn deltas_may_come_as_one() {
        let live = [text(1, "a"), text(2, "b"), text(3, "cd"), end(5, 4)];
        let replayed = [text(1, "abcd"), end(5, 4)];
        assert!(lost_events(&live, &replayed).is_empty());
        assert!(lost_events(&replayed, &live).is_empty());
        assert_eq!(samples(&live), samples(&replayed));
        assert_eq!(samples(&live).len(), 4);
    }

    #[test]
    fn what_was_read_may_end_within_an_item() {
        assert!(lost_events(&[text(1, "a"), text(2, "b")], &[text(1, "abcd"), end(5, 4)]).is_empty());
        assert_eq!(lost_events(&[text(1, "abcd")], &[text(1, "ab")]), BTreeSet::from([1, 2, 3, 4]));
    }

    #[test]
    fn what_is_missing_or_different_is_lost() {
        let before = [text(1, "ab"), end(3, 2)];
        assert_eq!(lost_events(&before, &[]), BTreeSet::from([1, 2, 3]));
        assert_eq!(lost_events(&before, &[text(1, "ab")]), BTreeSet::from([3]));
        assert_eq!(lost_events(&before, &[text(1, "ax"), end(3, 2)]), BTreeSet::from([1, 2]));
        assert_eq!(lost_events(&before, &[text(1, "ab"), end(3, 9)]), BTreeSet::from([3]));
        let mut token = text(1, "ab");
        if let Some(Kind::TextDelta(delta)) = &mut token.kind {
            delta.logprobs[1].token += 1;
        }
        assert_eq!(lost_events(&before, &[token, end(3, 2)]), BTreeSet::from([1, 2]));
    }

    #[test]
    fn a_gap_is_not_joined() {
        assert_eq!(lost_events(&[text(1, "abc")], &[text(1, "a"), text(3, "c")]), BTreeSet::from([1, 2, 3]));
    }

    #[test]
    fn ephemeral_events_are_nobody_s_loss() {
        let queued = event(0, 0, Kind::TurnQueued(v1::TurnQueued { position: 0 }));
        assert!(lost_events(&[queued, end(1, 1)], &[end(1, 1)]).is_empty());
    }

    #[test]
    fn items_are_compared_by_name_and_content() {
        let item =
            |name: &str, turn: &str| v1::Item { name: name.to_owned(), turn: turn.to_owned(), ..v1::Item::default() };
        let before = [item("1", "a"), item("2", "a")];
        assert_eq!(lost_items(&before, &[item("2", "a"), item("1", "a"), item("3", "b")]), 0);
        assert_eq!(lost_items(&before, &[item("1", "b")]), 2);
    }
}
