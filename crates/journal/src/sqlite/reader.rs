//! Reading beside the writer: a small pool of read-only connections, and the queries of the trait.
//!
//! In: questions. Out: verified entries and heads, each answer from one snapshot. Deliberately not here: anything that writes.

use std::path::PathBuf;
use std::sync::{Condvar, Mutex, PoisonError};

use holdfast_types::{Digest, SessionId, TenantId, TimeUs};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params, params_from_iter};

use super::rows::{ENTRY_COLUMNS, HEAD_COLUMNS, head, integer, state_word, stored};
use super::schema::open_reader;
use crate::{Entry, FORMAT, HeadFilter, JournalError, SessionHead};

/// At most `most` connections, opened when first needed; a reader beyond that waits for one.
#[derive(Debug)]
pub(crate) struct Readers {
    path: PathBuf,
    most: usize,
    state: Mutex<Pool>,
    returned: Condvar,
}

#[derive(Debug, Default)]
struct Pool {
    idle: Vec<Connection>,
    lent: usize,
}

impl Readers {
    pub(crate) fn new(path: PathBuf, most: usize) -> Self {
        Self { path, most: most.max(1), state: Mutex::default(), returned: Condvar::new() }
    }

    /// Runs `question` on one snapshot.
    fn ask<T>(&self, question: impl FnOnce(&Transaction<'_>) -> Result<T, JournalError>) -> Result<T, JournalError> {
        let lent = {
            let mut pool = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            while pool.idle.is_empty() && pool.lent >= self.most {
                pool = self.returned.wait(pool).unwrap_or_else(PoisonError::into_inner);
            }
            pool.lent += 1;
            pool.idle.pop()
        };
        let mut lease = Lease { readers: self, connection: lent };
        let connection = match &mut lease.connection {
            Some(connection) => connection,
            none => none.insert(open_reader(&self.path)?),
        };
        let snapshot = connection.transaction().map_err(failed)?;
        question(&snapshot)
    }

    pub(crate) fn read(
        &self,
        tenant: &TenantId,
        session: &SessionId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<Entry>, JournalError> {
        self.ask(|snapshot| Log::open(snapshot, tenant, session)?.read(from, limit))
    }

    pub(crate) fn head(&self, tenant: &TenantId, session: &SessionId) -> Result<Option<SessionHead>, JournalError> {
        let sql = format!("SELECT {HEAD_COLUMNS} FROM sessions WHERE tenant = ?1 AND session = ?2 AND state NOT NULL");
        let values = vec![text(tenant.as_str()), text(session.as_str())];
        Ok(self.ask(|snapshot| heads(snapshot, &sql, values))?.pop())
    }

    pub(crate) fn list(
        &self,
        tenant: &TenantId,
        filter: &HeadFilter,
        after: Option<&SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionHead>, JournalError> {
        let mut sql = format!("SELECT {HEAD_COLUMNS} FROM sessions WHERE tenant = ? AND session > ? AND state ");
        let mut values = vec![text(tenant.as_str()), text(after.map_or("", SessionId::as_str))];
        if filter.states.is_empty() {
            sql.push_str("<> 'deleting'");
        } else {
            let marks = vec!["?"; filter.states.len()].join(", ");
            sql.push_str(&format!("IN ({marks})"));
            values.extend(filter.states.iter().map(|state| text(state_word(*state))));
        }
        if let Some(model) = &filter.model {
            sql.push_str(" AND model = ?");
            values.push(text(model));
        }
        for (key, value) in &filter.labels {
            sql.push_str(
                " AND EXISTS (SELECT 1 FROM json_each(labels) AS label WHERE label.key = ? AND label.value = ?)",
            );
            values.extend([text(key), text(value)]);
        }
        sql.push_str(" ORDER BY session LIMIT ?");
        values.push(Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX)));
        self.ask(|snapshot| heads(snapshot, &sql, values))
    }

    pub(crate) fn attention(&self, before_us: TimeUs, limit: usize) -> Result<Vec<SessionHead>, JournalError> {
        let sql = format!(
            "SELECT {HEAD_COLUMNS} FROM sessions WHERE state IN ('running', 'deleting')
             OR (expires_us IS NOT NULL AND expires_us < ?) ORDER BY tenant, session LIMIT ?"
        );
        let values = vec![
            Value::Integer(integer(before_us).unwrap_or(i64::MAX)),
            Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX)),
        ];
        self.ask(|snapshot| heads(snapshot, &sql, values))
    }

    pub(crate) fn count(&self, tenant: &TenantId) -> Result<u64, JournalError> {
        self.ask(|snapshot| {
            snapshot
                .query_row("SELECT count(*) FROM sessions WHERE tenant = ?1", [tenant.as_str()], |row| {
                    row.get::<_, i64>(0)
                })
                .map(i64::unsigned_abs)
                .map_err(failed)
        })
    }
}

