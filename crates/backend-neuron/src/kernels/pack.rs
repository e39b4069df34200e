//! Nested weights from f32: codes, scales and planes of one panel.
//!
//! In: the rows of a panel, f32. Out: its planes and f16 scales. Deliberately not here: which groups a matrix has, and threads.

use super::kernel;
use super::nested::{BLOCK, COLUMNS, LANE, PLANE, STEP, STEPS, from_f16, to_f16};
use super::quantise::{CODE_MAX, rounded};

/// The byte of the code 0.
pub(crate) const ZERO: u8 = 128;

/// What all scales of a matrix are multiplied with, so that the largest is near the end of what f16 holds: a power of two, which changes
/// no digit, and its inverse.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Power {
    pub(crate) up: f32,
    pub(crate) down: f32,
}

impl Power {
    /// For a matrix whose largest element has this size.
    pub(crate) fn of_largest(size: f32) -> Self {
        /// The largest scale is in 2^14..2^15.
        const EXPONENT: i32 = 14;
        let exponent = (size / CODE_MAX).to_bits() >> 23;
        // Both stay normal numbers.
        let shift = if exponent == 0 { 0 } else { (EXPONENT + 127 - exponent as i32).clamp(-120, 120) };
        let two_to = |power: i32| f32::from_bits(((127 + power) as u32) << 23);
        Self { up: two_to(shift), down: two_to(-shift) }
    }
}

/// Codes of a group, and the f16 of its scale times `power.up`.
#[inline(always)]
pub(crate) fn quantise_group(values: &[f32], power: Power, codes: &mut [i8]) -> u16 {
    let mut most = 0u32;
    for value in values {
        most = most.max(value.to_bits() & 0x7fff_ffff);
    }
    let half = to_f16(f32::from_bits(most) / CODE_MAX * power.up);
    let scale = from_f16(half) * power.down;
    let inverse = if half == 0 { 0.0 } else { 1.0 / scale };
    for (code, value) in codes.iter_mut().zip(values) {
        // A scale may be rounded down: the largest element would then be a little above 127.
        *code = rounded((value * inverse).clamp(-CODE_MAX, CODE_MAX));
    }
    half
}

kernel! {
    /// Packs at most [`COLUMNS`] rows with groups of 32 (`halves`) or 64: `upper` and `lower` are `[blocks][PLANE]`, `scales` is
    /// `[blocks][groups of a block][COLUMNS]`. Columns without a row are zeros.
    pub(crate) fn pack_panel(
        rows: &[&[f32]],
        halves: bool,
        power: Power,
        upper: &mut [u8],
        lower: &mut [u8],
        scales: &mut [u16],
    ) {
        let groups = if halves { 2 } else { 1 };
        let planes = upper.as_chunks_mut::<PLANE>().0.iter_mut().zip(lower.as_chunks_mut::<PLANE>().0);
        let scales = scales.chunks_exact_mut(groups * COLUMNS);
        for (block, ((upper, lower), scales)) in planes.zip(scales).enumerate() {
            let mut bytes = [ZERO; STEPS * STEP];
            for (column, row) in rows.iter().enumerate() {
                let mut values = [0.0; BLOCK];
                let part = &row[block * BLOCK..row.len().min((block + 1) * BLOCK)];
                values[..part.len()].copy_from_slice(part);
                let mut codes = [0i8; BLOCK];
                let size = BLOCK / groups;
                for (group, (values, codes)) in values.chunks_exact(size).zip(codes.chunks_exact_mut(size)).enumerate() {
                    scales[group * COLUMNS + column] = quantise_group(values, power, codes);
                }
                for (step, codes) in codes.as_chunks::<LANE>().0.iter().enumerate() {
                    let lane = &mut bytes[step * STEP + column * LANE..][..LANE];
                    lane.iter_mut().zip(codes).for_each(|(byte, code)| *byte = *code as u8 ^ ZERO);
                }
            }
            let planes = upper.as_chunks_mut::<STEP>().0.iter_mut().zip(lower.as_chunks_mut::<STEP>().0);
            for ((upper, lower), bytes) in planes.zip(bytes.as_chunks::<{ 2 * STEP }>().0) {
                let (even, odd) = bytes.split_at(STEP);
                for at in 0..STEP {
                    upper[at] = even[at] >> 4 | odd[at] & 0xf0;
                    lower[at] = even[at] & 0x0f | odd[at] << 4;
                }
            }
        }
    }
}
