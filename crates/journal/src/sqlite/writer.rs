//! The one writer: batches that wait are committed together, in the order of their calls, and then answered.
//!
//! In: commands of a bounded queue. Out: commits, and an answer to every command whatever happens. A group is committed as soon
//! as the writer is free and holds whatever waited meanwhile, so an idle journal answers after one commit and a busy one
//! shares its commits; there is no timer. Deliberately not here: reading.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use holdfast_telemetry::names;
use holdfast_types::{Digest, SessionId, TenantId};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params, params_from_iter};
use tokio::sync::oneshot;

use super::rows::{head_values, integer};
use crate::chain::{self, Stored};
use crate::{Batch, Durability, FORMAT, JournalError, Lsn, NewEntry};

/// Most batches of one group: bounds the memory and the wait of the first.
const GROUP_BATCHES: usize = 256;

/// Sessions that failed are remembered up to here; beyond it the whole journal refuses.
const FAILED_SESSIONS: usize = 4_096;

/// Bytes written after which an idle writer moves the WAL into the database file.
const CHECKPOINT_BYTES: usize = 4 << 20;

/// Bytes written after which a busy writer does so too, or the WAL would grow without end.
const CHECKPOINT_BYTES_BUSY: usize = 64 << 20;

/// What a batch costs in the WAL beside its bodies: about two pages.
const BATCH_OVERHEAD_BYTES: usize = 8 << 10;

/// Where the answer to a command goes.
pub(crate) type Reply = oneshot::Sender<Result<Lsn, JournalError>>;

/// What callers ask of the writer.
pub(crate) enum Command {
    /// Store a batch.
    Append(Batch, Reply),
    /// Remove a session.
    Purge(TenantId, SessionId, Reply),
}

/// One group commit, for whoever measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitReport {
    /// Batches in it.
    pub batches: usize,
    /// Entries in it.
    pub entries: usize,
    /// It was made safe against a loss of power.
    pub power_safe: bool,
    /// From the first batch taken to the commit.
    pub duration: Duration,
}

/// Called on the writer's thread after each group commit.
pub type OnCommit = Arc<dyn Fn(&CommitReport) + Send + Sync>;

/// The writer's state; lives on its thread.
pub(crate) struct Writer {
    connection: Connection,
    last_lsn: u64,
    power_safe: Option<bool>,
    failed: HashSet<(TenantId, SessionId)>,
    all_failed: bool,
    unchecked_bytes: usize,
    scrub_wal: bool,
    on_commit: Option<OnCommit>,
}

/// A command whose bodies are written down already: what is left can fail by the database only.
enum Work {
    Append {
        tenant: TenantId,
        session: SessionId,
        entries: Vec<(NewEntry, String)>,
        head: Option<Vec<Value>>,
        reply: Reply,
    },
    Purge {
        tenant: TenantId,
        session: SessionId,
        reply: Reply,
    },
}

impl Writer {
    pub(crate) fn new(connection: Connection, last_lsn: u64, on_commit: Option<OnCommit>) -> Self {
        Self {
            connection,
            last_lsn,
            power_safe: None,
            failed: HashSet::new(),
            all_failed: false,
            unchecked_bytes: 0,
            scrub_wal: false,
            on_commit,
        }
    }

    /// Serves commands until every sender is gone and the queue is empty.
    pub(crate) fn run(mut self, commands: &Receiver<Command>) {
        while let Ok(first) = commands.recv() {
            let mut group = vec![first];
            let mut idle = false;
            while group.len() < GROUP_BATCHES && !idle {
                match commands.try_recv() {
                    Ok(next) => group.push(next),
                    Err(_) => idle = true,
                }
            }
            self.serve(group);
            self.checkpoint(idle);
        }
        self.scrub_wal = true;
        self.checkpoint(true);
    }

