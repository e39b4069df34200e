//! Scenario `dense`: many agents on one machine, with room for the KV of a part of them.
//!
//! In: how many, how much room, how busy. Out: what their readers felt, unloaded and at a part of the capacity that was measured
//! just before, and how much of the history was found. Turns are due at times drawn from the seed, whether or not the server keeps up,
//! and times count from then: a queue that grows is seen. Deliberately not here: what the parts of a turn cost.

mod agent;
mod figures;
mod load;
mod phases;
mod plots;
mod schedule;

use anyhow::ensure;
use clap::Args;
use serde_json::{Value, json};

use super::failures::Failures;
use super::side::Side;
use super::sizing::Sizing;
use super::{Play, Stage};
use crate::model::Chosen;
use crate::noise::{Watch, settle};
use crate::options::{AllArguments, Common, Peers};
use crate::report::Outcome;
use crate::server::{Launch, Server};
use agent::Habits;
use figures::{Played, Sides};
use load::Load;
use phases::{Population, Until};

/// Shape of the model when the user names none.
const SHAPE: &str = "llama-22m";
/// One at a time, at least so many turns: fewer have no 95th percentile to speak of.
const UNLOADED_TURNS_MIN: usize = 20;
/// When capacity is measured, at least so many turns of each that talks at once.
const TURNS_MIN: usize = 5;

/// Many agents, more than the KV pool has room for, at a part of the measured capacity
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    peers: Peers,
    /// Agents, each with a session [default: 48, quick: 16]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    sessions: Option<u16>,
    /// What all sessions need of the KV pool, over its size
    #[arg(long, value_name = "RATIO", default_value_t = 2.0, value_parser = positive)]
    oversubscription: f64,
    /// Offered load, of the measured capacity
    #[arg(long, value_name = "FRACTION", default_value_t = 0.6, value_parser = positive)]
    load: f64,
    /// Median of the turns of a conversation
    #[arg(long, value_name = "TURNS", default_value_t = 43.0, value_parser = positive)]
    turns_median: f64,
    /// Tokens that a conversation begins with [default: 1024, quick: 128]
    #[arg(long, value_name = "TOKENS")]
    opening_tokens: Option<usize>,
    /// Tokens that a turn brings, on average [default: 40, quick: 12]
    #[arg(long, value_name = "TOKENS")]
    turn_tokens: Option<usize>,
    /// Tokens of an answer, on average [default: 24, quick: 8]
    #[arg(long, value_name = "TOKENS")]
    answer_tokens: Option<usize>,
    /// Seconds of the load [default: 120, quick: 20]
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    load_s: Option<f64>,
}

/// The numbers of one run.
#[derive(Debug, Clone, Copy)]
struct Plan {
    sessions: usize,
    /// Sessions that talk at once when capacity is measured.
    at_once: usize,
    oversubscription: f64,
    load: f64,
    habits: Habits,
    /// Tokens of the KV pool.
    pool_tokens: usize,
    unloaded_s: f64,
    capacity_s: f64,
    windows: usize,
    window_s: f64,
    seed: u64,
}

impl Play for Arguments {
    const NAME: &'static str = "dense";

