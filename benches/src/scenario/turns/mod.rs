//! Scenario `turns`: one long conversation of an agent, with a session and without, turn by turn on the same runtime.
//!
//! In: the texts of one seed. Out: what each player felt, and for each turn what the device alone takes for it. The players
//! speak in turn and never at once, and who begins alternates, so that all meet the same machine. Deliberately not here: what
//! the answers say; the weights may be random.

mod engine;
mod figures;
mod shown;

use anyhow::Context as _;
use clap::{Args, value_parser};
use fastrand::Rng;
use holdfast_client::{Client, v1};

use self::engine::Perfect;
use super::{Play, Stage};
use crate::model::Chosen;
use crate::noise::settle;
use crate::options::{AllArguments, Common, Peers};
use crate::player::openai::OpenAi;
use crate::player::session::Session;
use crate::player::stateless::Stateless;
use crate::player::{Answer, Player, Said};
use crate::report::Outcome;
use crate::server::{Launch, Server};
use crate::workload::agent_turns;

/// Of the model that is made when none is named.
const SHAPE: &str = "llama-22m";
/// Turns that grow to a history of about 10,000 tokens.
const TURNS: u32 = 100;
/// Turns of `--quick`: about 2,000 tokens.
const TURNS_QUICK: u32 = 20;
/// Turns from one look at the neighbours to the next.
const PROBE_EVERY: usize = 5;
/// Added to the seed for the conversation that warms the servers up: nothing of it may be found again in the measured one.
const WARM_UP: u64 = 0x5eed;

/// One long conversation, with a session and without, turn by turn
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    peers: Peers,
    /// Turns of the conversation [default: 100; with --quick 20]
    #[arg(long, value_name = "COUNT", value_parser = value_parser!(u32).range(1..))]
    turns: Option<u32>,
    /// The most tokens of one answer
    #[arg(long, value_name = "COUNT", default_value_t = 16, value_parser = value_parser!(u32).range(1..))]
    answer_tokens: u32,
}

/// One player and what it answered.
struct Line {
    name: String,
    player: Player,
    answers: Vec<Answer>,
}

/// A conversation that was played to its end.
struct Played {
    /// With the session, without it, and then the peers.
    lines: Vec<Line>,
    /// What the device alone took for each turn of the session, in milliseconds.
    engine_ms: Vec<f64>,
    /// Length of the session's log in the end.
    log_tokens: u64,
}

impl Play for Arguments {
    const NAME: &'static str = "turns";

    fn among_all(all: &AllArguments) -> Self {
        Self { common: all.common.clone(), peers: all.peers.clone(), turns: None, answer_tokens: 16 }
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn has_peers(&self) -> bool {
        !self.peers.peers.is_empty()
    }

    async fn play(&self, stage: &mut Stage<'_>) -> anyhow::Result<Outcome> {
        let model = Chosen::pick(&self.common, SHAPE, &stage.progress)?;
        stage.progress.set_message("starting the runtime");
        let server = Server::start(&Launch::serve(&self.common, &model.path, &[])?).await?;
        let perfect = engine::perfect(&model, &self.common)?;
        let played = self.conversation(&server.client().await?, perfect, stage).await?;
        server.stop().await?;
        stage.watch.probe();
        Ok(shown::outcome(self, &model, &played))
    }
}

impl Arguments {
    fn turns(&self) -> u32 {
        self.turns.unwrap_or(if self.common.quick { TURNS_QUICK } else { TURNS })
    }

    async fn conversation(
        &self,
        client: &Client,
        mut perfect: impl Perfect,
        stage: &mut Stage<'_>,
    ) -> anyhow::Result<Played> {
        self.warm_up(client).await?;
        let session = Session::create(client).await?;
        let name = session.name().to_owned();
        let mut lines = self.cast(client, session).await?;
        let mut engine_ms = Vec::new();
        stage.progress.set_length(u64::from(self.turns()));
        for (turn, said) in agent_turns(&mut Rng::with_seed(self.common.seed), self.turns() as usize).iter().enumerate()
        {
            stage.progress.set_message(format!("history {} tokens", history(&lines[0].answers)));
            self.round(turn, said, &mut lines).await?;
            if let Some(answer) = lines[0].answers.last() {
                engine_ms.push(engine::first_token_ms(&mut perfect, answer)?);
            }
            if turn % PROBE_EVERY == 0 {
                stage.watch.probe();
            }
            stage.progress.inc(1);
        }
        let log_tokens = log_tokens(client, &name).await?;
        Ok(Played { lines, engine_ms, log_tokens })
    }

    /// Every player answers once, so that no first answer pays for threads, pages and connections that are made once.
    async fn warm_up(&self, client: &Client) -> anyhow::Result<()> {
        let mut lines = self.cast(client, Session::create(client).await?).await?;
        for said in agent_turns(&mut Rng::with_seed(self.common.seed ^ WARM_UP), 2) {
            self.round(0, &said, &mut lines).await.context("warming up")?;
        }
        settle().await;
        Ok(())
    }

    async fn cast(&self, client: &Client, session: Session) -> anyhow::Result<Vec<Line>> {
        let line = |name: &str, player| Line { name: name.to_owned(), player, answers: Vec::new() };
        let mut lines = vec![
            line("stateful", Player::Session(session)),
            line("stateless", Player::Stateless(Stateless::new(client))),
        ];
        for peer in &self.peers.peers {
            lines.push(line(&peer.name, Player::OpenAi(Box::new(OpenAi::connect(peer).await?))));
        }
        Ok(lines)
    }

    /// One turn of every player.
    async fn round(&self, turn: usize, said: &Said, lines: &mut [Line]) -> anyhow::Result<()> {
        for index in order(turn, lines.len()) {
            let line = &mut lines[index];
            let answer = line.player.turn(std::slice::from_ref(said), self.answer_tokens).await;
            let answer = answer.with_context(|| format!("turn {} of {}", turn + 1, line.name))?;
            line.answers.push(answer);
        }
        Ok(())
    }
}

/// Who speaks when: first to last and last to first by turns.
fn order(turn: usize, players: usize) -> Vec<usize> {
    let mut order: Vec<_> = (0..players).collect();
    if turn % 2 == 1 {
        order.reverse();
    }
    order
}

fn history(answers: &[Answer]) -> u64 {
    answers.last().map_or(0, |answer| answer.tokens.input + answer.tokens.output)
}

async fn log_tokens(client: &Client, name: &str) -> anyhow::Result<u64> {
    let request = v1::GetSessionRequest { name: name.to_owned() };
    Ok(client.sessions().get_session(request).await?.into_inner().context_used_tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_begins_alternates() {
        assert_eq!([order(0, 3), order(1, 3), order(2, 3)], [[0, 1, 2], [2, 1, 0], [0, 1, 2]]);
    }
}
