//! Matrices as the kernels like them: in panels, in f32, in bf16 or nested.
//!
//! In: rows as the model's files hold them. Out: [`Matrix`], and products of [`crate::rows::Rows`] with it. Deliberately not here: what the matrices mean.

use std::cell::RefCell;

use holdfast_model::{WeightMatrix, WeightRow};

use crate::kernels::Isa;
use crate::kernels::matmul::{Bf16, PANEL, TILE, Weight};
use crate::kernels::nested::{self, BLOCK, COLUMNS, Panel, Sums, UNPACKED_BLOCKS, Unpacked};
use crate::kernels::quantise::quantise_row;
use crate::memory::{Memory, Plane};
use crate::nested::Nested;
use crate::packings::Kept;
use crate::pool::{Pieces, Pool};
use crate::rows::Rows;
use crate::{NeuronError, WeightFormat};

/// Rows of a matrix, `[out, depth]`, and their bias.
pub(crate) type Part<'a> = (WeightMatrix<'a>, Option<&'a [f32]>);

/// Multiply-adds that a thread takes at once, about; with few rows, reading a weight counts for four. Enough that taking costs nothing
/// beside them, and little enough that threads end together.
const WORK_PER_ITEM: usize = 256 << 10;
/// Up to so many tiles, memory is what they wait for, and fewer blocks at a time keep all that is read ahead in the nearest cache.
const FEW_TILES: usize = 8;
const FEW_BLOCKS: usize = 4;
/// Codes of rows beyond which they leave the second cache between two panels, so that some panels are multiplied with a part of the
/// depth before the next part is.
const CODES_NEAR: usize = 1 << 20;
const PANELS_TOGETHER: usize = 4;
/// Items that a thread should find all the same, so that threads end together.
const ITEMS_PER_THREAD: usize = 8;
/// Panels of a block of a gated product's output, of each of its two matrices.
const PANELS_PER_BLOCK: usize = BLOCK / COLUMNS;

