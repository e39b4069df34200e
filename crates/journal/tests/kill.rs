//! SIGKILL at seeded random instants: every acknowledged entry is there afterwards, and every chain holds.
//!
//! The child is this test binary again: it appends under load and writes a line to its standard output for each
//! acknowledgement. The parent kills it, opens the journal itself and compares.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use holdfast_journal::{Durability, Journal, JournalError, SqliteJournal, SqliteSettings};
use support::{batch, mark, session, tenant, wait};

/// Set in the child's environment: the data directory.
const DIRECTORY: &str = "HOLDFAST_TEST_KILL_DIRECTORY";
const SESSIONS: u32 = 5;
const ROUNDS: u32 = 20;

#[test]
fn child() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    // The parent may look whether the directory is in use just before it is.
    let journal = std::iter::repeat_with(|| SqliteJournal::open(Path::new(&directory), SqliteSettings::default()))
        .take(100)
        .inspect(|_| std::thread::sleep(Duration::from_millis(1)))
        .find_map(Result::ok)
        .unwrap();
    let t = tenant("default");
    let mut ends: Vec<u32> = (0..SESSIONS).map(|n| length(&journal, n)).collect();
    let mut out = std::io::stdout().lock();
    for round in 0_u32.. {
        // Several batches wait at once, some of two entries, some safe against a loss of power.
        let sent: Vec<_> = (0..SESSIONS)
            .map(|n| {
                let end = &mut ends[n as usize];
                let size = 1 + (round + n) % 2;
                let mut batch = batch(&t, &session(&format!("session-{n}")), *end..*end + size);
                if (round + n) % 8 == 0 {
                    batch.durability = Durability::Power;
                }
                *end += size;
                (n, *end, journal.append(batch))
            })
            .collect();
        for (n, end, future) in sent {
            let lsn = wait(future).unwrap();
            writeln!(out, "ack {n} {end} {}", lsn.0).unwrap();
        }
    }
}

/// Entries of a session; each is checked, and carries its place as its mark.
fn length(journal: &dyn Journal, n: u32) -> u32 {
    match journal.read(&tenant("default"), &session(&format!("session-{n}")), 0, usize::MAX) {
        Ok(entries) => {
            (0..).zip(&entries).for_each(|(place, entry)| assert_eq!(mark(&entry.entry.body), place));
            entries.len() as u32
        }
        Err(JournalError::NotFound { .. }) => 0,
        Err(error) => unreachable!("{error}"),
    }
}

#[test]
fn nothing_acknowledged_is_lost_by_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(20_261_120);
    let mut acknowledged: BTreeMap<u32, u32> = BTreeMap::new();
    let mut highest_lsn = 0_u64;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut out = child.stdout.take().unwrap();
        // Early kills hit the opening, later ones the appending. The pipe is drained beside, so the child never waits for it.
        let lines = std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let mut text = String::new();
                out.read_to_string(&mut text).unwrap();
                text
            });
            std::thread::sleep(Duration::from_micros(random.u64(1_000..200_000)));
            if round == 0 {
                let refused = std::iter::repeat_with(|| {
                    std::thread::sleep(Duration::from_millis(5));
                    SqliteJournal::open(directory.path(), SqliteSettings::default()).map(drop)
                })
                .take(2_000)
                .find_map(Result::err);
                assert!(matches!(refused, Some(JournalError::InUse { .. })), "another process: {refused:?}");
            }
            child.kill().unwrap();
            child.wait().unwrap();
            reader.join().unwrap()
        });
        let whole = lines.rfind('\n').map_or("", |end| &lines[..end]);
        for line in whole.lines().filter_map(|line| line.strip_prefix("ack ")) {
            let mut fields = line.split(' ').map(|field| field.parse::<u64>().unwrap());
            let (n, end, lsn) = (fields.next().unwrap(), fields.next().unwrap(), fields.next().unwrap());
            let before = acknowledged.insert(n as u32, end as u32).unwrap_or(0);
            assert!(end as u32 > before && lsn > highest_lsn, "{line}");
            highest_lsn = lsn;
        }
        let journal = SqliteJournal::open(directory.path(), SqliteSettings::default()).unwrap();
        for (n, end) in &mut acknowledged {
            let found = length(&journal, *n);
            assert!(found >= *end, "round {round}: session {n} has {found} entries, {end} were acknowledged");
            *end = found;
        }
    }
    assert!(highest_lsn > 100, "only {highest_lsn} entries were acknowledged in {ROUNDS} rounds");
}
