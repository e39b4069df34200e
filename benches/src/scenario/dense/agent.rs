//! One agent: a conversation of many turns, then the next one.
//!
//! In: when a turn is due. Out: a [`Turn`], as its reader felt it. An agent's first conversation has a past already (one message
//! of the length that its earlier turns would have left), so that all stages of a life are there from the begin.
//! Deliberately not here: when turns are due (`schedule`), and who waits for whom (`phases`).

use std::time::Instant;

use anyhow::Context as _;
use fastrand::Rng;

use crate::player::{Player, Said, Tokens, now};
use crate::scenario::side::Side;
use crate::scenario::sizing::Sizing;

/// Spread of the logarithm of the number of turns: most conversations are near the median, some have twice as many.
const TURNS_SIGMA: f64 = 0.4;
/// No conversation has more turns than so many medians: it has to fit into the pool and the context.
const TURNS_MAX_MEDIANS: f64 = 2.0;

/// How agents talk. Lengths are in tokens of the model; single turns differ from them by up to a half.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Habits {
    pub(crate) turns_median: f64,
    /// What a conversation begins with.
    pub(crate) opening_tokens: usize,
    /// What a turn brings.
    pub(crate) turn_tokens: usize,
    pub(crate) answer_tokens: usize,
    pub(crate) sizing: Sizing,
}

impl Habits {
    /// What a conversation holds before its turn number `played`, counted from 0.
    fn history_tokens(&self, played: usize) -> usize {
        let message = self.sizing.message_tokens;
        self.opening_tokens + message + played * (self.turn_tokens + self.answer_tokens + message)
    }

    /// Most turns of a conversation.
    fn turns_max(&self) -> usize {
        (self.turns_median * TURNS_MAX_MEDIANS).ceil() as usize
    }

    /// The largest context that a conversation may come to: a quarter beyond what its turns add up to, because short texts end with
    /// a whole word, which is longer than what was asked for.
    pub(crate) fn context_max(&self) -> usize {
        (self.history_tokens(self.turns_max()) + 2 * (self.turn_tokens + self.answer_tokens)) * 5 / 4
    }
}

/// How long a conversation is, and how far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Life {
    turns: usize,
    played: usize,
}

impl Life {
    /// A new one; its length is log-normal around the median.
    fn begin(rng: &mut Rng, habits: &Habits) -> Self {
        let normal = (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos();
        let turns = (habits.turns_median * (TURNS_SIGMA * normal).exp()).round() as usize;
        Self { turns: turns.clamp(1, habits.turns_max()), played: 0 }
    }

    /// One that somebody finds at any of its turns.
    fn midway(rng: &mut Rng, habits: &Habits) -> Self {
        let life = Self::begin(rng, habits);
        Self { played: rng.usize(..life.turns), ..life }
    }
}

/// The seed of one of many agents.
pub(crate) fn seed(of_all: u64, index: usize) -> u64 {
    of_all.wrapping_mul(1 << 20).wrapping_add(index as u64)
}

/// Tokens that so many agents have in their first conversations when they begin.
pub(crate) fn need_tokens(habits: &Habits, sessions: usize, of_all: u64) -> usize {
    let life = |index| Life::midway(&mut Rng::with_seed(seed(of_all, index)), habits);
    (0..sessions).map(|index| habits.history_tokens(life(index).played + 1)).sum()
}

/// One turn, as its reader felt it.
#[derive(Debug, Clone)]
pub(crate) struct Turn {
    pub(crate) due: Instant,
    pub(crate) end: Instant,
    /// It was due while the turn before it still went on.
    pub(crate) late: bool,
    /// From the moment it was due to the first word.
    pub(crate) ttft_s: f64,
    pub(crate) gaps_s: Vec<f64>,
    pub(crate) tokens: Tokens,
    /// Tokens of the conversation before it.
    pub(crate) history_tokens: u64,
}

/// See the module's documentation.
pub(crate) struct Agent {
    side: Side,
    habits: Habits,
    rng: Rng,
    life: Life,
    /// `None` before the first turn of a conversation, and after one that failed: its history is sent again as text then.
    player: Option<Player>,
    context_tokens: u64,
}

impl Agent {
    /// Somewhere in its first conversation, of which nothing was sent yet.
    pub(crate) fn new(side: Side, habits: Habits, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let life = Life::midway(&mut rng, &habits);
        Self { side, habits, rng, life, player: None, context_tokens: 0 }
    }

