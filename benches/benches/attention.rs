//! Attention of the CPU device: decode at three depths against the rate at which memory is read, prefill against the f32 peak.
//!
//! `cargo bench -p holdfast-benches --bench attention`. One core, heads of 64 with four queries for each of eight KV heads, blocks of 16 in
//! shuffled order, KV in bf16 and in f32. The machine's limits on one core are measured in between and printed at the end beside the best
//! trial of every case: on a busy machine only the best says something, and only as a ratio. Elements are floating-point operations, so
//! `Gelem/s` reads as GFLOP/s; bytes are keys and values that have to be read. A trial is one KV head, short beside a scheduler's slice; a
//! decode goes on to the next head and layer of a pool that is larger than a core's own caches. Deliberately not here: threads and whole
//! steps (`turns`).
#![allow(missing_docs, clippy::print_stdout, reason = "a benchmark, and what it prints is its result")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "as above; it measures time")]

use std::cell::RefCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use holdfast_backend_neuron::Isa;
use holdfast_backend_neuron::kernels::attention::{Elements, PagedHead, Scores, Tile, attend};
use holdfast_backend_neuron::limits::Meter;

const HEAD: usize = 64;
const KV_HEADS: usize = 8;
/// Query heads that share a KV head.
const SHARED: usize = 4;
const BLOCK_TOKENS: usize = 16;
/// Elements of one KV head in a block, keys or values.
const PART: usize = HEAD * BLOCK_TOKENS;
/// Bytes of the pool that a decode walks, about.
const POOL_BYTES: usize = 128 << 20;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Rows of a tile.
const ROWS: usize = 12;

/// The best trial of a case.
struct Best {
    name: String,
    seconds: f64,
    bytes: usize,
    operations: usize,
}

thread_local! {
    static BEST: RefCell<Vec<Best>> = const { RefCell::new(Vec::new()) };
}

/// Blocks of `layers` layers that hold `depth` positions. As in the device, they begin at a cache line.
struct Pool {
    f32: Vec<f32>,
    bf16: Vec<u16>,
    table: Vec<u32>,
    layers: usize,
}

impl Pool {
    fn new(depth: usize, layers: usize, in_bf16: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(8);
        let mut table: Vec<u32> = (0..depth.div_ceil(BLOCK_TOKENS) as u32).collect();
        rng.shuffle(&mut table);
        let mut numbers = (0..table.len() * layers * KV_HEADS * 2 * PART + LINE).map(|_| rng.f32() * 2.0 - 1.0);
        let (mut f32, mut bf16) = (Vec::new(), Vec::new());
        if in_bf16 {
            bf16 = numbers.map(|number| (number.to_bits() >> 16) as u16).collect();
        } else {
            f32.extend(&mut numbers);
        }
        Self { f32, bf16, table, layers }
    }

    fn head(&self, layer: usize, head: usize) -> PagedHead<'_> {
        let keys_at = (layer * KV_HEADS + head) * 2 * PART;
        PagedHead {
            pool: if self.bf16.is_empty() {
                Elements::F32(&self.f32[self.f32.as_ptr().align_offset(LINE)..])
            } else {
                Elements::Bf16(&self.bf16[self.bf16.as_ptr().align_offset(LINE)..])
            },
            block_stride: self.layers * KV_HEADS * 2 * PART,
            keys_at,
            values_at: keys_at + PART,
            block_tokens: BLOCK_TOKENS,
            head_dim: HEAD,
            table: &self.table,
        }
    }
}

/// Measures `f`, which does `operations` and reads `bytes`, and remembers its best trial.
fn case(c: &mut Criterion, group: &str, name: String, (operations, bytes): (usize, usize), mut f: impl FnMut()) {
    let mut best = f64::INFINITY;
    let mut group_of = c.benchmark_group(group);
    group_of.throughput(Throughput::ElementsAndBytes { elements: operations as u64, bytes: bytes as u64 });
    group_of.bench_function(BenchmarkId::from_parameter(&name), |b| {
        b.iter_custom(|count| {
            let mut all = Duration::ZERO;
            for _ in 0..count {
                let begun = Instant::now();
                f();
                let spent = begun.elapsed();
                best = best.min(spent.as_secs_f64());
                all += spent;
            }
            all
        });
    });
    group_of.finish();
    let name = format!("{group}, {name}");
    BEST.with_borrow_mut(|all| all.push(Best { name, seconds: best, bytes, operations }));
}

