//! One device, driven with step plans and nothing else, as `llama-bench` drives its engine.
//!
//! In: a model, settings, and how many tokens at which depth. Out: the time from the first submitted step to the last
//! collected one. Deliberately not here: repetitions, medians and limits.
//!
//! The pool is dealt out from both ends: the history lies in blocks 0, 1, 2 …, what sequences own lies at the end. A history is
//! made once, for the greatest depth so far, and read by every later test. Only its first [`SEED_TOKENS`] are computed: the
//! blocks after them are copies, because the time of a step depends on how much KV it reads and not on what the KV says.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use holdfast_backend::conformance::PlanBuilder;
use holdfast_backend::{Backend, StepTicket};
use holdfast_backend_neuron::{NeuronDevice, NeuronSettings};
use holdfast_model::Model;
use holdfast_types::{
    DeviceDescription, LateInputs, OutputRequest, Precision, RowInput, SamplingParams, SlotSampling, StepPlan,
};

/// Tokens of a history that are computed.
const SEED_TOKENS: u32 = 64;

/// A device and the history that it holds.
pub(crate) struct DeviceBench {
    device: Box<dyn Backend>,
    description: DeviceDescription,
    precision: Precision,
    /// Most rows of a prefill's step.
    chunk_tokens: u32,
    /// Blocks from 0 on that hold the history.
    history: u32,
    next_step: u64,
    rng: fastrand::Rng,
}

/// Sequences at a depth, and the rows that each is going to compute.
#[derive(Debug, Clone, Copy)]
struct Load {
    depth: u32,
    rows: u32,
    batch: u32,
}

impl DeviceBench {
    /// Makes the device. `model` is not needed afterwards.
    ///
    /// # Errors
    /// As for [`NeuronDevice::new`].
    pub(crate) fn new(model: &Model, settings: &NeuronSettings, chunk_tokens: u32) -> anyhow::Result<Self> {
        let device = NeuronDevice::new(model.config(), model.weights(), settings)?;
        Ok(Self::over(Box::new(device), chunk_tokens))
    }

    /// Takes any device. Prefills are cut into steps of at most `chunk_tokens` rows, as a scheduler does.
    pub(crate) fn over(device: Box<dyn Backend>, chunk_tokens: u32) -> Self {
        let description = device.describe().clone();
        Self {
            precision: description.precisions.first().copied().unwrap_or(Precision::Native),
            chunk_tokens: chunk_tokens.clamp(1, description.limits.rows),
            description,
            device,
            history: 0,
            next_step: 1,
            rng: fastrand::Rng::with_seed(1),
        }
    }

    /// Blocks of every group that `batch` sequences of `rows` tokens behind a history of `depth` need; `own`: each has a history
    /// of its own.
    pub(crate) fn blocks_needed(block_tokens: u32, depth: u32, rows: u32, batch: u32, own: bool) -> u32 {
        let load = Load { depth, rows, batch };
        load.history(block_tokens) + (0..batch).map(|number| load.owned(number, own, block_tokens)).sum::<u32>()
    }

    /// Whether the sequences of a test read one history because the pool has no room for one each. What one of them has
    /// read may then be in a cache for the next.
    pub(crate) fn shares_history(&self, depth: u32, rows: u32, batch: u32) -> bool {
        let needed = Self::blocks_needed(self.description.block_tokens, depth, rows, batch, true);
        batch > 1 && depth > 0 && needed > self.blocks()
    }

    /// Time to compute `tokens` tokens behind a history of `depth`, with the logits of the last one.
    ///
    /// # Errors
    /// When the pool or the context is too small, or the device fails.
    pub(crate) fn prefill(&mut self, tokens: u32, depth: u32) -> anyhow::Result<Duration> {
        self.rows(tokens, depth, OutputRequest::Logits)
    }

    /// Time to compute `new` tokens behind a history of `depth` and to sample the first token after them: the time to first
    /// token of a perfect engine.
    ///
    /// # Errors
    /// As for [`DeviceBench::prefill`].
    pub(crate) fn turn(&mut self, new: u32, depth: u32) -> anyhow::Result<Duration> {
        self.rows(new, depth, OutputRequest::Sample)
    }