    #[expect(clippy::disallowed_methods, reason = "measures its own commits; no logic reads it")]
    fn serve(&mut self, group: Vec<Command>) {
        let started = Instant::now();
        let span = tracing::debug_span!(
            names::SPAN_JOURNAL_COMMIT,
            { names::BATCHES } = group.len(),
            { names::ENTRIES } = tracing::field::Empty,
            { names::POWER_SAFE } = tracing::field::Empty
        );
        let _entered = span.enter();
        let power_safe = group.iter().any(|command| match command {
            Command::Append(batch, _) => batch.durability == Durability::Power,
            Command::Purge(..) => true,
        });
        let work: Vec<Work> = group.into_iter().filter_map(|command| self.prepare(command)).collect();
        if work.is_empty() {
            return;
        }
        let entries = work.iter().map(Work::entries).sum();
        let written: usize = work.iter().map(Work::bytes).sum();
        span.record(names::ENTRIES, entries);
        span.record(names::POWER_SAFE, power_safe);
        match self.commit(&work, power_safe) {
            Ok(answers) => {
                let batches = work.len();
                // A caller that went away is no concern of the others.
                work.into_iter().zip(answers).for_each(|(work, answer)| drop(work.into_reply().send(answer)));
                self.unchecked_bytes += written;
                if let Some(report) = &self.on_commit {
                    report(&CommitReport { batches, entries, power_safe, duration: started.elapsed() });
                }
            }
            Err(error) => {
                tracing::error!(%error, "the journal cannot be written");
                let error = JournalError::Io(error.to_string());
                for work in work {
                    self.refuse(work.key());
                    drop(work.into_reply().send(Err(error.clone())));
                }
            }
        }
    }

    /// Checks a command and writes its bodies as JSON; answers it here when it cannot be served.
    fn prepare(&mut self, command: Command) -> Option<Work> {
        let (batch, reply) = match command {
            Command::Purge(tenant, session, reply) => {
                if let Err(error) = self.check_accepted(&tenant, &session) {
                    drop(reply.send(Err(error)));
                    return None;
                }
                return Some(Work::Purge { tenant, session, reply });
            }
            Command::Append(batch, reply) => (batch, reply),
        };
        let Some((tenant, session)) = batch.entries.first().map(|e| (e.tenant.clone(), e.session.clone())) else {
            drop(reply.send(Err(JournalError::Io("a batch holds at least one entry".to_owned()))));
            return None;
        };
        let prepared = self.check_accepted(&tenant, &session).and_then(|()| {
            chain::check_batch(&batch).and_then(|()| write_down(batch)).map_err(|problem| {
                self.refuse((tenant.clone(), session.clone()));
                JournalError::Io(format!("session {session}: {problem}"))
            })
        });
        match prepared {
            Ok((entries, head)) => Some(Work::Append { tenant, session, entries, head, reply }),
            Err(error) => {
                drop(reply.send(Err(error)));
                None
            }
        }
    }

    fn check_accepted(&self, tenant: &TenantId, session: &SessionId) -> Result<(), JournalError> {
        if self.all_failed || self.failed.contains(&(tenant.clone(), session.clone())) {
            return Err(chain::refused(session));
        }
        Ok(())
    }

    fn refuse(&mut self, key: (TenantId, SessionId)) {
        self.all_failed |= self.failed.len() >= FAILED_SESSIONS;
        if !self.all_failed {
            self.failed.insert(key);
        }
    }

    fn commit(&mut self, work: &[Work], power_safe: bool) -> rusqlite::Result<Vec<Result<Lsn, JournalError>>> {
        if self.power_safe != Some(power_safe) {
            self.power_safe = None;
            self.connection.pragma_update(None, "synchronous", if power_safe { "FULL" } else { "NORMAL" })?;
            self.power_safe = Some(power_safe);
        }
        let mut lsn = self.last_lsn;
        let mut answers = Vec::with_capacity(work.len());
        let mut purged = false;
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for work in work {
            answers.push(match work {
                Work::Append { tenant, session, entries, head, .. } => {
                    append(&transaction, tenant, session, entries, head.as_deref(), &mut lsn)?;
                    Ok(Lsn(lsn))
                }
                Work::Purge { tenant, session, .. } => {
                    if purge(&transaction, tenant, session)? {
                        purged = true;
                        Ok(Lsn(lsn))
                    } else {
                        Err(JournalError::NotFound { session: session.as_str().to_owned() })
                    }
                }
            });
        }
        transaction.commit()?;
        self.last_lsn = lsn;
        if purged {
            // Purged bytes may still lie in the WAL: it is emptied before the purge is answered.
            self.scrub_wal = true;
            self.checkpoint(false);
        }
        Ok(answers)
    }

