//! The task that owns the core: inputs in, effects out, in order.
//!
//! Deliberately not here: waiting for anything but the next input or the core's alarm; the journal's futures and blocking
//! reads run in tasks of their own and come back as inputs.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use holdfast_engine::{Command, Effect as EngineEffect};
use holdfast_journal::{Journal, JournalError, NewEntry};
use holdfast_telemetry::names;
use holdfast_types::{Failure, SessionId, TenantId, Usage};
use tokio::sync::{mpsc, oneshot};

use super::observe::Observer;
use super::{CompletionEnd, Entropy, Inner, Message, lock};
use crate::core::{Effect, Input, Reply, Request, RequestId, WorkerCore};

/// Inputs of one poll.
const BATCH_MAX: usize = 256;
/// Entries of one read of a journal.
pub(super) const READ_ENTRIES: usize = 1_024;
/// Sessions of one look for those that need attention; more come with the next.
const ATTENTION_MAX: usize = 16_384;

/// The longest sleep: a clock that was set is noticed.
const SLEEP_MAX: Duration = Duration::from_secs(1);

type Waiting = HashMap<RequestId, oneshot::Sender<Result<Reply, Failure>>>;

/// Runs until the worker is dropped.
pub(super) async fn run(
    worker: Weak<Inner>,
    (mut core, mut observer): (WorkerCore, Observer),
    mut inbox: mpsc::Receiver<Message>,
    mut dropped: mpsc::UnboundedReceiver<CompletionEnd>,
    entropy: Entropy,
) {
    let mut waiting = Waiting::new();
    let mut requests = 0_u64;
    let mut messages = Vec::new();
    let mut inputs = Vec::new();
    loop {
        let Some(inner) = worker.upgrade() else { return };
        let now = (inner.clock)();
        for message in messages.drain(..) {
            match message {
                Message::Input(input) => {
                    observe(&mut observer, &input);
                    inputs.push(input);
                }
                Message::Ask { caller, request, reply } => {
                    requests += 1;
                    let id = RequestId(requests);
                    waiting.insert(id, reply);
                    if let Request::Generate(generate) = &*request {
                        observer.completion_asked(id, &caller, generate, now);
                    }
                    inputs.push(Input::Request { id, caller, request, entropy: entropy() });
                }
            }
        }
        let mut effects = core.poll(now, std::mem::take(&mut inputs));
        while !effects.is_empty() {
            let mut refused = Vec::new();
            for effect in effects {
                note(&mut observer, &core, &effect);
                refused.extend(carry_out(&inner, &mut waiting, effect));
            }
            observer.engine_reported(&refused);
            effects =
                if refused.is_empty() { Vec::new() } else { core.poll(now, vec![Input::Engine { effects: refused }]) };
        }
        *lock(&inner.stats) = core.stats();
        let sleep = Duration::from_micros(core.wake_at().saturating_sub((inner.clock)())).min(SLEEP_MAX);
        // Held only while there is something to do: the last owner's drop ends this task.
        drop(inner);
        tokio::select! {
            count = inbox.recv_many(&mut messages, BATCH_MAX) => if count == 0 { return },
            Some(CompletionEnd { completion, turn }) = dropped.recv() => {
                observer.completion_ended(completion, turn, now);
                inputs.push(Input::CompletionDropped { completion });
            }
            () = tokio::time::sleep(sleep) => {}
        }
    }
}

/// Tells the observer of what comes in.
fn observe(observer: &mut Observer, input: &Input) {
    match input {
        Input::Committed { ticket, result } => observer.committed(*ticket, result.is_ok()),
        Input::Engine { effects } => observer.engine_reported(effects),
        Input::Loaded { tenant, session, entries: Ok(entries), .. } => observer.loaded(tenant, session, entries),
        _ => {}
    }
}

/// Tells the observer of what is to be done.
fn note(observer: &mut Observer, core: &WorkerCore, effect: &Effect) {
    match effect {
        Effect::Reply { id, result } => observer.replied(*id, result),
        Effect::Append { ticket, batch } => observer.appended(*ticket, batch),
        Effect::Engine { command: Command::Run(run), .. } => observer.running(run, core.turn_of(run.run)),
        Effect::Drained => observer.drained(),
        _ => {}
    }
}

