//! A device that only keeps the books: it checks every plan against the rules of `StepPlan` and samples position-dependent tokens.
#![allow(dead_code, unreachable_pub)]

use std::collections::{BTreeMap, BTreeSet};

use holdfast_kv::{ChainDomain, DomainSecret};
use holdfast_scheduler::{Job, JobId, JobSampling};
use holdfast_types::{
    BlockId, DeviceDescription, Digest, KvGroup, LogToken, NumericsClass, Precision, SampledToken, SamplingParams,
    SequenceId, SequenceOutput, SlotChange, SlotId, StepLimits, StepOutput, StepPlan, TableChange,
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
        modelled: None,
        epoch: 1,
    }
}

/// The device with one more KV group, of that window and so many blocks.
pub fn with_window(mut device: DeviceDescription, window: u32, blocks: u32) -> DeviceDescription {
    device.kv_groups.push(KvGroup { layers: vec![1], window: Some(window), blocks, bytes_per_block: 1 });
    device
}

/// Blocks that a row sees at most behind a window, its own included.
pub fn window_blocks(window: u32, block_tokens: u32) -> u32 {
    (window - 1).div_ceil(block_tokens) + 1
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

/// Open slots with their tables, and which entry of a table the rows in each block belong to.
#[derive(Default)]
pub struct Books {
    pub slots: BTreeMap<SlotId, Vec<Vec<Option<BlockId>>>>,
    entries: BTreeMap<(usize, BlockId), u32>,
}

impl Books {
    /// Checks a plan, takes its changes and answers it.
    pub fn run(&mut self, device: &DeviceDescription, plan: &StepPlan) -> StepOutput {
        for change in &plan.slots {
            match change {
                SlotChange::Open { slot, .. } => {
                    assert!(
                        slot.0 < device.slots
                            && self.slots.insert(*slot, vec![Vec::new(); device.kv_groups.len()]).is_none(),
                        "{slot:?} opens twice"
                    );
                }
                SlotChange::Close { slot } => assert!(self.slots.remove(slot).is_some(), "{slot:?} closes twice"),
                SlotChange::Table(change) => {
                    let tables = self.slots.get_mut(&change.slot).expect("tables of open slots");
                    let table = &mut tables[usize::from(change.group)];
                    let blocks: Vec<_> = change.blocks.iter().copied().map(Some).collect();
                    let entries = change.first as usize..change.first as usize + blocks.len();
                    assert!(table.get(entries.clone()) != Some(&blocks), "only changes are sent");
                    table.resize(table.len().max(entries.end), None);
                    table[entries].copy_from_slice(&blocks);
                }
            }
        }
        for copy in &plan.copies {
            let group = usize::from(copy.group);
            let entry = self.entries[&(group, copy.from)];
            self.entries.insert((group, copy.to), entry);
        }
        let rows: usize = plan.sequences.iter().map(|sequence| sequence.inputs.len()).sum();
        assert!(rows >= 1 && rows <= device.limits.rows as usize, "{rows} rows");
        assert!(plan.sequences.len() <= device.limits.sequences as usize);
        let mut written = BTreeSet::new();
        let mut sequences = Vec::new();
        for sequence in &plan.sequences {
            let (size, end) = (device.block_tokens, sequence.start + sequence.inputs.len() as u32);
            for (group, table) in self.slots[&sequence.slot].iter().enumerate() {
                assert_eq!(table.len() as u32, end.div_ceil(size), "exactly the blocks that the rows need");
                let window = device.kv_groups[group].window;
                let seen = window.map_or(0, |window| (sequence.start + 1).saturating_sub(window));
                for entry in seen / size..end.div_ceil(size) {
                    let block = table[entry as usize].expect("an entry that is seen is set");
                    if entry * size < sequence.start {
                        assert_eq!(self.entries.get(&(group, block)), Some(&entry), "{block:?} holds other rows");
                    }
                    if entry >= sequence.start / size {
                        assert!(written.insert((group, block)), "two writers");
                        self.entries.insert((group, block), entry);
                    }
                }
            }
            if let [output] = sequence.outputs.as_slice() {
                assert_eq!(output.row, sequence.inputs.len() as u32 - 1);
                let sample = SampledToken { id: end % 1000, position: end, logprobs: Vec::new() };
                sequences.push(SequenceOutput { slot: sequence.slot, samples: vec![sample], logits: Vec::new() });
            }
        }
        StepOutput { id: plan.id, sequences, device_time_us: 100, modelled: None }
    }
}

/// A plan in one line per thing, for golden tests.
pub fn words(plan: &StepPlan) -> Vec<String> {
    let ids = |blocks: &[BlockId]| blocks.iter().map(|block| block.0.to_string()).collect::<Vec<_>>().join(" ");
    let slots = plan.slots.iter().map(|change| match change {
        SlotChange::Open { slot, .. } => format!("open {}", slot.0),
        SlotChange::Close { slot } => format!("close {}", slot.0),
        SlotChange::Table(TableChange { slot, group, first, blocks }) => {
            let group = if *group == 0 { String::new() } else { format!(" group {group}") };
            format!("slot {}{group} [{first}..] = {}", slot.0, ids(blocks))
        }
    });
    let copies = plan.copies.iter().map(|copy| format!("copy {} to {}", copy.from.0, copy.to.0));
    let rows = plan.sequences.iter().map(|sequence| {
        let end = sequence.start + sequence.inputs.len() as u32;
        let samples = if sequence.outputs.is_empty() { "" } else { ", sample" };
        format!("slot {} rows {}..{end}{samples}", sequence.slot.0, sequence.start)
    });
    slots.chain(copies).chain(rows).collect()
}
