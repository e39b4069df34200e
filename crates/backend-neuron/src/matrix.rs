//! Matrices as the kernels like them: in panels, in f32 or int8.
//!
//! In: row-major f32 slices. Out: [`Matrix`], and products of rows with it. Deliberately not here: what the matrices mean.

use crate::WeightFormat;
use crate::kernels::Isa;
use crate::kernels::matmul::{self, Int8Panel, PANEL, Quantised, TILE};
use crate::kernels::quantise::{GROUP, groups, quantise_row};
use crate::pool::{Pieces, Pool};

/// Rows of a matrix, `[out, depth]` row-major, and their bias.
pub(crate) type Part<'a> = (&'a [f32], Option<&'a [f32]>);

/// A matrix `[width, depth]` in panels of 32 output features; the last panel is padded with zeros.
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
    /// `[panel][depth][PANEL]`.
    F32(Vec<f32>),
    /// `[panel][group][GROUP][PANEL]` and `[panel][group][PANEL]`.
    Int8 { codes: Vec<i8>, scales: Vec<f32> },
}

/// Rows that a matrix is multiplied with, quantised once if the matrix needs it.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    values: Vec<f32>,
    codes: Vec<i8>,
    scales: Vec<f32>,
    width: usize,
}

impl Rows {
    /// `count` rows of `width` zeros.
    pub(crate) fn reset(&mut self, count: usize, width: usize) {
        self.width = width;
        self.values.clear();
        self.values.resize(count * width, 0.0);
    }

    /// `[count][width]`. Call [`Rows::prepare`] after the last change and before a product.
    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// Those rows of `other`, in this order.
    pub(crate) fn gather(&mut self, other: &Self, rows: impl Iterator<Item = usize>) {
        self.width = other.width;
        self.values.clear();
        rows.for_each(|row| self.values.extend_from_slice(other.row(row)));
    }

    /// Quantises every row by itself if `format` asks for it.
    pub(crate) fn prepare(&mut self, format: WeightFormat, isa: Isa) {
        if format == WeightFormat::F32 {
            return;
        }
        let (count, per_row) = (self.values.len() / self.width, groups(self.width));
        self.codes.resize(count * per_row * GROUP, 0);
        self.scales.resize(count * per_row, 0.0);
        let codes = self.codes.chunks_exact_mut(per_row * GROUP);
        for ((row, codes), scales) in
            self.values.chunks_exact(self.width).zip(codes).zip(self.scales.chunks_exact_mut(per_row))
        {
            quantise_row(isa, row, codes, scales);
        }
    }

    fn quantised(&self, row: usize) -> Quantised<'_> {
        let per_row = groups(self.width);
        Quantised {
            codes: &self.codes[row * per_row * GROUP..(row + 1) * per_row * GROUP],
            scales: &self.scales[row * per_row..(row + 1) * per_row],
        }
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..(row + 1) * self.width]
    }
}

impl Matrix {
    /// Packs parts that share a depth, one under the other.
    pub(crate) fn pack(parts: &[Part<'_>], depth: usize, format: WeightFormat, isa: Isa) -> Self {
        let rows: Vec<&[f32]> = parts.iter().flat_map(|(values, _)| values.chunks_exact(depth)).collect();
        let mut bias = Vec::new();
        if parts.iter().any(|(_, bias)| bias.is_some()) {
            for (values, part) in parts {
                match part {
                    Some(part) => bias.extend_from_slice(part),
                    None => bias.resize(bias.len() + values.len() / depth, 0.0),
                }
            }
        }
        let values = match format {
            WeightFormat::F32 => pack_f32(&rows, depth),
            WeightFormat::Int8 => pack_int8(&rows, depth, isa),
        };
        Self { width: rows.len(), depth, values, bias }
    }

    /// Output features.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// `out[row] = rows[row] * self^T + bias`, `[count][width]`; prepared rows.
    pub(crate) fn multiply(&self, rows: &Rows, count: usize, out: &mut [f32], pool: &Pool, isa: Isa) {
        debug_assert_eq!(rows.width, self.depth);
        assert_eq!(out.len(), count * self.width, "one output row per input row");
        let out = Pieces::new(out);
        let panels = self.width.div_ceil(PANEL);
        pool.run(panels, count * self.width * self.depth, |panel| {
            let columns = panel * PANEL..self.width.min((panel + 1) * PANEL);
            let store = |row: usize, sums: &[f32; PANEL]| {
                // SAFETY: a panel has columns of its own, a panel is one item, and its rows are stored one after the other.
                let target = unsafe { out.piece(row * self.width + columns.start, columns.len()) };
                target.copy_from_slice(&sums[..columns.len()]);
                if !self.bias.is_empty() {
                    target.iter_mut().zip(&self.bias[columns.clone()]).for_each(|(value, bias)| *value += bias);
                }
            };
            let whole = count / TILE * TILE;
            for first in (0..whole).step_by(TILE) {
                let mut sums = [[0.0; PANEL]; TILE];
                match &self.values {
                    Values::F32(values) => {
                        let x = std::array::from_fn(|row| rows.row(first + row));
                        matmul::f32_tile(isa, &x, self.f32_panel(values, panel), &mut sums);
                    }
                    Values::Int8 { codes, scales } => {
                        let x = std::array::from_fn(|row| rows.quantised(first + row));
                        matmul::int8_tile(isa, &x, self.int8_panel(codes, scales, panel), &mut sums);
                    }
                }
                sums.iter().enumerate().for_each(|(row, sums)| store(first + row, sums));
            }
            for row in whole..count {
                let mut sums = [[0.0; PANEL]];
                match &self.values {
                    Values::F32(values) => {
                        matmul::f32_row(isa, &[rows.row(row)], self.f32_panel(values, panel), &mut sums);
                    }
                    Values::Int8 { codes, scales } => {
                        let panel = self.int8_panel(codes, scales, panel);
                        matmul::int8_row(isa, &[rows.quantised(row)], panel, &mut sums);
                    }
                }
                store(row, &sums[0]);
            }
        });
    }

    fn f32_panel<'a>(&self, values: &'a [f32], panel: usize) -> &'a [f32] {
        &values[panel * self.depth * PANEL..(panel + 1) * self.depth * PANEL]
    }

    fn int8_panel<'a>(&self, codes: &'a [i8], scales: &'a [f32], panel: usize) -> Int8Panel<'a> {
        let size = groups(self.depth) * PANEL;
        Int8Panel {
            codes: &codes[panel * size * GROUP..(panel + 1) * size * GROUP],
            scales: &scales[panel * size..(panel + 1) * size],
        }
    }
}

