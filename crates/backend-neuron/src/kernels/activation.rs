//! The exponential of the device, and the gated SiLU of the feed-forward.
//!
//! In and out: f32. Deliberately not here: softmax, which lives with attention, and the sampler's exponentials, which are
//! f64 and belong to `holdfast_backend`.

use super::kernel;

/// Below this the result is 0; e to it is still a normal number.
const LEAST: f32 = -87.0;
/// Above this the argument is cut; e to it is still finite.
const MOST: f32 = 88.0;
/// 1.5 * 2^23: adding it rounds to a whole number, ties to even, and leaves that number in the low bits.
const ROUNDER: f32 = 12_582_912.0;
/// ln 2 in two parts; the first has few enough bits that n times it is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// e to the x, within 2 units in the last place of the true value, in plain multiplications and additions so that the bits
/// are the same on every instruction set. Range reduction and coefficients: Cephes `expf` (S. Moshier, 1984-1992).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let cut = if x > MOST { MOST } else { x };
    let cut = if cut > LEAST { cut } else { LEAST };
    let shifted = cut * std::f32::consts::LOG2_E + ROUNDER;
    let n = shifted - ROUNDER;
    let r = (cut - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5.0e-1;
    let mantissa = p * (r * r) + r + 1.0;
    let power = shifted.to_bits().wrapping_sub(ROUNDER.to_bits()).wrapping_add(127) << 23;
    let y = mantissa * f32::from_bits(power);
    if x < LEAST { 0.0 } else { y }
}

kernel! {
    /// `gate[i] = silu(gate[i]) * up[i]`, where silu(x) = x / (1 + e^-x).
    pub fn gated_silu(gate: &mut [f32], up: &[f32]) {
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = *gate / (1.0 + exp(-*gate)) * *up;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Isa;

    #[test]
    fn exp_is_close_to_the_true_value() {
        for step in 0..200_000 {
            let x = -87.0 + 175.0 * step as f32 / 200_000.0;
            let want = libm::exp(f64::from(x));
            let got = f64::from(exp(x));
            assert!((got - want).abs() <= 2.0e-7 * want, "exp({x}) = {got}, not {want}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1.0e9), 0.0);
        assert!(exp(f32::INFINITY).is_finite());
    }

    #[test]
    fn gated_silu_is_its_formula_on_every_isa() {
        let mut rng = fastrand::Rng::with_seed(1);
        for len in [1, 7, 16, 33, 515] {
            let gate: Vec<f32> = (0..len).map(|_| rng.f32() * 40.0 - 20.0).collect();
            let up: Vec<f32> = (0..len).map(|_| rng.f32() - 0.5).collect();
            for isa in Isa::available() {
                let mut got = gate.clone();
                gated_silu(isa, &mut got, &up);
                for (at, got) in got.iter().enumerate() {
                    let plain = gate[at] / (1.0 + exp(-gate[at])) * up[at];
                    assert_eq!(got.to_bits(), plain.to_bits(), "{isa:?}");
                    let want = gate[at] / (1.0 + (-gate[at]).exp()) * up[at];
                    assert!((got - want).abs() <= 1e-6 * (1.0 + want.abs()));
                }
            }
        }
    }
}
