//! Rotary position embedding: tables once, then rotations of heads. Su et al., <https://arxiv.org/abs/2104.09864>, in the half-split
//! convention: element i turns with element i + half, half being the number of frequencies. Elements beyond both halves stay.
//!
//! In: inverse frequencies, then heads and positions. Out: the heads, turned in place. Deliberately not here: how
//! frequencies are stretched, which the model's config knows.

use super::{Isa, kernel};

/// Cosines and sines of every position below the context limit.
#[derive(Debug)]
pub struct RopeTable {
    /// `[position][cos of each pair, sin of each pair]`.
    values: Vec<f32>,
    pairs: usize,
    head_dim: usize,
}

impl RopeTable {
    /// For heads that turn as a whole, at positions below `context`.
    pub fn new(inverse_frequencies: &[f32], context: usize) -> Self {
        Self::with_rest(inverse_frequencies, 1.0, 2 * inverse_frequencies.len(), context)
    }

    /// For heads of `head_dim` elements, at least two per frequency, at positions below `context`; turned elements are multiplied by
    /// `factor`. Angles and their functions in f64, rounded once.
    pub fn with_rest(inverse_frequencies: &[f32], factor: f64, head_dim: usize, context: usize) -> Self {
        let pairs = inverse_frequencies.len();
        let mut values = Vec::with_capacity(context * pairs * 2);
        for position in 0..context {
            let angles = inverse_frequencies.iter().map(|frequency| position as f64 * f64::from(*frequency));
            values.extend(angles.clone().map(|angle| (libm::cos(angle) * factor) as f32));
            values.extend(angles.map(|angle| (libm::sin(angle) * factor) as f32));
        }
        Self { values, pairs, head_dim }
    }

    /// Turns every head of `heads` (`[head][head_dim]`) to `position`.
    pub fn rotate(&self, isa: Isa, heads: &mut [f32], position: usize) {
        let row = &self.values[position * self.pairs * 2..(position + 1) * self.pairs * 2];
        let (cos, sin) = row.split_at(self.pairs);
        turn(isa, heads, self.head_dim, cos, sin);
    }
}

kernel! {
    fn turn(heads: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
        for head in heads.chunks_exact_mut(head_dim) {
            let (first, second) = head.split_at_mut(cos.len());
            for (((first, second), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                let (a, b) = (*first, *second);
                *first = a * cos - b * sin;
                *second = b * cos + a * sin;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotation_turns_each_pair_by_its_angle() {
        let frequencies = [1.0, 0.1, 0.01];
        let table = RopeTable::new(&frequencies, 50);
        let heads: Vec<f32> = (0..12).map(|at| at as f32 - 5.0).collect();
        for position in [0, 1, 49] {
            let mut got = heads.clone();
            table.rotate(Isa::PORTABLE, &mut got, position);
            for isa in Isa::available() {
                let mut twin = heads.clone();
                table.rotate(isa, &mut twin, position);
                assert!(twin.iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa:?}");
            }
            for head in 0..2 {
                for (pair, frequency) in frequencies.iter().enumerate() {
                    let (a, b) = (heads[head * 6 + pair], heads[head * 6 + pair + 3]);
                    let (sin, cos) = (position as f64 * f64::from(*frequency)).sin_cos();
                    let want = f64::from(a) * cos - f64::from(b) * sin;
                    assert!((f64::from(got[head * 6 + pair]) - want).abs() < 1e-5);
                    let want = f64::from(b) * cos + f64::from(a) * sin;
                    assert!((f64::from(got[head * 6 + pair + 3]) - want).abs() < 1e-5);
                }
            }
        }
        let mut still = heads.clone();
        table.rotate(Isa::PORTABLE, &mut still, 0);
        assert_eq!(still, heads, "position 0 is not turned");
    }

    #[test]
    fn the_rest_of_a_head_stays_and_the_turned_part_is_scaled() {
        let frequencies = [1.0, 0.1];
        let heads: Vec<f32> = (0..14).map(|at| at as f32 - 5.0).collect();
        let mut got = heads.clone();
        RopeTable::with_rest(&frequencies, 1.5, 7, 10).rotate(Isa::PORTABLE, &mut got, 9);
        for head in 0..2 {
            let mut turned = heads[head * 7..head * 7 + 4].to_vec();
            RopeTable::new(&frequencies, 10).rotate(Isa::PORTABLE, &mut turned, 9);
            for (got, turned) in got[head * 7..].iter().zip(&turned) {
                assert!((got - 1.5 * turned).abs() < 1e-5);
            }
            assert_eq!(got[head * 7 + 4..head * 7 + 7], heads[head * 7 + 4..head * 7 + 7]);
        }
    }
}