    fn among_all(all: &AllArguments) -> Self {
        Self {
            common: all.common.clone(),
            peers: all.peers.clone(),
            sessions: None,
            oversubscription: 2.0,
            load: 0.6,
            turns_median: 43.0,
            opening_tokens: None,
            turn_tokens: None,
            answer_tokens: None,
            load_s: None,
        }
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn has_peers(&self) -> bool {
        !self.peers.peers.is_empty()
    }

    async fn play(&self, stage: &mut Stage<'_>) -> anyhow::Result<Outcome> {
        let model = Chosen::pick(&self.common, SHAPE, &stage.progress)?;
        stage.progress.set_message("asking the model for its measures");
        let sizing = Sizing::find_out(&self.common, &model.path).await?;
        let plan = self.plan(sizing)?;
        stage.progress.set_length(plan.steps() * (1 + self.peers.peers.len() as u64));
        let setting = sizing.kv_setting(plan.pool_tokens);
        let server = Server::start(&Launch::serve(&self.common, &model.path, &[setting])?).await?;
        let sides = self.play_all(&plan, &server, stage).await?;
        server.stop().await?;
        Ok(Outcome {
            results: sides.results(&plan),
            model: model.describe(),
            settings: plan.settings(),
            tables: sides.tables(),
            plots: sides.plots(&plan),
            notes: sides.notes(&plan),
        })
    }
}

impl Arguments {
    fn plan(&self, sizing: Sizing) -> anyhow::Result<Plan> {
        let or = |given: Option<usize>, quick, full| given.unwrap_or(if self.common.quick { quick } else { full });
        let habits = Habits {
            turns_median: self.turns_median,
            opening_tokens: or(self.opening_tokens, 128, 1024),
            turn_tokens: or(self.turn_tokens, 12, 40),
            answer_tokens: or(self.answer_tokens, 8, 24),
            sizing,
        };
        let (context, limit) = (habits.context_max(), sizing.context_limit_tokens);
        ensure!(
            context <= limit,
            "conversations come to {context} tokens, and the model's context has {limit}: shorten them with \
             --turns-median, --opening-tokens, --turn-tokens or --answer-tokens"
        );
        let sessions = or(self.sessions.map(usize::from), 16, 48);
        let need = agent::need_tokens(&habits, sessions, self.common.seed);
        // The longest conversation has to fit alone, or the runtime could not take it at all.
        let pool_tokens = ((need as f64 / self.oversubscription) as usize).max(context);
        let windows = if self.has_peers() { 2 } else { 1 };
        let load_s = self.load_s.unwrap_or(if self.common.quick { 20.0 } else { 120.0 });
        Ok(Plan {
            sessions,
            at_once: ((sessions as f64 / self.oversubscription * 0.5) as usize).clamp(2.min(sessions), sessions),
            oversubscription: self.oversubscription,
            load: self.load,
            habits,
            pool_tokens,
            unloaded_s: if self.common.quick { 6.0 } else { 40.0 },
            capacity_s: if self.common.quick { 8.0 } else { 40.0 },
            windows,
            window_s: load_s / windows as f64,
            seed: self.common.seed,
        })
    }

