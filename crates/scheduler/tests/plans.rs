//! Golden plans: what a device is told, step by step.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use harness::{Books, device, job, with_window, words};
use holdfast_scheduler::{Abandon, Costs, JobId, Scheduler, SchedulerConfig, Step};
use holdfast_types::{DeviceDescription, SamplingParams, SlotChange};

const CHEAP: Costs = Costs { step_us: 0.0, row_us: 1.0 };

struct Bench {
    device: DeviceDescription,
    scheduler: Scheduler,
    books: Books,
}

impl Bench {
    fn new(blocks: u32, slots: u32, rows: u32, chunk: u32) -> Self {
        let device = device(4, blocks, slots, rows);
        let config = SchedulerConfig { prefill_chunk_tokens: chunk, step_budget_us: 1_000_000 };
        Self { scheduler: Scheduler::new(&device, config), device, books: Books::default() }
    }

    fn plan(&mut self) -> Step {
        self.scheduler.admit();
        self.scheduler.plan(&CHEAP, u32::MAX).unwrap()
    }

    fn step(&mut self) -> Vec<String> {
        let step = self.plan();
        let output = self.books.run(&self.device, &step.plan);
        self.scheduler.apply(&output).unwrap();
        assert_eq!(self.scheduler.audit(), Vec::<String>::new());
        words(&step.plan)
    }
}

#[test]
fn prefill_in_chunks_then_decode_with_changes_only() {
    let mut bench = Bench::new(16, 2, 32, 6);
    bench.scheduler.submit(job(1, 1, 0..11)).unwrap();
    assert_eq!(bench.step(), ["open 0", "slot 0 [0..] = 0 1", "slot 0 rows 0..6"]);
    assert_eq!(bench.step(), ["slot 0 [2..] = 2", "slot 0 rows 6..11, sample"]);
    assert_eq!(bench.step(), ["slot 0 rows 11..12, sample"]);
    assert_eq!(bench.step(), ["slot 0 [3..] = 3", "slot 0 rows 12..13, sample"]);
}

#[test]
fn a_newcomer_shares_what_is_there_and_rides_with_the_decodes() {
    let mut bench = Bench::new(16, 2, 32, 8);
    bench.scheduler.submit(job(1, 1, 0..9)).unwrap();
    bench.step();
    bench.step();
    bench.scheduler.submit(job(2, 2, 0..14)).unwrap();
    let shared = ["open 1", "slot 1 [0..] = 0 1 3 4", "slot 0 rows 9..10, sample", "slot 1 rows 8..14, sample"];
    assert_eq!(bench.step(), shared);
}

#[test]
fn a_finished_job_closes_its_slot_with_the_next_step_and_the_slot_is_used_again() {
    let mut bench = Bench::new(16, 1, 32, 8);
    bench.scheduler.submit(job(1, 1, 0..6)).unwrap();
    bench.scheduler.submit(job(2, 2, 50..53)).unwrap();
    bench.step();
    assert!(bench.scheduler.remove(JobId(1)));
    assert_eq!(bench.step(), ["close 0", "open 0", "slot 0 [0..] = 2", "slot 0 rows 0..3, sample"]);
}

#[test]
fn a_covered_log_is_finished_through_a_copy_that_gives_way() {
    let mut bench = Bench::new(16, 2, 32, 16);
    bench.scheduler.submit(job(1, 1, 0..9)).unwrap();
    bench.step();
    bench.scheduler.remove(JobId(1));
    bench.scheduler.submit(job(2, 2, 0..8)).unwrap();
    let copied = ["close 0", "open 0", "slot 0 [0..] = 0 3", "copy 1 to 3", "slot 0 rows 7..8, sample"];
    assert_eq!(bench.step(), copied);
    let replaced = ["slot 0 [1..] = 1", "slot 0 [2..] = 3", "slot 0 rows 8..9, sample"];
    assert_eq!(bench.step(), replaced);
}

#[test]
fn the_newest_is_preempted_and_finds_again_what_was_not_taken() {
    let mut bench = Bench::new(5, 2, 32, 16);
    bench.scheduler.submit(job(1, 1, 0..8)).unwrap();
    bench.scheduler.submit(job(2, 2, 50..58)).unwrap();
    bench.step();
    let grown = ["slot 0 [2..] = 4", "close 1", "slot 0 rows 8..9, sample"];
    let step = bench.step();
    assert_eq!(bench.scheduler.preemptions(), 1);
    assert_eq!(step, [grown[1], grown[0], grown[2]]);
    assert_eq!((bench.scheduler.running().collect::<Vec<_>>(), bench.scheduler.waiting()), (vec![JobId(1)], 1));
    bench.scheduler.remove(JobId(1));
    assert_eq!(bench.step()[2..], ["slot 0 [0..] = 2 3 4", "slot 0 rows 8..9, sample"]);
}

