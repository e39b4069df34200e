//! A whole turn on the CPU device with Pebble: warm (its history is resident, as in a session) beside cold (everything is
//! computed, as for a stateless API).
//!
//! `cargo bench -p holdfast-benches --bench turns`. The ratio of the two figures of one run is what to quote. Its limit: a warm
//! turn cannot be faster than the share of its tokens that are new. Deliberately not here: gateway, worker and journal, whose
//! cost the scenarios measure.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a benchmark")]

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use holdfast_backend_neuron::{NeuronDevice, NeuronSettings};
use holdfast_engine::{Command, Effect, Engine, EngineConfig, Run, RunId, SampleRequest};
use holdfast_kv::{ChainDomain, DomainSecret};
use holdfast_model::{Model, ModelSource};
use holdfast_types::{LogToken, Precision, SamplingParams, SequenceId, TokenId};

/// Tokens of history before the turn, tokens that it brings, tokens that it samples.
const HISTORY: u32 = 512;
const NEW: u32 = 16;
const SAMPLED: u32 = 8;

fn turns(c: &mut Criterion) {
    let mut group = c.benchmark_group("a turn on Pebble, 512 tokens of history, 16 new, 8 sampled");
    let model = Model::load(&ModelSource::resolve("pebble").unwrap()).unwrap();
    let device = NeuronDevice::new(model.config(), model.weights(), &NeuronSettings::default()).unwrap();
    let mut engine = Engine::new(Box::new(device), EngineConfig::default());
    let mut turn = 0;
    for (name, warm) in [("cold: all is computed", false), ("warm: the history is resident", true)] {
        group.bench_function(name, |b| {
            b.iter_custom(|turns| {
                let mut spent = Duration::ZERO;
                for _ in 0..turns {
                    turn += 1;
                    // A cold turn hashes under a secret of its own, so nothing of it is found.
                    let secret = if warm { [1; 32] } else { bytes(turn) };
                    if warm {
                        run(&mut engine, HISTORY, secret, turn * 2);
                    }
                    #[expect(clippy::disallowed_methods, reason = "a benchmark measures")]
                    let begin = Instant::now();
                    run(&mut engine, HISTORY + NEW, secret, turn * 2 + 1);
                    spent += begin.elapsed();
                }
                spent
            });
        });
    }
    group.finish();
}

/// 32 bytes that differ for each number.
fn bytes(number: u64) -> [u8; 32] {
    std::array::from_fn(|i| number.to_le_bytes()[i % 8])
}

/// A token of the history, the same in every turn, or a new one.
fn token(position: u32, turn: u32) -> LogToken {
    let seed = if position < HISTORY { position } else { position + turn };
    LogToken { id: 10 + seed * 37 % 900, precision: Precision::Native }
}

/// One run from its command to its end; the tokens it sampled.
fn run(engine: &mut Engine, length: u32, secret: [u8; 32], id: u64) -> Vec<TokenId> {
    let run = Run {
        run: RunId(id),
        sequence: SequenceId(id),
        log: (0..length).map(|position| token(position, id as u32)).collect(),
        computed_before: 0,
        domain: ChainDomain::single(DomainSecret(secret)),
        flow: 0,
        accepted_us: 0,
        transient: false,
        resumed: 0,
        sample: Some(SampleRequest {
            params: SamplingParams::default(),
            seed: 0,
            max_tokens: SAMPLED,
            stop_tokens: Vec::new(),
            precision: Precision::Native,
            guide: None,
            sampled_before: Vec::new(),
        }),
    };
    let mut commands = vec![Command::Run(Box::new(run))];
    let mut tokens = Vec::new();
    loop {
        for effect in engine.poll(0, std::mem::take(&mut commands)) {
            match effect {
                Effect::Sampled { tokens: sampled, .. } => tokens.extend(sampled.into_iter().map(|token| token.id)),
                Effect::Finished { .. } => return tokens,
                Effect::Failed { failure, .. } => panic!("{failure}"),
                Effect::Progress { .. } => {}
            }
        }
    }
}

criterion_group!(benches, turns);
criterion_main!(benches);
