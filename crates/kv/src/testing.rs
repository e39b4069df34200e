//! A device's description for the tests of this crate.

use holdfast_types::{DeviceDescription, Digest, KvGroup, NumericsClass, Precision, StepLimits};

/// A device with one KV group per entry of `blocks`, none with a window.
pub(crate) fn device(block_tokens: u32, blocks: &[u32]) -> DeviceDescription {
    let groups: Vec<_> = blocks.iter().map(|&blocks| (blocks, None)).collect();
    windowed_device(block_tokens, &groups)
}

/// A device with one KV group per entry of `groups`: its blocks and its window.
pub(crate) fn windowed_device(block_tokens: u32, groups: &[(u32, Option<u32>)]) -> DeviceDescription {
    DeviceDescription {
        name: "test".into(),
        backend: "test".into(),
        numerics_class: NumericsClass::new("test/f32/r1"),
        weights: Digest([3; 32]),
        kv_layout: "f32".into(),
        block_tokens,
        kv_groups: (0_u16..)
            .zip(groups)
            .map(|(layer, &(blocks, window))| KvGroup { layers: vec![layer], window, blocks, bytes_per_block: 64 })
            .collect(),
        slots: 4,
        limits: StepLimits { rows: 64, sequences: 4, context: 64, in_flight: 1 },
        vocab_size: 100,
        precisions: vec![Precision::Native],
        price_usd_per_hour: None,
        modelled: None,
        epoch: 1,
    }
}
