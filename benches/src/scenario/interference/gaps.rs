//! Gaps between words on a common time line.
//!
//! In: answers and when they were asked for. Out: each gap with its place, and those that a span of time has touched, or the stall that
//! swallowed it. Deliberately not here: who answers, and what else ran meanwhile.

use std::time::{Duration, Instant};

use crate::player::Answer;

/// From one word to the next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Gap {
    pub(crate) begin_s: f64,
    pub(crate) length_s: f64,
}

/// Seconds on a time line of one's own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Span {
    pub(crate) begin_s: f64,
    pub(crate) end_s: f64,
}

impl Span {
    /// Whether a gap shares some time with it. A gap that only begins or ends inside of it counts with all its length, and so does
    /// one that is longer than the span: that is the wait that its reader felt.
    fn touches(&self, gap: &Gap) -> bool {
        gap.begin_s < self.end_s && gap.begin_s + gap.length_s > self.begin_s
    }
}

/// The gaps of an answer that was asked for at `asked`, on a time line that begins at `zero`.
pub(crate) fn place(asked: Instant, zero: Instant, answer: &Answer) -> Vec<Gap> {
    let asked_s = seconds(asked, zero);
    let mut at_s = asked_s + answer.first_token.as_secs_f64();
    let place = |gap: &std::time::Duration| {
        let gap = Gap { begin_s: at_s, length_s: gap.as_secs_f64() };
        at_s += gap.length_s;
        gap
    };
    answer.gaps.iter().map(place).collect()
}

/// The waits for a first word of answers that were asked for one right after the other: each from the last word before it. The first
/// begins where its answer was asked for; what follows the last answer's last word ends with that answer.
pub(crate) fn pauses(zero: Instant, answers: &[(Instant, Answer)]) -> Vec<Gap> {
    let Some((first, _)) = answers.first() else { return Vec::new() };
    let mut begin_s = seconds(*first, zero);
    let mut end_s = begin_s;
    let mut pauses = Vec::new();
    for (asked, answer) in answers {
        let asked_s = seconds(*asked, zero);
        let word_s = asked_s + answer.first_token.as_secs_f64();
        pauses.push(Gap { begin_s, length_s: word_s - begin_s });
        begin_s = word_s + answer.gaps.iter().map(Duration::as_secs_f64).sum::<f64>();
        end_s = asked_s + answer.total.as_secs_f64();
    }
    pauses.push(Gap { begin_s, length_s: end_s - begin_s });
    pauses
}

fn seconds(at: Instant, zero: Instant) -> f64 {
    at.checked_duration_since(zero).map_or_else(|| -(zero - at).as_secs_f64(), |after| after.as_secs_f64())
}

/// Milliseconds of the gaps that `span` touches. Where no word was said in all of it, the pause that swallowed it is the gap.
pub(crate) fn within_ms(gaps: &[Gap], pauses: &[Gap], span: Span) -> Vec<f64> {
    let touched: Vec<f64> = gaps.iter().filter(|gap| span.touches(gap)).map(|gap| gap.length_s * 1e3).collect();
    if touched.is_empty() {
        return pauses.iter().filter(|pause| span.touches(pause)).map(|pause| pause.length_s * 1e3).collect();
    }
    touched
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::player::now;

    #[test]
    fn gaps_follow_the_first_word() {
        let zero = now();
        let second = Duration::from_secs(1);
        let answer = Answer { first_token: second, gaps: vec![2 * second, 3 * second], ..Answer::default() };
        let of = |asked| place(asked, zero, &answer).iter().map(|gap| (gap.begin_s, gap.length_s)).collect::<Vec<_>>();
        assert_eq!(of(zero + 10 * second), [(11.0, 2.0), (13.0, 3.0)]);
        assert_eq!(of(zero - 4 * second), [(-3.0, 2.0), (-1.0, 3.0)]);
    }

    #[test]
    fn gaps_that_a_span_touches_count_whole() {
        let gaps: Vec<Gap> = [(0.0, 1.0), (1.0, 1.5), (2.5, 0.5), (3.0, 2.0), (5.0, 1.0)]
            .map(|(begin_s, length_s)| Gap { begin_s, length_s })
            .into();
        let within = |begin_s, end_s| within_ms(&gaps, &[], Span { begin_s, end_s });
        assert_eq!(within(2.0, 4.0), [1500.0, 500.0, 2000.0]);
        assert_eq!(within(3.5, 4.0), [2000.0], "a stall longer than the span is not lost");
        assert!(within(6.0, 9.0).is_empty(), "what only adjoins does not count");
    }

    #[test]
    fn a_pause_counts_where_no_word_was_said() {
        let (zero, second) = (now(), Duration::from_secs(1));
        let answer = Answer { first_token: 4 * second, gaps: vec![second], total: 6 * second, ..Answer::default() };
        let answers = [(zero - second, answer.clone()), (zero + 5 * second, answer)];
        let (gaps, pauses) = (place(answers[0].0, zero, &answers[0].1), pauses(zero, &answers));
        let begins: Vec<_> = pauses.iter().map(|pause| (pause.begin_s, pause.length_s)).collect();
        assert_eq!(begins, [(-1.0, 4.0), (4.0, 5.0), (10.0, 1.0)]);
        let within = |begin_s, end_s| within_ms(&gaps, &pauses, Span { begin_s, end_s });
        assert_eq!(within(0.0, 2.0), [4000.0], "before the first word");
        assert_eq!(within(5.0, 8.0), [5000.0], "between two answers");
        assert_eq!(within(2.0, 8.0), [1000.0], "a word was said");
    }
}
