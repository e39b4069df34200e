//! The device of a simulated node: the engine crate's token device behind a hand that makes it fail.
//!
//! In: plans, and the word on what is to go wrong next. Out: what the token device says, or the failure. Deliberately not
//! here: what an engine makes of a failure.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_backend::{Backend, BackendError, BlockCopy, CopyDone, CopyTicket, StepTicket};
use holdfast_engine::testing::{Call, TokenBackend};
use holdfast_types::{
    DeviceDescription, Digest, KvGroup, LateInputs, NumericsClass, Precision, StepLimits, StepOutput, StepPlan,
};

use crate::alphabet::Alphabet;

/// The size of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceShape {
    /// KV blocks.
    pub blocks: u32,
    /// A second KV group with a sliding window, if there is one.
    pub window: Option<WindowShape>,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Sequence slots, and sequences of a step.
    pub slots: u32,
    /// Rows of a step.
    pub rows: u32,
    /// Tokens of a sequence.
    pub context: u32,
}

/// The size of a KV group with a sliding window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowShape {
    /// Tokens that a row sees.
    pub tokens: u32,
    /// KV blocks; they do not change when the device is lost.
    pub blocks: u32,
}

impl WindowShape {
    /// The blocks that two sequences of any length need to move at all, or one with steps of many rows, and some to spare.
    pub fn few(tokens: u32, block_tokens: u32, spare: u32) -> Self {
        Self { tokens, blocks: 2 * (tokens - 1).div_ceil(block_tokens) + 4 + spare }
    }
}

impl DeviceShape {
    /// A device on which nothing is ever short.
    pub fn roomy(context: u32) -> Self {
        let window = Some(WindowShape { tokens: 21, blocks: 4096 });
        Self { blocks: 4096, window, block_tokens: 4, slots: 64, rows: 512, context }
    }

    fn description(self, epoch: u64) -> DeviceDescription {
        let all = KvGroup { layers: vec![0], window: None, blocks: self.blocks, bytes_per_block: 64 };
        let windowed = self.window.map(|shape| KvGroup {
            layers: vec![1],
            window: Some(shape.tokens),
            blocks: shape.blocks,
            bytes_per_block: 64,
        });
        DeviceDescription {
            name: "sim:0".to_owned(),
            backend: "sim".to_owned(),
            numerics_class: NumericsClass::new("sim/hash/r1"),
            weights: Digest([1; 32]),
            kv_layout: "hash".to_owned(),
            block_tokens: self.block_tokens,
            kv_groups: [all].into_iter().chain(windowed).collect(),
            slots: self.slots,
            limits: StepLimits { rows: self.rows, sequences: self.slots, context: self.context, in_flight: 1 },
            vocab_size: Alphabet::VOCAB,
            precisions: vec![Precision::Native],
            price_usd_per_hour: None,
            modelled: None,
            epoch,
        }
    }
}

/// What goes wrong once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// The device is lost when a step is handed to it; it comes back with so many blocks.
    LostAtSubmit(u32),
    /// The device is lost while it computes a step; it comes back with so many blocks.
    LostAtCollect(u32),
    /// The device is lost when a step is handed to it, and stays away for so many more.
    Away(u32),
    /// A step fails after its slots were changed.
    FaultAtSubmit,
    /// A step fails, and what it wrote is spoiled.
    Fault,
    /// A step does not fit.
    OutOfMemory,
}

#[derive(Debug, Default)]
struct Plan {
    next: Option<Mishap>,
    happened: u32,
    batch_dependent: bool,
    epoch: u64,
    blocks: Option<u32>,
    /// Steps that are still refused because the device is away.
    away: u32,
}

/// The hand that makes a device fail; outlives the devices of a node.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<Plan>>);

impl Faults {
    /// The next step suffers this.
    pub fn next(&self, mishap: Mishap) {
        self.plan().next = Some(mishap);
    }

    /// Nothing more goes wrong.
    pub fn clear(&self) {
        let mut plan = self.plan();
        plan.next = None;
        plan.away = 0;
    }

