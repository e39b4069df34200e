//! A worker that records what it is asked and answers what a test told it to. In tests only.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use async_trait::async_trait;
use holdfast_types::*;
use holdfast_worker_api::*;
use tokio::sync::mpsc;
use tokio_stream::Stream;

/// What was asked, with who asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Asked {
    Create(Caller, CreateSession),
    Get(SessionId),
    List(ListSessions),
    Update(UpdateSession),
    Delete(SessionId, Option<String>),
    Start(StartTurn),
    Submit(SubmitToolResults),
    Attach(SessionId, TurnNumber, u64),
    Watch(SessionId, u64),
    Cancel(CancelTurn),
    GetTurn(SessionId, TurnNumber),
    Turns(ListTurns),
    Items(ListItems),
    Append(AppendItems),
    Generate(Generate),
    Count(CountTokens),
}

/// The recording worker.
#[derive(Default)]
pub(crate) struct Recorder {
    asked: Mutex<Vec<Asked>>,
    /// Answers every call that is not a stream with this failure.
    failure: Mutex<Option<Failure>>,
    feed: Mutex<Option<mpsc::UnboundedReceiver<StreamItem>>>,
    /// Bytes of the text of each listed item.
    pub(crate) item_bytes: Mutex<usize>,
    pub(crate) stream_dropped: Arc<AtomicBool>,
}

impl Recorder {
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) fn fail_with(&self, failure: Failure) {
        *self.failure.lock().unwrap() = Some(failure);
    }

    /// Where the events of the next stream come from.
    pub(crate) fn feed(&self) -> mpsc::UnboundedSender<StreamItem> {
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.feed.lock().unwrap() = Some(receiver);
        sender
    }

    fn note(&self, asked: Asked) -> Result<(), Failure> {
        self.asked.lock().unwrap().push(asked);
        match self.failure.lock().unwrap().clone() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    fn events(&self) -> EventStream {
        let feed = self.feed.lock().unwrap().take();
        Box::pin(Fed { feed, dropped: self.stream_dropped.clone() })
    }
}

/// A stream that tells when it is dropped; without a feed it never yields.
struct Fed {
    feed: Option<mpsc::UnboundedReceiver<StreamItem>>,
    dropped: Arc<AtomicBool>,
}

impl Stream for Fed {
    type Item = StreamItem;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<StreamItem>> {
        match &mut self.feed {
            Some(feed) => feed.poll_recv(cx),
            None => Poll::Pending,
        }
    }
}

impl Drop for Fed {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::SeqCst);
    }
}

pub(crate) fn session(id: &str) -> Session {
    Session {
        id: SessionId::parse(id).unwrap(),
        state: SessionState::Idle,
        config: SessionConfig { model: "pebble".into(), ..SessionConfig::default() },
        revision: ModelRevision {
            weights: Digest::default(),
            tokenizer: Digest::default(),
            template: Digest::default(),
            numerics_class: NumericsClass::new("neuron/f32/r1"),
            build: "test".into(),
        },
        display_name: String::new(),
        labels: Default::default(),
        etag: "e1".into(),
        created_us: 1,
        updated_us: 1,
        expire_time_us: None,
        idle_timeout_s: None,
        purge_time_us: None,
        turns: 0,
        items: 0,
        context_tokens: 0,
        context_limit: 100,
        last_sequence: 0,
    }
}

pub(crate) fn turn(number: u32) -> Turn {
    Turn {
        number: TurnNumber(number),
        state: TurnState::Running,
        stop_reason: None,
        generations: vec![],
        usage: Usage::default(),
        required_calls: vec![],
        settings: SamplingOverrides::default().resolve(1, 512),
        created_us: 1,
        started_us: None,
        ended_us: None,
        deadline_us: None,
        failure: None,
        first_sequence: 1,
        last_sequence: 1,
    }
}

pub(crate) fn event(sequence: u64, kind: EventKind) -> Event {
    Event { sequence, turn: TurnNumber(1), time_us: 1, kind }
}

pub(crate) fn model(name: &str, is_default: bool) -> ModelInfo {
    ModelInfo {
        name: name.into(),
        architecture: "LlamaForCausalLM".into(),
        parameters: 1,
        context_limit: 100,
        vocab_size: 10,
        weights: Digest::default(),
        tokenizer: Digest::default(),
        template: Digest::default(),
        numerics_class: NumericsClass::new("neuron/f32/r1"),
        tools: true,
        speech: holdfast_worker_api::ModelSpeech::default(),
        device: "neuron:0".into(),
        kv_blocks: (10, 1),
        kv_bytes_per_token: 64,
        is_default,
    }
}

