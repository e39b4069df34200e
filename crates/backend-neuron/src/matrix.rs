//! Matrices as the kernels like them: in panels, in f32 or nested.
//!
//! In: rows as the model's files hold them. Out: [`Matrix`], and products of [`crate::rows::Rows`] with it. Deliberately not here: what the matrices mean.

use std::cell::RefCell;

use holdfast_model::{WeightMatrix, WeightRow};

use crate::kernels::Isa;
use crate::kernels::matmul::{self, PANEL, TILE};
use crate::kernels::nested::{self, COLUMNS, Panel, UNPACKED_BLOCKS, Unpacked};
use crate::memory::Memory;
use crate::nested::Nested;
use crate::packings::Kept;
use crate::pool::{Pieces, Pool};
use crate::rows::{RowTile, Rows};
use crate::{NeuronError, WeightFormat};

/// Rows of a matrix, `[out, depth]`, and their bias.
pub(crate) type Part<'a> = (WeightMatrix<'a>, Option<&'a [f32]>);

/// Multiply-adds that a thread takes at once, about; with few rows, reading a weight counts for four. Enough that taking costs nothing
/// beside them, and little enough that threads end together.
const WORK_PER_ITEM: usize = 256 << 10;
/// Up to so many rows, reading the weights takes longer than multiplying.
const FEW_ROWS: usize = 64;
const FEW_BLOCKS: usize = 2;

thread_local! {
    /// A thread's own room, made once, so that a step allocates nothing.
    static ROOM: RefCell<Box<Room>> = RefCell::new(Box::default());
    /// Room for rows in f32 while weights are packed.
    static ROWS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Room for the product of one panel with many rows.
#[derive(Default)]
struct Room {
    unpacked: Unpacked,
    /// A row's, in the order of tiles.
    sums: Vec<[f32; COLUMNS]>,
}

/// What packing needs.
pub(crate) struct Packer<'a> {
    pub(crate) memory: Memory,
    pub(crate) pool: &'a Pool,
    pub(crate) isa: Isa,
    /// What an earlier start has packed.
    pub(crate) kept: Option<Kept>,
}

/// A matrix `[width, depth]`.
#[derive(Debug)]
pub(crate) struct Matrix {
    width: usize,
    depth: usize,
    values: Values,
    /// `[width]`, or empty.
    bias: Vec<f32>,
}

#[derive(Debug)]
enum Values {
    /// `[panel][depth][PANEL]`; the last panel is padded with zeros.
    F32(Vec<f32>),
    Nested(Nested),
}

