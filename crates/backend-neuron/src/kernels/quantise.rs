//! Symmetric int8 codes with one scale per group: of weights at load, and of rows at run time.
//!
//! In: f32. Out: codes in -127..=127 and scales, `value ≈ code * scale`. A row is quantised by itself, group by group, never with its
//! batch. Deliberately not here: products of codes, and which groups a matrix has.

use holdfast_model::nested::{CODE_MAX, rounded};

use super::nested::{BLOCK, HALF, SHIFTS, TileMut, biased, shift};
use super::{LANES, kernel};

/// Groups whose largest size is not above it become zeros: the inverse of their scale may not be a number.
pub(crate) const LEAST: f32 = 1e-30;

/// Blocks of a row of `len` values; the last may be short and is padded with zeros.
pub fn blocks(len: usize) -> usize {
    len.div_ceil(BLOCK)
}

kernel! {
    /// Quantises a row as row `at` of a tile, for products at 4 bits if it is `narrow`. Other rows of the tile stay.
    pub fn quantise_row(row: &[f32], narrow: bool, at: usize, tile: &mut TileMut<'_>) {
        let rows = tile.rows;
        let codes = tile.codes.as_chunks_mut::<BLOCK>().0.chunks_exact_mut(rows);
        let groups = codes.zip(tile.scales.chunks_exact_mut(rows)).zip(tile.shifts.chunks_exact_mut(rows * SHIFTS));
        let (whole, rest) = row.as_chunks::<BLOCK>();
        let mut last = [0.0; BLOCK];
        last[..rest.len()].copy_from_slice(rest);
        for (values, ((codes, scales), shifts)) in whole.iter().chain((!rest.is_empty()).then_some(&last)).zip(groups) {
            let most = largest(values);
            scales[at] = most / CODE_MAX;
            let inverse = if most > LEAST { CODE_MAX / most } else { 0.0 };
            let codes = &mut codes[at];
            for (code, value) in codes.iter_mut().zip(values) {
                *code = rounded(value * inverse);
            }
            let mut total = 0;
            for (half, codes) in codes.as_chunks::<HALF>().0.iter().enumerate() {
                let mut sum = 0i32;
                for code in codes {
                    sum += i32::from(*code);
                }
                let shift = shift(sum, narrow);
                shifts[half * rows + at] = biased(shift);
                total += shift;
            }
            shifts[2 * rows + at] = biased(total);
        }
    }
}

/// The largest size.
#[inline(always)]
pub(crate) fn largest<const N: usize>(values: &[f32; N]) -> f32 {
    // Sizes are ordered as their bits are.
    let mut most = [0u32; LANES];
    for values in values.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            most[lane] = most[lane].max(values[lane].to_bits() & 0x7fff_ffff);
        }
    }
    f32::from_bits(most.into_iter().fold(0, u32::max))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Isa;

    #[test]
    fn codes_are_the_nearest_and_the_same_on_every_isa() {
        let mut rng = fastrand::Rng::with_seed(3);
        for (len, at, rows) in [(1usize, 0, 1), (31, 1, 2), (64, 2, 3), (65, 0, 8), (100, 7, 8), (256, 4, 7)] {
            let mut row: Vec<f32> = (0..len).map(|_| (rng.f32() - 0.5) * 10f32.powi(rng.i32(-6..6))).collect();
            row[0] = 0.0;
            let count = blocks(len);
            for (isa, narrow) in Isa::available().into_iter().flat_map(|isa| [(isa, false), (isa, true)]) {
                let mut codes = vec![9i8; count * rows * BLOCK];
                let (mut scales, mut shifts) = (vec![9.0f32; count * rows], vec![9i32; count * rows * SHIFTS]);
                let mut tile = TileMut { rows, codes: &mut codes, scales: &mut scales, shifts: &mut shifts };
                quantise_row(isa, &row, narrow, at, &mut tile);
                for block in 0..count {
                    let group = &row[block * BLOCK..len.min((block + 1) * BLOCK)];
                    let most = group.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                    assert_eq!(scales[block * rows + at], most / 127.0);
                    let own = &codes[(block * rows + at) * BLOCK..][..BLOCK];
                    for (k, code) in own.iter().enumerate() {
                        let value = group.get(k).copied().unwrap_or(0.0);
                        let want = if most == 0.0 { 0.0 } else { (value * (127.0 / most)).round_ties_even() };
                        assert_eq!(f32::from(*code), want, "{isa:?}");
                    }
                    let sum = |codes: &[i8]| codes.iter().map(|code| i32::from(*code)).sum::<i32>();
                    let halves = [sum(&own[..HALF]), sum(&own[HALF..])].map(|sum| shift(sum, narrow));
                    let got: Vec<i32> = (0..SHIFTS).map(|of| shifts[(block * SHIFTS + of) * rows + at]).collect();
                    assert_eq!(got, [halves[0], halves[1], halves[0] + halves[1]].map(biased));
                }
                let others = codes.chunks(BLOCK).enumerate().filter(|(place, _)| place % rows != at);
                assert!(others.flat_map(|(_, codes)| codes).all(|code| *code == 9), "other rows stay");
            }
        }
    }
}
