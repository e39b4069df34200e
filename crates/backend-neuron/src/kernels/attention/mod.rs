//! Attention over the paged keys and values of one KV head, for a tile of neighbouring rows and all query heads that share it.
//!
//! In: turned queries, a layer of a KV pool, a block table, a position. Out: `[query heads][head_dim]` of each row. Deliberately not
//! here: writing KV, and which rows run on which thread.
//!
//! The order of a row's arithmetic is fixed by absolute positions:
//!
//! - Positions are cut into chunks of [`CHUNK`]. A chunk's (maximum, sum, output) is computed from zero, and chunks are merged left to
//!   right (online softmax: Milakov and Gimelshein, <https://arxiv.org/abs/1805.02867>).
//! - Chunks are cut into spans of [`SPAN`], which begin from zero and are merged left to right, so that the spans of one long
//!   sequence may be computed by several threads.
//! - Inside a chunk, scores add up over the elements of a head, and outputs over positions, each in rising order.
//!
//! What a row gives therefore depends on its position and on the keys alone: not on how the tokens before it were computed, on the rows
//! beside it, on threads, or on the instruction set. Scores live in the tile that computes them and are never all there at once
//! (Dao et al., <https://arxiv.org/abs/2205.14135>). They are kept in units of ln 2, so that powers of two serve as exponentials.

mod lanes;
mod page;
mod product;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::f32::consts::LOG2_E;
use std::ops::Range;

pub(crate) use page::{Element, PAGE, part, scale_at};
pub use page::{Elements, PagedHead, width};
pub(crate) use product::CHUNK;

use super::activation::capped;
use super::{Isa, LANES, Level};
use lanes::{Lanes, Portable, exp2};
use page::{Page, scales};
use product::{Chunk, Mixing, PAGES, Scoring, cover};

/// Positions of a span: many chunks, and few microseconds of one core. Part of the kernels' revision.
pub const SPAN: usize = 16 * CHUNK;

/// Query heads that share a KV head, of neighbouring rows of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Tile<'a> {
    /// Row r's queries, `[shared][head_dim]`, begin at `r * stride`.
    pub queries: &'a [f32],
    /// Elements between two rows.
    pub stride: usize,
    /// Rows, at least one.
    pub rows: usize,
    /// Query heads of a row.
    pub shared: usize,
    /// Position of the first row; the others follow.
    pub position: usize,
    /// How many positions a row sees, its own included; `None` is all.
    pub window: Option<usize>,
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

impl Tile<'_> {
    /// Queries of all rows.
    fn len(&self) -> usize {
        self.rows * self.shared
    }

    /// The first position that row `row` sees.
    fn first(&self, row: usize) -> usize {
        self.window.map_or(0, |window| (self.position + row + 1).saturating_sub(window))
    }

    /// The last position that the tile sees.
    fn last(&self) -> usize {
        self.position + self.rows - 1
    }

    /// The spans that the tile sees.
    pub fn spans(&self) -> Range<usize> {
        self.first(0) / SPAN..self.last() / SPAN + 1
    }

    /// Length of the state of this tile: see [`attend_span`].
    pub fn state_len(&self, head_dim: usize) -> usize {
        self.len() * (width(head_dim) + 2)
    }
}

thread_local! {
    /// What a tile needs while it is computed. Grows to the largest tile of the thread and stays.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `len` elements of anything; `f` does not come here again.
fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < len {
            scratch.resize(len, 0.0);
        }
        f(&mut scratch[..len])
    })
}

