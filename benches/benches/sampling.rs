//! The sampler: one draw from a row of logits, at a small and at a large vocabulary.
//!
//! `cargo bench -p holdfast-benches --bench sampling`; figures are logits per second. Its limit: a draw reads the row at least once, so
//! greedy is bound by memory; a draw at a temperature takes one exponential in f64 per word. Logits are normally distributed
//! with a deviation of 3: flatter than a trained model's, so that a nucleus is large, which is the slow case.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use holdfast_backend::sampler::SlotSampler;
use holdfast_types::{SamplingParams, SlotSampling, TokenMask};

/// Words of a Llama 2 and of a Llama 3 vocabulary.
const VOCABULARIES: [u32; 2] = [32_000, 128_256];
/// Distinct tokens that penalties know of.
const CONTEXT_TOKENS: u32 = 2_048;

fn draws(c: &mut Criterion) {
    let greedy = SamplingParams::default();
    let warm = SamplingParams { temperature: 0.8, ..SamplingParams::default() };
    let settings = [
        ("greedy", greedy.clone()),
        ("temperature", warm.clone()),
        ("top-k 64, top-p 0.95", SamplingParams { top_k: 64, top_p: 0.95, ..warm.clone() }),
        ("top-p 0.95", SamplingParams { top_p: 0.95, ..warm.clone() }),
        ("min-p 0.05", SamplingParams { min_p: 0.05, ..warm }),
        ("greedy, 5 log probabilities", SamplingParams { logprobs: Some(5), ..greedy }),
    ];
    let mut group = c.benchmark_group("sampler");
    for vocabulary in VOCABULARIES {
        let logits = logits(vocabulary);
        group.throughput(Throughput::Elements(u64::from(vocabulary)));
        for (name, params) in &settings {
            let mut sampler = sampler(params.clone(), vocabulary);
            let mut position = 0;
            group.bench_function(BenchmarkId::new(*name, vocabulary), |b| {
                b.iter(|| {
                    position += 1;
                    sampler.sample(&logits, position, None)
                });
            });
        }
    }
    group.finish();
}

/// A sampler remembers what it draws, so each draw is the same one after a context of 2,048 tokens.
fn penalties(c: &mut Criterion) {
    let params = SamplingParams {
        repetition_penalty: 1.1,
        frequency_penalty: 0.1,
        presence_penalty: 0.1,
        ..SamplingParams::default()
    };
    let mut group = c.benchmark_group("sampler with penalties");
    for vocabulary in VOCABULARIES {
        let logits = logits(vocabulary);
        let mut warm = sampler(params.clone(), vocabulary);
        // The first draw makes room for a row.
        warm.sample(&logits, 0, None);
        group.throughput(Throughput::Elements(u64::from(vocabulary)));
        group.bench_function(BenchmarkId::new("greedy", vocabulary), |b| {
            b.iter_batched_ref(|| warm.clone(), |sampler| sampler.sample(&logits, 1, None), BatchSize::PerIteration);
        });
    }
    group.finish();
}

fn masks(c: &mut Criterion) {
    let mut group = c.benchmark_group("sampler with a mask");
    for vocabulary in VOCABULARIES {
        let logits = logits(vocabulary);
        let half = vec![0x5555_5555_5555_5555; vocabulary.div_ceil(64) as usize];
        let masks = [
            ("greedy, of 32 words", TokenMask::Only((0..32).map(|at| at * (vocabulary / 32)).collect())),
            ("greedy, of half the words", TokenMask::Bits(half)),
        ];
        group.throughput(Throughput::Elements(u64::from(vocabulary)));
        for (name, mask) in masks {
            let mut sampler = sampler(SamplingParams::default(), vocabulary);
            group.bench_function(BenchmarkId::new(name, vocabulary), |b| {
                b.iter(|| sampler.sample(&logits, 1, Some(&mask)));
            });
        }
    }
    group.finish();
}

fn sampler(params: SamplingParams, vocabulary: u32) -> SlotSampler {
    let context: Vec<u32> = (0..CONTEXT_TOKENS).map(|at| at * (vocabulary / CONTEXT_TOKENS)).collect();
    let sampled = context.iter().take(256).map(|token| (*token, 1)).collect();
    SlotSampler::new(&SlotSampling { params, seed: 1, context, sampled }, vocabulary).unwrap()
}

/// Normally distributed: twelve uniform numbers less six have a deviation of 1.
fn logits(vocabulary: u32) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(1);
    (0..vocabulary).map(|_| 3.0 * ((0..12).map(|_| rng.f32()).sum::<f32>() - 6.0)).collect()
}

criterion_group!(benches, draws, penalties, masks);
criterion_main!(benches);