    /// Time of `tokens` steps in which `batch` sequences, each behind a history of `depth`, sample one token each and go on
    /// with it.
    ///
    /// # Errors
    /// As for [`DeviceBench::prefill`], and when the device takes fewer sequences at once.
    pub(crate) fn decode(&mut self, tokens: u32, depth: u32, batch: u32) -> anyhow::Result<Duration> {
        self.open(Load { depth, rows: tokens, batch })?;
        let plans: Vec<_> = (0..tokens)
            .map(|step| {
                let mut plan = self.plan();
                for slot in 0..batch {
                    let input = if step == 0 { RowInput::Token(self.token()) } else { RowInput::LastSample };
                    plan = plan.inputs(slot, depth + step, vec![input], self.precision).want(0, OutputRequest::Sample);
                }
                plan.build()
            })
            .collect();
        let spent = self.timed(&plans)?;
        self.close(batch)?;
        Ok(spent)
    }

    fn rows(&mut self, tokens: u32, depth: u32, request: OutputRequest) -> anyhow::Result<Duration> {
        self.open(Load { depth, rows: tokens, batch: 1 })?;
        let plans = self.chunks(0, depth, tokens, Some(request));
        let spent = self.timed(&plans)?;
        self.close(1)?;
        Ok(spent)
    }

    /// Plans for random tokens at positions from `start` on; `request` is for the last one.
    fn chunks(&mut self, slot: u32, start: u32, tokens: u32, request: Option<OutputRequest>) -> Vec<StepPlan> {
        let mut plans = Vec::new();
        for first in (0..tokens).step_by(self.chunk_tokens as usize) {
            let count = self.chunk_tokens.min(tokens - first);
            let ids: Vec<_> = (0..count).map(|_| self.token()).collect();
            let mut plan = self.plan().rows(slot, start + first, &ids, self.precision);
            if let Some(request) = request.filter(|_| first + count == tokens) {
                plan = plan.want(count - 1, request);
            }
            plans.push(plan.build());
        }
        plans
    }

    /// Opens slots 0 to `batch` with their history, and gives them room for their rows.
    fn open(&mut self, load: Load) -> anyhow::Result<()> {
        let Load { depth, rows, batch } = load;
        let limits = self.description.limits;
        if rows == 0 || batch == 0 {
            bail!("a test computes at least one token of one sequence");
        }
        if batch > limits.sequences.min(limits.rows).min(self.description.slots) {
            bail!("a batch of {batch} sequences, the device takes {}", limits.sequences.min(limits.rows));
        }
        if depth.checked_add(rows).is_none_or(|end| end > limits.context) {
            bail!("{rows} tokens at depth {depth}, the device's context ends at {}", limits.context);
        }
        let block_tokens = self.description.block_tokens;
        let own = !self.shares_history(depth, rows, batch);
        let needed = Self::blocks_needed(block_tokens, depth, rows, batch, own);
        if needed > self.blocks() {
            bail!("{batch} sequences of {rows} tokens at depth {depth} need {needed} KV blocks of {}", self.blocks());
        }
        let owned_in_all = needed - load.history(block_tokens);
        self.remember(load.history(block_tokens), self.blocks() - owned_in_all)?;

        let mut plan = self.plan();
        let mut free = self.blocks() - owned_in_all;
        for slot in 0..batch {
            let first = load.first_owned(slot, own, block_tokens);
            let owned: Vec<u32> = (free..free + load.owned(slot, own, block_tokens)).collect();
            free += owned.len() as u32;
            plan = plan.open(slot, greedy());
            let table: Vec<u32> = (0..first).chain(owned.iter().copied()).collect();
            for group in 0..self.description.kv_groups.len() as u16 {
                plan = plan.table(slot, group, 0, &table);
                for (from, to) in (first..load.history(block_tokens)).zip(&owned) {
                    plan = plan.copy(group, from, *to);
                }
            }
        }
        self.timed(&[plan.build()])?;
        Ok(())
    }

    fn close(&mut self, batch: u32) -> anyhow::Result<()> {
        let plan = (0..batch).fold(self.plan(), PlanBuilder::close).build();
        self.timed(&[plan]).map(drop)
    }

