//! The engine's thread: effects arrive, a full channel and a stopped engine are errors, a shutdown leaves no run open, and a defect
//! ends runs, not the process.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::{config, log, run, start};
use holdfast_backend::{Backend, BackendError, BlockCopy, CopyDone, CopyTicket, StepTicket};
use holdfast_engine::testing::{Call, TokenBackend, expected_tokens, small_device};
use holdfast_engine::{Clock, Effect, Engine, EngineHandle, EngineThread, FinishReason, RunId, SendError};
use holdfast_types::{DeviceDescription, LateInputs, Reason, StepOutput, StepPlan};

fn clock() -> Clock {
    let time = AtomicU64::new(1_000_000);
    Arc::new(move || time.fetch_add(1_000, Ordering::Relaxed))
}

fn begin(backend: Box<dyn Backend>) -> (EngineHandle, Receiver<Effect>) {
    let (sender, effects) = channel();
    let sink = Box::new(move |batch: Vec<Effect>| batch.into_iter().for_each(|effect| drop(sender.send(effect))));
    (EngineThread::start("engine-test", Engine::new(backend, config(16)), clock(), sink).unwrap(), effects)
}

fn next(effects: &Receiver<Effect>) -> Effect {
    effects.recv_timeout(Duration::from_secs(30)).expect("the engine answers")
}

#[test]
fn runs_are_answered_and_the_thread_sleeps_in_between() {
    let device = small_device(4, &[64], 4);
    let (handle, effects) = begin(Box::new(TokenBackend::new(device.clone())));
    for id in 1..4 {
        let asked = run(id, log(0..20), 5);
        let expected = expected_tokens(&device, &asked, 256).unwrap();
        handle.send(start(asked)).unwrap();
        let mut tokens = Vec::new();
        loop {
            match next(&effects) {
                Effect::Sampled { tokens: sampled, .. } => tokens.extend(sampled.iter().map(|token| token.id)),
                Effect::Finished { reason, .. } => break assert_eq!(reason, FinishReason::MaxTokens),
                Effect::Progress { .. } => {}
                Effect::Failed { failure, .. } => panic!("{failure:?}"),
            }
        }
        assert_eq!(tokens, expected);
    }
    handle.shutdown();
    assert_eq!(handle.snapshot().sampled_tokens, 15);
    assert_eq!(handle.send(start(run(9, log(0..3), 1))), Err(SendError::Stopped));
    handle.shutdown();
}

#[test]
fn a_device_that_is_away_is_waited_for() {
    let device = small_device(4, &[64], 4);
    let backend = TokenBackend::new(device.clone());
    backend.faults().add(2, Call::Collect, BackendError::Lost("planted".into()));
    (0..4).for_each(|_| backend.faults().add(0, Call::Submit, BackendError::Lost("still away".into())));
    let (handle, effects) = begin(Box::new(backend));
    let asked = run(1, log(0..20), 5);
    let expected = expected_tokens(&device, &asked, 256).unwrap();
    handle.send(start(asked)).unwrap();
    let mut tokens = Vec::new();
    loop {
        match next(&effects) {
            Effect::Sampled { tokens: sampled, .. } => tokens.extend(sampled.iter().map(|token| token.id)),
            Effect::Finished { .. } => break,
            Effect::Progress { .. } => {}
            Effect::Failed { failure, .. } => panic!("{failure:?}"),
        }
    }
    assert_eq!(tokens, expected);
    handle.shutdown();
}

/// A device that never comes back, and tells of each step that it was tried with.
struct Gone {
    device: DeviceDescription,
    tries: Sender<()>,
}

impl Backend for Gone {
    fn describe(&self) -> &DeviceDescription {
        &self.device
    }
    fn submit(&mut self, _plan: &StepPlan) -> Result<StepTicket, BackendError> {
        let _ = self.tries.send(());
        Err(BackendError::Lost("for ever".into()))
    }
    fn collect(&mut self, _step: StepTicket, _late: &LateInputs) -> Result<StepOutput, BackendError> {
        unreachable!("no step was taken")
    }
    fn begin_copy(&mut self, _copy: BlockCopy) -> Result<CopyTicket, BackendError> {
        unreachable!("nothing was computed")
    }
    fn poll_copies(&mut self) -> Vec<CopyDone> {
        Vec::new()
    }
}

