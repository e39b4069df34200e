//! One device under test and the few moves that all checks make with it.

use std::time::Duration;

use holdfast_types::{
    DeviceDescription, LateInputs, OutputRequest, Precision, SamplingParams, SequenceOutput, SlotSampling, StepOutput,
    StepPlan,
};

use super::{BIT, FULL_BLOCKS, PlanBuilder};
use crate::{Backend, BackendError, BlockCopy, CopyDirection, StepTicket};

/// How long a copy may take before the suite gives up, in polls one millisecond apart.
const COPY_POLLS_MAX: u32 = 20_000;

pub(super) struct Rig<'a> {
    factory: &'a mut dyn FnMut() -> Box<dyn Backend>,
    pub(super) backend: Box<dyn Backend>,
    pub(super) description: DeviceDescription,
    pub(super) precision: Precision,
    next_step: u64,
}

pub(super) type Logits = Vec<Vec<f32>>;

impl<'a> Rig<'a> {
    pub(super) fn new(factory: &'a mut dyn FnMut() -> Box<dyn Backend>, precision: Precision) -> Self {
        let backend = factory();
        let description = backend.describe().clone();
        Self { factory, backend, description, precision, next_step: 1 }
    }

    /// A fresh device in the place of the old one.
    pub(super) fn renew(&mut self) {
        self.backend = (self.factory)();
        assert_eq!(self.backend.describe(), &self.description, "the factory makes equal devices");
        self.next_step = 1;
    }