    /// What its conversation holds now, as the server counts.
    pub(crate) fn context_tokens(&self) -> u64 {
        self.context_tokens
    }

    /// Takes its next turn, the first one of a new conversation when the last one has ended.
    ///
    /// # Errors
    /// When the server refuses or goes away.
    pub(crate) async fn turn(&mut self, due: Instant, late: bool) -> anyhow::Result<Turn> {
        if self.life.played >= self.life.turns {
            self.player = None;
            self.life = Life::begin(&mut self.rng, &self.habits);
        }
        let said = Said::ToolOutput(self.says());
        let answer_max = u32::try_from(self.about(self.habits.answer_tokens)).context("the answer is too long")?;
        let history_tokens = if self.player.is_some() { self.context_tokens } else { 0 };
        // Taken out, so that a turn that is dropped half-way leaves no conversation of an unknown state.
        let mut player = match self.player.take() {
            Some(player) => player,
            None => self.side.open().await?,
        };
        let begin = now();
        let answer = player.turn(&[said], answer_max).await?;
        self.player = Some(player);
        self.life.played += 1;
        self.context_tokens = answer.tokens.input + answer.tokens.output;
        Ok(Turn {
            due,
            end: begin + answer.total,
            late,
            ttft_s: (begin - due + answer.first_token).as_secs_f64(),
            gaps_s: answer.gaps.iter().map(std::time::Duration::as_secs_f64).collect(),
            tokens: answer.tokens,
            history_tokens,
        })
    }

    fn says(&mut self) -> String {
        let tokens = match self.player {
            Some(_) => self.about(self.habits.turn_tokens),
            None => self.habits.history_tokens(self.life.played),
        };
        self.habits.sizing.text(&mut self.rng, tokens)
    }

    /// Up to a half less or more.
    fn about(&mut self, tokens: usize) -> usize {
        self.rng.usize(tokens.div_ceil(2)..=tokens + tokens / 2).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn habits() -> Habits {
        let sizing = Sizing::fixed(14, 3.0);
        Habits { turns_median: 43.0, opening_tokens: 256, turn_tokens: 24, answer_tokens: 12, sizing }
    }

    #[test]
    fn half_of_all_lives_are_shorter_than_the_median() {
        let mut rng = Rng::with_seed(1);
        let mut turns: Vec<usize> = (0..2001).map(|_| Life::begin(&mut rng, &habits()).turns).collect();
        turns.sort_unstable();
        assert!((40..=46).contains(&turns[1000]), "{}", turns[1000]);
        assert!(turns[0] >= 1 && turns[2000] <= 86 && turns[2000] > 70);
    }

    #[test]
    fn lives_are_found_at_all_stages() {
        let mut rng = Rng::with_seed(1);
        let stages: Vec<f64> = (0..1000)
            .map(|_| Life::midway(&mut rng, &habits()))
            .map(|life| life.played as f64 / life.turns as f64)
            .collect();
        assert!(stages.iter().all(|stage| *stage < 1.0));
        let early = stages.iter().filter(|stage| **stage < 0.5).count();
        assert!((450..=580).contains(&early), "{early}");
    }

    #[test]
    fn a_history_is_all_that_was_said() {
        let habits = habits();
        assert_eq!(habits.history_tokens(0), 270);
        assert_eq!(habits.history_tokens(10), 270 + 10 * 50);
        assert!(habits.context_max() > habits.history_tokens(habits.turns_max()));
    }
}
