//! The database file: its tables, its version, and how an older one is brought up.
//!
//! In: a path. Out: the writer's connection on a database of the newest schema. A file of a newer schema, or of another
//! program, is refused; an older one is copied beside itself before it is changed. Deliberately not here: rows.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, params};

use super::lock::now_us;
use crate::{FORMAT, JournalError};

/// Name of the database in its data directory.
pub(crate) const DATABASE_FILE: &str = "journal.db";

/// `HFJ1`: tells the file apart from other SQLite databases (`file` and `sqlite3` show it).
const APPLICATION_ID: i32 = 0x4846_4A31;

/// One step per schema version: step n brings version n to n + 1. Steps are never changed once released.
const STEPS: &[&str] = &[SCHEMA_1];

/// Longest wait for another connection's lock. Only the sqlite3 shell of a curious person can hold one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Entries are rows in the order of their LSN, so that a commit touches few pages whichever sessions it is of; a session's log
/// is found through the index on (segment, place).
const SCHEMA_1: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    session TEXT NOT NULL,
    last_hash BLOB NOT NULL,
    state TEXT,
    model TEXT,
    created_us INTEGER,
    updated_us INTEGER,
    expires_us INTEGER,
    labels TEXT,
    turns INTEGER,
    tokens INTEGER,
    UNIQUE (tenant, session)
) STRICT;
CREATE INDEX sessions_by_state ON sessions (state) WHERE state IN ('running', 'deleting');
CREATE INDEX sessions_by_expiry ON sessions (expires_us) WHERE expires_us IS NOT NULL;
CREATE TABLE segments (
    id INTEGER PRIMARY KEY,
    format INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    session TEXT NOT NULL,
    base INTEGER NOT NULL
) STRICT;
CREATE TABLE session_segments (
    session_id INTEGER NOT NULL REFERENCES sessions (id),
    ordinal INTEGER NOT NULL,
    segment INTEGER NOT NULL REFERENCES segments (id),
    until INTEGER NOT NULL,
    PRIMARY KEY (session_id, ordinal)
) STRICT, WITHOUT ROWID;
CREATE INDEX session_segments_by_segment ON session_segments (segment);
CREATE TABLE entries (
    lsn INTEGER PRIMARY KEY AUTOINCREMENT,
    segment INTEGER NOT NULL REFERENCES segments (id),
    place INTEGER NOT NULL,
    time_us INTEGER NOT NULL,
    principal TEXT NOT NULL,
    traceparent TEXT NOT NULL,
    previous BLOB NOT NULL,
    hash BLOB NOT NULL,
    key_id INTEGER NOT NULL,
    body ANY NOT NULL,
    UNIQUE (segment, place)
) STRICT;
CREATE VIEW log AS
    SELECT s.tenant, s.session, e.place, e.lsn, datetime(e.time_us / 1000000, 'unixepoch') AS time, e.principal,
           (SELECT key FROM json_each(e.body)) AS kind, e.body, lower(hex(e.hash)) AS hash
    FROM sessions s
    JOIN session_segments g ON g.session_id = s.id
    JOIN entries e ON e.segment = g.segment AND e.place < g.until
    ORDER BY s.tenant, s.session, e.place;
";

/// What every journal knows of itself.
#[derive(Debug)]
pub(crate) struct Meta {
    /// 32 random bytes made with the database.
    pub(crate) secret: [u8; 32],
    /// The highest LSN ever given out, purged ones included.
    pub(crate) last_lsn: u64,
}

/// Opens the writer's connection; makes the database where there is none.
pub(crate) fn open(path: &Path, max_bytes: Option<u64>) -> Result<(Connection, Meta), JournalError> {
    open_with(path, max_bytes, STEPS)
}

/// A connection that only reads.
pub(crate) fn open_reader(path: &Path) -> Result<Connection, JournalError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|e| failed(path, &e))?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(|e| failed(path, &e))?;
    Ok(connection)
}

fn open_with(path: &Path, max_bytes: Option<u64>, steps: &[&str]) -> Result<(Connection, Meta), JournalError> {
    create_private(path).map_err(|e| JournalError::Io(format!("{}: {e}", path.display())))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(|e| failed(path, &e))?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(|e| failed(path, &e))?;
    check_owner(&connection, path, steps)?;
    configure(&connection, max_bytes).map_err(|e| failed(path, &e))?;
    migrate(&mut connection, path, steps)?;
    let meta = read_meta(&connection, path)?;
    Ok((connection, meta))
}

/// The journal holds conversations and a secret: the file is its owner's alone from its first byte. WAL files inherit its mode.
fn create_private(path: &Path) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}

fn user_version(connection: &Connection) -> rusqlite::Result<u32> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Refuses what is not ours or newer than us, before anything is changed.
fn check_owner(connection: &Connection, path: &Path, steps: &[&str]) -> Result<(), JournalError> {
    let read = || -> rusqlite::Result<(i32, u32, u32)> {
        let id = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
        let tables = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        Ok((id, user_version(connection)?, tables))
    };
    let (id, version, tables) = read().map_err(|e| failed(path, &e))?;
    let newest = steps.len() as u32;
    if (id, version, tables) == (0, 0, 0) {
        return Ok(());
    }
    if id != APPLICATION_ID {
        return Err(JournalError::Io(format!(
            "{} is a database of another program (application id {id:#x}); choose another --data-dir",
            path.display()
        )));
    }
    if version > newest {
        return Err(JournalError::TooNew { path: path.display().to_string(), found: version, newest });
    }
    Ok(())
}

