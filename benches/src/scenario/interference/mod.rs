//! Scenario `interference`: what the reader of an answer feels while others bring long prompts, and what the prompts lose by it.
//!
//! In: lengths and repetitions. Out: gaps between words alone and beside two cold prompts, and the prompts' speed alone and beside the
//! answer, each measured in turn. Deliberately not here: many of both at once (`dense`).

mod figures;
mod gaps;
mod repetition;

use anyhow::ensure;
use clap::Args;
use fastrand::Rng;
use serde_json::json;

use super::failures::Failures;
use super::side::Side;
use super::sizing::Sizing;
use super::{Play, Stage};
use crate::model::Chosen;
use crate::noise::settle;
use crate::options::{AllArguments, Common, Peers};
use crate::report::Outcome;
use crate::server::{Launch, Server};
use figures::Played;
use repetition::Lengths;

/// Shape of the model when the user names none.
const SHAPE: &str = "llama-22m";
/// Tokens of the prompts and answers of the first repetition, which warms up and is not counted.
const WARM_UP_TOKENS: u16 = 64;
/// Room for so many repetitions' prompts: what an earlier one left is evicted in time.
const REPETITIONS_HELD: usize = 2;

/// One answer while two cold prompts arrive: what its reader feels, and what the prompts lose
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    peers: Peers,
    /// Tokens of each prompt [default: 8192, quick: 2048]
    #[arg(long, value_name = "TOKENS")]
    prompt_tokens: Option<usize>,
    /// Tokens of each of the answer's turns [default: 512, quick: 256]
    #[arg(long, value_name = "TOKENS")]
    answer_tokens: Option<u32>,
    /// Repetitions of every part [default: 5, quick: 3]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    repetitions: Option<u16>,
}

impl Play for Arguments {
    const NAME: &'static str = "interference";

    fn among_all(all: &AllArguments) -> Self {
        Self {
            common: all.common.clone(),
            peers: all.peers.clone(),
            prompt_tokens: None,
            answer_tokens: None,
            repetitions: None,
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
        let lengths = self.lengths(Sizing::find_out(&self.common, &model.path).await?)?;
        let pool_tokens = REPETITIONS_HELD * (4 * lengths.prompt_tokens + 8 * lengths.answer_tokens as usize);
        let setting = lengths.sizing.kv_setting(pool_tokens);
        let server = Server::start(&Launch::serve(&self.common, &model.path, &[setting])?).await?;
        let sides = self.play_all(&lengths, &server, stage).await?;
        server.stop().await?;
        Ok(Outcome {
            results: figures::results(&sides),
            model: model.describe(),
            settings: json!({
                "prompt_tokens": lengths.prompt_tokens,
                "answer_tokens": lengths.answer_tokens,
                "repetitions": self.repetitions(),
                "kv_pool_tokens": pool_tokens,
            }),
            tables: vec![figures::table(&sides)],
            plots: figures::plots(&sides),
            notes: notes(&sides),
        })
    }
}

impl Arguments {
    fn repetitions(&self) -> u16 {
        self.repetitions.unwrap_or(if self.common.quick { 3 } else { 5 })
    }

    fn lengths(&self, sizing: Sizing) -> anyhow::Result<Lengths> {
        let (prompt, answer) = if self.common.quick { (2048, 256) } else { (8192, 512) };
        let prompt_tokens = self.prompt_tokens.unwrap_or(prompt);
        let answer_tokens = self.answer_tokens.unwrap_or(answer);
        let (needed, limit) = (prompt_tokens + prompt_tokens / 8, sizing.context_limit_tokens);
        ensure!(
            needed <= limit,
            "prompts of {prompt_tokens} tokens and what stands around them do not fit into the model's context of {limit}: \
             shorten them with --prompt-tokens"
        );
        Ok(Lengths { prompt_tokens, answer_tokens, sizing })
    }

    /// Every repetition with every side, one after the other.
    async fn play_all(&self, lengths: &Lengths, server: &Server, stage: &mut Stage<'_>) -> anyhow::Result<Vec<Played>> {
        let sides = Side::all(&server.client().await?, &self.peers.peers).await?;
        stage.progress.set_length(u64::from(self.repetitions() + 1) * sides.len() as u64);
        let warm_up =
            Lengths { prompt_tokens: WARM_UP_TOKENS.into(), answer_tokens: WARM_UP_TOKENS.into(), ..*lengths };
        for side in &sides {
            stage.progress.set_message(format!("{}: warms up", side.name()));
            // What fails here fails again where it is counted.
            drop(repetition::play(side, &warm_up, &mut Rng::with_seed(!self.common.seed)).await);
            stage.progress.inc(1);
        }
        let mut all: Vec<Played> = sides.iter().map(Played::nothing).collect();
        for number in 0..u64::from(self.repetitions()) {
            for (side, played) in sides.iter().zip(&mut all) {
                settle().await;
                stage.watch.probe();
                stage.progress.set_message(format!("{}: two prompts of {} tokens", side.name(), lengths.prompt_tokens));
                let mut rng = Rng::with_seed(self.common.seed.wrapping_mul(1 << 20).wrapping_add(number));
                match repetition::play(side, lengths, &mut rng).await {
                    Ok(repetition) => played.repetitions.push(repetition),
                    Err(error) => played.failures.count(&error),
                }
                stage.progress.inc(1);
            }
        }
        for Played { name, repetitions, failures } in &all {
            ensure!(
                !repetitions.is_empty(),
                "{name}: no repetition came to its end: {}",
                failures.foremost().unwrap_or("")
            );
        }
        Ok(all)
    }
}

impl Played {
    fn nothing(side: &Side) -> Self {
        Self { name: side.name().to_owned(), repetitions: Vec::new(), failures: Failures::default() }
    }
}

fn notes(sides: &[Played]) -> Vec<String> {
    let mut notes = vec![
        "A gap counts as beside the prompts when it shares any time with the reading of one, and then with all its length; where \
         no word was said meanwhile, so does the wait for the next one. Figures are medians over repetitions."
            .to_owned(),
    ];
    for played in sides {
        let reasons = played.failures.by_reason().iter();
        notes.extend(reasons.map(|(reason, count)| format!("{}: {count} repetitions failed: {reason}", played.name)));
    }
    notes
}
