//! What an engine does, case by case.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::sync::atomic::Ordering;

use harness::{Host, Spells, config, log, prefill, run, start};
use holdfast_backend::{Backend, BackendError, BlockCopy, CopyDone, CopyTicket, StepTicket};
use holdfast_engine::testing::{Call, TokenBackend, small_device};
use holdfast_engine::{Command, Engine, FinishReason, NextPoll, Run, RunId};
use holdfast_kv::{ChainDomain, DomainSecret};
use holdfast_types::{
    DeviceDescription, LateInputs, LogToken, ModelledChip, Precision, Reason, SamplingParams, SequenceId, StepOutput,
    StepPlan,
};

fn host() -> Host {
    Host::new(small_device(4, &[64], 4), config(16))
}

#[test]
fn a_hundred_turns_compute_every_token_once() {
    let mut host = Host::new(small_device(4, &[600], 4), config(16));
    let (mut text, mut rows, mut computed) = (Vec::new(), 0, 0);
    for turn in 0..100_u64 {
        text.extend(log((0..turn % 7 + 1).map(|i| (turn * 31 + i) as u32)));
        let mut next = run(turn, text.clone(), (turn % 5 + 1) as u32);
        next.sequence = SequenceId(1);
        next.computed_before = rows;
        let expected = host.expected(&next);
        let record = host.complete(next);
        assert_eq!(record.tokens, expected, "turn {turn}");
        assert_eq!(record.usage.cached.device, u64::from(rows), "everything before is found");
        assert_eq!(
            (record.usage.recomputed_tokens, record.usage.preempted_tokens, record.usage.cached.shared),
            (0, 0, 0)
        );
        computed += record.usage.by_precision.total();
        text.extend(log(record.tokens));
        rows = text.len() as u32 - 1;
        assert_eq!(computed, u64::from(rows), "turn {turn}");
    }
}

#[test]
fn what_ends_a_run() {
    let mut host = host();
    let tokens = host.expected(&run(1, log(0..9), 12));
    let mut stopped = run(1, log(0..9), 12);
    let last = tokens[..6].iter().position(|token| *token == tokens[5]).unwrap();
    stopped.sample.as_mut().unwrap().stop_tokens = vec![tokens[5]];
    assert_eq!(host.complete(stopped).tokens, tokens[..=last]);
    assert_eq!(host.reason(1), FinishReason::StopToken);

    assert_eq!(host.complete(run(2, log(0..9), 3)).tokens, host.expected(&run(2, log(0..9), 3)));
    assert_eq!(host.reason(2), FinishReason::MaxTokens);

    let limit = host.engine.context_limit();
    assert_eq!(limit, 256, "the pool, not the device's 4096");
    let record = host.complete(run(3, log(0..250), 100));
    assert_eq!((host.reason(3), record.tokens.len()), (FinishReason::ContextFull, 6));
    assert_eq!((record.usage.context_used, record.usage.context_limit), (256, 256));
    assert!(host.complete(run(4, log(0..256), 1)).tokens.is_empty());
    assert_eq!(host.reason(4), FinishReason::ContextFull);
    host.complete(run(5, log(0..257), 1));
    assert_eq!(host.failure(5).reason, Reason::OutOfMemory);

    host.poll(vec![start(run(6, log(0..30), 50))]);
    host.poll(vec![Command::Cancel { run: RunId(6) }]);
    assert_eq!(host.reason(6), FinishReason::Cancelled);
    assert!(!host.engine.has_work(), "its place is free at once");
    host.poll(vec![Command::Cancel { run: RunId(6) }, Command::Cancel { run: RunId(99) }]);
}

#[test]
fn a_prefill_computes_all_but_the_last_token() {
    let mut host = host();
    let record = host.complete(prefill(1, log(0..41)));
    assert_eq!(host.reason(1), FinishReason::Prefilled);
    assert_eq!((record.usage.computed_tokens, record.usage.input_tokens), (40, 40));
    assert_eq!(record.progress, [(0, 41), (16, 41), (32, 41), (40, 41)]);
    let again = host.complete(prefill(2, log(0..41)));
    assert_eq!((again.usage.cached.shared, again.usage.by_precision.total()), (40, 0), "nothing to compute, no step");
    assert_eq!(host.complete(prefill(3, log([7]))).usage.input_tokens, 0);
}

#[test]
fn the_row_of_the_last_token_is_computed_even_when_everything_is_found() {
    let mut host = host();
    host.complete(prefill(1, log(0..41)));
    let next = run(2, log(0..40), 5);
    let expected = host.expected(&next);
    let record = host.complete(next);
    assert_eq!(record.tokens, expected);
    assert_eq!((record.usage.cached.shared, record.usage.computed_tokens), (39, 1), "through a copy of the last block");
}

