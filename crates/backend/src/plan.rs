//! What a backend knows of its slots, and the check of a plan against it: the rules of [`StepPlan`] in one place.
//!
//! In: step plans, in order of submission. Out: [`Prepared`] steps that need no further check, or a rejection that changes
//! nothing. Deliberately not here: computing and samples ([`crate::samples`]).
//!
//! Tables are followed at submission and copied into the prepared step, so that a step in flight is not disturbed by the
//! plans after it. Samplers are made here and installed when the step runs.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_types::{
    BlockId, DeviceDescription, KvDestination, OutputRequest, Precision, RowInput, RowOutput, SequenceStep, SlotChange,
    StepId, StepPlan, TableChange,
};

use crate::sampler::SlotSampler;
use crate::{BackendError, BlockCopy, CopyDirection};

/// A table entry that no row of the step reads or writes.
const UNUSED: u32 = u32::MAX;

/// An open slot as of the last submitted plan.
#[derive(Debug, Clone)]
struct Slot {
    /// `[group][entry]`.
    tables: Vec<Vec<Option<u32>>>,
    /// A step submitted since the slot was opened draws a sample.
    draws: bool,
}

/// Every slot of a device, as of the last plan that was followed.
///
/// A plan is checked, then followed; what a device took back is restored, latest first.
#[derive(Debug)]
pub struct Slots {
    slots: Vec<Option<Slot>>,
}

/// A change of the samplers, done when the step runs.
#[derive(Debug)]
pub enum SamplerChange {
    /// The slot is taken.
    Open(u32, Box<SlotSampler>),
    /// The slot is free again.
    Close(u32),
}

/// A plan that holds and was not followed yet.
#[derive(Debug)]
pub struct Checked {
    step: Prepared,
    changed: BTreeMap<u32, Option<Slot>>,
}

/// Slots as they were before a plan was followed.
#[derive(Debug)]
pub struct Undo(Vec<(u32, Option<Slot>)>);

/// A step that was checked and waits to run.
#[derive(Debug)]
pub struct Prepared {
    /// The step.
    pub id: StepId,
    /// Done before the rows.
    pub samplers: Vec<SamplerChange>,
    /// (group, from, to), done before the rows.
    pub copies: Vec<(usize, u32, u32)>,
    /// In the plan's order.
    pub sequences: Vec<PreparedSequence>,
    /// (group, block) that the step writes.
    written: BTreeSet<(usize, u32)>,
}

/// The rows of one slot.
#[derive(Debug)]
pub struct PreparedSequence {
    /// The slot.
    pub slot: u32,
    /// Position of the first row.
    pub start: u32,
    /// One per row.
    pub inputs: Vec<RowInput>,
    /// What is wanted, in rising order of rows.
    pub outputs: Vec<RowOutput>,
    /// Whether the rows' KV goes to scratch.
    pub scratch: bool,
    /// Of all rows.
    pub precision: Precision,
    /// `[group][entry]`, up to the last position of the step; with scratch, up to the one before the first. Entries behind the
    /// group's window are no block's.
    pub tables: Vec<Vec<u32>>,
}

impl Prepared {
    /// Whether the step writes this block.
    pub fn writes(&self, group: usize, block: u32) -> bool {
        self.written.contains(&(group, block))
    }

    /// Whether a row or a copy of the step reads this block.
    pub fn reads(&self, group: usize, block: u32) -> bool {
        self.copies.iter().any(|(in_group, from, _)| (*in_group, *from) == (group, block))
            || self.sequences.iter().any(|sequence| sequence.tables[group].contains(&block))
    }
}

/// The slots that a plan changes, as they will be if it is taken.
struct Draft<'a> {
    slots: &'a [Option<Slot>],
    changed: BTreeMap<u32, Option<Slot>>,
    description: &'a DeviceDescription,
}

fn rejected<T>(why: impl Into<String>) -> Result<T, BackendError> {
    Err(BackendError::Rejected(why.into()))
}

impl Slots {
    /// `count` slots, none of them open.
    pub fn new(count: u32) -> Self {
        Self { slots: (0..count).map(|_| None).collect() }
    }

    /// Checks a plan as a whole and, if it holds, follows its changes.
    ///
    /// # Errors
    /// [`BackendError::Rejected`] with the rule that the plan breaks.
    pub fn prepare(&mut self, plan: &StepPlan, description: &DeviceDescription) -> Result<Prepared, BackendError> {
        let checked = self.check(plan, description)?;
        Ok(self.follow(checked).0)
    }

    /// Follows the changes of a plan that was checked against the slots as they are now.
    pub fn follow(&mut self, checked: Checked) -> (Prepared, Undo) {
        let changed = checked.changed.into_iter();
        let before = changed.map(|(slot, state)| (slot, std::mem::replace(&mut self.slots[slot as usize], state)));
        let before = before.collect();
        (checked.step, Undo(before))
    }

