//! One conversation of `resume` with a session: how it is built, spoken and read back.
//!
//! In: texts, the same for every runtime. Out: answers with the events that told them. Everything that the client reads is kept, as
//! what may not be lost. Deliberately not here: who is killed when.

use anyhow::{Context as _, ensure};
use fastrand::Rng;
use holdfast_client::v1::event::Kind;
use holdfast_client::{Client, TurnEvents, items, v1};
use tokio_stream::StreamExt as _;

use super::evidence;
use crate::player::session::{sampling, take};
use crate::player::{Answer, Stopwatch};
use crate::workload::text;

/// Of the session, on every runtime: names of items are the same then.
const SESSION_ID: &str = "bench-resume";
/// Tokens of one message of the history, and of the answer to it.
const MESSAGE_TOKENS: usize = 450;
const ANSWER_TOKENS: usize = 50;

/// A session and what is known of it.
pub(super) struct Talk {
    client: Client,
    session: String,
    /// The conversation as a stateless request brings it.
    pub(super) history: Vec<v1::Item>,
    /// Numbered events of all turns, as they came.
    pub(super) events: Vec<v1::Event>,
}

/// One answer of the session.
#[derive(Debug, Clone)]
pub(super) struct Answered {
    pub(super) answer: Answer,
    /// Place, id and bits of the log probability of each token.
    pub(super) samples: Vec<(u64, u32, u32)>,
    pub(super) usage: v1::Usage,
}

/// A turn that nobody reads on.
pub(super) struct Begun {
    name: String,
    /// Place of its first event among all.
    first: usize,
    /// Tokens of its answer that were read.
    pub(super) tokens: usize,
}

/// What a runtime tells of a session when it is asked for everything.
pub(super) struct Record {
    /// By WatchSession.
    pub(super) watched: Vec<v1::Event>,
    /// By AttachTurn, turn by turn.
    pub(super) attached: Vec<v1::Event>,
    pub(super) items: Vec<v1::Item>,
}