    /// Everybody alone first, then the load: ours, peer, ours, peer.
    async fn play_all(&self, plan: &Plan, server: &Server, stage: &mut Stage<'_>) -> anyhow::Result<Sides> {
        let mut all = Vec::new();
        for side in Side::all(&server.client().await?, &self.peers.peers).await? {
            let agents = Population::new(&side, plan.habits, plan.sessions, plan.seed);
            let played = prepare(&agents, plan, stage).await?;
            all.push((agents, played));
        }
        let capacity = all[0].1.capacity;
        let windows = schedule::windows(plan.seed, plan.load * capacity, plan.window_s, plan.windows, plan.sessions);
        for arrivals in &windows {
            for (agents, played) in &mut all {
                quiet(&mut stage.watch).await;
                stage.progress.set_message(format!("{}: {} turns under load", agents.side.name(), arrivals.len()));
                let phase = agents.open_loop(arrivals, plan.window_s, &stage.progress).await;
                played.load.append(phase, plan.window_s);
            }
        }
        quiet(&mut stage.watch).await;
        let mut sides = Vec::new();
        for (agents, mut played) in all {
            some(&agents, "under load", played.load.turns.len(), &played.load.failures)?;
            played.context_tokens = played.context_tokens.midpoint(agents.context_tokens().await);
            sides.push(played);
        }
        Ok(Sides::new(sides))
    }
}

/// What is measured of one side before the load.
async fn prepare(agents: &Population, plan: &Plan, stage: &mut Stage<'_>) -> anyhow::Result<Played> {
    let name = agents.side.name().to_owned();
    let bar = stage.progress.clone();
    bar.set_message(format!("{name}: {} sessions begin", plan.sessions));
    let filled = agents.fill(&bar).await;
    some(agents, "beginning", filled.turns.len(), &filled.failures)?;
    quiet(&mut stage.watch).await;
    bar.set_message(format!("{name}: one turn at a time"));
    let unloaded = agents.closed_loop(1, Until { seconds: plan.unloaded_s, turns_min: UNLOADED_TURNS_MIN }, &bar).await;
    some(agents, "one at a time", unloaded.turns.len(), &unloaded.failures)?;
    quiet(&mut stage.watch).await;
    bar.set_message(format!("{name}: capacity with {} at once", plan.at_once));
    let until = Until { seconds: plan.capacity_s, turns_min: TURNS_MIN * plan.at_once };
    let full = agents.closed_loop(plan.at_once, until, &bar).await;
    some(agents, "at capacity", full.turns.len(), &full.failures)?;
    let ends: Vec<f64> = full.turns.iter().map(|turn| full.since_begin_s(turn.end)).collect();
    let capacity = load::capacity(&ends, plan.capacity_s);
    ensure!(capacity.is_finite(), "{name}: too few turns ended to tell a capacity");
    let mut failures = filled.failures;
    failures.merge(&unloaded.failures);
    failures.merge(&full.failures);
    Ok(Played {
        name,
        unloaded: unloaded.turns,
        capacity,
        load: Load { failures, ..Load::default() },
        context_tokens: agents.context_tokens().await,
    })
}

/// A moment in which nothing of the run computes, and how fast the machine is then.
async fn quiet(watch: &mut Watch) {
    settle().await;
    watch.probe();
}

/// Single turns may fail; all of them may not.
fn some(agents: &Population, when: &str, ended: usize, failures: &Failures) -> anyhow::Result<()> {
    let reason = failures.foremost().unwrap_or("none was due");
    ensure!(ended > 0, "{}: no turn {when} ended well: {reason}", agents.side.name());
    Ok(())
}

/// A number above 0.
fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if value > 0.0 && f64::is_finite(value) => Ok(value),
        _ => Err("a number above 0 is wanted".to_owned()),
    }
}

impl Plan {
    /// Length of the progress bar for one side.
    fn steps(&self) -> u64 {
        let seconds =
            [self.unloaded_s, self.capacity_s].into_iter().chain(std::iter::repeat_n(self.window_s, self.windows));
        self.sessions as u64 + seconds.map(|seconds| seconds as u64).sum::<u64>()
    }

    fn settings(&self) -> Value {
        json!({
            "sessions": self.sessions,
            "oversubscription": self.oversubscription,
            "kv_pool_tokens": self.pool_tokens,
            "turns_median": self.habits.turns_median,
            "opening_tokens": self.habits.opening_tokens,
            "turn_tokens": self.habits.turn_tokens,
            "answer_tokens": self.habits.answer_tokens,
            "load": self.load,
            "capacity_sessions_at_once": self.at_once,
            "unloaded_s": self.unloaded_s,
            "capacity_s": self.capacity_s,
            "windows": self.windows,
            "window_s": self.window_s,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn plan(line: &str) -> anyhow::Result<Plan> {
        let line = Line::try_parse_from(["dense"].into_iter().chain(line.split_whitespace()))?;
        line.arguments.plan(Sizing::fixed(14, 3.0))
    }

    #[test]
    fn the_pool_is_a_part_of_the_need() -> anyhow::Result<()> {
        let all = plan("--quick --oversubscription 1")?;
        let half = plan("--quick --oversubscription 2")?;
        assert!((10_000..30_000).contains(&all.pool_tokens), "{}", all.pool_tokens);
        assert_eq!(half.pool_tokens, all.pool_tokens / 2);
        let tiny = plan("--quick --oversubscription 1000")?;
        assert_eq!(tiny.pool_tokens, tiny.habits.context_max(), "the longest conversation fits alone");
        assert_eq!((tiny.at_once, half.at_once), (2, 4));
        Ok(())
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(plan("--quick --turns-median 4000").is_err(), "beyond the context");
        assert!(plan("--oversubscription 0").is_err());
        assert!(plan("--sessions 0").is_err());
        assert_eq!(plan("--sessions 1").map(|plan| plan.at_once).ok(), Some(1));
    }
}
