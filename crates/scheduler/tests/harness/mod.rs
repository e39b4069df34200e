//! A device that only keeps the books: it checks every plan against the rules of `StepPlan` and samples position-dependent tokens.
#![allow(dead_code, unreachable_pub)]

use std::collections::{BTreeMap, BTreeSet};

use holdfast_kv::{ChainDomain, DomainSecret};
use holdfast_scheduler::{Job, JobId, JobSampling};
use holdfast_types::{
    BlockId, DeviceDescription, Digest, KvGroup, LogToken, NumericsClass, Precision, SampledToken, SamplingParams,
    SequenceId, SequenceOutput, SlotChange, SlotId, StepLimits, StepOutput, StepPlan,
};

pub fn device(block_tokens: u32, blocks: u32, slots: u32, rows: u32) -> DeviceDescription {
    DeviceDescription {
        name: "books:0".into(),
        backend: "books".into(),
        numerics_class: NumericsClass::new("books/r1"),
        weights: Digest::default(),
        kv_layout: "none".into(),
        block_tokens,
        kv_groups: vec![KvGroup { layers: vec![0], window: None, blocks, bytes_per_block: 1 }],
        slots,
        limits: StepLimits { rows, sequences: slots, context: 1 << 20, in_flight: 1 },
        vocab_size: 1000,
        precisions: vec![Precision::Native],
        price_usd_per_hour: None,
        epoch: 1,
    }
}

pub fn job(id: u64, flow: u64, ids: impl IntoIterator<Item = u32>) -> Job {
    let params = SamplingParams::default();
    Job {
        id: JobId(id),
        sequence: SequenceId(id),
        log: ids.into_iter().map(|id| LogToken { id, precision: Precision::Native }).collect(),
        domain: ChainDomain::single(DomainSecret([0; 32])),
        flow,
        transient: false,
        sampling: Some(JobSampling { params, seed: id, precision: Precision::Native, sampled_before: Vec::new() }),
    }
}

/// Open slots with their tables.
#[derive(Default)]
pub struct Books {
    pub slots: BTreeMap<SlotId, Vec<BlockId>>,
}

impl Books {
    /// Checks a plan, takes its changes and answers it.
    pub fn run(&mut self, device: &DeviceDescription, plan: &StepPlan) -> StepOutput {
        for change in &plan.slots {
            match change {
                SlotChange::Open { slot, .. } => {
                    assert!(
                        slot.0 < device.slots && self.slots.insert(*slot, Vec::new()).is_none(),
                        "{slot:?} opens twice"
                    );
                }
                SlotChange::Close { slot } => assert!(self.slots.remove(slot).is_some(), "{slot:?} closes twice"),
                SlotChange::Table(change) => {
                    let table = self.slots.get_mut(&change.slot).expect("tables of open slots");
                    let first = change.first as usize;
                    assert!(first <= table.len(), "a hole in the table");
                    let same = table.get(first..first + change.blocks.len()).is_some_and(|old| old == change.blocks);
                    assert!(!same, "only changes are sent");
                    table.resize(table.len().max(first + change.blocks.len()), BlockId(u32::MAX));
                    table[first..first + change.blocks.len()].copy_from_slice(&change.blocks);
                }
            }
        }
        let rows: usize = plan.sequences.iter().map(|sequence| sequence.inputs.len()).sum();
        assert!(rows >= 1 && rows <= device.limits.rows as usize, "{rows} rows");
        assert!(plan.sequences.len() <= device.limits.sequences as usize);
        let mut written = BTreeSet::new();
        let mut sequences = Vec::new();
        for sequence in &plan.sequences {
            let table = &self.slots[&sequence.slot];
            let end = sequence.start + sequence.inputs.len() as u32;
            assert_eq!(table.len() as u32, end.div_ceil(device.block_tokens), "exactly the blocks that the rows need");
            for entry in sequence.start / device.block_tokens..end.div_ceil(device.block_tokens) {
                assert!(written.insert(table[entry as usize]), "two writers");
            }
            if let [output] = sequence.outputs.as_slice() {
                assert_eq!(output.row, sequence.inputs.len() as u32 - 1);
                let sample = SampledToken { id: end % 1000, position: end, logprobs: Vec::new() };
                sequences.push(SequenceOutput { slot: sequence.slot, samples: vec![sample], logits: Vec::new() });
            }
        }
        StepOutput { id: plan.id, sequences, device_time_us: 100 }
    }
}

/// A plan in one line per thing, for golden tests.
pub fn words(plan: &StepPlan) -> Vec<String> {
    let ids = |blocks: &[BlockId]| blocks.iter().map(|block| block.0.to_string()).collect::<Vec<_>>().join(" ");
    let slots = plan.slots.iter().map(|change| match change {
        SlotChange::Open { slot, .. } => format!("open {}", slot.0),
        SlotChange::Close { slot } => format!("close {}", slot.0),
        SlotChange::Table(table) => format!("slot {} [{}..] = {}", table.slot.0, table.first, ids(&table.blocks)),
    });
    let copies = plan.copies.iter().map(|copy| format!("copy {} to {}", copy.from.0, copy.to.0));
    let rows = plan.sequences.iter().map(|sequence| {
        let end = sequence.start + sequence.inputs.len() as u32;
        let samples = if sequence.outputs.is_empty() { "" } else { ", sample" };
        format!("slot {} rows {}..{end}{samples}", sequence.slot.0, sequence.start)
    });
    slots.chain(copies).chain(rows).collect()
}