/// A lent connection; comes back when it is dropped, also after an error.
struct Lease<'a> {
    readers: &'a Readers,
    connection: Option<Connection>,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut pool = self.readers.state.lock().unwrap_or_else(PoisonError::into_inner);
        pool.lent -= 1;
        pool.idle.extend(self.connection.take());
        self.readers.returned.notify_one();
    }
}

fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

fn heads(snapshot: &Transaction<'_>, sql: &str, values: Vec<Value>) -> Result<Vec<SessionHead>, JournalError> {
    let mut statement = snapshot.prepare(sql).map_err(failed)?;
    let mut rows = statement.query(params_from_iter(values)).map_err(failed)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(failed)? {
        found.push(head(row)?);
    }
    Ok(found)
}

fn failed(error: rusqlite::Error) -> JournalError {
    JournalError::Io(error.to_string())
}

/// One session's log: the parts of segments that it is made of.
struct Log<'a> {
    snapshot: &'a Transaction<'a>,
    session: &'a SessionId,
    last_hash: Digest,
    parts: Vec<Part>,
}

/// Places `base..until` of a log lie in this segment. A fork shares a part by naming the same segment.
struct Part {
    segment: i64,
    format: u32,
    base: u64,
    until: u64,
    tenant: TenantId,
    session: SessionId,
}

impl<'a> Log<'a> {
    fn open(snapshot: &'a Transaction<'a>, tenant: &TenantId, session: &'a SessionId) -> Result<Self, JournalError> {
        let row = snapshot
            .query_row(
                "SELECT id, last_hash FROM sessions WHERE tenant = ?1 AND session = ?2",
                params![tenant.as_str(), session.as_str()],
                |row| Ok((row.get::<_, i64>(0)?, row.get(1).map(Digest))),
            )
            .optional()
            .map_err(failed)?;
        let Some((id, last_hash)) = row else {
            return Err(JournalError::NotFound { session: session.as_str().to_owned() });
        };
        let mut log = Self { snapshot, session, last_hash: Digest::default(), parts: Vec::new() };
        log.last_hash = last_hash.map_err(|e| log.damaged(0, e))?;
        log.parts = log.read_parts(id)?;
        Ok(log)
    }

