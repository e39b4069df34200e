//! The exponential and the hyperbolic tangent of the device, the activations of the feed-forward, and soft caps.
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

/// Below this size a polynomial gives the tangent.
const TANH_POLYNOMIAL: f32 = 0.625;

/// The hyperbolic tangent, within 4 units in the last place of the true value. Range and coefficients: Cephes `tanhf` (S. Moshier,
/// 1984-1992).
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let size = x.abs();
    let z = x * x;
    let mut p = -5.704_988_7e-3;
    p = p * z + 2.063_909e-2;
    p = p * z - 5.373_971_6e-2;
    p = p * z + 1.333_144_2e-1;
    p = p * z - 3.333_328e-1;
    let small = p * z * x + x;
    let large = (1.0 - 2.0 / (exp(size + size) + 1.0)).copysign(x);
    if size < TANH_POLYNOMIAL { small } else { large }
}

/// `cap * tanh(x / cap)`: near x where x is small, never beyond the cap.
#[inline(always)]
pub fn capped(x: f32, cap: f32) -> f32 {
    tanh(x / cap) * cap
}

kernel! {
    /// Caps every value.
    pub fn soft_cap(values: &mut [f32], cap: f32) {
        for value in values {
            *value = capped(*value, cap);
        }
    }
}

kernel! {
    /// `gate[i] = gelu(gate[i]) * up[i]`, with the approximation `x / 2 * (1 + tanh(r))` for r = sqrt(2 / pi) * (x + 0.044715 x^3)
    /// (Hendrycks and Gimpel, <https://arxiv.org/abs/1606.08415>), which is `x / (1 + e^-2r)`.
    pub fn gated_gelu(gate: &mut [f32], up: &[f32]) {
        /// Twice the root of 2 / pi.
        const TWICE: f32 = 1.595_769;
        for (gate, up) in gate.iter_mut().zip(up) {
            let x = *gate;
            *gate = x / (1.0 + exp(-TWICE * (x + 0.044_715 * (x * x * x)))) * *up;
        }
    }
}

kernel! {
    /// `gate[i] = g / (1 + e^(-alpha g)) * (u + 1)` for g = `gate[i]`, at most `limit`, and u = `up[i]`, at most `limit` in size: gpt-oss.
    pub fn clamped_swiglu(gate: &mut [f32], up: &[f32], alpha: f32, limit: f32) {
        for (gate, up) in gate.iter_mut().zip(up) {
            let g = if *gate > limit { limit } else { *gate };
            let u = if *up > limit { limit } else { *up };
            let u = if u < -limit { -limit } else { u };
            *gate = g / (1.0 + exp(-alpha * g)) * (u + 1.0);
        }
    }
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
    #[test]
    fn tanh_is_close_to_the_true_value() {
        for step in -100_000..=100_000 {
            let x = step as f32 * 1.2e-4;
            let (got, want) = (f64::from(tanh(x)), libm::tanh(f64::from(x)));
            assert!((got - want).abs() <= 3.0e-7 * want.abs(), "tanh({x}) = {got}, not {want}");
        }
        assert_eq!([tanh(0.0), tanh(90.0), tanh(-1e9), tanh(f32::INFINITY)], [0.0, 1.0, -1.0, 1.0]);
        assert_eq!(capped(1e30, 30.0), 30.0);
    }

    /// A kernel with its plain twin, and its formula in f64.
    type Gated = (fn(Isa, &mut [f32], &[f32]), fn(f32, f32) -> f32, fn(f64, f64) -> f64);

    #[test]
    fn other_activations_are_their_formulas_on_every_isa() {
        let all: [Gated; 3] = [
            (
                |isa, gate, up| gated_gelu(isa, gate, up),
                |g, u| g / (1.0 + exp(-1.595_769 * (g + 0.044_715 * (g * g * g)))) * u,
                |g, u| {
                    let r = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g * g * g);
                    0.5 * g * (1.0 + r.tanh()) * u
                },
            ),
            (
                |isa, gate, up| clamped_swiglu(isa, gate, up, 1.702, 7.0),
                |g, u| g.min(7.0) / (1.0 + exp(-1.702 * g.min(7.0))) * (u.clamp(-7.0, 7.0) + 1.0),
                |g, u| {
                    let (g, u) = (g.min(7.0), u.clamp(-7.0, 7.0));
                    g / (1.0 + (-f64::from(1.702_f32) * g).exp()) * (u + 1.0)
                },
            ),
            (|isa, gate, _| soft_cap(isa, gate, 3.0), |g, _| tanh(g / 3.0) * 3.0, |g, _| (g / 3.0).tanh() * 3.0),
        ];
        let mut rng = fastrand::Rng::with_seed(9);
        for (kernel, twin, formula) in all {
            for len in [1, 7, 16, 33, 515] {
                let gate: Vec<f32> = (0..len).map(|_| rng.f32() * 40.0 - 20.0).collect();
                let up: Vec<f32> = (0..len).map(|_| rng.f32() * 20.0 - 10.0).collect();
                for isa in Isa::available() {
                    let mut got = gate.clone();
                    kernel(isa, &mut got, &up);
                    for ((got, g), u) in got.iter().zip(&gate).zip(&up) {
                        assert_eq!(got.to_bits(), twin(*g, *u).to_bits(), "{isa:?} {g} {u}");
                        let want = formula(f64::from(*g), f64::from(*u));
                        assert!((f64::from(*got) - want).abs() <= 2e-6 * (1.0 + want.abs()), "{got} {want}: {g} {u}");
                    }
                }
            }
        }
    }
}