/// All spans of a tile on this thread; row r's output goes to `out(r)`, `[shared][head_dim]`.
pub fn attend<'o>(
    isa: Isa,
    tile: Tile<'_>,
    head: PagedHead<'_>,
    scores: Scores<'_>,
    out: impl FnMut(usize) -> &'o mut [f32],
) {
    let len = tile.state_len(head.head_dim);
    with_scratch(2 * len + Work::len(tile, head.head_dim), |scratch| {
        let (whole, scratch) = scratch.split_at_mut(len);
        let (state, scratch) = scratch.split_at_mut(len);
        begin(tile, scores, whole);
        for span in tile.spans() {
            span_of(isa, tile, head, scores, span, Work::new(tile, head.head_dim, state, scratch));
            merge(isa, tile, state, whole);
        }
        finish(tile, head.head_dim, whole, out);
    });
}

/// One span's part of a tile's attention, into `state`: `[queries][width]` of outputs, then each query's maximum, then each
/// query's sum, which is 0 where a row sees nothing of the span.
pub fn attend_span(isa: Isa, tile: Tile<'_>, head: PagedHead<'_>, scores: Scores<'_>, span: usize, state: &mut [f32]) {
    with_scratch(Work::len(tile, head.head_dim), |scratch| {
        span_of(isa, tile, head, scores, span, Work::new(tile, head.head_dim, state, scratch));
    });
}

/// What the states of all spans of a tile, in order, make together; row r's output goes to `out(r)`, `[shared][head_dim]`.
pub fn join<'s, 'o>(
    isa: Isa,
    tile: Tile<'_>,
    head_dim: usize,
    scores: Scores<'_>,
    states: impl Iterator<Item = &'s [f32]>,
    out: impl FnMut(usize) -> &'o mut [f32],
) {
    with_scratch(tile.state_len(head_dim), |whole| {
        begin(tile, scores, whole);
        states.for_each(|state| merge(isa, tile, state, whole));
        finish(tile, head_dim, whole, out);
    });
}

/// What a tile is computed in; every part has one entry, or one row, for each query.
struct Work<'a> {
    /// `[queries][width]`, scaled.
    queries: &'a mut [f32],
    /// `[queries][CHUNK]`: scores of a chunk, then weights.
    weights: &'a mut [f32],
    /// Maximum and sum of a chunk.
    most: &'a mut [f32],
    total: &'a mut [f32],
    /// Factors of what was before a chunk, and of the chunk.
    old: &'a mut [f32],
    new: &'a mut [f32],
    /// The state of the span.
    out: &'a mut [f32],
    span_most: &'a mut [f32],
    span_total: &'a mut [f32],
}

impl<'a> Work<'a> {
    /// Elements of scratch.
    fn len(tile: Tile<'_>, head_dim: usize) -> usize {
        tile.len() * (width(head_dim) + CHUNK + 4)
    }

    fn new(tile: Tile<'_>, head_dim: usize, state: &'a mut [f32], scratch: &'a mut [f32]) -> Self {
        let (count, width) = (tile.len(), width(head_dim));
        let (queries, scratch) = scratch.split_at_mut(count * width);
        let (weights, scratch) = scratch.split_at_mut(count * CHUNK);
        let (most, scratch) = scratch.split_at_mut(count);
        let (total, scratch) = scratch.split_at_mut(count);
        let (old, new) = scratch.split_at_mut(count);
        let (out, stats) = state.split_at_mut(count * width);
        let (span_most, span_total) = stats.split_at_mut(count);
        Self { queries, weights, most, total, old, new, out, span_most, span_total }
    }
}

fn span_of(isa: Isa, tile: Tile<'_>, head: PagedHead<'_>, scores: Scores<'_>, span: usize, work: Work<'_>) {
    match head.pool {
        Elements::F32(pool) => span_on(isa, pool, tile, head, scores, span, work),
        Elements::Bf16(pool) => span_on(isa, pool, tile, head, scores, span, work),
        Elements::Int8(pool) => span_on(isa, pool, tile, head, scores, span, work),
    }
}

