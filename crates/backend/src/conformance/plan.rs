//! A small builder of step plans, for this suite and for any other test that talks to a device.
//!
//! It checks nothing on purpose: tests build wrong plans with it too.

use holdfast_types::{
    BlockId, BlockMove, KvDestination, OutputRequest, Precision, RowInput, RowOutput, SequenceStep, SlotChange, SlotId,
    SlotSampling, StepId, StepPlan, TableChange,
};

/// Builds one [`StepPlan`].
#[derive(Debug, Clone)]
pub struct PlanBuilder {
    plan: StepPlan,
}

impl PlanBuilder {
    /// An empty plan.
    pub fn new(id: u64) -> Self {
        Self { plan: StepPlan { id: StepId(id), slots: Vec::new(), copies: Vec::new(), sequences: Vec::new() } }
    }

    /// Opens a slot.
    #[must_use]
    pub fn open(mut self, slot: u32, sampling: SlotSampling) -> Self {
        self.plan.slots.push(SlotChange::Open { slot: SlotId(slot), sampling: Box::new(sampling) });
        self
    }

    /// Sets entries of a slot's table in one group.
    #[must_use]
    pub fn table(mut self, slot: u32, group: u16, first: u32, blocks: &[u32]) -> Self {
        let blocks = blocks.iter().map(|block| BlockId(*block)).collect();
        self.plan.slots.push(SlotChange::Table(TableChange { slot: SlotId(slot), group, first, blocks }));
        self
    }

    /// Closes a slot.
    #[must_use]
    pub fn close(mut self, slot: u32) -> Self {
        self.plan.slots.push(SlotChange::Close { slot: SlotId(slot) });
        self
    }

    /// Copies a block inside the device.
    #[must_use]
    pub fn copy(mut self, group: u16, from: u32, to: u32) -> Self {
        self.plan.copies.push(BlockMove { group, from: BlockId(from), to: BlockId(to) });
        self
    }

    /// Rows of one sequence that are tokens, into the pool.
    #[must_use]
    pub fn rows(self, slot: u32, start: u32, tokens: &[u32], precision: Precision) -> Self {
        self.inputs(slot, start, tokens.iter().map(|token| RowInput::Token(*token)).collect(), precision)
    }

    /// Rows of one sequence, into the pool.
    #[must_use]
    pub fn inputs(mut self, slot: u32, start: u32, inputs: Vec<RowInput>, precision: Precision) -> Self {
        self.plan.sequences.push(SequenceStep {
            slot: SlotId(slot),
            start,
            inputs,
            precision,
            destination: KvDestination::Pool,
            outputs: Vec::new(),
        });
        self
    }

    /// Sends the KV of the latest rows to scratch.
    #[must_use]
    pub fn scratch(mut self) -> Self {
        if let Some(last) = self.plan.sequences.last_mut() {
            last.destination = KvDestination::Scratch;
        }
        self
    }

    /// Asks for an output of one of the latest rows.
    #[must_use]
    pub fn want(mut self, row: u32, request: OutputRequest) -> Self {
        if let Some(last) = self.plan.sequences.last_mut() {
            last.outputs.push(RowOutput { row, request });
        }
        self
    }

    /// Asks for the logits of all of the latest rows.
    #[must_use]
    pub fn want_all_logits(mut self) -> Self {
        if let Some(last) = self.plan.sequences.last_mut() {
            let rows = 0..last.inputs.len() as u32;
            last.outputs = rows.map(|row| RowOutput { row, request: OutputRequest::Logits }).collect();
        }
        self
    }

    /// The plan.
    pub fn build(self) -> StepPlan {
        self.plan
    }
}
