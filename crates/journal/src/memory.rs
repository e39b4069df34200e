//! A journal in memory for tests and simulation: the same chain and answers, with commits and crashes in the test's hands.
//!
//! In: batches, and the test's word on when they are committed, fail or are lost. Out: the same as from any journal.
//! Deterministic: no thread, no clock, no randomness. Deliberately not here: durability.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use holdfast_types::{Digest, SessionId, SessionState, TenantId, TimeUs};
use tokio::sync::oneshot;

use crate::chain::{self, Stored};
use crate::{AppendFuture, Batch, Durability, Entry, HeadFilter, Journal, JournalError, Lsn, SessionHead};

type Key = (TenantId, SessionId);
type Reply = oneshot::Sender<Result<Lsn, JournalError>>;

/// A journal whose commits a test decides on.
///
/// *Stepped*: batches are pending until [`MemoryJournal::commit`]; nothing pending is ever read. *Automatic*: every batch is
/// committed at once. A crash gives a new journal with what survived; the old one refuses everything from then on, and the
/// futures of what was pending end with an error.
#[derive(Debug)]
pub struct MemoryJournal {
    automatic: bool,
    secret: [u8; 32],
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sessions: BTreeMap<Key, Session>,
    last_lsn: u64,
    pending: VecDeque<Pending>,
    failed: BTreeSet<Key>,
    /// How to take back the commits since the last one that is safe against a loss of power, latest last.
    undo: Vec<Undo>,
    crashed: bool,
}

#[derive(Debug, Default)]
struct Session {
    entries: Vec<Stored>,
    head: Option<SessionHead>,
}

#[derive(Debug)]
enum Pending {
    Append(Batch, Reply),
    Purge(Key, Reply),
}

#[derive(Debug)]
struct Undo {
    key: Key,
    entries: usize,
    head: Option<SessionHead>,
    last_lsn: u64,
}

impl MemoryJournal {
    /// Commits every batch at once.
    pub fn automatic(secret: [u8; 32]) -> Self {
        Self { automatic: true, secret, state: Mutex::default() }
    }

    /// Commits when told to.
    pub fn stepped(secret: [u8; 32]) -> Self {
        Self { automatic: false, secret, state: Mutex::default() }
    }

    /// Batches and purges that wait for [`MemoryJournal::commit`].
    pub fn pending(&self) -> usize {
        self.state().pending.len()
    }

    /// Commits the `most` oldest that are pending, in order, and completes their futures. Returns how many there were.
    pub fn commit(&self, most: usize) -> usize {
        let mut state = self.state();
        let count = most.min(state.pending.len());
        for _ in 0..count {
            state.commit_next();
        }
        count
    }

    /// Everything that is pending fails as a write error would make it: its sessions are refused from now on.
    pub fn fail_pending(&self, problem: &str) {
        let mut state = self.state();
        while let Some(pending) = state.pending.pop_front() {
            let (key, reply) = match pending {
                Pending::Append(batch, reply) => (batch_key(&batch), reply),
                Pending::Purge(key, reply) => (Some(key), reply),
            };
            state.failed.extend(key);
            drop(reply.send(Err(JournalError::Io(problem.to_owned()))));
        }
    }

    /// The process dies: what is pending is lost, what was committed is in the journal that is returned.
    #[must_use]
    pub fn crash(&self) -> Self {
        let mut state = self.state();
        let survived = State {
            sessions: std::mem::take(&mut state.sessions),
            last_lsn: state.last_lsn,
            undo: std::mem::take(&mut state.undo),
            ..State::default()
        };
        *state = State { crashed: true, ..State::default() };
        Self { automatic: self.automatic, secret: self.secret, state: Mutex::new(survived) }
    }

    /// Power fails: beside what is pending, commits since the last one of [`Durability::Power`] are lost too.
    #[must_use]
    pub fn lose_power(&self) -> Self {
        let survivor = self.crash();
        {
            let mut state = survivor.state();
            while let Some(undo) = state.undo.pop() {
                state.last_lsn = undo.last_lsn;
                if undo.entries == 0 {
                    state.sessions.remove(&undo.key);
                } else if let Some(session) = state.sessions.get_mut(&undo.key) {
                    session.entries.truncate(undo.entries);
                    session.head = undo.head;
                }
            }
        }
        survivor
    }

    /// Flips one bit in the stored body at a place. False if there is no such entry.
    pub fn damage(&self, tenant: &TenantId, session: &SessionId, index: usize) -> bool {
        let mut state = self.state();
        let entry = state
            .sessions
            .get_mut(&(tenant.clone(), session.clone()))
            .and_then(|session| session.entries.get_mut(index));
        // `{` (0x7b) with its lowest bit flipped is `z`.
        entry.map(|entry| entry.body.replace_range(..1, "z")).is_some()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand_over(&self, pending: impl FnOnce(Reply) -> Pending) -> AppendFuture {
        let (reply, answer) = oneshot::channel();
        let mut state = self.state();
        if !state.crashed {
            state.pending.push_back(pending(reply));
            if self.automatic {
                state.commit_next();
            }
        }
        Box::pin(
            async move { answer.await.unwrap_or_else(|_| Err(JournalError::Io("the journal has crashed".to_owned()))) },
        )
    }
}

fn batch_key(batch: &Batch) -> Option<Key> {
    batch.entries.first().map(|entry| (entry.tenant.clone(), entry.session.clone()))
}

impl State {
    fn commit_next(&mut self) {
        match self.pending.pop_front() {
            Some(Pending::Append(batch, reply)) => {
                let answer = self.append(&batch);
                if answer.is_err() {
                    self.failed.extend(batch_key(&batch));
                }
                // A caller that went away takes nothing back.
                drop(reply.send(answer));
            }
            Some(Pending::Purge(key, reply)) => drop(reply.send(self.purge(&key))),
            None => {}
        }
    }