fn span_on<E: Element>(
    isa: Isa,
    pool: &[E],
    tile: Tile<'_>,
    head: PagedHead<'_>,
    scores: Scores<'_>,
    span: usize,
    work: Work<'_>,
) {
    match isa.level {
        Level::Portable => span_in::<Portable, E>(pool, tile, head, scores, span, work),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as in `merge`.
        Level::Avx2 => unsafe { x86::span_avx2(pool, tile, head, scores, span, work) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as in `merge`.
        Level::Avx512 => unsafe { x86::span_avx512(pool, tile, head, scores, span, work) },
    }
}

/// A state that has seen nothing but the sinks.
fn begin(tile: Tile<'_>, scores: Scores<'_>, whole: &mut [f32]) {
    whole.fill(0.0);
    let stats = whole.len() - 2 * tile.len();
    let (most, total) = whole[stats..].split_at_mut(tile.len());
    most.fill(f32::NEG_INFINITY);
    if !scores.sinks.is_empty() {
        for (most, sink) in most.iter_mut().zip(scores.sinks.iter().cycle()) {
            *most = sink * LOG2_E;
        }
        total.fill(1.0);
    }
}

/// Merges the state of the span that comes next into `whole`.
fn merge(isa: Isa, tile: Tile<'_>, state: &[f32], whole: &mut [f32]) {
    let count = tile.len();
    match isa.level {
        Level::Portable => merge_in::<Portable>(count, state, whole),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of this level is only made after the machine was asked for avx2 and fma.
        Level::Avx2 => unsafe { x86::merge_avx2(count, state, whole) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above, for the features of avx512.
        Level::Avx512 => unsafe { x86::merge_avx512(count, state, whole) },
    }
}

/// Divides by the sums.
fn finish<'o>(tile: Tile<'_>, head_dim: usize, whole: &[f32], mut out: impl FnMut(usize) -> &'o mut [f32]) {
    let totals = &whole[tile.len() * (width(head_dim) + 1)..];
    for row in 0..tile.rows {
        for (at, out) in out(row).chunks_exact_mut(head_dim).enumerate() {
            let query = row * tile.shared + at;
            let inverse = 1.0 / totals[query];
            for (out, mixed) in out.iter_mut().zip(&whole[query * width(head_dim)..]) {
                *out = mixed * inverse;
            }
        }
    }
}

/// The kernels, compiled for their instructions.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::lanes::{Avx2, Avx512};
    use super::{Element, PagedHead, Scores, Tile, Work, merge_in, span_in};

    macro_rules! compiled {
        ($span:ident, $merge:ident, $lanes:ty, $features:literal) => {
            #[target_feature(enable = $features)]
            pub(super) fn $span<E: Element>(
                pool: &[E],
                tile: Tile<'_>,
                head: PagedHead<'_>,
                scores: Scores<'_>,
                span: usize,
                work: Work<'_>,
            ) {
                span_in::<$lanes, E>(pool, tile, head, scores, span, work);
            }

            #[target_feature(enable = $features)]
            pub(super) fn $merge(count: usize, state: &[f32], whole: &mut [f32]) {
                merge_in::<$lanes>(count, state, whole);
            }
        };
    }
    compiled!(span_avx2, merge_avx2, Avx2, "avx2,fma");
    compiled!(span_avx512, merge_avx512, Avx512, "avx512f,avx512bw,avx512vl,avx512dq");
}

