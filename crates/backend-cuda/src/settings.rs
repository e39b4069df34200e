//! Settings of the device, and what can be wrong with them.
//!
//! In: an operator's wishes. Out: checked numbers, or an error that names the setting. Deliberately not here: reading files or the environment.

use std::path::PathBuf;

use crate::CudaError;

/// How weights are held. Decides the numerics class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightFormat {
    /// Rounded to bf16, as most models are published. Rows are rounded to bf16 before each product; sums are f32.
    #[default]
    Bf16,
    /// int8 codes with one scale per group of 32 or 64, in an upper and a lower nibble plane: one copy that is read at 8 bits or, the upper
    /// plane alone, at 4, as each sequence asks. The arithmetic is that of the CPU device's nested weights.
    Nested,
}

/// How much KV the device holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum KvSize {
    /// This part of what is free once weights and the buffers of a step are there.
    Share(f64),
    /// This many blocks in every group.
    Blocks(u32),
}

/// Settings of a [`crate::CudaDevice`].
#[derive(Debug, Clone, PartialEq)]
pub struct CudaSettings {
    /// Which of the cards that the driver knows of.
    pub ordinal: u32,
    /// How weights are held.
    pub weights: WeightFormat,
    /// Size of the KV pool.
    pub kv: KvSize,
    /// Tokens per block: a multiple of 16, at most 1,024.
    pub block_tokens: u32,
    /// Sequence slots, 1 to 65,536.
    pub slots: u32,
    /// Most rows of a step, 1 to 65,536.
    pub max_step_rows: u32,
    /// Most tokens of a sequence; `None` is the model's own limit. The pool bounds it too.
    pub context: Option<u32>,
    /// NVRTC's library, where it is in no usual place.
    pub nvrtc: Option<PathBuf>,
    /// Where compiled kernels are kept; `None` compiles them at every start, which takes seconds.
    pub cache_dir: Option<PathBuf>,
    /// List price in USD per hour, if the operator set one.
    pub price_usd_per_hour: Option<f64>,
}

impl Default for CudaSettings {
    /// The first card, bf16 weights, nine tenths of what is free for KV.
    fn default() -> Self {
        Self {
            ordinal: 0,
            weights: WeightFormat::Bf16,
            kv: KvSize::Share(0.9),
            block_tokens: 16,
            slots: 256,
            max_step_rows: 2_048,
            context: None,
            nvrtc: None,
            cache_dir: None,
            price_usd_per_hour: None,
        }
    }
}

impl CudaSettings {
    /// Checks every number on its own.
    ///
    /// # Errors
    /// [`CudaError::Setting`] with the name, the value and the rule.
    pub fn check(&self) -> Result<(), CudaError> {
        let wrong =
            |setting, value: String, rule: &str| Err(CudaError::Setting { setting, value, rule: rule.to_owned() });
        let range = |setting, value: u32, most: u32| {
            if (1..=most).contains(&value) {
                Ok(())
            } else {
                wrong(setting, value.to_string(), &format!("it must be 1 to {most}"))
            }
        };
        range("slots", self.slots, 65_536)?;
        range("max_step_rows", self.max_step_rows, 65_536)?;
        range("block_tokens", self.block_tokens, 1_024)?;
        if !self.block_tokens.is_multiple_of(16) {
            return wrong("block_tokens", self.block_tokens.to_string(), "it must be a multiple of 16");
        }
        if let Some(context) = self.context {
            range("context", context, u32::MAX)?;
        }
        match self.kv {
            KvSize::Share(share) if !(share > 0.0 && share <= 1.0) => {
                wrong("memory_fraction", share.to_string(), "it must be above 0 and at most 1")
            }
            KvSize::Blocks(blocks) => range("kv_blocks", blocks, u32::MAX / 2),
            KvSize::Share(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_number_out_of_range_is_named_with_its_rule() {
        let default = CudaSettings::default;
        default().check().unwrap();
        for (settings, named) in [
            (CudaSettings { slots: 0, ..default() }, "slots is 0, it must be 1 to"),
            (CudaSettings { block_tokens: 24, ..default() }, "block_tokens is 24, it must be a multiple of 16"),
            (CudaSettings { kv: KvSize::Share(1.5), ..default() }, "memory_fraction is 1.5"),
            (CudaSettings { kv: KvSize::Share(f64::NAN), ..default() }, "memory_fraction is NaN"),
            (CudaSettings { context: Some(0), ..default() }, "context is 0"),
        ] {
            let said = settings.check().unwrap_err().to_string();
            assert!(said.contains(named), "{said}");
        }
    }
}
