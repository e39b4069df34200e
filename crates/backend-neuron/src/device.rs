//! The device: the [`Backend`] of this crate.
//!
//! In: plans, late masks, block copies. Out: samples, logits, block bytes. Deliberately not here: the check of a plan (`holdfast_backend::plan`) and the
//! arithmetic (`forward`). A step is checked when it is submitted, and computed when it is collected or beside its owner before.

use std::collections::VecDeque;
use std::time::Instant;

use holdfast_backend::plan::{Prepared, PreparedSequence, Slots, check_copy};
use holdfast_backend::pools::share_out;
use holdfast_backend::samples::{Samplers, check_late};
use holdfast_backend::{Backend, BackendError, BlockCopy, CopyDirection, CopyDone, CopyTicket, StepTicket};
use holdfast_model::{DecoderConfig, Weights};
use holdfast_types::{
    DeviceDescription, KvGroup, LateInputs, ModelledStep, NumericsClass, Precision, RowInput, SequenceOutput,
    StepLimits, StepOutput, StepPlan,
};

use crate::aside::{Aside, Batch, Pass};
use crate::forward::{Forward, Row, Tables};
use crate::kv::{GroupPool, bytes_per_token_and_layer, layout_name};
use crate::program::{ChipModel, Span, stand_in};
use crate::{KvFormat, KvSize, NeuronError, NeuronSettings, WeightFormat};

/// Most block copies that ended and were not polled.
const COPIES_MAX: usize = 4_096;

/// One CPU device.
///
/// Owned by one thread, which computes together with the device's own. Steps run when they are collected, oldest first, but for one whose
/// owner has something else to do ([`Backend::start`]); block copies run at once, or when that one is done. It never fails on its own: `Lost` and `Fault` do not occur, its epoch stays 1.
#[derive(Debug)]
pub struct NeuronDevice {
    description: DeviceDescription,
    aside: Aside,
    slots: Slots,
    /// Samplers of open slots, as of the last step that ran.
    samplers: Samplers,
    open: VecDeque<Prepared>,
    /// The oldest open step runs, or has run, beside the device's owner.
    is_started: bool,
    copies: Vec<CopyDone>,
    next_copy: u64,
    /// Programs for the chip that it stands for.
    chip: Option<ChipModel>,
}

impl NeuronDevice {
    /// Packs a model's weights and sets the threads up. `weights` is not needed afterwards.
    ///
    /// # Errors
    /// [`NeuronError`]: a setting out of range, by name; a model that the kernels cannot compute; no threads.
    pub fn new(config: &DecoderConfig, weights: &Weights, settings: &NeuronSettings) -> Result<Self, NeuronError> {
        let mut description = Self::description(config, weights, settings)?;
        let chip = stand_in::chip(config, settings, &description)?;
        description.modelled = chip.as_ref().and_then(stand_in::describe);
        let context = description.limits.context as usize;
        let forward = Forward::new(config, weights, &description.kv_groups, context, settings)?;
        let block_tokens = settings.block_tokens as usize;
        // Scratch lies behind the pool: the rows of a step, and for each sequence a block begun and a block ended.
        let scratch = (settings.max_step_rows as usize).div_ceil(block_tokens) + 2 * settings.slots as usize;
        let kv = description
            .kv_groups
            .iter()
            .map(|group| {
                let blocks = group.blocks as usize + scratch;
                let (layers, format) = (group.layers.len(), settings.kv_format());
                GroupPool::new(format, blocks, layers, config.kv_heads, config.head_dim, block_tokens)
            })
            .collect();
        tracing::info!(device = description.name, isa = settings.isa.name(), class = %description.numerics_class, "device ready");
        Ok(Self {
            slots: Slots::new(description.slots),
            samplers: Samplers::new(description.slots),
            description,
            // With one thread in all, what its owner does beside would be no gain.
            aside: Aside::new(Pass { forward, kv }, settings.ordinal, settings.threads > 1)?,
            open: VecDeque::new(),
            is_started: false,
            copies: Vec::new(),
            next_copy: 1,
            chip,
        })
    }

    /// What a device would say of itself, but for the chip that it stands for, without making it.
    ///
    /// # Errors
    /// As for [`NeuronDevice::new`].
    pub fn description(
        config: &DecoderConfig,
        weights: &Weights,
        settings: &NeuronSettings,
    ) -> Result<DeviceDescription, NeuronError> {
        settings.check()?;
        describe(config, weights, settings)
    }

    /// All that comes before the forward pass of a step.
    fn begin(&mut self, step: &Prepared) -> Batch {
        self.samplers.apply(&step.samplers);
        let kv = &mut self.aside.pass().kv;
        for (group, from, to) in &step.copies {
            kv[*group].copy(*from, *to);
        }
        self.batch(step)
    }

