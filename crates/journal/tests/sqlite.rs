//! What only a journal on disk can do: reopen, be damaged, be owned, run full.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::{Arc, Mutex};

use holdfast_journal::{CommitReport, Durability, Journal, JournalError, Lsn, SqliteJournal, SqliteSettings};
use rusqlite::Connection;
use support::{batch, mark, session, tenant, wait};

fn open(directory: &Path) -> SqliteJournal {
    SqliteJournal::open(directory, SqliteSettings::default()).unwrap()
}

fn database(directory: &Path) -> Connection {
    Connection::open(directory.join("journal.db")).unwrap()
}

#[test]
fn dropping_commits_what_waits_and_reopening_finds_it() {
    let directory = tempfile::tempdir().unwrap();
    let (t, s) = (tenant("default"), session("session-1"));
    let journal = open(directory.path());
    let secret = journal.secret();
    let futures: Vec<_> = (0..500).map(|n| journal.append(batch(&t, &s, [n]))).collect();
    drop(journal);
    for (n, future) in (1..).zip(futures) {
        assert_eq!(wait(future), Ok(Lsn(n)), "a future outlives its journal");
    }
    let journal = open(directory.path());
    assert_eq!(journal.secret(), secret);
    assert_ne!(secret, [0; 32]);
    let marks: Vec<u32> = journal.read(&t, &s, 0, 1000).unwrap().iter().map(|e| mark(&e.entry.body)).collect();
    assert_eq!(marks, (0..500).collect::<Vec<_>>());
    assert_eq!(wait(journal.append(batch(&t, &s, [0]))), Ok(Lsn(501)));
}

#[test]
fn positions_rise_after_a_purge_and_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (t, s) = (tenant("default"), session("session-1"));
    let journal = open(directory.path());
    wait(journal.append(batch(&t, &s, 0..9))).unwrap();
    wait(journal.purge(t.clone(), s.clone())).unwrap();
    drop(journal);
    assert_eq!(wait(open(directory.path()).append(batch(&t, &s, [1]))), Ok(Lsn(10)));
}

#[test]
fn a_second_open_is_refused_by_name_until_the_first_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path());
    let refused = SqliteJournal::open(directory.path(), SqliteSettings::default()).map(drop).unwrap_err();
    let JournalError::InUse { path, owner } = refused else { unreachable!("{refused}") };
    assert_eq!(path, directory.path().display().to_string());
    assert!(owner.contains(&format!("pid {}", std::process::id())), "{owner}");
    drop(first);
    drop(open(directory.path()));
}

#[test]
fn every_kind_of_damage_names_the_session_and_the_place() {
    let damages = [
        ("UPDATE entries SET body = replace(body, '\"ids\":[3]', '\"ids\":[2]') WHERE place = 3", 3),
        ("UPDATE entries SET body = body || ' ' WHERE place = 3", 3),
        ("UPDATE entries SET body = CAST(x'ff00' AS BLOB) WHERE place = 3", 3),
        ("UPDATE entries SET time_us = time_us + 1 WHERE place = 3", 3),
        ("UPDATE entries SET principal = 'somebody' WHERE place = 3", 3),
        ("UPDATE entries SET traceparent = '' WHERE place = 3", 3),
        ("UPDATE entries SET key_id = 1 WHERE place = 3", 3),
        ("UPDATE entries SET hash = zeroblob(32) WHERE place = 3", 3),
        ("UPDATE entries SET hash = x'00' WHERE place = 3", 3),
        ("UPDATE entries SET previous = zeroblob(32) WHERE place = 3", 3),
        ("UPDATE entries SET lsn = 1000 WHERE place = 3", 4),
        ("DELETE FROM entries WHERE place = 3", 3),
        ("DELETE FROM entries WHERE place = 9", 9),
        ("DELETE FROM entries WHERE place = 9; UPDATE session_segments SET until = 9", 8),
        ("UPDATE session_segments SET until = 11", 10),
        ("UPDATE segments SET session = 'session-2'", 0),
        ("UPDATE segments SET format = 2", 0),
        ("UPDATE segments SET base = 1", 0),
        ("UPDATE sessions SET last_hash = zeroblob(32)", 9),
        ("PRAGMA foreign_keys = OFF; DELETE FROM session_segments", 0),
    ];
    for (damage, at) in damages {
        let directory = tempfile::tempdir().unwrap();
        let (t, s) = (tenant("default"), session("session-1"));
        let journal = open(directory.path());
        wait(journal.append(batch(&t, &s, 0..10))).unwrap();
        assert_eq!(journal.read(&t, &s, 0, 100).unwrap().len(), 10);
        database(directory.path()).execute_batch(damage).unwrap();
        match journal.read(&t, &s, 0, 100) {
            Err(JournalError::Corrupt { session, index, .. }) => {
                assert_eq!((session.as_str(), index), ("session-1", at), "{damage}");
            }
            other => unreachable!("{damage}: {other:?}"),
        }
    }
}