#[test]
fn a_step_that_did_not_happen_is_said_again() {
    let mut bench = Bench::new(16, 2, 32, 8);
    bench.scheduler.submit(job(1, 1, 0..6)).unwrap();
    let first = bench.plan();
    assert_eq!(bench.scheduler.abandon(Abandon::NotRun), [JobId(1)]);
    assert_eq!(bench.scheduler.audit(), Vec::<String>::new());
    let second = bench.plan();
    assert_eq!(words(&first.plan), words(&second.plan));
    assert!(first.plan.id < second.plan.id);
    bench.scheduler.abandon(Abandon::Faulted);
    let third = bench.plan();
    assert_eq!(words(&third.plan), words(&first.plan)[1..], "the slot is open, its table is not to be trusted");
}

#[test]
fn an_output_that_does_not_answer_is_refused() {
    let mut bench = Bench::new(16, 2, 32, 8);
    bench.scheduler.submit(job(1, 1, 0..6)).unwrap();
    let step = bench.plan();
    let good = bench.books.run(&bench.device, &step.plan);
    let mut bad = vec![good.clone(); 5];
    bad[0].id.0 += 1;
    bad[1].sequences.clear();
    bad[2].sequences[0].samples[0].position = 5;
    bad[3].sequences[0].samples[0].id = 1000;
    bad[4].sequences[0].slot.0 = 1;
    for output in bad {
        assert!(bench.scheduler.apply(&output).is_err(), "{output:?}");
    }
    assert_eq!(bench.scheduler.apply(&good).unwrap().len(), 1);
}

#[test]
fn a_slot_knows_the_past_its_penalties_ask_for() {
    let mut bench = Bench::new(16, 2, 32, 8);
    let mut counted = job(1, 1, [5, 3, 5, 9]);
    let sampling = counted.sampling.as_mut().unwrap();
    sampling.params = SamplingParams { repetition_penalty: 1.1, ..SamplingParams::default() };
    sampling.sampled_before = vec![3, 7, 3];
    bench.scheduler.submit(counted).unwrap();
    let step = bench.plan();
    let Some(SlotChange::Open { sampling, .. }) = step.plan.slots.first() else { panic!("{:?}", step.plan) };
    assert_eq!((sampling.context.as_slice(), sampling.sampled.as_slice()), (&[3, 5, 9][..], &[(3, 2), (7, 1)][..]));
}

#[test]
fn entries_behind_a_window_are_not_mentioned_and_their_blocks_are_used_again() {
    let mut bench = Bench::new(16, 1, 32, 4);
    // A window of five tokens: one block before the one in progress, and two in all while a step ends one.
    bench.device = with_window(bench.device, 5, 3);
    let config = SchedulerConfig { prefill_chunk_tokens: 4, step_budget_us: 1_000_000 };
    bench.scheduler = Scheduler::new(&bench.device, config);
    bench.scheduler.submit(job(1, 1, 0..21)).unwrap();
    assert_eq!(bench.step(), ["open 0", "slot 0 [0..] = 0", "slot 0 group 1 [0..] = 0", "slot 0 rows 0..4"]);
    assert_eq!(bench.step(), ["slot 0 [1..] = 1", "slot 0 group 1 [1..] = 1", "slot 0 rows 4..8"]);
    assert_eq!(bench.step(), ["slot 0 [2..] = 2", "slot 0 group 1 [2..] = 2", "slot 0 rows 8..12"]);
    assert_eq!(bench.step(), ["slot 0 [3..] = 3", "slot 0 group 1 [3..] = 1", "slot 0 rows 12..16"]);
    assert_eq!(bench.step(), ["slot 0 [4..] = 4", "slot 0 group 1 [4..] = 2", "slot 0 rows 16..20"]);
    assert_eq!(bench.step(), ["slot 0 [5..] = 5", "slot 0 group 1 [5..] = 1", "slot 0 rows 20..21, sample"]);
    // Its next run is told of what its first row sees, and of nothing before.
    bench.scheduler.remove(JobId(1));
    bench.scheduler.submit(job(1, 1, 0..22)).unwrap();
    let told =
        ["close 0", "open 0", "slot 0 [0..] = 0 1 2 3 4 5", "slot 0 group 1 [4..] = 2 1", "slot 0 rows 21..22, sample"];
    assert_eq!(bench.step(), told);
}
