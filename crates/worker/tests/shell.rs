//! The shell over a real engine, a real journal and the built-in model's text; the device draws tokens from hashes.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod local;

use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::EngineHandle;
use holdfast_journal::{Journal, MemoryJournal};
use holdfast_types::{
    Event, EventKind, Item, OnDisconnect, Reason, Role, SamplingOverrides, SessionConfig, SessionId, TurnNumber,
    TurnState,
};
use holdfast_worker::{LocalWorker, WorkerSettings};
use holdfast_worker_api::{Caller, CancelTurn, CreateSession, EventStream, Generate, ListSessions, StartTurn, Worker};
use tokio_stream::StreamExt;

fn worker(journal: Arc<dyn Journal>, recent_events: usize) -> (LocalWorker, EngineHandle) {
    local::worker(journal, WorkerSettings { recent_events, ..WorkerSettings::default() })
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
async fn a_completion_streams_to_its_end_computes_all_of_its_input_and_leaves_nothing_of_use() {
    let caller = Caller::default();
    let (worker, engine) = worker(Arc::new(MemoryJournal::automatic([5; 32])), 4_096);
    let sampling = SamplingOverrides { max_output_tokens: Some(12), temperature: Some(1.0), ..Default::default() };
    // A session of the same tenant has said the same before.
    let session = create(&worker).await;
    let text = "Where do I find the answer to a question that is longer than two blocks of sixteen tokens each?";
    numbered(worker.run_turn(&caller, say(&session, text, 4)).await.unwrap().events).await;
    for _ in 0..2 {
        let config =
            SessionConfig { sampling: sampling.clone(), instructions: "You are Pebble.".into(), ..Default::default() };
        let items = vec![Item::message(Role::User, text)];
        let stream = worker.generate(&caller, Generate { config, items, ..Default::default() }).await.unwrap();
        let all: Vec<_> = tokio::time::timeout(Duration::from_secs(20), stream.collect()).await.unwrap();
        match &all.last().unwrap().as_ref().unwrap().kind {
            EventKind::TurnEnded { turn } => {
                let usage = &turn.usage;
                assert!(usage.input_tokens > 32, "more than two full blocks: {usage:?}");
                assert_eq!((usage.computed_tokens, usage.cached.total()), (usage.input_tokens, 0));
            }
            other => panic!("{other:?}"),
        }
    }
    let usage = numbered(worker.run_turn(&caller, say(&session, "And?", 4)).await.unwrap().events).await;
    match &usage.last().unwrap().kind {
        EventKind::TurnEnded { turn } => assert_eq!((turn.usage.recomputed_tokens, turn.usage.cached.shared), (0, 0)),
        other => panic!("{other:?}"),
    }
    engine.shutdown();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_turn_holds_nothing_of_the_device() {
    let caller = Caller::default();
    let (worker, engine) = worker(Arc::new(MemoryJournal::automatic([5; 32])), 4_096);
    let session = create(&worker).await;
    let mut stream = worker.run_turn(&caller, say(&session, "Go on.", 700)).await.unwrap();
    while let Some(event) = stream.events.next().await {
        if matches!(event.unwrap().kind, EventKind::TextDelta { .. }) {
            break;
        }
    }
    let cancel = CancelTurn { session: session.clone(), turn: None };
    match worker.cancel_turn(&caller, cancel).await {
        Ok(turn) => assert_eq!(turn.state, TurnState::Cancelled),
        Err(failure) => assert_eq!(failure.reason, Reason::TurnNotRunning, "it may have ended by itself"),
    }
    // The engine shows itself after the poll whose effects ended the turn.
    for _ in 0..20_000 {
        if engine.snapshot().running == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let snapshot = engine.snapshot();
    assert_eq!((snapshot.running, snapshot.waiting, snapshot.blocks.used), (0, 0, 0));
    engine.shutdown();
}
