//! The CPU device as a stand-in: which chip it stands for, and what that chip would say of itself and of a step.
//!
//! In: a decoder, the device's settings and description. Out: the plain data of `holdfast_types`. Deliberately not here: the device,
//! which computes with its own kernels and measures its own time.
//!
//! The chip computes in bf16 what the CPU computes in f32: matrices and KV are counted at 16 bits.

use holdfast_model::DecoderConfig;
use holdfast_types::{DeviceDescription, KvGroup, ModelledChip, ModelledStep};

use super::{ChipChoice, ChipModel, Demand, ProgramError, Span, WeightStorage};
use crate::{NeuronSettings, WeightFormat};

/// The programs of the chip that a device stands for, if it stands for one.
///
/// # Errors
/// [`ProgramError`] when a setting cannot be used, or when the chip was named and cannot hold what the device promises. One that was not
/// named is left out then, and the log says why.
pub fn chip(
    config: &DecoderConfig,
    settings: &NeuronSettings,
    description: &DeviceDescription,
) -> Result<Option<ChipModel>, ProgramError> {
    let demand = demand(settings, description);
    match &settings.chip {
        ChipChoice::None => Ok(None),
        ChipChoice::Named(chip) => ChipModel::compile(config, chip, &demand).map(Some),
        ChipChoice::IfItFits(chip) => match ChipModel::compile(config, chip, &demand) {
            Err(error @ (ProgramError::Hbm { .. } | ProgramError::Sbuf { .. })) => {
                tracing::warn!(%error, "nothing is modelled: the chip cannot hold the model");
                Ok(None)
            }
            other => other.map(Some),
        },
    }
}

/// What a device asks of the chip that it stands for.
pub fn demand(settings: &NeuronSettings, description: &DeviceDescription) -> Demand {
    let storage = match settings.weights {
        WeightFormat::F32 | WeightFormat::Bf16 => WeightStorage::Bf16,
        WeightFormat::Nested => WeightStorage::Int8,
    };
    let tokens =
        |group: &KvGroup| group.layers.len() as u64 * u64::from(group.blocks) * u64::from(description.block_tokens);
    Demand {
        storage,
        context: description.limits.context,
        block_tokens: description.block_tokens,
        kv_layer_tokens: description.kv_groups.iter().map(tokens).sum(),
    }
}

/// What the device's description says of the chip.
pub(crate) fn describe(model: &ChipModel) -> Option<ModelledChip> {
    let hbm = model.hbm();
    Some(ModelledChip {
        chip: model.chip().name.parse().ok()?,
        cores: model.cores(),
        programs: u32::try_from(model.programs().count()).unwrap_or(u32::MAX),
        hbm_bytes: hbm.has,
        weight_bytes: hbm.weights,
        kv_bytes: hbm.kv,
        usd_per_hour: model.usd_per_hour(),
    })
}

/// What a step would take. The device checked that every context is within its limits, which the lattice covers.
pub(crate) fn step(model: &mut ChipModel, spans: &[Span]) -> Option<ModelledStep> {
    let made = model.made_after_warm_up();
    let step = model.step(spans).inspect_err(|error| tracing::error!(%error, "a step without a program")).ok()?;
    Some(ModelledStep {
        chip_time_ns: step.time_ns,
        hbm_bytes: step.hbm_bytes,
        runs: step.runs,
        padding: step.padding(),
        programs_made: u32::try_from(model.made_after_warm_up() - made).unwrap_or(u32::MAX),
        shares_ns: step.shares_ns,
    })
}
