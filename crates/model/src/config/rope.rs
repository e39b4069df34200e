//! Rotary embedding: its frequencies, and the keys that say how they are stretched.
//!
//! In: `rope_theta`, `rope_scaling` and `rope_parameters` of a `config.json`. Out: [`RopeConfig`]. Deliberately not here:
//! turning anything by them.

use serde_json::Value;

use super::Architecture;
use super::json::Keys;

/// Rotary position embedding (Su et al., 2021).
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// How frequencies are stretched for long contexts.
    pub scaling: RopeScaling,
}

/// How frequencies are stretched.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by the factor (position interpolation).
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, blended between.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths beyond `original_context / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context that the model was first trained with.
        original_context: f64,
    },
    /// Every frequency divided by a number of its own, as GGUF files write Llama 3.1's: `head_dim / 2` positive divisors.
    Divisors(Vec<f32>),
}

impl RopeConfig {
    /// Radians per position of each pair of elements: `head_dim / 2` values, falling. Computed in f64, rounded once.
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|i| {
                let plain = self.theta.powf(-((2 * i) as f64) / head_dim as f64);
                let scaled = match &self.scaling {
                    RopeScaling::None => plain,
                    RopeScaling::Linear { factor } => plain / factor,
                    &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                        let wavelength = std::f64::consts::TAU / plain;
                        if wavelength < original_context / high_freq_factor {
                            plain
                        } else if wavelength > original_context / low_freq_factor {
                            plain / factor
                        } else {
                            let share = (original_context / wavelength - low_freq_factor)
                                / (high_freq_factor - low_freq_factor);
                            (1.0 - share) * plain / factor + share * plain
                        }
                    }
                    // The config's maker counted them; a frequency without one is kept.
                    RopeScaling::Divisors(divisors) => plain / divisors.get(i).map_or(1.0, |d| f64::from(*d)),
                };
                scaled as f32
            })
            .collect()
    }
}

/// Reads `rope_theta` and `rope_scaling`, or the newer `rope_parameters` that holds both.
pub(super) fn read_rope(keys: &mut Keys<'_>, row: &Architecture) -> Result<RopeConfig, String> {
    let outer_theta = keys.positive("rope_theta")?;
    let scaling = keys.get("rope_scaling");
    let parameters = keys.get("rope_parameters");
    let Some(value) = parameters.or(scaling) else {
        return Ok(RopeConfig { theta: outer_theta.unwrap_or(row.rope_theta), scaling: RopeScaling::None });
    };
    let Value::Object(map) = value else { return Err(format!("rope_scaling is {value}, expected an object")) };
    let mut inner = Keys::new(map, &[]);
    let theta = inner.positive("rope_theta")?.or(outer_theta).unwrap_or(row.rope_theta);
    let old_name = inner.get("type").and_then(Value::as_str);
    let kind = inner.get("rope_type").and_then(Value::as_str).or(old_name).unwrap_or("default");
    let mut need = |key| inner.positive(key)?.ok_or_else(|| format!("rope_scaling.{key} is missing"));
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: need("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: need("factor")?,
            low_freq_factor: need("low_freq_factor")?,
            high_freq_factor: need("high_freq_factor")?,
            original_context: need("original_max_position_embeddings")?,
        },
        other => {
            return Err(format!("rope_scaling of type {other:?} is not understood; default, linear and llama3 are"));
        }
    };
    if let RopeScaling::Llama3 { low_freq_factor, high_freq_factor, .. } = scaling
        && high_freq_factor <= low_freq_factor
    {
        return Err(format!(
            "rope_scaling: high_freq_factor {high_freq_factor} must exceed low_freq_factor {low_freq_factor}"
        ));
    }
    inner.finish().map_err(|problem| format!("rope_scaling: {problem}"))?;
    Ok(RopeConfig { theta, scaling })
}
