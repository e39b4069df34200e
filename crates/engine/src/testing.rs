//! A device for tests and simulations whose tokens depend on every cell of KV that they are allowed to see.
//!
//! In: the same plans as any device. Out: tokens. A cell holds (token, position, precision) and a hash chained from the cell before
//! it and from the oldest that its row sees, read through the block table at the moment of computing; a sampled row hashes
//! every visible cell of every KV group through the block table into its logits and draws with the shared sampler. So a
//! block that was evicted too early or passed before its window had gone by, a table entry that was not sent, a copy that was
//! forgotten or a row that was skipped changes the tokens. [`expected_tokens`] says what a run must sample, from its log
//! alone, without blocks.
//!
//! It is strict: a plan that a careful device would reject is rejected. It is deterministic, and fails on demand ([`Faults`]).
//! Deliberately not here: a model. Nothing on a product path uses this module.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_backend::sampler::{SlotSampler, check_mask};
use holdfast_backend::{Backend, BackendError, BlockCopy, CopyDirection, CopyDone, CopyTicket, StepTicket};
use holdfast_types::{
    BlockId, DeviceDescription, Digest, KvDestination, KvGroup, LateInputs, LogToken, ModelledStep, NumericsClass,
    OutputRequest, Precision, RowInput, SequenceOutput, SequenceStep, SlotChange, SlotId, SlotSampling, StepLimits,
    StepOutput, StepPlan, TokenId, TokenMask,
};

use crate::Run;

/// Nanoseconds that a row takes on the chip of a description that names one.
const CHIP_NS_PER_ROW: u64 = 1_001;

/// Bytes of an exported cell: chain, token, position, precision.
const CELL_BYTES: usize = 17;

/// A small device: one KV group per entry of `blocks`, slots and sequences per step `slots`, a vocabulary of 61 tokens,
/// native and int8 rows. Change what a test wants changed.
pub fn small_device(block_tokens: u32, blocks: &[u32], slots: u32) -> DeviceDescription {
    let bytes_per_block = u64::from(block_tokens) * CELL_BYTES as u64;
    let group = |(layer, &blocks): (u16, &u32)| KvGroup { layers: vec![layer], window: None, blocks, bytes_per_block };
    DeviceDescription {
        name: "token:0".to_owned(),
        backend: "token".to_owned(),
        numerics_class: NumericsClass::new("token/u64/r1"),
        weights: Digest([1; 32]),
        kv_layout: "token,position,precision".to_owned(),
        block_tokens,
        kv_groups: (0_u16..).zip(blocks).map(group).collect(),
        slots,
        limits: StepLimits { rows: 64, sequences: slots, context: 4096, in_flight: 1 },
        vocab_size: 61,
        precisions: vec![Precision::Native, Precision::Int8],
        price_usd_per_hour: None,
        modelled: None,
        epoch: 1,
    }
}

/// What a step would take on a chip: the same time for every row.
fn modelled(plan: &StepPlan) -> ModelledStep {
    let time = |sequence: &SequenceStep| CHIP_NS_PER_ROW * sequence.inputs.len() as u64;
    let shares_ns: Vec<u64> = plan.sequences.iter().map(time).collect();
    let chip_time_ns = shares_ns.iter().sum();
    ModelledStep { chip_time_ns, shares_ns, hbm_bytes: 0, runs: 1, padding: 0.0, programs_made: 0 }
}

/// Which call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// [`Backend::submit`]; a [`BackendError::Fault`] there still applies the plan's slot changes and copies.
    Submit,
    /// [`Backend::collect`].
    Collect,
}

/// Makes steps of a [`TokenBackend`] fail. Clones speak to the same device.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<VecDeque<(u32, Call, BackendError)>>>);

