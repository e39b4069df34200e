//! Gaps between words on a common time line.
//!
//! In: answers and when they were asked for. Out: each gap with its place, and those that a span of time has touched. Deliberately
//! not here: who answers, and what else ran meanwhile.

use std::time::Instant;

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
    let asked_s = match asked.checked_duration_since(zero) {
        Some(after) => after.as_secs_f64(),
        None => -(zero - asked).as_secs_f64(),
    };
    let mut at_s = asked_s + answer.first_token.as_secs_f64();
    let place = |gap: &std::time::Duration| {
        let gap = Gap { begin_s: at_s, length_s: gap.as_secs_f64() };
        at_s += gap.length_s;
        gap
    };
    answer.gaps.iter().map(place).collect()
}

/// Milliseconds of the gaps that `span` touches.
pub(crate) fn within_ms(gaps: &[Gap], span: Span) -> Vec<f64> {
    gaps.iter().filter(|gap| span.touches(gap)).map(|gap| gap.length_s * 1e3).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        assert_eq!(within_ms(&gaps, Span { begin_s: 2.0, end_s: 4.0 }), [1500.0, 500.0, 2000.0]);
        assert_eq!(
            within_ms(&gaps, Span { begin_s: 3.5, end_s: 4.0 }),
            [2000.0],
            "a stall longer than the span is not lost"
        );
        assert!(within_ms(&gaps, Span { begin_s: 6.0, end_s: 9.0 }).is_empty(), "what only adjoins does not count");
    }
}
