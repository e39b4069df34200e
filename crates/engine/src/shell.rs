//! The thread that drives an engine: nothing but a channel in, a sink out, and a clock.
//!
//! In: commands through an [`EngineHandle`]. Out: effects to a sink, snapshots to whoever asks. Deliberately not here: any decision
//! about runs.
//!
//! - It sleeps while the engine has no work, or until a device that is away is to be tried again, and takes everything that waits in the channel before each step.
//! - The channel is bounded and sending never blocks: a full channel is an error for the sender to name.
//! - A panic in the engine is a defect of ours and ends the engine, not the process: every run that was open fails with
//!   `INTERNAL`, and so does every later one, until the runtime is restarted.
//! - A shutdown finishes the step in progress, fails the rest with `RUNTIME_DRAINING`, and waits for the thread.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use holdfast_types::{Failure, Reason, TimeUs, Usage};

use crate::{Command, Effect, Engine, EngineSnapshot, NextPoll, RunId};

/// Commands that may wait for the engine. It empties the channel before every step.
const COMMANDS_MAX: usize = 1024;

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> TimeUs + Send + Sync>;

/// Takes the effects of each poll, in order. Runs on the engine's thread: it must be quick and must not wait for the engine.
pub type EffectSink = Box<dyn FnMut(Vec<Effect>) + Send>;

/// Why a command was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Too many commands wait.
    #[error("{COMMANDS_MAX} commands wait for the engine")]
    Full,
    /// The engine was shut down.
    #[error("the engine was shut down")]
    Stopped,
}

/// Starts engines' threads.
#[derive(Debug)]
pub struct EngineThread;

/// Speaks to an engine's thread. Clones speak to the same one.
#[derive(Clone)]
pub struct EngineHandle {
    commands: SyncSender<Message>,
    shared: Arc<Shared>,
}

struct Shared {
    stopping: AtomicBool,
    snapshot: Mutex<EngineSnapshot>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

enum Message {
    Command(Command),
    /// Look at `stopping`.
    Wake,
}

impl Message {
    fn command(self) -> Option<Command> {
        match self {
            Self::Command(command) => Some(command),
            Self::Wake => None,
        }
    }
}

impl EngineThread {
    /// Starts a thread of that name that owns `engine`.
    ///
    /// # Errors
    /// When the system refuses another thread.
    pub fn start(name: &str, engine: Engine, clock: Clock, effects: EffectSink) -> std::io::Result<EngineHandle> {
        let (sender, receiver) = sync_channel(COMMANDS_MAX);
        let shared = Arc::new(Shared {
            stopping: AtomicBool::new(false),
            snapshot: Mutex::new(engine.snapshot()),
            thread: Mutex::new(None),
        });
        let drive = Drive { engine, open: BTreeSet::new(), clock, effects, shared: Arc::clone(&shared) };
        let thread = Builder::new().name(name.to_owned()).spawn(move || drive.run(&receiver))?;
        *lock(&shared.thread) = Some(thread);
        Ok(EngineHandle { commands: sender, shared })
    }
}

impl EngineHandle {
    /// Hands a command over; never blocks.
    ///
    /// # Errors
    /// [`SendError`] when the channel is full or the engine was shut down.
    pub fn send(&self, command: Command) -> Result<(), SendError> {
        if self.shared.stopping.load(Ordering::Acquire) {
            return Err(SendError::Stopped);
        }
        self.commands.try_send(Message::Command(command)).map_err(|error| match error {
            TrySendError::Full(_) => SendError::Full,
            TrySendError::Disconnected(_) => SendError::Stopped,
        })
    }

    /// The engine at the end of its last poll.
    pub fn snapshot(&self) -> EngineSnapshot {
        *lock(&self.shared.snapshot)
    }