#[test]
fn a_flipped_bit_in_the_file_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let (t, s) = (tenant("default"), session("session-1"));
    let journal = open(directory.path());
    wait(journal.append(batch(&t, &s, 0..10))).unwrap();
    drop(journal);
    let path = directory.path().join("journal.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let needle = b"\"ids\":[7]";
    let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    bytes[at + 7] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let journal = open(directory.path());
    assert!(matches!(journal.read(&t, &s, 0, 100), Err(JournalError::Corrupt { index: 7, .. })));
    assert_eq!(journal.read(&t, &s, 0, 7).unwrap().len(), 7, "what is before it is still there");
}

#[test]
fn a_newer_schema_or_format_is_refused_and_left_alone() {
    for damage in ["PRAGMA user_version = 9", "UPDATE meta SET value = 9 WHERE key = 'format'"] {
        let directory = tempfile::tempdir().unwrap();
        drop(open(directory.path()));
        database(directory.path()).execute_batch(damage).unwrap();
        let refused = SqliteJournal::open(directory.path(), SqliteSettings::default()).map(drop).unwrap_err();
        assert!(matches!(refused, JournalError::TooNew { found: 9, newest: 1, .. }), "{refused}");
    }
}

#[test]
fn a_full_disk_is_an_error_that_leaves_what_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let (t, s) = (tenant("default"), session("session-1"));
    let settings = SqliteSettings { max_bytes: Some(256 << 10), ..SqliteSettings::default() };
    let journal = SqliteJournal::open(directory.path(), settings).unwrap();
    let mut acknowledged = 0;
    let error = loop {
        match wait(journal.append(batch(&t, &s, 0..100))) {
            Ok(_) => acknowledged += 100,
            Err(error) => break error,
        }
        assert!(acknowledged < 100_000, "the disk never ran full");
    };
    assert!(matches!(&error, JournalError::Io(problem) if problem.contains("full")), "{error}");
    let refused = wait(journal.append(batch(&t, &s, [1]))).unwrap_err();
    assert!(refused.to_string().contains("failed before"), "{refused}");
    assert_eq!(journal.read(&t, &s, 0, usize::MAX).unwrap().len(), acknowledged);
    drop(journal);
    let journal = open(directory.path());
    assert!(wait(journal.append(batch(&t, &s, [1]))).is_ok(), "with room again it goes on");
    assert_eq!(journal.read(&t, &s, 0, usize::MAX).unwrap().len(), acknowledged + 1);
}

#[test]
fn purged_bytes_are_gone_from_every_file() {
    let directory = tempfile::tempdir().unwrap();
    let (t, s) = (tenant("default"), session("session-1"));
    let journal = open(directory.path());
    let mut secret = batch(&t, &s, 0..50);
    secret.entries.iter_mut().for_each(|entry| entry.traceparent = "SWORDFISH".repeat(20));
    wait(journal.append(secret)).unwrap();
    let holds = || {
        std::fs::read_dir(directory.path()).unwrap().any(|file| {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            bytes.windows(9).any(|window| window == b"SWORDFISH")
        })
    };
    assert!(holds());
    wait(journal.purge(t, s)).unwrap();
    assert!(!holds());
}

#[test]
fn waiting_batches_share_a_commit_and_power_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let reports: Arc<Mutex<Vec<CommitReport>>> = Arc::default();
    let kept = Arc::clone(&reports);
    let settings = SqliteSettings {
        on_commit: Some(Arc::new(move |report| kept.lock().unwrap().push(*report))),
        ..SqliteSettings::default()
    };
    let journal = SqliteJournal::open(directory.path(), settings).unwrap();
    let t = tenant("default");
    let futures: Vec<_> = (0..1000)
        .map(|n| {
            let mut batch = batch(&t, &session(&format!("session-{}", n % 10)), [n]);
            if n == 999 {
                batch.durability = Durability::Power;
            }
            journal.append(batch)
        })
        .collect();
    for future in futures {
        wait(future).unwrap();
    }
    drop(journal);
    let reports = reports.lock().unwrap();
    assert_eq!(reports.iter().map(|r| r.batches).sum::<usize>(), 1000);
    assert_eq!(reports.iter().map(|r| r.entries).sum::<usize>(), 1000);
    assert!(reports.len() < 1000, "{} commits for 1000 batches", reports.len());
    assert!(reports.last().unwrap().power_safe);
}

#[test]
fn readers_do_not_wait_for_the_writer_and_see_whole_batches() {
    let directory = tempfile::tempdir().unwrap();
    let (t, s) = (tenant("default"), session("session-1"));
    let journal = open(directory.path());
    wait(journal.append(batch(&t, &s, [0, 0, 0]))).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let entries = journal.read(&t, &s, 0, usize::MAX).unwrap();
                    assert_eq!(entries.len() % 3, 0, "a part of a batch was seen");
                }
            });
        }
        for n in 1..200 {
            drop(journal.append(batch(&t, &s, [n, n, n])));
        }
    });
}

#[test]
fn the_log_view_shows_kinds_to_the_sqlite3_shell() {
    let directory = tempfile::tempdir().unwrap();
    let (t, s) = (tenant("default"), session("session-1"));
    let journal = open(directory.path());
    wait(journal.append(batch(&t, &s, [1, 2]))).unwrap();
    let kinds: Vec<(i64, String)> = database(directory.path())
        .prepare("SELECT place, kind FROM log WHERE session = 'session-1'")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(kinds, [(0, "sampled".to_owned()), (1, "sampled".to_owned())]);
}
