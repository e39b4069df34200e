//! Rotary embedding: its frequencies, and the keys that say how they are stretched.
//!
//! In: `rope_theta`, `rope_local_base_freq`, `rope_scaling`, `rope_parameters` and `partial_rotary_factor` of a `config.json`. Out:
//! [`RopeConfig`]s, and how much of a head turns. What depends on the length that a sequence happens to have is refused: KV that was computed could not be kept.
//! Deliberately not here: turning anything.

use std::f64::consts::TAU;

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
    /// YaRN (Peng et al., 2023): low frequencies divided, high ones kept, blended between by their number.
    Yarn {
        /// Divisor of low frequencies.
        factor: f64,
        /// Context that the model was first trained with.
        original_context: f64,
        /// Frequencies that turn at least so often within `original_context` are kept.
        beta_fast: f64,
        /// Frequencies that turn at most so often are divided.
        beta_slow: f64,
        /// Whether the bounds between are whole numbers of frequencies.
        truncate: bool,
        /// Multiplies cosines and sines.
        attention_factor: f64,
    },
    /// LongRoPE (Ding et al., 2024): every frequency divided by a number of its own.
    LongRope {
        /// `rotary_dim / 2` positive divisors: the long ones if the context limit is beyond the context of the first training,
        /// otherwise the short ones. They hold for every length.
        divisors: Vec<f32>,
        /// Multiplies cosines and sines.
        attention_factor: f64,
    },
    /// Every frequency divided by a number of its own, as GGUF files write Llama 3.1's: `rotary_dim / 2` positive divisors.
    Divisors(Vec<f32>),
}

impl RopeConfig {
    /// Radians per position of each pair of elements: `rotary_dim / 2` values. Computed in f64, rounded once.
    pub fn inverse_frequencies(&self, rotary_dim: usize) -> Vec<f32> {
        (0..rotary_dim / 2).map(|pair| self.inverse_frequency(pair, rotary_dim as f64) as f32).collect()
    }

    /// What cosines and sines are multiplied by, and scores therefore by its square.
    pub fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                attention_factor
            }
            RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } | RopeScaling::Divisors(_) => {
                1.0
            }
        }
    }

    fn inverse_frequency(&self, pair: usize, dim: f64) -> f64 {
        let plain = self.theta.powf(-((2 * pair) as f64) / dim);
        match &self.scaling {
            RopeScaling::None => plain,
            RopeScaling::Linear { factor } => plain / factor,
            &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let wavelength = TAU / plain;
                if wavelength < original_context / high_freq_factor {
                    plain
                } else if wavelength > original_context / low_freq_factor {
                    plain / factor
                } else {
                    let share =
                        (original_context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - share) * plain / factor + share * plain
                }
            }
            &RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, truncate, .. } => {
                // The number, with fractions, of the pair that turns so often within the original context.
                let number = |turns: f64| dim * (original_context / (turns * TAU)).ln() / (2.0 * self.theta.ln());
                let (low, high) = (number(beta_fast), number(beta_slow));
                let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, high) = (low.max(0.0), high.min(dim - 1.0));
                // As published: bounds that fall together become a step.
                let width = if high == low { 0.001 } else { high - low };
                let divided = ((pair as f64 - low) / width).clamp(0.0, 1.0);
                plain / factor * divided + plain * (1.0 - divided)
            }
            // Whoever made the config counted them; a frequency without one is kept.
            RopeScaling::LongRope { divisors, .. } | RopeScaling::Divisors(divisors) => {
                plain / divisors.get(pair).map_or(1.0, |d| f64::from(*d))
            }
        }
    }
}

/// The attention factor of LongRoPE for a context that is `stretch` times as long as the first one, of `original` tokens.
pub(crate) fn long_rope_attention_factor(stretch: f64, original: f64) -> f64 {
    if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / original.ln()).sqrt() }
}