#[test]
fn a_shutdown_does_not_wait_for_a_device_that_is_away() {
    let (tries, tried) = channel();
    let (handle, effects) = begin(Box::new(Gone { device: small_device(4, &[64], 4), tries }));
    handle.send(start(run(1, log(0..20), 5))).unwrap();
    // The run's own step, then steps of nothing: by the third the engine parks.
    (0..3).for_each(|_| tried.recv_timeout(Duration::from_secs(30)).expect("the engine tries the device"));
    let named = std::thread::Builder::new().name("shutdown".to_owned());
    let stopped = named.spawn(move || handle.shutdown()).unwrap();
    let failure = loop {
        match next(&effects) {
            Effect::Failed { failure, .. } => break failure,
            Effect::Progress { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(failure.reason, Reason::RuntimeDraining);
    stopped.join().unwrap();
}

#[test]
fn a_shutdown_ends_every_run_exactly_once() {
    let mut device = small_device(4, &[2048], 4);
    device.limits.context = 8192;
    let (handle, effects) = begin(Box::new(TokenBackend::new(device)));
    (1..=20).for_each(|id| handle.send(start(run(id, log(0..20), 4000))).unwrap());
    while !matches!(next(&effects), Effect::Sampled { .. }) {}
    handle.shutdown();
    let ends: Vec<_> = effects
        .try_iter()
        .filter_map(|effect| match effect {
            Effect::Failed { run, failure, .. } => Some((run, failure.reason)),
            _ => None,
        })
        .collect();
    assert!(ends.iter().all(|(_, reason)| *reason == Reason::RuntimeDraining), "{ends:?}");
    assert_eq!(ends.len(), 20);
    assert_eq!(ends.iter().map(|(run, _)| *run).collect::<BTreeSet<_>>().len(), 20);
}

/// A device with a defect: its n-th step panics; and a gate, told of each step that comes to it, that holds the step until it is
/// opened.
struct Defective {
    inner: TokenBackend,
    steps: u32,
    gate: Arc<Mutex<()>>,
    arrived: Sender<()>,
}

impl Backend for Defective {
    fn describe(&self) -> &DeviceDescription {
        self.inner.describe()
    }
    fn submit(&mut self, plan: &StepPlan) -> Result<StepTicket, BackendError> {
        let _ = self.arrived.send(());
        drop(self.gate.lock());
        self.steps -= 1;
        assert!(self.steps > 0, "planted defect");
        self.inner.submit(plan)
    }
    fn collect(&mut self, step: StepTicket, late: &LateInputs) -> Result<StepOutput, BackendError> {
        self.inner.collect(step, late)
    }
    fn begin_copy(&mut self, copy: BlockCopy) -> Result<CopyTicket, BackendError> {
        self.inner.begin_copy(copy)
    }
    fn poll_copies(&mut self) -> Vec<CopyDone> {
        self.inner.poll_copies()
    }
}

fn defective(steps: u32) -> (Box<Defective>, Arc<Mutex<()>>, Receiver<()>) {
    let gate = Arc::new(Mutex::new(()));
    let (arrived, arrivals) = channel();
    let inner = TokenBackend::new(small_device(4, &[64], 4));
    (Box::new(Defective { inner, steps, gate: Arc::clone(&gate), arrived }), gate, arrivals)
}

#[test]
fn a_panic_fails_every_run_and_hangs_nobody() {
    let (backend, ..) = defective(5);
    let (handle, effects) = begin(backend);
    (1..=6).for_each(|id| handle.send(start(run(id, log(0..9), 100))).unwrap());
    let mut failed = BTreeSet::new();
    while failed.len() < 6 {
        if let Effect::Failed { run, failure, .. } = next(&effects) {
            assert_eq!(failure.reason, Reason::Internal);
            assert!(failure.message.contains("planted defect"), "{}", failure.message);
            assert!(failed.insert(run));
        }
    }
    handle.send(start(run(7, log(0..9), 1))).unwrap();
    assert!(matches!(next(&effects), Effect::Failed { run: RunId(7), .. }), "later runs are answered too");
    handle.shutdown();
}

#[test]
fn a_full_channel_is_an_error_and_not_a_wait() {
    let (backend, gate, arrivals) = defective(u32::MAX);
    let held = gate.lock().unwrap();
    let (handle, effects) = begin(backend);
    // Only a thread that is known to be inside a step takes nothing more from the channel.
    handle.send(start(run(1, log(0..5), 1))).unwrap();
    arrivals.recv_timeout(Duration::from_secs(30)).unwrap();
    let queued = (2..5_000).take_while(|id| handle.send(start(run(*id, log(0..5), 1))).is_ok()).count();
    assert_eq!(queued, 1024, "the channel's bound");
    assert_eq!(handle.send(start(run(6_000, log(0..5), 1))), Err(SendError::Full));
    drop(held);
    let mut ended = 0;
    while ended < 1 + queued {
        ended += usize::from(matches!(next(&effects), Effect::Finished { .. }));
    }
    handle.shutdown();
}