#[test]
fn usage_tells_own_from_shared_and_new_from_lost() {
    let mut host = host();
    host.complete(run(1, log(0..20), 4));
    let mut other = run(2, log(0..30), 2);
    other.computed_before = 25;
    let usage = host.complete(other).usage;
    assert_eq!((usage.cached.device, usage.cached.shared), (0, 20));
    assert_eq!((usage.recomputed_tokens, usage.computed_tokens, usage.input_tokens), (5, 5, 30));
    assert_eq!(usage.by_precision.native, 11, "ten of the input, one sample fed back");
    assert!(usage.kv_byte_seconds.device > 0.0);
    let mut back = run(3, log(0..30), 1);
    back.sequence = SequenceId(2);
    let usage = host.complete(back).usage;
    assert_eq!(
        (usage.cached.device, usage.cached.shared),
        (9, 20),
        "its tail and its own block; the rest is still another's"
    );
}

#[test]
fn a_generation_that_was_interrupted_is_accounted_for_as_if_it_had_not_been() {
    let mut host = host();
    let mut whole = run(1, log(0..20), 12);
    whole.computed_before = 7;
    let expected = host.expected(&whole);
    let story = host.complete(whole.clone());
    assert_eq!(story.usage.input_tokens, 20);
    for sampled in [1, 5, 11] {
        let mut host = self::host();
        let mut rest = Run { resumed: sampled, ..run(2, whole.log.clone(), 12 - sampled) };
        rest.log.extend(log(expected[..sampled as usize].iter().copied()));
        rest.computed_before = 7;
        let sample = rest.sample.as_mut().unwrap();
        (sample.seed, sample.sampled_before) = (1, expected[..sampled as usize].to_vec());
        let record = host.complete(rest);
        assert_eq!(record.tokens, expected[sampled as usize..]);
        let usage = record.usage;
        assert_eq!(
            (usage.input_tokens, usage.recomputed_tokens, usage.computed_tokens),
            (20, 7, 13),
            "as at its start"
        );
        assert_eq!((usage.preempted_tokens, usage.context_used), (0, story.usage.context_used));
        assert_eq!(usage.by_precision.native, 20 + 11, "and every row that was computed here");
        assert_eq!(record.progress.last(), Some(&(20, 20)), "progress is about the input");
    }
    let mut nothing = run(3, log(0..4), 2);
    nothing.resumed = 4;
    host.complete(nothing);
    assert_eq!(host.failure(3).reason, Reason::Internal);
}

#[test]
fn what_a_transient_run_leaves_is_evicted_before_a_sessions_blocks() {
    for transient in [false, true] {
        let mut host = Host::new(small_device(4, &[12], 4), config(16));
        host.complete(run(1, log(0..13), 1));
        let mut passing = Run { transient, ..run(2, log(30..46), 1) };
        passing.domain = ChainDomain::single(DomainSecret([9; 32]));
        host.complete(passing);
        host.poll(vec![Command::Forget { sequence: SequenceId(2) }]);
        host.complete(run(3, log(20..48), 1));
        let mut back = run(4, log(0..13), 1);
        back.sequence = SequenceId(1);
        let cached = host.complete(back).usage.cached.total();
        assert_eq!(cached == 12, transient, "{cached} of 12 tokens were kept");
    }
}

#[test]
fn a_cancelled_run_frees_slot_and_blocks_within_the_poll() {
    let mut host = Host::new(small_device(4, &[16], 1), config(4));
    // In mid-prefill, in mid-decode, and while it waits for the only slot.
    for polls in [1, 6] {
        host.poll(vec![start(run(polls, log(0..15), 40)), start(run(polls + 100, log(0..3), 2))]);
        (1..polls).for_each(|_| host.poll(Vec::new()));
        let before = host.engine.snapshot();
        assert_eq!((before.running, before.waiting), (1, 1));
        assert!(before.blocks.used > 0);
        host.poll(vec![Command::Cancel { run: RunId(polls + 100) }, Command::Cancel { run: RunId(polls) }]);
        let after = host.engine.snapshot();
        assert_eq!((after.running, after.waiting, after.blocks.used), (0, 0, 0));
        assert_eq!((host.reason(polls), host.reason(polls + 100)), (FinishReason::Cancelled, FinishReason::Cancelled));
    }
    host.poll(vec![start(run(7, log(0..15), 40)), start(run(8, log(20..23), 2))]);
    host.poll(vec![Command::Cancel { run: RunId(7) }]);
    assert_eq!(host.records[&RunId(8)].tokens.len(), 1, "who waited has the place in the same poll");
    host.settle();
}