/// What turns the layers of a decoder.
pub(super) struct Ropes {
    pub(super) global: RopeConfig,
    /// Of layers with windows, for families where it is another.
    pub(super) local: Option<RopeConfig>,
    /// Elements of a head that turn.
    pub(super) rotary_dim: usize,
}

/// Numbers that stand beside `rope_scaling`, or in it.
#[derive(Clone, Copy)]
struct Beside {
    theta: Option<f64>,
    share: Option<f64>,
    original: Option<f64>,
}

/// Reads `rope_theta`, `rope_local_base_freq` and `rope_scaling`, or the newer `rope_parameters` that holds them all, for families with two
/// under the names of `layer_types`; and how many elements of a head turn.
pub(super) fn read_ropes(
    keys: &mut Keys<'_>,
    row: &Architecture,
    head_dim: usize,
    context_limit: u32,
) -> Result<Ropes, String> {
    let beside = Beside {
        theta: keys.positive("rope_theta")?,
        share: keys.positive(SHARE)?,
        original: keys.positive(ORIGINAL)?,
    };
    let scaling = keys.get("rope_scaling");
    let parameters = keys.get("rope_parameters");
    let read = |value, beside, theta| read_rope(value, beside, theta, row, head_dim, context_limit);
    let Some(local_theta) = row.local_theta else {
        let (global, rotary_dim) = read(parameters.or(scaling), beside, row.rope_theta)?;
        return Ok(Ropes { global, local: None, rotary_dim });
    };
    let local_theta = keys.positive("rope_local_base_freq")?.unwrap_or(local_theta);
    let of_kind = |kind: &str| parameters.and_then(|parameters| parameters.get(kind)).filter(|value| !value.is_null());
    let (full, sliding) = (of_kind("full_attention"), of_kind("sliding_attention"));
    let by_kind = full.is_some() || sliding.is_some();
    if let Some(Value::Object(map)) = parameters.filter(|_| by_kind) {
        let kinds = Keys::new(map, &["full_attention", "sliding_attention"]);
        kinds.finish().map_err(|problem| format!("rope_parameters: {problem}"))?;
    }
    let (global, rotary_dim) = read(if by_kind { full } else { parameters.or(scaling) }, beside, row.rope_theta)?;
    let (local, _) = read(sliding, Beside { theta: None, ..beside }, local_theta)?;
    Ok(Ropes { global, local: Some(local), rotary_dim })
}

/// One rotary embedding, and how many elements of a head it turns. `theta` is the base when nothing says another.
fn read_rope(
    value: Option<&Value>,
    beside: Beside,
    theta: f64,
    row: &Architecture,
    head_dim: usize,
    context_limit: u32,
) -> Result<(RopeConfig, usize), String> {
    let Some(value) = value else {
        let theta = beside.theta.unwrap_or(theta);
        return Ok((RopeConfig { theta, scaling: RopeScaling::None }, rotary_dim(row, head_dim, beside.share)?));
    };
    let Value::Object(map) = value else { return Err(format!("rope_scaling is {value}, expected an object")) };
    let mut inner = Keys::new(map, &[]);
    let inside = |problem: String| format!("rope_scaling: {problem}");
    let theta = inner.positive("rope_theta").map_err(inside)?.or(beside.theta).unwrap_or(theta);
    let rotary_dim = rotary_dim(row, head_dim, inner.positive(SHARE).map_err(inside)?.or(beside.share))?;
    let original = inner.positive(ORIGINAL).map_err(inside)?;
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
            original_context: original.ok_or_else(|| format!("rope_scaling.{ORIGINAL} is missing"))?,
        },
        "yarn" => {
            let original = original.or(beside.original).unwrap_or(f64::from(context_limit));
            yarn(&mut inner, original).map_err(inside)?
        }
        // Phi-3 first called it "su".
        "longrope" | "su" => {
            let original = original.or(beside.original).ok_or_else(|| format!("{ORIGINAL} is missing"))?;
            long_rope(&mut inner, rotary_dim / 2, f64::from(context_limit), original).map_err(inside)?
        }
        other => {
            return Err(format!(
                "rope_scaling of type {other:?} is not understood; default, linear, llama3, yarn and longrope are"
            ));
        }
    };
    if let RopeScaling::Llama3 { low_freq_factor, high_freq_factor, .. } = scaling
        && high_freq_factor <= low_freq_factor
    {
        return Err(format!(
            "rope_scaling: high_freq_factor {high_freq_factor} must exceed low_freq_factor {low_freq_factor}"
        ));
    }
    inner.finish().map_err(inside)?;
    let rope = RopeConfig { theta, scaling };
    let is_finite = |pair| (rope.inverse_frequency(pair, rotary_dim as f64) as f32).is_finite();
    if !rope.attention_factor().is_finite() || !(0..rotary_dim / 2).all(is_finite) {
        return Err(format!("rope_scaling and rope_theta {theta} give no finite frequencies"));
    }
    Ok((rope, rotary_dim))
}