    /// Makes the history `blocks` long and gives up what it has from block `most` on.
    fn remember(&mut self, blocks: u32, most: u32) -> anyhow::Result<()> {
        self.history = self.history.min(most);
        if self.history == 0 && blocks > 0 {
            let block_tokens = self.description.block_tokens;
            let seed = SEED_TOKENS.div_ceil(block_tokens).min(blocks);
            let all: Vec<u32> = (0..seed).collect();
            let groups = 0..self.description.kv_groups.len() as u16;
            let open = groups.fold(self.plan().open(0, greedy()), |plan, group| plan.table(0, group, 0, &all));
            self.timed(&[open.build()])?;
            let plans = self.chunks(0, 0, (seed * block_tokens).min(self.description.limits.context), None);
            self.timed(&plans)?;
            self.close(1)?;
            self.history = seed;
        }
        if blocks > self.history {
            let mut plan = self.plan();
            for group in 0..self.description.kv_groups.len() as u16 {
                plan = (self.history..blocks).fold(plan, |plan, to| plan.copy(group, to % self.history, to));
            }
            self.timed(&[plan.build()])?;
            self.history = blocks;
        }
        Ok(())
    }

    /// Runs steps, as many in flight as the device takes.
    fn timed(&mut self, plans: &[StepPlan]) -> anyhow::Result<Duration> {
        let mut open: VecDeque<StepTicket> = VecDeque::new();
        let most = self.description.limits.in_flight.max(1) as usize;
        let late = LateInputs::default();
        #[expect(clippy::disallowed_methods, reason = "a benchmark measures")]
        let begin = Instant::now();
        for plan in plans {
            if open.len() == most
                && let Some(ticket) = open.pop_front()
            {
                self.device.collect(ticket, &late).context("the device did not finish a step")?;
            }
            open.push_back(self.device.submit(plan).context("the device did not take a step")?);
        }
        for ticket in open {
            self.device.collect(ticket, &late).context("the device did not finish a step")?;
        }
        Ok(begin.elapsed())
    }

    fn plan(&mut self) -> PlanBuilder {
        self.next_step += 1;
        PlanBuilder::new(self.next_step - 1)
    }

    fn token(&mut self) -> u32 {
        self.rng.u32(0..self.description.vocab_size)
    }

    /// Blocks that every group has.
    fn blocks(&self) -> u32 {
        self.description.kv_groups.iter().map(|group| group.blocks).min().unwrap_or(0)
    }
}

impl Load {
    /// Blocks of the history, the begun one among them.
    fn history(self, block_tokens: u32) -> u32 {
        self.depth.div_ceil(block_tokens)
    }

    /// First table entry that sequence `number` owns. The first sequence reads the common history up to the block that it
    /// writes into; so do all if they have none of their own.
    fn first_owned(self, number: u32, own: bool, block_tokens: u32) -> u32 {
        if own && number > 0 { 0 } else { self.depth / block_tokens }
    }

    /// Blocks that sequence `number` owns.
    fn owned(self, number: u32, own: bool, block_tokens: u32) -> u32 {
        (self.depth + self.rows).div_ceil(block_tokens) - self.first_owned(number, own, block_tokens)
    }
}