fn decode(c: &mut Criterion) {
    let queries = random(6, SHARED * HEAD);
    for isa in Isa::available().into_iter().rev().take(2) {
        for (format, element) in [("bf16", 2), ("f32", 4)] {
            for depth in [128, 4_096, 16_384] {
                let bytes = depth * 2 * HEAD * element;
                let pool = Pool::new(depth, (POOL_BYTES / bytes / KV_HEADS).clamp(1, 64), element == 2);
                let mut out = vec![0.0; SHARED * HEAD];
                let mut heads = (0..pool.layers * KV_HEADS).cycle();
                let name = format!("{format} at depth {depth}, {}", isa.name());
                case(c, "decode", name, (4 * depth * SHARED * HEAD, bytes), || {
                    let at = heads.next().unwrap();
                    let position = depth - 1;
                    let tile = Tile { queries: &queries, stride: 0, rows: 1, shared: SHARED, position, window: None };
                    let head = pool.head(at / KV_HEADS, at % KV_HEADS);
                    let mut out = Some(&mut out[..]);
                    attend(isa, black_box(tile), head, Scores::plain(0.125), |_| out.take().unwrap());
                });
            }
        }
    }
}

fn prefill(c: &mut Criterion) {
    let stride = SHARED * HEAD;
    for isa in Isa::available().into_iter().rev().take(2) {
        for format in ["bf16", "f32"] {
            for (tokens, depth) in [(512, 0), (ROWS, 4_096 - ROWS), (ROWS, 16_384 - ROWS)] {
                let pool = Pool::new(depth + tokens, 1, format == "bf16");
                let queries = random(9, tokens * stride);
                let mut out = vec![0.0; ROWS * stride];
                let seen: usize = (depth + 1..=depth + tokens).sum();
                let work = (4 * seen * SHARED * HEAD, 0);
                let name = format!("{tokens} at depth {depth}, {format}, {}", isa.name());
                case(c, "prefill", name, work, || {
                    for first in (0..tokens).step_by(ROWS) {
                        let tile = Tile {
                            queries: &queries[first * stride..],
                            stride,
                            rows: ROWS.min(tokens - first),
                            shared: SHARED,
                            position: depth + first,
                            window: None,
                        };
                        let mut rows = out.chunks_exact_mut(stride);
                        let scores = Scores::plain(0.125);
                        attend(isa, black_box(tile), pool.head(0, 0), scores, |_| rows.next().unwrap());
                    }
                });
            }
        }
    }
}

/// Numbers in -1..1.
fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| rng.f32() * 2.0 - 1.0).collect()
}

criterion_group!(benches, decode, prefill);

fn main() {
    // Without `--bench`, as `cargo test` calls it, every case runs once and there is nothing to compare.
    let measures = std::env::args().any(|argument| argument == "--bench");
    let mut meter = measures.then(|| Meter::new(1).unwrap());
    let effort = Duration::from_secs(1);
    meter.as_mut().map(|meter| meter.measure(effort));
    benches();
    Criterion::default().configure_from_args().final_summary();
    let Some(limits) = meter.map(|mut meter| meter.measure(effort)) else { return };
    let (peak, read) = (limits.f32_gflops.best, limits.read_gb_per_s.best);
    println!("\nbest trials; one core: {peak:.0} GFLOP/s in f32, {read:.1} GB/s read");
    BEST.with_borrow(|all| {
        for Best { name, seconds, bytes, operations } in all {
            let (gflops, gb) = (*operations as f64 / seconds / 1e9, *bytes as f64 / seconds / 1e9);
            let of = (gflops / peak * 100.0, gb / read * 100.0);
            let reading = if *bytes == 0 { String::new() } else { format!(", {gb:>5.1} GB/s = {:>3.0}%", of.1) };
            println!("{name:<45} {:>8.3} ms {gflops:>6.1} GFLOP/s = {:>3.0}%{reading}", seconds * 1e3, of.0);
        }
    });
}
