//! A matrix of nested weights: int8 codes in an upper and a lower nibble plane, in the order in which the kernels read them.
//!
//! In: rows as the model's files hold them. Out: [`Nested`], its panels at 8 and at 4 bits, and single rows of it. Deliberately not here: products.
//!
//! Groups of scales are 32 or 64 along the depth, a property of the matrix: 32 for what Q8_0 files hold, whose codes and scales are taken as they
//! are, and otherwise 64 unless that makes the error noticeably larger.

use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use holdfast_model::WeightRow;
use holdfast_model::nested::{Power, largest, wants_halves};

use crate::NeuronError;
use crate::kernels::Isa;
use crate::kernels::nested::{COLUMNS, LANE, PLANE, Panel, STEP, STEPS, from_f16};
use crate::kernels::pack::{pack_panel, pack_q8_0};
use crate::kernels::quantise::blocks;
use crate::matrix::with_f32;
use crate::memory::{Memory, Plane};
use crate::pool::{Pieces, Pool};

/// `[width, depth]` in panels of 32 output features; the last panel and the last block are padded with zeros.
#[derive(Debug)]
pub(crate) struct Nested {
    rows: usize,
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

/// What a matrix is, beside its planes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Shape {
    /// Output features, padding left out.
    pub(crate) rows: usize,
    pub(crate) depth: usize,
    /// Groups are of 32.
    pub(crate) halves: bool,
    /// Scales are multiplied with it.
    pub(crate) power: f32,
}

/// A panel that is being packed.
struct PanelMut<'a> {
    upper: &'a mut [u8],
    lower: &'a mut [u8],
    scales: &'a mut [u16],
}

/// What packing makes a matrix of.
struct Planes {
    upper: Plane<u8>,
    lower: Plane<u8>,
    scales: Plane<u16>,
}