impl Matrix {
    /// Packs parts that share a depth, one under the other.
    pub(crate) fn pack(
        parts: &[Part<'_>],
        depth: usize,
        format: WeightFormat,
        packer: &mut Packer<'_>,
    ) -> Result<Self, NeuronError> {
        let rows: Vec<WeightRow<'_>> =
            parts.iter().flat_map(|(matrix, _)| (0..matrix.rows()).map(|row| matrix.row(row))).collect();
        let mut bias = Vec::new();
        if parts.iter().any(|(_, bias)| bias.is_some()) {
            for (matrix, part) in parts {
                match part {
                    Some(part) => bias.extend_from_slice(part),
                    None => bias.resize(bias.len() + matrix.rows(), 0.0),
                }
            }
        }
        let values = match format {
            WeightFormat::F32 => Values::F32(pack_f32(&rows, depth, packer.pool)),
            WeightFormat::Nested => {
                let Packer { memory, pool, isa, kept } = packer;
                let kept = kept.as_mut().map(|kept| kept.next(rows.len(), depth, memory, pool)).transpose()?.flatten();
                Values::Nested(match kept {
                    Some(nested) => nested,
                    None => Nested::pack(&rows, depth, memory, pool, *isa)?,
                })
            }
        };
        Ok(Self { width: rows.len(), depth, values, bias })
    }

    /// Output features.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Its nested weights, if it has any.
    pub(crate) fn nested(&self) -> Option<&Nested> {
        if let Values::Nested(nested) = &self.values { Some(nested) } else { None }
    }

    /// Row `row` times `scale`, `[depth]`, without the bias.
    pub(crate) fn row(&self, row: usize, scale: f32, out: &mut [f32]) {
        match &self.values {
            Values::F32(values) => {
                let panel = self.f32_panel(values, row / PANEL).iter().skip(row % PANEL).step_by(PANEL);
                out.iter_mut().zip(panel).for_each(|(out, value)| *out = value * scale);
            }
            Values::Nested(nested) => nested.row(row, scale, out),
        }
    }

    /// `out[row] = rows[row] * self^T + bias`, `[rows][width]`.
    pub(crate) fn multiply(&self, rows: &Rows, out: &mut [f32], pool: &Pool, isa: Isa) {
        assert_eq!(out.len(), rows.count() * self.width, "one output row per input row");
        let out = Pieces::new(out);
        match &self.values {
            Values::F32(values) => self.multiply_f32(values, rows, out, pool, isa),
            Values::Nested(nested) => self.multiply_nested(nested, rows, out, pool, isa),
        }
    }

    fn multiply_f32(&self, values: &[f32], rows: &Rows, out: Pieces<'_>, pool: &Pool, isa: Isa) {
        let count = rows.count();
        pool.run(self.width.div_ceil(PANEL), count * self.width * self.depth, |panel| {
            let weights = self.f32_panel(values, panel);
            let first_column = panel * PANEL;
            let store = |row: usize, sums: &[f32; PANEL]| {
                let len = PANEL.min(self.width - first_column);
                // SAFETY: a panel has columns of its own, a panel is one item, and its rows are stored one after the other.
                let target = unsafe { out.piece(row * self.width + first_column, len) };
                target.copy_from_slice(&sums[..len]);
                self.add_bias(first_column, target);
            };
            let whole = count / TILE * TILE;
            for first in (0..whole).step_by(TILE) {
                let mut sums = [[0.0; PANEL]; TILE];
                let x = std::array::from_fn(|row| rows.row(first + row));
                matmul::f32_tile(isa, &x, weights, &mut sums);
                sums.iter().enumerate().for_each(|(row, sums)| store(first + row, sums));
            }
            for row in whole..count {
                let mut sums = [[0.0; PANEL]];
                matmul::f32_row(isa, &[rows.row(row)], weights, &mut sums);
                store(row, &sums[0]);
            }
        });
    }

    fn multiply_nested(&self, nested: &Nested, rows: &Rows, out: Pieces<'_>, pool: &Pool, isa: Isa) {
        let panels = self.width.div_ceil(COLUMNS);
        let per_item = (WORK_PER_ITEM / (COLUMNS * self.depth * rows.count().max(4))).max(1);
        pool.run(panels.div_ceil(per_item), rows.count() * self.width * self.depth, |item| {
            for panel in item * per_item..panels.min((item + 1) * per_item) {
                for narrow in [false, true] {
                    self.multiply_panel(nested.panel(panel, narrow), rows, rows.tiles(narrow), isa, |row, sums| {
                        let first = panel * COLUMNS;
                        let len = COLUMNS.min(self.width - first);
                        // SAFETY: a panel has columns of its own and belongs to one item, and its rows are stored one after the other.
                        let target = unsafe { out.piece(row * self.width + first, len) };
                        target.copy_from_slice(&sums[..len]);
                        self.add_bias(first, target);
                    });
                }
            }
        });
    }

    /// One panel times tiles of one precision. Planes are read once: in registers for one tile, and for more by some blocks at a time.
    fn multiply_panel(
        &self,
        panel: Panel<'_>,
        rows: &Rows,
        tiles: &[RowTile],
        isa: Isa,
        store: impl Fn(usize, &[f32; COLUMNS]),
    ) {
        let store_tile = |tile: &RowTile, sums: &[[f32; COLUMNS]]| {
            rows.of(tile).iter().zip(sums).for_each(|(row, sums)| store(*row, sums));
        };
        if tiles.is_empty() {
            return;
        }
        if let [tile] = tiles {
            let mut sums = [[0.0; COLUMNS]; nested::TILE];
            nested::stream(isa, rows.tile(tile), panel, &mut sums);
            store_tile(tile, &sums);
            return;
        }
        ROOM.with_borrow_mut(|room| {
            let Room { unpacked, sums } = &mut **room;
            let count = tiles.iter().map(|tile| rows.of(tile).len()).sum();
            sums.resize(count, [0.0; COLUMNS]);
            // Few rows: memory is what they wait for, and little at a time lets it go on while they are multiplied.
            let at_once = if count <= FEW_ROWS { FEW_BLOCKS } else { UNPACKED_BLOCKS };
            for first in (0..panel.blocks()).step_by(at_once) {
                let blocks = at_once.min(panel.blocks() - first);
                nested::unpack(isa, panel.part(first, blocks), unpacked);
                let next = first + blocks..panel.blocks().min(first + 2 * blocks);
                let next = panel.part(next.start, next.len());
                let mut sums = sums.as_mut_slice();
                for (number, tile) in tiles.iter().enumerate() {
                    nested::ask(next, number, tiles.len());
                    let (own, others) = sums.split_at_mut(rows.of(tile).len());
                    if first == 0 {
                        own.fill([0.0; COLUMNS]);
                    }
                    nested::product(isa, rows.tile(tile).part(first, blocks), unpacked, own);
                    if first + blocks == panel.blocks() {
                        store_tile(tile, own);
                    }
                    sums = others;
                }
            }
        });
    }

    /// Adds the biases of columns from `first` on.
    #[inline(always)]
    fn add_bias(&self, first: usize, to: &mut [f32]) {
        if !self.bias.is_empty() {
            to.iter_mut().zip(&self.bias[first..]).for_each(|(to, bias)| *to += bias);
        }
    }

    fn f32_panel<'a>(&self, values: &'a [f32], panel: usize) -> &'a [f32] {
        &values[panel * self.depth * PANEL..(panel + 1) * self.depth * PANEL]
    }
}