impl Faults {
    /// After `calls` more calls of that kind, the next one fails. Faults are taken in the order in which they were added; a later
    /// one counts from when the one before it was taken.
    pub fn add(&self, calls: u32, call: Call, error: BackendError) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back((calls, call, error));
    }

    fn take(&self, call: Call) -> Option<BackendError> {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (calls, at, _) = queue.front_mut()?;
        if *at != call {
            return None;
        }
        match calls.checked_sub(1) {
            Some(left) => {
                *calls = left;
                None
            }
            None => queue.pop_front().map(|(_, _, error)| error),
        }
    }
}

/// One position's KV.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Cell {
    chain: u64,
    token: TokenId,
    position: u32,
    precision: u8,
}

impl Cell {
    /// `seen` are the cells before it that its row sees: the one just before, and the oldest.
    fn new(group: usize, seen: Option<[&Cell; 2]>, token: LogToken, position: u32) -> Self {
        let chain = seen.map_or(group as u64, |[before, oldest]| before.digest() ^ oldest.digest().rotate_left(32));
        let cell = Self { chain, token: token.id, position, precision: token.precision.code() };
        Self { chain: cell.digest(), ..cell }
    }

    fn digest(&self) -> u64 {
        let place = u64::from(self.position) << 32 | u64::from(self.token) << 8 | u64::from(self.precision);
        mix(self.chain ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

#[derive(Debug, Clone)]
struct Slot {
    tables: Vec<Vec<Option<BlockId>>>,
    sampler: SlotSampler,
    last_sample: Option<TokenId>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct TokenBackend {
    description: DeviceDescription,
    /// Per group, `[blocks * block_tokens]`.
    cells: Vec<Vec<Cell>>,
    slots: BTreeMap<SlotId, Slot>,
    /// The submitted step and its slots as they will be.
    open: Option<(StepPlan, BTreeMap<SlotId, Option<Slot>>)>,
    faults: Faults,
    is_lost: bool,
    copies: Vec<CopyDone>,
    copies_begun: u64,
}

impl TokenBackend {
    /// A device of that description, empty.
    pub fn new(description: DeviceDescription) -> Self {
        let cells = |group: &KvGroup| vec![Cell::default(); (group.blocks * description.block_tokens) as usize];
        Self {
            cells: description.kv_groups.iter().map(cells).collect(),
            slots: BTreeMap::new(),
            open: None,
            faults: Faults::default(),
            is_lost: false,
            copies: Vec::new(),
            copies_begun: 0,
            description,
        }
    }

    /// The means to make it fail.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }

    fn lose(&mut self) {
        self.is_lost = true;
        self.open = None;
        self.slots.clear();
        self.cells.iter_mut().for_each(|cells| cells.fill(Cell::default()));
    }

    /// The slots that a plan changes, as they will be; `None` for one that is closed.
    fn change_slots(&self, plan: &StepPlan) -> Result<BTreeMap<SlotId, Option<Slot>>, BackendError> {
        let mut changed: BTreeMap<SlotId, Option<Slot>> = BTreeMap::new();
        for change in &plan.slots {
            match change {
                SlotChange::Open { slot, sampling } => {
                    require(slot.0 < self.description.slots, || format!("{slot:?} does not exist"))?;
                    let is_open = changed.get(slot).map_or(self.slots.contains_key(slot), Option::is_some);
                    require(!is_open, || format!("{slot:?} is open"))?;
                    let sampler = SlotSampler::new(sampling, self.description.vocab_size)?;
                    let tables = vec![Vec::new(); self.cells.len()];
                    changed.insert(*slot, Some(Slot { tables, sampler, last_sample: None }));
                }
                SlotChange::Close { slot } => {
                    let is_open = changed.get(slot).map_or(self.slots.contains_key(slot), Option::is_some);
                    require(is_open, || format!("{slot:?} is closed"))?;
                    changed.insert(*slot, None);
                }
                SlotChange::Table(table) => {
                    let current = changed.entry(table.slot).or_insert_with(|| self.slots.get(&table.slot).cloned());
                    let (Some(slot), Some(group)) = (current, self.description.kv_groups.get(usize::from(table.group)))
                    else {
                        return Err(rejected(format!("a table of {:?}, group {}", table.slot, table.group)));
                    };
                    require(table.blocks.iter().all(|block| block.0 < group.blocks), || "no such block".to_owned())?;
                    let entries = &mut slot.tables[usize::from(table.group)];
                    let end = table.first as usize + table.blocks.len();
                    entries.resize(entries.len().max(end), None);
                    for (entry, block) in entries[table.first as usize..].iter_mut().zip(&table.blocks) {
                        *entry = Some(*block);
                    }
                }
            }
        }
        Ok(changed)
    }

    fn check_rows(&self, plan: &StepPlan, changed: &BTreeMap<SlotId, Option<Slot>>) -> Result<(), BackendError> {
        let limits = self.description.limits;
        let rows: usize = plan.sequences.iter().map(|sequence| sequence.inputs.len()).sum();
        require(rows <= limits.rows as usize, || format!("{rows} rows"))?;
        require(plan.sequences.len() <= limits.sequences as usize, || format!("{} sequences", plan.sequences.len()))?;
        let (mut seen, mut written) = (BTreeSet::new(), BTreeSet::new());
        let sources: BTreeSet<_> = plan.copies.iter().map(|copy| (copy.group, copy.from)).collect();
        for copy in &plan.copies {
            let blocks = self.description.kv_groups.get(usize::from(copy.group)).map_or(0, |group| group.blocks);
            require(copy.from.0 < blocks && copy.to.0 < blocks, || format!("{copy:?} is outside the pool"))?;
            require(!sources.contains(&(copy.group, copy.to)), || format!("{copy:?} overwrites a source"))?;
        }
        for sequence in &plan.sequences {
            require(seen.insert(sequence.slot), || format!("{:?} is there twice", sequence.slot))?;
            let slot = changed.get(&sequence.slot).map_or(self.slots.get(&sequence.slot), Option::as_ref);
            let Some(slot) = slot else { return Err(rejected(format!("{:?} is closed", sequence.slot))) };
            self.check_sequence(sequence, slot)?;
            let end = sequence.start + sequence.inputs.len() as u32;
            let entries = sequence.start / self.description.block_tokens..=(end - 1) / self.description.block_tokens;
            for ((group, table), shape) in (0_u16..).zip(&slot.tables).zip(&self.description.kv_groups) {
                let first = first_visible(sequence.start, shape.window) / self.description.block_tokens;
                let unset =
                    (first..*entries.start()).find(|entry| table.get(*entry as usize).copied().flatten().is_none());
                require(unset.is_none(), || format!("{:?} sees entry {unset:?}, which is not set", sequence.slot))?;
                for entry in entries.clone() {
                    let Some(block) = table.get(entry as usize).copied().flatten() else {
                        return Err(rejected(format!("{:?} has no block for entry {entry}", sequence.slot)));
                    };
                    require(written.insert((group, block)), || format!("{block:?} has two writers"))?;
                    require(!sources.contains(&(group, block)), || format!("{block:?} is a source and written"))?;
                }
            }
        }
        Ok(())
    }

    fn check_sequence(&self, sequence: &SequenceStep, slot: &Slot) -> Result<(), BackendError> {
        let rows = sequence.inputs.len() as u32;
        require(rows > 0, || "no rows".to_owned())?;
        require(sequence.start + rows <= self.description.limits.context, || "beyond the context".to_owned())?;
        require(self.description.precisions.contains(&sequence.precision), || "unknown precision".to_owned())?;
        require(sequence.destination == KvDestination::Pool, || "this device has no scratch".to_owned())?;
        let known = |input: &RowInput| match input {
            RowInput::Token(token) => *token < self.description.vocab_size,
            RowInput::LastSample => slot.last_sample.is_some(),
        };
        require(sequence.inputs.iter().all(known), || "unknown token".to_owned())?;
        let rising = sequence.outputs.windows(2).all(|pair| pair[0].row < pair[1].row);
        require(rising && sequence.outputs.iter().all(|output| output.row < rows), || "wrong outputs".to_owned())
    }

    /// Slot changes and copies.
    fn begin(&mut self, plan: &StepPlan, changed: BTreeMap<SlotId, Option<Slot>>) {
        for (id, slot) in changed {
            match slot {
                Some(slot) => drop(self.slots.insert(id, slot)),
                None => drop(self.slots.remove(&id)),
            }
        }
        let size = self.description.block_tokens as usize;
        for copy in &plan.copies {
            let (from, to) = (copy.from.0 as usize * size, copy.to.0 as usize * size);
            self.cells[usize::from(copy.group)].copy_within(from..from + size, to);
        }
    }

    /// The rows of one sequence; how many cells its samples read is added to `visible`.
    fn run(
        &mut self,
        sequence: &SequenceStep,
        masks: &[(SlotId, u32, TokenMask)],
        visible: &mut u64,
    ) -> Option<SequenceOutput> {
        let slot = self.slots.get_mut(&sequence.slot)?;
        let size = self.description.block_tokens;
        let at = |table: &[Option<BlockId>], position: u32| {
            let block = table.get((position / size) as usize).copied().flatten();
            block.map(|block| (block.0 * size + position % size) as usize)
        };
        let mut output = SequenceOutput { slot: sequence.slot, samples: Vec::new(), logits: Vec::new() };
        let mut requests = sequence.outputs.iter().peekable();
        for (row, input) in (0_u32..).zip(&sequence.inputs) {
            let position = sequence.start + row;
            let id = match input {
                RowInput::Token(token) => *token,
                RowInput::LastSample => slot.last_sample?,
            };
            let token = LogToken { id, precision: sequence.precision };
            for (group, cells) in self.cells.iter_mut().enumerate() {
                let first = first_visible(position, self.description.kv_groups[group].window);
                let cell_at = |position| Some(&cells[at(&slot.tables[group], position)?]);
                let seen = if first < position { Some([cell_at(position - 1)?, cell_at(first)?]) } else { None };
                let cell = Cell::new(group, seen, token, position);
                cells[at(&slot.tables[group], position)?] = cell;
            }
            let Some(request) = requests.next_if(|request| request.row == row) else { continue };
            let mut hash = 0;
            for (group, cells) in self.cells.iter().enumerate() {
                let window = self.description.kv_groups[group].window;
                let first = first_visible(position, window);
                *visible += u64::from(position + 1 - first);
                let table = &slot.tables[group];
                hash = see(
                    hash,
                    (first..=position).map(|position| at(table, position).map_or(Cell::default(), |at| cells[at])),
                );
            }
            let logits = logits(hash, self.description.vocab_size);
            if request.request != OutputRequest::Logits {
                let mask = masks.iter().find(|(id, at, _)| *id == sequence.slot && *at == row).map(|(.., mask)| mask);
                let sample = slot.sampler.sample(&logits, position + 1, mask);
                slot.last_sample = Some(sample.id);
                output.samples.push(sample);
            }
            if request.request != OutputRequest::Sample {
                output.logits.push((row, logits));
            }
        }
        (!sequence.outputs.is_empty()).then_some(output)
    }
}

impl Backend for TokenBackend {
    fn describe(&self) -> &DeviceDescription {
        &self.description
    }

    fn submit(&mut self, plan: &StepPlan) -> Result<StepTicket, BackendError> {
        let fault = self.faults.take(Call::Submit);
        if let Some(BackendError::Lost(_)) = &fault {
            self.lose();
        } else if self.is_lost {
            self.is_lost = false;
            self.description.epoch += 1;
        }
        if let Some(error @ (BackendError::Lost(_) | BackendError::OutOfMemory(_) | BackendError::Rejected(_))) = fault
        {
            return Err(error);
        }
        require(self.open.is_none(), || "a step is open".to_owned())?;
        let changed = self.change_slots(plan)?;
        self.check_rows(plan, &changed)?;
        if let Some(error) = fault {
            self.begin(plan, changed);
            return Err(error);
        }
        self.open = Some((plan.clone(), changed));
        Ok(StepTicket(plan.id))
    }

    fn collect(&mut self, step: StepTicket, late: &LateInputs) -> Result<StepOutput, BackendError> {
        let fault = self.faults.take(Call::Collect);
        if let Some(error @ BackendError::Lost(_)) = fault {
            self.lose();
            return Err(error);
        }
        let Some((plan, _)) = self.open.as_ref().filter(|(plan, _)| plan.id == step.0) else {
            return Err(rejected(format!("step {} is not open", step.0.0)));
        };
        // A refused mask leaves the step open, as on every device.
        for (slot, row, mask) in &late.masks {
            check_mask(mask, self.description.vocab_size)?;
            let samples = |sequence: &SequenceStep| sequence.outputs.iter().any(|output| output.row == *row);
            let is_sampled = plan.sequences.iter().any(|sequence| sequence.slot == *slot && samples(sequence));
            require(is_sampled, || format!("a mask for row {row} of {slot:?}"))?;
        }
        let Some((plan, changed)) = self.open.take() else { return Err(rejected("no step is open".to_owned())) };
        if let Some(error @ (BackendError::OutOfMemory(_) | BackendError::Rejected(_))) = fault {
            return Err(error);
        }
        self.begin(&plan, changed);
        let (mut sequences, mut visible, mut rows) = (Vec::new(), 0, 0);
        for sequence in &plan.sequences {
            rows += sequence.inputs.len() as u64;
            sequences.extend(self.run(sequence, &late.masks, &mut visible));
        }
        match fault {
            // The rows were written, wrongly.
            Some(error) => {
                for sequence in &plan.sequences {
                    let size = self.description.block_tokens;
                    let Some(slot) = self.slots.get(&sequence.slot) else { continue };
                    for position in (sequence.start..).take(sequence.inputs.len()) {
                        for (table, cells) in slot.tables.iter().zip(&mut self.cells) {
                            if let Some(block) = table[(position / size) as usize] {
                                cells[(block.0 * size + position % size) as usize] = Cell::default();
                            }
                        }
                    }
                }
                Err(error)
            }
            None => Ok(StepOutput {
                id: plan.id,
                sequences,
                device_time_us: 200 + 50 * rows + visible / 16,
                modelled: self.description.modelled.as_ref().map(|_| modelled(&plan)),
            }),
        }
    }

    fn begin_copy(&mut self, copy: BlockCopy) -> Result<CopyTicket, BackendError> {
        let size = self.description.block_tokens as usize;
        let group = usize::from(copy.group);
        let blocks = self.description.kv_groups.get(group).map_or(0, |group| group.blocks);
        require(copy.block.0 < blocks, || format!("{:?} is outside the pool", copy.block))?;
        let start = copy.block.0 as usize * size;
        let cells = &mut self.cells[group][start..start + size];
        let result = match copy.direction {
            CopyDirection::Export => Some(cells.iter().flat_map(to_bytes).collect()),
            CopyDirection::Import(bytes) => {
                require(bytes.len() == size * CELL_BYTES, || format!("{} bytes for a block", bytes.len()))?;
                for (cell, bytes) in cells.iter_mut().zip(bytes.chunks_exact(CELL_BYTES)) {
                    *cell = from_bytes(bytes);
                }
                None
            }
        };
        self.copies_begun += 1;
        let ticket = CopyTicket(self.copies_begun);
        self.copies.push(CopyDone { ticket, result: Ok(result) });
        Ok(ticket)
    }

    fn poll_copies(&mut self) -> Vec<CopyDone> {
        std::mem::take(&mut self.copies)
    }
}

/// What a run samples on a device of that description when nothing ends it early, from its log alone: no blocks, no batch, no
/// chunks. Ends with a stop token, `max_tokens`, a log of `context` tokens, or where its guide fails.
///
/// # Errors
/// [`BackendError::Rejected`] when the run's sampling settings are out of range.
pub fn expected_tokens(device: &DeviceDescription, run: &Run, context: u32) -> Result<Vec<TokenId>, BackendError> {
    let Some(sample) = &run.sample else { return Ok(Vec::new()) };
    let mut sampled = BTreeMap::new();
    sample.sampled_before.iter().for_each(|token| *sampled.entry(*token).or_default() += 1);
    let sampling = SlotSampling {
        params: sample.params.clone(),
        seed: sample.seed,
        context: run.log.iter().map(|token| token.id).collect(),
        sampled: sampled.into_iter().collect(),
    };
    let mut sampler = SlotSampler::new(&sampling, device.vocab_size)?;
    let mut cells: Vec<Vec<Cell>> = vec![Vec::new(); device.kv_groups.len()];
    let mut log = run.log.clone();
    let mut guide = sample.guide.clone();
    let mut tokens = Vec::new();
    while tokens.len() < sample.max_tokens as usize && log.len() < context as usize {
        let mut hash = 0;
        for (group, cells) in cells.iter_mut().enumerate() {
            let window = device.kv_groups[group].window;
            for (position, token) in (0_u32..).zip(&log).skip(cells.len()) {
                let first = first_visible(position, window);
                let seen = (first < position).then(|| [&cells[position as usize - 1], &cells[first as usize]]);
                let cell = Cell::new(group, seen, *token, position);
                cells.push(cell);
            }
            let first = first_visible(log.len() as u32 - 1, window);
            hash = see(hash, cells[first as usize..].iter().copied());
        }
        let Ok(mask) = guide.as_mut().map(|guide| guide.mask()).transpose() else { break };
        let drawn = sampler.sample(&logits(hash, device.vocab_size), log.len() as u32, mask.as_ref()).id;
        tokens.push(drawn);
        log.push(LogToken { id: drawn, precision: sample.precision });
        if sample.stop_tokens.contains(&drawn) || guide.as_mut().is_some_and(|guide| guide.accept(drawn).is_err()) {
            break;
        }
    }
    Ok(tokens)
}

fn first_visible(position: u32, window: Option<u32>) -> u32 {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

fn see(hash: u64, cells: impl Iterator<Item = Cell>) -> u64 {
    cells.fold(hash, |hash, cell| (hash.rotate_left(5) ^ cell.digest()).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn logits(hash: u64, vocab_size: u32) -> Vec<f32> {
    (0..u64::from(vocab_size)).map(|token| (mix(hash ^ mix(token)) >> 40) as f32 / 2_097_152.0 - 4.0).collect()
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn to_bytes(cell: &Cell) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(CELL_BYTES);
    bytes.extend(cell.chain.to_le_bytes());
    bytes.extend(cell.token.to_le_bytes());
    bytes.extend(cell.position.to_le_bytes());
    bytes.push(cell.precision);
    bytes
}

fn from_bytes(bytes: &[u8]) -> Cell {
    let number = |from: usize, to: usize| bytes[from..to].iter().rev().fold(0_u64, |n, byte| n << 8 | u64::from(*byte));
    Cell { chain: number(0, 8), token: number(8, 12) as u32, position: number(12, 16) as u32, precision: bytes[16] }
}

fn require(holds: bool, problem: impl FnOnce() -> String) -> Result<(), BackendError> {
    if holds { Ok(()) } else { Err(rejected(problem())) }
}

fn rejected(problem: String) -> BackendError {
    BackendError::Rejected(problem)
}
