//! What every journal does, run against each implementation. A case gets a fresh journal and knows the trait only.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use holdfast_journal::{
    Body, Durability, HeadFilter, Journal, JournalError, Lsn, MemoryJournal, SqliteJournal, SqliteSettings,
};
use holdfast_types::{Digest, SessionState, TurnNumber};
use support::{batch, entry, head, mark, session, tenant, wait};

/// A case.
type Case = fn(&dyn Journal);

const CASES: &[(&str, Case)] = &[
    ("entries come back in order and as they were", entries_come_back),
    ("a read is paged", a_read_is_paged),
    ("the chain links every entry to the one before", the_chain_links),
    ("positions rise over all sessions", positions_rise),
    ("a batch that cannot be stored leaves nothing, and its session is refused", a_bad_batch_leaves_nothing),
    ("a head is replaced whole and stays without one", heads_are_replaced),
    ("a list filters and pages", a_list_filters_and_pages),
    ("attention names what runs, is deleted or expires", attention_names),
    ("tenants do not see each other", tenants_are_apart),
    ("a purge removes one session and frees its name", a_purge_removes),
    ("unknown sessions are not found", unknown_sessions),
];

#[test]
fn memory_automatic() {
    for (name, case) in CASES {
        eprint_case("memory", name);
        case(&MemoryJournal::automatic([7; 32]));
    }
}

#[test]
fn sqlite() {
    for (name, case) in CASES {
        eprint_case("sqlite", name);
        let directory = tempfile::tempdir().unwrap();
        case(&SqliteJournal::open(directory.path(), SqliteSettings::default()).unwrap());
    }
}

#[expect(clippy::print_stderr, reason = "names the case in a failing test's captured output")]
fn eprint_case(journal: &str, name: &str) {
    eprintln!("{journal}: {name}");
}

fn entries_come_back(journal: &dyn Journal) {
    let (t, s) = (tenant("default"), session("session-1"));
    assert_eq!(wait(journal.append(batch(&t, &s, [1, 2]))), Ok(Lsn(2)));
    assert_eq!(wait(journal.append(batch(&t, &s, [3]))), Ok(Lsn(3)));
    let entries = journal.read(&t, &s, 0, 10).unwrap();
    let given: Vec<_> = (1..=3).map(|mark| entry(&t, &s, mark)).collect();
    assert_eq!(entries.iter().map(|e| e.entry.clone()).collect::<Vec<_>>(), given);
    assert_eq!(entries.iter().map(|e| (e.lsn.0, e.index)).collect::<Vec<_>>(), [(1, 0), (2, 1), (3, 2)]);
    assert!(entries.iter().all(|e| e.key_id == 0));
}

fn a_read_is_paged(journal: &dyn Journal) {
    let (t, s) = (tenant("default"), session("session-1"));
    wait(journal.append(batch(&t, &s, 0..10))).unwrap();
    let marks = |from, limit| -> Vec<u32> {
        journal.read(&t, &s, from, limit).unwrap().iter().map(|e| mark(&e.entry.body)).collect()
    };
    assert_eq!(marks(0, 4), [0, 1, 2, 3]);
    assert_eq!(marks(4, 4), [4, 5, 6, 7]);
    assert_eq!(marks(8, 4), [8, 9]);
    assert_eq!(marks(10, 4), [0_u32; 0]);
    assert_eq!(marks(u64::MAX, usize::MAX), [0_u32; 0]);
    assert_eq!(marks(0, 0), [0_u32; 0]);
    assert_eq!(marks(9, usize::MAX), [9]);
}

fn the_chain_links(journal: &dyn Journal) {
    let t = tenant("default");
    for name in ["session-1", "session-2"] {
        wait(journal.append(batch(&t, &session(name), [1, 1]))).unwrap();
        wait(journal.append(batch(&t, &session(name), [1]))).unwrap();
    }
    let read = |name: &str| journal.read(&t, &session(name), 0, 10).unwrap();
    let (one, two) = (read("session-1"), read("session-2"));
    assert_eq!(one[0].previous, Digest::default());
    assert_eq!((one[1].previous, one[2].previous), (one[0].hash, one[1].hash));
    assert!(one[0].hash != one[1].hash && one[1].hash != one[2].hash, "equal bodies at other places");
    assert_ne!(one[0].hash, two[0].hash, "equal bodies of another session");
}