fn pack_f32(rows: &[&[f32]], depth: usize) -> Values {
    let mut packed = vec![0.0; rows.len().div_ceil(PANEL) * depth * PANEL];
    for (at, row) in rows.iter().enumerate() {
        let panel = &mut packed[at / PANEL * depth * PANEL..][..depth * PANEL];
        panel.iter_mut().skip(at % PANEL).step_by(PANEL).zip(*row).for_each(|(to, from)| *to = *from);
    }
    Values::F32(packed)
}

fn pack_int8(rows: &[&[f32]], depth: usize, isa: Isa) -> Values {
    let per_row = groups(depth);
    let panels = rows.len().div_ceil(PANEL);
    let mut codes = vec![0i8; panels * per_row * GROUP * PANEL];
    let mut scales = vec![0.0f32; panels * per_row * PANEL];
    let (mut row_codes, mut row_scales) = (vec![0i8; per_row * GROUP], vec![0.0f32; per_row]);
    for (at, row) in rows.iter().enumerate() {
        quantise_row(isa, row, &mut row_codes, &mut row_scales);
        let (panel, lane) = (at / PANEL, at % PANEL);
        let codes = &mut codes[panel * per_row * GROUP * PANEL..][..per_row * GROUP * PANEL];
        codes.iter_mut().skip(lane).step_by(PANEL).zip(&row_codes).for_each(|(to, from)| *to = *from);
        let scales = &mut scales[panel * per_row * PANEL..][..per_row * PANEL];
        scales.iter_mut().skip(lane).step_by(PANEL).zip(&row_scales).for_each(|(to, from)| *to = *from);
    }
    Values::Int8 { codes, scales }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn packed_products_are_plain_products() {
        let mut rng = fastrand::Rng::with_seed(7);
        let pool = Pool::new(2, 0).unwrap();
        for (width, depth, count) in [(1, 1, 1), (5, 33, 3), (32, 64, 4), (67, 300, 9), (96, 40, 6)] {
            let values: Vec<f32> = (0..width * depth).map(|_| rng.f32() - 0.5).collect();
            let extra: Vec<f32> = (0..depth * 2).map(|_| rng.f32() - 0.5).collect();
            let bias: Vec<f32> = (0..width).map(|_| rng.f32()).collect();
            let x: Vec<f32> = (0..count * depth).map(|_| rng.f32() - 0.5).collect();
            for (format, tolerance) in [(WeightFormat::F32, 1e-5), (WeightFormat::Int8, 0.02 * (depth as f64).sqrt())] {
                // Two parts: the first has a bias, the second none.
                let parts = [(values.as_slice(), Some(bias.as_slice())), (extra.as_slice(), None)];
                let matrix = Matrix::pack(&parts, depth, format, Isa::widest());
                assert_eq!(matrix.width(), width + 2);
                let mut rows = Rows::default();
                rows.reset(count, depth);
                rows.values_mut().copy_from_slice(&x);
                rows.prepare(format, Isa::widest());
                let mut out = vec![9.0; count * (width + 2)];
                matrix.multiply(&rows, count, &mut out, &pool, Isa::widest());
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
                        assert!((got - want).abs() <= tolerance, "{format:?} {width}x{depth}: {got} {want}");
                    }
                }
            }
        }
    }
}
