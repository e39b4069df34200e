//! Scenario `resume`: a long session is killed with its runtime and goes on in the next one.
//!
//! In: texts of one seed. Out: the time to first token of the turn after the restart, beside the same conversation given whole to a
//! fresh runtime; and whether the story before the kill and the answers after it are what they would have been. For both, no
//! runtime is alive and our files are dropped from the page cache before the start; which comes first alternates. A
//! kill of the process leaves the system's caches whole, so losing power is not what this tests.

mod evidence;
mod shown;
mod stand;
mod talk;

use anyhow::Context as _;
use clap::{Args, value_parser};
use fastrand::Rng;

use self::stand::{Stand, Twin};
use self::talk::Talk;
use super::{Play, Stage};
use crate::model::Chosen;
use crate::options::{AllArguments, Common};
use crate::report::Outcome;
use crate::server::{Launch, Server};
use crate::workload::text;

/// Of the model that is made when none is named.
const SHAPE: &str = "llama-22m";
const TOKENS: u64 = 8_192;
const TOKENS_QUICK: u64 = 2_048;
const REPETITIONS: u32 = 5;
const REPETITIONS_QUICK: u32 = 3;
/// Turns before the first kill.
const FIRST_TURNS: usize = 3;
/// Tokens of what is said in a turn.
const SAID_TOKENS: usize = 100;
const ANSWER_TOKENS: u32 = 16;
/// Tokens of the answer that is interrupted.
const LONG_ANSWER_TOKENS: u32 = 64;

/// A long session, killed with its runtime; the next turn after the restart
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Tokens of the session before its first turn [default: 8192; with --quick 2048]
    #[arg(long, value_name = "COUNT", value_parser = value_parser!(u64).range(1..))]
    tokens: Option<u64>,
    /// Kills while the session is idle [default: 5; with --quick 3]
    #[arg(long, value_name = "COUNT", value_parser = value_parser!(u32).range(1..))]
    repetitions: Option<u32>,
}

impl Play for Arguments {
    const NAME: &'static str = "resume";

    fn among_all(all: &AllArguments) -> Self {
        Self { common: all.common.clone(), tokens: None, repetitions: None }
    }

    fn common(&self) -> &Common {
        &self.common
    }

    async fn play(&self, stage: &mut Stage<'_>) -> anyhow::Result<Outcome> {
        let model = Chosen::pick(&self.common, SHAPE, &stage.progress)?;
        let launch = Launch::serve(&self.common, &model.path, &[])?;
        let said = self.said();
        stage.progress.set_length(3 + u64::from(self.repetitions()));
        stage.progress.set_message("a twin that nothing happens to");
        let twin = self.twin(&launch, &said).await.context("the twin")?;
        stage.progress.inc(1);
        stage.progress.set_message("building the session");
        let mut stand = self.stand(&launch, &model, &said[..FIRST_TURNS]).await?;
        stage.progress.inc(1);
        self.kills(&mut stand, &said[FIRST_TURNS..], stage).await?;
        let found = stand.finish(&twin).await?;
        stage.watch.probe();
        Ok(shown::outcome(self, &model, &found))
    }
}

impl Arguments {
    fn tokens(&self) -> u64 {
        self.tokens.unwrap_or(if self.common.quick { TOKENS_QUICK } else { TOKENS })
    }

    fn repetitions(&self) -> u32 {
        self.repetitions.unwrap_or(if self.common.quick { REPETITIONS_QUICK } else { REPETITIONS })
    }

    /// What is said in the turns: the first ones, one after each restart, and the one that is interrupted.
    fn said(&self) -> Vec<String> {
        let mut rng = Rng::with_seed(self.common.seed.wrapping_add(1));
        (0..=FIRST_TURNS + self.repetitions() as usize).map(|_| text(&mut rng, SAID_TOKENS)).collect()
    }

    async fn begin(&self, server: &Server) -> anyhow::Result<Talk> {
        let client = server.client().await?;
        Talk::begin(&client, &mut Rng::with_seed(self.common.seed), self.tokens()).await
    }

    /// The same story on a runtime that is left alone.
    async fn twin(&self, launch: &Launch, said: &[String]) -> anyhow::Result<Twin> {
        let server = Server::start(launch).await?;
        let mut talk = self.begin(&server).await?;
        let mut turns = Vec::new();
        for (number, text) in said.iter().enumerate() {
            let interrupted = number + 1 == said.len();
            turns.push(talk.turn(text, if interrupted { LONG_ANSWER_TOKENS } else { ANSWER_TOKENS }).await?);
        }
        let items = talk.record().await?.items;
        server.stop().await?;
        Ok(Twin { turns, items })
    }

    /// The session with its first turns, and its runtime dead.
    async fn stand<'a>(&self, launch: &'a Launch, model: &Chosen, said: &[String]) -> anyhow::Result<Stand<'a>> {
        let server = Server::start(launch).await?;
        let mut talk = self.begin(&server).await?;
        let mut turns = Vec::new();
        for text in said {
            turns.push(talk.turn(text, ANSWER_TOKENS).await?);
        }
        Stand::killed(launch, model, server, talk, turns).await
    }

    /// A kill while idle before each of `said`, and one within the answer to the last.
    async fn kills(&self, stand: &mut Stand<'_>, said: &[String], stage: &mut Stage<'_>) -> anyhow::Result<()> {
        let (idle, interrupted) = said.split_at(self.repetitions() as usize);
        for (index, said) in idle.iter().enumerate() {
            let number = index + 1;
            stage.progress.set_message(format!("kill {number} while idle"));
            stage.watch.probe();
            stand.repetition(said, ANSWER_TOKENS).await.with_context(|| format!("repetition {number}"))?;
            stage.progress.inc(1);
        }
        stage.progress.set_message("kill within an answer");
        stage.watch.probe();
        stand.mid_turn(&interrupted[0], LONG_ANSWER_TOKENS).await.context("the kill within an answer")?;
        stage.progress.inc(1);
        Ok(())
    }
}
