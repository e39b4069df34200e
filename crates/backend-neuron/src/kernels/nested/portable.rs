//! The product for any machine, which is the scalar twin of the others, and unpacking, which the compiler widens well by itself.
//!
//! In and out: as in the module above. Deliberately not here: instructions by name.

use super::{
    BLOCK, COLUMNS, Factors, LANE, PLANE, Panel, SHIFTS, STEP, STEPS, Sums, Tile, Unpacked, factors, from_f16,
};
use crate::kernels::kernel;

kernel! {
    pub(super) fn unpack(panel: Panel<'_>, to: &mut Unpacked) {
        let (upper, _) = panel.upper.as_chunks::<PLANE>();
        let lower = panel.lower.map(|lower| lower.as_chunks::<PLANE>().0);
        for (block, (upper, bytes)) in upper.iter().zip(&mut to.bytes).enumerate() {
            match lower {
                Some(lower) => both(upper, &lower[block], bytes),
                None => alone(upper, bytes),
            }
        }
        let (scales, _) = panel.scales.as_chunks::<COLUMNS>();
        let groups = if to.halves { 2 } else { 1 };
        for (from, to) in scales.chunks_exact(groups).zip(&mut to.factors) {
            let (first, second) = (&from[0], &from[groups - 1]);
            for column in 0..COLUMNS {
                let scales = [first[column], second[column]].map(|half| from_f16(half) * panel.power);
                [to.scales[0][column], to.scales[1][column], to.offset[column]] = factors(scales, groups == 2);
            }
        }
    }
}

#[inline(always)]
fn both(upper: &[u8; PLANE], lower: &[u8; PLANE], bytes: &mut [u8; STEPS * STEP]) {
    let pairs = upper.as_chunks::<STEP>().0.iter().zip(lower.as_chunks::<STEP>().0);
    for ((upper, lower), bytes) in pairs.zip(bytes.as_chunks_mut::<{ 2 * STEP }>().0) {
        let (even, odd) = bytes.split_at_mut(STEP);
        for at in 0..STEP {
            even[at] = upper[at] << 4 | lower[at] & 0x0f;
            odd[at] = upper[at] & 0xf0 | lower[at] >> 4;
        }
    }
}

#[inline(always)]
fn alone(upper: &[u8; PLANE], bytes: &mut [u8; STEPS * STEP]) {
    for (upper, bytes) in upper.as_chunks::<STEP>().0.iter().zip(bytes.as_chunks_mut::<{ 2 * STEP }>().0) {
        let (even, odd) = bytes.split_at_mut(STEP);
        for at in 0..STEP {
            even[at] = upper[at] << 4;
            odd[at] = upper[at] & 0xf0;
        }
    }
}

/// A tile times blocks that are unpacked.
pub(super) fn product(tile: Tile<'_>, weights: &Unpacked, sums: &mut [Sums]) {
    let rows = tile.rows;
    let (codes, _) = tile.codes.as_chunks::<BLOCK>();
    for block in 0..weights.blocks {
        let (bytes, Factors { scales, offset }) = (&weights.bytes[block], &weights.factors[block]);
        let shifts = &tile.shifts[block * SHIFTS * rows..][..SHIFTS * rows];
        for (row, Sums(sums)) in sums.iter_mut().enumerate() {
            let x = &codes[block * rows + row];
            let inner: [f32; COLUMNS] = if weights.halves {
                let first = dot(&x[..BLOCK / 2], &bytes[..STEPS * STEP / 2], shifts[row]);
                let second = dot(&x[BLOCK / 2..], &bytes[STEPS * STEP / 2..], shifts[rows + row]);
                std::array::from_fn(|column| {
                    let first = first[column].mul_add(scales[0][column], offset[column]);
                    second[column].mul_add(scales[1][column], first)
                })
            } else {
                let whole = dot(x, bytes, shifts[2 * rows + row]);
                std::array::from_fn(|column| whole[column].mul_add(scales[0][column], offset[column]))
            };
            let scale = tile.scales[block * rows + row];
            for column in 0..COLUMNS {
                sums[column] = inner[column].mul_add(scale, sums[column]);
            }
        }
    }
}

/// The f32 whose bits are `shift + sum(x * w)`, of every column.
#[inline(always)]
fn dot(x: &[i8], bytes: &[u8], shift: i32) -> [f32; COLUMNS] {
    let mut sums = [shift; COLUMNS];
    for (x, bytes) in x.as_chunks::<LANE>().0.iter().zip(bytes.as_chunks::<STEP>().0) {
        for column in 0..COLUMNS {
            for lane in 0..LANE {
                // At most 127 * 255 in size: wrapping only spares the checks.
                let product = i32::from(x[lane]) * i32::from(bytes[column * LANE + lane]);
                sums[column] = sums[column].wrapping_add(product);
            }
        }
    }
    sums.map(|sum| f32::from_bits(sum as u32))
}
