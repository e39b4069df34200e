//! The two products of attention: queries with a chunk of keys, and weights with its values.
//!
//! In: rows of f32, pages of keys and values. Out: scores; outputs with a chunk merged in. Deliberately not here: softmax, and which
//! rows see which positions.
//!
//! Both are one loop: a block of rows times a block of columns of sixteen stays in registers while the shared axis (elements of a head, or
//! positions) is walked in rising order, by one fused multiply-add per step. The size of a block therefore changes no bit.

use std::ops::Range;

use super::lanes::Lanes;
use super::page::{Element, PAGE, Page};

/// Pages of a chunk.
pub(super) const PAGES: usize = 4;
/// Positions of a chunk. Part of the kernels' revision.
pub(crate) const CHUNK: usize = PAGES * PAGE;

/// The pages that a chunk is in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk<E> {
    /// Those of the chunk that the rows see, in their places; the others are null.
    pub(super) pages: [Page<E>; PAGES],
    /// Those that come next, to be fetched ahead.
    pub(super) ahead: [Page<E>; PAGES],
    /// Stored elements of a head.
    pub(super) width: usize,
    /// Elements of a head.
    pub(super) head_dim: usize,
    /// Positions in the chunk that all rows of a call see.
    pub(super) lanes: (usize, usize),
}

impl<E> Chunk<E> {
    /// The pages that hold `lanes`.
    #[inline(always)]
    pub(super) fn seen(&self) -> Range<usize> {
        self.lanes.0 / PAGE..self.lanes.1.div_ceil(PAGE)
    }
}

/// Adds to the sums of `R` rows and `C` columns the products along `steps` of the shared axis. Row r's factors are at `rows + r *
/// row_stride`, column c's at `columns[c]`, steps `stride` apart.
///
/// # Safety
/// Rows can be read up to the last step, columns up to the end of its pair.
#[inline(always)]
unsafe fn add_products<L: Lanes, E: Element, const R: usize, const C: usize>(
    sums: &mut [[L; C]; R],
    (rows, row_stride): (*const f32, usize),
    (columns, stride): ([*const E; C], usize),
    ahead: [*const E; C],
    steps: (usize, usize),
) {
    let rows = (rows, row_stride);
    let (begin, end) = (steps.0.next_multiple_of(2), steps.1 / 2 * 2);
    // SAFETY: places as the caller promised.
    unsafe {
        if steps.0 < begin {
            let (_, odd) = load::<L, E, C>(columns, stride, begin - 2);
            add_step(sums, rows, steps.0, odd);
        }
        let mut step = begin;
        while step < end {
            let (even, odd) = load::<L, E, C>(columns, stride, step);
            for at in ahead {
                E::prefetch::<L>(at.wrapping_add(step * stride), stride);
            }
            add_step(sums, rows, step, even);
            add_step(sums, rows, step + 1, odd);
            step += 2;
        }
        if end.max(begin) < steps.1 {
            let (even, _) = load::<L, E, C>(columns, stride, end);
            add_step(sums, rows, end, even);
        }
    }
}

/// Every column at `step`, which is even, and at the one after it.
///
/// # Safety
/// Columns can be read at both.
#[inline(always)]
unsafe fn load<L: Lanes, E: Element, const C: usize>(
    columns: [*const E; C],
    stride: usize,
    step: usize,
) -> ([L; C], [L; C]) {
    let (mut even, mut odd) = ([L::splat(0.0); C], [L::splat(0.0); C]);
    for column in 0..C {
        // SAFETY: as the caller promised.
        (even[column], odd[column]) = unsafe { E::two_rows(columns[column].add(step * stride), stride) };
    }
    (even, odd)
}

/// # Safety
/// Rows can be read at `step`.
#[inline(always)]
#[expect(
    clippy::needless_range_loop,
    reason = "sums stay in registers when loops are counted; iterators over them cost most of the speed"
)]
unsafe fn add_step<L: Lanes, const R: usize, const C: usize>(
    sums: &mut [[L; C]; R],
    (rows, row_stride): (*const f32, usize),
    step: usize,
    columns: [L; C],
) {
    for row in 0..R {
        // SAFETY: as the caller promised.
        let factor = L::splat(unsafe { *rows.add(row * row_stride + step) });
        for column in 0..C {
            sums[row][column] = factor.mul_add(columns[column], sums[row][column]);
        }
    }
}

/// A product over all rows and columns, block by block.
pub(super) trait Blocks {
    /// Computes the block whose first row and column these are.
    ///
    /// # Safety
    /// The block lies inside the product.
    unsafe fn block<L: Lanes, const R: usize, const C: usize>(&self, row: usize, column: usize);
}

