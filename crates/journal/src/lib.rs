//! The durable session log: the truth that everything else is a cache of.
//!
//! In: batches of entries from a worker. Out: their commit, and entries to fold. Deliberately not here: what entries mean
//! (the worker folds them) and rendering or tokens' values.
#![forbid(unsafe_code)]

mod bias;
mod chain;
mod entry;
mod memory;
mod sqlite;

pub use entry::{Body, Entry, FORMAT, Lsn, NewEntry, RequestMark, SessionMutable, TurnRequest};
pub use memory::MemoryJournal;
pub use sqlite::{CommitReport, OnCommit, SqliteJournal, SqliteSettings};

use std::future::Future;
use std::pin::Pin;

use holdfast_types::{SessionId, SessionState, TenantId, TimeUs};
use serde::{Deserialize, Serialize};

/// How safe a batch must be when its commit is reported. Every batch is atomic and survives a crash of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Durability {
    /// Survives a crash of the process (streaming).
    #[default]
    Process,
    /// Survives a loss of power (a session's creation, a turn's acceptance and end).
    Power,
}

/// Entries that are committed together or not at all, of one session.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// In order; at least one.
    pub entries: Vec<NewEntry>,
    /// The session's row for listings after these entries; `None` leaves it as it is.
    pub head: Option<SessionHead>,
    /// How safe.
    pub durability: Durability,
}

/// What listings show without folding a session: derived from the entries, replaced whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionHead {
    /// Whose session.
    pub tenant: TenantId,
    /// Which session.
    pub session: SessionId,
    /// What it is doing.
    pub state: SessionState,
    /// Name of its model.
    pub model: String,
    /// Created.
    pub created_us: TimeUs,
    /// Last changed.
    pub updated_us: TimeUs,
    /// Due to be looked after at this time: the soonest of expiry, idle timeout and the deadlines of its open turns.
    pub expires_us: Option<TimeUs>,
    /// The client's own pairs.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Turns so far.
    pub turns: u32,
    /// Tokens in its log.
    pub tokens: u32,
}

/// The commit of a batch: the position of its last entry.
pub type AppendFuture = Pin<Box<dyn Future<Output = Result<Lsn, JournalError>> + Send>>;

/// A durable log of sessions. One writer; batches are committed in the order of the calls.
pub trait Journal: Send + Sync {
    /// Hands over a batch. The future is ready once it is committed; dropping it does not take the batch back. After an error
    /// the journal accepts nothing more of that session until it is opened again.
    fn append(&self, batch: Batch) -> AppendFuture;

    /// Entries of one session in order, from place `from` on, at most `limit`; fewer only at the end. Blocking.
    ///
    /// What is returned is verified from its first entry on; that a whole log holds is known once it is read from 0 to its end.
    ///
    /// # Errors
    /// [`JournalError::NotFound`] when there is no such session, [`JournalError::Corrupt`] when a hash or a body does not hold.
    fn read(&self, tenant: &TenantId, session: &SessionId, from: u64, limit: usize)
    -> Result<Vec<Entry>, JournalError>;

    /// The row of one session. Blocking.
    ///
    /// # Errors
    /// When the journal cannot be read.
    fn head(&self, tenant: &TenantId, session: &SessionId) -> Result<Option<SessionHead>, JournalError>;

    /// Rows of a tenant's sessions in the order of their ids, after `after`, that match, at most `limit`. Blocking.
    ///
    /// # Errors
    /// When the journal cannot be read.
    fn list(
        &self,
        tenant: &TenantId,
        filter: &HeadFilter,
        after: Option<&SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionHead>, JournalError>;

    /// Every session, of any tenant, that is not at rest (running, deleting) or that expires before `before_us`: what a worker
    /// looks after when it starts and from time to time. Blocking.
    ///
    /// # Errors
    /// When the journal cannot be read.
    fn attention(&self, before_us: TimeUs, limit: usize) -> Result<Vec<SessionHead>, JournalError>;

    /// Number of a tenant's sessions. Blocking.
    ///
    /// # Errors
    /// When the journal cannot be read.
    fn count(&self, tenant: &TenantId) -> Result<u64, JournalError>;

    /// Removes every byte of a deleted session that no other session refers to; the future is ready when that is durable, with
    /// the journal's latest position, or with [`JournalError::NotFound`].
    fn purge(&self, tenant: TenantId, session: SessionId) -> AppendFuture;

    /// A secret of this journal's data (32 random bytes made at its creation), from which sharing domains derive theirs.
    fn secret(&self) -> [u8; 32];
}

/// Which rows a listing wants; everything that is set must match.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HeadFilter {
    /// Any of these states; empty for all but `Deleting`.
    pub states: Vec<SessionState>,
    /// Each of these pairs.
    pub labels: Vec<(String, String)>,
    /// This model.
    pub model: Option<String>,
}

/// Why the journal failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// Another process owns the data directory.
    #[error("{path} is in use by another process ({owner}); stop it or choose another --data-dir")]
    InUse {
        /// The directory.
        path: String,
        /// What its lock file says.
        owner: String,
    },
    /// Written by a newer version.
    #[error("{path} has schema {found}, this build reads up to {newest}; run the newer holdfast")]
    TooNew {
        /// The file.
        path: String,
        /// What it has.
        found: u32,
        /// What this build reads.
        newest: u32,
    },
    /// Stored bytes fail their checks.
    #[error("journal of session {session} is damaged at entry {index}: {problem}")]
    Corrupt {
        /// Which session.
        session: String,
        /// Place of the entry.
        index: u64,
        /// What is wrong.
        problem: String,
    },
    /// The session is not there.
    #[error("no journal for session {session}")]
    NotFound {
        /// Which session.
        session: String,
    },
    /// The database or the disk failed.
    #[error("the journal cannot be reached: {0}")]
    Io(String),
}
