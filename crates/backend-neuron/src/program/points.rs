//! The model held against public throughput.
//!
//! In: nothing. Out: for each [`Point`], what was published and what the model says; the error bound that a test asserts. The one
//! fitted parameter, [`EFFICIENCY`], is the value that makes the larger of the two errors smallest.
//! Deliberately not here: a parameter of any single point.

use std::path::Path;

use holdfast_model::{DecoderConfig, ModelError};

use super::walk::EFFICIENCY;
use super::{Buckets, Chip, ChipModel, ChipSettings, Demand, ProgramError, Span, WeightStorage};

/// A published throughput: sequences that are prefilled and then decoded together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// The instance.
    pub instance: &'static str,
    /// Its chips.
    pub chip: &'static str,
    /// How many.
    pub chips: u32,
    /// Sequences.
    pub batch: u32,
    /// Tokens of each before the first that it samples.
    pub input: u32,
    /// Tokens that each samples.
    pub output: u32,
    /// Published tokens per second over the batch.
    pub tokens_per_s: f64,
}

/// Llama-3-8B in bf16, from the Neuron SDK's own table.
pub const POINTS: [Point; 2] = [
    Point {
        instance: "inf2.48xlarge",
        chip: "inf2",
        chips: 12,
        batch: 8,
        input: 128,
        output: 3_968,
        tokens_per_s: 859.0,
    },
    Point {
        instance: "trn1.32xlarge",
        chip: "trn1",
        chips: 16,
        batch: 8,
        input: 128,
        output: 3_968,
        tokens_per_s: 1_143.0,
    },
];

/// No point is further off than this part of its published value; a test says so.
pub const ERROR_MAX: f64 = 0.065;

/// The shape of Llama-3-8B, as it is published.
const LLAMA_3_8B: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "hidden_act": "silu",
    "tie_word_embeddings": false, "attention_bias": false, "mlp_bias": false
}"#;

/// Why a point could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum PointError {
    /// The chip is not in the table, or does not hold the model.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The shape is not understood.
    #[error(transparent)]
    Shape(#[from] ModelError),
}

impl Point {
    /// Tokens per second that the model says.
    ///
    /// # Errors
    /// [`PointError`]; a test says that there is none for [`POINTS`].
    pub fn modelled(&self) -> Result<f64, PointError> {
        self.modelled_at(EFFICIENCY)
    }

    /// The model's error: `modelled / published - 1`.
    ///
    /// # Errors
    /// As for [`Point::modelled`].
    pub fn error(&self) -> Result<f64, PointError> {
        Ok(self.modelled()? / self.tokens_per_s - 1.0)
    }

    fn modelled_at(&self, efficiency: f64) -> Result<f64, PointError> {
        let config = llama_3_8b()?;
        let chip = Chip::named(self.chip).ok_or_else(|| ProgramError::UnknownChip(self.chip.to_owned()))?;
        let context = self.input + self.output;
        let settings = ChipSettings {
            cores: self.chips * chip.cores,
            buckets: Buckets { batch: vec![1, self.batch], query: vec![1, self.input], context: Vec::new() },
            ..ChipSettings::new(chip)
        };
        let demand = Demand {
            storage: WeightStorage::Bf16,
            context,
            block_tokens: 16,
            kv_layer_tokens: u64::from(self.batch) * u64::from(context) * config.layers.len() as u64,
        };
        let mut model = ChipModel::compile_at(&config, &settings, &demand, efficiency)?;
        let mut batch = |rows, context| model.step(&vec![Span { rows, context }; self.batch as usize]);
        let mut time_ns = batch(self.input, self.input)?.time_ns;
        for at in self.input + 1..context {
            time_ns += batch(1, at)?.time_ns;
        }
        Ok(f64::from(self.batch) * f64::from(self.output) / (time_ns as f64 / 1e9))
    }
}

/// The decoder of the points.
///
/// # Errors
/// When this build does not read it, which a test rules out.
pub fn llama_3_8b() -> Result<DecoderConfig, ModelError> {
    DecoderConfig::parse(LLAMA_3_8B, Path::new("Llama-3-8B/config.json"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]
    use super::*;

    /// The larger of the errors at an efficiency.
    fn worst(efficiency: f64) -> f64 {
        let error = |point: &Point| (point.modelled_at(efficiency).unwrap() / point.tokens_per_s - 1.0).abs();
        POINTS.iter().map(error).fold(0.0, f64::max)
    }

    #[test]
    fn every_point_is_within_the_stated_error_and_the_parameter_is_the_best_one() {
        println!("fitted: efficiency {EFFICIENCY}");
        for point in POINTS {
            let (says, error) = (point.modelled().unwrap(), point.error().unwrap());
            println!(
                "{}: published {}, modelled {says:.0}, {:+.1}%",
                point.instance,
                point.tokens_per_s,
                error * 100.0
            );
            assert!(error.abs() <= ERROR_MAX, "{}: {error}", point.instance);
        }
        let fitted = worst(EFFICIENCY);
        for other in [0.97, 1.03] {
            assert!(fitted <= worst(EFFICIENCY * other) + 1e-9, "efficiency {} is better", EFFICIENCY * other);
        }
    }

    #[test]
    fn fitted_to_either_point_it_foretells_the_other_within_twice_the_bound() {
        for (fitted, other) in [(POINTS[0], POINTS[1]), (POINTS[1], POINTS[0])] {
            let (mut low, mut high) = (0.01, 1.0);
            for _ in 0..20 {
                let middle = f64::midpoint(low, high);
                if fitted.modelled_at(middle).unwrap() < fitted.tokens_per_s { low = middle } else { high = middle }
            }
            let error = other.modelled_at(low).unwrap() / other.tokens_per_s - 1.0;
            println!("fitted to {}: efficiency {low:.3}, {} {:+.1}%", fitted.instance, other.instance, error * 100.0);
            assert!(error.abs() <= 2.0 * ERROR_MAX);
        }
    }
}
