//! The runtime that is killed again and again, and the session on it.
//!
//! In: a session with its first turns. Out: [`Found`]. Between any two steps the runtime is dead, so that its files can leave the page
//! cache and nothing else computes while the cold runtime is measured.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_client::v1;

use super::evidence::{lost_events, lost_items};
use super::talk::{Answered, Record, Talk};
use crate::model::Chosen;
use crate::player::stateless::Stateless;
use crate::player::{Answer, Said, now};
use crate::scenario::page_cache;
use crate::server::{Launch, Server};

/// Pieces of an answer that are read before it is interrupted.
const PIECES_BEFORE_KILL: usize = 4;

/// The story of a session that nothing happened to.
pub(super) struct Twin {
    pub(super) turns: Vec<Answered>,
    pub(super) items: Vec<v1::Item>,
}

/// One restart, and the same conversation cold beside it.
pub(super) struct Repetition {
    /// From the start of the process to a connection.
    pub(super) restart: Duration,
    pub(super) restored: Answered,
    /// As `restart`, of the runtime that knows nothing.
    pub(super) cold_start: Duration,
    pub(super) cold: Answer,
}

/// A kill within an answer.
pub(super) struct MidTurn {
    /// Tokens that were read before the kill.
    pub(super) tokens_before: usize,
    /// Read after it from there on: the rest of the answer.
    pub(super) rest: Answer,
}

/// What must not be lost, and what was.
#[derive(Default)]
pub(super) struct Losses {
    /// Numbers of events that were read before a kill, and those that were not given again as they were.
    pub(super) known_events: u64,
    pub(super) events: BTreeSet<u64>,
    pub(super) known_items: usize,
    pub(super) items: usize,
}

/// What has been found in the end.
pub(super) struct Found {
    pub(super) repetitions: Vec<Repetition>,
    pub(super) mid_turn: Option<MidTurn>,
    pub(super) losses: Losses,
    /// The first turn, from 1, whose answer differs from the twin's.
    pub(super) differs: Option<usize>,
    /// Every item of the session is the twin's.
    pub(super) items_identical: bool,
    /// Files that left the page cache before the last start; `None` where the system has no way to do it.
    pub(super) dropped_files: Option<usize>,
    /// The model is no file that is known here, and its pages stayed.
    pub(super) model_kept: bool,
}

/// The runtime and the session.
pub(super) struct Stand<'a> {
    launch: &'a Launch,
    model: Option<PathBuf>,
    server: Server,
    talk: Talk,
    /// What the runtime told before the latest kill.
    known: Record,
    turns: Vec<Answered>,
    found: Found,
}

impl<'a> Stand<'a> {
    /// Reads the session's story and kills its runtime.
    ///
    /// # Errors
    /// When the runtime refuses or has ended.
    pub(super) async fn killed(
        launch: &'a Launch,
        model: &Chosen,
        mut server: Server,
        talk: Talk,
        turns: Vec<Answered>,
    ) -> anyhow::Result<Self> {
        let known = talk.record().await?;
        server.kill().await?;
        // `NAME=DIRECTORY` is a way to say a directory.
        let path = PathBuf::from(model.path.rsplit('=').next().unwrap_or_default());
        let model = path.exists().then_some(path);
        let found = Found {
            repetitions: Vec::new(),
            mid_turn: None,
            losses: Losses::default(),
            differs: None,
            items_identical: false,
            dropped_files: None,
            model_kept: model.is_none(),
        };
        Ok(Self { launch, model, server, talk, known, turns, found })
    }

