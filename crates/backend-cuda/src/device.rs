//! The device: the [`Backend`] of this crate.
//!
//! In: plans, late masks, block copies. Out: samples, logits, block bytes. Deliberately not here: the check of a plan (`holdfast_backend::plan`), the
//! launches (`forward`) and the driver (`gpu`). A step is launched when it is submitted and waited for when it is collected; samples are drawn on the
//! host, with the shared sampler.

use std::time::Instant;

use holdfast_backend::plan::{Prepared, PreparedSequence, Slots, check_copy};
use holdfast_backend::pools::share_out;
use holdfast_backend::samples::{Samplers, check_late};
use holdfast_backend::{Backend, BackendError, BlockCopy, CopyDirection, CopyDone, CopyTicket, StepTicket};
use holdfast_model::{DecoderConfig, Weights};
use holdfast_types::{
    DeviceDescription, Digest, KvGroup, LateInputs, NumericsClass, Precision, RowInput, StepLimits, StepOutput,
    StepPlan,
};

use crate::card::{Address, Card, CardError, CopyId};
use crate::decoder::{Decoder, check, weight_bytes};
use crate::forward::{Forward, padded_head};
use crate::gpu::Gpu;
use crate::kernels::Pool;
use crate::step::{Arranged, SequenceRows};
use crate::{CudaError, CudaSettings, KvSize, WeightFormat};

/// Most block copies that were begun and not polled.
const COPIES_MAX: usize = 4_096;
/// Steps submitted and not collected. A second would wait for the first one's samples.
const IN_FLIGHT: u32 = 1;
/// Bytes of an element of a key or a value.
const ELEMENT: u64 = 2;

/// One GPU.
///
/// Owned by one thread. After `Lost` it answers nothing else: its driver's context cannot be used again, and the process is to be started again,
/// which loses no session.
pub struct CudaDevice {
    card: Box<dyn Card>,
    description: DeviceDescription,
    forward: Forward,
    pools: Vec<GroupPool>,
    slots: Slots,
    samplers: Samplers,
    open: Option<OpenStep>,
    copies: Vec<PendingCopy>,
    next_copy: u64,
    lost: Option<String>,
}

/// A group's blocks.
#[derive(Debug, Clone, Copy)]
struct GroupPool {
    start: Address,
    block_bytes: u64,
}

/// A step that was launched.
struct OpenStep {
    prepared: Prepared,
    arranged: Arranged,
    /// Wanted rows whose logits were launched.
    launched: u32,
    begun: Instant,
}

/// A block copy under way.
struct PendingCopy {
    ticket: CopyTicket,
    copy: CopyId,
    group: usize,
    block: u32,
    is_import: bool,
}

impl std::fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CudaDevice({})", self.description.name)
    }
}

/// Where weights come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum WeightSource<'a> {
    /// A model.
    Model(&'a Weights),
    /// Made up, from a seed.
    Random(u64),
}

impl WeightSource<'_> {
    fn digest(self) -> Digest {
        match self {
            Self::Model(weights) => weights.digest(),
            Self::Random(seed) => Digest(*blake3::hash(format!("made up from {seed}").as_bytes()).as_bytes()),
        }
    }
}

impl GroupPool {
    fn block(self, block: u32) -> Address {
        self.start.plus(u64::from(block) * self.block_bytes)
    }
}

impl CudaDevice {
    /// Takes a card and brings a model's weights to it. `weights` is not needed afterwards.
    ///
    /// # Errors
    /// [`CudaError`]: a setting out of range, a library or a card that is missing, a model that the kernels cannot compute, by name.
    pub fn new(config: &DecoderConfig, weights: &Weights, settings: &CudaSettings) -> Result<Self, CudaError> {
        settings.check()?;
        check(config)?;
        let (gpu, info) = Gpu::open(settings)?;
        let name = format!("cuda:{} ({})", info.ordinal, info.name);
        Self::on(Box::new(gpu), &name, config, WeightSource::Model(weights), settings)
    }

    /// A device with weights that are made up on the card, for benchmarks of shapes that no file is at hand for.
    ///
    /// # Errors
    /// As for [`CudaDevice::new`].
    pub fn with_random_weights(config: &DecoderConfig, seed: u64, settings: &CudaSettings) -> Result<Self, CudaError> {
        settings.check()?;
        check(config)?;
        let (gpu, info) = Gpu::open(settings)?;
        let name = format!("cuda:{} ({})", info.ordinal, info.name);
        Self::on(Box::new(gpu), &name, config, WeightSource::Random(seed), settings)
    }