    fn append(&mut self, batch: &Batch) -> Result<Lsn, JournalError> {
        let key = batch_key(batch).ok_or_else(|| JournalError::Io("a batch holds at least one entry".to_owned()))?;
        if self.failed.contains(&key) {
            return Err(chain::refused(&key.1));
        }
        let io = |problem: String| JournalError::Io(format!("session {}: {problem}", key.1));
        chain::check_batch(batch).map_err(io)?;
        let bodies: Result<Vec<String>, String> =
            batch.entries.iter().map(|entry| chain::encode(&entry.body)).collect();
        let bodies = bodies.map_err(io)?;
        let session = self.sessions.entry(key.clone()).or_default();
        match batch.durability {
            Durability::Power => self.undo.clear(),
            Durability::Process => self.undo.push(Undo {
                key,
                entries: session.entries.len(),
                head: session.head.clone(),
                last_lsn: self.last_lsn,
            }),
        }
        for (entry, body) in batch.entries.iter().zip(bodies) {
            self.last_lsn += 1;
            let previous = session.entries.last().map_or(Digest::default(), |last| last.hash);
            session.entries.push(chain::seal(entry, body, self.last_lsn, session.entries.len() as u64, previous));
        }
        if let Some(head) = &batch.head {
            session.head = Some(head.clone());
        }
        Ok(Lsn(self.last_lsn))
    }

    fn purge(&mut self, key: &Key) -> Result<Lsn, JournalError> {
        if self.failed.contains(key) {
            return Err(chain::refused(&key.1));
        }
        match self.sessions.remove(key) {
            Some(_) => {
                self.undo.clear();
                Ok(Lsn(self.last_lsn))
            }
            None => Err(JournalError::NotFound { session: key.1.as_str().to_owned() }),
        }
    }
}

impl Journal for MemoryJournal {
    fn append(&self, batch: Batch) -> AppendFuture {
        self.hand_over(|reply| Pending::Append(batch, reply))
    }

    fn read(
        &self,
        tenant: &TenantId,
        session: &SessionId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<Entry>, JournalError> {
        let state = self.state();
        let Some(found) = state.sessions.get(&(tenant.clone(), session.clone())) else {
            return Err(JournalError::NotFound { session: session.as_str().to_owned() });
        };
        let from = usize::try_from(from).unwrap_or(usize::MAX).min(found.entries.len());
        let mut previous = from.checked_sub(1).map_or(Digest::default(), |before| found.entries[before].hash);
        let page = (from as u64..).zip(&found.entries[from..]).take(limit).map(|(index, stored)| {
            let entry = stored
                .clone()
                .open(tenant, session, index, previous)
                .map_err(|problem| JournalError::Corrupt { session: session.as_str().to_owned(), index, problem })?;
            previous = entry.hash;
            Ok(entry)
        });
        page.collect()
    }

    fn head(&self, tenant: &TenantId, session: &SessionId) -> Result<Option<SessionHead>, JournalError> {
        Ok(self.state().sessions.get(&(tenant.clone(), session.clone())).and_then(|found| found.head.clone()))
    }

    fn list(
        &self,
        tenant: &TenantId,
        filter: &HeadFilter,
        after: Option<&SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionHead>, JournalError> {
        let state = self.state();
        let heads = state.sessions.values().filter_map(|session| session.head.as_ref());
        let wanted = heads.filter(|head| {
            head.tenant == *tenant && after.is_none_or(|after| head.session > *after) && matches(filter, head)
        });
        Ok(wanted.take(limit).cloned().collect())
    }

    fn attention(&self, before_us: TimeUs, limit: usize) -> Result<Vec<SessionHead>, JournalError> {
        let state = self.state();
        let heads = state.sessions.values().filter_map(|session| session.head.as_ref());
        let wanted = heads.filter(|head| {
            matches!(head.state, SessionState::Running | SessionState::Deleting)
                || head.expires_us.is_some_and(|time| time < before_us)
        });
        Ok(wanted.take(limit).cloned().collect())
    }

    fn count(&self, tenant: &TenantId) -> Result<u64, JournalError> {
        Ok(self.state().sessions.keys().filter(|(owner, _)| owner == tenant).count() as u64)
    }

    fn purge(&self, tenant: TenantId, session: SessionId) -> AppendFuture {
        self.hand_over(|reply| Pending::Purge((tenant, session), reply))
    }

    fn secret(&self) -> [u8; 32] {
        self.secret
    }
}

fn matches(filter: &HeadFilter, head: &SessionHead) -> bool {
    let state = match filter.states.as_slice() {
        [] => head.state != SessionState::Deleting,
        states => states.contains(&head.state),
    };
    state
        && filter.model.as_ref().is_none_or(|model| head.model == *model)
        && filter.labels.iter().all(|(key, value)| head.labels.get(key) == Some(value))
}
