//! `holdfast devices`: the CPU device of each served model as settings make it, the chip that it stands for, and what is modelled; and the GPUs
//! of this machine.
//!
//! In: settings. Out: a page for people, or JSON. No server is needed and none is asked; no weights are packed. Deliberately not here: any
//! figure of the model's (`holdfast_backend_neuron::program`), and anything measured.

mod report;

use std::io::Write;

use holdfast_backend_neuron::program::{Buckets, Chip, ChipChoice, ChipModel, ChipSettings, price, stand_in};
use holdfast_backend_neuron::{NeuronDevice, NeuronError};

use crate::device::neuron_settings;
use crate::gpus;
use crate::runtime::sources;
use crate::settings::{ChipName, DeviceKind, PriceSettings, Settings};
use report::{DeviceReport, Report};

/// The chip that a device stands for unless one is named.
const AUTO: ChipName = ChipName::Trn2;

/// Prints what the settings would make.
///
/// # Errors
/// A model that cannot be loaded, a setting that cannot be used, a chip that was named and does not hold a model.
pub(crate) fn run(settings: &Settings, json: bool) -> anyhow::Result<()> {
    let mut devices = Vec::new();
    // How much a GPU would hold, only taking it tells.
    let is_gpu = settings.device.kind == DeviceKind::Cuda;
    for (place, (name, found)) in sources(settings)?.into_iter().enumerate().filter(|_| !is_gpu) {
        let model = found.load()?;
        let wanted = neuron_settings(settings, place, &model)?;
        let description = NeuronDevice::description(model.config(), model.weights(), &wanted)?;
        let chip = stand_in::chip(model.config(), &wanted, &description).map_err(NeuronError::from)?;
        let demand = stand_in::demand(&wanted, &description);
        devices.push(DeviceReport::of(name, &description, chip, |chip| {
            ChipModel::compile(model.config(), &used(settings, chip), &demand)
        }));
    }
    let report = Report::of(devices, gpus::gpus(settings))?;
    let mut out = std::io::stdout().lock();
    match json {
        true => writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?,
        false => report.print(&mut out)?,
    }
    Ok(())
}

/// The chip that devices stand for.
pub(crate) fn chip(settings: &Settings) -> ChipChoice {
    match (settings.chip.name, named(settings.chip.name)) {
        (ChipName::Auto, _) => named(AUTO).map_or(ChipChoice::None, |chip| ChipChoice::IfItFits(used(settings, chip))),
        (_, Some(chip)) => ChipChoice::Named(used(settings, chip)),
        (_, None) => ChipChoice::None,
    }
}

/// The row of the chip table.
fn named(name: ChipName) -> Option<&'static Chip> {
    match name {
        ChipName::Auto | ChipName::None => None,
        ChipName::Trn1 => Chip::named("trn1"),
        ChipName::Inf2 => Chip::named("inf2"),
        ChipName::Trn2 => Chip::named("trn2"),
        ChipName::Trn3 => Chip::named("trn3"),
    }
}

/// A chip as the settings use it.
fn used(settings: &Settings, chip: &'static Chip) -> ChipSettings {
    let wanted = &settings.chip;
    ChipSettings {
        chip,
        cores: wanted.cores,
        hbm_bytes: (wanted.hbm_bytes > 0).then_some(wanted.hbm_bytes),
        buckets: Buckets {
            batch: wanted.batch_buckets.clone(),
            query: wanted.query_buckets.clone(),
            context: wanted.context_buckets.clone(),
        },
        usd_per_chip_hour: set_price(&settings.prices, chip)
            .or_else(|| price::default_price(chip.name).map(price::ListPrice::usd_per_chip_hour)),
    }
}

fn set_price(prices: &PriceSettings, chip: &Chip) -> Option<f64> {
    match chip.name {
        "trn1" => prices.trn1_usd_per_hour,
        "inf2" => prices.inf2_usd_per_hour,
        "trn2" => prices.trn2_usd_per_hour,
        "trn3" => prices.trn3_usd_per_hour,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_chip_is_held_to_and_prices_are_the_lists_unless_set() {
        let mut settings = Settings::default();
        assert!(
            matches!(chip(&settings), ChipChoice::IfItFits(used) if used.chip.name == "trn2" && used.usd_per_chip_hour.is_none())
        );
        settings.chip.name = ChipName::None;
        assert_eq!(chip(&settings), ChipChoice::None);
        settings.chip.name = ChipName::Trn1;
        assert!(matches!(chip(&settings), ChipChoice::Named(used) if used.usd_per_chip_hour == Some(21.5 / 16.0)));
        settings.prices.trn1_usd_per_hour = Some(0.5);
        settings.chip.hbm_bytes = 1 << 30;
        let ChipChoice::Named(used) = chip(&settings) else { panic!("a chip was named") };
        assert_eq!((used.usd_per_chip_hour, used.hbm_bytes, used.cores), (Some(0.5), Some(1 << 30), 0));
    }
}
