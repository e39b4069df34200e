//! The kernels of the CPU device, one by one, on one core, for every instruction set of this machine.
//!
//! `cargo bench -p holdfast-benches --bench kernels`. Elements are floating-point (or, of nested weights, integer) operations, so `Gelem/s` reads
//! as GFLOP/s (an exponential and a gated SiLU count as one each); bytes are what has to be read and written, so `GiB/s` compares with the memory's bandwidth. Its limits: a
//! tile is bound by the adders, two (multiply, then add: never fused) times the lanes times the frequency; a row is bound by the
//! memory that the weights come from. Matrices of 16 MiB are larger than most caches of one core. Deliberately not here: threads
//! and whole steps (`turns`).
#![allow(missing_docs, reason = "a benchmark")]

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use holdfast_backend_neuron::Isa;
use holdfast_backend_neuron::kernels::activation::{exp, gated_silu};
use holdfast_backend_neuron::kernels::matmul::{PANEL, TILE, f32_row, f32_tile};
use holdfast_backend_neuron::kernels::nested::{
    self, BLOCK, COLUMNS, PLANE, Panel, SHIFTS, Sums, Tile, TileMut, UNPACKED_BLOCKS, Unpacked, stream, unpack,
};
use holdfast_backend_neuron::kernels::norm::rms_norm;
use holdfast_backend_neuron::kernels::quantise::{blocks, quantise_row};
use holdfast_backend_neuron::kernels::rope::RopeTable;

/// Width of the hidden state, and of the square matrices: those of a model of a billion weights.
const HIDDEN: usize = 2_048;
/// Width of its feed-forward.
const FFN: usize = 8_192;
/// Elements of a head.
const HEAD: usize = 64;
/// Rows of a prefill.
const ROWS: usize = 64;

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

fn matmul_nested(c: &mut Criterion) {
    let mut group = c.benchmark_group("matmul nested, 2,048 x 2,048");
    let mut rng = fastrand::Rng::with_seed(3);
    let mut bytes = |len: usize| -> Vec<u8> { (0..len).map(|_| rng.u8(..)).collect() };
    let depth = blocks(HIDDEN);
    let panels = HIDDEN / COLUMNS;
    let (upper, lower) = (bytes(panels * depth * PLANE), bytes(panels * depth * PLANE));
    // f16 numbers about 1, one for 32 weights.
    let scales: Vec<u16> = (0..2 * panels * depth * COLUMNS).map(|_| rng.u16(0x3800..0x3c00)).collect();
    let x = random(4, ROWS * HIDDEN);
    for isa in Isa::available() {
        for (bits, rows) in [(8, 1), (8, nested::TILE), (8, ROWS), (4, 1), (4, nested::TILE), (4, ROWS)] {
            let panel = |at: usize| {
                let (plane, scale) = (depth * PLANE, 2 * depth * COLUMNS);
                let planes = at * plane..(at + 1) * plane;
                Panel {
                    upper: &upper[planes.clone()],
                    lower: (bits == 8).then(|| &lower[planes]),
                    scales: &scales[at * scale..(at + 1) * scale],
                    power: 1.0,
                }
            };
            let tiles: Vec<Quantised> = x[..rows * HIDDEN]
                .chunks(nested::TILE * HIDDEN)
                .map(|rows| Quantised::of(isa, rows, bits == 4))
                .collect();
            group.throughput(product(rows, HIDDEN * HIDDEN * bits / 8 + 2 * scales.len()));
            group.bench_function(BenchmarkId::new(format!("{rows} rows, {bits} bits"), isa.name()), |b| {
                let mut sums = vec![Sums::ZERO; rows];
                let mut unpacked = Unpacked::new();
                b.iter(|| {
                    for at in 0..panels {
                        if let [tile] = tiles.as_slice() {
                            stream(isa, tile.tile(), panel(at), &mut sums);
                        } else {
                            for first in (0..depth).step_by(UNPACKED_BLOCKS) {
                                let panel = panel(at).part(first, UNPACKED_BLOCKS);
                                let tiles = tiles.iter().map(|tile| tile.tile().part(first, UNPACKED_BLOCKS));
                                let mut tiles = tiles.zip(sums.chunks_mut(nested::TILE));
                                if let Some((tile, sums)) = tiles.next() {
                                    unpack(isa, tile, panel, &mut unpacked, sums);
                                }
                                for (tile, sums) in tiles {
                                    nested::product(isa, tile, &unpacked, None, sums);
                                }
                            }
                        }
                        black_box(&mut sums);
                    }
                });
            });
        }
    }
    group.finish();
}

/// Rows, quantised.
struct Quantised {
    rows: usize,
    codes: Vec<i8>,
    scales: Vec<f32>,
    shifts: Vec<i32>,
}

impl Quantised {
    fn of(isa: Isa, values: &[f32], narrow: bool) -> Self {
        let rows = values.len() / HIDDEN;
        let len = rows * blocks(HIDDEN);
        let (codes, scales, shifts) = (vec![0; len * BLOCK], vec![0.0; len], vec![0; len * SHIFTS]);
        let mut this = Self { rows, codes, scales, shifts };
        for (at, row) in values.chunks(HIDDEN).enumerate() {
            quantise_row(isa, row, narrow, at, &mut this.tile_mut());
        }
        this
    }

    fn tile(&self) -> Tile<'_> {
        Tile { rows: self.rows, codes: &self.codes, scales: &self.scales, shifts: &self.shifts }
    }

    fn tile_mut(&mut self) -> TileMut<'_> {
        TileMut { rows: self.rows, codes: &mut self.codes, scales: &mut self.scales, shifts: &mut self.shifts }
    }
}

fn rows(c: &mut Criterion) {
    let mut group = c.benchmark_group("row kernels");
    let (row, weight) = (random(9, HIDDEN), random(10, HIDDEN));
    let up = random(11, FFN);
    for isa in Isa::available() {
        group.throughput(work(4 * HIDDEN, 12 * HIDDEN));
        group.bench_function(BenchmarkId::new("RMSNorm of 2,048", isa.name()), |b| {
            // In place: a fresh row each time, or it would not stay of one size.
            b.iter_batched_ref(|| row.clone(), |row| rms_norm(isa, row, &weight, 1e-5), BatchSize::SmallInput);
        });
        let mut quantised = Quantised::of(isa, &row, false);
        group.throughput(work(2 * HIDDEN, 5 * HIDDEN + 16 * blocks(HIDDEN)));
        group.bench_function(BenchmarkId::new("quantise 2,048", isa.name()), |b| {
            b.iter(|| quantise_row(isa, black_box(&row), false, 0, &mut quantised.tile_mut()));
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

criterion_group!(benches, matmul_f32, matmul_nested, rows, portable);
criterion_main!(benches);
