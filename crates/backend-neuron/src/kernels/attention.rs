//! Attention of one row over the paged keys and values of one KV head, for all query heads that share it.
//!
//! In: turned queries, a layer of a KV pool, a block table, a position. Out: `[query heads][head_dim]`. Deliberately not here:
//! writing KV, and which rows run on which thread.
//!
//! Keys are walked in chunks of 16 positions aligned on absolute positions. A chunk's (maximum, sum, output) is computed from
//! zero, and chunks are merged left to right (online softmax: Milakov and Gimelshein, <https://arxiv.org/abs/1805.02867>). What a
//! row gives therefore depends on its position and on the keys alone, not on how the tokens before it were computed.

use std::ops::Range;

use super::activation::{capped, exp};
use super::{LANES, fold, kernel};

/// Positions of a chunk; a block holds a whole number of them. Part of the kernels' revision.
pub(crate) const CHUNK: usize = LANES;
/// Elements of the output that are mixed at once; does not change any bit.
const WIDE: usize = 32;

/// One layer and KV head inside a pool of blocks.
#[derive(Debug, Clone, Copy)]
pub struct PagedHead<'a> {
    /// The pool.
    pub pool: &'a [f32],
    /// Elements between two blocks.
    pub block_stride: usize,
    /// Where the keys of this layer and head begin in a block: `[head_dim][block_tokens]`.
    pub keys_at: usize,
    /// Where the values begin: `[block_tokens][head_dim]`.
    pub values_at: usize,
    /// Positions of a block.
    pub block_tokens: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Block of each entry.
    pub table: &'a [u32],
}

/// The positions that a row attends to: `first..=last`, where `last` is the row's own.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// The first position.
    pub first: usize,
    /// The last position, included.
    pub last: usize,
}

/// What becomes of products of queries and keys before the softmax.
#[derive(Debug, Clone, Copy)]
pub struct Scores<'a> {
    /// They are multiplied by it.
    pub scale: f32,
    /// And then held below it: `cap * tanh(score / cap)`.
    pub cap: Option<f32>,
    /// One score for each query head beside those of its keys, with nothing to mix; or none.
    pub sinks: &'a [f32],
}

impl Scores<'_> {
    /// Products times `scale`, and nothing else.
    pub fn plain(scale: f32) -> Self {
        Self { scale, cap: None, sinks: &[] }
    }
}

kernel! {
    /// `queries` and `out` are `[query heads][head_dim]`.
    pub fn attend(queries: &[f32], head: PagedHead<'_>, span: Span, scores: Scores<'_>, out: &mut [f32]) {
        let size = head.head_dim;
        for (at, (query, out)) in queries.chunks_exact(size).zip(out.chunks_exact_mut(size)).enumerate() {
            let sink = scores.sinks.get(at).copied();
            match scores.cap {
                Some(cap) => attend_one(query, head, span, |score| capped(score * scores.scale, cap), sink, out),
                None => attend_one(query, head, span, |score| score * scores.scale, sink, out),
            }
        }
    }
}

