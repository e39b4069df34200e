//! The shell over a real engine, a real journal and the built-in model's text; the device draws tokens from hashes.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_engine::testing::{TokenBackend, small_device};
use holdfast_engine::{Engine, EngineConfig, EngineHandle, EngineThread};
use holdfast_journal::{Journal, MemoryJournal};
use holdfast_model::{Model, ModelSource, ModelText};
use holdfast_types::{
    Event, EventKind, Failure, Item, OnDisconnect, Reason, Role, SamplingOverrides, SessionConfig, SessionId,
    TurnNumber, TurnState,
};
use holdfast_worker::{Device, LocalWorker, WorkerPort, WorkerSettings};
use holdfast_worker_api::{Caller, CreateSession, EventStream, Generate, ListSessions, ModelInfo, StartTurn, Worker};
use tokio_stream::StreamExt;

fn text() -> Arc<ModelText> {
    Model::load(&ModelSource::BuiltIn("pebble".into())).unwrap().text().clone()
}

fn worker(journal: Arc<dyn Journal>, recent_events: usize) -> (LocalWorker, EngineHandle) {
    let text = text();
    let mut description = small_device(16, &[256], 8);
    description.vocab_size = text.vocab_size();
    let time = Arc::new(AtomicU64::new(1_795_132_800_000_000));
    let clock = move || time.fetch_add(10, Ordering::Relaxed);
    let clock: Arc<dyn Fn() -> u64 + Send + Sync> = Arc::new(clock);
    let port = WorkerPort::new();
    let engine = Engine::new(Box::new(TokenBackend::new(description.clone())), EngineConfig::default());
    let handle = EngineThread::start("engine", engine, clock.clone(), port.0.engine_sink()).unwrap();
    let engine = handle.clone();
    let (weights, tokenizer, template) = text.revision();
    let info = ModelInfo {
        name: "pebble".into(),
        architecture: "LlamaForCausalLM".into(),
        parameters: 1,
        context_limit: text.context_limit(),
        vocab_size: text.vocab_size(),
        weights,
        tokenizer,
        template,
        numerics_class: description.numerics_class.clone(),
        tools: true,
        device: description.name.clone(),
        kv_blocks: (256, 0),
        kv_bytes_per_token: 1,
        is_default: true,
    };
    let device = Device {
        info,
        text,
        precision: holdfast_types::Precision::Native,
        engine: Box::new(move |command| {
            engine.send(command).map_err(|error| Failure::new(Reason::QueueFull, error.to_string()))
        }),
        kv_blocks: Box::new(|| (256, 0)),
    };
    let random = AtomicU64::new(7);
    let entropy = Arc::new(move || u128::from(random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)));
    let settings = WorkerSettings { recent_events, ..WorkerSettings::default() };
    (LocalWorker::start(settings, port, journal, vec![device], (clock, entropy)), handle)
}

fn say(session: &SessionId, text: &str, most: u32) -> StartTurn {
    let sampling = SamplingOverrides { temperature: Some(1.0), max_output_tokens: Some(most), ..Default::default() };
    StartTurn { sampling, ..StartTurn::new(session.clone(), vec![Item::message(Role::User, text)]) }
}

async fn numbered(events: EventStream) -> Vec<Event> {
    let all: Vec<_> = tokio::time::timeout(Duration::from_secs(20), events.collect()).await.unwrap();
    all.into_iter().map(Result::unwrap).filter(|event| event.sequence > 0).collect()
}

