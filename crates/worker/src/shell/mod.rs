//! The thin shell: one task that owns the core, carries out its effects, and gives it a clock and randomness.
//!
//! In: calls of the [`Worker`](holdfast_worker_api::Worker) trait, effects of engines, commits of the journal. Out: replies and streams. Deliberately not
//! here: any decision about sessions (the core's).

mod drive;
mod follow;
mod observe;
mod replay;
mod worker;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_engine::Command;
use holdfast_journal::Journal;
use holdfast_model::ModelText;
use holdfast_telemetry::{Metrics, RunSpans};
use holdfast_types::{Failure, Limits, Precision, Reason, TimeUs, Turn};
use holdfast_worker_api::{Caller, ModelInfo};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use self::observe::Observer;
use crate::core::{Channel, CoreSettings, Input, Reply, Request, ServedModel, Stats, WorkerCore};
use crate::fold::Languages;
use crate::model_language::TextOfModel;

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> TimeUs + Send + Sync>;

/// Draws fresh random bits.
pub type Entropy = Arc<dyn Fn() -> u128 + Send + Sync>;

/// A served device: its model's text and the way to its engine.
pub struct Device {
    /// What clients are told of the model; `context_limit` is the limit in force.
    pub info: ModelInfo,
    /// The model's text side.
    pub text: Arc<ModelText>,
    /// The precision that tokens are computed with.
    pub precision: Precision,
    /// Hands a command to the device's engine; must not block. A run that is refused fails with what it says.
    pub engine: Box<dyn Fn(Command) -> Result<(), Failure> + Send + Sync>,
    /// KV blocks of the device's first group, and how many of them hold something.
    pub kv_blocks: Box<dyn Fn() -> (u32, u32) + Send + Sync>,
}

/// What a worker is set to.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// Limits in force.
    pub limits: Limits,
    /// Release version.
    pub version: String,
    /// Version and source revision.
    pub build: String,
    /// Names of what this build can do.
    pub features: Vec<String>,
    /// Most sessions at rest that stay loaded.
    pub sessions_loaded: usize,
    /// Most requests that wait for one session to be loaded.
    pub requests_waiting: usize,
    /// Events of a session that stay in memory.
    pub recent_events: usize,
    /// Milliseconds between two looks for sessions that expire.
    pub attention_interval_ms: u64,
    /// Where turns and generations are counted.
    pub metrics: Arc<Metrics>,
    /// Where engines' steps find the spans of what they compute for; shared with the engines' observers.
    pub runs: RunSpans,
}

impl Default for WorkerSettings {
    /// For one machine.
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            features: Vec::new(),
            sessions_loaded: 1_024,
            requests_waiting: 256,
            recent_events: 4_096,
            attention_interval_ms: 1_000,
            metrics: Arc::default(),
            runs: RunSpans::default(),
        }
    }
}

/// Inputs that may wait for the core; a sender beyond that waits.
const INPUTS_MAX: usize = 4_096;

/// Requests whose constraints are compiled at once; others wait, so that devices and streams keep the processor.
const COMPILES_MAX: usize = 2;

enum Message {
    Ask { caller: Caller, request: Box<Request>, reply: oneshot::Sender<Result<Reply, Failure>> },
    Input(Input),
}

/// The stream of a completion is over.
struct CompletionEnd {
    completion: u64,
    /// As the terminal event told it; `None` when the reader went away before.
    turn: Option<Box<Turn>>,
}

/// Where engines report to. Made before the worker, because engines are.
#[derive(Clone)]
pub struct WorkerPort(mpsc::Sender<Message>);

/// The other end of a [`WorkerPort`].
pub struct WorkerInbox(mpsc::Receiver<Message>);

impl WorkerPort {
    /// A port and its inbox.
    pub fn new() -> (Self, WorkerInbox) {
        let (sender, receiver) = mpsc::channel(INPUTS_MAX);
        (Self(sender), WorkerInbox(receiver))
    }

    /// What an engine's thread hands its effects to. It waits while the worker is behind; the worker never waits for an engine.
    pub fn engine_sink(&self) -> holdfast_engine::EffectSink {
        let sender = self.0.clone();
        Box::new(move |effects| {
            // After the worker's end nobody listens.
            let _ = sender.blocking_send(Message::Input(Input::Engine { effects }));
        })
    }
}