impl Nested {
    /// Packs rows of `depth`.
    pub(crate) fn pack(
        rows: &[WeightRow<'_>],
        depth: usize,
        memory: &mut Memory,
        pool: &Pool,
        isa: Isa,
    ) -> Result<Self, NeuronError> {
        let blocks = rows.iter().map(|row| if let WeightRow::Q8_0(blocks) = *row { Some(blocks) } else { None });
        if let Some(blocks) = blocks.collect::<Option<Vec<&[u8]>>>()
            && let Some(packed) = Self::pack_q8_0(&blocks, depth, memory, pool, isa)?
        {
            return Ok(packed);
        }
        let mut sizes = vec![0.0f32; rows.len()];
        let pieces = Pieces::new(&mut sizes);
        pool.run(rows.len(), rows.len() * depth, |row| {
            let size = with_f32(&rows[row..=row], depth, |row| largest(row[0]));
            // SAFETY: an item is a row, and has its own element.
            unsafe { pieces.piece(row, 1) }.fill(size);
        });
        let power = Power::of_largest(largest(&sizes));
        let halves = wants_halves(rows, depth, power);
        let Planes { upper, lower, scales } =
            Self::planes(rows.len(), depth, halves, memory, pool, |panel, planes| {
                let PanelMut { upper, lower, scales } = planes;
                with_f32(&rows[panel], depth, |rows| pack_panel(isa, rows, halves, power, upper, lower, scales));
            })?;
        Ok(Self { rows: rows.len(), depth, halves, power: power.down, upper, lower, scales })
    }

    /// A matrix of zeros, to be written through [`Nested::bytes_mut`].
    pub(crate) fn blank(shape: Shape, memory: &mut Memory) -> Result<Self, NeuronError> {
        let Shape { rows, depth, halves, power } = shape;
        let Planes { upper, lower, scales } = Planes::zeros(rows, depth, halves, memory)?;
        Ok(Self { rows, depth, halves, power, upper, lower, scales })
    }

    pub(crate) fn shape(&self) -> Shape {
        Shape { rows: self.rows, depth: self.depth, halves: self.halves, power: self.power }
    }

    /// Upper plane, lower plane and scales, as they lie in memory.
    pub(crate) fn bytes(&self) -> [&[u8]; 3] {
        [&self.upper, &self.lower, bytemuck::cast_slice(&self.scales)]
    }

    /// The same, to write them.
    pub(crate) fn bytes_mut(&mut self) -> [&mut [u8]; 3] {
        [&mut self.upper, &mut self.lower, bytemuck::cast_slice_mut(&mut self.scales)]
    }

    /// Packs rows of blocks of Q8_0 as they are, if all scales are what planes can hold.
    fn pack_q8_0(
        rows: &[&[u8]],
        depth: usize,
        memory: &mut Memory,
        pool: &Pool,
        isa: Isa,
    ) -> Result<Option<Self>, NeuronError> {
        let negative = AtomicBool::new(false);
        let Planes { upper, lower, scales } = Self::planes(rows.len(), depth, true, memory, pool, |panel, planes| {
            let mut found = false;
            pack_q8_0(isa, &rows[panel], planes.upper, planes.lower, planes.scales, &mut found);
            if found {
                negative.store(true, Relaxed);
            }
        })?;
        // Files keep every bit of an f16, so there is nothing to shift.
        let packed = Self { rows: rows.len(), depth, halves: true, power: 1.0, upper, lower, scales };
        Ok((!negative.into_inner()).then_some(packed))
    }

    /// Planes for `rows` rows, each panel written by `pack`, which gets the panel's rows.
    fn planes(
        rows: usize,
        depth: usize,
        halves: bool,
        memory: &mut Memory,
        pool: &Pool,
        pack: impl Fn(Range<usize>, PanelMut<'_>) + Sync,
    ) -> Result<Planes, NeuronError> {
        let mut planes = Planes::zeros(rows, depth, halves, memory)?;
        let Planes { upper, lower, scales } = &mut planes;
        let (plane, scales_len) = panel_len(depth, halves);
        let (uppers, lowers, all_scales) = (Pieces::new(upper), Pieces::new(lower), Pieces::new(scales));
        pool.run(rows.div_ceil(COLUMNS), rows * depth, |panel| {
            // SAFETY: an item is a panel, and these are its own parts.
            let planes = unsafe {
                PanelMut {
                    upper: uppers.piece(panel * plane, plane),
                    lower: lowers.piece(panel * plane, plane),
                    scales: all_scales.piece(panel * scales_len, scales_len),
                }
            };
            pack(panel * COLUMNS..rows.min((panel + 1) * COLUMNS), planes);
        });
        Ok(planes)
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

impl Planes {
    fn zeros(rows: usize, depth: usize, halves: bool, memory: &mut Memory) -> Result<Self, NeuronError> {
        let panels = rows.div_ceil(COLUMNS);
        let (plane, scales) = panel_len(depth, halves);
        Ok(Self {
            upper: memory.zeros(panels * plane)?,
            lower: memory.zeros(panels * plane)?,
            scales: memory.zeros(panels * scales)?,
        })
    }
}

/// Bytes of a plane of a panel, and its scales.
fn panel_len(depth: usize, halves: bool) -> (usize, usize) {
    (blocks(depth) * PLANE, blocks(depth) * COLUMNS * if halves { 2 } else { 1 })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use holdfast_model::nested::HALF;

    use super::*;
    use crate::kernels::pack::Q8_0_BYTES;

    fn packed(values: &[f32], depth: usize) -> Nested {
        let rows: Vec<_> = values.chunks_exact(depth).map(WeightRow::F32).collect();
        let pool = Pool::new(2, 0).unwrap();
        Nested::pack(&rows, depth, &mut Memory::default(), &pool, Isa::widest()).unwrap()
    }

    fn unpacked(nested: &Nested, rows: usize) -> Vec<f32> {
        let mut out = vec![9.0; rows * nested.depth];
        out.chunks_exact_mut(nested.depth).enumerate().for_each(|(row, out)| nested.row(row, 1.0, out));
        out
    }

    /// Blocks of a Q8_0 file, and what they stand for. `full` ones have 127 as their largest code, as ggml writes them.
    fn of_q8_0(rng: &mut fastrand::Rng, groups: usize, full: bool) -> (Vec<u8>, Vec<f32>) {
        let (mut bytes, mut values) = (Vec::new(), Vec::new());
        for _ in 0..groups {
            // From what training leaves down to what f16 can hardly hold.
            let half = rng.u16(1..0x2000);
            let least = if full { -127 } else { -128 };
            let mut codes: [i8; HALF] = std::array::from_fn(|_| rng.i8(least..=127));
            if full {
                codes[rng.usize(0..HALF)] = -127;
            }
            bytes.extend(half.to_le_bytes());
            bytes.extend(codes.map(|code| code as u8));
            values.extend(codes.map(|code| f32::from(code) * from_f16(half)));
        }
        (bytes, values)
    }

    fn packed_blocks(bytes: &[u8], depth: usize) -> Nested {
        let rows: Vec<_> = bytes.chunks_exact(depth / HALF * Q8_0_BYTES).map(WeightRow::Q8_0).collect();
        let pool = Pool::new(2, 0).unwrap();
        Nested::pack(&rows, depth, &mut Memory::default(), &pool, Isa::widest()).unwrap()
    }

    #[test]
    fn what_q8_0_files_hold_is_kept_without_loss() {
        let mut rng = fastrand::Rng::with_seed(1);
        for (width, depth) in [(16, 64), (5, 96), (33, 1_024)] {
            for full in [true, false] {
                let (bytes, values) = of_q8_0(&mut rng, width * depth / HALF, full);
                let nested = packed_blocks(&bytes, depth);
                assert!(nested.halves);
                assert_eq!(unpacked(&nested, width), values);
                if full {
                    // So it is by way of f32, where nothing but the values is known.
                    assert_eq!(unpacked(&packed(&values, depth), width), values);
                }
            }
        }
    }

    #[test]
    fn blocks_of_q8_0_with_a_sign_in_their_scales_go_through_f32() {
        let mut rng = fastrand::Rng::with_seed(7);
        let (mut bytes, mut values) = of_q8_0(&mut rng, 20 * 3, true);
        bytes[10 * Q8_0_BYTES + 1] |= 0x80;
        values[10 * HALF..11 * HALF].iter_mut().for_each(|value| *value = -*value);
        assert_eq!(unpacked(&packed_blocks(&bytes, 96), 20), values);
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
