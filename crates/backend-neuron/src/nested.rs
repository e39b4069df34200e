//! A matrix of nested weights: int8 codes in an upper and a lower nibble plane, in the order in which the kernels read them.
//!
//! In: rows of f32. Out: [`Nested`], its panels at 8 and at 4 bits, and single rows of it. Deliberately not here: products.
//!
//! Groups of scales are 32 or 64 along the depth, a property of the matrix: 32 where that loses nothing, as for what Q8_0 files hold, and
//! otherwise 64 unless that makes the error noticeably larger.

use crate::NeuronError;
use crate::kernels::Isa;
use crate::kernels::nested::{BLOCK, COLUMNS, HALF, LANE, PLANE, Panel, STEP, STEPS, from_f16};
use crate::kernels::pack::{Power, pack_panel, quantise_group};
use crate::kernels::quantise::blocks;
use crate::memory::{Memory, Plane};
use crate::pool::{Pieces, Pool};

/// Rows that tell which groups a matrix should have, about.
const SAMPLED: usize = 64;
/// Groups of 64 may have this many times the root mean square error of groups of 32. Of normally distributed weights they have 1.14 times.
const ERROR_RATIO_MAX: f64 = 1.2;

/// `[width, depth]` in panels of 32 output features; the last panel and the last block are padded with zeros.
#[derive(Debug)]
pub(crate) struct Nested {
    depth: usize,
    halves: bool,
    /// Scales are multiplied with it.
    power: f32,
    /// `[panels][blocks][PLANE]`.
    upper: Plane<u8>,
    lower: Plane<u8>,
    /// `[panels][blocks][groups of a block][COLUMNS]`.
    scales: Plane<u16>,
}

impl Nested {
    /// Packs rows of `depth`.
    pub(crate) fn pack(
        rows: &[&[f32]],
        depth: usize,
        memory: &mut Memory,
        pool: &Pool,
        isa: Isa,
    ) -> Result<Self, NeuronError> {
        let largest = |row: &&[f32]| row.iter().fold(0u32, |most, value| most.max(value.to_bits() & 0x7fff_ffff));
        let mut sizes = vec![0u32; rows.len()];
        let pieces = Pieces::new(&mut sizes);
        pool.run(rows.len(), rows.len() * depth, |row| {
            // SAFETY: an item is a row, and has its own element.
            unsafe { pieces.piece(row, 1) }.fill(largest(&rows[row]));
        });
        let power = Power::of_largest(f32::from_bits(sizes.into_iter().max().unwrap_or(0)));
        let halves = wants_halves(rows, power);

        let panels = rows.len().div_ceil(COLUMNS);
        let plane = blocks(depth) * PLANE;
        let scales_len = blocks(depth) * COLUMNS * if halves { 2 } else { 1 };
        let mut upper = memory.zeros::<u8>(panels * plane)?;
        let mut lower = memory.zeros::<u8>(panels * plane)?;
        let mut scales = memory.zeros::<u16>(panels * scales_len)?;
        let (uppers, lowers, all_scales) = (Pieces::new(&mut upper), Pieces::new(&mut lower), Pieces::new(&mut scales));
        pool.run(panels, rows.len() * depth, |panel| {
            let rows = &rows[panel * COLUMNS..rows.len().min((panel + 1) * COLUMNS)];
            // SAFETY: an item is a panel, and these are its own parts.
            let (upper, lower, scales) = unsafe {
                (
                    uppers.piece(panel * plane, plane),
                    lowers.piece(panel * plane, plane),
                    all_scales.piece(panel * scales_len, scales_len),
                )
            };
            pack_panel(isa, rows, halves, power, upper, lower, scales);
        });
        Ok(Self { depth, halves, power: power.down, upper, lower, scales })
    }

    /// Blocks along the depth.
    pub(crate) fn blocks(&self) -> usize {
        blocks(self.depth)
    }

    /// A panel, at 4 bits if it is to be `narrow`.
    pub(crate) fn panel(&self, panel: usize, narrow: bool) -> Panel<'_> {
        let plane = panel * self.blocks() * PLANE..(panel + 1) * self.blocks() * PLANE;
        let scales = self.blocks() * self.groups() * COLUMNS;
        Panel {
            upper: &self.upper[plane.clone()],
            lower: (!narrow).then(|| &self.lower[plane]),
            scales: &self.scales[panel * scales..(panel + 1) * scales],
            power: self.power,
        }
    }

    /// One row, at 8 bits, times `scale`.
    pub(crate) fn row(&self, row: usize, scale: f32, out: &mut [f32]) {
        let panel = self.panel(row / COLUMNS, false);
        let (column, groups) = (row % COLUMNS, self.groups());
        let (upper, lower) = (panel.upper, panel.lower.unwrap_or_default());
        for (at, out) in out.chunks_mut(LANE).enumerate() {
            let (block, step) = (at / STEPS, at % STEPS);
            let group = block * groups + step * groups / STEPS;
            let scale = from_f16(panel.scales[group * COLUMNS + column]) * self.power * scale;
            let lane = block * PLANE + step / 2 * STEP + column * LANE;
            let shift = step % 2 * 4;
            for ((out, upper), lower) in out.iter_mut().zip(&upper[lane..]).zip(&lower[lane..]) {
                let byte = (upper >> shift & 15) << 4 | lower >> shift & 15;
                *out = (f32::from(byte) - 128.0) * scale;
            }
        }
    }

    fn groups(&self) -> usize {
        if self.halves { 2 } else { 1 }
    }
}

