//! The settings of the runtime that decide how fast its device is, for a device without a runtime.
//!
//! In: what `--set` says. Out: [`Settings`], with the runtime's defaults. Everything else that may be set is about parts that do
//! not run here, and is the runtime's to refuse.

use anyhow::{Context as _, bail};
use holdfast_backend_neuron::{KvFormat, KvSize, NeuronSettings, WeightFormat};
use holdfast_model::Model;

/// What the runtime's `device.kv_bytes` is unless it is set.
const KV_BYTES: u64 = 256 << 20;
/// What the runtime's `scheduler.prefill_chunk_tokens` is unless it is set.
pub(crate) const CHUNK_TOKENS: u32 = 256;

/// A device, and how prefills are cut for it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) device: NeuronSettings,
    pub(crate) chunk_tokens: u32,
    /// The model decides how weights are held.
    weights_follow_model: bool,
}

impl Settings {
    /// Reads `KEY=VALUE` pairs.
    ///
    /// # Errors
    /// When a value cannot be meant, with the pair.
    pub(crate) fn of(set: &[String]) -> anyhow::Result<Self> {
        let device = NeuronSettings { kv: KvSize::Bytes(KV_BYTES), ..NeuronSettings::default() };
        let mut this = Self { device, chunk_tokens: CHUNK_TOKENS, weights_follow_model: true };
        for pair in set {
            this.take(pair).with_context(|| format!("--set {pair}"))?;
        }
        this.device.check()?;
        Ok(this)
    }

    /// The same, for a device of this model.
    pub(crate) fn for_model(mut self, model: &Model) -> Self {
        if self.weights_follow_model {
            self.device.weights = WeightFormat::for_parameters(model.parameters());
        }
        self
    }

    fn take(&mut self, pair: &str) -> anyhow::Result<()> {
        let (key, value) = pair.split_once('=').context("write KEY=VALUE")?;
        let (key, value) = (key.trim(), value.trim());
        let count = || value.parse::<u32>().context("not a number");
        match key {
            "device.threads" if value == "0" => {}
            "device.threads" => self.device.threads = count()? as usize,
            "device.block_tokens" => self.device.block_tokens = count()?,
            "device.kv_bytes" => self.device.kv = KvSize::Bytes(value.parse().context("not a number of bytes")?),
            "device.weights" => {
                self.weights_follow_model = value == "auto";
                self.device.weights = match value {
                    "auto" => self.device.weights,
                    "f32" => WeightFormat::F32,
                    "bf16" => WeightFormat::Bf16,
                    "nested" => WeightFormat::Nested,
                    _ => bail!("auto, f32, bf16 or nested"),
                }
            }
            "device.kv_format" => {
                self.device.kv_format = match value {
                    "auto" => None,
                    "f32" => Some(KvFormat::F32),
                    "bf16" => Some(KvFormat::Bf16),
                    "int8" => Some(KvFormat::Int8),
                    _ => bail!("auto, f32, bf16 or int8"),
                }
            }
            "scheduler.prefill_chunk_tokens" => self.chunk_tokens = count()?,
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn settings_are_the_runtimes() {
        let set = |pair: &str| Settings::of(&[pair.to_owned()]);
        assert_eq!(set("device.weights=nested").unwrap().device.weights, WeightFormat::Nested);
        assert_eq!(set("device.kv_format=bf16").unwrap().device.kv_format, Some(KvFormat::Bf16));
        assert_eq!(set("device.weights=bf16").unwrap().device.weights, WeightFormat::Bf16);
        assert_eq!(set("device.kv_format=int8").unwrap().device.kv_format, Some(KvFormat::Int8));
        assert_eq!(set("device.threads = 3").unwrap().device.threads, 3);
        assert_eq!(set("device.kv_bytes=1000000").unwrap().device.kv, KvSize::Bytes(1_000_000));
        assert_eq!(set("scheduler.prefill_chunk_tokens=64").unwrap().chunk_tokens, 64);
        assert_eq!(set("device.threads=0").unwrap(), Settings::of(&[]).unwrap());
        assert_eq!(set("device.weights=auto").unwrap(), Settings::of(&[]).unwrap());
        assert_eq!(set("telemetry.log=debug").unwrap(), Settings::of(&[]).unwrap());
        for bad in [
            "device.weights=half",
            "device.kv_format=half",
            "device.threads=many",
            "device.block_tokens=0",
            "device.threads",
        ] {
            assert!(set(bad).is_err(), "{bad}");
        }
    }
}