/// Greedy, nothing else.
fn greedy() -> SlotSampling {
    SlotSampling { params: SamplingParams::default(), seed: 0, context: Vec::new(), sampled: Vec::new() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::{Arc, Mutex};

    use holdfast_backend::{BackendError, BlockCopy, CopyDone, CopyTicket};
    use holdfast_backend_neuron::KvSize;
    use holdfast_model::random::MicroShape;
    use holdfast_types::StepOutput;

    /// A device that keeps a copy of every plan.
    struct Recorder(NeuronDevice, Arc<Mutex<Vec<StepPlan>>>);

    impl Backend for Recorder {
        fn describe(&self) -> &DeviceDescription {
            self.0.describe()
        }
        fn submit(&mut self, plan: &StepPlan) -> Result<StepTicket, BackendError> {
            self.1.lock().unwrap().push(plan.clone());
            self.0.submit(plan)
        }
        fn collect(&mut self, step: StepTicket, late: &LateInputs) -> Result<StepOutput, BackendError> {
            self.0.collect(step, late)
        }
        fn begin_copy(&mut self, copy: BlockCopy) -> Result<CopyTicket, BackendError> {
            self.0.begin_copy(copy)
        }
        fn poll_copies(&mut self) -> Vec<CopyDone> {
            self.0.poll_copies()
        }
    }

    fn bench(blocks: u32, in_flight: u32) -> (DeviceBench, Arc<Mutex<Vec<StepPlan>>>) {
        let model = MicroShape::default().build().unwrap();
        let settings =
            NeuronSettings { threads: 1, kv: KvSize::Blocks(blocks), slots: 8, in_flight, ..NeuronSettings::default() };
        let device = NeuronDevice::new(model.config(), model.weights(), &settings).unwrap();
        let plans = Arc::new(Mutex::new(Vec::new()));
        (DeviceBench::over(Box::new(Recorder(device, plans.clone())), 32), plans)
    }

    /// (start, rows, outputs) of every sequence in every plan since the last call.
    fn steps(plans: &Mutex<Vec<StepPlan>>) -> Vec<Vec<(u32, usize, usize)>> {
        let plans = std::mem::take(&mut *plans.lock().unwrap());
        let busy = plans.iter().filter(|plan| !plan.sequences.is_empty());
        busy.map(|plan| plan.sequences.iter().map(|s| (s.start, s.inputs.len(), s.outputs.len())).collect()).collect()
    }

    #[test]
    fn a_prefill_is_cut_into_chunks_behind_its_history() {
        for in_flight in [1, 3] {
            let (mut bench, plans) = bench(32, in_flight);
            assert!(bench.prefill(70, 0).unwrap() > Duration::ZERO);
            assert_eq!(steps(&plans), [[(0, 32, 0)], [(32, 32, 0)], [(64, 6, 1)]]);
            bench.turn(5, 150).unwrap();
            // The seed of the history, once, and then the turn alone.
            assert_eq!(steps(&plans), [[(0, 32, 0)], [(32, 32, 0)], [(150, 5, 1)]]);
            bench.turn(5, 10).unwrap();
            bench.turn(40, 300).unwrap();
            assert_eq!(steps(&plans), [[(10, 5, 1)].as_slice(), &[(300, 32, 0)], &[(332, 8, 1)]]);
        }
    }

    #[test]
    fn a_decode_feeds_every_sequence_its_own_sample() {
        let (mut bench, plans) = bench(64, 1);
        bench.decode(3, 20, 4).unwrap();
        let fed = plans.lock().unwrap().clone();
        let fed: Vec<_> = fed.iter().filter(|plan| plan.sequences.len() == 4).collect();
        assert_eq!(fed.len(), 3);
        for (step, plan) in fed.iter().enumerate() {
            for sequence in &plan.sequences {
                assert_eq!(sequence.start, 20 + step as u32);
                assert_eq!(sequence.inputs[0] == RowInput::LastSample, step > 0);
                assert_eq!(sequence.outputs[0].request, OutputRequest::Sample);
            }
        }
    }

    #[test]
    fn histories_are_shared_only_when_the_pool_is_small() {
        // Depth 100 is 7 blocks; with 10 rows a sequence ends in block 7. Shared, each owns the last one.
        assert_eq!(DeviceBench::blocks_needed(16, 100, 10, 4, false), 7 + 4);
        assert_eq!(DeviceBench::blocks_needed(16, 100, 10, 4, true), 7 + 1 + 3 * 7);
        assert_eq!(DeviceBench::blocks_needed(16, 0, 17, 3, true), 6);
        for (blocks, shared) in [(29, false), (28, true), (11, true)] {
            let (mut bench, _) = bench(blocks, 1);
            assert_eq!(bench.shares_history(100, 10, 4), shared);
            bench.decode(10, 100, 4).unwrap();
            // What the history gave up is made again.
            bench.prefill(10, (blocks - 1) * 16).unwrap();
            bench.decode(10, 100, 4).unwrap();
        }
        let (bench, _) = bench(11, 1);
        assert!(!bench.shares_history(100, 10, 1) && !bench.shares_history(0, 10, 4));
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let (mut bench, _) = bench(11, 1);
        assert_eq!(
            bench.decode(20, 100, 5).unwrap_err().to_string(),
            "5 sequences of 20 tokens at depth 100 need 17 KV blocks of 11"
        );
        assert!(bench.decode(1, 0, 9).unwrap_err().to_string().starts_with("a batch of 9 sequences"));
        assert!(bench.prefill(100, 100).unwrap_err().to_string().contains("context ends at 176"));
        assert!(bench.prefill(0, 0).is_err());
        bench.prefill(16, 16).unwrap();
    }
}