impl Talk {
    /// Creates the session and appends messages and answers to it until it holds `tokens`; their state is computed at once.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub(super) async fn begin(client: &Client, rng: &mut Rng, tokens: u64) -> anyhow::Result<Self> {
        let request =
            v1::CreateSessionRequest { session_id: SESSION_ID.to_owned(), ..v1::CreateSessionRequest::default() };
        let session = client.sessions().create_session(request).await?.into_inner().name;
        let mut talk = Self { client: client.clone(), session, history: Vec::new(), events: Vec::new() };
        while talk.append(rng).await? < tokens {}
        Ok(talk)
    }

    /// Goes on with another process.
    pub(super) fn move_to(&mut self, client: &Client) {
        self.client = client.clone();
    }

    /// Says something and reads the answer to its end.
    ///
    /// # Errors
    /// When the turn is refused or fails.
    pub(super) async fn turn(&mut self, said: &str, max_tokens: u32) -> anyhow::Result<Answered> {
        let watch = Stopwatch::start();
        let events = self.client.run_turn(self.request(said, max_tokens)).await?;
        let first = self.events.len();
        let answer = self.read_to_end(watch, events).await?;
        Ok(self.answered(said, answer, first))
    }

    /// Says something, reads `deltas` pieces of the answer and goes away.
    ///
    /// # Errors
    /// When the turn is refused, fails, or ends before that.
    pub(super) async fn begin_turn(&mut self, said: &str, max_tokens: u32, deltas: usize) -> anyhow::Result<Begun> {
        let first = self.events.len();
        let mut events = self.client.run_turn(self.request(said, max_tokens)).await?;
        let mut read = 0;
        while read < deltas {
            let event = events.next().await?.context("the turn ended before it could be interrupted")?;
            ensure!(!matches!(event.kind, Some(Kind::TurnEnded(_))), "the turn ended before it could be interrupted");
            read += usize::from(matches!(event.kind, Some(Kind::TextDelta(_))));
            self.keep(event);
        }
        let name = events.turn().context("the turn has no name")?.to_owned();
        Ok(Begun { name, first, tokens: evidence::samples(&self.events[first..]).len() })
    }

    /// Attaches to a turn that was begun and reads the rest of it.
    ///
    /// # Errors
    /// When the turn fails.
    pub(super) async fn end_turn(&mut self, said: &str, begun: &Begun) -> anyhow::Result<Answered> {
        let watch = Stopwatch::start();
        let next = self.events.last().map_or(0, |event| event.sequence) + 1;
        let events = self.client.attach_turn(&begun.name, next).await?;
        let answer = self.read_to_end(watch, events).await?;
        Ok(self.answered(said, answer, begun.first))
    }

    /// Asks for every event and item of the session.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub(super) async fn record(&self) -> anyhow::Result<Record> {
        let request = v1::GetSessionRequest { name: self.session.clone() };
        let session = self.client.sessions().get_session(request).await?.into_inner();
        let mut attached = Vec::new();
        for turn in 1..=session.last_turn {
            let mut events = self.client.attach_turn(&format!("{}/turns/{turn}", self.session), 0).await?;
            while let Some(event) = events.next().await? {
                attached.push(event);
            }
        }
        Ok(Record { watched: self.watch(session.last_sequence).await?, attached, items: self.items().await? })
    }

    fn request(&self, said: &str, max_tokens: u32) -> v1::RunTurnRequest {
        // Log probabilities tell which tokens they are of.
        let sampling = v1::Sampling { logprobs: Some(0), ..sampling(max_tokens) };
        v1::RunTurnRequest {
            session: self.session.clone(),
            input: vec![items::user(said)],
            options: Some(v1::TurnOptions { sampling: Some(sampling), ..v1::TurnOptions::default() }),
            ..v1::RunTurnRequest::default()
        }
    }

    /// Appends a message and an answer to it; the session's tokens then.
    async fn append(&mut self, rng: &mut Rng) -> anyhow::Result<u64> {
        let answer = items::message(v1::Role::Assistant, text(rng, ANSWER_TOKENS));
        let items = vec![items::user(text(rng, MESSAGE_TOKENS)), answer];
        self.history.extend_from_slice(&items);
        let request = v1::AppendItemsRequest {
            session: self.session.clone(),
            items,
            prefill: true,
            ..v1::AppendItemsRequest::default()
        };
        let appended = self.client.sessions().append_items(request).await?.into_inner().items;
        appended
            .last()
            .and_then(|item| item.token_range)
            .map(|range| range.end)
            .context("an appended item has no tokens")
    }

    async fn read_to_end(&mut self, mut watch: Stopwatch, mut events: TurnEvents) -> anyhow::Result<Answer> {
        let mut tokens = None;
        while let Some(event) = events.next().await? {
            take(event.clone(), &mut watch, &mut tokens)?;
            self.keep(event);
        }
        Ok(watch.stop(tokens.context("the turn did not end")?))
    }

    fn keep(&mut self, event: v1::Event) {
        if event.sequence > 0 {
            self.events.push(event);
        }
    }

    /// What the events from `first` on say of the turn.
    fn answered(&mut self, said: &str, answer: Answer, first: usize) -> Answered {
        let events = &self.events[first..];
        let ended = events.iter().find_map(|event| match &event.kind {
            Some(Kind::TurnEnded(ended)) => ended.turn.as_ref(),
            _ => None,
        });
        let usage = ended.and_then(|turn| turn.usage.clone()).unwrap_or_default();
        let samples = evidence::samples(events);
        let words: String = events.iter().filter_map(words).collect();
        self.history.extend([items::user(said), items::message(v1::Role::Assistant, words)]);
        Answered { answer, samples, usage }
    }

    async fn watch(&self, last: u64) -> anyhow::Result<Vec<v1::Event>> {
        let request = v1::WatchSessionRequest { name: self.session.clone(), from_sequence: 1 };
        let mut stream = self.client.sessions().watch_session(request).await?.into_inner();
        let mut events: Vec<v1::Event> = Vec::new();
        while events.last().map_or(0, |event| event.sequence) < last {
            let event = stream.next().await.context("WatchSession ended by itself")??;
            if event.sequence > 0 {
                events.push(event);
            }
        }
        Ok(events)
    }

    async fn items(&self) -> anyhow::Result<Vec<v1::Item>> {
        let mut items = Vec::new();
        let mut page_token = String::new();
        loop {
            let request =
                v1::ListItemsRequest { session: self.session.clone(), page_token, ..v1::ListItemsRequest::default() };
            let page = self.client.sessions().list_items(request).await?.into_inner();
            items.extend(page.items);
            if page.next_page_token.is_empty() {
                return Ok(items);
            }
            page_token = page.next_page_token;
        }
    }
}

fn words(event: &v1::Event) -> Option<&str> {
    match &event.kind {
        Some(Kind::TextDelta(delta)) => Some(&delta.text),
        _ => None,
    }
}
