//! The forward pass, at hand or at work beside the device's owner.
//!
//! In: batches. Out: their logits. Deliberately not here: which steps are worth it, and their samples. The pass is handed over to a thread of its own
//! and back, so that nobody shares it. Both sides look for the other for a while before they sleep: between the steps of a small
//! model there is less time than waking takes.

use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, SendError, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::NeuronError;
use crate::forward::{Forward, Row, Tables};
use crate::kv::GroupPool;
use crate::pool::spin;

/// Rows of a step in the order in which they run.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) rows: Vec<Row>,
    /// By sequence.
    pub(crate) tables: Vec<Tables>,
    /// Rows whose logits are wanted.
    pub(crate) wanted: Vec<usize>,
}

/// What computes, and what it reads and writes.
#[derive(Debug)]
pub(crate) struct Pass {
    pub(crate) forward: Forward,
    pub(crate) kv: Vec<GroupPool>,
}

impl Pass {
    /// Computes a batch; its logits, `[wanted][vocab_size]`, stay until the next. Returns the time that it took.
    #[expect(clippy::disallowed_methods, reason = "a device measures its own time; nothing is decided by it")]
    pub(crate) fn run(&mut self, batch: &Batch) -> Duration {
        let begun = Instant::now();
        self.forward.run(&batch.rows, &batch.tables, &batch.wanted, &mut self.kv);
        begun.elapsed()
    }
}

/// A [`Pass`] that can be sent off to compute.
#[derive(Debug)]
pub(crate) struct Aside {
    /// Not there while the thread has it.
    pass: Option<Box<Pass>>,
    /// What the thread took for the last batch that it computed.
    took: Duration,
    thread: Option<Thread>,
}

/// The thread, and the two ways between it and the owner.
#[derive(Debug)]
struct Thread {
    work: SyncSender<(Box<Pass>, Batch)>,
    done: Receiver<(Box<Pass>, Duration)>,
    handle: JoinHandle<()>,
}

impl Aside {
    /// Starts the thread, if there is one to be.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn new(pass: Pass, ordinal: u32, with_thread: bool) -> Result<Self, NeuronError> {
        let thread = with_thread.then(|| Thread::start(ordinal)).transpose()?;
        Ok(Self { pass: Some(Box::new(pass)), took: Duration::ZERO, thread })
    }

    /// The pass; waits for it where it is at work.
    pub(crate) fn pass(&mut self) -> &mut Pass {
        let Self { pass, took, thread } = self;
        pass.get_or_insert_with(|| {
            let back = thread.as_ref().and_then(|thread| receive(&thread.done));
            let Some((pass, time)) = back else { Thread::panicked(thread.take()) };
            *took = time;
            pass
        })
    }

    /// Whether [`Aside::send_off`] returns before its batch is computed.
    pub(crate) fn has_thread(&self) -> bool {
        self.thread.is_some()
    }

    /// Begins to compute a batch. With no thread it is computed here and now.
    pub(crate) fn send_off(&mut self, batch: Batch) {
        self.pass();
        let sent = match (&self.thread, self.pass.take()) {
            (Some(thread), Some(pass)) => thread.work.send((pass, batch)),
            (_, pass) => {
                self.pass = pass;
                self.took = self.pass().run(&batch);
                return;
            }
        };
        if let Err(SendError((pass, batch))) = sent {
            self.took = self.pass.insert(pass).run(&batch);
        }
    }

    /// Waits for the batch that it was sent off with, and returns the time that it took.
    pub(crate) fn wait(&mut self) -> Duration {
        self.pass();
        self.took
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let Some(Thread { work, done, handle }) = self.thread.take() {
            drop((work, done));
            // A panic of a batch that nobody waits for is nobody's.
            let _ = handle.join();
        }
    }
}

impl Thread {
    fn start(ordinal: u32) -> Result<Self, NeuronError> {
        let (work, begun) = sync_channel::<(Box<Pass>, Batch)>(1);
        let (ended, done) = sync_channel(1);
        let compute = move || {
            while let Some((mut pass, batch)) = receive(&begun) {
                let took = pass.run(&batch);
                if ended.send((pass, took)).is_err() {
                    return;
                }
            }
        };
        let handle = std::thread::Builder::new().name(format!("neuron{ordinal}-aside")).spawn(compute)?;
        Ok(Self { work, done, handle })
    }

    /// It ended while it had the pass, which it does by panicking only.
    fn panicked(thread: Option<Self>) -> ! {
        match thread.map(|thread| thread.handle.join()) {
            Some(Err(panic)) => resume_unwind(panic),
            Some(Ok(())) | None => {
                unreachable!("the pass is with the thread, which ends when it panics or its owner goes")
            }
        }
    }
}

/// The next message; nothing when no more will come.
fn receive<T>(from: &Receiver<T>) -> Option<T> {
    let mut received = Err(TryRecvError::Empty);
    spin(|| {
        received = from.try_recv();
        !matches!(received, Err(TryRecvError::Empty))
    });
    match received {
        Ok(message) => Some(message),
        Err(TryRecvError::Empty) => from.recv().ok(),
        Err(TryRecvError::Disconnected) => None,
    }
}
