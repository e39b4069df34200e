//! The kernels against plain attention in f64, and against themselves on other instruction sets, in other tiles and in spans.

use super::page::SCALE;
use super::*;

/// KV of one head in shuffled blocks, and the same numbers by position.
struct Kv<E> {
    pool: Vec<E>,
    table: Vec<u32>,
    block_tokens: usize,
    head_dim: usize,
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
}

const KEYS_AT: usize = 3;

impl<E: Element> Kv<E> {
    /// `positions` positions; all other places hold what is not a number.
    fn random(rng: &mut fastrand::Rng, head_dim: usize, block_tokens: usize, positions: usize) -> Self {
        let blocks = positions.div_ceil(block_tokens);
        let mut table: Vec<u32> = (0..blocks as u32).collect();
        rng.shuffle(&mut table);
        let mut kv = Self { pool: Vec::new(), table, block_tokens, head_dim, keys: Vec::new(), values: Vec::new() };
        kv.pool = vec![E::of(f32::NAN, f32::NAN); blocks * kv.stride()];
        for position in 0..positions {
            let base = kv.table[position / block_tokens] as usize * kv.stride() + KEYS_AT;
            let slot = position % block_tokens;
            let mut row = |at: usize, place: fn(usize, usize, usize) -> usize| {
                let numbers: Vec<f32> = (0..head_dim).map(|_| rng.f32() * 2.0 - 1.0).collect();
                let scale = E::scale(&numbers);
                if E::SCALED {
                    let at = base + at + scale_at(head_dim, block_tokens, slot);
                    let place = kv.pool[at..][..SCALE / size_of::<E>()].as_mut_ptr();
                    // SAFETY: a scale's bytes, which every element may hold.
                    unsafe { place.cast::<f32>().write_unaligned(scale) };
                }
                let stored = numbers.iter().enumerate().map(|(dim, number)| {
                    let number = E::of(*number, scale);
                    kv.pool[base + at + place(head_dim, slot, dim)] = number;
                    f64::from(number.value()) * f64::from(scale)
                });
                stored.collect()
            };
            kv.keys.push(row(0, E::key_at));
            kv.values.push(row(part::<E>(head_dim, block_tokens), E::value_at));
        }
        kv
    }

    fn stride(&self) -> usize {
        2 * part::<E>(self.head_dim, self.block_tokens) + 2 * KEYS_AT
    }

    fn head<'a>(&'a self, table: &'a [u32], pool: fn(&'a [E]) -> Elements<'a>) -> PagedHead<'a> {
        PagedHead {
            pool: pool(&self.pool),
            block_stride: self.stride(),
            keys_at: KEYS_AT,
            values_at: KEYS_AT + part::<E>(self.head_dim, self.block_tokens),
            block_tokens: self.block_tokens,
            head_dim: self.head_dim,
            table,
        }
    }

    /// Softmax attention of one query over the positions of `seen`.
    fn plain(&self, query: &[f32], seen: Range<usize>, scores: Scores<'_>, sink: Option<f32>) -> Vec<f64> {
        let score = |key: &Vec<f64>| {
            let dot: f64 = key.iter().zip(query).map(|(key, query)| key * f64::from(*query)).sum();
            let score = dot * f64::from(scores.scale);
            scores.cap.map(f64::from).map_or(score, |cap| (score / cap).tanh() * cap)
        };
        let sink = sink.map(f64::from);
        let scores: Vec<f64> = self.keys[seen.clone()].iter().map(score).collect();
        let most = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().copied().chain(sink).map(|score| (score - most).exp()).sum();
        let mut out = vec![0.0; self.head_dim];
        for (score, values) in scores.iter().zip(&self.values[seen]) {
            let weight = (score - most).exp() / total;
            out.iter_mut().zip(values).for_each(|(out, value)| *out += weight * value);
        }
        out
    }
}

fn bits(out: &[f32]) -> Vec<u32> {
    out.iter().map(|value| value.to_bits()).collect()
}

/// All rows of a tile as one, `[rows][shared][head_dim]`.
fn whole(isa: Isa, tile: Tile<'_>, head: PagedHead<'_>, scores: Scores<'_>) -> Vec<f32> {
    let mut out = vec![f32::NAN; tile.len() * head.head_dim];
    let mut rows = out.chunks_exact_mut(tile.shared * head.head_dim);
    attend(isa, tile, head, scores, |_| rows.next().unwrap_or_default());
    out
}

/// The same in tiles of at most `most` rows.
fn in_tiles(isa: Isa, tile: Tile<'_>, head: PagedHead<'_>, scores: Scores<'_>, most: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for first in (0..tile.rows).step_by(most) {
        let rows = most.min(tile.rows - first);
        let queries = &tile.queries[first * tile.stride..];
        out.extend(whole(isa, Tile { queries, rows, position: tile.position + first, ..tile }, head, scores));
    }
    out
}

