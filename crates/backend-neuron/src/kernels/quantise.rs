//! Symmetric int8 codes with one scale per group of 32, for weights at load and for activations at run time.
//!
//! In: a row of f32. Out: codes in -127..=127 and scales, `value ≈ code * scale`. A row is quantised by itself, group by
//! group, never with its batch. Deliberately not here: products of codes.

use super::{LANES, kernel};

/// Values that share a scale. Part of the kernels' revision, and the group of Q8_0 files.
pub const GROUP: usize = 32;
/// Largest code; -128 is not used, so that products of two codes and sums of two products fit in 16 bits.
const CODE_MAX: f32 = 127.0;
/// 1.5 * 2^23: adding and subtracting it rounds to a whole number, ties to even.
const ROUNDER: f32 = 12_582_912.0;

/// Groups of a row of `len` values; the last may be short and is padded with zeros.
pub fn groups(len: usize) -> usize {
    len.div_ceil(GROUP)
}

kernel! {
    /// Quantises one row. `codes` is `[groups(row.len()) * GROUP]`, `scales` is `[groups(row.len())]`.
    pub fn quantise_row(row: &[f32], codes: &mut [i8], scales: &mut [f32]) {
        let (codes, _) = codes.as_chunks_mut::<GROUP>();
        for ((group, codes), scale) in row.chunks(GROUP).zip(codes).zip(scales) {
            let mut values = [0.0f32; GROUP];
            values[..group.len()].copy_from_slice(group);
            let mut most = [0.0f32; LANES];
            for (at, value) in values.iter().enumerate() {
                let size = value.abs();
                let lane = &mut most[at % LANES];
                *lane = if size > *lane { size } else { *lane };
            }
            let most = most.iter().fold(0.0f32, |a, b| if *b > a { *b } else { a });
            *scale = most / CODE_MAX;
            let inverse = if most > 0.0 { CODE_MAX / most } else { 0.0 };
            for (code, value) in codes.iter_mut().zip(values) {
                *code = ((value * inverse + ROUNDER) - ROUNDER) as i8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Isa;

    #[test]
    fn codes_are_the_nearest_and_the_same_on_every_isa() {
        let mut rng = fastrand::Rng::with_seed(3);
        for len in [1usize, 31, 32, 33, 100, 256] {
            let mut row: Vec<f32> = (0..len).map(|_| (rng.f32() - 0.5) * 10f32.powi(rng.i32(-6..6))).collect();
            row[0] = 0.0;
            for isa in Isa::available() {
                let (mut codes, mut scales) = (vec![9i8; groups(len) * GROUP], vec![9.0f32; groups(len)]);
                quantise_row(isa, &row, &mut codes, &mut scales);
                for (at, code) in codes.iter().enumerate() {
                    let group = &row[at / GROUP * GROUP..len.min((at / GROUP + 1) * GROUP)];
                    let most = group.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                    assert_eq!(scales[at / GROUP], most / 127.0);
                    let value = row.get(at).copied().unwrap_or(0.0);
                    let want = if most == 0.0 { 0.0 } else { (value * (127.0 / most)).round_ties_even() };
                    assert_eq!(f32::from(*code), want, "{isa:?}");
                }
            }
        }
    }
}
