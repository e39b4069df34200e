//! Crashes and commits of the journal in memory, as simulations use them.
#![allow(clippy::unwrap_used)]

mod support;

use holdfast_journal::{Durability, Journal, JournalError, Lsn, MemoryJournal};
use support::{batch, mark, session, tenant, wait};

fn marks(journal: &dyn Journal, name: &str) -> Vec<u32> {
    match journal.read(&tenant("default"), &session(name), 0, 100) {
        Ok(entries) => entries.iter().map(|e| mark(&e.entry.body)).collect(),
        Err(JournalError::NotFound { .. }) => Vec::new(),
        Err(error) => unreachable!("{error}"),
    }
}

#[test]
fn pending_is_not_read_until_it_is_committed_and_a_crash_loses_it() {
    let (t, s) = (tenant("default"), session("session-1"));
    let journal = MemoryJournal::stepped([1; 32]);
    let futures: Vec<_> = (1..=3).map(|n| journal.append(batch(&t, &s, [n]))).collect();
    assert_eq!((journal.pending(), marks(&journal, "session-1")), (3, vec![]));
    assert_eq!(journal.commit(2), 2);
    assert_eq!(marks(&journal, "session-1"), [1, 2]);
    let survivor = journal.crash();
    let answers: Vec<_> = futures.into_iter().map(wait).collect();
    assert_eq!(answers[..2], [Ok(Lsn(1)), Ok(Lsn(2))]);
    assert!(matches!(answers[2], Err(JournalError::Io(_))));
    assert!(wait(journal.append(batch(&t, &s, [9]))).is_err(), "the old journal is dead");
    assert_eq!((survivor.pending(), marks(&survivor, "session-1")), (0, vec![1, 2]));
    assert_eq!(survivor.secret(), [1; 32]);
    let next = survivor.append(batch(&t, &s, [3]));
    assert_eq!(survivor.commit(usize::MAX), 1);
    assert_eq!(wait(next), Ok(Lsn(3)));
}

#[test]
fn a_loss_of_power_keeps_what_was_made_safe_against_it() {
    let (t, a, b) = (tenant("default"), session("session-a"), session("session-b"));
    let journal = MemoryJournal::automatic([1; 32]);
    wait(journal.append(batch(&t, &a, [1]))).unwrap();
    let mut safe = batch(&t, &a, [2]);
    safe.durability = Durability::Power;
    wait(journal.append(safe)).unwrap();
    wait(journal.append(batch(&t, &a, [3]))).unwrap();
    wait(journal.append(batch(&t, &b, [4]))).unwrap();
    let survivor = journal.lose_power();
    assert_eq!((marks(&survivor, "session-a"), marks(&survivor, "session-b")), (vec![1, 2], vec![]));
    assert_eq!(survivor.count(&t), Ok(1));
    assert_eq!(wait(survivor.append(batch(&t, &b, [5]))), Ok(Lsn(3)));
}

#[test]
fn a_write_error_refuses_the_sessions_it_touched() {
    let (t, a, b) = (tenant("default"), session("session-a"), session("session-b"));
    let journal = MemoryJournal::stepped([1; 32]);
    let lost = journal.append(batch(&t, &a, [1]));
    journal.fail_pending("disk full");
    assert_eq!(wait(lost), Err(JournalError::Io("disk full".to_owned())));
    let (refused, fine) = (journal.append(batch(&t, &a, [2])), journal.append(batch(&t, &b, [3])));
    journal.commit(2);
    assert!(wait(refused).is_err());
    assert_eq!(wait(fine), Ok(Lsn(1)));
}

#[test]
fn damage_is_found() {
    let (t, s) = (tenant("default"), session("session-1"));
    let journal = MemoryJournal::automatic([1; 32]);
    wait(journal.append(batch(&t, &s, 0..3))).unwrap();
    assert!(journal.damage(&t, &s, 1));
    assert!(matches!(journal.read(&t, &s, 0, 10), Err(JournalError::Corrupt { index: 1, .. })));
    assert_eq!(journal.read(&t, &s, 0, 1).unwrap().len(), 1);
}