/// The same with every span by itself.
fn in_spans(isa: Isa, tile: Tile<'_>, head: PagedHead<'_>, scores: Scores<'_>) -> Vec<f32> {
    let states: Vec<Vec<f32>> = tile
        .spans()
        .map(|span| {
            let mut state = vec![f32::NAN; tile.state_len(head.head_dim)];
            attend_span(isa, tile, head, scores, span, &mut state);
            state
        })
        .collect();
    let mut out = vec![f32::NAN; tile.len() * head.head_dim];
    let mut rows = out.chunks_exact_mut(tile.shared * head.head_dim);
    join(isa, tile, head.head_dim, scores, states.iter().map(Vec::as_slice), |_| rows.next().unwrap_or_default());
    out
}

/// One random case of one element type.
fn case<E: Element>(rng: &mut fastrand::Rng, deepest: usize, pool: for<'a> fn(&'a [E]) -> Elements<'a>) {
    let head_dim = [2, 8, 17, 32, 50, 64, 80][rng.usize(..7)];
    let block_tokens = [16, 32, 48][rng.usize(..3)];
    let (rows, shared) = (rng.usize(1..=14), [1, 2, 3, 4, 5, 8, 13][rng.usize(..7)]);
    let position = rng.usize(..deepest);
    let window = [None, Some(rng.usize(1..=40)), Some(rng.usize(1..=deepest))][rng.usize(..3)];
    let stride = shared * head_dim + rng.usize(..3);
    let queries: Vec<f32> = (0..rows * stride).map(|_| rng.f32() * 6.0 - 3.0).collect();
    let tile = Tile { queries: &queries, stride, rows, shared, position, window };
    let sinks: Vec<f32> = (0..shared).map(|_| rng.f32() * 8.0 - 4.0).collect();
    let scores =
        Scores { scale: 0.3, cap: rng.bool().then_some(0.8 + rng.f32()), sinks: if rng.bool() { &sinks } else { &[] } };
    let kv = Kv::<E>::random(rng, head_dim, block_tokens, position + rows);
    // What no row sees is not in the table.
    let mut table = kv.table.clone();
    table[..tile.first(0) / block_tokens].fill(u32::MAX);
    let head = kv.head(&table, pool);
    let name = format!("{tile:?}", tile = Tile { queries: &[], ..tile }) + &format!("{scores:?}, {head_dim}");

    let got = whole(Isa::PORTABLE, tile, head, scores);
    for row in 0..rows {
        for at in 0..shared {
            let query = &queries[row * stride + at * head_dim..][..head_dim];
            let sink = scores.sinks.get(at).copied();
            let want = kv.plain(query, tile.first(row)..position + row + 1, scores, sink);
            let got = &got[(row * shared + at) * head_dim..][..head_dim];
            for (got, want) in got.iter().zip(want) {
                assert!((f64::from(*got) - want).abs() < 4e-6, "{got} {want}: row {row} of {name}");
            }
        }
    }
    for isa in Isa::available() {
        assert!(bits(&whole(isa, tile, head, scores)) == bits(&got), "{isa:?}: {name}");
        for most in [1, 3, 6] {
            assert!(bits(&in_tiles(isa, tile, head, scores, most)) == bits(&got), "{isa:?}, {most} rows: {name}");
        }
        assert!(bits(&in_spans(isa, tile, head, scores)) == bits(&got), "{isa:?}, spans: {name}");
    }
}

#[test]
fn attention_is_softmax_of_scores_times_values_whatever_the_tile() {
    let mut rng = fastrand::Rng::with_seed(6);
    for deepest in [1, 30, 70, 200].into_iter().cycle().take(60) {
        case::<f32>(&mut rng, deepest, |pool| Elements::F32(pool));
        case::<u16>(&mut rng, deepest, |pool| Elements::Bf16(pool));
        case::<i8>(&mut rng, deepest, |pool| Elements::Int8(pool));
    }
}

#[test]
fn long_contexts_are_joined_from_spans() {
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..4 {
        case::<f32>(&mut rng, 3 * SPAN, |pool| Elements::F32(pool));
        case::<u16>(&mut rng, 3 * SPAN, |pool| Elements::Bf16(pool));
        case::<i8>(&mut rng, 3 * SPAN, |pool| Elements::Int8(pool));
    }
}

#[test]
fn exp2_is_close_to_the_true_value() {
    let one = |x: f32| exp2(Portable::splat(x)).sum() / LANES as f32;
    for step in 0..200_000 {
        let x = -125.9 * step as f32 / 200_000.0;
        let want = libm::exp2(f64::from(x));
        assert!((f64::from(one(x)) - want).abs() <= 2.0e-7 * want, "2^{x} = {}, not {want}", one(x));
    }
    assert_eq!([one(0.0), one(-1.0), one(-126.0)], [1.0, 0.5, f32::MIN_POSITIVE]);
    assert_eq!([one(f32::NEG_INFINITY), one(-127.0), one(-1e9)], [0.0; 3]);
}
