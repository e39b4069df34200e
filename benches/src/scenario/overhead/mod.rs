//! Scenario `overhead`: what gateway, worker, scheduler and journal cost when the device costs nothing.
//!
//! In: the runtime in a process of its own on a device that answers at once ([`device`], [`mod@serve`]). Out: what a client waits for
//! that no device could save, how many tokens reach clients at most, what lies in the journal afterwards ([`load`], [`figures`]),
//! and what a step costs the scheduler alone ([`plan_apply`]). [`report`] says it. Deliberately not here: any model's arithmetic.

mod device;
mod figures;
mod load;
mod plan_apply;
mod report;
mod serve;

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use holdfast_client::Client;
use tempfile::TempDir;

use self::figures::Left;
use self::load::{Loaded, Shape, Talker, closed_loop};
pub(crate) use self::serve::{ServeArguments, serve};
use super::{Play, Stage};
use crate::noise::settle;
use crate::options::{AllArguments, Common};
use crate::player::now;
use crate::report::Outcome;
use crate::server::{Launch, Server};

/// Tokens of an answer that streams.
const STREAMED_TOKENS: u32 = 16;
/// Tokens of an answer in the closed loop.
const LOADED_TOKENS: u32 = 64;
/// Clients that share a connection: an HTTP/2 server lets so many streams and more go on at once.
const CLIENTS_PER_CONNECTION: usize = 64;
/// Sequences of a step that scheduler and engine are measured with.
const BATCHES: [u32; 3] = [1, 64, 1_024];
/// Turns that come before the first that is measured.
const WARMING_TURNS: usize = 20;
/// One write that is safe against a loss of power is timed every so many turns.
const TURNS_PER_WRITE: usize = 8;
/// Bytes of that write: a page of the journal's database.
const WRITE_BYTES: usize = 4_096;

/// Measure the runtime itself, on a device that answers at once
///
/// Starts gateway, worker, engine and journal as `holdfast serve` does, with Pebble's tokenizer and template, on a device that
/// samples printable tokens and computes nothing. It takes no --model, --set or --binary.
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,
}

/// How much is played.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// Turns of each kind, one at a time.
    turns: usize,
    clients: &'static [usize],
    rounds: usize,
    round: Duration,
    /// Steps of scheduler and engine alone, for each batch.
    steps: usize,
}

impl Plan {
    fn of(quick: bool) -> Self {
        if quick {
            let round = Duration::from_millis(1_200);
            Self { turns: 200, clients: &[1, 16, 64], rounds: 3, round, steps: 100 }
        } else {
            let round = Duration::from_secs(4);
            Self { turns: 2_000, clients: &[1, 16, 64, 256], rounds: 5, round, steps: 500 }
        }
    }
}

/// Everything that was measured.
#[derive(Default)]
struct Measured {
    /// First tokens of answers of one token, and of answers that stream.
    single_us: Vec<f64>,
    streamed_us: Vec<f64>,
    /// Writes of a page to the same disk that are safe against a loss of power.
    write_us: Vec<f64>,
    /// By number of clients, the rounds.
    loads: Vec<(usize, Vec<Loaded>)>,
    journal: Journal,
    steps: Vec<Steps>,
}

/// What steps in which all decode cost by themselves.
struct Steps {
    sequences: u32,
    scheduler_us: Vec<f64>,
    engine_us: Vec<f64>,
}

/// What lay in the journals.
#[derive(Debug, Default)]
struct Journal {
    /// Of a runtime that was only started.
    empty_bytes: u64,
    /// (turns, output tokens, bytes) of turns taken alone.
    alone: (u64, u64, u64),
    /// The same of the closed loops.
    loaded: (u64, u64, u64),
}

impl Play for Arguments {
    const NAME: &'static str = "overhead";

    fn among_all(all: &AllArguments) -> Self {
        Self { common: Common { model: None, set: Vec::new(), binary: None, ..all.common.clone() } }
    }

    fn common(&self) -> &Common {
        &self.common
    }

    async fn play(&self, stage: &mut Stage<'_>) -> anyhow::Result<Outcome> {
        let common = &self.common;
        anyhow::ensure!(
            common.model.is_none() && common.set.is_empty() && common.binary.is_none(),
            "it starts a runtime of its own, without a model: leave --model, --set and --binary out"
        );
        let plan = Plan::of(common.quick);
        let units = plan.turns + plan.rounds * plan.clients.len() + BATCHES.len();
        stage.progress.set_length(units as u64);
        let mut measured = Measured::default();
        stage.watch.probe();
        measured.journal.empty_bytes = Runtime::start().await?.stop().await?;
        one_at_a_time(stage, plan, &mut measured).await?;
        stage.watch.probe();
        closed_loops(stage, plan, &mut measured).await?;
        for sequences in BATCHES {
            stage.progress.set_message(format!("steps of {sequences} sequences, scheduler and engine alone"));
            let scheduler_us = plan_apply::scheduler_us(sequences, plan.steps)?;
            let engine_us = plan_apply::engine_us(sequences, plan.steps)?;
            measured.steps.push(Steps { sequences, scheduler_us, engine_us });
            stage.progress.inc(1);
        }
        stage.watch.probe();
        Ok(report::outcome(&measured, plan))
    }
}