/// How much of a head turns.
const SHARE: &str = "partial_rotary_factor";
/// Context that the model was first trained with.
const ORIGINAL: &str = "original_max_position_embeddings";

fn rotary_dim(row: &Architecture, head_dim: usize, share: Option<f64>) -> Result<usize, String> {
    /// Distance from a whole number that is taken for rounding.
    const ROUNDING: f64 = 1e-6;
    let share = share.unwrap_or(1.0);
    if share != 1.0 && !row.partial_rotary {
        return Err(format!("{SHARE} is {share}; {} turns whole heads", row.name));
    }
    let exact = head_dim as f64 * share;
    let dim = exact.round();
    if (exact - dim).abs() > ROUNDING || !(1.0..=head_dim as f64).contains(&dim) {
        return Err(format!("{SHARE} is {share}: {exact} elements of head_dim {head_dim} cannot turn"));
    }
    if !(dim as usize).is_multiple_of(2) {
        return Err(format!("of head_dim {head_dim}, {dim} elements turn, which is odd; rotary embedding turns pairs"));
    }
    Ok(dim as usize)
}

fn yarn(inner: &mut Keys<'_>, original_context: f64) -> Result<RopeScaling, String> {
    let factor = inner.positive("factor")?.ok_or("factor is missing")?;
    let beta_fast = inner.positive("beta_fast")?.unwrap_or(32.0);
    let beta_slow = inner.positive("beta_slow")?.unwrap_or(1.0);
    if beta_fast <= beta_slow {
        return Err(format!("beta_fast {beta_fast} must exceed beta_slow {beta_slow}"));
    }
    let stretched = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let given = inner.positive("attention_factor")?;
    let scales = inner.positive("mscale")?.zip(inner.positive("mscale_all_dim")?);
    let by_scales = scales.map(|(mscale, all_dim)| stretched(mscale) / stretched(all_dim));
    Ok(RopeScaling::Yarn {
        factor,
        original_context,
        beta_fast,
        beta_slow,
        truncate: inner.flag("truncate")?.unwrap_or(true),
        attention_factor: given.or(by_scales).unwrap_or(stretched(1.0)),
    })
}

fn long_rope(inner: &mut Keys<'_>, pairs: usize, context: f64, original: f64) -> Result<RopeScaling, String> {
    let short = inner.positives("short_factor", pairs)?.ok_or("short_factor is missing")?;
    let long = inner.positives("long_factor", pairs)?.ok_or("long_factor is missing")?;
    // The limits say it; a factor beside them must agree.
    let stretch = context / original;
    if let Some(factor) = inner.positive("factor")?
        && factor != stretch
    {
        return Err(format!("factor is {factor}, but max_position_embeddings is {stretch} times {ORIGINAL}"));
    }
    let given = inner.positive("attention_factor")?;
    Ok(RopeScaling::LongRope {
        divisors: if context > original { long } else { short },
        attention_factor: given.unwrap_or(long_rope_attention_factor(stretch, original)),
    })
}