    /// Mishaps that have happened.
    pub fn happened(&self) -> u32 {
        self.plan().happened
    }

    /// From now on a sample depends on how many sequences share its step: the defect that exactness forbids.
    pub fn make_batch_dependent(&self) {
        self.plan().batch_dependent = true;
    }

    /// Whether the device refuses this step because it is away; that is one step less to come.
    fn is_away(&self) -> bool {
        let mut plan = self.plan();
        let is_away = plan.away > 0;
        plan.away = plan.away.saturating_sub(1);
        is_away
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
pub struct SimDevice {
    inner: TokenBackend,
    shape: DeviceShape,
    faults: Faults,
}

impl SimDevice {
    /// A device in its next life.
    pub fn new(shape: DeviceShape, faults: Faults) -> Self {
        let (epoch, blocks) = {
            let mut plan = faults.plan();
            plan.epoch += 1;
            (plan.epoch, plan.blocks.unwrap_or(shape.blocks))
        };
        let shape = DeviceShape { blocks, ..shape };
        Self { inner: TokenBackend::new(shape.description(epoch)), shape, faults }
    }

    /// What it is now.
    pub fn describe_now(&self) -> DeviceDescription {
        self.inner.describe().clone()
    }

    fn happen(&mut self, wanted: impl Fn(Mishap) -> bool) -> Option<Mishap> {
        let mut plan = self.faults.plan();
        let mishap = plan.next.filter(|mishap| wanted(*mishap))?;
        plan.next = None;
        plan.happened += 1;
        Some(mishap)
    }

    fn lose(&mut self, blocks: u32) -> BackendError {
        self.faults.plan().blocks = Some(blocks);
        *self = Self::new(self.shape, self.faults.clone());
        BackendError::Lost("the simulation took it".to_owned())
    }
}

impl Backend for SimDevice {
    fn describe(&self) -> &DeviceDescription {
        self.inner.describe()
    }

    fn submit(&mut self, plan: &StepPlan) -> Result<StepTicket, BackendError> {
        if self.faults.is_away() {
            return Err(BackendError::Lost("it is away".to_owned()));
        }
        let here = |mishap| {
            matches!(mishap, Mishap::LostAtSubmit(_) | Mishap::Away(_) | Mishap::OutOfMemory | Mishap::FaultAtSubmit)
        };
        match self.happen(here) {
            Some(Mishap::LostAtSubmit(blocks)) => Err(self.lose(blocks)),
            Some(Mishap::Away(steps)) => {
                self.faults.plan().away = steps;
                Err(self.lose(self.shape.blocks))
            }
            Some(Mishap::FaultAtSubmit) => {
                self.inner.faults().add(0, Call::Submit, BackendError::Fault("the simulation".to_owned()));
                self.inner.submit(plan)
            }
            Some(_) => Err(BackendError::OutOfMemory("the simulation took it".to_owned())),
            None => self.inner.submit(plan),
        }
    }

    fn collect(&mut self, step: StepTicket, late: &LateInputs) -> Result<StepOutput, BackendError> {
        match self.happen(|mishap| matches!(mishap, Mishap::LostAtCollect(_) | Mishap::Fault)) {
            Some(Mishap::LostAtCollect(blocks)) => return Err(self.lose(blocks)),
            // The token device spoils what the step wrote.
            Some(_) => self.inner.faults().add(0, Call::Collect, BackendError::Fault("the simulation".to_owned())),
            None => {}
        }
        let mut output = self.inner.collect(step, late)?;
        if self.faults.plan().batch_dependent && output.sequences.len() > 1 {
            for sample in output.sequences.iter_mut().flat_map(|sequence| &mut sequence.samples) {
                sample.id = (sample.id + 1) % Alphabet::VOCAB;
            }
        }
        Ok(output)
    }

    fn begin_copy(&mut self, copy: BlockCopy) -> Result<CopyTicket, BackendError> {
        self.inner.begin_copy(copy)
    }

    fn poll_copies(&mut self) -> Vec<CopyDone> {
        self.inner.poll_copies()
    }
}