    /// Takes back the plan that was followed last.
    pub fn restore(&mut self, undo: Undo) {
        undo.0.into_iter().for_each(|(slot, state)| self.slots[slot as usize] = state);
    }

    /// Checks a plan as a whole and changes nothing.
    ///
    /// # Errors
    /// [`BackendError::Rejected`] with the rule that the plan breaks.
    pub fn check(&self, plan: &StepPlan, description: &DeviceDescription) -> Result<Checked, BackendError> {
        let mut draft = Draft { slots: &self.slots, changed: BTreeMap::new(), description };
        let mut samplers = Vec::new();
        for change in &plan.slots {
            samplers.extend(draft.change(change)?);
        }
        let (copies, copied) = copies(plan, description)?;
        let mut written = BTreeSet::new();
        if plan.sequences.len() > description.limits.sequences as usize {
            let most = description.limits.sequences;
            return rejected(format!("{} sequences, a step holds at most {most}", plan.sequences.len()));
        }
        let rows: usize = plan.sequences.iter().map(|sequence| sequence.inputs.len()).sum();
        if rows > description.limits.rows as usize {
            return rejected(format!("{rows} rows, a step holds at most {}", description.limits.rows));
        }
        let mut seen = BTreeSet::new();
        let mut sequences = Vec::new();
        for sequence in &plan.sequences {
            if !seen.insert(sequence.slot) {
                return rejected(format!("slot {} has two entries in one step", sequence.slot.0));
            }
            sequences.push(draft.sequence(sequence, &mut written)?);
        }
        let changed = draft.changed;
        // A copied block may be written by one sequence as well: copies come first.
        written.extend(copied);
        let step = Prepared { id: plan.id, samplers, copies, sequences, written };
        Ok(Checked { step, changed })
    }
}

/// (group, from, to) of every copy, and the (group, to) that they write.
type Copies = (Vec<(usize, u32, u32)>, BTreeSet<(usize, u32)>);

fn copies(plan: &StepPlan, description: &DeviceDescription) -> Result<Copies, BackendError> {
    let mut copies = Vec::new();
    let mut written = BTreeSet::new();
    for copy in &plan.copies {
        let blocks = blocks_of(description, copy.group)?;
        if copy.from.0 >= blocks || copy.to.0 >= blocks {
            return rejected(format!("copy of block {} to {}, the group has {blocks}", copy.from.0, copy.to.0));
        }
        if !written.insert((copy.group as usize, copy.to.0)) {
            return rejected(format!("two copies into block {} of group {}", copy.to.0, copy.group));
        }
        copies.push((copy.group as usize, copy.from.0, copy.to.0));
    }
    match copies.iter().find(|(group, from, _)| written.contains(&(*group, *from))) {
        Some((group, from, _)) => {
            rejected(format!("block {from} of group {group} is source and destination of copies"))
        }
        None => Ok((copies, written)),
    }
}

/// Checks a copy against the device and the steps that are open.
///
/// # Errors
/// [`BackendError::Rejected`] for an unknown group or block, a wrong number of bytes, a block that an open step writes, and an import
/// into a block that one reads.
pub fn check_copy<'a>(
    copy: &BlockCopy,
    description: &DeviceDescription,
    open: impl IntoIterator<Item = &'a Prepared>,
) -> Result<(), BackendError> {
    let blocks = blocks_of(description, copy.group)?;
    let (group, BlockId(block)) = (usize::from(copy.group), copy.block);
    if block >= blocks {
        return rejected(format!("block {block} of group {group}, which has {blocks}"));
    }
    let imports = matches!(copy.direction, CopyDirection::Import(_));
    let mut open = open.into_iter();
    if let Some(step) = open.find(|step| step.writes(group, block) || (imports && step.reads(group, block))) {
        return rejected(format!("block {block} of group {group} belongs to open step {}", step.id.0));
    }
    let expected = description.kv_groups[group].bytes_per_block;
    match &copy.direction {
        CopyDirection::Import(bytes) if bytes.len() as u64 != expected => {
            rejected(format!("{} bytes for a block of {expected}", bytes.len()))
        }
        CopyDirection::Import(_) | CopyDirection::Export => Ok(()),
    }
}

/// Blocks in a group's pool.
fn blocks_of(description: &DeviceDescription, group: u16) -> Result<u32, BackendError> {
    match description.kv_groups.get(group as usize) {
        Some(kv_group) => Ok(kv_group.blocks),
        None => rejected(format!("KV group {group}, the device has {}", description.kv_groups.len())),
    }
}