thread_local! {
    /// A thread's own room, made once, so that a step allocates nothing.
    static ROOM: RefCell<Box<Room>> = RefCell::new(Box::default());
    /// Room for rows in f32 while weights are packed.
    static ROWS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Room for products of some panels with many rows.
struct Room {
    unpacked: Unpacked,
    /// `[panels][rows]`, rows in the order of tiles.
    sums: Vec<Sums>,
    /// `[gate, up][rows of a tile]`.
    gated: [[[f32; BLOCK]; nested::TILE]; 2],
}

impl Default for Room {
    fn default() -> Self {
        Self { unpacked: Unpacked::new(), sums: Vec::new(), gated: [[[0.0; BLOCK]; nested::TILE]; 2] }
    }
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
    /// The same.
    Bf16(Plane<Bf16>),
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
            WeightFormat::F32 => {
                let mut packed = vec![0.0; rows.len().div_ceil(PANEL) * depth * PANEL];
                pack_wide(&rows, depth, &mut packed, packer.pool, |value| value);
                Values::F32(packed)
            }
            WeightFormat::Bf16 => {
                let mut packed = packer.memory.zeros(rows.len().div_ceil(PANEL) * depth * PANEL)?;
                pack_wide(&rows, depth, &mut packed, packer.pool, Bf16::nearest);
                Values::Bf16(packed)
            }
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
            Values::F32(values) => self.wide_row(values, row, scale, out),
            Values::Bf16(values) => self.wide_row(values, row, scale, out),
            Values::Nested(nested) => nested.row(row, scale, out),
        }
    }

    /// `out[row] = rows[row] * self^T + bias`, `[rows][width]`.
    pub(crate) fn multiply(&self, rows: &Rows, out: &mut [f32], pool: &Pool, isa: Isa) {
        assert_eq!(out.len(), rows.count() * self.width, "one output row per input row");
        let out = Pieces::new(out);
        match &self.values {
            Values::F32(values) => self.multiply_wide(values, rows, out, pool, isa),
            Values::Bf16(values) => self.multiply_wide(values, rows, out, pool, isa),
            Values::Nested(nested) => self.multiply_nested(nested, rows, out, pool, isa),
        }
    }

    fn wide_row<W: Weight>(&self, values: &[W], row: usize, scale: f32, out: &mut [f32]) {
        let panel = self.wide_panel(values, row / PANEL).iter().skip(row % PANEL).step_by(PANEL);
        out.iter_mut().zip(panel).for_each(|(out, weight)| *out = weight.value() * scale);
    }

    fn multiply_wide<W: Weight>(&self, values: &[W], rows: &Rows, out: Pieces<'_>, pool: &Pool, isa: Isa) {
        let count = rows.count();
        pool.run(self.width.div_ceil(PANEL), count * self.width * self.depth, |panel| {
            let weights = self.wide_panel(values, panel);
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
                W::tile(isa, &x, weights, &mut sums);
                sums.iter().enumerate().for_each(|(row, sums)| store(first + row, sums));
            }
            for row in whole..count {
                let mut sums = [[0.0; PANEL]];
                W::row(isa, &[rows.row(row)], weights, &mut sums);
                store(row, &sums[0]);
            }
        });
    }

    fn multiply_nested(&self, nested: &Nested, rows: &Rows, out: Pieces<'_>, pool: &Pool, isa: Isa) {
        let panels = self.width.div_ceil(COLUMNS);
        let are_near = rows.count() * self.depth <= CODES_NEAR;
        let most_together = panels / (ITEMS_PER_THREAD * pool.threads());
        let together = if are_near { 1 } else { PANELS_TOGETHER.min(most_together).max(1) };
        let per_item = (WORK_PER_ITEM / (COLUMNS * self.depth * rows.count().max(4))).max(together);
        pool.run(panels.div_ceil(per_item), rows.count() * self.width * self.depth, |item| {
            for first in (item * per_item..panels.min((item + 1) * per_item)).step_by(together) {
                let panels = first..panels.min(first + together);
                for narrow in [false, true] {
                    let each = panels.clone().map(|panel| nested.panel(panel, narrow));
                    multiply_panels(each, rows, narrow, isa, |room| {
                        for (panel, sums) in panels.clone().zip(room.sums.chunks_exact(rows.count_of(narrow).max(1))) {
                            let first = panel * COLUMNS;
                            let len = COLUMNS.min(self.width - first);
                            for (row, Sums(sums)) in rows.order(narrow).iter().zip(sums) {
                                // SAFETY: a panel has columns of its own and belongs to one item, and its rows are stored one after the other.
                                let target = unsafe { out.piece(row * self.width + first, len) };
                                match target.as_chunks_mut::<COLUMNS>().0 {
                                    [whole] => *whole = *sums,
                                    _ => target.copy_from_slice(&sums[..len]),
                                }
                                self.add_bias(first, target);
                            }
                        }
                    });
                }
            }
        });
    }

    /// `activate(rows * self^T + bias, rows * up^T + its bias)`, quantised into `out`, which has begun as `rows` have. What the products are,
    /// nobody else sees: it never leaves the caches. Both matrices are nested and have one shape.
    ///
    /// Returns false, and does nothing, if they are not nested.
    pub(crate) fn multiply_gated(
        &self,
        up: &Self,
        rows: &Rows,
        out: &mut Rows,
        pool: &Pool,
        isa: Isa,
        activate: impl Fn(&mut [f32], &[f32]) + Sync,
    ) -> bool {
        let (Values::Nested(gate_values), Values::Nested(up_values)) = (&self.values, &up.values) else { return false };
        assert_eq!((self.width, self.depth), (up.width, up.depth), "gate and up have one shape");
        let panels = self.width.div_ceil(COLUMNS);
        let out = out.quantised(self.width);
        let work = 2 * rows.count() * self.width * self.depth;
        pool.run(panels.div_ceil(PANELS_PER_BLOCK), work, |block| {
            let panels = block * PANELS_PER_BLOCK..panels.min((block + 1) * PANELS_PER_BLOCK);
            let first = block * BLOCK;
            let len = BLOCK.min(self.width - first);
            for narrow in [false, true] {
                let both = [gate_values, up_values].into_iter();
                let each = both.flat_map(|values| panels.clone().map(move |panel| values.panel(panel, narrow)));
                let count = rows.count_of(narrow);
                multiply_panels(each, rows, narrow, isa, |Room { sums, gated, .. }| {
                    let mut at = 0;
                    for tile in rows.tiles(narrow) {
                        let len_of_tile = rows.of(tile).len();
                        for (side, (values, matrix)) in gated.iter_mut().zip([self, up]).enumerate() {
                            for panel in 0..panels.len() {
                                let sums = &sums[(side * panels.len() + panel) * count + at..][..len_of_tile];
                                for (values, Sums(sums)) in values.iter_mut().zip(sums) {
                                    values[panel * COLUMNS..][..COLUMNS].copy_from_slice(sums);
                                }
                            }
                            for values in &mut values[..len_of_tile] {
                                matrix.add_bias(first, &mut values[..len]);
                                values[len..].fill(0.0);
                            }
                        }
                        let [gate, up] = gated;
                        let values = gate[..len_of_tile].as_flattened_mut();
                        activate(values, up[..len_of_tile].as_flattened());
                        // SAFETY: an item is a block of every tile, and no other has it.
                        let mut to = unsafe { out.block(tile, block) };
                        for (row, values) in values.as_chunks::<BLOCK>().0.iter().enumerate() {
                            quantise_row(isa, &values[..len], narrow, row, &mut to);
                        }
                        at += len_of_tile;
                    }
                });
            }
        });
        true
    }

    /// Adds the biases of columns from `first` on.
    #[inline(always)]
    fn add_bias(&self, first: usize, to: &mut [f32]) {
        if !self.bias.is_empty() {
            to.iter_mut().zip(&self.bias[first..]).for_each(|(to, bias)| *to += bias);
        }
    }

    fn wide_panel<'a, W>(&self, values: &'a [W], panel: usize) -> &'a [W] {
        &values[panel * self.depth * PANEL..(panel + 1) * self.depth * PANEL]
    }
}