    /// Moves the WAL into the database file when it is time.
    fn checkpoint(&mut self, idle: bool) {
        let bytes = if idle { CHECKPOINT_BYTES } else { CHECKPOINT_BYTES_BUSY };
        let mode = match self.scrub_wal {
            true => "TRUNCATE",
            false if self.unchecked_bytes >= bytes => "PASSIVE",
            false => return,
        };
        let busy = self.connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| row.get::<_, i64>(0));
        match busy {
            Ok(0) => {
                self.scrub_wal = false;
                self.unchecked_bytes = 0;
            }
            // A reader still looks at the old pages: tried again after the next group.
            Ok(_) => tracing::debug!("the WAL is being read, its checkpoint is put off"),
            Err(error) => tracing::warn!(%error, "the WAL cannot be moved into the database file"),
        }
    }
}

impl Work {
    fn entries(&self) -> usize {
        match self {
            Self::Append { entries, .. } => entries.len(),
            Self::Purge { .. } => 0,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Append { entries, .. } => {
                BATCH_OVERHEAD_BYTES + entries.iter().map(|(_, body)| body.len()).sum::<usize>()
            }
            Self::Purge { .. } => BATCH_OVERHEAD_BYTES,
        }
    }

    fn key(&self) -> (TenantId, SessionId) {
        match self {
            Self::Append { tenant, session, .. } | Self::Purge { tenant, session, .. } => {
                (tenant.clone(), session.clone())
            }
        }
    }

    fn into_reply(self) -> Reply {
        match self {
            Self::Append { reply, .. } | Self::Purge { reply, .. } => reply,
        }
    }
}

type WrittenDown = (Vec<(NewEntry, String)>, Option<Vec<Value>>);

fn write_down(batch: Batch) -> Result<WrittenDown, String> {
    let head = batch
        .head
        .as_ref()
        .map(|head| head_values(head).ok_or("its row for listings holds a time beyond 2^63"))
        .transpose()?;
    let entries = batch.entries.into_iter().map(|entry| {
        integer(entry.time_us).ok_or("an entry's time is beyond 2^63")?;
        let body = chain::encode(&entry.body)?;
        Ok((entry, body))
    });
    Ok((entries.collect::<Result<_, String>>()?, head))
}

/// The end of a session's log.
struct Tail {
    id: i64,
    last_hash: Digest,
    ordinal: i64,
    segment: i64,
    until: i64,
}

fn tail(transaction: &Transaction<'_>, tenant: &TenantId, session: &SessionId) -> rusqlite::Result<Option<Tail>> {
    let sql = "SELECT s.id, s.last_hash, g.ordinal, g.segment, g.until FROM sessions s
               JOIN session_segments g ON g.session_id = s.id
               WHERE s.tenant = ?1 AND s.session = ?2 ORDER BY g.ordinal DESC LIMIT 1";
    transaction
        .prepare_cached(sql)?
        .query_row(params![tenant.as_str(), session.as_str()], |row| {
            Ok(Tail {
                id: row.get(0)?,
                last_hash: Digest(row.get(1)?),
                ordinal: row.get(2)?,
                segment: row.get(3)?,
                until: row.get(4)?,
            })
        })
        .optional()
}