    /// The next turn, after a restart and in a runtime that knows nothing; which goes first alternates.
    ///
    /// # Errors
    /// When a runtime does not start, or a turn fails.
    pub(super) async fn repetition(&mut self, said: &str, max_tokens: u32) -> anyhow::Result<()> {
        let history = self.talk.history.clone();
        let ((restart, restored), (cold_start, cold)) = if self.found.repetitions.len().is_multiple_of(2) {
            let restored = self.restored(said, max_tokens).await?;
            (restored, self.cold(history, said, max_tokens).await?)
        } else {
            let cold = self.cold(history, said, max_tokens).await?;
            (self.restored(said, max_tokens).await?, cold)
        };
        self.turns.push(restored.clone());
        self.found.repetitions.push(Repetition { restart, restored, cold_start, cold });
        Ok(())
    }

    /// Begins a turn, kills the runtime, and reads the rest of the answer after the restart. The runtime lives then.
    ///
    /// # Errors
    /// When the turn fails, or ends before it could be interrupted.
    pub(super) async fn mid_turn(&mut self, said: &str, max_tokens: u32) -> anyhow::Result<()> {
        self.restart().await?;
        let begun = self.talk.begin_turn(said, max_tokens, PIECES_BEFORE_KILL).await?;
        self.server.kill().await?;
        self.restart().await?;
        let answered = self.talk.end_turn(said, &begun).await?;
        self.found.mid_turn = Some(MidTurn { tokens_before: begun.tokens, rest: answered.answer.clone() });
        self.turns.push(answered);
        self.compare().await
    }

    /// Stops the runtime and compares the whole story with the twin's.
    ///
    /// # Errors
    /// When the runtime does not end.
    pub(super) async fn finish(self, twin: &Twin) -> anyhow::Result<Found> {
        self.server.stop().await?;
        let pairs = self.turns.iter().zip(&twin.turns);
        let differs = pairs.map(|(turn, twin)| turn.samples == twin.samples).position(|same| !same);
        let items_identical = self.known.items == twin.items;
        Ok(Found { differs: differs.map(|index| index + 1), items_identical, ..self.found })
    }

    /// A turn after a restart over the same data, and a kill.
    async fn restored(&mut self, said: &str, max_tokens: u32) -> anyhow::Result<(Duration, Answered)> {
        let restart = self.restart().await?;
        let answered = self.talk.turn(said, max_tokens).await?;
        self.compare().await?;
        self.server.kill().await?;
        Ok((restart, answered))
    }

    /// The same turn in a runtime that gets the whole conversation with it.
    async fn cold(
        &mut self,
        history: Vec<v1::Item>,
        said: &str,
        max_tokens: u32,
    ) -> anyhow::Result<(Duration, Answer)> {
        self.drop_caches()?;
        let begin = now();
        let server = Server::start(self.launch).await?;
        let client = server.client().await?;
        let start = now() - begin;
        let answer = Stateless::after(&client, history).turn(&[Said::User(said.to_owned())], max_tokens).await?;
        server.stop().await?;
        Ok((start, answer))
    }

    async fn restart(&mut self) -> anyhow::Result<Duration> {
        self.drop_caches()?;
        let begin = now();
        self.server.restart(self.launch).await?;
        let client = self.server.client().await?;
        self.talk.move_to(&client);
        Ok(now() - begin)
    }

    fn drop_caches(&mut self) -> anyhow::Result<()> {
        let mut paths = vec![self.server.data()];
        paths.extend(self.model.as_deref());
        self.found.dropped_files = page_cache::drop_files(&paths)?;
        Ok(())
    }

    /// Asks for everything that was known before the kill.
    async fn compare(&mut self) -> anyhow::Result<()> {
        let now = self.talk.record().await?;
        let (known, losses) = (&self.known, &mut self.found.losses);
        for (before, after) in [
            (&known.watched, &now.watched),
            (&known.attached, &now.attached),
            (&self.talk.events, &now.watched),
            (&self.talk.events, &now.attached),
        ] {
            losses.events.extend(lost_events(before, after));
        }
        losses.items += lost_items(&known.items, &now.items);
        losses.known_events = self.talk.events.last().map_or(0, |event| event.sequence);
        losses.known_items = known.items.len();
        self.known = now;
        Ok(())
    }
}