#[test]
fn rows_are_counted_by_precision() {
    let mut host = host();
    let mut text = log(0..10);
    text[3..7].iter_mut().for_each(|token| token.precision = Precision::Int8);
    let mut mixed = run(1, text, 4);
    mixed.sample.as_mut().unwrap().precision = Precision::Int8;
    let expected = host.expected(&mixed);
    let record = host.complete(mixed);
    assert_eq!(record.tokens, expected);
    assert_eq!((record.usage.by_precision.native, record.usage.by_precision.int8), (6, 7));
}

#[test]
fn device_time_is_shared_out_to_the_last_microsecond() {
    let mut host = host();
    host.poll((1..=3).map(|id| start(run(id, log(id as u32..20), 5))).collect());
    host.settle();
    let shared: u64 = host.records.values().map(|record| record.usage.device_time_us).sum();
    assert_eq!(shared, host.engine.snapshot().device_time_us);
}

#[test]
fn modelled_time_is_shared_out_whole_and_priced_and_absent_without_a_chip() {
    let mut plain = host();
    assert_eq!(plain.complete(run(1, log(1..20), 5)).usage.modelled, None);

    let chip = ModelledChip {
        chip: "trn1".parse().unwrap(),
        cores: 2,
        programs: 1,
        hbm_bytes: 1,
        weight_bytes: 0,
        kv_bytes: 0,
        usd_per_hour: Some(3.6),
    };
    let device = DeviceDescription { modelled: Some(chip), ..host().device };
    let mut host = Host::new(device, config(8));
    host.poll((1..=3).map(|id| start(run(id, log(id as u32..20), 5))).collect());
    host.settle();
    let shares: Vec<_> = host.records.values().map(|record| record.usage.modelled.unwrap()).collect();
    let whole: u64 = shares.iter().map(|share| share.chip_time_ns).sum();
    assert_eq!(whole, host.engine.snapshot().modelled_time_ns);
    assert!(whole > 0);
    for share in shares {
        assert_eq!(share.chip.as_str(), "trn1");
        let cost = share.chip_time_ns as f64 * 1e-12;
        assert!((share.cost_usd.unwrap() - cost).abs() < 1e-15, "{share:?}");
    }
}

#[test]
fn a_guide_is_asked_once_for_each_token_and_what_it_allows_is_sampled() {
    let mut host = host();
    let guide = Spells::new(&[60, 3, 60]);
    let masks = guide.masks.clone();
    let mut guided = run(1, log(0..40), 8);
    guided.sample.as_mut().unwrap().guide = guide.guide();
    let expected = host.expected(&guided);
    assert_eq!(expected[..3], [60, 3, 60]);
    assert_eq!(host.complete(guided).tokens, expected);
    assert_eq!(masks.load(Ordering::Relaxed), 8, "the steps of the prompt ask for none");
}

#[test]
fn guided_and_free_runs_share_steps_and_sample_what_they_would_alone() {
    let mut host = host();
    let runs: Vec<Run> = (1..=4_u32)
        .map(|id| {
            let mut run = run(id.into(), log(id..12), 6);
            run.sample.as_mut().unwrap().guide = if id % 2 == 0 { Spells::new(&[id, 9, 9]).guide() } else { None };
            run
        })
        .collect();
    let expected: Vec<_> = runs.iter().map(|run| host.expected(run)).collect();
    host.poll(runs.into_iter().map(start).collect());
    host.settle();
    for (id, expected) in (1..).zip(expected) {
        assert_eq!(host.records[&RunId(id)].tokens, expected, "run {id}");
    }
}

#[test]
fn a_guide_that_fails_fails_its_run_alone() {
    let mut host = host();
    let mut broken = run(1, log(0..9), 8);
    broken.sample.as_mut().unwrap().guide = Spells { breaks_at: Some(2), ..Spells::new(&[60, 3]) }.guide();
    let other = run(2, log(1..9), 8);
    let expected = host.expected(&other);
    host.poll(vec![start(broken), start(other)]);
    host.settle();
    assert_eq!(host.failure(1).message, "planted");
    assert_eq!(host.records[&RunId(1)].tokens, [60, 3]);
    assert_eq!(host.records[&RunId(2)].tokens, expected);
}