/// A session without entries, in the same transaction as its first ones.
fn create(transaction: &Transaction<'_>, tenant: &TenantId, session: &SessionId) -> rusqlite::Result<Tail> {
    let key = params![tenant.as_str(), session.as_str()];
    transaction
        .prepare_cached("INSERT INTO sessions (tenant, session, last_hash) VALUES (?1, ?2, zeroblob(32))")?
        .execute(key)?;
    let id = transaction.last_insert_rowid();
    transaction
        .prepare_cached("INSERT INTO segments (format, tenant, session, base) VALUES (?3, ?1, ?2, 0)")?
        .execute(params![tenant.as_str(), session.as_str(), FORMAT])?;
    let segment = transaction.last_insert_rowid();
    transaction
        .prepare_cached("INSERT INTO session_segments (session_id, ordinal, segment, until) VALUES (?1, 0, ?2, 0)")?
        .execute(params![id, segment])?;
    Ok(Tail { id, last_hash: Digest::default(), ordinal: 0, segment, until: 0 })
}

fn append(
    transaction: &Transaction<'_>,
    tenant: &TenantId,
    session: &SessionId,
    entries: &[(NewEntry, String)],
    head: Option<&[Value]>,
    lsn: &mut u64,
) -> rusqlite::Result<()> {
    let mut tail = match tail(transaction, tenant, session)? {
        Some(tail) => tail,
        None => create(transaction, tenant, session)?,
    };
    let mut insert = transaction.prepare_cached(
        "INSERT INTO entries (segment, lsn, place, time_us, principal, traceparent, previous, hash, key_id, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?;
    for (entry, body) in entries {
        *lsn += 1;
        let Stored { lsn, index, time_us, principal, traceparent, previous, hash, key_id, body } =
            chain::seal(entry, body.clone(), *lsn, tail.until.unsigned_abs(), tail.last_hash);
        insert.execute(params![
            tail.segment,
            lsn.cast_signed(),
            index.cast_signed(),
            time_us.cast_signed(),
            principal,
            traceparent,
            previous.0,
            hash.0,
            key_id,
            body
        ])?;
        tail.last_hash = hash;
        tail.until += 1;
    }
    transaction
        .prepare_cached("UPDATE session_segments SET until = ?3 WHERE session_id = ?1 AND ordinal = ?2")?
        .execute(params![tail.id, tail.ordinal, tail.until])?;
    transaction
        .prepare_cached("UPDATE sessions SET last_hash = ?2 WHERE id = ?1")?
        .execute(params![tail.id, tail.last_hash.0])?;
    if let Some(head) = head {
        let values = head.iter().cloned().chain([Value::Integer(tail.id)]);
        transaction
            .prepare_cached(
                "UPDATE sessions SET state = ?1, model = ?2, created_us = ?3, updated_us = ?4, expires_us = ?5,
                 labels = ?6, turns = ?7, tokens = ?8 WHERE id = ?9",
            )?
            .execute(params_from_iter(values))?;
    }
    Ok(())
}

/// Removes a session's row and every segment that nothing else refers to. False if there is no such session.
fn purge(transaction: &Transaction<'_>, tenant: &TenantId, session: &SessionId) -> rusqlite::Result<bool> {
    let id = transaction
        .query_row(
            "SELECT id FROM sessions WHERE tenant = ?1 AND session = ?2",
            params![tenant.as_str(), session.as_str()],
            |row| row.get::<_, i64>(0),
        )
        .optional()?;
    let Some(id) = id else {
        return Ok(false);
    };
    let segments: Vec<i64> = transaction
        .prepare("SELECT segment FROM session_segments WHERE session_id = ?1")?
        .query_map([id], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    transaction.execute("DELETE FROM session_segments WHERE session_id = ?1", [id])?;
    transaction.execute("DELETE FROM sessions WHERE id = ?1", [id])?;
    for segment in segments {
        let shared: bool = transaction.query_row(
            "SELECT EXISTS (SELECT 1 FROM session_segments WHERE segment = ?1)",
            [segment],
            |row| row.get(0),
        )?;
        if !shared {
            transaction.execute("DELETE FROM entries WHERE segment = ?1", [segment])?;
            transaction.execute("DELETE FROM segments WHERE id = ?1", [segment])?;
        }
    }
    Ok(true)
}