    /// All that comes behind it.
    fn end(&mut self, step: &Prepared, late: &LateInputs) -> Vec<SequenceOutput> {
        let logits = self.aside.pass().forward.last_logits();
        let mut logits = logits.chunks_exact(self.description.vocab_size as usize);
        let asked = step.sequences.iter().filter(|sequence| !sequence.outputs.is_empty());
        asked.map(|sequence| self.samplers.output(sequence, &mut logits, late)).collect()
    }

    fn batch(&mut self, step: &Prepared) -> Batch {
        let mut batch = Batch::default();
        let mut scratch_used = 0;
        for (at, sequence) in step.sequences.iter().enumerate() {
            let mut tables = sequence.tables.clone();
            if sequence.scratch {
                scratch_used += self.scratch(sequence, scratch_used, &mut tables);
            }
            batch.tables.push(tables);
            batch.wanted.extend(sequence.outputs.iter().map(|output| batch.rows.len() + output.row as usize));
            let last = self.samplers.last(sequence.slot);
            for (input, position) in sequence.inputs.iter().zip(sequence.start..) {
                let token = match input {
                    RowInput::Token(token) => *token,
                    // The plan was checked: an earlier step has drawn.
                    RowInput::LastSample => last.unwrap_or_default(),
                };
                let narrow = sequence.precision == Precision::Int4;
                batch.rows.push(Row { token, position, narrow, sequence: at });
            }
        }
        batch
    }

    /// Gives a sequence scratch blocks from `used` on in the place of the pool's, and returns how many. What the pool's
    /// block holds before the first row is copied, so that rows in scratch see it and the pool never sees them.
    fn scratch(&mut self, sequence: &PreparedSequence, used: u32, tables: &mut Tables) -> u32 {
        let block_tokens = self.description.block_tokens;
        let end = sequence.start + sequence.inputs.len() as u32;
        let first = sequence.start / block_tokens;
        let count = end.div_ceil(block_tokens) - first;
        let kv = &mut self.aside.pass().kv;
        for (group, table) in tables.iter_mut().enumerate() {
            let base = self.description.kv_groups[group].blocks + used;
            if let Some(begun) = table.get(first as usize) {
                kv[group].copy(*begun, base);
            }
            table.truncate(first as usize);
            table.extend(base..base + count);
        }
        count
    }
}

impl Backend for NeuronDevice {
    fn describe(&self) -> &DeviceDescription {
        &self.description
    }

    fn submit(&mut self, plan: &StepPlan) -> Result<StepTicket, BackendError> {
        if self.open.len() >= self.description.limits.in_flight as usize {
            return rejected(format!("{} steps are open, which is all that the device takes", self.open.len()));
        }
        if self.open.iter().any(|step| step.id == plan.id) {
            return rejected(format!("step {} is open already", plan.id.0));
        }
        let step = self.slots.prepare(plan, &self.description)?;
        self.open.push_back(step);
        Ok(StepTicket(plan.id))
    }

    fn start(&mut self, ticket: &StepTicket) {
        let is_next = !self.is_started && self.aside.has_thread();
        let Some(step) = self.open.pop_front_if(|step| is_next && step.id == ticket.0) else { return };
        let batch = self.begin(&step);
        self.aside.send_off(batch);
        self.open.push_front(step);
        self.is_started = true;
    }

    #[expect(clippy::disallowed_methods, reason = "a device measures its own time; nothing is decided by it")]
    fn collect(&mut self, ticket: StepTicket, late: &LateInputs) -> Result<StepOutput, BackendError> {
        match self.open.front() {
            Some(step) if step.id == ticket.0 => check_late(step, late, self.description.vocab_size)?,
            _ => return rejected(format!("step {} is not the oldest open step", ticket.0.0)),
        }
        let Some(step) = self.open.pop_front() else { return rejected("no step is open") };
        let beside = std::mem::take(&mut self.is_started).then(|| self.aside.wait());
        let begun = Instant::now();
        if beside.is_none() {
            let batch = self.begin(&step);
            self.aside.pass().run(&batch);
        }
        let sequences = self.end(&step, late);
        let device_time_us =
            u64::try_from((beside.unwrap_or_default() + begun.elapsed()).as_micros()).unwrap_or(u64::MAX);
        let modelled = self.chip.as_mut().and_then(|chip| modelled(chip, &step));
        Ok(StepOutput { id: step.id, sequences, device_time_us, modelled })
    }

