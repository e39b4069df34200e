//! Rows on their way into a product: values, and what nested weights need of them.
//!
//! In: which rows are computed at 4 bits, and a function that writes a row. Out: values, and tiles of quantised rows of one precision.
//! Deliberately not here: products.

use std::cell::RefCell;

use crate::WeightFormat;
use crate::kernels::Isa;
use crate::kernels::nested::{BLOCK, SHIFTS, TILE, Tile, TileMut};
use crate::kernels::quantise::{blocks, quantise_row};
use crate::pool::{Pieces, Pool};

/// Multiply-adds that take as long as making one value of a row, about.
const WORK_PER_VALUE: usize = 64;

thread_local! {
    /// A row on its way to its codes, where nobody asks for its values later.
    static ROW: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Rows that are multiplied with matrices of one depth.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    width: usize,
    /// Whether values are kept where there are codes.
    keeps_values: bool,
    /// Of each row, whether it is computed at 4 bits.
    narrow: Vec<bool>,
    /// Rows at 8 bits, then those at 4.
    order: Vec<usize>,
    /// Tiles of those at 8 bits, then of those at 4.
    tiles: Vec<RowTile>,
    wide: usize,
    /// `[rows][width]`, or empty.
    values: Vec<f32>,
    /// `[tiles][blocks][rows of the tile][BLOCK]`, and so on: see [`Tile`].
    codes: Vec<i8>,
    scales: Vec<f32>,
    shifts: Vec<i32>,
}

/// Some rows of one precision.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowTile {
    /// Place of the first in the order.
    first: usize,
    rows: usize,
    narrow: bool,
}

/// Where a row's codes come block by block, from several threads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quantised<'a> {
    per_row: usize,
    codes: Pieces<'a, i8>,
    scales: Pieces<'a, f32>,
    shifts: Pieces<'a, i32>,
}

impl<'a> Quantised<'a> {
    fn of(
        rows: usize,
        width: usize,
        codes: &'a mut Vec<i8>,
        scales: &'a mut Vec<f32>,
        shifts: &'a mut Vec<i32>,
    ) -> Self {
        let len = rows * blocks(width);
        codes.resize(len * BLOCK, 0);
        scales.resize(len, 0.0);
        shifts.resize(len * SHIFTS, 0);
        Self {
            per_row: blocks(width),
            codes: Pieces::new(codes),
            scales: Pieces::new(scales),
            shifts: Pieces::new(shifts),
        }
    }

    /// One block of a tile.
    ///
    /// # Safety
    /// While it lives, nobody else has this block of this tile.
    pub(crate) unsafe fn block(&self, tile: &RowTile, block: usize) -> TileMut<'_> {
        // SAFETY: by the caller's promise.
        unsafe { self.blocks(tile, block, 1) }
    }

    /// # Safety
    /// As for `block`.
    unsafe fn blocks(&self, tile: &RowTile, first: usize, count: usize) -> TileMut<'_> {
        let (at, len) = (tile.first * self.per_row + first * tile.rows, count * tile.rows);
        // SAFETY: by the caller's promise; blocks of a tile lie side by side.
        unsafe {
            TileMut {
                rows: tile.rows,
                codes: self.codes.piece(at * BLOCK, len * BLOCK),
                scales: self.scales.piece(at, len),
                shifts: self.shifts.piece(at * SHIFTS, len * SHIFTS),
            }
        }
    }
}

impl Rows {
    /// Begins with new rows, of which some are computed at 4 bits (`narrow`). Values of quantised rows are only kept on demand.
    pub(crate) fn begin(&mut self, narrow: impl Iterator<Item = bool>, keeps_values: bool) {
        self.keeps_values = keeps_values;
        self.narrow.clear();
        self.narrow.extend(narrow);
        self.order.clear();
        self.tiles.clear();
        for kind in [false, true] {
            let first = self.order.len();
            let rows = self.narrow.iter().enumerate().filter(|(_, narrow)| **narrow == kind);
            self.order.extend(rows.map(|(row, _)| row));
            let count = self.order.len() - first;
            // As few tiles as possible, of sizes as even as possible.
            let tiles = count.div_ceil(TILE);
            let place = |tile: usize| first + tile * count / tiles;
            let made = (0..tiles).map(|tile| RowTile {
                first: place(tile),
                rows: place(tile + 1) - place(tile),
                narrow: kind,
            });
            self.tiles.extend(made);
            if !kind {
                self.wide = self.tiles.len();
            }
        }
    }

    /// Begins with rows like others, without values.
    pub(crate) fn begin_like(&mut self, other: &Self) {
        self.keeps_values = false;
        self.narrow.clone_from(&other.narrow);
        self.order.clone_from(&other.order);
        self.tiles.clone_from(&other.tiles);
        self.wide = other.wide;
    }

