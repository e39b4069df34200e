//! The values of weights: drawn by seed, tensor and row, so that no order of writing changes them.
//!
//! In: a seed and a [`Tensor`]. Out: its rows as f32, each element a bf16 number. The spread keeps what flows through any
//! number of layers near size one. Deliberately not here: how formats store them.

use crate::tensors::{Role, Tensor};
use crate::tokenizer;

/// Spread of the logits, about that of trained models. A token's chance is then e^(its logit - 4.5) over the vocabulary's
/// size, for the mean of e^x over a normal of spread 3 is e^4.5.
const LOGIT_SPREAD: f32 = 3.0;
/// Special tokens' rows of the output matrix are this much smaller: their logits are near zero where the best of 32,000 is
/// about 12. So greedy decoding never ends an answer by itself, and sampling at temperature 1 does once in some millions of
/// tokens: the length of an answer is what a benchmark asks for.
const SPECIAL_ROW: f32 = 1.0 / 256.0;
/// Spread of norm weights around their centre.
const NORM_SPREAD: f32 = 0.1;
/// Q and K are each this much larger than what flows in, so that attention's scores spread by its square. At 1, attention
/// is an average that forgets which tokens there were, and greedy decoding soon runs in a circle.
const SCORE_ROOT: f32 = std::f32::consts::SQRT_2;

/// Draws the rows of one tensor.
pub(crate) struct Rows<'a> {
    tensor: &'a Tensor,
    key: u64,
}

impl<'a> Rows<'a> {
    pub(crate) fn new(seed: u64, tensor: &'a Tensor) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(tensor.name.as_bytes());
        let mut key = [0; 8];
        hasher.finalize_xof().fill(&mut key);
        Self { tensor, key: u64::from_le_bytes(key) }
    }

    /// One row, `tensor.width` values.
    pub(crate) fn row(&self, row: usize) -> Vec<f32> {
        let width = self.tensor.width;
        // One over the root of the width that is summed over keeps the size of what flows through.
        let neutral = 1.0 / (width as f32).sqrt();
        let (centre, spread) = match &self.tensor.role {
            Role::Given(values) => return values.clone(),
            Role::Norm | Role::FinalNorm => (1.0, NORM_SPREAD),
            Role::HeadNorm => (SCORE_ROOT, NORM_SPREAD),
            Role::Embedding => (0.0, 1.0),
            Role::Matrix => (0.0, neutral),
            Role::Rotary { .. } => (0.0, SCORE_ROOT * neutral),
            Role::Output if row < tokenizer::ADDED => (0.0, LOGIT_SPREAD * SPECIAL_ROW * neutral),
            Role::Output => (0.0, LOGIT_SPREAD * neutral),
        };
        let mut draws = SplitMix(self.key ^ row as u64);
        // A jump to a place of its own on the generator's circle.
        draws.0 = draws.next();
        let mut values: Vec<f32> = (0..width).map(|_| to_bf16(centre + spread * draws.normal())).collect();
        if self.tensor.role == Role::FinalNorm {
            // With signs, a tied output matrix does not see the embedding that went in: else the last token, whose logit is
            // its own length squared, would be repeated for ever.
            values.iter_mut().filter(|_| draws.normal() < 0.0).for_each(|value| *value = -*value);
        }
        values
    }
}

/// The nearest bf16 number towards zero.
fn to_bf16(value: f32) -> f32 {
    f32::from_bits(value.to_bits() & 0xffff_0000)
}

/// SplitMix64 (Steele, Lea and Flood, 2014): fast, and random enough for weights that need only be different.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Nearly normal, mean 0 and variance 1: the sum of four uniform draws (Irwin and Hall, 1927), which needs no logarithm
    /// and ends at 3.5.
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum: u32 = [0, 16, 32, 48].into_iter().map(|shift| (bits >> shift) as u32 & 0xffff).sum();
        // Four uniforms on [0, 65536) have mean 131070 and variance 4 * 65536² / 12.
        (sum as f32 - 131_070.0) * (1.732_050_8 / 65_536.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, role: Role) -> Tensor {
        Tensor { name: name.to_owned(), gguf_name: String::new(), rows: 64, width: 1_024, role }
    }

    fn spread(values: &[f32]) -> f32 {
        (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt()
    }

    #[test]
    fn seed_tensor_and_row_each_change_every_value() {
        let (a, b) = (tensor("a", Role::Matrix), tensor("b", Role::Matrix));
        let row = Rows::new(1, &a).row(3);
        assert_eq!(row, Rows::new(1, &a).row(3));
        for other in [Rows::new(2, &a).row(3), Rows::new(1, &b).row(3), Rows::new(1, &a).row(4)] {
            let same = row.iter().zip(&other).filter(|(x, y)| x == y).count();
            assert!(same < 20, "{same} of 1024 values are equal");
        }
        assert!(row.iter().all(|value| value.to_bits() & 0xffff == 0));
    }

    #[test]
    fn spreads_are_as_documented() {
        let matrix = tensor("a", Role::Matrix);
        let values: Vec<f32> = (0..64).flat_map(|row| Rows::new(0, &matrix).row(row)).collect();
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 1e-3 && (spread(&values) * 32.0 - 1.0).abs() < 0.02, "{mean} {}", spread(&values));
        let output = tensor("o", Role::Output);
        let (special, plain) = (Rows::new(0, &output).row(0), Rows::new(0, &output).row(tokenizer::ADDED));
        assert!(spread(&special) * 200.0 < spread(&plain));
        let norm = |role| Rows::new(0, &tensor("n", role)).row(0);
        assert!(norm(Role::Norm).iter().all(|value| (0.6..1.4).contains(value)));
        assert!(norm(Role::FinalNorm).iter().all(|value| (0.6..1.4).contains(&value.abs())));
        let negative = norm(Role::FinalNorm).iter().filter(|value| **value < 0.0).count();
        assert!((400..624).contains(&negative), "{negative} of 1024 are negative");
    }
}