    /// The same on a card that was opened.
    pub(crate) fn on(
        mut card: Box<dyn Card>,
        name: &str,
        config: &DecoderConfig,
        weights: WeightSource<'_>,
        settings: &CudaSettings,
    ) -> Result<Self, CudaError> {
        settings.check()?;
        check(config)?;
        let (free, total) = card.memory()?;
        let needed = weight_bytes(config, settings.weights);
        if needed > free {
            let advice = "Serve a smaller model, or set device.weights = \"nested\"";
            return Err(CudaError::Memory { what: "weights", needed, free, total, advice });
        }
        let mut description = describe(name, config, weights.digest(), settings)?;
        let context = description.limits.context;
        let (format, positions) = (settings.weights, context as usize);
        let decoder = match weights {
            WeightSource::Model(weights) => Decoder::load(&mut *card, config, weights, format, positions)?,
            WeightSource::Random(seed) => Decoder::random(&mut *card, config, format, positions, seed)?,
        };
        let mut forward = Forward::new(&mut *card, config, decoder, &description.kv_groups, context, settings)?;
        let pools = take_pools(&mut *card, config, settings, &mut description)?;
        let width = padded_head(config.head_dim) as u32;
        forward.set_pools(
            pools
                .iter()
                .map(|pool| Pool {
                    elements: pool.start,
                    block_stride: (pool.block_bytes / ELEMENT) as u32,
                    block_tokens: settings.block_tokens,
                    layer: 0,
                    kv_heads: config.kv_heads as u32,
                    head_dim: config.head_dim as u32,
                    width,
                })
                .collect(),
        );
        tracing::info!(device = description.name, class = %description.numerics_class, "device ready");
        Ok(Self {
            slots: Slots::new(description.slots),
            samplers: Samplers::new(description.slots),
            card,
            description,
            forward,
            pools,
            open: None,
            copies: Vec::new(),
            next_copy: 1,
            lost: None,
        })
    }

    /// What a failure of the card means for the call; a loss is remembered.
    fn failed(&mut self, error: CardError) -> BackendError {
        match error {
            CardError::OutOfMemory(why) => BackendError::OutOfMemory(why),
            CardError::Fault(why) => BackendError::Fault(why),
            CardError::Lost(why) => {
                tracing::error!(
                    device = self.description.name,
                    why,
                    "the device is lost: start the process again to use it"
                );
                self.lost = Some(why.clone());
                BackendError::Lost(why)
            }
        }
    }

    fn alive(&self) -> Result<(), BackendError> {
        match &self.lost {
            Some(why) => Err(BackendError::Lost(why.clone())),
            None => Ok(()),
        }
    }

    /// Launches a step up to its first logits.
    fn begin(&mut self, step: &Prepared) -> Result<(Arranged, u32), CardError> {
        for copy in &self.copies {
            let waits = step.writes(copy.group, copy.block) || (copy.is_import && step.reads(copy.group, copy.block));
            if waits {
                self.card.order_after(copy.copy)?;
            }
        }
        for (group, from, to) in &step.copies {
            let pool = self.pools[*group];
            self.card.copy(pool.block(*from), pool.block(*to), pool.block_bytes)?;
        }
        let sequences = self.sequences(step)?;
        let arranged = self.forward.shape().arrange(&sequences);
        self.forward.run(&mut *self.card, &arranged)?;
        let launched = match arranged.wanted.count {
            0 => 0,
            _ => self.forward.logits(&mut *self.card, &arranged, 0)?,
        };
        Ok((arranged, launched))
    }

    fn sequences(&mut self, step: &Prepared) -> Result<Vec<SequenceRows>, CardError> {
        let mut scratch_used = 0;
        let mut all = Vec::with_capacity(step.sequences.len());
        for sequence in &step.sequences {
            let mut tables = sequence.tables.clone();
            if sequence.scratch {
                scratch_used += self.scratch(sequence, scratch_used, &mut tables)?;
            }
            let last = self.samplers.last(sequence.slot);
            let token = |input: &RowInput| match input {
                RowInput::Token(token) => *token,
                // The plan was checked, and the step that draws is collected: at most one is open.
                RowInput::LastSample => last.unwrap_or_default(),
            };
            all.push(SequenceRows {
                start: sequence.start,
                tokens: sequence.inputs.iter().map(token).collect(),
                narrow: sequence.precision == Precision::Int4,
                tables,
                wanted: sequence.outputs.iter().map(|output| output.row).collect(),
            });
        }
        Ok(all)
    }

