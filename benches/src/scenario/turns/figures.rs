//! Figures of one player, and of two beside each other.
//!
//! In: answers. Out: arrays by turn, sums, medians and ratios. Pure.

use std::time::Duration;

use serde::Serialize;

use crate::player::Answer;
use crate::statistics::{median, ratios};

/// The last turns, whose ratios make `speedup_ttft_last`: one alone would be one sample.
pub(super) const LAST_TURNS: usize = 5;

/// What one player did, and what its reader felt.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Figures {
    /// Input that was computed, of all turns.
    pub(super) computed_tokens: u64,
    /// Input that was found, of all turns.
    pub(super) cached_tokens: u64,
    pub(super) output_tokens: u64,
    /// Sum of the turns' times.
    pub(super) total_s: f64,
    pub(super) itl_ms: InterToken,
    pub(super) ttft_ms: Vec<f64>,
    pub(super) turn_ms: Vec<f64>,
    pub(super) computed_tokens_by_turn: Vec<u64>,
}

/// From one word of an answer to the next.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct InterToken {
    pub(super) p50: f64,
}

/// How many times as long another player took as the session.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Speedup {
    /// Of the sums of all turns.
    pub(super) speedup_total: f64,
    /// Of the times to the first token: median of the last turns' ratios.
    pub(super) speedup_ttft_last: f64,
}

impl Figures {
    /// Of all answers of one player.
    pub(super) fn of(answers: &[Answer]) -> Self {
        let ms = |time: fn(&Answer) -> Duration| answers.iter().map(|answer| milliseconds(time(answer))).collect();
        let sum = |tokens: fn(&Answer) -> u64| answers.iter().map(tokens).sum();
        let gaps: Vec<_> = answers.iter().flat_map(|answer| &answer.gaps).copied().map(milliseconds).collect();
        Self {
            computed_tokens: sum(|answer| answer.tokens.computed),
            cached_tokens: sum(|answer| answer.tokens.cached),
            output_tokens: sum(|answer| answer.tokens.output),
            total_s: answers.iter().map(|answer| answer.total.as_secs_f64()).sum(),
            itl_ms: InterToken { p50: median(&gaps) },
            ttft_ms: ms(|answer| answer.first_token),
            turn_ms: ms(|answer| answer.total),
            computed_tokens_by_turn: answers.iter().map(|answer| answer.tokens.computed).collect(),
        }
    }

    /// The last turns' times to the first token, in milliseconds.
    pub(super) fn last_ttft_ms(&self) -> &[f64] {
        last(&self.ttft_ms)
    }

    /// How many times as long `other` took.
    pub(super) fn speedup_over(&self, other: &Self) -> Speedup {
        Speedup {
            speedup_total: other.total_s / self.total_s,
            speedup_ttft_last: median(&ratios(other.last_ttft_ms(), self.last_ttft_ms())),
        }
    }
}

/// Tokens that a session should have computed as input, if each token of its log was computed once: the last one that was sampled
/// is in the log and was never computed, and of the other samples each turn's last is the first input of the next.
pub(super) fn computed_if_once(log_tokens: u64, answers: &[Answer]) -> u64 {
    let fed_back: u64 = answers.iter().map(|answer| answer.tokens.output.saturating_sub(1)).sum();
    log_tokens.saturating_sub(1 + fed_back)
}

/// Turns in which `a` and `b` do not agree about something.
pub(super) fn turns_apart<T: PartialEq>(a: &[Answer], b: &[Answer], of: impl Fn(&Answer) -> T) -> usize {
    a.iter().zip(b).filter(|(a, b)| of(a) != of(b)).count()
}

/// Sums up to each value.
pub(super) fn cumulated(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let sums = values.into_iter().scan(0.0, |sum, value| {
        *sum += value;
        Some(*sum)
    });
    sums.collect()
}

fn last(values: &[f64]) -> &[f64] {
    &values[values.len().saturating_sub(LAST_TURNS)..]
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::player::Tokens;

    /// A turn that took `first_ms` to its first word and three words of 2 ms each.
    fn answer(first_ms: u64, computed: u64, output: u64) -> Answer {
        Answer {
            first_token: Duration::from_millis(first_ms),
            gaps: vec![Duration::from_millis(2); 3],
            total: Duration::from_millis(first_ms + 6),
            tokens: Tokens { input: 100, cached: 100 - computed, computed, output },
            ..Answer::default()
        }
    }

    #[test]
    fn figures_are_sums_and_medians_of_the_answers() {
        let figures = Figures::of(&[answer(10, 100, 4), answer(30, 40, 4)]);
        assert_eq!((figures.computed_tokens, figures.cached_tokens, figures.output_tokens), (140, 60, 8));
        assert_eq!((figures.ttft_ms, figures.turn_ms), (vec![10.0, 30.0], vec![16.0, 36.0]));
        assert_eq!((figures.total_s, figures.itl_ms.p50), (0.052, 2.0));
    }

    #[test]
    fn the_last_turns_decide_the_last_ratio() {
        let stateful: Vec<_> = [50, 10, 10, 10, 10, 10].map(|ms| answer(ms, 10, 4)).into();
        let stateless: Vec<_> = [50, 20, 30, 40, 50, 900].map(|ms| answer(ms, 10, 4)).into();
        let speedup = Figures::of(&stateful).speedup_over(&Figures::of(&stateless));
        assert_eq!(speedup.speedup_ttft_last, 4.0);
        assert!((speedup.speedup_total - 1126.0 / 136.0).abs() < 1e-9, "{speedup:?}");
    }

    #[test]
    fn every_token_of_a_log_is_computed_once() {
        // 100 tokens in and 4 out; then the 4th of them, 3 that close the answer, 46 of input; 4 out again.
        let answers = [answer(1, 100, 4), answer(1, 50, 4)];
        assert_eq!(computed_if_once(104 + 3 + 46 + 4, &answers), 150);
        assert_ne!(computed_if_once(104 + 3 + 47 + 4, &answers), 150);
    }

    #[test]
    fn answers_of_another_length_are_counted() {
        let (a, b) = ([answer(1, 1, 4), answer(1, 1, 4)], [answer(1, 1, 4), answer(1, 1, 3)]);
        assert_eq!(turns_apart(&a, &b, |answer| answer.tokens.output), 1);
        assert_eq!(turns_apart(&a, &a, |answer| answer.tokens.output), 0);
    }

    #[test]
    fn sums_grow() {
        assert_eq!(cumulated([1.0, 2.0, 4.0]), [1.0, 3.0, 7.0]);
    }
}
