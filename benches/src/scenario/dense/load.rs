//! What the turns of a load add up to.
//!
//! In: phases. Out: figures, each pure arithmetic on turns. Deliberately not here: how they are said (`figures`).

use super::agent::Turn;
use super::phases::Phase;
use crate::scenario::failures::Failures;
use crate::statistics::percentile;

/// The windows of one side, one after the other as if there had been nothing between them.
#[derive(Default)]
pub(crate) struct Load {
    pub(crate) turns: Vec<LoadedTurn>,
    pub(crate) failures: Failures,
    pub(crate) offered: usize,
    /// Seconds of all windows, each to the end of its last turn.
    pub(crate) busy_s: f64,
    /// Seconds of all windows as scheduled.
    pub(crate) window_s: f64,
}

/// A turn and its place in the load.
pub(crate) struct LoadedTurn {
    pub(crate) due_s: f64,
    pub(crate) end_s: f64,
    pub(crate) turn: Turn,
}

impl Load {
    /// Appends a window of `window_s` seconds.
    pub(crate) fn append(&mut self, phase: Phase, window_s: f64) {
        let at_s = |at| self.window_s + phase.since_begin_s(at);
        let place = |turn: &Turn| LoadedTurn { due_s: at_s(turn.due), end_s: at_s(turn.end), turn: turn.clone() };
        let turns: Vec<LoadedTurn> = phase.turns.iter().map(place).collect();
        let end_s = turns.iter().map(|turn| turn.end_s).fold(self.window_s + window_s, f64::max);
        self.busy_s += end_s - self.window_s;
        self.turns.extend(turns);
        self.failures.merge(&phase.failures);
        self.offered += phase.offered;
        self.window_s += window_s;
    }

    /// The turns without their places.
    pub(crate) fn turns(&self) -> impl Iterator<Item = &Turn> {
        self.turns.iter().map(|turn| &turn.turn)
    }
}

/// Of all input tokens: those that were found and not computed.
pub(crate) fn reused_fraction<'a>(turns: impl Iterator<Item = &'a Turn>) -> f64 {
    let (cached, input) =
        turns.fold((0, 0), |(cached, input), turn| (cached + turn.tokens.cached, input + turn.tokens.input));
    cached as f64 / input as f64
}

/// Of all input tokens: those that the conversation had before the turn.
pub(crate) fn history_fraction<'a>(turns: impl Iterator<Item = &'a Turn>) -> f64 {
    let (history, input) =
        turns.fold((0, 0), |(history, input), turn| (history + turn.history_tokens, input + turn.tokens.input));
    history as f64 / input as f64
}

/// Times to the first word, milliseconds.
pub(crate) fn ttft_ms<'a>(turns: impl Iterator<Item = &'a Turn>) -> Vec<f64> {
    turns.map(|turn| turn.ttft_s * 1e3).collect()
}

/// Gaps between words, milliseconds.
pub(crate) fn itl_ms<'a>(turns: impl Iterator<Item = &'a Turn>) -> Vec<f64> {
    turns.flat_map(|turn| turn.gaps_s.iter().map(|gap| gap * 1e3)).collect()
}

/// Turns per second that a closed loop ended within its first `seconds`: counted from the first end to the last, so that neither
/// its begin nor its tail counts. NaN when fewer than two turns ended.
pub(crate) fn capacity(ends_s: &[f64], seconds: f64) -> f64 {
    let within: Vec<f64> = ends_s.iter().copied().filter(|end| *end <= seconds).collect();
    // A slow model ends fewer turns in time than it takes to tell a rate: all of them count then.
    let ends = if within.len() < 2 { ends_s } else { &within };
    (ends.len() as f64 - 1.0) / (percentile(ends, 100.0) - percentile(ends, 0.0))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::player::{Tokens, now};

    fn turn(due_s: u64, ttft_ms: u64, cached: u64, history: u64) -> impl Fn(&Phase) -> Turn {
        move |phase| Turn {
            due: phase.begin + Duration::from_secs(due_s),
            end: phase.begin + Duration::from_secs(due_s + 1),
            late: false,
            ttft_s: ttft_ms as f64 / 1e3,
            gaps_s: vec![0.003, 0.004],
            tokens: Tokens { input: 100, cached, computed: 100 - cached, output: 3 },
            history_tokens: history,
        }
    }

    fn phase(turns: &[&dyn Fn(&Phase) -> Turn]) -> Phase {
        let mut phase = Phase { begin: now(), turns: Vec::new(), failures: Failures::default(), offered: turns.len() };
        phase.turns = turns.iter().map(|turn| turn(&phase)).collect();
        phase
    }

    #[test]
    fn windows_follow_each_other() {
        let mut load = Load::default();
        load.append(phase(&[&turn(1, 5, 0, 0), &turn(9, 5, 0, 0)]), 8.0);
        load.append(phase(&[&turn(2, 5, 0, 0)]), 8.0);
        let places: Vec<_> = load.turns.iter().map(|turn| (turn.due_s, turn.end_s)).collect();
        assert_eq!(places, [(1.0, 2.0), (9.0, 10.0), (10.0, 11.0)]);
        assert_eq!((load.offered, load.window_s, load.busy_s), (3, 16.0, 18.0));
    }

    #[test]
    fn fractions_are_of_all_input() {
        let turns = phase(&[&turn(0, 5, 90, 95), &turn(0, 7, 0, 85)]).turns;
        assert_eq!(reused_fraction(turns.iter()), 0.45);
        assert_eq!(history_fraction(turns.iter()), 0.9);
        assert_eq!(ttft_ms(turns.iter()), [5.0, 7.0]);
        assert_eq!(itl_ms(turns.iter()), [3.0, 4.0, 3.0, 4.0]);
        assert!(reused_fraction([].iter()).is_nan());
    }

    #[test]
    fn capacity_counts_neither_begin_nor_tail() {
        assert_eq!(capacity(&[2.0, 2.5, 3.0, 3.5, 4.0, 9.0], 5.0), 2.0);
        assert_eq!(capacity(&[10.0, 14.0, 18.0], 5.0), 0.25, "turns that are longer than the phase");
        assert!(!capacity(&[1.0], 5.0).is_finite());
    }
}