    fn read_parts(&self, id: i64) -> Result<Vec<Part>, JournalError> {
        let sql = "SELECT g.segment, s.format, s.base, g.until, s.tenant, s.session FROM session_segments g
                   LEFT JOIN segments s ON s.id = g.segment WHERE g.session_id = ?1 ORDER BY g.ordinal";
        let mut statement = self.snapshot.prepare_cached(sql).map_err(failed)?;
        let mut rows = statement.query([id]).map_err(failed)?;
        let mut parts: Vec<Part> = Vec::new();
        while let Some(row) = rows.next().map_err(failed)? {
            let at = parts.last().map_or(0, |part| part.until);
            let damaged = |e| self.damaged(at, e);
            let name = |e: holdfast_types::IdError| self.damaged(at, e);
            let part = Part {
                segment: row.get(0).map_err(damaged)?,
                format: row.get(1).map_err(damaged)?,
                base: row.get::<_, i64>(2).map_err(damaged)?.cast_unsigned(),
                until: row.get::<_, i64>(3).map_err(damaged)?.cast_unsigned(),
                tenant: TenantId::parse(&row.get::<_, String>(4).map_err(damaged)?).map_err(name)?,
                session: SessionId::parse(&row.get::<_, String>(5).map_err(damaged)?).map_err(name)?,
            };
            if part.format == 0 || part.format > FORMAT {
                return Err(self.damaged(at, format!("its format is {}, this build reads {FORMAT}", part.format)));
            }
            if part.base != at || part.until <= at || part.until > i64::MAX.cast_unsigned() {
                let problem = format!("a segment holds places {}..{}, {at} is next", part.base, part.until);
                return Err(self.damaged(at, problem));
            }
            parts.push(part);
        }
        if parts.is_empty() {
            return Err(self.damaged(0, "it has no segment"));
        }
        Ok(parts)
    }

    fn read(&self, from: u64, limit: usize) -> Result<Vec<Entry>, JournalError> {
        let end = self.parts.last().map_or(0, |part| part.until);
        let to = end.min(from.saturating_add(limit as u64));
        let mut entries: Vec<Entry> = Vec::new();
        if from >= to {
            return Ok(entries);
        }
        let (mut previous, mut lsn) = self.before(from)?;
        for part in &self.parts {
            let (first, last) = (part.base.max(from), part.until.min(to));
            if first >= last {
                continue;
            }
            let sql = format!(
                "SELECT {ENTRY_COLUMNS} FROM entries WHERE segment = ?1 AND place >= ?2 AND place < ?3 ORDER BY place"
            );
            let mut statement = self.snapshot.prepare_cached(&sql).map_err(failed)?;
            let mut rows = statement
                .query(params![part.segment, first.cast_signed(), last.cast_signed()])
                .map_err(|e| self.damaged(first, e))?;
            for index in first..last {
                let row = rows.next().map_err(|e| self.damaged(index, e))?;
                let row = row.ok_or_else(|| self.damaged(index, "it is missing"))?;
                let stored = stored(row).map_err(|e| self.damaged(index, e))?;
                if stored.lsn <= lsn {
                    return Err(self.damaged(index, format!("its LSN {} does not follow {lsn}", stored.lsn)));
                }
                lsn = stored.lsn;
                let entry = stored
                    .open(&part.tenant, &part.session, index, previous)
                    .map_err(|problem| self.damaged(index, problem))?;
                previous = entry.hash;
                entries.push(entry);
            }
        }
        if to == end && previous != self.last_hash {
            return Err(self.damaged(end - 1, format!("it is not the last one, which has hash {}", self.last_hash)));
        }
        Ok(entries)
    }

    /// Hash and LSN of the entry before place `from`.
    fn before(&self, from: u64) -> Result<(Digest, u64), JournalError> {
        let Some(index) = from.checked_sub(1) else {
            return Ok((Digest::default(), 0));
        };
        let part = self.parts.iter().find(|part| index < part.until);
        let segment = part.map_or(0, |part| part.segment);
        self.snapshot
            .query_row(
                "SELECT hash, lsn FROM entries WHERE segment = ?1 AND place = ?2",
                params![segment, index.cast_signed()],
                |row| Ok((Digest(row.get(0)?), row.get::<_, i64>(1)?.unsigned_abs())),
            )
            .map_err(|e| self.damaged(index, e))
    }

    fn damaged(&self, index: u64, problem: impl ToString) -> JournalError {
        JournalError::Corrupt { session: self.session.as_str().to_owned(), index, problem: problem.to_string() }
    }
}
