//! One conversation after the other, driven by a client that writes down every acknowledgement and every event. A call that
//! dies with its runtime is repeated with the same request id, so that each step happens once. What was written down is
//! held against what the next runtime tells.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_client::{Client, items, v1};
use tokio_stream::StreamExt;
use tonic::{Code, Status};
use v1::event::Kind;

use crate::support::script::{Script, TurnTrace};
use crate::support::talk::{self, Heard};
use crate::support::{Home, SOON, within};

/// What all lanes play, and how it ends when nobody interrupts.
pub(crate) struct Plan {
    scripts: Vec<Script>,
    twins: Vec<Vec<TurnTrace>>,
}

/// A client's side of one conversation after the other.
pub(crate) struct Lane {
    id: usize,
    round: usize,
    /// Steps of the current conversation that were acknowledged.
    steps: usize,
    /// The current conversation's session, once it was acknowledged.
    session: Option<v1::Session>,
    /// Streams of the current conversation, by turn: each as far as it was heard.
    heard: BTreeMap<String, Vec<Vec<v1::Event>>>,
    /// Items that AppendItems acknowledged.
    appended: Vec<v1::Item>,
    /// Sessions as they were when their conversation had ended.
    finished: BTreeMap<String, v1::Session>,
    deleted: BTreeSet<String>,
    /// Streams that a kill cut off in mid-turn.
    cut: usize,
}

impl Plan {
    /// Plays every script once on a runtime that nobody kills.
    pub(crate) async fn of(scripts: Vec<Script>) -> Self {
        let home = Home::new();
        let runtime = home.start(&[]);
        let client = runtime.client().await;
        let mut plan = Self { twins: Vec::new(), scripts };
        for script in 0..plan.scripts.len() {
            let mut lane = Lane::new(script);
            let trace = lane.round_of(&client, &plan.scripts[script]).await.unwrap();
            plan.twins.push(trace);
        }
        plan
    }

    fn at(&self, round: usize) -> usize {
        round % self.scripts.len()
    }
}

impl Lane {
    pub(crate) fn new(id: usize) -> Self {
        Self {
            id,
            round: 0,
            steps: 0,
            session: None,
            heard: BTreeMap::new(),
            appended: Vec::new(),
            finished: BTreeMap::new(),
            deleted: BTreeSet::new(),
            cut: 0,
        }
    }

    /// Conversations that have ended.
    pub(crate) fn rounds(&self) -> usize {
        self.round
    }

    /// Streams that a kill cut off in mid-turn.
    pub(crate) fn cut(&self) -> usize {
        self.cut
    }

    /// Goes on with the conversation, then with the next, until the runtime dies; or, with `finish`, to the end of this one.
    ///
    /// # Panics
    /// When a conversation ends otherwise than its twin, or a call fails with a reason.
    pub(crate) async fn drive(&mut self, client: &Client, plan: &Plan, finish: bool) {
        loop {
            let script = plan.at(self.id + self.round * 5);
            match self.round_of(client, &plan.scripts[script]).await {
                Ok(trace) => assert_eq!(trace, plan.twins[script], "not as the twin: {:#?}", plan.scripts[script]),
                Err(status) => {
                    let broken = talk::reason(&status).is_empty();
                    assert!(broken, "refused rather than cut off: {status:?}");
                    assert!(!finish, "nobody killed it: {status:?}");
                    return;
                }
            }
            if finish {
                return;
            }
        }
    }

    fn name(&self) -> String {
        format!("sessions/{}", self.session_id())
    }

    fn session_id(&self) -> String {
        format!("crash-lane-{}-round-{}", self.id, self.round)
    }

    /// The rest of one conversation; what it left, read back from the runtime.
    async fn round_of(&mut self, client: &Client, script: &Script) -> Result<Vec<TurnTrace>, Status> {
        if self.session.is_none() {
            self.session = Some(self.create(client, script).await?);
        }
        // An item before each turn but the first, then the turn.
        while self.steps < 2 * script.turns.len() {
            let turn = self.steps / 2;
            if self.steps % 2 == 1 {
                let said = &script.turns[turn];
                let request = v1::RunTurnRequest {
                    request_id: format!("turn-{turn}"),
                    ..talk::says_with(&self.name(), &said.text, said.sampling.clone())
                };
                self.turn(client, request).await?;
            } else if turn > 0 {
                self.append(client, turn).await?;
            }
            self.steps += 1;
        }
        let trace = self.trace(client).await?;
        self.finish(client).await?;
        Ok(trace)
    }

