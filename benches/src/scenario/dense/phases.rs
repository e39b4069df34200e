//! The two ways that agents take turns: each when somebody is free (closed loop), or when it is due (open loop).
//!
//! In: agents, and either how many may talk at once or arrivals. Out: a [`Phase`], every turn of it. In the open loop nobody waits
//! for anybody but for the last turn of the same session, and what it waits counts. Deliberately not here: what the turns say about the
//! server (`figures`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::agent::{self, Agent, Habits, Turn};
use super::schedule::{Arrival, Order};
use crate::player::now;
use crate::scenario::failures::Failures;
use crate::scenario::side::Side;

/// Who fails at once does not ask again at once.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(100);
/// The least time that turns have to end after their window.
const DRAIN_MIN_S: f64 = 30.0;

/// Turns that were taken between two quiet moments.
pub(crate) struct Phase {
    pub(crate) begin: Instant,
    pub(crate) turns: Vec<Turn>,
    pub(crate) failures: Failures,
    /// Turns that were due.
    pub(crate) offered: usize,
}

impl Phase {
    fn begin() -> Self {
        Self { begin: now(), turns: Vec::new(), failures: Failures::default(), offered: 0 }
    }

    fn take(&mut self, turn: anyhow::Result<Turn>) {
        match turn {
            Ok(turn) => self.turns.push(turn),
            Err(error) => self.failures.count(&error),
        }
    }

    /// Seconds from its begin to `at`.
    pub(crate) fn since_begin_s(&self, at: Instant) -> f64 {
        (at - self.begin).as_secs_f64()
    }
}

/// How long a closed loop goes on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Until {
    pub(crate) seconds: f64,
    /// Turns that it begins at least, however long they take.
    pub(crate) turns_min: usize,
}

/// All agents of one side.
pub(crate) struct Population {
    pub(crate) side: Side,
    agents: Vec<Arc<Mutex<Agent>>>,
    seed: u64,
}

impl Population {
    /// `sessions` agents, the same for the same seed.
    pub(crate) fn new(side: &Side, habits: Habits, sessions: usize, seed: u64) -> Self {
        let agent = |index| Arc::new(Mutex::new(Agent::new(side.clone(), habits, agent::seed(seed, index))));
        Self { side: side.clone(), agents: (0..sessions).map(agent).collect(), seed }
    }

    /// Tokens of all sessions, as the server counted them at their last turns.
    pub(crate) async fn context_tokens(&self) -> u64 {
        let mut sum = 0;
        for agent in &self.agents {
            sum += agent.lock().await.context_tokens();
        }
        sum
    }

    /// Each agent takes its first turn, one after the other.
    pub(crate) async fn fill(&self, bar: &ProgressBar) -> Phase {
        let mut phase = Phase::begin();
        for agent in &self.agents {
            phase.offered += 1;
            phase.take(play(agent.clone(), now()).await);
            bar.inc(1);
        }
        phase
    }

    /// `at_once` agents talk at any time; when one is done, the next is drawn.
    pub(crate) async fn closed_loop(&self, at_once: usize, until: Until, bar: &ProgressBar) -> Phase {
        let done = bar.position();
        let mut phase = Phase::begin();
        let mut order = Order::new(self.seed, self.agents.len());
        let mut busy = vec![false; self.agents.len()];
        let mut running = JoinSet::new();
        loop {
            let elapsed_s = phase.since_begin_s(now());
            bar.set_position(done + elapsed_s.min(until.seconds) as u64);
            while (elapsed_s < until.seconds || phase.offered < until.turns_min) && running.len() < at_once {
                let Some(session) = order.draw(&busy) else { break };
                busy[session] = true;
                phase.offered += 1;
                let agent = self.agents[session].clone();
                running.spawn(async move { (session, play(agent, now()).await) });
            }
            match running.join_next().await {
                None => break,
                Some(Ok((session, turn))) => {
                    busy[session] = false;
                    if turn.is_err() {
                        tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                    }
                    phase.take(turn);
                }
                Some(Err(error)) => phase.failures.count(&error.into()),
            }
        }
        bar.set_position(done + until.seconds as u64);
        phase
    }

    /// Each turn when it is due, within a window of `window_s` seconds. Those that go on then have as long again to end.
    pub(crate) async fn open_loop(&self, arrivals: &[Arrival], window_s: f64, bar: &ProgressBar) -> Phase {
        let done = bar.position();
        let mut phase = Phase::begin();
        let mut running = JoinSet::new();
        for arrival in arrivals {
            let due = phase.begin + Duration::from_secs_f64(arrival.due_s);
            tokio::time::sleep_until(due.into()).await;
            bar.set_position(done + arrival.due_s as u64);
            running.spawn(play(self.agents[arrival.session].clone(), due));
        }
        phase.offered = arrivals.len();
        bar.set_position(done + window_s as u64);
        let drain_s = window_s.max(DRAIN_MIN_S);
        let end = phase.begin + Duration::from_secs_f64(window_s + drain_s);
        while let Ok(Some(turn)) = tokio::time::timeout_at(end.into(), running.join_next()).await {
            phase.take(turn.unwrap_or_else(|error| Err(error.into())));
        }
        let reason = format!("not answered within {drain_s:.0} s of the end of the window");
        phase.failures.add(reason, running.len() as u64);
        running.shutdown().await;
        phase
    }
}

/// One turn of one agent, when the one before it has ended.
async fn play(agent: Arc<Mutex<Agent>>, due: Instant) -> anyhow::Result<Turn> {
    let (mut agent, late) = match agent.try_lock() {
        Ok(agent) => (agent, false),
        Err(_) => (agent.lock().await, true),
    };
    agent.turn(due, late).await
}