#[async_trait]
impl Worker for Recorder {
    async fn create_session(&self, caller: &Caller, request: CreateSession) -> Result<Session, Failure> {
        let id = request.session.as_ref().map_or("drawn-by-worker", |id| id.as_str()).to_owned();
        self.note(Asked::Create(caller.clone(), request))?;
        Ok(session(&id))
    }
    async fn get_session(&self, _: &Caller, id: &SessionId) -> Result<Session, Failure> {
        self.note(Asked::Get(id.clone()))?;
        Ok(session(id.as_str()))
    }
    async fn list_sessions(&self, _: &Caller, request: ListSessions) -> Result<Page<Session>, Failure> {
        self.note(Asked::List(request))?;
        Ok(Page { elements: vec![session("session-1")], next_page_token: "more".into() })
    }
    async fn update_session(&self, _: &Caller, request: UpdateSession) -> Result<Session, Failure> {
        let id = request.session.clone();
        self.note(Asked::Update(request))?;
        Ok(session(id.as_str()))
    }
    async fn delete_session(&self, _: &Caller, id: &SessionId, etag: Option<String>) -> Result<Session, Failure> {
        self.note(Asked::Delete(id.clone(), etag))?;
        Ok(session(id.as_str()))
    }
    async fn start_turn(&self, _: &Caller, request: StartTurn) -> Result<Turn, Failure> {
        self.note(Asked::Start(request))?;
        Ok(turn(1))
    }
    async fn run_turn(&self, _: &Caller, request: StartTurn) -> Result<TurnStream, Failure> {
        self.note(Asked::Start(request))?;
        Ok(TurnStream { turn: turn(1), events: self.events() })
    }
    async fn submit_tool_results(&self, _: &Caller, request: SubmitToolResults) -> Result<Turn, Failure> {
        self.note(Asked::Submit(request))?;
        Ok(turn(1))
    }
    async fn continue_turn(&self, _: &Caller, request: SubmitToolResults) -> Result<TurnStream, Failure> {
        self.note(Asked::Submit(request))?;
        Ok(TurnStream { turn: turn(1), events: self.events() })
    }
    async fn attach_turn(
        &self,
        _: &Caller,
        session: &SessionId,
        number: TurnNumber,
        from_sequence: u64,
    ) -> Result<TurnStream, Failure> {
        self.note(Asked::Attach(session.clone(), number, from_sequence))?;
        Ok(TurnStream { turn: turn(number.0), events: self.events() })
    }
    async fn watch_session(&self, _: &Caller, session: &SessionId, from: u64) -> Result<EventStream, Failure> {
        self.note(Asked::Watch(session.clone(), from))?;
        Ok(self.events())
    }
    async fn cancel_turn(&self, _: &Caller, request: CancelTurn) -> Result<Turn, Failure> {
        self.note(Asked::Cancel(request))?;
        Ok(turn(1))
    }
    async fn get_turn(&self, _: &Caller, session: &SessionId, number: TurnNumber) -> Result<Turn, Failure> {
        self.note(Asked::GetTurn(session.clone(), number))?;
        Ok(turn(number.0))
    }
    async fn list_turns(&self, _: &Caller, request: ListTurns) -> Result<Page<Turn>, Failure> {
        self.note(Asked::Turns(request))?;
        Ok(Page { elements: vec![turn(1), turn(2)], next_page_token: String::new() })
    }
    async fn list_items(&self, _: &Caller, request: ListItems) -> Result<Page<NumberedItem>, Failure> {
        let (first, size) = (request.page_token.parse().unwrap_or(1_u32), request.page_size);
        self.note(Asked::Items(request))?;
        let bytes = *self.item_bytes.lock().unwrap();
        let end = (first + size).min(11);
        let elements = (first..end).map(|number| NumberedItem {
            number: ItemNumber(number),
            turn: None,
            tokens: TokenRange::default(),
            item: Item::message(Role::User, "x".repeat(bytes)),
        });
        let next_page_token = if end < 11 { end.to_string() } else { String::new() };
        Ok(Page { elements: elements.collect(), next_page_token })
    }
    async fn append_items(&self, _: &Caller, request: AppendItems) -> Result<Vec<NumberedItem>, Failure> {
        self.note(Asked::Append(request))?;
        Ok(vec![])
    }
    async fn generate(&self, _: &Caller, request: Generate) -> Result<CompletionStream, Failure> {
        self.note(Asked::Generate(request))?;
        let ended = CompletionEvent { time_us: 1, kind: EventKind::TurnEnded { turn: Box::new(turn(0)) } };
        Ok(Box::pin(tokio_stream::iter([Ok(ended)])))
    }
    async fn count_tokens(&self, _: &Caller, request: CountTokens) -> Result<TokenCount, Failure> {
        self.note(Asked::Count(request))?;
        Ok(TokenCount { tokens: 3, context_tokens: 0, context_limit: 100 })
    }
    async fn list_models(&self, _: &Caller) -> Result<Vec<ModelInfo>, Failure> {
        Ok(vec![model("other", false), model("pebble", true), model("third", false)])
    }
    async fn runtime(&self, caller: &Caller) -> Result<RuntimeInfo, Failure> {
        Ok(RuntimeInfo {
            version: "0.1.0".into(),
            build: "test".into(),
            features: vec![],
            limits: Limits::default(),
            models: self.list_models(caller).await?,
            sessions_loaded: 1,
            turns_in_progress: 2,
            started_us: 1,
            draining: false,
        })
    }
}