/// Answers of one token and answers that stream, in turn, and a write to the same disk now and then.
async fn one_at_a_time(stage: &mut Stage<'_>, plan: Plan, measured: &mut Measured) -> anyhow::Result<()> {
    stage.progress.set_message("turns one at a time");
    let runtime = Runtime::start().await?;
    let client = runtime.server.client().await?;
    let seed = stage.common.seed;
    let (mut single, mut streamed) = (Talker::new(client.clone(), seed), Talker::new(client, seed + 1));
    for turn in 0..WARMING_TURNS + plan.turns {
        let (one, many) = (single.turn(1).await?, streamed.turn(STREAMED_TOKENS).await?);
        measured.journal.alone.0 += 2;
        measured.journal.alone.1 += one.tokens.output + many.tokens.output;
        if turn < WARMING_TURNS {
            continue;
        }
        measured.single_us.push(us(one.first_token));
        measured.streamed_us.push(us(many.first_token));
        if turn % TURNS_PER_WRITE == 0 {
            measured.write_us.push(us(safe_write(runtime.server.data())?));
        }
        if turn % (plan.turns / 4) == 0 {
            stage.watch.probe();
        }
        stage.progress.inc(1);
    }
    measured.journal.alone.2 = runtime.stop().await?;
    Ok(())
}

/// Rounds of closed loops, each with every number of clients in turn.
async fn closed_loops(stage: &mut Stage<'_>, plan: Plan, measured: &mut Measured) -> anyhow::Result<()> {
    let runtime = Runtime::start().await?;
    let most = plan.clients.iter().copied().max().unwrap_or(1);
    let mut connections: Vec<Client> = Vec::new();
    for _ in 0..most.div_ceil(CLIENTS_PER_CONNECTION) {
        connections.push(runtime.server.client().await?);
    }
    measured.loads = plan.clients.iter().map(|clients| (*clients, Vec::new())).collect();
    let mut seed = stage.common.seed;
    for round in 0..=plan.rounds {
        for (clients, rounds) in &mut measured.loads {
            seed += most as u64;
            // The first round warms up.
            let duration = if round == 0 { plan.round / 4 } else { plan.round };
            let shape = Shape { clients: *clients, output_tokens: LOADED_TOKENS, duration, seed };
            stage.progress.set_message(format!("{clients} clients in a closed loop, round {round}"));
            let loaded = closed_loop(&connections, runtime.figures.path(), shape).await?;
            measured.journal.loaded.0 += loaded.turns;
            measured.journal.loaded.1 += loaded.tokens;
            if round > 0 {
                rounds.push(loaded);
                stage.progress.inc(1);
            }
        }
        settle().await;
        stage.watch.probe();
    }
    measured.journal.loaded.2 = runtime.stop().await?;
    Ok(())
}

/// A `serve-noop` that runs, and where it tells what it counts.
struct Runtime {
    server: Server,
    figures: TempDir,
}

impl Runtime {
    async fn start() -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("this program does not know where it lies")?;
        let figures = tempfile::tempdir().context("no temporary directory for the runtime's figures")?;
        let path = figures.path().to_str().context("the temporary directory's path is no text")?;
        let arguments = vec!["serve-noop".to_owned(), "--figures".to_owned(), path.to_owned()];
        let server = Server::start(&Launch::program(program, arguments)).await?;
        Ok(Self { server, figures })
    }

    /// Drains it; the bytes of its journal.
    async fn stop(self) -> anyhow::Result<u64> {
        self.server.stop().await?;
        Ok(Left::find(self.figures.path())?.journal_bytes)
    }
}

/// Appends a page to a file beside the journal's and waits until it is safe against a loss of power.
fn safe_write(directory: &Path) -> anyhow::Result<Duration> {
    let mut file = tempfile::tempfile_in(directory).context("no file beside the journal's")?;
    let begin = now();
    file.write_all(&[7; WRITE_BYTES])?;
    file.sync_data()?;
    Ok(begin.elapsed())
}

fn us(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