fn configure(connection: &Connection, max_bytes: Option<u64>) -> rusqlite::Result<()> {
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
    // Checkpoints are the writer's, after it has answered: SQLite's own would make a commit wait.
    connection.pragma_update_and_check(None, "wal_autocheckpoint", 0, |row| row.get::<_, i64>(0))?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // Purged bytes are overwritten, not only unlinked.
    connection.pragma_update_and_check(None, "secure_delete", true, |row| row.get::<_, i64>(0))?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    if let Some(bytes) = max_bytes {
        let page: u64 = connection.pragma_query_value(None, "page_size", |row| row.get::<_, i64>(0))?.unsigned_abs();
        let pages = i64::try_from((bytes / page).max(1)).unwrap_or(i64::MAX);
        connection.pragma_update_and_check(None, "max_page_count", pages, |row| row.get::<_, i64>(0))?;
    }
    Ok(())
}

fn migrate(connection: &mut Connection, path: &Path, steps: &[&str]) -> Result<(), JournalError> {
    let fail = |e: rusqlite::Error| failed(path, &e);
    let version = user_version(connection).map_err(fail)?;
    let newest = steps.len() as u32;
    if version == newest {
        return Ok(());
    }
    if version > 0 {
        let backup = backup_path(path, version);
        // A backup of an earlier, interrupted attempt is of the same version: nothing was changed since.
        if backup.exists() {
            std::fs::remove_file(&backup).map_err(|e| JournalError::Io(format!("{}: {e}", backup.display())))?;
        }
        create_private(&backup).map_err(|e| JournalError::Io(format!("{}: {e}", backup.display())))?;
        connection.execute("VACUUM INTO ?1", params![backup.display().to_string()]).map_err(fail)?;
        tracing::info!(from = version, to = newest, backup = %backup.display(), "migrating the journal");
    }
    connection.pragma_update(None, "synchronous", "FULL").map_err(fail)?;
    let transaction = connection.transaction().map_err(fail)?;
    for step in &steps[version as usize..] {
        transaction.execute_batch(step).map_err(fail)?;
    }
    if version == 0 {
        let mut secret = [0_u8; 32];
        getrandom::fill(&mut secret).map_err(|e| JournalError::Io(format!("no randomness for a secret: {e}")))?;
        let mut insert = transaction.prepare("INSERT INTO meta (key, value) VALUES (?1, ?2)").map_err(fail)?;
        insert.execute(params!["secret", secret]).map_err(fail)?;
        insert.execute(params!["created_us", now_us() as i64]).map_err(fail)?;
        insert.execute(params!["format", FORMAT]).map_err(fail)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(fail)?;
    transaction.pragma_update(None, "user_version", newest).map_err(fail)?;
    transaction.commit().map_err(fail)
}

fn backup_path(path: &Path, version: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".schema-{version}.bak"));
    name.into()
}

fn read_meta(connection: &Connection, path: &Path) -> Result<Meta, JournalError> {
    let read = || -> rusqlite::Result<(u32, [u8; 32], u64)> {
        let value = "SELECT value FROM meta WHERE key = ?1";
        let format = connection.query_row(value, ["format"], |row| row.get(0))?;
        let secret = connection.query_row(value, ["secret"], |row| row.get(0))?;
        // AUTOINCREMENT remembers the highest LSN even when its entry is purged.
        let last = connection.query_row(
            "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'entries'",
            [],
            |row| Ok(row.get::<_, i64>(0)?.unsigned_abs()),
        )?;
        Ok((format, secret, last))
    };
    let (format, secret, last_lsn) = read().map_err(|e| failed(path, &e))?;
    if format > FORMAT {
        return Err(JournalError::TooNew { path: path.display().to_string(), found: format, newest: FORMAT });
    }
    Ok(Meta { secret, last_lsn })
}

fn failed(path: &Path, error: &rusqlite::Error) -> JournalError {
    JournalError::Io(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_older_schema_is_backed_up_and_brought_up_and_keeps_its_secret() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(DATABASE_FILE);
        let (old, meta) = open(&path, None).unwrap();
        drop(old);
        let steps = [SCHEMA_1, "CREATE TABLE later (id INTEGER PRIMARY KEY) STRICT;"];
        let (new, migrated) = open_with(&path, None, &steps).unwrap();
        assert_eq!(migrated.secret, meta.secret);
        assert_eq!(user_version(&new).unwrap(), 2);
        new.execute("INSERT INTO later (id) VALUES (1)", []).unwrap();
        let backup = open_reader(&backup_path(&path, 1)).unwrap();
        assert_eq!(user_version(&backup).unwrap(), 1);
        drop(new);
        let refused = open(&path, None).map(drop).unwrap_err();
        assert_eq!(refused, JournalError::TooNew { path: path.display().to_string(), found: 2, newest: 1 });
    }

    #[test]
    fn a_step_that_fails_leaves_the_old_schema() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(DATABASE_FILE);
        drop(open(&path, None).unwrap());
        assert!(open_with(&path, None, &[SCHEMA_1, "CREATE TABLE half (id); SELECT no_such_function();"]).is_err());
        let (connection, _) = open(&path, None).unwrap();
        assert_eq!(user_version(&connection).unwrap(), 1);
    }

    #[test]
    fn a_database_of_another_program_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(DATABASE_FILE);
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (id)").unwrap();
        let before = std::fs::read(&path).unwrap();
        assert!(open(&path, None).map(drop).unwrap_err().to_string().contains("another program"));
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}