    /// Finishes the step in progress, fails every open run with `RUNTIME_DRAINING`, and waits for the thread to end. Called again,
    /// or from within the effect sink, it does not wait twice or for itself.
    pub fn shutdown(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        // A full channel needs no waking: the thread is awake.
        let _ = self.commands.try_send(Message::Wake);
        let mut thread = lock(&self.shared.thread);
        if thread.as_ref().is_some_and(|thread| thread.thread().id() != std::thread::current().id())
            && let Some(thread) = thread.take()
        {
            // Panics of the engine are caught inside; one of the sink has been reported by the runtime's hook.
            let _ = thread.join();
        }
    }
}

/// The thread's own state.
struct Drive {
    engine: Engine,
    /// Runs that were handed over and have not ended.
    open: BTreeSet<RunId>,
    clock: Clock,
    effects: EffectSink,
    shared: Arc<Shared>,
}

impl Drive {
    fn run(mut self, commands: &Receiver<Message>) {
        let mut defect: Option<Failure> = None;
        loop {
            let next = if defect.is_some() { NextPoll::OnCommand } else { self.engine.next_poll() };
            let Some(taken) = receive(commands, next, &self.clock) else { break };
            self.note(&taken);
            // What was taken and not begun fails with all that is open.
            if self.shared.stopping.load(Ordering::Acquire) {
                break;
            }
            let now = (self.clock)();
            if defect.is_none() {
                match catch_unwind(AssertUnwindSafe(|| (self.engine.poll(now, taken), self.engine.snapshot()))) {
                    Ok((effects, snapshot)) => {
                        *lock(&self.shared.snapshot) = snapshot;
                        self.report(effects);
                    }
                    Err(panic) => defect = Some(died(panic.as_ref())),
                }
            }
            if let Some(failure) = &defect {
                self.fail_open(failure);
            }
        }
        let now = (self.clock)();
        let drained =
            if defect.is_none() { catch_unwind(AssertUnwindSafe(|| self.engine.drain(now))).ok() } else { None };
        self.report(drained.unwrap_or_default());
        self.note(&receive_now(commands));
        self.fail_open(&Failure::new(Reason::RuntimeDraining, "the runtime is shutting down"));
    }

    /// Remembers the runs among what was taken.
    fn note(&mut self, commands: &[Command]) {
        self.open.extend(commands.iter().filter_map(|command| match command {
            Command::Run(run) => Some(run.run),
            Command::Cancel { .. } | Command::Forget { .. } => None,
        }));
    }

    fn report(&mut self, effects: Vec<Effect>) {
        for effect in &effects {
            if let Effect::Finished { run, .. } | Effect::Failed { run, .. } = effect {
                self.open.remove(run);
            }
        }
        if !effects.is_empty() {
            (self.effects)(effects);
        }
    }

    fn fail_open(&mut self, failure: &Failure) {
        let failed = |run| Effect::Failed { run, failure: failure.clone(), usage: Box::new(Usage::default()) };
        let effects: Vec<Effect> = std::mem::take(&mut self.open).into_iter().map(failed).collect();
        if !effects.is_empty() {
            (self.effects)(effects);
        }
    }
}

/// Everything that waits in the channel, after waiting for the first of it unless the engine wants a poll before. `None` when nobody is
/// left to send and the engine waits for a command.
fn receive(commands: &Receiver<Message>, next: NextPoll, clock: &Clock) -> Option<Vec<Command>> {
    let first = match next {
        NextPoll::Now => None,
        NextPoll::OnCommand => Some(commands.recv().ok()?),
        NextPoll::At(time) => match commands.recv_timeout(Duration::from_micros(time.saturating_sub(clock()))) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            // Nobody can cancel what waits for the device, and nobody hears of it.
            Err(RecvTimeoutError::Disconnected) => return None,
        },
    };
    let mut taken: Vec<Command> = first.and_then(Message::command).into_iter().collect();
    taken.extend(receive_now(commands));
    Some(taken)
}

/// What waits in the channel. Bounded: senders may be as quick as this loop.
fn receive_now(commands: &Receiver<Message>) -> Vec<Command> {
    commands.try_iter().take(COMMANDS_MAX).filter_map(Message::command).collect()
}

fn died(panic: &(dyn std::any::Any + Send)) -> Failure {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    let text = text.unwrap_or("no message");
    tracing::error!(panic = text, "the engine died");
    Failure::new(Reason::Internal, format!("the engine died of a defect: {text}; restart the runtime"))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