/// Products of panels of one depth with all rows of one precision; `then` gets them in its room. Planes are read once, by the first tile, and
/// where others follow it keeps them unpacked for these, some blocks at a time.
fn multiply_panels<'a>(
    panels: impl Iterator<Item = Panel<'a>> + Clone,
    rows: &Rows,
    narrow: bool,
    isa: Isa,
    then: impl FnOnce(&mut Room),
) {
    let Some((first_tile, others)) = rows.tiles(narrow).split_first() else { return };
    ROOM.with_borrow_mut(|room| {
        let Room { unpacked, sums, .. } = &mut **room;
        let count = rows.count_of(narrow);
        sums.clear();
        sums.resize(panels.clone().count() * count, Sums::ZERO);
        if others.is_empty() {
            for (panel, sums) in panels.zip(sums.chunks_exact_mut(count)) {
                nested::stream(isa, rows.tile(first_tile), panel, sums);
            }
            return then(room);
        }
        let blocks = panels.clone().next().map_or(0, |panel| panel.blocks());
        let at_once = if others.len() < FEW_TILES { FEW_BLOCKS } else { UNPACKED_BLOCKS };
        for first in (0..blocks).step_by(at_once) {
            let part = at_once.min(blocks - first);
            for (panel, sums) in panels.clone().zip(sums.chunks_exact_mut(count)) {
                let panel = panel.part(first, part);
                let (own, mut sums) = sums.split_at_mut(rows.of(first_tile).len());
                nested::unpack(isa, rows.tile(first_tile).part(first, part), panel, unpacked, own);
                let mut ahead = Some(panel);
                for tile in others {
                    let (own, rest) = sums.split_at_mut(rows.of(tile).len());
                    nested::product(isa, rows.tile(tile).part(first, part), unpacked, ahead.take(), own);
                    sums = rest;
                }
            }
        }
        then(room);
    });
}

/// Packs rows into `[panel][depth][PANEL]`.
fn pack_wide<W: Send>(
    rows: &[WeightRow<'_>],
    depth: usize,
    packed: &mut [W],
    pool: &Pool,
    of: impl Fn(f32) -> W + Sync,
) {
    let pieces = Pieces::new(packed);
    pool.run(rows.len().div_ceil(PANEL), rows.len() * depth, |panel| {
        // SAFETY: an item is a panel.
        let to = unsafe { pieces.piece(panel * depth * PANEL, depth * PANEL) };
        with_f32(&rows[panel * PANEL..rows.len().min((panel + 1) * PANEL)], depth, |rows| {
            for (at, row) in rows.iter().enumerate() {
                to.iter_mut().skip(at).step_by(PANEL).zip(*row).for_each(|(to, from)| *to = of(*from));
            }
        });
    });
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
                (WeightFormat::Bf16, false, 0.002),
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
                rows.begin((0..count).map(mixed), false);
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
        // bf16 has eight digits, which is what these whole numbers need.
        for (format, tolerance) in [(WeightFormat::F32, 0.0), (WeightFormat::Bf16, 0.0), (WeightFormat::Nested, 0.51)] {
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
