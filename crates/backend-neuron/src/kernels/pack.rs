//! Nested weights of one panel: codes, scales and planes, from f32 or from the blocks of Q8_0 files.
//!
//! In: the rows of a panel. Out: its planes and f16 scales. Deliberately not here: which groups a matrix has, and threads.

use holdfast_model::nested::{Power, quantise_group};

use super::kernel;
use super::nested::{BLOCK, COLUMNS, HALF, LANE, PLANE, STEP, STEPS};

/// The byte of the code 0.
pub(crate) const ZERO: u8 = 128;

/// Bytes of a block of Q8_0: an f16 and the codes that it is the scale of.
pub(crate) const Q8_0_BYTES: usize = 2 + HALF;
/// [`ZERO`] in every byte.
const ZEROS: u32 = u32::from_ne_bytes([ZERO; LANE]);
/// The lower nibble of every byte.
const LOWER: u32 = u32::from_ne_bytes([0x0f; LANE]);

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

kernel! {
    /// Packs at most [`COLUMNS`] rows of blocks of Q8_0 as [`pack_panel`] does with groups of 32, and changes neither codes nor scales. Sets
    /// `negative` where a scale has a sign, which planes have no place for.
    pub(crate) fn pack_q8_0(rows: &[&[u8]], upper: &mut [u8], lower: &mut [u8], scales: &mut [u16], negative: &mut bool) {
        const STEPS_OF_HALF: usize = HALF / LANE;
        let planes = upper.as_chunks_mut::<PLANE>().0.iter_mut().zip(lower.as_chunks_mut::<PLANE>().0);
        for (block, ((upper, lower), scales)) in planes.zip(scales.chunks_exact_mut(2 * COLUMNS)).enumerate() {
            let mut words = [[ZEROS; COLUMNS]; STEPS];
            for (column, row) in rows.iter().enumerate() {
                // A row may end with the first half of a block.
                let halves = row.as_chunks::<Q8_0_BYTES>().0.iter().skip(2 * block).take(2);
                for (half, stored) in halves.enumerate() {
                    let scale = u16::from_le_bytes([stored[0], stored[1]]);
                    *negative |= scale & 0x8000 != 0;
                    scales[half * COLUMNS + column] = scale & 0x7fff;
                    for (step, codes) in stored[2..].as_chunks::<LANE>().0.iter().enumerate() {
                        words[half * STEPS_OF_HALF + step][column] = u32::from_le_bytes(*codes) ^ ZEROS;
                    }
                }
            }
            let planes = upper.as_chunks_mut::<STEP>().0.iter_mut().zip(lower.as_chunks_mut::<STEP>().0);
            for ((upper, lower), [even, odd]) in planes.zip(words.as_chunks::<2>().0) {
                let lanes = upper.as_chunks_mut::<LANE>().0.iter_mut().zip(lower.as_chunks_mut::<LANE>().0);
                for ((upper, lower), (even, odd)) in lanes.zip(even.iter().zip(odd)) {
                    *upper = (even >> 4 & LOWER | odd & !LOWER).to_le_bytes();
                    *lower = (even & LOWER | (odd & LOWER) << 4).to_le_bytes();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Isa;

    /// Each code by itself: the byte of column `column` at `depth` of a block.
    fn byte(upper: &[u8], lower: &[u8], block: usize, column: usize, depth: usize) -> u8 {
        let (step, lane) = (depth / LANE, column * LANE + depth % LANE);
        let at = block * PLANE + step / 2 * STEP + lane;
        let nibble = |plane: &[u8]| plane[at] >> (step % 2 * 4) & 15;
        nibble(upper) << 4 | nibble(lower)
    }

    #[test]
    fn blocks_of_q8_0_keep_every_code_and_scale_on_every_isa() {
        let mut rng = fastrand::Rng::with_seed(6);
        for (rows, halves) in [(1, 1), (COLUMNS, 2), (5, 7), (31, 16)] {
            let stored: Vec<Vec<u8>> =
                (0..rows).map(|_| (0..halves * Q8_0_BYTES).map(|_| rng.u8(..)).collect()).collect();
            let mut stored = stored;
            stored.iter_mut().flat_map(|row| row.chunks_exact_mut(Q8_0_BYTES)).for_each(|block| block[1] &= 0x7b);
            let blocks = halves.div_ceil(2);
            for isa in Isa::available() {
                let (mut upper, mut lower) = (vec![7; blocks * PLANE], vec![7; blocks * PLANE]);
                let (mut scales, mut negative) = (vec![0; blocks * 2 * COLUMNS], false);
                let all: Vec<&[u8]> = stored.iter().map(Vec::as_slice).collect();
                pack_q8_0(isa, &all, &mut upper, &mut lower, &mut scales, &mut negative);
                assert!(!negative);
                for column in 0..COLUMNS {
                    for at in 0..2 * blocks {
                        let block = stored.get(column).and_then(|row| row.chunks_exact(Q8_0_BYTES).nth(at));
                        let scale = block.map_or(0, |block| u16::from_le_bytes([block[0], block[1]]));
                        assert_eq!(scales[at * COLUMNS + column], scale, "{isa:?}");
                        for k in 0..HALF {
                            let want = block.map_or(ZERO, |block| block[2 + k] ^ ZERO);
                            assert_eq!(byte(&upper, &lower, at / 2, column, at % 2 * HALF + k), want, "{isa:?}");
                        }
                    }
                }
            }
            stored[rows - 1][1] |= 0x80;
            let all: Vec<&[u8]> = stored.iter().map(Vec::as_slice).collect();
            let (mut plane, mut scales, mut negative) = (vec![0; blocks * PLANE], vec![0; blocks * 2 * COLUMNS], false);
            pack_q8_0(Isa::widest(), &all, &mut plane.clone(), &mut plane, &mut scales, &mut negative);
            assert!(negative);
        }
    }
}