#[test]
fn a_run_that_breaks_the_contract_fails_alone() {
    let mut host = host();
    let good = run(1, log(0..9), 20);
    let mut same_sequence = run(2, log(0..3), 1);
    same_sequence.sequence = SequenceId(1);
    let foreign_token = run(3, vec![LogToken { id: 61, precision: Precision::Native }], 1);
    let precision = run(4, vec![LogToken { id: 1, precision: Precision::Int4 }], 1);
    let mut sampling = run(5, log(0..3), 1);
    sampling.sample.as_mut().unwrap().params = SamplingParams { top_p: -1.0, ..SamplingParams::default() };
    let bad = [same_sequence, foreign_token, precision, sampling, run(6, Vec::new(), 1), run(7, log(0..3), 0)];
    let commands = std::iter::once(good.clone()).chain(bad).map(start).collect();
    host.poll(commands);
    for id in 2..=7 {
        assert_eq!(host.failure(id).reason, Reason::Internal, "run {id}");
    }
    host.settle();
    assert_eq!(host.records[&RunId(1)].tokens, host.expected(&good));
}

#[test]
fn forgetting_a_sequence_ends_its_run_and_frees_its_tail() {
    let mut host = host();
    host.poll(vec![start(run(1, log(0..10), 50))]);
    host.poll(vec![Command::Forget { sequence: SequenceId(1) }]);
    assert_eq!(host.reason(1), FinishReason::Cancelled);
    assert_eq!(host.engine.snapshot().blocks.cached, 2, "its full blocks stay");
}

#[test]
fn a_rejected_plan_fails_its_runs_and_nothing_else() {
    let mut host = host();
    host.complete(run(9, log(0..9), 2));
    for call in [Call::Submit, Call::Collect] {
        host.faults.add(2, call, BackendError::Rejected("planted".into()));
        host.poll(vec![start(run(1, log(0..9), 20)), start(run(2, log(0..9), 20))]);
        host.settle();
        for id in [1, 2] {
            assert_eq!(host.failure(id).reason, Reason::Internal);
            host.records.remove(&RunId(id));
        }
    }
    let expected = host.expected(&run(3, log(0..40), 5));
    assert_eq!(host.complete(run(3, log(0..40), 5)).tokens, expected);
}

#[test]
fn a_fault_fails_the_steps_runs_and_earlier_blocks_stand() {
    let mut host = Host::new(small_device(4, &[64], 4), config(16));
    for (round, call) in [Call::Submit, Call::Collect].into_iter().enumerate() {
        let sequence = 10 + round as u64;
        host.faults.add(2, call, BackendError::Fault("planted".into()));
        let text: Vec<LogToken> = log((0..40).map(|i| i + 7 * round as u32));
        let mut first = run(1, text.clone(), 20);
        first.sequence = SequenceId(sequence);
        host.poll(vec![start(first)]);
        host.settle();
        assert_eq!(host.failure(1).reason, Reason::DeviceFault);
        host.records.remove(&RunId(1));
        let mut again = run(1, text, 20);
        again.sequence = SequenceId(sequence);
        let expected = host.expected(&again);
        let record = host.complete(again);
        assert_eq!(record.tokens, expected);
        assert_eq!(record.usage.cached.device, 32, "two chunks were computed before the fault");
        host.records.clear();
    }
}

#[test]
fn out_of_memory_halves_the_step_until_one_row_does_not_fit() {
    let mut host = Host::new(small_device(4, &[64], 4), config(64));
    for _ in 0..3 {
        host.faults.add(0, Call::Submit, BackendError::OutOfMemory("planted".into()));
    }
    let expected = host.expected(&run(1, log(0..60), 9));
    assert_eq!(host.complete(run(1, log(0..60), 9)).tokens, expected);
    assert_eq!(host.records[&RunId(1)].progress[1], (2, 60), "20 rows fit the time; 10, 5, then 2");
    for _ in 0..20 {
        host.faults.add(0, Call::Collect, BackendError::OutOfMemory("planted".into()));
    }
    host.complete(run(2, log(20..80), 9));
    assert_eq!(host.failure(2).reason, Reason::OutOfMemory);
}

