//! The kernels of the CPU device, one by one, on one core, for every instruction set of this machine.
//!
//! `cargo bench -p holdfast-benches --bench kernels`. Elements are floating-point (or, in int8, integer) operations, so `Gelem/s` reads
//! as GFLOP/s (an exponential and a gated SiLU count as one each); bytes are what has to be read and written, so `GiB/s` compares with the memory's bandwidth. Its limits: a
//! tile is bound by the adders, two (multiply, then add: never fused) times the lanes times the frequency; a row is bound by the
//! memory that the weights come from. Matrices of 16 MiB are larger than most caches of one core. Deliberately not here: threads
//! and whole steps (`turns`).
#![allow(missing_docs, reason = "a benchmark")]

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use holdfast_backend_neuron::Isa;
use holdfast_backend_neuron::kernels::activation::{exp, gated_silu};
use holdfast_backend_neuron::kernels::matmul::{
    Int8Panel, PANEL, Quantised, TILE, f32_row, f32_tile, int8_row, int8_tile,
};
use holdfast_backend_neuron::kernels::norm::rms_norm;
use holdfast_backend_neuron::kernels::quantise::{GROUP, groups, quantise_row};
use holdfast_backend_neuron::kernels::rope::RopeTable;

/// Width of the hidden state, and of the square matrices: those of a model of a billion weights.
const HIDDEN: usize = 2_048;
/// Width of its feed-forward.
const FFN: usize = 8_192;
/// Elements of a head.
const HEAD: usize = 64;

fn matmul_f32(c: &mut Criterion) {
    let mut group = c.benchmark_group("matmul f32, 2,048 x 2,048");
    let (x, weights) = (random(1, TILE * HIDDEN), random(2, HIDDEN * HIDDEN));
    let rows: [&[f32]; TILE] = std::array::from_fn(|row| &x[row * HIDDEN..(row + 1) * HIDDEN]);
    let panels = || weights.chunks_exact(HIDDEN * PANEL);
    for isa in Isa::available() {
        group.throughput(product(1, 4 * HIDDEN * HIDDEN));
        group.bench_function(BenchmarkId::new("1 row", isa.name()), |b| {
            let mut out = [[0.0; PANEL]; 1];
            b.iter(|| {
                for panel in panels() {
                    f32_row(isa, &[rows[0]], panel, &mut out);
                    black_box(&mut out);
                }
            });
        });
        group.throughput(product(TILE, 4 * HIDDEN * HIDDEN));
        group.bench_function(BenchmarkId::new("4 rows", isa.name()), |b| {
            let mut out = [[0.0; PANEL]; TILE];
            b.iter(|| {
                for panel in panels() {
                    f32_tile(isa, &rows, panel, &mut out);
                    black_box(&mut out);
                }
            });
        });
    }
    group.finish();
}

fn matmul_int8(c: &mut Criterion) {
    let mut group = c.benchmark_group("matmul int8, 2,048 x 2,048");
    let mut rng = fastrand::Rng::with_seed(3);
    let mut codes = |len: usize| -> Vec<i8> { (0..len).map(|_| rng.i8(-127..=127)).collect() };
    let (x, weights) = (codes(TILE * HIDDEN), codes(HIDDEN * HIDDEN));
    let (x_scales, scales) = (random(4, TILE * groups(HIDDEN)), random(5, groups(HIDDEN) * HIDDEN));
    let rows: [Quantised<'_>; TILE] = std::array::from_fn(|row| Quantised {
        codes: &x[row * HIDDEN..(row + 1) * HIDDEN],
        scales: &x_scales[row * groups(HIDDEN)..(row + 1) * groups(HIDDEN)],
    });
    let panels = || {
        let codes = weights.chunks_exact(HIDDEN * PANEL);
        codes.zip(scales.chunks_exact(groups(HIDDEN) * PANEL)).map(|(codes, scales)| Int8Panel { codes, scales })
    };
    let bytes = HIDDEN * HIDDEN + 4 * scales.len();
    for isa in Isa::available() {
        group.throughput(product(1, bytes));
        group.bench_function(BenchmarkId::new("1 row", isa.name()), |b| {
            let mut out = [[0.0; PANEL]; 1];
            b.iter(|| {
                for panel in panels() {
                    int8_row(isa, &[rows[0]], panel, &mut out);
                    black_box(&mut out);
                }
            });
        });
        group.throughput(product(TILE, bytes));
        group.bench_function(BenchmarkId::new("4 rows", isa.name()), |b| {
            let mut out = [[0.0; PANEL]; TILE];
            b.iter(|| {
                for panel in panels() {
                    int8_tile(isa, &rows, panel, &mut out);
                    black_box(&mut out);
                }
            });
        });
    }
    group.finish();
}