async fn create(worker: &LocalWorker) -> SessionId {
    let create = CreateSession {
        config: SessionConfig { instructions: "You are Pebble.".into(), ..Default::default() },
        ..Default::default()
    };
    worker.create_session(&Caller::default(), create).await.unwrap().id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_tell_the_same_story_live_attached_and_replayed() {
    let caller = Caller::default();
    for recent in [4_096, 3] {
        let journal = Arc::new(MemoryJournal::automatic([5; 32]));
        let (worker, engine) = worker(journal, recent);
        let session = create(&worker).await;
        let mut stories = Vec::new();
        for n in 1..=3 {
            let stream = worker.run_turn(&caller, say(&session, "What is a holdfast?", 24)).await.unwrap();
            assert_eq!(stream.turn.number, TurnNumber(n));
            let story = numbered(stream.events).await;
            assert!(story.last().unwrap().kind.is_terminal());
            stories.extend(story);
        }
        let numbers: Vec<_> = stories.iter().map(|event| event.sequence).collect();
        assert_eq!(numbers, (1..=stories.len() as u64).collect::<Vec<_>>());
        let attached = worker.attach_turn(&caller, &session, TurnNumber(2), 0).await.unwrap();
        let second: Vec<_> = stories.iter().filter(|event| event.turn == TurnNumber(2)).cloned().collect();
        assert_eq!(numbered(attached.events).await, second);
        let watch = worker.watch_session(&caller, &session, 1).await.unwrap();
        assert_eq!(numbered(Box::pin(watch.take(stories.len()))).await, stories);
        let page = worker.list_sessions(&caller, ListSessions::default()).await.unwrap();
        assert_eq!(page.elements.iter().map(|session| session.turns).collect::<Vec<_>>(), [3]);
        // Every token of the log but the last sample was computed, each exactly once.
        let turn = worker.get_turn(&caller, &session, TurnNumber(3)).await.unwrap();
        let mut computed = 0;
        for n in 1..=3 {
            let turn = worker.get_turn(&caller, &session, TurnNumber(n)).await.unwrap();
            assert_eq!(turn.usage.recomputed_tokens, 0);
            computed += turn.usage.by_precision.total();
        }
        assert_eq!(computed, turn.usage.context_used - 1);
        engine.shutdown();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_turn_goes_on_in_the_next_process_with_the_same_tokens() {
    let caller = Caller::default();
    let told = |events: &[Event]| {
        let text = events.iter().filter_map(|event| match &event.kind {
            EventKind::TextDelta { text, .. } => Some(text.clone()),
            _ => None,
        });
        text.collect::<String>()
    };
    let seeded = |session: &SessionId| {
        let mut turn = say(session, "Tell me everything.", 200);
        turn.sampling.seed = Some(11);
        turn
    };
    let (whole, engine) = worker(Arc::new(MemoryJournal::automatic([5; 32])), 64);
    let session = create(&whole).await;
    let expected = numbered(whole.run_turn(&caller, seeded(&session)).await.unwrap().events).await;
    engine.shutdown();

    let journal = Arc::new(MemoryJournal::automatic([5; 32]));
    let (first, engine) = worker(journal.clone(), 64);
    let session = create(&first).await;
    let mut stream = first.run_turn(&caller, seeded(&session)).await.unwrap();
    for _ in 0..5 {
        stream.events.next().await.unwrap().unwrap();
    }
    first.drain().await;
    let refused = first.start_turn(&caller, say(&session, "more", 1)).await.unwrap_err();
    assert_eq!(refused.reason, Reason::RuntimeDraining);
    drop(stream);
    engine.shutdown();

    let (second, engine) = worker(journal, 64);
    let stream = second.attach_turn(&caller, &session, TurnNumber(1), 0).await.unwrap();
    let events = numbered(stream.events).await;
    assert_eq!(told(&events), told(&expected));
    assert_eq!(events.len(), expected.len());
    engine.shutdown();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_streams_cancel_if_asked_and_deletion_ends_a_stream() {
    let caller = Caller::default();
    let (worker, engine) = worker(Arc::new(MemoryJournal::automatic([5; 32])), 4_096);
    let session = create(&worker).await;
    let turn = StartTurn { on_disconnect: OnDisconnect::Cancel, ..say(&session, "Go on.", 700) };
    drop(worker.run_turn(&caller, turn).await.unwrap());
    let turn = worker.attach_turn(&caller, &session, TurnNumber(1), 0).await.unwrap();
    let last = numbered(turn.events).await.pop().unwrap();
    match last.kind {
        EventKind::TurnEnded { turn } => assert!(matches!(turn.state, TurnState::Cancelled | TurnState::Completed)),
        other => panic!("{other:?}"),
    }
    let watch = worker.watch_session(&caller, &session, 1).await.unwrap();
    worker.delete_session(&caller, &session, None).await.unwrap();
    let all: Vec<_> = tokio::time::timeout(Duration::from_secs(20), watch.collect()).await.unwrap();
    assert_eq!(all.last().unwrap().as_ref().unwrap_err().reason, Reason::SessionDeleted);
    engine.shutdown();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completion_streams_to_its_end() {
    let (worker, engine) = worker(Arc::new(MemoryJournal::automatic([5; 32])), 4_096);
    let sampling = SamplingOverrides { max_output_tokens: Some(12), temperature: Some(1.0), ..Default::default() };
    let generate = Generate {
        config: SessionConfig { sampling, ..Default::default() },
        items: vec![Item::message(Role::User, "Hello")],
        ..Default::default()
    };
    let stream = worker.generate(&Caller::default(), generate).await.unwrap();
    let all: Vec<_> = tokio::time::timeout(Duration::from_secs(20), stream.collect()).await.unwrap();
    assert!(all.last().unwrap().as_ref().unwrap().kind.is_terminal());
    engine.shutdown();
}
