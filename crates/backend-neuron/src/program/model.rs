//! A device's programs, made before its first step, and the account of each step.
//!
//! In: a decoder, [`ChipSettings`], what the device promises; then the sequences of each step. Out: budgets, [`StepModel`]s. Deliberately
//! not here: how a program is written (`lower`) and what it takes (`walk`).
//!
//! **Sharing a run out.** A sequence pays for the bytes that it makes the chip read: the run's weights in proportion to its rows, and
//! its own KV. Padding is paid for in the same proportion. Shares are whole nanoseconds and add up to the run's time.

use std::collections::BTreeMap;

use holdfast_model::DecoderConfig;

use super::lattice::{BucketRun, Lattice};
use super::lower::{Program, lower};
use super::part::{Part, WeightStorage};
use super::walk::EFFICIENCY;
use super::{Bucket, Buckets, Chip, ProgramError, Span, Walk};

/// Chips that one device may span, as many as an instance has.
const CHIPS_MAX: u32 = 16;

/// Which chip a device stands for.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum ChipChoice {
    /// None: nothing is modelled.
    #[default]
    None,
    /// This one if the model fits; else nothing is modelled, and the log says why.
    IfItFits(ChipSettings),
    /// This one; a model that does not fit is refused.
    Named(ChipSettings),
}

/// A chip and how it is used.
#[derive(Debug, Clone, PartialEq)]
pub struct ChipSettings {
    /// The chip.
    pub chip: &'static Chip,
    /// Cores of the device, over several chips if need be; 0 is one for each key/value head and at most one chip's, or the fewest
    /// above that whose HBM holds the model.
    pub cores: u32,
    /// HBM of one chip, bytes; `None` is the table's.
    pub hbm_bytes: Option<u64>,
    /// Shapes that programs are made for.
    pub buckets: Buckets,
    /// USD per hour of one chip. A device pays for its cores: the rest of a chip serves others.
    pub usd_per_chip_hour: Option<f64>,
}

impl ChipSettings {
    /// A chip of the table with default buckets and without a price.
    pub fn new(chip: &'static Chip) -> Self {
        Self { chip, cores: 0, hbm_bytes: None, buckets: Buckets::default(), usd_per_chip_hour: None }
    }
}

/// What the device holds and promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// How matrices are held.
    pub storage: WeightStorage,
    /// Most tokens of a sequence.
    pub context: u32,
    /// Tokens of a KV block.
    pub block_tokens: u32,
    /// Tokens of the KV pools times the layers that hold them.
    pub kv_layer_tokens: u64,
}

/// HBM of the device's cores, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HbmBudget {
    /// What the cores have.
    pub has: u64,
    /// Weights, copies on several cores counted each.
    pub weights: u64,
    /// KV pools, the same.
    pub kv: u64,
}

impl HbmBudget {
    /// What is left.
    pub fn free(&self) -> u64 {
        self.has.saturating_sub(self.weights + self.kv)
    }
}

/// What a step would take on the chip. Modelled, never measured.
#[derive(Debug, Clone, PartialEq)]
pub struct StepModel {
    /// Time, nanoseconds.
    pub time_ns: u64,
    /// Each sequence's part of it, in the step's order; they add up to it.
    pub shares_ns: Vec<u64>,
    /// Program runs.
    pub runs: u32,
    /// Bytes from and to HBM.
    pub hbm_bytes: u64,
    /// Multiplications that the step needs.
    pub macs_needed: u64,
    /// Multiplications that its programs do.
    pub macs: u64,
}

impl StepModel {
    /// The part of the multiplications that is padding, from 0 to 1: `1 - needed / done`. Rows and sequences that a bucket has and
    /// the step has not, context that a sequence has not reached, keys above the diagonal, and heads or columns that do not
    /// divide by the cores.
    pub fn padding(&self) -> f64 {
        if self.macs == 0 { 0.0 } else { 1.0 - self.macs_needed.min(self.macs) as f64 / self.macs as f64 }
    }
}

/// The programs of a device.
#[derive(Debug)]
pub struct ChipModel {
    chip: &'static Chip,
    part: Part,
    block_tokens: u32,
    budget: HbmBudget,
    usd_per_hour: Option<f64>,
    efficiency: f64,
    programs: BTreeMap<Bucket, (Program, Walk)>,
    lattice: Lattice,
    made_after_warm_up: u64,
}

impl ChipModel {
    /// Makes every program of the lattice.
    ///
    /// # Errors
    /// [`ProgramError`]: what the chip cannot hold, with the limit and the numbers.
    pub fn compile(config: &DecoderConfig, settings: &ChipSettings, demand: &Demand) -> Result<Self, ProgramError> {
        Self::compile_at(config, settings, demand, EFFICIENCY)
    }

    pub(crate) fn compile_at(
        config: &DecoderConfig,
        settings: &ChipSettings,
        demand: &Demand,
        efficiency: f64,
    ) -> Result<Self, ProgramError> {
        let chip = settings.chip;
        let (part, budget) = place(config, settings, demand)?;
        let mut programs = BTreeMap::new();
        let mut costs = BTreeMap::new();
        for bucket in settings.buckets.lattice(demand.context)? {
            let program = lower(&part, chip, demand.block_tokens, bucket)?;
            let walk = Walk::at(&program, chip, part.cores, efficiency);
            costs.insert(bucket, walk.time_s);
            programs.insert(bucket, (program, walk));
        }
        Ok(Self {
            chip,
            block_tokens: demand.block_tokens,
            budget,
            usd_per_hour: settings.usd_per_chip_hour.map(|price| price * f64::from(part.cores) / f64::from(chip.cores)),
            part,
            efficiency,
            programs,
            lattice: Lattice::new(&costs),
            made_after_warm_up: 0,
        })
    }

