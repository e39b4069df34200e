//! What a device says of the chip that it stands for: of itself, and of a step. Modelled, never measured.

use holdfast_contracts::device_v1 as pb;
use holdfast_types::{ModelledChip, ModelledStep};

/// Most cores and most programs of a chip, and most runs of a step: far above what any device has.
const COUNT_MAX: u32 = 1 << 24;

pub(crate) fn chip_to(chip: &ModelledChip) -> pb::ModelledChip {
    pb::ModelledChip {
        chip: chip.chip.as_str().to_owned(),
        cores: chip.cores,
        programs: chip.programs,
        hbm_bytes: chip.hbm_bytes,
        weight_bytes: chip.weight_bytes,
        kv_bytes: chip.kv_bytes,
        usd_per_hour: chip.usd_per_hour,
    }
}

/// Checks a chip and takes it over. The error says what is wrong.
pub(crate) fn chip_from(wire: pb::ModelledChip) -> Result<ModelledChip, String> {
    let chip = wire.chip.parse().map_err(|problem| format!("modelled.chip: {problem}"))?;
    if !(1..=COUNT_MAX).contains(&wire.cores) || wire.programs > COUNT_MAX {
        return Err(format!("modelled has {} cores and {} programs", wire.cores, wire.programs));
    }
    if wire.usd_per_hour.is_some_and(|price| !(0.0..=f64::MAX).contains(&price)) {
        return Err(format!("modelled.usd_per_hour is {:?}", wire.usd_per_hour));
    }
    Ok(ModelledChip {
        chip,
        cores: wire.cores,
        programs: wire.programs,
        hbm_bytes: wire.hbm_bytes,
        weight_bytes: wire.weight_bytes,
        kv_bytes: wire.kv_bytes,
        usd_per_hour: wire.usd_per_hour,
    })
}

pub(crate) fn step_to(step: ModelledStep) -> pb::ModelledStep {
    pb::ModelledStep {
        chip_time_ns: step.chip_time_ns,
        shares_ns: step.shares_ns,
        hbm_bytes: step.hbm_bytes,
        runs: step.runs,
        padding: step.padding,
        programs_made: step.programs_made,
    }
}

/// Checks what a step of `sequences` sequences would take and takes it over. The error says what is wrong.
pub(crate) fn step_from(wire: pb::ModelledStep, sequences: usize) -> Result<ModelledStep, String> {
    let sum = wire.shares_ns.iter().try_fold(0_u64, |sum, share| sum.checked_add(*share));
    if wire.shares_ns.len() != sequences || sum != Some(wire.chip_time_ns) {
        let (shares, time) = (wire.shares_ns.len(), wire.chip_time_ns);
        return Err(format!("its {shares} modelled shares are not {sequences} that add up to {time} ns"));
    }
    if !(0.0..=1.0).contains(&wire.padding) || wire.runs > COUNT_MAX || wire.programs_made > COUNT_MAX {
        let (padding, runs, made) = (wire.padding, wire.runs, wire.programs_made);
        return Err(format!("it modelled {runs} runs with a padding of {padding}, and {made} programs made"));
    }
    Ok(ModelledStep {
        chip_time_ns: wire.chip_time_ns,
        shares_ns: wire.shares_ns,
        hbm_bytes: wire.hbm_bytes,
        runs: wire.runs,
        padding: wire.padding,
        programs_made: wire.programs_made,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn chip() -> ModelledChip {
        let chip = "trn2".parse().unwrap();
        let (hbm_bytes, weight_bytes, kv_bytes) = (96 << 30, 16 << 30, 1 << 30);
        ModelledChip { chip, cores: 4, programs: 7, hbm_bytes, weight_bytes, kv_bytes, usd_per_hour: Some(1.5) }
    }

    fn step() -> ModelledStep {
        let shares_ns = vec![5, 0, 7];
        ModelledStep { chip_time_ns: 12, shares_ns, hbm_bytes: 9, runs: 2, padding: 0.25, programs_made: 0 }
    }

    #[test]
    fn chip_and_step_survive_the_wire() {
        assert_eq!(chip_from(chip_to(&chip())), Ok(chip()));
        assert_eq!(step_from(step_to(step()), 3), Ok(step()));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let wrong = |change: fn(&mut pb::ModelledChip), named: &str| {
            let mut wire = chip_to(&chip());
            change(&mut wire);
            let problem = chip_from(wire).unwrap_err();
            assert!(problem.contains(named), "{named}: {problem}");
        };
        wrong(|chip| chip.chip = "Trn 2".to_owned(), "modelled.chip");
        wrong(|chip| chip.cores = 0, "0 cores");
        wrong(|chip| chip.usd_per_hour = Some(-1.0), "usd_per_hour");

        let wrong = |change: fn(&mut pb::ModelledStep), named: &str| {
            let mut wire = step_to(step());
            change(&mut wire);
            let problem = step_from(wire, 3).unwrap_err();
            assert!(problem.contains(named), "{named}: {problem}");
        };
        wrong(|step| step.shares_ns.truncate(2), "2 modelled shares");
        wrong(|step| step.shares_ns[1] = 1, "add up to 12 ns");
        wrong(|step| step.shares_ns[1] = u64::MAX, "add up to 12 ns");
        wrong(|step| step.padding = f64::NAN, "NaN");
        wrong(|step| step.padding = 1.5, "1.5");
    }
}