/// A sink is like a first chunk with one score and a value of zeros.
#[inline(always)]
fn attend_one(
    query: &[f32],
    head: PagedHead<'_>,
    span: Span,
    scored: impl Fn(f32) -> f32,
    sink: Option<f32>,
    out: &mut [f32],
) {
    let (mut most, mut total) = sink.map_or((f32::NEG_INFINITY, 0.0), |sink| (sink, 1.0));
    out.fill(0.0);
    for chunk in span.first / CHUNK..=span.last / CHUNK {
        let base = chunk * CHUNK;
        let block = head.table[base / head.block_tokens] as usize * head.block_stride;
        let inside = base % head.block_tokens;
        let keys = &head.pool[block + head.keys_at..][..query.len() * head.block_tokens];
        let mut weights = dots(query, keys, head.block_tokens, inside);
        // Lanes outside the span may hold anything, even what is not a number.
        let lanes = span.first.max(base) - base..span.last.min(base + CHUNK - 1) + 1 - base;
        let mut chunk_most = f32::NEG_INFINITY;
        for (lane, score) in weights.iter_mut().enumerate() {
            *score = if lanes.contains(&lane) { scored(*score) } else { f32::NEG_INFINITY };
            chunk_most = if *score > chunk_most { *score } else { chunk_most };
        }
        for score in &mut weights {
            *score = exp(*score - chunk_most);
        }
        let chunk_total = fold(weights);
        let merged = if chunk_most > most { chunk_most } else { most };
        let (old, new) = (exp(most - merged), exp(chunk_most - merged));
        total = total * old + chunk_total * new;
        most = merged;

        let values = &head.pool[block + head.values_at + inside * query.len()..][..CHUNK * query.len()];
        let (wide, rest) = out.as_chunks_mut::<WIDE>();
        let rest_at = wide.len() * WIDE;
        for (part, out) in wide.iter_mut().enumerate() {
            mix(&weights, &values[part * WIDE..], query.len(), lanes.clone(), old, new, out);
        }
        for (at, out) in rest.iter_mut().enumerate() {
            mix(&weights, &values[rest_at + at..], query.len(), lanes.clone(), old, new, std::array::from_mut(out));
        }
    }
    let inverse = 1.0 / total;
    for out in out {
        *out *= inverse;
    }
}

/// The query times each key of a chunk. Element d goes to sum d mod 4, in order, and the four are added pairwise: four
/// independent sums keep the adders busy.
#[inline(always)]
fn dots(query: &[f32], keys: &[f32], block_tokens: usize, inside: usize) -> [f32; CHUNK] {
    // Four names instead of an array of arrays: the compiler then keeps them in registers.
    let (mut a, mut b, mut c, mut d) = ([0.0; CHUNK], [0.0; CHUNK], [0.0; CHUNK], [0.0; CHUNK]);
    let (fours, rest) = query.as_chunks::<4>();
    let (whole, rest_keys) = keys.split_at(fours.len() * 4 * block_tokens);
    for (four, keys) in fours.iter().zip(whole.chunks_exact(4 * block_tokens)) {
        add_scaled(&mut a, four[0], &keys[inside..]);
        add_scaled(&mut b, four[1], &keys[block_tokens + inside..]);
        add_scaled(&mut c, four[2], &keys[2 * block_tokens + inside..]);
        add_scaled(&mut d, four[3], &keys[3 * block_tokens + inside..]);
    }
    for ((value, keys), sum) in rest.iter().zip(rest_keys.chunks_exact(block_tokens)).zip([&mut a, &mut b, &mut c]) {
        add_scaled(sum, *value, &keys[inside..]);
    }
    std::array::from_fn(|lane| (a[lane] + b[lane]) + (c[lane] + d[lane]))
}

/// `sum += value * row`, for as many elements as the sum has.
#[inline(always)]
fn add_scaled<const N: usize>(sum: &mut [f32; N], value: f32, row: &[f32]) {
    let row = &row[..N];
    for at in 0..N {
        sum[at] += value * row[at];
    }
}