#[test]
fn a_lost_device_is_survived_a_bounded_number_of_times() {
    let mut host = host();
    let expected: Vec<_> = (1..=3).map(|id| host.expected(&run(id, log(id as u32..30), 12))).collect();
    host.faults.add(3, Call::Collect, BackendError::Lost("planted".into()));
    host.faults.add(3, Call::Submit, BackendError::Lost("planted".into()));
    host.poll((1..=3).map(|id| start(run(id, log(id as u32..30), 12))).collect());
    host.settle();
    for id in 1..=3 {
        let record = &host.records[&RunId(id)];
        assert_eq!(record.tokens, expected[id as usize - 1], "run {id}");
        assert!(record.usage.preempted_tokens > 0 && record.usage.recomputed_tokens == 0);
    }
    assert_eq!((host.engine.device().epoch, host.engine.snapshot().device_losses), (3, 2));
    for _ in 0..4 {
        // The step of nothing that is tried after each loss succeeds.
        host.faults.add(1, Call::Submit, BackendError::Lost("planted".into()));
    }
    host.faults.add(0, Call::Submit, BackendError::Lost("one more, of no run any more".into()));
    host.complete(run(4, log(0..30), 12));
    assert_eq!(host.failure(4).reason, Reason::DeviceLost);
    let expected = host.expected(&run(5, log(0..30), 12));
    assert_eq!(host.complete(run(5, log(0..30), 12)).tokens, expected, "and lives on");
}

#[test]
fn runs_are_parked_while_the_device_is_away() {
    let mut host = host();
    let expected: Vec<_> = (1..=3).map(|id| host.expected(&run(id, log(id as u32..30), 12))).collect();
    host.faults.add(4, Call::Collect, BackendError::Lost("planted".into()));
    for _ in 0..30 {
        host.faults.add(0, Call::Submit, BackendError::Lost("still away".into()));
    }
    host.poll((1..=2).map(|id| start(run(id, log(id as u32..30), 12))).collect());
    while host.engine.snapshot().device_losses == 0 {
        assert_eq!(host.engine.next_poll(), NextPoll::Now);
        host.poll(Vec::new());
    }
    let lost_at = host.now;
    host.poll(Vec::new());
    let NextPoll::At(first) = host.engine.next_poll() else { panic!("the device is away") };
    assert!((1..50_000).contains(&(first - lost_at)), "it is tried again soon");
    // Commands are taken meanwhile.
    host.poll(vec![start(run(3, log(3..30), 12)), start(run(4, log(0..9), 5))]);
    host.poll(vec![Command::Cancel { run: RunId(4) }]);
    assert_eq!(host.reason(4), FinishReason::Cancelled);
    let mut pause = 0;
    while let NextPoll::At(next) = host.engine.next_poll() {
        pause = pause.max(next.saturating_sub(host.now));
        host.poll(Vec::new());
    }
    assert!((900_000..=1_000_000).contains(&pause), "pauses grow to a second: {pause}");
    host.settle();
    for id in 1..=3 {
        assert_eq!(host.records[&RunId(id)].tokens, expected[id as usize - 1], "run {id}");
    }
    let snapshot = host.engine.snapshot();
    assert_eq!((snapshot.device_losses, host.engine.device().epoch), (1, 2), "tries that fail are no losses");
    assert_eq!(host.engine.next_poll(), NextPoll::OnCommand);
}

#[test]
fn draining_fails_what_is_left() {
    let mut host = host();
    host.poll((1..=6).map(|id| start(run(id, log(0..9), 50))).collect());
    let effects = host.engine.drain(host.now);
    assert_eq!(effects.len(), 6, "running or waiting");
    assert!(!host.engine.has_work());
    assert!(host.engine.audit().is_empty());
}

/// A device that refuses the first masks it is given, and leaves the step open as the conformance suite asks.
struct NoMasks(TokenBackend, bool);

impl Backend for NoMasks {
    fn describe(&self) -> &DeviceDescription {
        self.0.describe()
    }
    fn submit(&mut self, plan: &StepPlan) -> Result<StepTicket, BackendError> {
        self.0.submit(plan)
    }
    fn collect(&mut self, step: StepTicket, late: &LateInputs) -> Result<StepOutput, BackendError> {
        if !late.masks.is_empty() && !std::mem::replace(&mut self.1, true) {
            return Err(BackendError::Rejected("planted".into()));
        }
        self.0.collect(step, late)
    }
    fn begin_copy(&mut self, copy: BlockCopy) -> Result<CopyTicket, BackendError> {
        self.0.begin_copy(copy)
    }
    fn poll_copies(&mut self) -> Vec<CopyDone> {
        self.0.poll_copies()
    }
}

#[test]
fn a_refused_mask_does_not_leave_a_step_open() {
    let device = small_device(4, &[64], 4);
    let mut host = host();
    host.engine = Engine::new(Box::new(NoMasks(TokenBackend::new(device), false)), config(16));
    let mut forced = run(1, log(0..9), 8);
    forced.sample.as_mut().unwrap().guide = Spells::new(&[60]).guide();
    host.complete(forced.clone());
    assert_eq!(host.failure(1).reason, Reason::Internal);
    forced.run = RunId(2);
    let expected = host.expected(&forced);
    assert_eq!(host.complete(forced).tokens, expected);
}
