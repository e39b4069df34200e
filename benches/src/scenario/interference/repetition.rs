//! One repetition with one side: the prompts alone, an answer alone, then both at once.
//!
//! In: a side and lengths. Out: a [`Repetition`], as the readers of all three felt it. The prompts are new each time, so that nothing of
//! them can be found. Deliberately not here: what many repetitions say (`figures`).

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::ensure;
use fastrand::Rng;

use super::gaps::{Gap, Span, pauses, place, within_ms};
use crate::noise::settle;
use crate::player::{Answer, Player, Said, now};
use crate::scenario::side::Side;
use crate::scenario::sizing::Sizing;
use crate::statistics::percentile;

/// Tokens that ask for an answer.
const QUESTION_TOKENS: usize = 32;
/// How far the answer is, in times of its own first word, when the prompts arrive.
const HEAD_START: u32 = 3;
/// The least head start.
const HEAD_START_MIN: Duration = Duration::from_millis(150);

/// Lengths, in tokens of the model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lengths {
    pub(crate) prompt_tokens: usize,
    pub(crate) answer_tokens: u32,
    pub(crate) sizing: Sizing,
}

impl Lengths {
    fn say(&self, rng: &mut Rng, tokens: usize) -> [Said; 1] {
        [Said::User(self.sizing.text(rng, tokens))]
    }

    /// Whether another turn fits behind this one. Texts come to about their tokens, so a question is given twice its own.
    fn has_room(&self, last: &Answer) -> bool {
        let turn = 2 * (QUESTION_TOKENS + self.sizing.message_tokens) as u64 + u64::from(self.answer_tokens);
        last.tokens.input + last.tokens.output + turn <= self.sizing.context_limit_tokens as u64
    }
}

/// What was measured.
#[derive(Debug, Clone)]
pub(crate) struct Repetition {
    pub(crate) solo: Prefills,
    pub(crate) loaded: Prefills,
    pub(crate) idle_ms: Vec<f64>,
    /// Gaps of the answer around the prompts; the time line begins when they arrive.
    pub(crate) gaps: Vec<Gap>,
    /// Its waits for first words, on the same time line.
    pauses: Vec<Gap>,
}

/// Two prompts that arrived together.
#[derive(Debug, Clone)]
pub(crate) struct Prefills {
    pub(crate) begin: Instant,
    /// From their arrival to the first word that follows each.
    pub(crate) seconds: [f64; 2],
    /// Input tokens of both that had to be computed.
    pub(crate) computed_tokens: u64,
}

impl Prefills {
    /// Until the later one was read.
    pub(crate) fn all_s(&self) -> f64 {
        self.seconds[0].max(self.seconds[1])
    }

    /// Tokens of both in a second.
    pub(crate) fn tokens_per_s(&self) -> f64 {
        self.computed_tokens as f64 / self.all_s()
    }
}

impl Repetition {
    /// Gaps that the prompts touched, at least one.
    pub(crate) fn loaded_ms(&self) -> Vec<f64> {
        within_ms(&self.gaps, &self.pauses, Span { begin_s: 0.0, end_s: self.loaded.all_s() })
    }

    /// 99th percentile of the gaps under load over that of the same session alone.
    pub(crate) fn ratio(&self) -> f64 {
        percentile(&self.loaded_ms(), 99.0) / percentile(&self.idle_ms, 99.0)
    }

    /// Speed of the prompts beside the answer, over their speed alone.
    pub(crate) fn prefill_fraction(&self) -> f64 {
        self.loaded.tokens_per_s() / self.solo.tokens_per_s()
    }
}

/// Plays all three parts.
///
/// # Errors
/// When the server refuses or goes away, or says so little that there is no gap.
pub(crate) async fn play(side: &Side, lengths: &Lengths, rng: &mut Rng) -> anyhow::Result<Repetition> {
    let solo = prefills(side, lengths, rng).await?;
    settle().await;
    let mut reader = side.open().await?;
    let alone = reader.turn(&lengths.say(rng, QUESTION_TOKENS), lengths.answer_tokens).await?;
    ensure!(!alone.gaps.is_empty(), "the answer has {} words: there are no gaps to measure", alone.tokens.output);
    let head_start = (alone.first_token * HEAD_START).max(HEAD_START_MIN);
    let is_over = Cell::new(false);
    let mut others = rng.fork();
    let (answers, loaded) = tokio::join!(answers_until(&is_over, (side, reader, &alone), lengths, rng), async {
        tokio::time::sleep(head_start).await;
        let loaded = prefills(side, lengths, &mut others).await;
        is_over.set(true);
        loaded
    });
    let (loaded, answers) = (loaded?, answers?);
    let gaps: Vec<Gap> = answers.iter().flat_map(|(asked, answer)| place(*asked, loaded.begin, answer)).collect();
    let pauses = pauses(loaded.begin, &answers);
    let idle_ms = alone.gaps.iter().map(|gap| gap.as_secs_f64() * 1e3).collect();
    Ok(Repetition { solo, loaded, idle_ms, gaps, pauses })
}

/// Two cold prompts at once, each until its first word.
async fn prefills(side: &Side, lengths: &Lengths, rng: &mut Rng) -> anyhow::Result<Prefills> {
    let said = [lengths.say(rng, lengths.prompt_tokens), lengths.say(rng, lengths.prompt_tokens)];
    let (mut first, mut second) = (side.open().await?, side.open().await?);
    let begin = now();
    let (first, second) = tokio::join!(first.turn(&said[0], 1), second.turn(&said[1], 1));
    let (first, second) = (first?, second?);
    let computed = |answer: &Answer| answer.tokens.input - answer.tokens.cached;
    Ok(Prefills {
        begin,
        seconds: [&first, &second].map(|answer| answer.first_token.as_secs_f64()),
        computed_tokens: computed(&first) + computed(&second),
    })
}

/// Lets the reader, who has heard one answer, go on turn after turn until `is_over`; in another session where the model's context has
/// no room for a further turn.
async fn answers_until(
    is_over: &Cell<bool>,
    (side, mut reader, heard): (&Side, Player, &Answer),
    lengths: &Lengths,
    rng: &mut Rng,
) -> anyhow::Result<Vec<(Instant, Answer)>> {
    let mut answers: Vec<(Instant, Answer)> = Vec::new();
    while !is_over.get() {
        if !lengths.has_room(answers.last().map_or(heard, |(_, last)| last)) {
            reader = side.open().await?;
        }
        let said = lengths.say(rng, QUESTION_TOKENS);
        let asked = now();
        answers.push((asked, reader.turn(&said, lengths.answer_tokens).await?));
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repetition_compares_with_itself() {
        let begin = now();
        let prefills = |seconds| Prefills { begin, seconds, computed_tokens: 1000 };
        let gap = |begin_s, length_s| Gap { begin_s, length_s };
        let repetition = Repetition {
            solo: prefills([1.0, 2.0]),
            loaded: prefills([4.0, 3.0]),
            idle_ms: vec![10.0, 20.0],
            gaps: vec![gap(-1.0, 0.5), gap(1.0, 0.05), gap(3.9, 0.04), gap(5.0, 9.0)],
            pauses: vec![gap(-0.5, 1.5)],
        };
        assert_eq!(repetition.solo.tokens_per_s(), 500.0);
        assert_eq!(repetition.prefill_fraction(), 0.5);
        assert_eq!(repetition.loaded_ms(), [50.0, 40.0]);
        assert_eq!(repetition.ratio(), 2.5);
    }
}