fn positions_rise(journal: &dyn Journal) {
    let t = tenant("default");
    let futures: Vec<_> =
        (0..300_u32).map(|n| journal.append(batch(&t, &session(&format!("session-{}", n % 7)), [n, n]))).collect();
    let positions: Vec<Lsn> = futures.into_iter().map(|future| wait(future).unwrap()).collect();
    assert_eq!(positions, (1..=300).map(|n| Lsn(2 * n)).collect::<Vec<_>>());
}

fn a_bad_batch_leaves_nothing(journal: &dyn Journal) {
    let (t, good, bad) = (tenant("default"), session("session-good"), session("session-bad"));
    wait(journal.append(batch(&t, &bad, [1]))).unwrap();
    let mut mixed = batch(&t, &bad, [2]);
    mixed.entries.push(entry(&t, &good, 3));
    assert!(matches!(wait(journal.append(mixed)), Err(JournalError::Io(_))));
    let again = wait(journal.append(batch(&t, &bad, [4]))).unwrap_err();
    assert!(again.to_string().contains("session-bad failed before"), "{again}");
    assert!(wait(journal.purge(t.clone(), bad.clone())).is_err());
    assert_eq!(journal.read(&t, &bad, 0, 10).unwrap().len(), 1);
    assert!(matches!(journal.read(&t, &good, 0, 10), Err(JournalError::NotFound { .. })));

    assert_eq!(wait(journal.append(batch(&t, &good, [5]))), Ok(Lsn(2)), "others go on, without a gap");
    let mut empty = batch(&t, &good, [6]);
    empty.entries.clear();
    assert!(wait(journal.append(empty)).is_err());

    for (name, spoil) in [("session-nan", f32::NAN), ("session-inf", f32::INFINITY)] {
        let mut batch = batch(&t, &session(name), [1, 2]);
        if let Body::Sampled { run, .. } = &mut batch.entries[1].body {
            run.logprobs = vec![vec![holdfast_types::TokenLogprob { id: 1, logprob: spoil }]];
        }
        assert!(wait(journal.append(batch)).is_err(), "{name}");
        assert!(matches!(journal.read(&t, &session(name), 0, 10), Err(JournalError::NotFound { .. })), "{name}");
    }
    let mut foreign = batch(&t, &session("session-2"), [1]);
    foreign.head = Some(head(&t, &good, SessionState::Idle));
    assert!(wait(journal.append(foreign)).is_err());
}

fn heads_are_replaced(journal: &dyn Journal) {
    let (t, s) = (tenant("default"), session("session-1"));
    assert_eq!(journal.head(&t, &s), Ok(None));
    let mut full = head(&t, &s, SessionState::RequiresAction);
    full.expires_us = Some(99);
    full.labels = BTreeMap::from([("a\"b".to_owned(), "ü".to_owned())]);
    let mut first = batch(&t, &s, [1]);
    first.head = Some(full.clone());
    wait(journal.append(first)).unwrap();
    assert_eq!(journal.head(&t, &s), Ok(Some(full.clone())));
    let mut second = batch(&t, &s, [2]);
    second.head = None;
    wait(journal.append(second)).unwrap();
    assert_eq!(journal.head(&t, &s), Ok(Some(full)));
    wait(journal.append(batch(&t, &s, [3]))).unwrap();
    assert_eq!(journal.head(&t, &s), Ok(Some(head(&t, &s, SessionState::Idle))));
}

fn a_list_filters_and_pages(journal: &dyn Journal) {
    let t = tenant("default");
    let states = [SessionState::Idle, SessionState::Running, SessionState::Deleting, SessionState::Suspended];
    for n in 0..12_usize {
        let s = session(&format!("session-{n:02}"));
        let mut of = head(&t, &s, states[n % 4]);
        of.model = if n < 6 { "pebble" } else { "boulder" }.to_owned();
        of.labels.insert("team".to_owned(), format!("{}", n % 2));
        of.labels.insert("odd 'key\".$".to_owned(), "x".to_owned());
        let mut batch = batch(&t, &s, [1]);
        batch.head = Some(of);
        wait(journal.append(batch)).unwrap();
    }
    let list = |filter: &HeadFilter, after: Option<&str>, limit| -> Vec<String> {
        let after = after.map(session);
        let found = journal.list(&t, filter, after.as_ref(), limit).unwrap();
        found.into_iter().map(|head| head.session.as_str()["session-".len()..].to_owned()).collect()
    };
    let all = HeadFilter::default();
    assert_eq!(list(&all, None, 100), ["00", "01", "03", "04", "05", "07", "08", "09", "11"], "all but Deleting");
    assert_eq!(list(&all, None, 2), ["00", "01"]);
    assert_eq!(list(&all, Some("session-01"), 2), ["03", "04"]);
    assert_eq!(list(&all, Some("session-11"), 2), [""; 0]);
    let of = |states: &[SessionState]| HeadFilter { states: states.to_vec(), ..HeadFilter::default() };
    assert_eq!(list(&of(&[SessionState::Deleting]), None, 100), ["02", "06", "10"]);
    assert_eq!(list(&of(&[SessionState::Idle, SessionState::Running]), None, 3), ["00", "01", "04"]);
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let labels = vec![pair("team", "1"), pair("odd 'key\".$", "x")];
    let filter = HeadFilter { labels, model: Some("boulder".to_owned()), ..HeadFilter::default() };
    assert_eq!(list(&filter, None, 100), ["07", "09", "11"]);
    let filter = HeadFilter { labels: vec![pair("team", "x")], ..HeadFilter::default() };
    assert_eq!(list(&filter, None, 100), [""; 0]);
}

