//! Settings of the device, and what can be wrong with them.
//!
//! In: an operator's wishes. Out: checked numbers, or an error that names the setting. Deliberately not here: reading files or
//! the environment.

use std::path::PathBuf;
use std::time::Duration;

use crate::Isa;
use crate::kernels::attention::PAGE;
use crate::program::{ChipChoice, ProgramError};

/// How weights are held. Decides the numerics class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightFormat {
    /// As they come.
    #[default]
    F32,
    /// Rounded to the nearest bf16, ties to even: without loss where that is what the files hold. Arithmetic stays f32, and has the bits that the
    /// same weights would give in f32. Half the memory of f32 to hold and to read.
    Bf16,
    /// int8 codes with one scale per group of 32 or 64, in an upper and a lower nibble plane: one copy that is read at 8 bits or, the upper
    /// plane alone, at 4, as each sequence asks. Rows are quantised to int8 per group of 64 before each product. Norms, biases and the
    /// routers of experts stay f32.
    Nested,
}

/// Models with fewer parameters are held as they come unless someone says otherwise: they are small and quick in any format.
const SMALL_PARAMETERS: u64 = 64_000_000;

impl WeightFormat {
    /// What a model of this many parameters should have where nobody says anything: nested, unless it is small.
    pub fn for_parameters(parameters: u64) -> Self {
        if parameters < SMALL_PARAMETERS { Self::F32 } else { Self::Nested }
    }
}

/// How keys and values are held. Decides the numerics class and the layout of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvFormat {
    /// As computed.
    F32,
    /// Rounded to the nearest bf16, ties to even: half the bytes, and nearly twice the speed where long contexts are read. Arithmetic
    /// stays f32.
    Bf16,
    /// Codes of -127 to 127 with one f32 scale for the key, and one for the value, of each position and head: little more than a quarter of the
    /// bytes of f32. Arithmetic stays f32.
    Int8,
}

/// How much KV the device holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvSize {
    /// As many blocks as fit into this many bytes, over all groups.
    Bytes(u64),
    /// This many blocks in every group.
    Blocks(u32),
}

/// Where packed weights are kept on disk from one start to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackingSettings {
    /// Their directory; made when it is needed. Devices of several processes may share it.
    pub directory: PathBuf,
    /// Most bytes of all files in it: what was not used for longest makes room, and what is larger is not kept.
    pub bytes_max: u64,
    /// What takes less than this to pack is not kept.
    pub after: Duration,
}

/// Settings of a [`crate::NeuronDevice`].
#[derive(Debug, Clone, PartialEq)]
pub struct NeuronSettings {
    /// Number of the device on its node; part of its name.
    pub ordinal: u32,
    /// Threads that compute, 1 to 256; the thread that calls is one of them.
    pub threads: usize,
    /// Size of the KV pool. Memory is taken from the system as blocks are written.
    pub kv: KvSize,
    /// How keys and values are held; `None` is f32 with f32 weights and bf16 with others.
    pub kv_format: Option<KvFormat>,
    /// Tokens per block: a multiple of 16, at most 1,024.
    pub block_tokens: u32,
    /// Sequence slots, 1 to 65,536.
    pub slots: u32,
    /// Most rows of a step, 1 to 65,536.
    pub max_step_rows: u32,
    /// Most steps submitted and not collected, 1 to 16. Steps are computed when they are collected, so more than 1 only moves the wait.
    pub in_flight: u32,
    /// Most tokens of a sequence; `None` is the model's own limit. The pool bounds it too.
    pub context: Option<u32>,
    /// How weights are held.
    pub weights: WeightFormat,
    /// Where nested weights are kept once they are packed; `None` packs them at every start.
    pub packings: Option<PackingSettings>,
    /// Instruction set of the kernels; does not change any bit.
    pub isa: Isa,
    /// List price in USD per hour, if the operator set one.
    pub price_usd_per_hour: Option<f64>,
    /// The chip that the device stands for; changes no bit.
    pub chip: ChipChoice,
}

