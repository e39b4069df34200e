//! What a step costs the scheduler: admission, `plan` and `apply`, by the number of sequences.
//!
//! `cargo bench -p holdfast-benches --bench steps`; figures are sequences per second. Its limit: each sequence of a step is chosen,
//! given its blocks, said in the plan and advanced; with n of them that is n log n for the sort, so the time of a sequence should
//! hardly grow with their number. The device answers at once and is not measured. Deliberately not here: the engine's books of
//! its runs, and the device.
//!
//! Sequences have 1,024 tokens of history and decode 1,024 more; then the scheduler is made anew, outside of the measurement.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use holdfast_engine::testing::small_device;
use holdfast_kv::{ChainDomain, DomainSecret};
use holdfast_scheduler::{Costs, Job, JobId, JobSampling, Scheduler, SchedulerConfig};
use holdfast_types::{
    DeviceDescription, LogToken, Precision, SampledToken, SamplingParams, SequenceId, SequenceOutput, StepLimits,
    StepOutput, StepPlan,
};

/// Sequences that decode at once.
const SEQUENCES: [u64; 3] = [1, 64, 1_024];
const BLOCK_TOKENS: u32 = 16;
/// Tokens of a sequence before it decodes, and that it decodes before all begins anew.
const HISTORY: u32 = 1_024;
const DECODED: u32 = 1_024;
/// Tokens of a prefill that runs beside the decodes, in chunks of the scheduler's default.
const PREFILL: u32 = 8_192;
/// Steps are bounded by the chunk of a prefill here, never by time.
const COSTS: Costs = Costs { step_us: 0.0, row_us: 0.0 };

fn admission(c: &mut Criterion) {
    let mut group = c.benchmark_group("scheduler admission");
    for sequences in SEQUENCES {
        group.throughput(Throughput::Elements(sequences));
        group.bench_function(BenchmarkId::from_parameter(sequences), |b| {
            b.iter_batched(
                || waiting(sequences),
                |mut scheduler| {
                    let admitted = scheduler.admit();
                    assert_eq!(admitted.len() as u64, sequences);
                    (scheduler, admitted)
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn steps(c: &mut Criterion) {
    let parts: [(&str, Part); 2] = [("plan", |took| took.plan), ("apply", |took| took.apply)];
    for (load, with_prefill) in [("decode", false), ("decode beside a prefill", true)] {
        for (part, pick) in parts {
            let mut group = c.benchmark_group(format!("scheduler {part}, {load}"));
            for sequences in SEQUENCES {
                group.throughput(Throughput::Elements(sequences));
                group.bench_function(BenchmarkId::from_parameter(sequences), |b| {
                    let mut rig = Rig::new(sequences, with_prefill);
                    b.iter_custom(|steps| {
                        let mut spent = Duration::ZERO;
                        for _ in 0..steps {
                            if rig.steps == DECODED {
                                rig = Rig::new(sequences, with_prefill);
                            }
                            spent += pick(rig.step());
                        }
                        spent
                    });
                });
            }
            group.finish();
        }
    }
}

/// Which part of a step is measured.
type Part = fn(Took) -> Duration;

/// How long the parts of a step took.
#[derive(Clone, Copy)]
struct Took {
    plan: Duration,
    apply: Duration,
}

/// A scheduler whose sequences have their history computed.
struct Rig {
    scheduler: Scheduler,
    sequences: u64,
    /// The prefill beside the decodes; each takes the next id.
    prefill: Option<JobId>,
    steps: u32,
}

impl Rig {
    fn new(sequences: u64, with_prefill: bool) -> Self {
        let mut rig = Self { scheduler: waiting(sequences), sequences, prefill: None, steps: 0 };
        rig.scheduler.admit();
        // The step that computes the last of the history samples the first token of each.
        while rig.run().1 != sequences as usize {}
        if with_prefill {
            rig.next_prefill(JobId(sequences));
        }
        rig
    }

    /// One step in which every sequence decodes.
    fn step(&mut self) -> Took {
        let (took, samples) = self.run();
        assert_eq!(samples as u64, self.sequences, "everyone decodes in every step");
        self.steps += 1;
        if let Some(prefill) = self.prefill.filter(|prefill| self.scheduler.is_complete(*prefill)) {
            self.scheduler.remove(prefill);
            self.next_prefill(JobId(prefill.0 + 1));
        }
        took
    }

    fn next_prefill(&mut self, id: JobId) {
        self.scheduler.submit(Job { sampling: None, ..job(id.0, PREFILL) }).unwrap();
        assert_eq!(self.scheduler.admit().len(), 1, "there is room for one prefill");
        self.prefill = Some(id);
    }

    /// Plans a step, answers it and applies it; the time of both, and how many sampled.
    fn run(&mut self) -> (Took, usize) {
        let (step, plan) = timed(|| self.scheduler.plan(&COSTS, u32::MAX).unwrap());
        let output = answer(&step.plan);
        let (advances, apply) = timed(|| self.scheduler.apply(&output).unwrap());
        (Took { plan, apply }, advances.iter().filter(|advance| advance.sampled.is_some()).count())
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures")]
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begin = Instant::now();
    let result = work();
    (result, begin.elapsed())
}

/// What a device says that does nothing.
fn answer(plan: &StepPlan) -> StepOutput {
    let asked = plan.sequences.iter().filter(|sequence| !sequence.outputs.is_empty());
    let sequences = asked.map(|sequence| {
        let position = sequence.start + sequence.inputs.len() as u32;
        let sample = SampledToken { id: position % 61, position, logprobs: Vec::new() };
        SequenceOutput { slot: sequence.slot, samples: vec![sample], logits: Vec::new() }
    });
    StepOutput { id: plan.id, sequences: sequences.collect(), device_time_us: 0, modelled: None }
}

/// A scheduler in which so many sequences wait, each in a flow of its own.
fn waiting(sequences: u64) -> Scheduler {
    let mut scheduler = Scheduler::new(&device(sequences), SchedulerConfig::default());
    for id in 0..sequences {
        scheduler.submit(job(id, HISTORY)).unwrap();
    }
    scheduler
}

/// Room for every sequence to its end, and for one prefill and the cached blocks of another.
fn device(sequences: u64) -> DeviceDescription {
    let tokens = sequences as u32 * (HISTORY + DECODED + BLOCK_TOKENS) + 2 * PREFILL;
    let slots = sequences as u32 + 1;
    let limits = StepLimits { rows: 1 << 20, sequences: slots, context: 1 << 16, in_flight: 1 };
    DeviceDescription { limits, ..small_device(BLOCK_TOKENS, &[tokens / BLOCK_TOKENS], slots) }
}

/// A greedy job whose log shares no block with another's.
fn job(id: u64, tokens: u32) -> Job {
    let token = |position: u32| if position == 0 { id as u32 } else { position };
    let sampling = JobSampling {
        params: SamplingParams::default(),
        seed: id,
        precision: Precision::Native,
        sampled_before: Vec::new(),
    };
    Job {
        id: JobId(id),
        sequence: SequenceId(id),
        log: (0..tokens).map(|position| LogToken { id: token(position), precision: Precision::Native }).collect(),
        domain: ChainDomain::single(DomainSecret([7; 32])),
        flow: id,
        transient: false,
        sampling: Some(sampling),
    }
}

criterion_group!(benches, admission, steps);
criterion_main!(benches);