fn rows(c: &mut Criterion) {
    let mut group = c.benchmark_group("row kernels");
    let (row, weight) = (random(9, HIDDEN), random(10, HIDDEN));
    let up = random(11, FFN);
    for isa in Isa::available() {
        let mut out = vec![0.0; HIDDEN];
        group.throughput(work(4 * HIDDEN, 12 * HIDDEN));
        group.bench_function(BenchmarkId::new("RMSNorm of 2,048", isa.name()), |b| {
            b.iter(|| rms_norm(isa, black_box(&row), &weight, 1e-5, &mut out));
        });
        let (mut codes, mut scales) = (vec![0; groups(HIDDEN) * GROUP], vec![0.0; groups(HIDDEN)]);
        group.throughput(work(2 * HIDDEN, 5 * HIDDEN + 4 * scales.len()));
        group.bench_function(BenchmarkId::new("quantise 2,048", isa.name()), |b| {
            b.iter(|| quantise_row(isa, black_box(&row), &mut codes, &mut scales));
        });
        let frequencies: Vec<f32> = (0..HEAD / 2).map(|at| 10_000_f32.powf(-2.0 * at as f32 / HEAD as f32)).collect();
        let table = RopeTable::new(&frequencies, 1_024);
        let mut heads = random(13, HIDDEN);
        group.throughput(work(3 * HIDDEN, 8 * HIDDEN));
        group.bench_function(BenchmarkId::new("RoPE of 32 heads of 64", isa.name()), |b| {
            b.iter(|| table.rotate(isa, black_box(&mut heads), 1_000));
        });
        // It works in place: a fresh gate each time, or it would shrink to numbers that are slow.
        let gate = random(12, FFN);
        group.throughput(work(FFN, 12 * FFN));
        group.bench_function(BenchmarkId::new("gated SiLU of 8,192", isa.name()), |b| {
            b.iter_batched_ref(|| gate.clone(), |gate| gated_silu(isa, gate, &up), BatchSize::SmallInput);
        });
    }
    group.finish();
}

/// Compiled for the target alone, whatever the machine has.
fn portable(c: &mut Criterion) {
    let mut group = c.benchmark_group("kernels without an instruction set");
    let arguments = random(14, FFN);
    let mut out = vec![0.0; FFN];
    group.throughput(work(FFN, 8 * FFN));
    group.bench_function("exp of 8,192", |b| {
        b.iter(|| {
            for (out, x) in out.iter_mut().zip(black_box(&arguments)) {
                *out = exp(*x);
            }
            black_box(&mut out);
        });
    });
    group.finish();
}

/// A product of `rows` rows with a square matrix that is read once.
fn product(rows: usize, bytes: usize) -> Throughput {
    work(2 * rows * HIDDEN * HIDDEN, bytes)
}

/// Operations (results where each takes an exponential), and bytes read and written.
fn work(operations: usize, bytes: usize) -> Throughput {
    Throughput::ElementsAndBytes { elements: operations as u64, bytes: bytes as u64 }
}

/// Numbers in -1..1.
fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| rng.f32() * 2.0 - 1.0).collect()
}

criterion_group!(benches, matmul_f32, matmul_int8, rows, portable);
criterion_main!(benches);