/// Sessions on this node: the worker in one process with its gateway. Clones of its `Arc` may be used from any task.
pub struct LocalWorker {
    inner: Arc<Inner>,
}

struct Inner {
    inputs: mpsc::Sender<Message>,
    completions: mpsc::UnboundedSender<CompletionEnd>,
    journal: Arc<dyn Journal>,
    languages: Languages,
    settings: WorkerSettings,
    devices: Arc<Vec<Device>>,
    clock: Clock,
    started_us: TimeUs,
    stats: Mutex<Stats>,
    channels: Mutex<HashMap<Channel, watch::Sender<u64>>>,
    drained: watch::Sender<bool>,
    streams: AtomicU64,
    compiles: Arc<Semaphore>,
}

impl LocalWorker {
    /// Starts the worker's task on the current tokio runtime. Turns that a crash interrupted go on by themselves.
    pub fn start(
        settings: WorkerSettings,
        (port, inbox): (WorkerPort, WorkerInbox),
        journal: Arc<dyn Journal>,
        devices: Vec<Device>,
        (clock, entropy): (Clock, Entropy),
    ) -> Self {
        let models = devices.iter().map(|device| ServedModel {
            info: device.info.clone(),
            language: Arc::new(TextOfModel::new(device.text.clone())),
            precision: device.precision,
        });
        let core = CoreSettings {
            limits: settings.limits.clone(),
            build: settings.build.clone(),
            sessions_loaded: settings.sessions_loaded,
            requests_waiting: settings.requests_waiting,
            recent_events: settings.recent_events,
            attention_interval_us: settings.attention_interval_ms.saturating_mul(1_000),
            secret: journal.secret(),
        };
        let core = WorkerCore::new(core, models.collect());
        let default_model = devices.iter().find(|device| device.info.is_default).map(|device| device.info.name.clone());
        let observer =
            Observer::new(Arc::clone(&settings.metrics), settings.runs.clone(), default_model.unwrap_or_default());
        let (completions, dropped) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            inputs: port.0,
            completions,
            journal,
            languages: core.languages(),
            settings,
            devices: Arc::new(devices),
            started_us: clock(),
            clock,
            stats: Mutex::new(Stats::default()),
            channels: Mutex::new(HashMap::new()),
            drained: watch::Sender::new(false),
            streams: AtomicU64::new(0),
            compiles: Arc::new(Semaphore::new(COMPILES_MAX)),
        });
        tokio::spawn(drive::run(Arc::downgrade(&inner), (core, observer), inbox.0, dropped, entropy));
        Self { inner }
    }

    /// Brings everything to a step boundary: new turns are refused, running ones stop and go on after the next start, and what
    /// was written is committed when this returns.
    pub async fn drain(&self) {
        let mut drained = self.inner.drained.subscribe();
        if self.inner.inputs.send(Message::Input(Input::Drain)).await.is_ok() {
            // An error means that the worker is gone, and with it everything that could run.
            let _ = drained.wait_for(|drained| *drained).await;
        }
    }

    /// Figures for gauges.
    pub fn stats(&self) -> Stats {
        *lock(&self.inner.stats)
    }

    /// Streams that are open.
    pub fn open_streams(&self) -> u64 {
        self.inner.streams.load(Ordering::Relaxed)
    }
}

impl Inner {
    async fn ask(&self, caller: &Caller, request: Request) -> Result<Reply, Failure> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Ask { caller: caller.clone(), request: Box::new(request), reply };
        self.inputs.send(message).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    fn subscribe(&self, channel: &Channel) -> watch::Receiver<u64> {
        let mut channels = lock(&self.channels);
        channels.entry(channel.clone()).or_insert_with(|| watch::Sender::new(0)).subscribe()
    }

    fn announce(&self, channel: &Channel) {
        let mut channels = lock(&self.channels);
        if let Some(sender) = channels.get(channel) {
            if sender.receiver_count() == 0 {
                channels.remove(channel);
            } else {
                sender.send_modify(|count| *count += 1);
            }
        }
    }

    fn unsubscribe(&self, channel: &Channel, receiver: watch::Receiver<u64>) {
        drop(receiver);
        let mut channels = lock(&self.channels);
        if channels.get(channel).is_some_and(|sender| sender.receiver_count() == 0) {
            channels.remove(channel);
        }
    }
}

fn stopped() -> Failure {
    Failure::new(Reason::RuntimeDraining, "the worker has stopped")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