impl Default for NeuronSettings {
    /// One thread per core that the process may use (at most 256), 512 MiB of KV in blocks of 16 tokens, f32 weights and KV.
    fn default() -> Self {
        Self {
            ordinal: 0,
            threads: std::thread::available_parallelism().map_or(1, usize::from).min(256),
            kv: KvSize::Bytes(512 << 20),
            kv_format: None,
            block_tokens: 16,
            slots: 256,
            max_step_rows: 512,
            in_flight: 1,
            context: None,
            weights: WeightFormat::F32,
            packings: None,
            isa: Isa::widest(),
            price_usd_per_hour: None,
            chip: ChipChoice::None,
        }
    }
}

/// Why a device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum NeuronError {
    /// A setting is out of range.
    #[error("device setting {setting} is {value}, {rule}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What it was.
        value: String,
        /// What it may be.
        rule: String,
    },
    /// The model has a shape that the device cannot compute.
    #[error("the neuron device cannot run this model: {0}")]
    Model(String),
    /// The chip that was named cannot hold the model as it is to be served.
    #[error("the chip that this device is to stand for: {0}")]
    Chip(#[from] ProgramError),
    /// The threads could not be started.
    #[error("could not start the device's threads: {0}")]
    Threads(#[from] std::io::Error),
    /// The system gives no memory for the weights.
    #[error("no memory for the weights: {0}")]
    Memory(std::io::Error),
}

impl NeuronSettings {
    /// How keys and values are held.
    pub fn kv_format(&self) -> KvFormat {
        self.kv_format.unwrap_or(match self.weights {
            WeightFormat::F32 => KvFormat::F32,
            WeightFormat::Bf16 | WeightFormat::Nested => KvFormat::Bf16,
        })
    }

    /// Checks every number on its own.
    ///
    /// # Errors
    /// [`NeuronError::Setting`] with the name, the value and the rule.
    pub fn check(&self) -> Result<(), NeuronError> {
        let range = |setting, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            let rule = format!("it must be {least} to {most}");
            Err(NeuronError::Setting { setting, value: value.to_string(), rule })
        };
        range("threads", self.threads as u64, 1, 256)?;
        range("slots", self.slots.into(), 1, 65_536)?;
        range("max_step_rows", self.max_step_rows.into(), 1, 65_536)?;
        range("in_flight", self.in_flight.into(), 1, 16)?;
        range("block_tokens", self.block_tokens.into(), PAGE as u64, 1_024)?;
        if !(self.block_tokens as usize).is_multiple_of(PAGE) {
            let rule = format!("it must be a multiple of {PAGE}");
            return Err(NeuronError::Setting { setting: "block_tokens", value: self.block_tokens.to_string(), rule });
        }
        if let Some(context) = self.context {
            range("context", context.into(), 1, u32::MAX.into())?;
        }
        match self.kv {
            KvSize::Bytes(_) => Ok(()),
            KvSize::Blocks(blocks) => range("kv_blocks", blocks.into(), 1, u64::from(u32::MAX / 2)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_models_are_held_as_they_come() {
        let of = WeightFormat::for_parameters;
        assert_eq!([of(1_870_000), of(63_999_999)], [WeightFormat::F32; 2]);
        assert_eq!([of(64_000_000), of(8_000_000_000)], [WeightFormat::Nested; 2]);
    }

    #[test]
    fn errors_name_the_setting() {
        let bad = |change: fn(&mut NeuronSettings)| {
            let mut settings = NeuronSettings::default();
            change(&mut settings);
            settings.check().err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(bad(|_| {}), "");
        assert_eq!(bad(|s| s.threads = 0), "device setting threads is 0, it must be 1 to 256");
        assert_eq!(bad(|s| s.block_tokens = 24), "device setting block_tokens is 24, it must be a multiple of 16");
        assert!(bad(|s| s.block_tokens = 8).contains("block_tokens"));
        assert!(bad(|s| s.slots = 0).contains("slots"));
        assert!(bad(|s| s.max_step_rows = 0).contains("max_step_rows"));
        assert!(bad(|s| s.in_flight = 17).contains("in_flight"));
        assert!(bad(|s| s.context = Some(0)).contains("context"));
        assert!(bad(|s| s.kv = KvSize::Blocks(0)).contains("kv_blocks"));
    }
}
