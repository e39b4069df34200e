//! GPUs: the device that settings ask for, and what `holdfast devices` tells of the cards of this machine.
//!
//! In: settings, a loaded model. Out: a backend; [`Gpus`]. Deliberately not here: anything of CUDA, which is the device crate's; a build without the
//! feature `cuda` has none, and says so.

use std::error::Error;
use std::io::Write;

use holdfast_backend::Backend;
use holdfast_model::Model;
use holdfast_types::Reason;
use indicatif::HumanBytes;
use serde::Serialize;

use crate::settings::Settings;

/// The cards of this machine, or why there are none.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Gpus {
    /// The driver works.
    Found {
        /// The newest CUDA that it speaks.
        driver: String,
        /// Version of the compiler that kernels need; absent when it is missing.
        nvrtc: Option<String>,
        /// What is missing of it.
        nvrtc_missing: Option<String>,
        /// By ordinal.
        cards: Vec<Card>,
    },
    /// What is missing, and what to do.
    Missing(String),
}

/// One card.
#[derive(Debug, Serialize)]
pub(crate) struct Card {
    ordinal: u32,
    name: String,
    memory_bytes: u64,
    compute_capability: String,
    multiprocessors: u32,
    bus_id: String,
    link: Option<String>,
}

impl Gpus {
    /// For people.
    pub(crate) fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        match self {
            Self::Missing(why) => writeln!(out, "GPUs: none. {why}"),
            Self::Found { driver, nvrtc, nvrtc_missing, cards } => {
                let compiler = match (nvrtc, nvrtc_missing) {
                    (Some(version), _) => format!("NVRTC {version}"),
                    (None, why) => why.clone().unwrap_or_default(),
                };
                writeln!(out, "GPUs: {}, driver for CUDA {driver}. {compiler}", cards.len())?;
                for card in cards {
                    let Card { ordinal, name, memory_bytes, compute_capability, multiprocessors, bus_id, link } = card;
                    writeln!(
                        out,
                        "  cuda:{ordinal}  {name}, {}, compute capability {compute_capability}, {multiprocessors} multiprocessors, {bus_id}{}",
                        HumanBytes(*memory_bytes),
                        link.as_ref().map(|link| format!(", {link}")).unwrap_or_default()
                    )?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(feature = "cuda")]
mod with {
    use holdfast_backend_cuda::{CudaDevice, CudaError, CudaSettings, KvSize, WeightFormat, cards};

    use super::*;
    use crate::settings::Weights;

    /// Where compiled kernels are kept, below the data directory.
    const KERNELS: &str = "kernels";

    /// What there is.
    pub(crate) fn gpus(settings: &Settings) -> Gpus {
        match cards(settings.device.nvrtc.as_deref()) {
            Err(error) => Gpus::Missing(error.to_string()),
            Ok(found) => Gpus::Found {
                driver: found.driver,
                nvrtc_missing: found.nvrtc.as_ref().err().cloned(),
                nvrtc: found.nvrtc.ok(),
                cards: found
                    .cards
                    .into_iter()
                    .map(|card| Card {
                        ordinal: card.ordinal,
                        name: card.name,
                        memory_bytes: card.memory_bytes,
                        compute_capability: format!("{}.{}", card.capability.0, card.capability.1),
                        multiprocessors: card.multiprocessors,
                        bus_id: card.bus_id,
                        link: card.link,
                    })
                    .collect(),
            },
        }
    }

    /// The reason of an error of the device crate's.
    pub(crate) fn reason(error: &(dyn Error + 'static)) -> Option<Reason> {
        error.downcast_ref().map(|error: &CudaError| match error {
            // The settings ask for what is not there.
            CudaError::NoDriver
            | CudaError::NoCard { .. }
            | CudaError::NoNvrtc { .. }
            | CudaError::ComputeCapability { .. }
            | CudaError::Memory { .. }
            | CudaError::Setting { .. } => Reason::InvalidSetting,
            CudaError::Model(_) => Reason::InvalidModel,
            CudaError::Driver(_) | CudaError::Compile { .. } | CudaError::Card(_) => Reason::DeviceFault,
        })
    }

    /// A GPU that holds a model.
    ///
    /// # Errors
    /// What is missing for it, by name.
    pub(crate) fn device(settings: &Settings, model: &Model) -> anyhow::Result<Box<dyn Backend>> {
        let device = &settings.device;
        let wanted = CudaSettings {
            ordinal: device.ordinal,
            weights: match device.weights {
                // The settings were checked: no GPU is asked for f32.
                Weights::Auto | Weights::F32 | Weights::Bf16 => WeightFormat::Bf16,
                Weights::Nested => WeightFormat::Nested,
            },
            kv: KvSize::Share(device.memory_fraction),
            block_tokens: device.block_tokens,
            slots: device.slots,
            max_step_rows: device.max_step_rows,
            context: None,
            nvrtc: device.nvrtc.clone(),
            cache_dir: Some(settings.data_dir.join(KERNELS)),
            price_usd_per_hour: None,
        };
        Ok(Box::new(CudaDevice::new(model.config(), model.weights(), &wanted)?))
    }
}

#[cfg(not(feature = "cuda"))]
mod without {
    use super::*;

    const WHY: &str = "This build has no CUDA device: build it with the feature cuda";

    /// Nothing.
    pub(crate) fn gpus(_: &Settings) -> Gpus {
        Gpus::Missing(WHY.to_owned())
    }

    /// None: there is no such error.
    pub(crate) fn reason(_: &(dyn Error + 'static)) -> Option<Reason> {
        None
    }

    /// None.
    ///
    /// # Errors
    /// Always.
    pub(crate) fn device(_: &Settings, _: &Model) -> anyhow::Result<Box<dyn Backend>> {
        anyhow::bail!("INVALID_SETTING: device.kind: {WHY}")
    }
}

#[cfg(feature = "cuda")]
pub(crate) use with::{device, gpus, reason};
#[cfg(not(feature = "cuda"))]
pub(crate) use without::{device, gpus, reason};