    /// Gives a sequence scratch blocks from `used` on in the place of the pool's, and returns how many. What the pool's block holds before the first
    /// row is copied, so that rows in scratch see it and the pool never sees them.
    fn scratch(&mut self, sequence: &PreparedSequence, used: u32, tables: &mut [Vec<u32>]) -> Result<u32, CardError> {
        let block_tokens = self.description.block_tokens;
        let end = sequence.start + sequence.inputs.len() as u32;
        let first = sequence.start / block_tokens;
        let count = end.div_ceil(block_tokens) - first;
        for (group, table) in tables.iter_mut().enumerate() {
            let base = self.description.kv_groups[group].blocks + used;
            if let Some(begun) = table.get(first as usize) {
                let pool = self.pools[group];
                self.card.copy(pool.block(*begun), pool.block(base), pool.block_bytes)?;
            }
            table.truncate(first as usize);
            table.extend(base..base + count);
        }
        Ok(count)
    }

    /// Waits for the logits of a step, and launches those that had no room.
    fn finish(&mut self, step: &OpenStep) -> Result<Vec<f32>, CardError> {
        let mut launched = step.launched;
        if launched == 0 {
            // A step without logits is done when everything before this is.
            self.card.download(Address::NULL, &mut [])?;
        }
        let mut logits = self.forward.bring_logits(&mut *self.card, launched)?;
        while launched < step.arranged.wanted.count {
            let more = self.forward.logits(&mut *self.card, &step.arranged, launched)?;
            logits.extend(self.forward.bring_logits(&mut *self.card, more)?);
            launched += more;
        }
        Ok(logits)
    }
}

impl Backend for CudaDevice {
    fn describe(&self) -> &DeviceDescription {
        &self.description
    }

    #[expect(clippy::disallowed_methods, reason = "a device measures its own time; nothing is decided by it")]
    fn submit(&mut self, plan: &StepPlan) -> Result<StepTicket, BackendError> {
        self.alive()?;
        if self.open.is_some() {
            return rejected("a step is open, which is all that the device takes");
        }
        let checked = self.slots.check(plan, &self.description)?;
        let begun = Instant::now();
        let (prepared, undo) = self.slots.follow(checked);
        match self.begin(&prepared) {
            Ok((arranged, launched)) => {
                // Not before: a slot that the plan opens has no last sample that a row could name.
                self.samplers.apply(&prepared.samplers);
                self.open = Some(OpenStep { prepared, arranged, launched, begun });
                Ok(StepTicket(plan.id))
            }
            Err(error) => {
                self.slots.restore(undo);
                Err(self.failed(error))
            }
        }
    }