/// Covers `rows` and `columns` with blocks as large as the registers allow.
///
/// # Safety
/// As for [`Blocks::block`].
#[inline(always)]
pub(super) unsafe fn cover<L: Lanes>(blocks: &impl Blocks, rows: Range<usize>, columns: Range<usize>) {
    let mut row = rows.start;
    // SAFETY: blocks stay inside the ranges.
    unsafe {
        if L::WIDE {
            while rows.end - row >= 12 {
                cover_columns::<L, 12, 2>(blocks, row, columns.clone());
                row += 12;
            }
            while rows.end - row >= 4 {
                cover_columns::<L, 4, 4>(blocks, row, columns.clone());
                row += 4;
            }
        } else {
            while rows.end - row >= 4 {
                cover_columns::<L, 4, 1>(blocks, row, columns.clone());
                row += 4;
            }
        }
        if rows.end - row >= 2 {
            cover_columns::<L, 2, 2>(blocks, row, columns.clone());
            row += 2;
        }
        if row < rows.end {
            cover_columns::<L, 1, 4>(blocks, row, columns);
        }
    }
}

/// # Safety
/// As for [`cover`].
#[inline(always)]
unsafe fn cover_columns<L: Lanes, const R: usize, const C: usize>(
    blocks: &impl Blocks,
    row: usize,
    columns: Range<usize>,
) {
    let mut column = columns.start;
    // SAFETY: as in `cover`.
    unsafe {
        while columns.end - column >= C {
            blocks.block::<L, R, C>(row, column);
            column += C;
        }
        while column < columns.end {
            blocks.block::<L, R, 1>(row, column);
            column += 1;
        }
    }
}

/// Queries (`[rows][width]`) times keys: one column for each page. Into `scores`, `[rows][CHUNK]`.
pub(super) struct Scoring<'a, E> {
    pub(super) queries: *const f32,
    pub(super) chunk: &'a Chunk<E>,
    pub(super) scores: *mut f32,
    /// The row that also fetches what comes next.
    pub(super) first: usize,
}

impl<E: Element> Blocks for Scoring<'_, E> {
    #[inline(always)]
    unsafe fn block<L: Lanes, const R: usize, const C: usize>(&self, row: usize, column: usize) {
        let width = self.chunk.width;
        let mut sums = [[L::splat(0.0); C]; R];
        let keys: [*const E; C] = std::array::from_fn(|at| self.chunk.pages[column + at].keys);
        let ahead = if row == self.first { std::array::from_fn(|at| self.chunk.ahead[column + at].keys) } else { keys };
        // SAFETY: a page has `width` steps of sixteen; the tile's buffers have these rows.
        unsafe {
            let rows = (self.queries.add(row * width), width);
            add_products(&mut sums, rows, (keys, PAGE), ahead, (0, self.chunk.head_dim));
            for (at, sums) in sums.iter().enumerate() {
                for (n, sum) in sums.iter().enumerate() {
                    sum.store(self.scores.add((row + at) * CHUNK + (column + n) * PAGE));
                }
            }
        }
    }
}

/// Weights (`[rows][CHUNK]`) times values: one column for sixteen elements of a head. What it gives, times `new`, is added to
/// `out` (`[rows][width]`) times `old`.
pub(super) struct Mixing<'a, E> {
    pub(super) weights: *const f32,
    pub(super) chunk: &'a Chunk<E>,
    pub(super) old: *const f32,
    pub(super) new: *const f32,
    pub(super) out: *mut f32,
    /// The row that also fetches what comes next.
    pub(super) first: usize,
}

impl<E: Element> Blocks for Mixing<'_, E> {
    #[inline(always)]
    unsafe fn block<L: Lanes, const R: usize, const C: usize>(&self, row: usize, column: usize) {
        let Chunk { pages, width, lanes, .. } = *self.chunk;
        let mut sums = [[L::splat(0.0); C]; R];
        // SAFETY: a page has sixteen steps of `width`; the tile's buffers have these rows.
        unsafe {
            for page in self.chunk.seen() {
                let base = page * PAGE;
                let at =
                    |page: &Page<E>| std::array::from_fn(|n| page.values.wrapping_add((column + n) * PAGE * E::SHARED));
                let values: [*const E; C] = at(&pages[page]);
                let ahead = if row == self.first { at(&self.chunk.ahead[page]) } else { values };
                let rows = (self.weights.add(row * CHUNK + base), CHUNK);
                let steps = (lanes.0.max(base) - base, (lanes.1 - base).min(PAGE));
                add_products(&mut sums, rows, (values, width), ahead, steps);
            }
            for (at, sums) in sums.iter().enumerate() {
                let (old, new) = (L::splat(*self.old.add(row + at)), L::splat(*self.new.add(row + at)));
                for (n, sum) in sums.iter().enumerate() {
                    let out = self.out.add((row + at) * width + (column + n) * PAGE);
                    sum.mul_add(new, L::load(out).mul(old)).store(out);
                }
            }
        }
    }
}