#[inline(always)]
fn span_in<L: Lanes, E: Element>(
    pool: &[E],
    tile: Tile<'_>,
    head: PagedHead<'_>,
    scores: Scores<'_>,
    span: usize,
    mut work: Work<'_>,
) {
    work.out.fill(0.0);
    work.span_most.fill(f32::NEG_INFINITY);
    work.span_total.fill(0.0);
    let (seen, end) = (tile.first(0).max(span * SPAN), (tile.last() + 1).min((span + 1) * SPAN));
    if seen >= end {
        return;
    }
    let width = width(head.head_dim);
    // A cap comes between the scale and the change of units.
    let scale = if scores.cap.is_some() { scores.scale } else { scores.scale * LOG2_E };
    for (at, scaled) in work.queries.chunks_exact_mut(width).enumerate() {
        let from = at / tile.shared * tile.stride + at % tile.shared * head.head_dim;
        for (scaled, value) in scaled.iter_mut().zip(&tile.queries[from..from + head.head_dim]) {
            *scaled = value * scale;
        }
    }
    // What lies behind a window may be gone from the table; `other` stands there.
    let pages = |chunk: usize, other: [Page<E>; PAGES]| -> [Page<E>; PAGES] {
        std::array::from_fn(|page| {
            let position = chunk * CHUNK + page * PAGE;
            let is_seen = position <= tile.last() && position + PAGE > seen;
            if is_seen { head.page(pool, position) } else { other[page] }
        })
    };
    let nothing = Page {
        keys: std::ptr::null(),
        values: std::ptr::null(),
        key_scales: std::ptr::null(),
        value_scales: std::ptr::null(),
    };
    let mut here = pages(seen / CHUNK, [nothing; PAGES]);
    for number in seen / CHUNK..end.div_ceil(CHUNK) {
        let ahead = pages(number + 1, here);
        let base = number * CHUNK;
        let mut chunk = Chunk { pages: here, ahead, width, head_dim: head.head_dim, lanes: (0, CHUNK) };
        // Rows that see the whole chunk share it; there may be none.
        let to = tile.window.map_or(tile.rows, |window| (base + window).saturating_sub(tile.position).min(tile.rows));
        let from = (base + CHUNK - 1).saturating_sub(tile.position).min(to);
        if from < to {
            step::<L, E>(&mut work, &chunk, from * tile.shared..to * tile.shared, scores.cap);
        }
        for row in (0..from).chain(to..tile.rows) {
            let lanes = (tile.first(row).max(base), (tile.position + row + 1).min(base + CHUNK));
            if lanes.0 < lanes.1 {
                chunk.lanes = (lanes.0 - base, lanes.1 - base);
                step::<L, E>(&mut work, &chunk, row * tile.shared..(row + 1) * tile.shared, scores.cap);
            }
        }
        here = ahead;
    }
}

/// Merges what `rows` of the queries see of a chunk into the state.
#[inline(always)]
fn step<L: Lanes, E: Element>(work: &mut Work<'_>, chunk: &Chunk<E>, rows: Range<usize>, cap: Option<f32>) {
    let (first, seen) = (rows.start, chunk.seen());
    let scoring = Scoring { queries: work.queries.as_ptr(), chunk, scores: work.weights.as_mut_ptr(), first };
    // SAFETY: the pages of `seen` were taken from the pool; queries and weights have a row for each query.
    unsafe { cover::<L>(&scoring, rows.clone(), seen.clone()) };

    for row in rows.clone() {
        let scores = &mut work.weights[row * CHUNK..][..CHUNK];
        if E::SCALED {
            for page in seen.clone() {
                let at = scores[page * PAGE..][..PAGE].as_mut_ptr();
                // SAFETY: sixteen scores of a page that was taken from the pool.
                unsafe { L::load(at).mul(scales(chunk.pages[page].key_scales)).store(at) };
            }
        }
        if let Some(cap) = cap {
            for score in &mut scores[seen.start * PAGE..seen.end * PAGE] {
                *score = capped(*score, cap) * LOG2_E;
            }
        }
        // Pages may hold anything outside of what the row sees, even what is not a number.
        scores[seen.start * PAGE..chunk.lanes.0].fill(f32::NEG_INFINITY);
        scores[chunk.lanes.1..seen.end * PAGE].fill(f32::NEG_INFINITY);
        let lines = scores[seen.start * PAGE..seen.end * PAGE].as_mut_ptr();
        // SAFETY: lines of sixteen inside that part of the row.
        unsafe {
            let mut most = L::load(lines);
            for line in 1..seen.len() {
                most = most.max(L::load(lines.add(line * LANES)));
            }
            let most = most.largest();
            let mut total = L::splat(0.0);
            for line in 0..seen.len() {
                let at = lines.add(line * LANES);
                let weights = exp2(L::load(at).sub(L::splat(most)));
                total = total.add(weights);
                match E::SCALED {
                    true => weights.mul(scales(chunk.pages[seen.start + line].value_scales)).store(at),
                    false => weights.store(at),
                }
            }
            (work.most[row], work.total[row]) = (most, total.sum());
        }
    }
    let state = (&mut work.span_most[rows.clone()], &mut work.span_total[rows.clone()]);
    let next = (&work.most[rows.clone()], &work.total[rows.clone()]);
    factors::<L>(state, next, &mut work.old[rows.clone()], &mut work.new[rows.clone()]);

    let mixing = Mixing {
        weights: work.weights.as_ptr(),
        chunk,
        old: work.old.as_ptr(),
        new: work.new.as_ptr(),
        out: work.out.as_mut_ptr(),
        first,
    };
    // SAFETY: as for the scores.
    unsafe { cover::<L>(&mixing, rows, 0..chunk.width / LANES) };
}