    fn begin_copy(&mut self, copy: BlockCopy) -> Result<CopyTicket, BackendError> {
        check_copy(&copy, &self.description, &self.open)?;
        let (group, block) = (usize::from(copy.group), copy.block.0);
        if self.copies.len() >= COPIES_MAX {
            return rejected(format!("{COPIES_MAX} copies ended and were not polled"));
        }
        let kv = &mut self.aside.pass().kv[group];
        let result = match copy.direction {
            CopyDirection::Export => Some(kv.export(block)),
            CopyDirection::Import(bytes) => {
                kv.import(block, &bytes);
                None
            }
        };
        let ticket = CopyTicket(self.next_copy);
        self.next_copy += 1;
        self.copies.push(CopyDone { ticket, result: Ok(result) });
        Ok(ticket)
    }

    fn poll_copies(&mut self) -> Vec<CopyDone> {
        std::mem::take(&mut self.copies)
    }
}

/// What a step would have taken on the chip.
fn modelled(chip: &mut ChipModel, step: &Prepared) -> Option<ModelledStep> {
    let span = |sequence: &PreparedSequence| {
        let rows = sequence.inputs.len() as u32;
        Span { rows, context: sequence.start + rows }
    };
    let spans: Vec<Span> = step.sequences.iter().map(span).collect();
    stand_in::step(chip, &spans)
}

fn rejected<T>(why: impl Into<String>) -> Result<T, BackendError> {
    Err(BackendError::Rejected(why.into()))
}

fn describe(
    config: &DecoderConfig,
    weights: &Weights,
    settings: &NeuronSettings,
) -> Result<DeviceDescription, NeuronError> {
    let (weights_class, precisions) = match settings.weights {
        WeightFormat::F32 => ("f32", vec![Precision::Native]),
        WeightFormat::Bf16 => ("bf16", vec![Precision::Native]),
        WeightFormat::Nested => ("nested", vec![Precision::Int8, Precision::Int4]),
    };
    let kv_class = match settings.kv_format() {
        KvFormat::F32 => "kv-f32",
        KvFormat::Bf16 => "kv-bf16",
        KvFormat::Int8 => "kv-int8",
    };
    let mut kv_groups: Vec<KvGroup> = Vec::new();
    for (number, layer) in config.layers.iter().enumerate() {
        let number = u16::try_from(number).map_err(|_| NeuronError::Model("more than 65,536 layers".to_owned()))?;
        match kv_groups.iter_mut().find(|group| group.window == layer.window) {
            Some(group) => group.layers.push(number),
            None => {
                kv_groups.push(KvGroup { layers: vec![number], window: layer.window, blocks: 0, bytes_per_block: 0 })
            }
        }
    }
    let bytes_per_token_and_layer =
        bytes_per_token_and_layer(settings.kv_format(), config.kv_heads, config.head_dim) as u64;
    for group in &mut kv_groups {
        group.bytes_per_block =
            group.layers.len() as u64 * bytes_per_token_and_layer * u64::from(settings.block_tokens);
    }
    let context = settings.context.unwrap_or(u32::MAX).min(config.context_limit);
    let mut limits =
        StepLimits { rows: settings.max_step_rows, sequences: settings.slots, context, in_flight: settings.in_flight };
    let is_shared_out = match settings.kv {
        KvSize::Blocks(blocks) => {
            kv_groups.iter_mut().for_each(|group| group.blocks = blocks);
            true
        }
        // Ids above the most that it gives are kept free for scratch.
        KvSize::Bytes(most) => share_out(&mut kv_groups, most, settings.block_tokens, limits),
    };
    if !is_shared_out {
        let bytes: u64 = kv_groups.iter().map(|group| group.bytes_per_block).sum();
        let rule = format!("one block of {} tokens takes {bytes} bytes", settings.block_tokens);
        return Err(NeuronError::Setting { setting: "kv_bytes", value: format!("{:?}", settings.kv), rule });
    }
    // Behind a window blocks come back, so only a group without one bounds the context.
    let unbounded = kv_groups.iter().filter(|group| group.window.is_none());
    let held = unbounded.map(|group| group.blocks.saturating_mul(settings.block_tokens)).min();
    limits.context = limits.context.min(held.unwrap_or(u32::MAX));
    let threads = if settings.threads == 1 { "1 thread".to_owned() } else { format!("{} threads", settings.threads) };
    Ok(DeviceDescription {
        name: format!("neuron:{} (cpu, {threads})", settings.ordinal),
        backend: "neuron".to_owned(),
        numerics_class: NumericsClass::new(&format!("neuron/{weights_class}/{kv_class}/r3")),
        weights: weights.digest(),
        kv_layout: layout_name(settings.kv_format(), settings.block_tokens),
        block_tokens: settings.block_tokens,
        kv_groups,
        slots: settings.slots,
        limits,
        vocab_size: config.vocab_size,
        precisions,
        price_usd_per_hour: settings.price_usd_per_hour,
        modelled: None,
        epoch: 1,
    })
}