    async fn create(&self, client: &Client, script: &Script) -> Result<v1::Session, Status> {
        let labels = [("lane".to_owned(), self.id.to_string())].into();
        let session = v1::Session { config: Some(script.config.clone()), labels, ..Default::default() };
        let request = v1::CreateSessionRequest {
            session_id: self.session_id(),
            session: Some(session),
            request_id: "create".to_owned(),
            ..Default::default()
        };
        Ok(client.sessions().create_session(request).await?.into_inner())
    }

    async fn append(&mut self, client: &Client, turn: usize) -> Result<(), Status> {
        let request = v1::AppendItemsRequest {
            session: self.name(),
            items: vec![items::user(format!("Note {turn}."))],
            prefill: turn.is_multiple_of(2),
            request_id: format!("append-{turn}"),
        };
        self.appended.extend(client.sessions().append_items(request).await?.into_inner().items);
        Ok(())
    }

    /// A turn to its end; calls are answered, each answer under a request id of its own.
    async fn turn(&mut self, client: &Client, mut request: v1::RunTurnRequest) -> Result<(), Status> {
        let first_id = request.request_id.clone();
        for answer in 0.. {
            let heard = self.hear(client, request).await?;
            if heard.ended().is_some() {
                return Ok(());
            }
            let Some(answers) = talk::answers(&self.name(), &heard) else {
                return Err(Status::unavailable("the stream ended before the turn did"));
            };
            request = v1::RunTurnRequest { request_id: format!("{first_id}-answer-{answer}"), ..answers };
        }
        Ok(())
    }

    /// One stream, written down as far as it comes.
    async fn hear(&mut self, client: &Client, request: v1::RunTurnRequest) -> Result<Heard, Status> {
        let mut stream = client.sessions().run_turn(request).await?.into_inner();
        let mut heard = Heard::default();
        let ending = loop {
            match within("the next event", SOON, stream.next()).await {
                Some(Ok(event)) => heard.events.push(event),
                Some(Err(status)) => break Err(status),
                None => break Ok(()),
            }
        };
        if !heard.events.is_empty() {
            self.cut += usize::from(ending.is_err());
            self.heard.entry(heard.turn_name().to_owned()).or_default().push(heard.events.clone());
        }
        ending.map(|()| heard)
    }

    /// The whole conversation as the runtime tells it now.
    async fn trace(&self, client: &Client) -> Result<Vec<TurnTrace>, Status> {
        let request = v1::ListTurnsRequest { session: self.name(), ..Default::default() };
        let turns = client.sessions().list_turns(request).await?.into_inner().turns;
        let mut traces = Vec::new();
        for turn in turns {
            traces.push(TurnTrace::of(&talk::attach(client, &turn.name, 0).await?));
        }
        Ok(traces)
    }

    /// Leaves the session as it is, or deletes it, and turns to the next conversation.
    async fn finish(&mut self, client: &Client) -> Result<(), Status> {
        let name = self.name();
        if self.round % 3 == 2 {
            // Deleted by a call whose answer was lost is deleted as well.
            match talk::delete(client, &name).await {
                Err(status) if status.code() != Code::NotFound => return Err(status),
                _ => self.deleted.insert(name),
            };
        } else {
            self.finished.insert(name.clone(), talk::session(client, &name).await?);
        }
        (self.round, self.steps, self.session) = (self.round + 1, 0, None);
        self.heard.clear();
        self.appended.clear();
        Ok(())
    }

    /// Holds everything that was written down against the runtime.
    ///
    /// # Panics
    /// When something is missing or different.
    pub(crate) async fn verify(&mut self, client: &Client) {
        for (name, then) in &self.finished {
            let now = talk::session(client, name).await.unwrap();
            // Nothing of it is on the device after a restart; that alone may differ.
            assert_eq!(&v1::Session { state: then.state, ..now }, then);
        }
        for name in &self.deleted {
            assert_eq!(talk::session(client, name).await.unwrap_err().code(), Code::NotFound, "{name} was deleted");
        }
        let Some(then) = self.session.clone() else { return };
        if self.round % 3 == 2 && self.is_gone(client).await {
            return;
        }
        let now = talk::session(client, &self.name()).await.unwrap();
        assert_eq!((&now.config, &now.labels, &now.create_time), (&then.config, &then.labels, &then.create_time));
        assert!(now.last_turn as usize >= self.heard.len(), "{now:?}");
        let mut known: BTreeMap<String, v1::Item> =
            self.appended.iter().map(|item| (item.name.clone(), item.clone())).collect();
        for (turn, streams) in &self.heard {
            let whole =
                within("an interrupted turn ends by itself", SOON, talk::attach(client, turn, 0)).await.unwrap();
            assert!(whole.ended().is_some() || whole.waits().is_some(), "{turn}: {whole:?}");
            for heard in streams {
                assert_part_of(heard, &whole.events);
            }
            for event in &whole.events {
                if let Some(Kind::ItemDone(v1::ItemDone { item: Some(item) })) = &event.kind {
                    known.insert(item.name.clone(), item.clone());
                }
            }
        }
        let listed = talk::list_items(client, &self.name()).await;
        for (name, item) in known {
            let found = listed.iter().find(|listed| listed.name == name);
            assert_eq!(found, Some(&item), "an acknowledged item");
        }
    }

