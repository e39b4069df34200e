//! Nested weights as numbers: int8 codes with one f16 scale per group, and which groups a matrix gets. What every device that holds nested
//! weights quantises by, so that all of them hold the same model.
//!
//! In: f32. Out: codes in -127..=127 and f16 scales, `value ≈ code * scale * power`. Deliberately not here: how codes lie in memory, which
//! each device chooses for itself, and quantising rows at run time.
//!
//! Functions of the inner loop are always inlined, so that callers compile them for their own instructions.

use crate::WeightRow;

/// Depth of a block: the larger group of scales.
pub const BLOCK: usize = 64;
/// The smaller group, which is that of Q8_0 files.
pub const HALF: usize = BLOCK / 2;
/// Largest code. -128 is not used: codes are symmetric.
pub const CODE_MAX: f32 = 127.0;
/// 1.5 * 2^23: adding it rounds to a whole number, ties to even, and leaves that number in the low bits.
const ROUNDER: f32 = 12_582_912.0;
/// Rows that tell which groups a matrix should have, about.
const SAMPLED: usize = 64;
/// Groups of 64 may have this many times the root mean square error of groups of 32. Of normally distributed weights they have 1.14 times.
const ERROR_RATIO_MAX: f64 = 1.2;

/// What all scales of a matrix are multiplied with, so that the largest is near the end of what f16 holds: a power of two, which changes
/// no digit, and its inverse.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Power {
    /// Scales times this are stored.
    pub up: f32,
    /// Stored scales times this are scales.
    pub down: f32,
}

impl Power {
    /// For a matrix whose largest element has this size.
    pub fn of_largest(size: f32) -> Self {
        /// The largest scale is in 2^14..2^15.
        const EXPONENT: i32 = 14;
        let exponent = (size / CODE_MAX).to_bits() >> 23;
        // Both stay normal numbers.
        let shift = if exponent == 0 { 0 } else { (EXPONENT + 127 - exponent as i32).clamp(-120, 120) };
        let two_to = |power: i32| f32::from_bits(((127 + power) as u32) << 23);
        Self { up: two_to(shift), down: two_to(-shift) }
    }
}

/// The size of the largest element.
pub fn largest(values: &[f32]) -> f32 {
    // Sizes are ordered as their bits are.
    f32::from_bits(values.iter().fold(0, |most, value| most.max(value.to_bits() & 0x7fff_ffff)))
}

/// Codes of a group, and the f16 of its scale times `power.up`.
#[inline(always)]
pub fn quantise_group(values: &[f32], power: Power, codes: &mut [i8]) -> u16 {
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

/// Whether scales of a matrix with these rows of `depth` should belong to 32 weights, not 64: where groups of 64 would make the error noticeably
/// larger.
pub fn wants_halves(rows: &[WeightRow<'_>], depth: usize, power: Power) -> bool {
    let (mut halves, mut wholes) = (0.0, 0.0);
    let mut values = vec![0.0; depth];
    for row in rows.iter().step_by(rows.len().div_ceil(SAMPLED).max(1)) {
        row.read(&mut values);
        halves += error(&values, HALF, power);
        wholes += error(&values, BLOCK, power);
    }
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

/// The nearest whole number, ties to even; the value is in -128..=127.
#[inline(always)]
pub fn rounded(value: f32) -> i8 {
    (value + ROUNDER).to_bits() as i8
}

/// Exactly the value of an f16 that is finite. Subnormals too: a product with a power of two puts exponents right.
#[inline(always)]
pub fn from_f16(half: u16) -> f32 {
    /// 2^112: the difference of the exponents' biases.
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    f32::from_bits((u32::from(half) & 0x7fff) << 13) * REBIAS
}

/// The f16 nearest to a value that is 0 or in 2^-14..65,504, ties to even.
#[inline(always)]
pub fn to_f16(value: f32) -> u16 {
    /// 2^-112.
    const REBIAS: f32 = f32::from_bits((127 - 112) << 23);
    let bits = (value * REBIAS).to_bits();
    ((bits + 0xfff + (bits >> 13 & 1)) >> 13) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_is_exact_and_rounds_to_the_nearest() {
        for bits in 0..0x7c00_u16 {
            let value = from_f16(bits);
            let (exponent, mantissa) = (i32::from(bits >> 10), f64::from(bits & 0x3ff));
            let want = match exponent {
                0 => mantissa * 2f64.powi(-24),
                _ => (1024.0 + mantissa) * 2f64.powi(exponent - 25),
            };
            assert_eq!(f64::from(value), want);
            if exponent > 0 && bits < 0x7bff {
                let next = from_f16(bits + 1);
                assert_eq!(to_f16(value), bits);
                assert_eq!(to_f16(value + (next - value) * 0.49), bits);
                assert_eq!(to_f16(value + (next - value) * 0.51), bits + 1);
                assert_eq!(to_f16(value + (next - value) * 0.5), bits + (bits & 1));
            }
        }
        assert_eq!(to_f16(0.0), 0);
    }

    #[test]
    fn codes_are_the_nearest_that_the_stored_scale_allows() {
        let values: Vec<f32> = (0..64).map(|at| (at as f32 - 31.0) * 0.37).collect();
        let power = Power::of_largest(largest(&values));
        let mut codes = [0; 64];
        let scale = from_f16(quantise_group(&values, power, &mut codes)) * power.down;
        assert_eq!(largest(&values), 32.0 * 0.37);
        for (value, code) in values.iter().zip(codes) {
            assert!((value - f32::from(code) * scale).abs() <= scale * 0.5001, "{value} {code} {scale}");
        }
        assert_eq!(quantise_group(&[0.0; 64], power, &mut codes), 0);
        assert_eq!(codes, [0; 64]);
    }
}
