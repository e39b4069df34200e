//! What a session's state costs the processor: keys of blocks, the block pool, and the cache over them.
//!
//! `cargo bench -p holdfast-benches --bench state`; figures are tokens or blocks per second. Its limit: a key hashes 32 + 9 + 5 bytes
//! per token with BLAKE3, a block changes hands in constant time, and a resident chain is found with one lookup per block,
//! so each figure should not depend on how much else is there. Deliberately not here: bytes of KV (the device's).
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use holdfast_engine::testing::small_device;
use holdfast_kv::{BlockKey, BlockPool, Chain, ChainDomain, DomainSecret, KvCache};
use holdfast_types::{LogToken, Precision, SequenceId};

const BLOCK_TOKENS: u32 = 16;
/// Tokens of the long log: half a thousand blocks.
const LOG_TOKENS: u32 = 8_192;
/// Tokens of the log that has to make room for itself.
const NEW_TOKENS: u32 = 256;
/// Blocks of the pool: a device that holds a million tokens.
const BLOCKS: u32 = 65_536;

fn keys(c: &mut Criterion) {
    let mut group = c.benchmark_group("block key");
    let device = small_device(BLOCK_TOKENS, &[64], 1);
    let (secret, log) = (DomainSecret([7; 32]), log(0, LOG_TOKENS));
    let root = BlockKey::root(&device, 0);
    group.throughput(Throughput::Elements(u64::from(BLOCK_TOKENS)));
    group.bench_function("one block", |b| b.iter(|| root.next(&secret, &log[..BLOCK_TOKENS as usize])));
    let kv = KvCache::new(&device, 256);
    group.throughput(Throughput::Elements(u64::from(LOG_TOKENS)));
    group.bench_function("chain of 8,192 tokens", |b| b.iter(|| kv.chain(&log, domain())));
    group.finish();
}

fn pool(c: &mut Criterion) {
    const TAKEN: u32 = 64;
    let mut group = c.benchmark_group("block pool");
    group.throughput(Throughput::Elements(u64::from(TAKEN)));
    let mut pool = BlockPool::new(BLOCKS);
    group.bench_function("reserve, commit and discard 64 blocks", |b| {
        b.iter(|| {
            let reservation = pool.reserve(TAKEN).unwrap();
            for block in pool.commit(reservation) {
                pool.discard(block);
            }
        });
    });
    group.bench_function("reserve, commit, publish, release and evict 64 blocks", |b| {
        b.iter(|| {
            let reservation = pool.reserve(TAKEN).unwrap();
            for block in pool.commit(reservation) {
                pool.publish(block);
                pool.release(block);
                pool.evict(block);
            }
        });
    });
    group.finish();
}

fn cache(c: &mut Criterion) {
    let mut group = c.benchmark_group("cache of 65,536 blocks");
    let mut kv = KvCache::new(&small_device(BLOCK_TOKENS, &[BLOCKS], 1), 256);
    // All of it belongs to sequences at rest: the cache of a device that has been used for a while.
    let mut sequence = 0;
    while kv.counts(0).free > 0 {
        sequence += 1;
        compute(&mut kv, SequenceId(sequence), &log(sequence, LOG_TOKENS + 1));
    }

    let resident = log(sequence, LOG_TOKENS + 1);
    let mut chain = Some(kv.chain(&resident, domain()));
    group.throughput(Throughput::Elements(u64::from(LOG_TOKENS)));
    group.bench_function("find, hold and release a resident log of 8,192 tokens", |b| {
        b.iter(|| {
            let (holding, found) = kv.attach(SequenceId(sequence), chain.take().unwrap(), &resident);
            assert_eq!(found.tokens, LOG_TOKENS);
            chain = Some(kv.release(holding, &resident, found.tokens));
        });
    });

    // Keys depend on the device alone, so another cache of the same device can make them while this one is measured.
    let maker = KvCache::new(&small_device(BLOCK_TOKENS, &[BLOCKS], 1), 256);
    group.throughput(Throughput::Elements(u64::from(NEW_TOKENS / BLOCK_TOKENS)));
    group.bench_function("evict 16 blocks for a new log of 256 tokens", |b| {
        b.iter_batched(
            || {
                sequence += 1;
                let log = log(sequence, NEW_TOKENS + 1);
                (SequenceId(sequence), maker.chain(&log, domain()), log)
            },
            |(sequence, chain, log)| compute_chain(&mut kv, sequence, chain, &log),
            BatchSize::SmallInput,
        );
    });
    assert_eq!(kv.counts(0).free, 0, "the pool is under pressure throughout");
    group.finish();
}

/// Leaves all but the last token of a log resident, under keys that are made here.
fn compute(kv: &mut KvCache, sequence: SequenceId, log: &[LogToken]) {
    let chain = kv.chain(log, domain());
    compute_chain(kv, sequence, chain, log);
}

/// Leaves all but the last token of a log resident.
fn compute_chain(kv: &mut KvCache, sequence: SequenceId, chain: Chain, log: &[LogToken]) -> Chain {
    let (mut holding, _) = kv.attach(sequence, chain, log);
    let tokens = log.len() as u32 - 1;
    let growth = kv.reserve(&holding, tokens).unwrap();
    kv.commit(&mut holding, growth);
    kv.seal(&mut holding, log, tokens);
    kv.release(holding, log, tokens)
}

/// A log that shares no block with that of another sequence.
fn log(sequence: u64, tokens: u32) -> Vec<LogToken> {
    let token = |position| if position == 0 { sequence as u32 } else { position };
    (0..tokens).map(|position| LogToken { id: token(position), precision: Precision::Native }).collect()
}

fn domain() -> ChainDomain {
    ChainDomain::single(DomainSecret([7; 32]))
}

criterion_group!(benches, keys, pool, cache);
criterion_main!(benches);