/// `out = out * old + (weights * values) * new` for `N` neighbouring elements; token t of the chunk goes to sum t mod 2.
#[inline(always)]
fn mix<const N: usize>(
    weights: &[f32; CHUNK],
    values: &[f32],
    head_dim: usize,
    lanes: Range<usize>,
    old: f32,
    new: f32,
    out: &mut [f32; N],
) {
    let (mut even, mut odd) = ([0.0; N], [0.0; N]);
    for (pair, weights) in weights.as_chunks::<2>().0.iter().enumerate() {
        let lane = pair * 2;
        if lanes.contains(&lane) {
            add_scaled(&mut even, weights[0], &values[lane * head_dim..]);
        }
        if lanes.contains(&(lane + 1)) {
            add_scaled(&mut odd, weights[1], &values[(lane + 1) * head_dim..]);
        }
    }
    for at in 0..N {
        out[at] = out[at] * old + (even[at] + odd[at]) * new;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Isa;

    /// Plain softmax attention in f64 over keys gathered by position.
    fn plain(query: &[f32], head: PagedHead<'_>, span: Span, scores: Scores<'_>, at_head: usize) -> Vec<f64> {
        let at = |position: usize| {
            let block = head.table[position / head.block_tokens] as usize * head.block_stride;
            (block, position % head.block_tokens)
        };
        let score = |position: usize| -> f64 {
            let (block, slot) = at(position);
            let dot: f64 = (0..head.head_dim)
                .map(|d| {
                    f64::from(query[d]) * f64::from(head.pool[block + head.keys_at + d * head.block_tokens + slot])
                })
                .sum();
            let score = dot * f64::from(scores.scale);
            scores.cap.map(f64::from).map_or(score, |cap| (score / cap).tanh() * cap)
        };
        let sink = scores.sinks.get(at_head).copied().map(f64::from);
        let scores: Vec<f64> = (span.first..=span.last).map(score).collect();
        let most = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().copied().chain(sink).map(|score| (score - most).exp()).sum();
        let mut out = vec![0.0; head.head_dim];
        for (score, position) in scores.iter().zip(span.first..=span.last) {
            let (block, slot) = at(position);
            for (d, out) in out.iter_mut().enumerate() {
                let value = head.pool[block + head.values_at + slot * head.head_dim + d];
                *out += (score - most).exp() / total * f64::from(value);
            }
        }
        out
    }

    #[test]
    fn attention_is_softmax_of_scores_times_values() {
        let mut rng = fastrand::Rng::with_seed(6);
        for (head_dim, block_tokens) in [(2, 16), (8, 16), (32, 16), (18, 32), (64, 48)] {
            let block_stride = 2 * head_dim * block_tokens + 5;
            let blocks = 9;
            let mut pool: Vec<f32> = (0..blocks * block_stride).map(|_| rng.f32() * 2.0 - 1.0).collect();
            let mut table: Vec<u32> = (0..blocks as u32).collect();
            rng.shuffle(&mut table);
            for (first, last) in [(0, 0), (0, 15), (0, 16), (0, 40), (3, 3), (10, 37), (17, 100), (31, 32), (0, 143)] {
                let span = Span { first, last };
                // Whatever lies behind the last position must not matter.
                if last % block_tokens + 1 < block_tokens {
                    let block = table[last / block_tokens] as usize * block_stride;
                    pool[block + 2 + last % block_tokens + 1] = f32::NAN;
                    let values = block + 2 + head_dim * block_tokens;
                    pool[values + (last % block_tokens + 1) * head_dim] = f32::NAN;
                }
                let head = PagedHead {
                    pool: &pool,
                    block_stride,
                    keys_at: 2,
                    values_at: 2 + head_dim * block_tokens,
                    block_tokens,
                    head_dim,
                    table: &table,
                };
                let queries: Vec<f32> = (0..3 * head_dim).map(|_| rng.f32() * 6.0 - 3.0).collect();
                let sinks: Vec<f32> = (0..3).map(|_| rng.f32() * 8.0 - 4.0).collect();
                let plainly = Scores::plain(0.3);
                let others = [
                    Scores { cap: Some(0.8), ..plainly },
                    Scores { sinks: &sinks, ..plainly },
                    Scores { cap: Some(2.0), sinks: &sinks, ..plainly },
                ];
                for scores in [plainly].into_iter().chain(others) {
                    let mut first_bits = vec![0.0; 3 * head_dim];
                    attend(Isa::PORTABLE, &queries, head, span, scores, &mut first_bits);
                    for (at, got) in first_bits.chunks(head_dim).enumerate() {
                        let query = &queries[at * head_dim..][..head_dim];
                        for (got, want) in got.iter().zip(plain(query, head, span, scores, at)) {
                            assert!((f64::from(*got) - want).abs() < 2e-6, "{got} {want} {span:?} {scores:?}");
                        }
                    }
                    for isa in Isa::available() {
                        let mut got = vec![0.0; 3 * head_dim];
                        attend(isa, &queries, head, span, scores, &mut got);
                        assert!(got.iter().zip(&first_bits).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa:?}");
                    }
                }
                pool.iter_mut().filter(|value| value.is_nan()).for_each(|value| *value = 0.5);
            }
        }
    }
}
