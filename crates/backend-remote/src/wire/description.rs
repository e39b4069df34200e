//! What a device says of itself.

use holdfast_contracts::device_v1 as pb;
use holdfast_types::{DeviceDescription, Digest, KvGroup, NumericsClass, StepLimits};

use super::modelled::{chip_from, chip_to};
use super::{precision_from, precision_to};

/// Bytes of each text of a description.
const TEXT_BYTES_MAX: usize = 256;
const SLOTS_MAX: u32 = 1 << 16;
const ROWS_MAX: u32 = 1 << 16;
const IN_FLIGHT_MAX: u32 = 16;
const VOCAB_MAX: u32 = 1 << 20;
const BLOCKS_MAX: u32 = u32::MAX / 2;
const BLOCK_BYTES_MAX: u64 = 1 << 32;

/// A device as it says that it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Described {
    /// Its `epoch` is the device's own name of the life.
    pub(crate) description: DeviceDescription,
    pub(crate) draws_samples: bool,
}

/// The description of a local backend, which draws samples, in the life `epoch`.
pub(crate) fn to_wire(description: &DeviceDescription, epoch: u64) -> pb::Description {
    let d = description;
    let limits = pb::StepLimits {
        rows: d.limits.rows,
        sequences: d.limits.sequences,
        context: d.limits.context,
        in_flight: d.limits.in_flight,
    };
    let group = |group: &KvGroup| pb::KvGroup {
        layers: group.layers.iter().map(|layer| u32::from(*layer)).collect(),
        window: group.window,
        blocks: group.blocks,
        bytes_per_block: group.bytes_per_block,
    };
    pb::Description {
        name: d.name.clone(),
        numerics_class: d.numerics_class.as_str().to_owned(),
        weights: d.weights.0.to_vec(),
        kv_layout: d.kv_layout.clone(),
        block_tokens: d.block_tokens,
        kv_groups: d.kv_groups.iter().map(group).collect(),
        slots: d.slots,
        limits: Some(limits),
        vocab_size: d.vocab_size,
        precisions: d.precisions.iter().map(|precision| precision_to(*precision).into()).collect(),
        price_usd_per_hour: d.price_usd_per_hour,
        draws_samples: true,
        epoch,
        modelled: d.modelled.as_ref().map(chip_to),
    }
}

/// Checks a description and takes it over. The error says what is wrong.
pub(crate) fn from_wire(wire: pb::Description) -> Result<Described, String> {
    let within = |name: &str, value: u64, least: u64, most: u64| {
        if (least..=most).contains(&value) { Ok(()) } else { Err(format!("{name} is {value}, not {least} to {most}")) }
    };
    for (name, text) in [("name", &wire.name), ("numerics_class", &wire.numerics_class), ("kv_layout", &wire.kv_layout)]
    {
        within(&format!("the length of {name}"), text.len() as u64, u64::from(name != "name"), TEXT_BYTES_MAX as u64)?;
    }
    let limits = wire.limits.ok_or("limits are missing")?;
    for (name, value, least, most) in [
        ("block_tokens", wire.block_tokens, 1_u32, BLOCKS_MAX),
        ("slots", wire.slots, 1, SLOTS_MAX),
        ("vocab_size", wire.vocab_size, 2, VOCAB_MAX),
        ("limits.rows", limits.rows, 1, ROWS_MAX),
        ("limits.sequences", limits.sequences, 1, ROWS_MAX),
        ("limits.context", limits.context, 1, BLOCKS_MAX),
        ("limits.in_flight", limits.in_flight, 1, IN_FLIGHT_MAX),
    ] {
        within(name, value.into(), least.into(), most.into())?;
    }
    within("epoch", wire.epoch, 1, u64::MAX)?;
    within("the number of kv_groups", wire.kv_groups.len() as u64, 1, u16::MAX.into())?;
    within("the number of precisions", wire.precisions.len() as u64, 1, 3)?;
    let weights: [u8; 32] =
        wire.weights.try_into().map_err(|bytes: Vec<u8>| format!("weights are {} bytes, not 32", bytes.len()))?;
    if wire.price_usd_per_hour.is_some_and(|price| !(0.0..=f64::MAX).contains(&price)) {
        return Err(format!("price_usd_per_hour is {:?}", wire.price_usd_per_hour));
    }
    let in_flight = if wire.draws_samples { limits.in_flight } else { 1 };
    let description = DeviceDescription {
        name: wire.name,
        backend: "remote".to_owned(),
        numerics_class: NumericsClass::new(&wire.numerics_class),
        weights: Digest(weights),
        kv_layout: wire.kv_layout,
        block_tokens: wire.block_tokens,
        kv_groups: wire.kv_groups.into_iter().map(group_from).collect::<Result<_, _>>()?,
        slots: wire.slots,
        limits: StepLimits { rows: limits.rows, sequences: limits.sequences, context: limits.context, in_flight },
        vocab_size: wire.vocab_size,
        precisions: wire.precisions.into_iter().map(precision_from).collect::<Result<_, _>>()?,
        price_usd_per_hour: wire.price_usd_per_hour,
        modelled: wire.modelled.map(chip_from).transpose()?,
        epoch: wire.epoch,
    };
    Ok(Described { description, draws_samples: wire.draws_samples })
}

