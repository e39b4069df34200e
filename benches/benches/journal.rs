//! The journal on disk: a turn's records written as a worker writes them, and a session read back.
//!
//! `cargo bench -p holdfast-benches --bench journal`; figures are turns (written) or entries (read) per second, and a line tells the
//! bytes of a turn. A turn of 32 sampled tokens is 33 batches, each committed before the next is handed over, as when each step of
//! the device gives one token; the first and the last are made safe against a loss of power, with a sync of the file. So
//! the limit of one session is the disk's sync, and 64 sessions that step together share their commits. The files lie in the
//! temporary directory: set `TMPDIR` to a directory of the disk that is to be measured, for in memory a sync is free.
//! Deliberately not here: the worker, which writes while the device computes.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs, reason = "a benchmark")]

mod conversation;

use std::path::Path;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use holdfast_journal::{AppendFuture, Batch, Entry, Journal as _, SqliteJournal, SqliteSettings};
use holdfast_types::{SessionId, TenantId};
use holdfast_worker::fold::{Languages, SessionFold};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use conversation::Conversation;

/// Tokens that a turn samples.
const SAMPLED: usize = 32;
/// Turns of the session that is read.
const TURNS: usize = 100;
/// Entries that a worker reads at once.
const PAGE_ENTRIES: usize = 1_024;

fn append(c: &mut Criterion) {
    let mut group = c.benchmark_group("journal, a turn of 32 sampled tokens");
    let text = conversation::pebble();
    for sessions in [1, 64] {
        let (directory, runtime) = (TempDir::new().unwrap(), runtime());
        let journal = open(directory.path());
        let turns: Vec<Vec<Batch>> = (0..sessions)
            .map(|session| {
                let (mut conversation, created) = Conversation::begin(&text, session);
                runtime.block_on(journal.append(created)).unwrap();
                conversation.turn(SAMPLED).0
            })
            .collect();
        group.throughput(Throughput::Elements(sessions));
        group.bench_function(BenchmarkId::new("sessions", sessions), |b| {
            let write = |turns| runtime.block_on(write_in_step(&journal, turns));
            b.iter_batched(|| turns.clone(), write, BatchSize::PerIteration);
        });
    }
    group.finish();
}

fn read(c: &mut Criterion) {
    let mut group = c.benchmark_group("journal, a session of 100 turns");
    let text = conversation::pebble();
    let languages = conversation::languages(&text);
    let (directory, runtime) = (TempDir::new().unwrap(), runtime());
    let journal = open(directory.path());
    let (mut conversation, created) = Conversation::begin(&text, 0);
    let session = conversation.session().clone();
    let empty = stored_bytes(directory.path());
    let (mut commits, mut bodies) = (vec![journal.append(created)], 0);
    for _ in 0..TURNS {
        for batch in conversation.turn(SAMPLED).0 {
            bodies += batch.entries.iter().map(|entry| serde_json::to_vec(&entry.body).unwrap().len()).sum::<usize>();
            commits.push(journal.append(batch));
        }
    }
    runtime.block_on(all(commits));
    drop(journal);
    let stored = stored_bytes(directory.path()) - empty;
    let (per_turn, bodies) = (stored / TURNS as u64, bodies / TURNS);
    eprintln!("a turn of {SAMPLED} sampled tokens: {bodies} bytes of bodies, {per_turn} bytes in the database");

    let journal = open(directory.path());
    let entries = entries(&journal, &session).len() as u64;
    group.throughput(Throughput::Elements(entries));
    group.bench_function("read", |b| b.iter(|| self::entries(&journal, &session)));
    group.bench_function("read and fold", |b| {
        b.iter(|| {
            let fold = fold(&self::entries(&journal, &session), &languages);
            assert_eq!(fold.turns().len(), TURNS);
            fold
        });
    });
    group.finish();
}

/// Writes a turn of several sessions, one batch of each at a time: the next ones follow when all are committed.
async fn write_in_step(journal: &SqliteJournal, turns: Vec<Vec<Batch>>) {
    let mut turns: Vec<_> = turns.into_iter().map(Vec::into_iter).collect();
    loop {
        let commits: Vec<_> = turns.iter_mut().filter_map(Iterator::next).map(|batch| journal.append(batch)).collect();
        if commits.is_empty() {
            return;
        }
        all(commits).await;
    }
}

async fn all(commits: Vec<AppendFuture>) {
    for commit in commits {
        commit.await.unwrap();
    }
}

/// A session from its first entry to its last, by pages as a worker reads them.
fn entries(journal: &SqliteJournal, session: &SessionId) -> Vec<Entry> {
    let tenant = TenantId::parse("default").unwrap();
    let mut all = Vec::new();
    loop {
        let page = journal.read(&tenant, session, all.len() as u64, PAGE_ENTRIES).unwrap();
        let last = page.len() < PAGE_ENTRIES;
        all.extend(page);
        if last {
            return all;
        }
    }
}

fn fold(entries: &[Entry], languages: &Languages) -> SessionFold {
    let mut fold = SessionFold::begin(&entries[0].entry, languages.clone()).unwrap();
    let mut events = Vec::new();
    for entry in &entries[1..] {
        fold.apply(&entry.entry, &mut events).unwrap();
        events.clear();
    }
    fold
}

/// Bytes of the files of a data directory.
fn stored_bytes(directory: &Path) -> u64 {
    std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

fn open(directory: &Path) -> SqliteJournal {
    SqliteJournal::open(directory, SqliteSettings::default()).unwrap()
}

fn runtime() -> Runtime {
    Builder::new_current_thread().build().unwrap()
}

criterion_group!(benches, append, read);
criterion_main!(benches);
