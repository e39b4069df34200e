//! The clients: one that takes its turns alone, and many in a closed loop.
//!
//! In: connections and a [`Shape`]. Out: what the clients felt, and what both processes spent meanwhile. All clients are tasks
//! of this program's one thread. Deliberately not here: rates and tables.

use std::path::Path;
use std::time::Duration;

use fastrand::Rng;
use holdfast_client::Client;
use tokio::task::JoinSet;

use super::figures::{Figures, cpu_s};
use crate::player::session::Session;
use crate::player::{Answer, Said, now};
use crate::workload;

/// Turns of one session before the next begins: histories stay at about a thousand tokens.
pub(super) const TURNS_PER_SESSION: u32 = 10;
/// New tokens of a turn, about.
pub(super) const INPUT_TOKENS: usize = 16;

/// A session of the runtime, replaced by a new one now and then.
pub(super) struct Talker {
    client: Client,
    rng: Rng,
    session: Option<(Session, u32)>,
}

impl Talker {
    /// One that says what the seed says.
    pub(super) fn new(client: Client, seed: u64) -> Self {
        Self { client, rng: Rng::with_seed(seed), session: None }
    }

    /// A turn of so many tokens; its session is made before it, so that no answer waits for that.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub(super) async fn turn(&mut self, output_tokens: u32) -> anyhow::Result<Answer> {
        let (mut session, turns) = match self.session.take().filter(|(_, turns)| *turns < TURNS_PER_SESSION) {
            Some(session) => session,
            None => (Session::create(&self.client).await?, 0),
        };
        let said = Said::User(workload::text(&mut self.rng, INPUT_TOKENS));
        let answer = session.turn(&[said], output_tokens).await?;
        anyhow::ensure!(
            answer.tokens.output == u64::from(output_tokens),
            "a turn of {output_tokens} tokens had {}",
            answer.tokens.output
        );
        self.session = Some((session, turns + 1));
        Ok(answer)
    }
}

/// A closed loop: each client asks again as soon as it is answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) clients: usize,
    /// Tokens of each answer.
    pub(super) output_tokens: u32,
    /// After it no turn begins; those that run are read to their end.
    pub(super) duration: Duration,
    pub(super) seed: u64,
}

/// What came of a closed loop.
#[derive(Debug, Clone, Default)]
pub(super) struct Loaded {
    /// From the first request to the end of the last answer.
    pub(super) elapsed_s: f64,
    pub(super) turns: u64,
    pub(super) tokens: u64,
    pub(super) first_token_us: Vec<f64>,
    /// What the runtime counted meanwhile.
    pub(super) runtime: Figures,
    /// CPU seconds of this program meanwhile.
    pub(super) driver_cpu_s: Option<f64>,
}

impl Loaded {
    /// This program's part of the CPU time of both.
    pub(super) fn driver_cpu_share(&self) -> Option<f64> {
        let (driver, runtime) = self.driver_cpu_s.zip(self.runtime.cpu_s)?;
        (driver + runtime > 0.0).then(|| driver / (driver + runtime))
    }
}

/// Plays a closed loop over the connections in turn; `figures` is where the runtime tells.
///
/// # Errors
/// The first one of any client.
pub(super) async fn closed_loop(clients: &[Client], figures: &Path, shape: Shape) -> anyhow::Result<Loaded> {
    let (counted, cpu) = (Figures::ask(figures).await?, cpu_s());
    let begin = now();
    let until = begin + shape.duration;
    let mut players = JoinSet::new();
    for (place, client) in (0..shape.clients).zip(clients.iter().cycle()) {
        let mut talker = Talker::new(client.clone(), shape.seed.wrapping_add(place as u64));
        players.spawn(async move {
            let mut loaded = Loaded::default();
            while loaded.turns == 0 || now() < until {
                let answer = talker.turn(shape.output_tokens).await?;
                loaded.turns += 1;
                loaded.tokens += answer.tokens.output;
                loaded.first_token_us.push(answer.first_token.as_secs_f64() * 1e6);
            }
            anyhow::Ok(loaded)
        });
    }
    let mut all = Loaded::default();
    while let Some(played) = players.join_next().await {
        let played = played??;
        all.turns += played.turns;
        all.tokens += played.tokens;
        all.first_token_us.extend(played.first_token_us);
    }
    all.elapsed_s = begin.elapsed().as_secs_f64();
    all.driver_cpu_s = cpu_s().zip(cpu).map(|(end, begin)| end - begin);
    all.runtime = Figures::ask(figures).await?.since(&counted);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drivers_share_is_of_both() {
        let runtime = Figures { cpu_s: Some(3.0), ..Figures::default() };
        let loaded = Loaded { driver_cpu_s: Some(1.0), runtime, ..Loaded::default() };
        assert_eq!(loaded.driver_cpu_share(), Some(0.25));
        assert_eq!(Loaded::default().driver_cpu_share(), None);
    }
}
