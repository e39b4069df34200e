//! Rows on their way into a product: values, and what nested weights need of them.
//!
//! In: which rows are computed at 4 bits, and a function that writes a row. Out: values, and tiles of quantised rows of one precision.
//! Deliberately not here: products.

use crate::WeightFormat;
use crate::kernels::Isa;
use crate::kernels::nested::{BLOCK, SHIFTS, TILE, Tile, TileMut};
use crate::kernels::quantise::{blocks, quantise_row};
use crate::pool::{Pieces, Pool};

/// Multiply-adds that take as long as making one value of a row, about.
const WORK_PER_VALUE: usize = 64;

/// Rows that are multiplied with matrices of one depth.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    width: usize,
    /// Of each row, whether it is computed at 4 bits.
    narrow: Vec<bool>,
    /// Rows at 8 bits, then those at 4.
    order: Vec<usize>,
    /// Tiles of those at 8 bits, then of those at 4.
    tiles: Vec<RowTile>,
    wide: usize,
    /// `[rows][width]`.
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

impl Rows {
    /// Begins with new rows, of which some are computed at 4 bits (`narrow`).
    pub(crate) fn begin(&mut self, narrow: impl Iterator<Item = bool>) {
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

    /// Writes every row with `f`, which gets its number and `[width]` values of before, and quantises it if `format` asks for it.
    pub(crate) fn fill(
        &mut self,
        width: usize,
        format: WeightFormat,
        pool: &Pool,
        isa: Isa,
        f: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        self.width = width;
        let (count, per_row) = (self.order.len(), blocks(width));
        self.values.resize(count * width, 0.0);
        if format == WeightFormat::Nested {
            self.codes.resize(count * per_row * BLOCK, 0);
            self.scales.resize(count * per_row, 0.0);
            self.shifts.resize(count * per_row * SHIFTS, 0);
        }
        let values = Pieces::new(&mut self.values);
        let (codes, scales) = (Pieces::new(&mut self.codes), Pieces::new(&mut self.scales));
        let shifts = Pieces::new(&mut self.shifts);
        let (order, tiles) = (&self.order, &self.tiles);
        pool.run(tiles.len(), count * width * WORK_PER_VALUE, |item| {
            let RowTile { first, rows, narrow } = tiles[item];
            for (at, row) in order[first..first + rows].iter().enumerate() {
                // SAFETY: an item is a tile, and tiles share no row.
                let values = unsafe { values.piece(row * width, width) };
                f(*row, values);
                if format == WeightFormat::Nested {
                    let blocks = rows * per_row;
                    // SAFETY: as above; the tile's rows are quantised one after the other.
                    let mut tile = unsafe {
                        TileMut {
                            rows,
                            codes: codes.piece(first * per_row * BLOCK, blocks * BLOCK),
                            scales: scales.piece(first * per_row, blocks),
                            shifts: shifts.piece(first * per_row * SHIFTS, blocks * SHIFTS),
                        }
                    };
                    quantise_row(isa, values, narrow, at, &mut tile);
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

    /// `[width]`, in f32.
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..(row + 1) * self.width]
    }

    /// Tiles of one precision.
    pub(crate) fn tiles(&self, narrow: bool) -> &[RowTile] {
        let (wide, others) = self.tiles.split_at(self.wide);
        if narrow { others } else { wide }
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
        for (count, sizes) in [(1, vec![1]), (8, vec![8]), (9, vec![4, 5]), (22, vec![7, 7, 8])] {
            rows.begin((0..count).map(|_| false));
            assert_eq!(rows.tiles(false).iter().map(|tile| tile.rows).collect::<Vec<_>>(), sizes);
            assert!(rows.tiles(true).is_empty());
        }
        rows.begin([true, false, true, true, false].into_iter());
        let of = |narrow| rows.tiles(narrow).iter().flat_map(|tile| rows.of(tile)).copied().collect::<Vec<_>>();
        assert_eq!((of(false), of(true)), (vec![1, 4], vec![0, 2, 3]));
    }

    #[test]
    fn rows_are_written_once_and_a_tile_holds_its_own() {
        let pool = Pool::new(3, 0).unwrap();
        let mut rows = Rows::default();
        rows.begin((0..100).map(|row| row % 4 == 0));
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
