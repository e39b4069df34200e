//! The journal of one machine: SQLite in WAL mode under a data directory that one process owns.
//!
//! In: batches and questions. Out: commits of one writer thread, answers of a pool of readers. The pieces in the order of the
//! data: `lock`, `schema`, `writer`, `rows`, `reader`. Deliberately not here: what entries mean.

mod lock;
mod reader;
mod rows;
mod schema;
mod writer;

use std::fmt;
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use holdfast_types::{SessionId, TenantId, TimeUs};
use tokio::sync::oneshot;

use crate::{AppendFuture, Batch, Entry, HeadFilter, Journal, JournalError, SessionHead};
use lock::DirectoryLock;
use reader::Readers;
use writer::{Command, Writer};
pub use writer::{CommitReport, OnCommit};

/// Settings of a [`SqliteJournal`].
#[derive(Clone)]
pub struct SqliteSettings {
    /// Batches that wait for the writer; `append` blocks beyond it.
    pub queue_batches: usize,
    /// Connections that read at once; a reader beyond it waits.
    pub readers: usize,
    /// Most bytes of the database file; writing beyond it fails as a full disk does. `None` is the disk's own limit.
    pub max_bytes: Option<u64>,
    /// Told of each group commit.
    pub on_commit: Option<OnCommit>,
}

impl Default for SqliteSettings {
    fn default() -> Self {
        Self { queue_batches: 1_024, readers: 4, max_bytes: None, on_commit: None }
    }
}

impl fmt::Debug for SqliteSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteSettings")
            .field("queue_batches", &self.queue_batches)
            .field("readers", &self.readers)
            .field("max_bytes", &self.max_bytes)
            .field("on_commit", &self.on_commit.is_some())
            .finish()
    }
}

/// A journal in a data directory.
///
/// Opened once per directory over all processes; usable from any thread. Dropping it commits what waits, answers every future
/// and gives the directory back; futures may outlive it. `append` hands over to the writer at once and blocks only while
/// `queue_batches` batches wait. It starts no timer and needs no async runtime.
#[derive(Debug)]
pub struct SqliteJournal {
    commands: Option<SyncSender<Command>>,
    writer: Option<JoinHandle<()>>,
    readers: Readers,
    secret: [u8; 32],
    /// Last of the fields: released once the writer is done.
    _lock: DirectoryLock,
}

impl SqliteJournal {
    /// Opens the journal of `data_dir`; makes both where there is none. Blocking.
    ///
    /// # Errors
    /// [`JournalError::InUse`] while another process has it, [`JournalError::TooNew`] when a newer version wrote it,
    /// [`JournalError::Io`] otherwise.
    pub fn open(data_dir: impl AsRef<Path>, settings: SqliteSettings) -> Result<Self, JournalError> {
        let directory = data_dir.as_ref();
        let io = |e: std::io::Error| JournalError::Io(format!("{}: {e}", directory.display()));
        std::fs::create_dir_all(directory).map_err(io)?;
        let lock = DirectoryLock::acquire(directory)?;
        let path = directory.join(schema::DATABASE_FILE);
        let (connection, meta) = schema::open(&path, settings.max_bytes)?;
        let (commands, queue) = sync_channel(settings.queue_batches.max(1));
        let writer = Writer::new(connection, meta.last_lsn, settings.on_commit);
        let writer = Builder::new().name("journal".to_owned()).spawn(move || writer.run(&queue)).map_err(io)?;
        Ok(Self {
            commands: Some(commands),
            writer: Some(writer),
            readers: Readers::new(path, settings.readers),
            secret: meta.secret,
            _lock: lock,
        })
    }

    fn send(&self, command: impl FnOnce(writer::Reply) -> Command) -> AppendFuture {
        let (reply, answer) = oneshot::channel();
        if let Some(commands) = &self.commands {
            // When the writer is gone the command is dropped with its reply, and the answer below says so.
            drop(commands.send(command(reply)));
        }
        Box::pin(async move {
            answer.await.unwrap_or_else(|_| Err(JournalError::Io("the journal's writer has stopped".to_owned())))
        })
    }
}

impl Journal for SqliteJournal {
    fn append(&self, batch: Batch) -> AppendFuture {
        self.send(|reply| Command::Append(batch, reply))
    }

    fn read(
        &self,
        tenant: &TenantId,
        session: &SessionId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<Entry>, JournalError> {
        self.readers.read(tenant, session, from, limit)
    }

    fn head(&self, tenant: &TenantId, session: &SessionId) -> Result<Option<SessionHead>, JournalError> {
        self.readers.head(tenant, session)
    }

    fn list(
        &self,
        tenant: &TenantId,
        filter: &HeadFilter,
        after: Option<&SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionHead>, JournalError> {
        self.readers.list(tenant, filter, after, limit)
    }

    fn attention(&self, before_us: TimeUs, limit: usize) -> Result<Vec<SessionHead>, JournalError> {
        self.readers.attention(before_us, limit)
    }

    fn count(&self, tenant: &TenantId) -> Result<u64, JournalError> {
        self.readers.count(tenant)
    }

    fn purge(&self, tenant: TenantId, session: SessionId) -> AppendFuture {
        self.send(|reply| Command::Purge(tenant, session, reply))
    }

    fn secret(&self) -> [u8; 32] {
        self.secret
    }
}

impl Drop for SqliteJournal {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the journal's writer panicked");
        }
    }
}
