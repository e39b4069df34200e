//! KV groups with a sliding window: what a long run holds, what a pool of few blocks serves, and that a window which is one block
//! too short does not go unnoticed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use harness::{Host, config, log, run, start};
use holdfast_backend::{Backend, BackendError, BlockCopy, CopyDone, CopyTicket, StepTicket};
use holdfast_engine::testing::{Call, TokenBackend, expected_tokens, small_device};
use holdfast_engine::{Engine, FinishReason, RunId};
use holdfast_types::{DeviceDescription, LateInputs, SequenceId, StepOutput, StepPlan};

const BLOCK_TOKENS: u32 = 4;
const WINDOW: u32 = 9;
/// Blocks that a row sees behind [`WINDOW`], its own included.
const WINDOW_BLOCKS: u32 = 3;

/// A group without a window and one with, of so many blocks.
fn device(all: u32, few: u32, slots: u32) -> DeviceDescription {
    let mut device = small_device(BLOCK_TOKENS, &[all, few], slots);
    device.kv_groups[1].window = Some(WINDOW);
    device
}

#[test]
fn a_pool_of_few_blocks_serves_a_context_many_times_longer() {
    let mut host = Host::new(device(300, WINDOW_BLOCKS + 2, 2), config(16));
    assert_eq!(host.engine.context_limit(), 1200);
    let long = run(1, log(0..900), 240);
    let expected = host.expected(&long);
    let record = host.complete(long.clone());
    assert_eq!((record.tokens.len(), host.reason(1)), (240, FinishReason::MaxTokens));
    assert_eq!(record.tokens, expected, "the pool with a window holds 20 tokens of 1,139");
    // Two more take turns in a pool that holds one and a half of them, and the first goes on from where it was.
    let mut next = run(2, [long.log, log(record.tokens)].concat(), 9);
    next.sequence = SequenceId(1);
    let other = run(3, log(1000..1300), 60);
    let (first, second) = (host.expected(&next), host.expected(&other));
    host.poll(vec![start(next), start(other)]);
    host.settle();
    assert_eq!((&host.records[&RunId(2)].tokens, &host.records[&RunId(3)].tokens), (&first, &second));
    assert_eq!(host.records[&RunId(2)].usage.cached.device, 1139);
}

#[test]
fn bytes_and_gauges_count_what_is_held() {
    let held = |few: Option<u32>| {
        let device = few.map_or(small_device(BLOCK_TOKENS, &[200, 200], 1), |few| device(200, few, 1));
        let mut host = Host::new(device, config(16));
        host.poll(vec![start(run(1, log(0..400), 300))]);
        let mut most = 0;
        while host.engine.has_work() {
            host.poll(Vec::new());
            let blocks = host.engine.snapshot().blocks;
            assert_eq!(blocks.used + blocks.cached + blocks.free, blocks.total);
            most = most.max(blocks.used);
        }
        let usage = &host.records[&RunId(1)].usage;
        (most, usage.kv_byte_seconds.device / (usage.duration_us - usage.queue_time_us) as f64)
    };
    let ((most, bytes), (most_full, bytes_full)) = (held(Some(20)), held(None));
    assert_eq!((most, most_full), (175 + WINDOW_BLOCKS, 2 * 175));
    assert!((1.9..2.0).contains(&(bytes_full / bytes)), "{bytes_full} without a window, {bytes} with one");
}

#[test]
fn sequences_share_a_prompt_whose_window_was_passed() {
    let mut host = Host::new(device(100, 40, 4), config(16));
    let prompt = log(0..40);
    for id in 1..5 {
        let run = run(id, [prompt.clone(), log(id as u32 * 7..id as u32 * 7 + 5)].concat(), 6);
        let expected = host.expected(&run);
        let record = host.complete(run);
        assert_eq!(record.tokens, expected);
        assert_eq!(record.usage.cached.shared, if id == 1 { 0 } else { 40 });
    }
}

/// A token device whose engine takes its window to be one block shorter than it is.
struct Shortened {
    inner: TokenBackend,
    told: DeviceDescription,
}

impl Backend for Shortened {
    fn describe(&self) -> &DeviceDescription {
        &self.told
    }

    fn submit(&mut self, plan: &StepPlan) -> Result<StepTicket, BackendError> {
        self.inner.submit(plan)
    }

    fn collect(&mut self, step: StepTicket, late: &LateInputs) -> Result<StepOutput, BackendError> {
        self.inner.collect(step, late)
    }

    fn begin_copy(&mut self, copy: BlockCopy) -> Result<CopyTicket, BackendError> {
        self.inner.begin_copy(copy)
    }

    fn poll_copies(&mut self) -> Vec<CopyDone> {
        self.inner.poll_copies()
    }
}

/// Tokens of a long run in a pool so small that what is passed is overwritten at once, with the window told `less` shorter.
fn tokens_with_a_window_shorter_by(less: u32) -> (Vec<u32>, Vec<u32>) {
    let device = device(100, WINDOW_BLOCKS + 1, 1);
    let mut told = device.clone();
    told.kv_groups[1].window = Some(WINDOW - less);
    told.kv_groups[1].blocks -= less / BLOCK_TOKENS;
    let run = run(1, log(0..50), 100);
    let expected = expected_tokens(&device, &run, 400).unwrap();
    let mut host = Host::new(device.clone(), config(16));
    host.engine = Engine::new(Box::new(Shortened { inner: TokenBackend::new(device), told }), config(16));
    (host.complete(run).tokens, expected)
}

#[test]
fn a_window_one_block_too_short_changes_the_tokens() {
    let (tokens, expected) = tokens_with_a_window_shorter_by(0);
    assert_eq!(tokens, expected);
    let (tokens, expected) = tokens_with_a_window_shorter_by(BLOCK_TOKENS);
    assert_ne!(tokens, expected);
}

#[test]
fn windows_survive_preemption_and_the_loss_of_the_device() {
    let mut host = Host::new(device(30, 20, 4), config(8));
    host.faults.add(25, Call::Collect, BackendError::Lost("planted".into()));
    let runs: Vec<_> = (1..9).map(|id| run(id, log(id as u32 % 3 * 11..id as u32 % 3 * 11 + 30), 40)).collect();
    host.poll(runs.iter().cloned().map(start).collect());
    host.settle();
    for run in &runs {
        assert_eq!(host.records[&run.run].tokens, host.expected(run), "{:?}", run.run);
    }
    let snapshot = host.engine.snapshot();
    assert!(snapshot.preemptions > 0 && snapshot.device_losses == 1, "{snapshot:?}");
}