    /// Makes room for codes of rows of `width`, all of which are then to be written.
    pub(crate) fn quantised(&mut self, width: usize) -> Quantised<'_> {
        self.width = width;
        Quantised::of(self.order.len(), width, &mut self.codes, &mut self.scales, &mut self.shifts)
    }

    /// Writes every row with `f`, which gets its number and `[width]` values of anything, and quantises it if `format` asks for it.
    pub(crate) fn fill(
        &mut self,
        width: usize,
        format: WeightFormat,
        pool: &Pool,
        isa: Isa,
        f: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        self.width = width;
        let Self { keeps_values, order, tiles, values, codes, scales, shifts, .. } = self;
        let quantised =
            (format == WeightFormat::Nested).then(|| Quantised::of(order.len(), width, codes, scales, shifts));
        let keeps_values = *keeps_values || quantised.is_none();
        values.resize(if keeps_values { order.len() * width } else { 0 }, 0.0);
        let values = Pieces::new(values);
        pool.run(tiles.len(), order.len() * width * WORK_PER_VALUE, |item| {
            let tile = tiles[item];
            for (at, row) in order[tile.first..tile.first + tile.rows].iter().enumerate() {
                let write = |values: &mut [f32]| {
                    f(*row, values);
                    if let Some(quantised) = quantised {
                        // SAFETY: an item is a tile, whose rows are quantised one after the other.
                        let mut tile_mut = unsafe { quantised.blocks(&tile, 0, blocks(width)) };
                        quantise_row(isa, values, tile.narrow, at, &mut tile_mut);
                    }
                };
                if keeps_values {
                    // SAFETY: tiles share no row.
                    write(unsafe { values.piece(row * width, width) });
                } else {
                    ROW.with_borrow_mut(|values| {
                        if values.len() < width {
                            values.resize(width, 0.0);
                        }
                        write(&mut values[..width]);
                    });
                }
            }
        });
    }

    pub(crate) fn count(&self) -> usize {
        self.order.len()
    }

    /// Whether a row is computed at 4 bits.
    pub(crate) fn is_narrow(&self, row: usize) -> bool {
        self.narrow[row]
    }

    /// `[width]`, in f32, if values are kept.
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..(row + 1) * self.width]
    }

    /// Tiles of one precision.
    pub(crate) fn tiles(&self, narrow: bool) -> &[RowTile] {
        let (wide, others) = self.tiles.split_at(self.wide);
        if narrow { others } else { wide }
    }

    /// Rows of one precision, in the order of its tiles.
    pub(crate) fn order(&self, narrow: bool) -> &[usize] {
        let wide = self.tiles(false).iter().map(|tile| tile.rows).sum();
        let (wide, others) = self.order.split_at(wide);
        if narrow { others } else { wide }
    }

    /// How many rows have one precision.
    pub(crate) fn count_of(&self, narrow: bool) -> usize {
        self.order(narrow).len()
    }

    /// The rows of a tile.
    pub(crate) fn of(&self, tile: &RowTile) -> &[usize] {
        &self.order[tile.first..tile.first + tile.rows]
    }

    /// A tile, quantised.
    pub(crate) fn tile(&self, tile: &RowTile) -> Tile<'_> {
        let per_row = blocks(self.width);
        let (first, len) = (tile.first * per_row, tile.rows * per_row);
        Tile {
            rows: tile.rows,
            codes: &self.codes[first * BLOCK..(first + len) * BLOCK],
            scales: &self.scales[first..first + len],
            shifts: &self.shifts[first * SHIFTS..(first + len) * SHIFTS],
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn tiles_are_even_and_of_one_precision() {
        let mut rows = Rows::default();
        for (count, sizes) in [(1, vec![1]), (12, vec![12]), (13, vec![6, 7]), (32, vec![10, 11, 11])] {
            rows.begin((0..count).map(|_| false), false);
            assert_eq!(rows.tiles(false).iter().map(|tile| tile.rows).collect::<Vec<_>>(), sizes);
            assert!(rows.tiles(true).is_empty());
        }
        rows.begin([true, false, true, true, false].into_iter(), false);
        let of = |narrow| rows.tiles(narrow).iter().flat_map(|tile| rows.of(tile)).copied().collect::<Vec<_>>();
        assert_eq!((of(false), of(true)), (vec![1, 4], vec![0, 2, 3]));
    }

    #[test]
    fn rows_are_written_once_and_a_tile_holds_its_own() {
        let pool = Pool::new(3, 0).unwrap();
        let mut rows = Rows::default();
        rows.begin((0..100).map(|row| row % 4 == 0), true);
        for width in [64, 100, 31] {
            rows.fill(width, WeightFormat::Nested, &pool, Isa::widest(), |row, out| out.fill(row as f32 + 1.0));
            for tile in rows.tiles(false).iter().chain(rows.tiles(true)) {
                let quantised = rows.tile(tile);
                for (at, row) in rows.of(tile).iter().enumerate() {
                    assert!(rows.row(*row).iter().all(|value| *value == *row as f32 + 1.0));
                    for block in 0..blocks(width) {
                        assert_eq!(quantised.scales[block * quantised.rows + at], (*row as f32 + 1.0) / 127.0);
                        let codes = &quantised.codes[(block * quantised.rows + at) * BLOCK..][..BLOCK];
                        let inside = (width - block * BLOCK).min(BLOCK);
                        assert!(codes[..inside].iter().all(|code| *code == 127));
                        assert!(codes[inside..].iter().all(|code| *code == 0));
                    }
                }
            }
        }
    }
}
