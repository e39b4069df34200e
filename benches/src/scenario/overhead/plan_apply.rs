//! What a step costs scheduler and engine by themselves, in this process: everyone decodes, nobody listens.
//!
//! In: a number of sequences. Out: microseconds of `plan` and `apply` together, and of the engine's whole poll, which holds both,
//! the device that does nothing, and the books of its runs. Deliberately not here: prefills and admission (criterion, `steps`).

use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::{Command, Effect, Engine, EngineConfig, Run, RunId, SampleRequest};
use holdfast_kv::{ChainDomain, DomainSecret};
use holdfast_scheduler::{Costs, Job, JobId, JobSampling, Scheduler, SchedulerConfig};
use holdfast_types::{
    LogToken, Precision, SampledToken, SamplingParams, SequenceId, SequenceOutput, StepOutput, StepPlan,
};

use super::device::{NoopDevice, describe};
use crate::player::now;

/// Tokens of each sequence before it decodes.
const HISTORY: u32 = 256;
/// Steps that are not measured at first: admission and prefill in chunks, one sequence after the other.
const SETTLED: usize = 32;
const VOCAB_SIZE: u32 = 1_024;
/// A step is bounded by its rows, never by predicted time.
const FREE: Costs = Costs { step_us: 0.0, row_us: 0.0 };

/// Microseconds of `plan` and `apply` for each of `steps` steps, at most 500, in which all of `sequences` decode.
///
/// # Errors
/// When the scheduler refuses what was made for it.
pub(super) fn scheduler_us(sequences: u32, steps: usize) -> anyhow::Result<Vec<f64>> {
    let mut scheduler = Scheduler::new(&describe(sequences, VOCAB_SIZE), SchedulerConfig::default());
    for id in 0..u64::from(sequences) {
        scheduler.submit(job(id))?;
    }
    scheduler.admit();
    let mut spent_us = Vec::with_capacity(steps);
    let mut settled = 0;
    while spent_us.len() < steps {
        let begin = now();
        let step = scheduler.plan(&FREE, u32::MAX);
        let planned = begin.elapsed();
        let step = step.ok_or_else(|| anyhow::anyhow!("sequences that decode have nothing to do"))?;
        let output = answer(&step.plan);
        let begin = now();
        let advances = scheduler.apply(&output)?;
        let applied = begin.elapsed();
        settled += usize::from(advances.len() == sequences as usize);
        if settled > SETTLED {
            spent_us.push(us(planned + applied));
        }
    }
    Ok(spent_us)
}

/// Microseconds of the engine's poll for each of `steps` steps, at most 500, in which all of `sequences` decode.
///
/// # Errors
/// When a run fails.
pub(super) fn engine_us(sequences: u32, steps: usize) -> anyhow::Result<Vec<f64>> {
    let device = NoopDevice::new(sequences, VOCAB_SIZE, vec![1], Arc::default());
    let mut engine = Engine::new(Box::new(device), EngineConfig::default());
    let mut commands: Vec<Command> = (0..u64::from(sequences)).map(|id| Command::Run(Box::new(run(id)))).collect();
    let mut spent_us = Vec::with_capacity(steps);
    let (mut time, mut settled) = (0, 0);
    while spent_us.len() < steps {
        time += 1;
        let begin = now();
        let effects = engine.poll(time, std::mem::take(&mut commands));
        let spent = begin.elapsed();
        let sampled = effects.iter().filter(|effect| matches!(effect, Effect::Sampled { .. })).count();
        let ended = effects.iter().find(|effect| matches!(effect, Effect::Failed { .. } | Effect::Finished { .. }));
        anyhow::ensure!(ended.is_none(), "a run that was to decode ended: {ended:?}");
        settled += usize::from(sampled == sequences as usize);
        if settled > SETTLED {
            spent_us.push(us(spent));
        }
    }
    Ok(spent_us)
}

fn us(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn answer(plan: &StepPlan) -> StepOutput {
    let asked = plan.sequences.iter().filter(|sequence| !sequence.outputs.is_empty());
    let sequences = asked.map(|sequence| {
        let position = sequence.start + sequence.inputs.len() as u32;
        let samples = vec![SampledToken { id: 1, position, logprobs: Vec::new() }];
        SequenceOutput { slot: sequence.slot, samples, logits: Vec::new() }
    });
    StepOutput { id: plan.id, sequences: sequences.collect(), device_time_us: 0, modelled: None }
}

/// A log that shares no block with another's.
fn log(id: u64) -> Vec<LogToken> {
    let token = |position| if position == 0 { id as u32 % VOCAB_SIZE } else { position };
    (0..HISTORY).map(|position| LogToken { id: token(position), precision: Precision::Native }).collect()
}

fn domain() -> ChainDomain {
    ChainDomain::single(DomainSecret([7; 32]))
}

fn job(id: u64) -> Job {
    let sampling = JobSampling {
        params: SamplingParams::default(),
        seed: id,
        precision: Precision::Native,
        sampled_before: Vec::new(),
    };
    Job {
        id: JobId(id),
        sequence: SequenceId(id),
        log: log(id),
        domain: domain(),
        flow: id,
        transient: false,
        sampling: Some(sampling),
    }
}

fn run(id: u64) -> Run {
    let sample = SampleRequest {
        params: SamplingParams::default(),
        seed: id,
        max_tokens: u32::MAX,
        stop_tokens: Vec::new(),
        precision: Precision::Native,
        guide: None,
        sampled_before: Vec::new(),
    };
    Run {
        run: RunId(id),
        sequence: SequenceId(id),
        log: log(id),
        computed_before: 0,
        domain: domain(),
        flow: id,
        accepted_us: 0,
        transient: false,
        resumed: 0,
        sample: Some(sample),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_step_that_is_asked_for_is_measured() {
        for sequences in [1, 3] {
            let (alone, whole) = (scheduler_us(sequences, 40).unwrap(), engine_us(sequences, 40).unwrap());
            assert_eq!((alone.len(), whole.len()), (40, 40));
            assert!(alone.iter().chain(&whole).all(|us| *us > 0.0), "{alone:?} {whole:?}");
        }
    }
}