fn attention_names(journal: &dyn Journal) {
    let t = tenant("default");
    let cases = [
        ("session-idle", SessionState::Idle, None),
        ("session-runs", SessionState::Running, None),
        ("session-gone", SessionState::Deleting, None),
        ("session-late", SessionState::Suspended, Some(100)),
        ("session-soon", SessionState::Idle, Some(99)),
        ("session-wait", SessionState::RequiresAction, None),
    ];
    for (name, state, expires_us) in cases {
        let mut batch = batch(&t, &session(name), [1]);
        batch.head = Some(holdfast_journal::SessionHead { expires_us, ..head(&t, &session(name), state) });
        wait(journal.append(batch)).unwrap();
    }
    let names = |before, limit| -> Vec<String> {
        journal.attention(before, limit).unwrap().into_iter().map(|head| head.session.as_str().to_owned()).collect()
    };
    assert_eq!(names(100, 10), ["session-gone", "session-runs", "session-soon"]);
    assert_eq!(names(101, 10), ["session-gone", "session-late", "session-runs", "session-soon"]);
    assert_eq!(names(0, 1), ["session-gone"]);
    assert_eq!(names(u64::MAX, 10).len(), 4);
}

fn tenants_are_apart(journal: &dyn Journal) {
    let (a, b, s) = (tenant("a"), tenant("b"), session("session-1"));
    wait(journal.append(batch(&a, &s, [1]))).unwrap();
    wait(journal.append(batch(&b, &s, [2, 3]))).unwrap();
    assert_eq!(journal.read(&a, &s, 0, 10).unwrap().len(), 1);
    assert_eq!(journal.read(&b, &s, 0, 10).unwrap().len(), 2);
    assert_eq!((journal.count(&a), journal.count(&b), journal.count(&tenant("c"))), (Ok(1), Ok(1), Ok(0)));
    wait(journal.purge(a.clone(), s.clone())).unwrap();
    assert_eq!((journal.count(&a), journal.count(&b)), (Ok(0), Ok(1)));
    assert_eq!(journal.list(&b, &HeadFilter::default(), None, 10).unwrap().len(), 1);
}

fn a_purge_removes(journal: &dyn Journal) {
    let (t, s, other) = (tenant("default"), session("session-1"), session("session-2"));
    wait(journal.append(batch(&t, &s, 0..5))).unwrap();
    wait(journal.append(batch(&t, &other, [9]))).unwrap();
    assert_eq!(wait(journal.purge(t.clone(), s.clone())), Ok(Lsn(6)));
    assert!(matches!(journal.read(&t, &s, 0, 10), Err(JournalError::NotFound { .. })));
    assert_eq!(journal.head(&t, &s), Ok(None));
    assert!(matches!(wait(journal.purge(t.clone(), s.clone())), Err(JournalError::NotFound { .. })));
    let mut again = batch(&t, &s, [1]);
    again.durability = Durability::Power;
    again.entries[0].body = Body::TurnStarted { turn: TurnNumber(1) };
    assert_eq!(wait(journal.append(again)), Ok(Lsn(7)));
    assert_eq!(journal.read(&t, &s, 0, 10).unwrap().len(), 1);
    assert_eq!(journal.read(&t, &other, 0, 10).unwrap().len(), 1);
}

fn unknown_sessions(journal: &dyn Journal) {
    let (t, s) = (tenant("default"), session("session-1"));
    assert!(matches!(journal.read(&t, &s, 0, 1), Err(JournalError::NotFound { .. })));
    assert!(matches!(wait(journal.purge(t.clone(), s.clone())), Err(JournalError::NotFound { .. })));
    assert_eq!(journal.count(&t), Ok(0));
}
