//! Root mean square norm of one row. Zhang and Sennrich, <https://arxiv.org/abs/1910.07467>.
//!
//! In: a row, weights, epsilon. Out: the normed row in its place. Deliberately not here: the residual stream.

use super::{LANES, fold, kernel};

kernel! {
    /// `row[i] = row[i] / sqrt(mean(row^2) + eps) * weight[i]`. Squares go to lane i mod 16, in order, then lanes are folded.
    pub fn rms_norm(row: &mut [f32], weight: &[f32], eps: f32) {
        let (whole, rest) = row.as_chunks::<LANES>();
        let mut squares = [0.0; LANES];
        for chunk in whole {
            for lane in 0..LANES {
                squares[lane] += chunk[lane] * chunk[lane];
            }
        }
        for (lane, value) in rest.iter().enumerate() {
            squares[lane] += value * value;
        }
        let scale = 1.0 / (fold(squares) / row.len() as f32 + eps).sqrt();
        for (value, weight) in row.iter_mut().zip(weight) {
            *value = *value * scale * weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Isa;

    #[test]
    fn norm_is_its_formula_on_every_isa() {
        let mut rng = fastrand::Rng::with_seed(2);
        for len in [1, 5, 16, 17, 64, 195] {
            let row: Vec<f32> = (0..len).map(|_| rng.f32() * 4.0 - 2.0).collect();
            let weight: Vec<f32> = (0..len).map(|_| rng.f32()).collect();
            let mean = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>() / len as f64;
            let mut first = row.clone();
            rms_norm(Isa::PORTABLE, &mut first, &weight, 1e-5);
            for (at, got) in first.iter().enumerate() {
                let want = f64::from(row[at]) / (mean + 1e-5).sqrt() * f64::from(weight[at]);
                assert!((f64::from(*got) - want).abs() < 1e-5, "{got} {want}");
            }
            for isa in Isa::available() {
                let mut got = row.clone();
                rms_norm(isa, &mut got, &weight, 1e-5);
                assert!(got.iter().zip(&first).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa:?}");
            }
        }
    }
}