/// Whether scales should belong to 32 weights, not 64.
fn wants_halves(rows: &[&[f32]], power: Power) -> bool {
    let sample = || rows.iter().step_by(rows.len().div_ceil(SAMPLED).max(1));
    let [halves, wholes] = [HALF, BLOCK].map(|group| sample().map(|row| error(row, group, power)).sum::<f64>());
    wholes > halves * ERROR_RATIO_MAX * ERROR_RATIO_MAX
}

/// The sum of the squared errors of a row.
fn error(row: &[f32], group: usize, power: Power) -> f64 {
    let of_group = |values: &[f32]| {
        let mut codes = [0i8; BLOCK];
        let scale = from_f16(quantise_group(values, power, &mut codes)) * power.down;
        let errors = values.iter().zip(codes).map(|(value, code)| f64::from(value - f32::from(code) * scale));
        errors.map(|error| error * error).sum::<f64>()
    };
    row.chunks(group).map(of_group).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn packed(values: &[f32], depth: usize) -> Nested {
        let rows: Vec<&[f32]> = values.chunks_exact(depth).collect();
        let pool = Pool::new(2, 0).unwrap();
        Nested::pack(&rows, depth, &mut Memory::default(), &pool, Isa::widest()).unwrap()
    }

    fn unpacked(nested: &Nested, rows: usize) -> Vec<f32> {
        let mut out = vec![9.0; rows * nested.depth];
        out.chunks_exact_mut(nested.depth).enumerate().for_each(|(row, out)| nested.row(row, 1.0, out));
        out
    }

    /// Values of a Q8_0 file: codes of -127..=127, the largest in every group, times f16 scales.
    fn of_q8_0(rng: &mut fastrand::Rng, len: usize) -> Vec<f32> {
        let mut values = Vec::new();
        while values.len() < len {
            // From what training leaves down to what f16 can hardly hold.
            let scale = from_f16(rng.u16(1..0x2000));
            let first = values.len();
            values.extend((0..HALF).map(|_| f32::from(rng.i8(-127..=127)) * scale));
            values[first + rng.usize(0..HALF)] = -127.0 * scale;
        }
        values.truncate(len);
        values
    }

    #[test]
    fn what_q8_0_files_hold_is_kept_without_loss() {
        let mut rng = fastrand::Rng::with_seed(1);
        for (width, depth) in [(16, 64), (5, 96), (33, 1_024)] {
            let values = of_q8_0(&mut rng, width * depth);
            let nested = packed(&values, depth);
            assert!(nested.halves);
            assert_eq!(unpacked(&nested, width), values);
        }
    }

    #[test]
    fn even_weights_have_groups_of_64_and_small_errors() {
        let mut rng = fastrand::Rng::with_seed(2);
        for (width, depth, size) in [(40, 300, 1.0), (16, 64, 1e-8), (100, 1_000, 1e9)] {
            let normal = |rng: &mut fastrand::Rng| (0..12).map(|_| rng.f32()).sum::<f32>() - 6.0;
            let values: Vec<f32> = (0..width * depth).map(|_| normal(&mut rng) * size).collect();
            let nested = packed(&values, depth);
            assert!(!nested.halves);
            let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>();
            let errors = square(&mut values.iter().zip(unpacked(&nested, width)).map(|(a, b)| a - b));
            let relative = (errors / square(&mut values.iter().copied())).sqrt();
            assert!((0.003..0.0065).contains(&relative), "{relative}");
        }
    }

    #[test]
    fn a_lone_large_weight_gets_a_smaller_group() {
        let mut rng = fastrand::Rng::with_seed(3);
        let mut values: Vec<f32> = (0..32 * 128).map(|_| rng.f32() - 0.5).collect();
        values.iter_mut().step_by(64).for_each(|value| *value *= 30.0);
        assert!(packed(&values, 128).halves);
        assert_eq!(unpacked(&packed(&[0.0; 70], 70), 1), [0.0; 70]);
    }
}
