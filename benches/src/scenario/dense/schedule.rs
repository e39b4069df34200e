//! When which session has its next turn.
//!
//! In: a seed, a rate, a number of sessions. Out: arrivals as a Poisson process (exponential gaps) over sessions drawn evenly, so
//! that each session's pauses are long and differ widely, as tools do. Deliberately not here: whether anybody keeps up with them.

use std::collections::VecDeque;

use fastrand::Rng;

/// One of so many sessions waits for its tool while this part of all others has a turn.
const RESTING_PART: usize = 8;

/// A turn that is due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Arrival {
    /// Since the window's begin.
    pub(crate) due_s: f64,
    pub(crate) session: usize,
}

/// Draws sessions evenly, but for those that had a turn just now: their tools still run.
#[derive(Debug)]
pub(crate) struct Order {
    rng: Rng,
    sessions: usize,
    resting: VecDeque<usize>,
}

impl Order {
    /// Nobody rests.
    pub(crate) fn new(seed: u64, sessions: usize) -> Self {
        Self { rng: Rng::with_seed(seed), sessions, resting: VecDeque::new() }
    }

    /// The next session, none of the `busy` ones; `None` when all are busy or rest.
    pub(crate) fn draw(&mut self, busy: &[bool]) -> Option<usize> {
        let free =
            |session: &usize| !self.resting.contains(session) && !busy.get(*session).copied().unwrap_or_default();
        let candidates: Vec<usize> = (0..self.sessions).filter(free).collect();
        let session = *candidates.get(self.rng.usize(..candidates.len().max(1)))?;
        self.resting.push_back(session);
        if self.resting.len() > self.sessions / RESTING_PART {
            self.resting.pop_front();
        }
        Some(session)
    }
}

/// Arrivals at `rate_per_s` during each of `windows` windows of `window_s` seconds, the same for the same seed.
pub(crate) fn windows(seed: u64, rate_per_s: f64, window_s: f64, windows: usize, sessions: usize) -> Vec<Vec<Arrival>> {
    let mut order = Order::new(seed, sessions);
    let mut rng = Rng::with_seed(seed.wrapping_add(1));
    let mut drawn = vec![Vec::new(); windows];
    let mut at_s = 0.0;
    while let Some(session) = order.draw(&[]) {
        at_s += -(1.0 - rng.f64()).ln() / rate_per_s;
        match drawn.get_mut((at_s / window_s) as usize) {
            Some(window) => window.push(Arrival { due_s: at_s % window_s, session }),
            None => break,
        }
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_arrivals() {
        let draw = |seed| windows(seed, 5.0, 10.0, 2, 16);
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }

    #[test]
    fn arrivals_are_a_poisson_process_of_the_rate() {
        let drawn = windows(1, 5.0, 1000.0, 2, 16);
        assert_eq!(drawn.len(), 2);
        for window in drawn {
            assert!((4700..5300).contains(&window.len()), "{}", window.len());
            assert!(window.iter().all(|arrival| (0.0..1000.0).contains(&arrival.due_s)));
            let gaps: Vec<f64> = window.windows(2).map(|pair| pair[1].due_s - pair[0].due_s).collect();
            assert!(gaps.iter().all(|gap| *gap >= 0.0));
            let longer = gaps.iter().filter(|gap| **gap > 0.2).count() as f64 / gaps.len() as f64;
            assert!((0.33..0.41).contains(&longer), "1/e of exponential gaps exceed their mean: {longer}");
        }
    }

    #[test]
    fn every_session_has_its_share_and_rests_after_a_turn() {
        let drawn = windows(1, 5.0, 1000.0, 1, 16).remove(0);
        for session in 0..16 {
            let share = drawn.iter().filter(|arrival| arrival.session == session).count();
            assert!((drawn.len() / 20..drawn.len() / 12).contains(&share), "{share}");
        }
        assert!(
            drawn.windows(3).all(|turns| turns[2].session != turns[1].session && turns[2].session != turns[0].session)
        );
    }

    #[test]
    fn nobody_is_drawn_when_all_are_busy() {
        let mut order = Order::new(1, 3);
        assert_eq!(order.draw(&[true, false, true]), Some(1));
        assert_eq!(order.draw(&[true, true, true]), None);
        assert!(Order::new(1, 1).draw(&[]).is_some());
    }
}