fn group_from(wire: pb::KvGroup) -> Result<KvGroup, String> {
    let layer = |layer: u32| u16::try_from(layer).map_err(|_| format!("a KV group has layer {layer}"));
    let layers: Vec<u16> = wire.layers.into_iter().map(layer).collect::<Result<_, _>>()?;
    if layers.is_empty() || layers.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err(format!("the layers of a KV group are {layers:?}"));
    }
    if !(1..=BLOCKS_MAX).contains(&wire.blocks) || !(1..=BLOCK_BYTES_MAX).contains(&wire.bytes_per_block) {
        return Err(format!("a KV group has {} blocks of {} bytes", wire.blocks, wire.bytes_per_block));
    }
    if wire.window == Some(0) {
        return Err("a KV group has a window of 0".to_owned());
    }
    Ok(KvGroup { layers, window: wire.window, blocks: wire.blocks, bytes_per_block: wire.bytes_per_block })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use holdfast_types::{ModelledChip, Precision};

    fn description() -> DeviceDescription {
        let group = |window| KvGroup { layers: vec![0, 2], window, blocks: 7, bytes_per_block: 64 };
        DeviceDescription {
            name: "d".to_owned(),
            backend: "remote".to_owned(),
            numerics_class: NumericsClass::new("d/f32/r1"),
            weights: Digest([3; 32]),
            kv_layout: "f32".to_owned(),
            block_tokens: 16,
            kv_groups: vec![group(None), group(Some(9))],
            slots: 4,
            limits: StepLimits { rows: 8, sequences: 4, context: 100, in_flight: 2 },
            vocab_size: 9,
            precisions: vec![Precision::Int8, Precision::Int4, Precision::Native],
            price_usd_per_hour: Some(1.5),
            modelled: Some(ModelledChip {
                chip: "trn2".parse().unwrap(),
                cores: 4,
                programs: 7,
                hbm_bytes: 9,
                weight_bytes: 5,
                kv_bytes: 4,
                usd_per_hour: None,
            }),
            epoch: 3,
        }
    }

    #[test]
    fn a_description_survives_the_wire() {
        let described = from_wire(to_wire(&description(), 3)).unwrap();
        assert_eq!(described, Described { description: description(), draws_samples: true });
        let plain = from_wire(pb::Description { draws_samples: false, ..to_wire(&description(), 3) }).unwrap();
        assert_eq!(plain.description.limits.in_flight, 1);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let wrong = |change: fn(&mut pb::Description), named: &str| {
            let mut wire = to_wire(&description(), 3);
            change(&mut wire);
            let problem = from_wire(wire).unwrap_err();
            assert!(problem.contains(named), "{named}: {problem}");
        };
        wrong(|d| d.limits = None, "limits");
        wrong(|d| d.weights = vec![0; 31], "31 bytes");
        wrong(|d| d.numerics_class.clear(), "numerics_class");
        wrong(|d| d.name = "x".repeat(257), "name");
        wrong(|d| d.vocab_size = u32::MAX, "vocab_size");
        wrong(|d| d.slots = 0, "slots");
        wrong(|d| d.block_tokens = 0, "block_tokens");
        wrong(|d| d.kv_groups.clear(), "kv_groups");
        wrong(|d| d.kv_groups[0].blocks = 0, "0 blocks");
        wrong(|d| d.kv_groups[0].layers = vec![1, 1], "layers");
        wrong(|d| d.kv_groups[1].window = Some(0), "window");
        wrong(|d| d.precisions = vec![77], "77");
        wrong(|d| d.price_usd_per_hour = Some(f64::NAN), "price");
        wrong(|d| d.epoch = 0, "epoch");
        wrong(|d| d.modelled = Some(pb::ModelledChip::default()), "modelled.chip");
        wrong(|d| d.limits = d.limits.map(|limits| pb::StepLimits { in_flight: 17, ..limits }), "in_flight");
    }
}