    /// The chip.
    pub fn chip(&self) -> &'static Chip {
        self.chip
    }

    /// Cores of the device.
    pub fn cores(&self) -> u32 {
        self.part.cores
    }

    /// HBM of these cores.
    pub fn hbm(&self) -> HbmBudget {
        self.budget
    }

    /// USD per hour of these cores.
    pub fn usd_per_hour(&self) -> Option<f64> {
        self.usd_per_hour
    }

    /// Every program with what one run of it takes.
    pub fn programs(&self) -> impl Iterator<Item = &(Program, Walk)> {
        self.programs.values()
    }

    /// Programs that were made since [`ChipModel::compile`] returned: 0 as long as every step maps to the lattice.
    pub fn made_after_warm_up(&self) -> u64 {
        self.made_after_warm_up
    }

    /// The most SBUF that a program uses in a partition, bytes.
    pub fn sbuf_partition_bytes(&self) -> u64 {
        self.programs().map(|(program, _)| program.sbuf_partition_bytes).max().unwrap_or(0)
    }

    /// The engine that the longest of a step's runs waits for.
    pub fn busiest(&self, spans: &[Span]) -> Option<&'static str> {
        let runs = self.lattice.split(spans);
        let walks = runs.iter().filter_map(|run| self.programs.get(&run.bucket)).map(|(_, walk)| walk);
        walks.max_by(|a, b| a.time_s.total_cmp(&b.time_s)).map(Walk::busiest)
    }

    /// Maps a step to buckets and adds up what it would take.
    ///
    /// # Errors
    /// [`ProgramError::Context`] when a sequence is longer than the largest bucket.
    pub fn step(&mut self, spans: &[Span]) -> Result<StepModel, ProgramError> {
        let largest = self.programs.keys().map(|bucket| bucket.context).max().unwrap_or(0);
        if let Some(span) = spans.iter().find(|span| span.context > largest) {
            return Err(ProgramError::Context { largest, context: span.context });
        }
        let mut step = StepModel {
            time_ns: 0,
            shares_ns: vec![0; spans.len()],
            runs: 0,
            hbm_bytes: 0,
            macs_needed: spans.iter().map(|span| self.part.needed_macs(*span)).sum(),
            macs: 0,
        };
        for run in self.lattice.split(spans) {
            let walk = self.walk_of(run.bucket)?;
            let time_ns = (walk.time_s * 1e9).round() as u64;
            step.runs += 1;
            step.time_ns += time_ns;
            step.hbm_bytes += walk.hbm_bytes();
            step.macs += walk.macs;
            self.share_out(&run, &walk, time_ns, &mut step.shares_ns);
        }
        Ok(step)
    }

    /// What a run of a bucket takes. A program that is not there is made and counted.
    fn walk_of(&mut self, bucket: Bucket) -> Result<Walk, ProgramError> {
        if let Some((_, walk)) = self.programs.get(&bucket) {
            return Ok(*walk);
        }
        let program = lower(&self.part, self.chip, self.block_tokens, bucket)?;
        let walk = Walk::at(&program, self.chip, self.part.cores, self.efficiency);
        self.made_after_warm_up += 1;
        self.programs.insert(bucket, (program, walk));
        Ok(walk)
    }

    fn share_out(&self, run: &BucketRun, walk: &Walk, time_ns: u64, shares_ns: &mut [u64]) {
        let rows: u64 = run.pieces.iter().map(|(_, span)| u64::from(span.rows)).sum();
        let weights = walk.weight_bytes / u64::from(self.part.cores);
        let bytes = |span: Span| {
            u128::from(weights) * u128::from(span.rows) / u128::from(rows.max(1))
                + u128::from(self.part.needed_kv_bytes(span))
        };
        let all: u128 = run.pieces.iter().map(|(_, span)| bytes(*span)).sum();
        let mut before = 0;
        let upto = |bytes: u128| (u128::from(time_ns) * bytes / all.max(1)) as u64;
        for (sequence, span) in &run.pieces {
            let start = before;
            before += bytes(*span);
            shares_ns[*sequence] += upto(before) - upto(start);
        }
    }
}

/// The cores that a device takes, one core's part, and the memory of all of them.
fn place(config: &DecoderConfig, settings: &ChipSettings, demand: &Demand) -> Result<(Part, HbmBudget), ProgramError> {
    let chip = settings.chip;
    let most = chip.cores * CHIPS_MAX;
    if settings.cores > most {
        return Err(ProgramError::Cores { asked: settings.cores, most });
    }
    let core_bytes = settings.hbm_bytes.unwrap_or(chip.hbm_bytes) / u64::from(chip.cores);
    let on = |cores: u32| {
        let part = Part::of(config, demand.storage, cores);
        let weights = part.weight_bytes() * u64::from(cores);
        let kv = part.kv_bytes().saturating_mul(demand.kv_layer_tokens).saturating_mul(cores.into());
        (part, HbmBudget { has: core_bytes * u64::from(cores), weights, kv })
    };
    let fits = |(_, budget): &(Part, HbmBudget)| budget.weights.saturating_add(budget.kv) <= budget.has;
    let (first, last) = match settings.cores {
        0 => (u32::try_from(config.kv_heads).unwrap_or(u32::MAX).clamp(1, chip.cores), chip.cores),
        given => (given, given),
    };
    let mut cores = first;
    loop {
        let placed = on(cores);
        if fits(&placed) {
            return Ok(placed);
        }
        if cores >= last {
            let HbmBudget { has, weights, kv } = placed.1;
            return Err(ProgramError::Hbm { chip: chip.name, cores, weights, kv, has });
        }
        cores = (cores * 2).min(last);
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