    /// Whether the current session was deleted by a call whose answer was lost; that is the end of its conversation.
    async fn is_gone(&mut self, client: &Client) -> bool {
        match talk::session(client, &self.name()).await {
            Err(status) if status.code() == Code::NotFound => {
                self.deleted.insert(self.name());
                (self.round, self.steps, self.session) = (self.round + 1, 0, None);
                self.heard.clear();
                self.appended.clear();
                true
            }
            _ => false,
        }
    }
}

/// Asserts that a stream, as far as it was heard, tells the same as the whole turn read later: equal events under equal
/// numbers. Deltas may have been joined, so they are compared by what they add up to.
fn assert_part_of(heard: &[v1::Event], whole: &[v1::Event]) {
    let (heard, whole) = (Story::of(heard), Story::of(whole));
    for (sequence, event) in &heard.events {
        assert_eq!(Some(event), whole.events.get(sequence), "event {sequence}");
    }
    for (item, text) in &heard.texts {
        let later = whole.texts.get(item).map_or("", String::as_str);
        assert!(later.starts_with(text.as_str()), "{item}: heard {text:?}, read later {later:?}");
    }
    for (sequence, length) in &heard.lengths {
        if let Some(later) = whole.lengths.get(sequence) {
            assert_eq!(length, later, "what the deltas up to {sequence} add up to");
        }
    }
    for (item, samples) in &heard.samples {
        let later = whole.samples.get(item).map_or(&[][..], Vec::as_slice);
        assert!(later.starts_with(samples), "{item}: log probabilities, heard {samples:?}, read later {later:?}");
    }
}

/// Numbered events of one turn, deltas folded.
#[derive(Default)]
struct Story {
    events: BTreeMap<u64, v1::Event>,
    /// By item: its deltas together.
    texts: BTreeMap<String, String>,
    /// By the number of a delta: bytes of its item up to here.
    lengths: BTreeMap<u64, (String, usize)>,
    /// By item: place and token of what it was sampled from, and the bits of the log probability. By item since the stream
    /// that answers a call begins behind the text that came before the call.
    samples: BTreeMap<String, Vec<(u64, u32, u32)>>,
}

impl Story {
    fn of(events: &[v1::Event]) -> Self {
        let mut story = Self::default();
        let mut next = None;
        for event in events.iter().filter(|event| event.sequence > 0) {
            assert!(event.first_sequence <= event.sequence, "{event:?}");
            assert_eq!(event.first_sequence, next.unwrap_or(event.first_sequence), "numbers have no gap: {event:?}");
            next = Some(event.sequence + 1);
            match &event.kind {
                Some(Kind::TextDelta(delta)) => {
                    story.add(event.sequence, &delta.item, &delta.text);
                    let bits = |sample: &v1::TokenLogprob| (sample.position, sample.token, sample.logprob.to_bits());
                    story.samples.entry(delta.item.clone()).or_default().extend(delta.logprobs.iter().map(bits));
                }
                Some(Kind::ReasoningDelta(delta)) => story.add(event.sequence, &delta.item, &delta.text),
                Some(Kind::ToolArgumentsDelta(delta)) => story.add(event.sequence, &delta.item, &delta.arguments),
                _ => {
                    story.events.insert(event.sequence, event.clone());
                }
            }
        }
        story
    }

    fn add(&mut self, sequence: u64, item: &str, text: &str) {
        let all = self.texts.entry(item.to_owned()).or_default();
        all.push_str(text);
        self.lengths.insert(sequence, (item.to_owned(), all.len()));
    }
}