fn pack_f32(rows: &[WeightRow<'_>], depth: usize, pool: &Pool) -> Vec<f32> {
    let panels = rows.len().div_ceil(PANEL);
    let mut packed = vec![0.0; panels * depth * PANEL];
    let pieces = Pieces::new(&mut packed);
    pool.run(panels, rows.len() * depth, |panel| {
        // SAFETY: an item is a panel.
        let to = unsafe { pieces.piece(panel * depth * PANEL, depth * PANEL) };
        with_f32(&rows[panel * PANEL..rows.len().min((panel + 1) * PANEL)], depth, |rows| {
            for (at, row) in rows.iter().enumerate() {
                to.iter_mut().skip(at).step_by(PANEL).zip(*row).for_each(|(to, from)| *to = *from);
            }
        });
    });
    packed
}

/// Calls `f` with rows in f32; `f` does not come here again.
pub(crate) fn with_f32<R>(rows: &[WeightRow<'_>], depth: usize, f: impl FnOnce(&[&[f32]]) -> R) -> R {
    ROWS.with_borrow_mut(|room| {
        room.resize(room.len().max(rows.len() * depth), 0.0);
        let mut room = room.as_mut_slice();
        let of = |row: &WeightRow<'_>| {
            let (own, rest) = std::mem::take(&mut room).split_at_mut(depth);
            room = rest;
            row.read(own);
            &*own
        };
        f(&rows.iter().map(of).collect::<Vec<_>>())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn packed_products_are_plain_products() {
        let mut rng = fastrand::Rng::with_seed(7);
        let pool = Pool::new(2, 0).unwrap();
        let isa = Isa::widest();
        for (width, depth, count) in [(1, 1, 1), (5, 33, 3), (32, 64, 4), (67, 300, 29), (96, 1_100, 14)] {
            let values: Vec<f32> = (0..width * depth).map(|_| rng.f32() - 0.5).collect();
            let extra: Vec<f32> = (0..depth * 2).map(|_| rng.f32() - 0.5).collect();
            let bias: Vec<f32> = (0..width).map(|_| rng.f32()).collect();
            let x: Vec<f32> = (0..count * depth).map(|_| rng.f32() - 0.5).collect();
            for (format, narrow, tolerance) in [
                (WeightFormat::F32, false, 1e-5),
                (WeightFormat::Nested, false, 0.008),
                (WeightFormat::Nested, true, 0.06),
            ] {
                // Two parts: the first has a bias, the second none.
                let parts = [
                    (WeightMatrix::of(&values, depth), Some(bias.as_slice())),
                    (WeightMatrix::of(&extra, depth), None),
                ];
                let mut packer = Packer { memory: Memory::default(), pool: &pool, isa, kept: None };
                let matrix = Matrix::pack(&parts, depth, format, &mut packer).unwrap();
                assert_eq!(matrix.width(), width + 2);
                let mut rows = Rows::default();
                // In a mixed batch, every third row is of the other precision, which the tolerance of 4 bits bounds too.
                let mixed = |row: usize| narrow && row % 3 != 1;
                rows.begin((0..count).map(mixed));
                rows.fill(depth, format, &pool, isa, |row, out| out.copy_from_slice(&x[row * depth..][..depth]));
                let mut out = vec![9.0; count * (width + 2)];
                matrix.multiply(&rows, &mut out, &pool, isa);
                for row in 0..count {
                    for column in 0..width + 2 {
                        let weights = match column.checked_sub(width) {
                            None => &values[column * depth..(column + 1) * depth],
                            Some(at) => &extra[at * depth..(at + 1) * depth],
                        };
                        let dot: f64 =
                            x[row * depth..].iter().zip(weights).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                        let want = dot + bias.get(column).map_or(0.0, |bias| f64::from(*bias));
                        let got = f64::from(out[row * (width + 2) + column]);
                        let tolerance = tolerance * (depth as f64).sqrt();
                        assert!((got - want).abs() <= tolerance, "{format:?} {width}x{depth}: {got} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn rows_are_what_was_packed() {
        let pool = Pool::new(1, 0).unwrap();
        let values: Vec<f32> = (0..50 * 70).map(|at| (at % 255) as f32 - 127.0).collect();
        for (format, tolerance) in [(WeightFormat::F32, 0.0), (WeightFormat::Nested, 0.51)] {
            let mut packer = Packer { memory: Memory::default(), pool: &pool, isa: Isa::widest(), kept: None };
            let matrix = Matrix::pack(&[(WeightMatrix::of(&values, 70), None)], 70, format, &mut packer).unwrap();
            let mut row = [9.0; 70];
            for at in 0..50 {
                matrix.row(at, 2.0, &mut row);
                let near = row.iter().zip(&values[at * 70..]).all(|(a, b)| (a - 2.0 * b).abs() <= 2.0 * tolerance);
                assert!(near, "{format:?} {at}");
            }
        }
    }
}