    /// Seeded tokens: three blocks and a bit.
    pub(super) fn tokens(&self, seed: u64) -> Vec<u32> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let count = FULL_BLOCKS * self.description.block_tokens + BIT;
        (0..count).map(|_| rng.u32(0..self.description.vocab_size)).collect()
    }

    /// A step with the next id.
    pub(super) fn plan(&mut self) -> PlanBuilder {
        self.next_step += 1;
        PlanBuilder::new(self.next_step - 1)
    }

    /// Entries of the slot's tables in every group: block `first_block`, and as many after it as `count`.
    pub(super) fn tables(&self, mut plan: PlanBuilder, slot: u32, first: u32, blocks: &[u32]) -> PlanBuilder {
        for group in 0..self.description.kv_groups.len() as u16 {
            plan = plan.table(slot, group, first, blocks);
        }
        plan
    }

    /// A copy of one block in every group.
    pub(super) fn copies(&self, mut plan: PlanBuilder, from: u32, to: u32) -> PlanBuilder {
        for group in 0..self.description.kv_groups.len() as u16 {
            plan = plan.copy(group, from, to);
        }
        plan
    }

    #[track_caller]
    pub(super) fn run(&mut self, plan: &StepPlan) -> StepOutput {
        self.run_late(plan, &LateInputs::default())
    }

    #[track_caller]
    pub(super) fn run_late(&mut self, plan: &StepPlan, late: &LateInputs) -> StepOutput {
        let output = self.backend.submit(plan).and_then(|ticket| {
            // Which steps are told to begin makes no difference.
            if plan.id.0.is_multiple_of(2) {
                self.backend.start(&ticket);
            }
            self.backend.collect(ticket, late)
        });
        match output {
            Ok(output) => {
                assert_eq!(output.id, plan.id, "a step's output carries its id");
                check_shape(plan, &output);
                output
            }
            Err(error) => panic!("a good plan failed: {error}\n{plan:?}"),
        }
    }

    #[track_caller]
    pub(super) fn submit(&mut self, plan: &StepPlan) -> StepTicket {
        match self.backend.submit(plan) {
            Ok(ticket) => ticket,
            Err(error) => panic!("a good plan failed: {error}\n{plan:?}"),
        }
    }

    #[track_caller]
    pub(super) fn collect(&mut self, ticket: StepTicket) -> StepOutput {
        match self.backend.collect(ticket, &LateInputs::default()) {
            Ok(output) => output,
            Err(error) => panic!("a good step failed: {error}"),
        }
    }

    /// Opens `slot` on `blocks` (the same ids in every group) and sets nothing else going.
    #[track_caller]
    pub(super) fn open(&mut self, slot: u32, blocks: &[u32], sampling: SlotSampling) {
        let plan = self.plan().open(slot, sampling);
        let plan = self.tables(plan, slot, 0, blocks).build();
        self.run(&plan);
    }

    /// Computes `tokens` from position `start` on in chunks of the sizes given (the last one repeats), and returns the
    /// logits of every row.
    #[track_caller]
    pub(super) fn feed(&mut self, slot: u32, start: u32, tokens: &[u32], chunks: &[usize]) -> Logits {
        let rows_max = self.description.limits.rows as usize;
        let mut logits = Vec::new();
        let mut sizes = chunks.iter().copied();
        let mut size = rows_max;
        while logits.len() < tokens.len() {
            size = sizes.next().unwrap_or(size);
            let at = logits.len();
            let end = (at + size.clamp(1, rows_max)).min(tokens.len());
            let precision = self.precision;
            let plan = self.plan().rows(slot, start + at as u32, &tokens[at..end], precision).want_all_logits().build();
            let output = self.run(&plan);
            logits.extend(only(output.sequences).logits.into_iter().map(|(_, row)| row));
        }
        logits
    }

    /// Logits of `tokens` on a slot and blocks of their own, in as few chunks as the device takes; the slot is closed
    /// again. The measure of every bitwise check.
    #[track_caller]
    pub(super) fn computed_anew(&mut self, tokens: &[u32]) -> Logits {
        let slot = self.description.slots - 1;
        let blocks = self.blocks(3);
        self.on_slot(slot, &blocks, tokens, &[])
    }

    /// Opens a slot, feeds it and closes it.
    #[track_caller]
    pub(super) fn on_slot(&mut self, slot: u32, blocks: &[u32], tokens: &[u32], chunks: &[usize]) -> Logits {
        self.open(slot, blocks, greedy());
        let logits = self.feed(slot, 0, tokens, chunks);
        let close = self.plan().close(slot).build();
        self.run(&close);
        logits
    }

    /// The `set`th of four disjoint sets of blocks, each enough for a whole sequence of the suite.
    pub(super) fn blocks(&self, set: u32) -> Vec<u32> {
        let count = FULL_BLOCKS + 1;
        (set * count..(set + 1) * count).collect()
    }

    #[track_caller]
    pub(super) fn copy(&mut self, copy: BlockCopy) -> Option<Vec<u8>> {
        let exports = copy.direction == CopyDirection::Export;
        let ticket = match self.backend.begin_copy(copy) {
            Ok(ticket) => ticket,
            Err(error) => panic!("a good copy failed: {error}"),
        };
        for _ in 0..COPY_POLLS_MAX {
            let ended = self.backend.poll_copies();
            assert!(ended.len() <= 1, "a copy ends once");
            if let Some(done) = ended.into_iter().next() {
                assert_eq!(done.ticket, ticket, "a copy ends under its own ticket");
                match done.result {
                    Ok(bytes) => {
                        assert_eq!(bytes.is_some(), exports, "an export, and only an export, brings bytes");
                        return bytes;
                    }
                    Err(error) => panic!("a good copy failed: {error}"),
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("a copy did not end");
    }

    /// Submits a plan that is wrong, and returns whether the device said so.
    #[track_caller]
    pub(super) fn refuse(&mut self, plan: &StepPlan, why: &str) {
        match self.backend.submit(plan) {
            Err(BackendError::Rejected(_)) => {}
            other => panic!("{why} must be rejected, not {other:?}"),
        }
    }
}

/// Every output that was asked for is there, and nothing else.
#[track_caller]
fn check_shape(plan: &StepPlan, output: &StepOutput) {
    let asked: Vec<_> = plan.sequences.iter().filter(|sequence| !sequence.outputs.is_empty()).collect();
    assert_eq!(asked.len(), output.sequences.len(), "one output per sequence that asked");
    for (asked, got) in asked.iter().zip(&output.sequences) {
        assert_eq!(asked.slot, got.slot, "outputs come in the plan's order");
        let with_logits = asked.outputs.iter().filter(|output| output.request != OutputRequest::Sample);
        let rows: Vec<u32> = with_logits.map(|output| output.row).collect();
        assert_eq!(rows, got.logits.iter().map(|(row, _)| *row).collect::<Vec<_>>(), "logits of the rows asked for");
        let samples_max = asked.outputs.iter().filter(|output| output.request != OutputRequest::Logits).count();
        assert!(got.samples.len() <= samples_max && (samples_max == 0 || !got.samples.is_empty()), "samples as asked");
    }
}

/// Greedy, nothing else.
pub(super) fn greedy() -> SlotSampling {
    sampled(SamplingParams::default(), 0)
}

/// With these settings and this seed.
pub(super) fn sampled(params: SamplingParams, seed: u64) -> SlotSampling {
    SlotSampling { params, seed, context: Vec::new(), sampled: Vec::new() }
}

/// The one output of a step with one sequence.
#[track_caller]
pub(super) fn only(mut outputs: Vec<SequenceOutput>) -> SequenceOutput {
    assert_eq!(outputs.len(), 1, "one sequence asked for output");
    outputs.remove(0)
}

/// Equal to the last bit.
#[track_caller]
pub(super) fn same_bits(got: &[Vec<f32>], want: &[Vec<f32>], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: as many rows");
    for (row, (got, want)) in got.iter().zip(want).enumerate() {
        for (token, (got, want)) in got.iter().zip(want).enumerate() {
            assert!(
                got.to_bits() == want.to_bits(),
                "{what}: logit of token {token} in row {row} is {got:e}, from scratch it is {want:e}"
            );
        }
    }
}