/// Carries an effect out; a run that its engine refuses comes back as its failure.
fn carry_out(inner: &Arc<Inner>, waiting: &mut Waiting, effect: Effect) -> Option<EngineEffect> {
    match effect {
        Effect::Reply { id, result } => {
            // Whoever asked may have gone; a completion that nobody will read goes with them.
            if let Some(reply) = waiting.remove(&id)
                && let Err(Ok(Reply::Completion(completion))) = reply.send(result)
            {
                let _ = inner.completions.send(CompletionEnd { completion, turn: None });
            }
        }
        Effect::Append { ticket, batch } => {
            let commit = inner.journal.append(batch);
            come_back(inner, async move { Input::Committed { ticket, result: commit.await.map(|_| ()) } });
        }
        Effect::Compile { ticket, work } => {
            let compiles = Arc::clone(&inner.compiles);
            come_back(inner, async move {
                // It is never closed.
                let _permit = compiles.acquire().await;
                // What went wrong in there goes wrong again, and is told, where the request is looked at.
                let _ = tokio::task::spawn_blocking(move || work.run()).await;
                Input::Compiled { ticket }
            });
        }
        Effect::Engine { device, command } => {
            let run = if let Command::Run(run) = &command { Some(run.run) } else { None };
            let result = inner.devices.get(device).map_or(Ok(()), |device| (device.engine)(command));
            if let (Err(failure), Some(run)) = (result, run) {
                return Some(EngineEffect::Failed { run, failure, usage: Box::new(Usage::default()) });
            }
        }
        Effect::Load { tenant, session, count } => {
            let journal = inner.journal.clone();
            come_back(inner, async move {
                let key = (tenant.clone(), session.clone());
                let read = tokio::task::spawn_blocking(move || {
                    let session = key.1.as_str();
                    let span =
                        tracing::debug_span!(names::SPAN_SESSION_LOAD, { names::GEN_AI_CONVERSATION_ID } = session);
                    span.in_scope(|| load(&*journal, &key.0, &key.1, count))
                });
                let read = read.await;
                let (entries, tenant_sessions) = match read {
                    Ok(read) => read,
                    Err(error) => (Err(JournalError::Io(error.to_string())), None),
                };
                Input::Loaded { tenant, session, entries, tenant_sessions }
            });
        }
        Effect::Attention { before_us } => {
            let journal = inner.journal.clone();
            come_back(inner, async move {
                let found = tokio::task::spawn_blocking(move || journal.attention(before_us, ATTENTION_MAX)).await;
                let heads = match found {
                    Ok(Ok(heads)) => heads,
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "sessions that need attention could not be looked for");
                        Vec::new()
                    }
                    Err(_) => Vec::new(),
                };
                Input::Attention { heads }
            });
        }
        Effect::Purge { tenant, session } => {
            let purge = inner.journal.purge(tenant.clone(), session.clone());
            come_back(inner, async move { Input::Purged { tenant, session, result: purge.await.map(|_| ()) } });
        }
        Effect::Announce { channel } => inner.announce(&channel),
        Effect::Drained => {
            inner.drained.send_replace(true);
        }
    }
    None
}

fn come_back(inner: &Arc<Inner>, work: impl Future<Output = Input> + Send + 'static) {
    let inputs = inner.inputs.clone();
    tokio::spawn(async move {
        let input = work.await;
        // After the worker's end nobody listens.
        let _ = inputs.send(Message::Input(input)).await;
    });
}

type Read = (Result<Vec<NewEntry>, JournalError>, Option<u64>);

fn load(journal: &dyn Journal, tenant: &TenantId, session: &SessionId, count: bool) -> Read {
    let sessions = if count { journal.count(tenant).ok() } else { None };
    let mut all = Vec::new();
    loop {
        match journal.read(tenant, session, all.len() as u64, READ_ENTRIES) {
            Ok(entries) => {
                let last = entries.len() < READ_ENTRIES;
                all.extend(entries.into_iter().map(|entry| entry.entry));
                if last {
                    return (Ok(all), sessions);
                }
            }
            Err(error) => return (Err(error), sessions),
        }
    }
}