    fn collect(&mut self, ticket: StepTicket, late: &LateInputs) -> Result<StepOutput, BackendError> {
        self.alive()?;
        match &self.open {
            Some(step) if step.prepared.id == ticket.0 => {
                check_late(&step.prepared, late, self.description.vocab_size)?
            }
            _ => return rejected(format!("step {} is not the oldest open step", ticket.0.0)),
        }
        let Some(step) = self.open.take() else { return rejected("no step is open") };
        let logits = match self.finish(&step) {
            Ok(logits) => logits,
            Err(error) => return Err(self.failed(error)),
        };
        let device_time_us = u64::try_from(step.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut logits = logits.chunks_exact(self.description.vocab_size as usize);
        let asked = step.prepared.sequences.iter().filter(|sequence| !sequence.outputs.is_empty());
        let sequences = asked.map(|sequence| self.samplers.output(sequence, &mut logits, late)).collect();
        Ok(StepOutput { id: step.prepared.id, sequences, device_time_us, modelled: None })
    }

    fn begin_copy(&mut self, copy: BlockCopy) -> Result<CopyTicket, BackendError> {
        self.alive()?;
        check_copy(&copy, &self.description, self.open.as_ref().map(|step| &step.prepared))?;
        let (group, block) = (usize::from(copy.group), copy.block.0);
        if self.copies.len() >= COPIES_MAX {
            return rejected(format!("{COPIES_MAX} copies were begun and not polled"));
        }
        // Copies of one block happen in the order of the calls: they share a stream.
        let (pool, is_import) = (self.pools[group], matches!(copy.direction, CopyDirection::Import(_)));
        let begun = match copy.direction {
            CopyDirection::Export => self.card.begin_export(pool.block(block), pool.block_bytes),
            CopyDirection::Import(bytes) => self.card.begin_import(pool.block(block), &bytes),
        };
        let begun = begun.map_err(|error| self.failed(error))?;
        let ticket = CopyTicket(self.next_copy);
        self.next_copy += 1;
        self.copies.push(PendingCopy { ticket, copy: begun, group, block, is_import });
        Ok(ticket)
    }

    fn poll_copies(&mut self) -> Vec<CopyDone> {
        let mut done = Vec::new();
        let mut pending = Vec::new();
        for copy in std::mem::take(&mut self.copies) {
            let result = match (&self.lost, self.card.poll_copy(copy.copy)) {
                (Some(why), _) => Err(BackendError::Lost(why.clone())),
                (None, Ok(None)) => {
                    pending.push(copy);
                    continue;
                }
                (None, Ok(Some(bytes))) => Ok((!copy.is_import).then_some(bytes)),
                (None, Err(error)) => Err(self.failed(error)),
            };
            done.push(CopyDone { ticket: copy.ticket, result });
        }
        self.copies = pending;
        done
    }
}

fn rejected<T>(why: impl Into<String>) -> Result<T, BackendError> {
    Err(BackendError::Rejected(why.into()))
}

/// What the device is, with pools of no blocks yet.
fn describe(
    name: &str,
    config: &DecoderConfig,
    weights: Digest,
    settings: &CudaSettings,
) -> Result<DeviceDescription, CudaError> {
    let (weights_class, precisions) = match settings.weights {
        WeightFormat::Bf16 => ("bf16", vec![Precision::Native]),
        WeightFormat::Nested => ("nested", vec![Precision::Int8, Precision::Int4]),
    };
    let mut kv_groups: Vec<KvGroup> = Vec::new();
    for (number, layer) in config.layers.iter().enumerate() {
        let number = u16::try_from(number).map_err(|_| CudaError::Model("more than 65,536 layers".to_owned()))?;
        match kv_groups.iter_mut().find(|group| group.window == layer.window) {
            Some(group) => group.layers.push(number),
            None => {
                kv_groups.push(KvGroup { layers: vec![number], window: layer.window, blocks: 0, bytes_per_block: 0 })
            }
        }
    }
    let bytes_per_token_and_layer = 2 * config.kv_heads as u64 * padded_head(config.head_dim) as u64 * ELEMENT;
    for group in &mut kv_groups {
        group.bytes_per_block =
            group.layers.len() as u64 * bytes_per_token_and_layer * u64::from(settings.block_tokens);
        if group.bytes_per_block / ELEMENT > u64::from(u32::MAX) {
            return Err(CudaError::Model(format!("a KV block of {} bytes", group.bytes_per_block)));
        }
    }
    let context = settings.context.unwrap_or(u32::MAX).min(config.context_limit);
    Ok(DeviceDescription {
        name: name.to_owned(),
        backend: "cuda".to_owned(),
        numerics_class: NumericsClass::new(&format!("cuda/{weights_class}/kv-bf16/r1")),
        weights,
        kv_layout: format!(
            "bf16le/{}/layer,head,(k[token/16,dim/2,token,2],v[token/16,token/2,dim,2])",
            settings.block_tokens
        ),
        block_tokens: settings.block_tokens,
        kv_groups,
        slots: settings.slots,
        limits: StepLimits { rows: settings.max_step_rows, sequences: settings.slots, context, in_flight: IN_FLIGHT },
        vocab_size: config.vocab_size,
        precisions,
        price_usd_per_hour: settings.price_usd_per_hour,
        modelled: None,
        epoch: 1,
    })
}

/// Shares out what memory is left, and takes it. Scratch lies behind the pool: the rows of a step, and for each sequence a block begun and a block
/// ended.
fn take_pools(
    card: &mut dyn Card,
    config: &DecoderConfig,
    settings: &CudaSettings,
    description: &mut DeviceDescription,
) -> Result<Vec<GroupPool>, CudaError> {
    let groups = &mut description.kv_groups;
    let scratch = settings.max_step_rows.div_ceil(settings.block_tokens) + 2 * settings.slots;
    let one: u64 = groups.iter().map(|group| group.bytes_per_block).sum();
    match settings.kv {
        KvSize::Blocks(blocks) => groups.iter_mut().for_each(|group| group.blocks = blocks),
        KvSize::Share(share) => {
            let (free, total) = card.memory()?;
            let scratch_bytes = one * u64::from(scratch);
            let bytes = ((free as f64 * share) as u64).saturating_sub(scratch_bytes);
            if !share_out(groups, bytes, settings.block_tokens, description.limits) {
                let advice = "Raise device.memory_fraction, lower device.slots or device.max_step_rows, or serve a smaller model";
                return Err(CudaError::Memory {
                    what: "one KV block",
                    needed: scratch_bytes + one,
                    free,
                    total,
                    advice,
                });
            }
        }
    }
    let mut pools = Vec::with_capacity(groups.len());
    for group in groups.iter() {
        let blocks = u64::from(group.blocks) + u64::from(scratch);
        pools.push(GroupPool {
            start: card.allocate(blocks * group.bytes_per_block)?,
            block_bytes: group.bytes_per_block,
        });
    }
    // Behind a window blocks come back, so only a group without one bounds the context.
    let unbounded = groups.iter().filter(|group| group.window.is_none());
    let held = unbounded.map(|group| group.blocks.saturating_mul(settings.block_tokens)).min();
    description.limits.context = description.limits.context.min(held.unwrap_or(u32::MAX)).min(config.context_limit);
    Ok(pools)
}