impl Draft<'_> {
    fn open(&mut self, slot: u32) -> Result<&mut Slot, BackendError> {
        let Some(state) = self.slots.get(slot as usize) else {
            return rejected(format!("slot {slot}, the device has {}", self.slots.len()));
        };
        match self.changed.entry(slot).or_insert_with(|| state.clone()) {
            Some(open) => Ok(open),
            None => rejected(format!("slot {slot} is not open")),
        }
    }

    fn change(&mut self, change: &SlotChange) -> Result<Option<SamplerChange>, BackendError> {
        match change {
            SlotChange::Open { slot, sampling } => {
                if slot.0 as usize >= self.slots.len() {
                    return rejected(format!("slot {}, the device has {}", slot.0, self.slots.len()));
                }
                if self.open(slot.0).is_ok() {
                    return rejected(format!("slot {} is open already", slot.0));
                }
                let sampler = SlotSampler::new(sampling, self.description.vocab_size)?;
                let tables = vec![Vec::new(); self.description.kv_groups.len()];
                self.changed.insert(slot.0, Some(Slot { tables, draws: false }));
                Ok(Some(SamplerChange::Open(slot.0, Box::new(sampler))))
            }
            SlotChange::Table(change) => self.table(change).map(|()| None),
            SlotChange::Close { slot } => {
                self.open(slot.0)?;
                self.changed.insert(slot.0, None);
                Ok(Some(SamplerChange::Close(slot.0)))
            }
        }
    }

    fn table(&mut self, change: &TableChange) -> Result<(), BackendError> {
        let blocks = blocks_of(self.description, change.group)?;
        if let Some(block) = change.blocks.iter().find(|block| block.0 >= blocks) {
            return rejected(format!("block {} of group {}, which has {blocks}", block.0, change.group));
        }
        let entries_max = self.description.limits.context.div_ceil(self.description.block_tokens) as usize;
        let (first, end) = (change.first as usize, change.first as usize + change.blocks.len());
        if end > entries_max {
            return rejected(format!("table entries up to {end}, a full context has {entries_max}"));
        }
        let table = &mut self.open(change.slot.0)?.tables[change.group as usize];
        if table.len() < end {
            table.resize(end, None);
        }
        table[first..end].iter_mut().zip(&change.blocks).for_each(|(entry, block)| *entry = Some(block.0));
        Ok(())
    }

    fn sequence(
        &mut self,
        sequence: &SequenceStep,
        written: &mut BTreeSet<(usize, u32)>,
    ) -> Result<PreparedSequence, BackendError> {
        let description = self.description;
        let slot = sequence.slot.0;
        let state = self.open(slot)?;
        if sequence.inputs.is_empty() {
            return rejected(format!("slot {slot} has no rows"));
        }
        if !description.precisions.contains(&sequence.precision) {
            return rejected(format!(
                "precision {:?}, the device has {:?}",
                sequence.precision, description.precisions
            ));
        }
        let context = description.limits.context;
        let start = sequence.start as usize;
        let end = start + sequence.inputs.len();
        if end > context as usize {
            return rejected(format!("slot {slot} would reach position {end}, the context is {context}"));
        }
        for input in &sequence.inputs {
            match input {
                RowInput::Token(token) if *token >= description.vocab_size => {
                    return rejected(format!("token {token}, the vocabulary ends at {}", description.vocab_size));
                }
                RowInput::LastSample if !state.draws => {
                    return rejected(format!("slot {slot} has drawn no sample yet"));
                }
                _ => {}
            }
        }
        for (at, output) in sequence.outputs.iter().enumerate() {
            if output.row as usize >= sequence.inputs.len() {
                return rejected(format!("output of row {}, slot {slot} has {}", output.row, sequence.inputs.len()));
            }
            if at > 0 && sequence.outputs[at - 1].row >= output.row {
                return rejected(format!("the outputs of slot {slot} do not rise"));
            }
        }

        let scratch = sequence.destination == KvDestination::Scratch;
        let block_tokens = description.block_tokens as usize;
        let known = if scratch { start } else { end };
        let mut tables = Vec::with_capacity(state.tables.len());
        let mut own = BTreeSet::new();
        for (group, (table, kv_group)) in state.tables.iter().zip(&description.kv_groups).enumerate() {
            // The first row looks back furthest.
            let first = kv_group.window.map_or(0, |window| (start + 1).saturating_sub(window as usize)) / block_tokens;
            let mut entries = vec![UNUSED; first];
            for entry in first..known.div_ceil(block_tokens) {
                let Some(block) = table.get(entry).copied().flatten() else {
                    return rejected(format!(
                        "slot {slot}, group {group}: no block for position {}",
                        entry * block_tokens
                    ));
                };
                if !scratch && entry >= start / block_tokens {
                    own.insert((group, block));
                }
                entries.push(block);
            }
            tables.push(entries);
        }
        if let Some((group, block)) = own.intersection(written).next() {
            return rejected(format!("two sequences write block {block} of group {group}"));
        }
        state.draws |= sequence.outputs.iter().any(|output| output.request != OutputRequest::Logits);
        written.extend(own);
        Ok(PreparedSequence {
            slot,
            start: sequence.start,
            inputs: sequence.inputs.clone(),
            outputs: sequence.outputs.clone(),
            scratch,
            precision: sequence.precision,
            tables,
        })
    }
}