/// Merges maxima and sums of what comes next into a state's, and gives the factors of both sides' outputs.
#[inline(always)]
fn factors<L: Lanes>(
    (most, total): (&mut [f32], &mut [f32]),
    (next_most, next_total): (&[f32], &[f32]),
    old: &mut [f32],
    new: &mut [f32],
) {
    /// Sixteen of them, or as many as there are and then zeros.
    #[inline(always)]
    fn load<L: Lanes>(from: &[f32]) -> L {
        let mut lanes = [0.0; LANES];
        lanes[..from.len()].copy_from_slice(from);
        // SAFETY: an array of sixteen.
        unsafe { L::load(lanes.as_ptr()) }
    }

    #[inline(always)]
    fn store<L: Lanes>(value: L, to: &mut [f32]) {
        let mut lanes = [0.0; LANES];
        // SAFETY: an array of sixteen.
        unsafe { value.store(lanes.as_mut_ptr()) };
        to.copy_from_slice(&lanes[..to.len()]);
    }

    for at in (0..most.len()).step_by(LANES) {
        let part = at..(at + LANES).min(most.len());
        let (before, after) = (load::<L>(&most[part.clone()]), load::<L>(&next_most[part.clone()]));
        let merged = after.max(before);
        let (before, after) = (exp2(before.sub(merged)), exp2(after.sub(merged)));
        let sums = (load::<L>(&total[part.clone()]), load::<L>(&next_total[part.clone()]));
        store(merged, &mut most[part.clone()]);
        store(sums.1.mul_add(after, sums.0.mul(before)), &mut total[part.clone()]);
        store(before, &mut old[part.clone()]);
        store(after, &mut new[part]);
    }
}

#[inline(always)]
fn merge_in<L: Lanes>(count: usize, state: &[f32], whole: &mut [f32]) {
    let width = whole.len() / count - 2;
    let (out, stats) = whole.split_at_mut(count * width);
    let (most, total) = stats.split_at_mut(count);
    let (next_out, next) = state.split_at(count * width);
    let (next_most, next_total) = next.split_at(count);
    for query in 0..count {
        // A row that sees nothing of the span leaves no trace of it.
        if next_total[query] == 0.0 {
            continue;
        }
        let one = query..query + 1;
        let (mut old, mut new) = ([0.0], [0.0]);
        let state = (&mut most[one.clone()], &mut total[one.clone()]);
        factors::<L>(state, (&next_most[one.clone()], &next_total[one]), &mut old, &mut new);
        let part = query * width..(query + 1) * width;
        for (out, next) in out[part.clone()].iter_mut().zip(&next_out[part]) {
            *out = *out * old[0] + next * new[0];
        }
    }
}
