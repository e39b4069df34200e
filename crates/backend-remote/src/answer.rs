//! What a step gave, put together from its parts and held against what was asked.
//!
//! In: parts as they come; then samples and masks. Out: the rows of logits and the samples, or the sentence that says what is wrong. Two
//! kinds of wrong: an answer that has another shape than its request ([`Assembly`]) ends the life, because nothing after it can be
//! trusted; values that cannot be ([`check_samples`]) fail the step.

use std::collections::VecDeque;

use holdfast_backend::plan::{Prepared, PreparedSequence};
use holdfast_contracts::device_v1 as pb;
use holdfast_types::{
    DeviceDescription, LateInputs, OutputRequest, RowInput, SampledToken, SequenceOutput, SlotId, StepId, StepOutput,
    TokenLogprob,
};

use crate::wire::modelled::step_from;

/// An output that comes in.
#[derive(Debug)]
pub(crate) struct Assembly {
    id: StepId,
    vocab: usize,
    /// Sequences of the plan, and whether the device stands for a chip.
    planned: usize,
    models_chip: bool,
    /// Sequences whose turn has not come, with the most samples and the rows of logits that are still owed.
    owed: VecDeque<(u32, usize, VecDeque<u32>)>,
    /// What has come.
    sequences: Vec<SequenceOutput>,
}

impl Assembly {
    /// For a step that was submitted. A device that draws no samples owes the logits of every row asked for.
    pub(crate) fn new(step: &Prepared, draws_samples: bool, device: &DeviceDescription) -> Self {
        let asked = step.sequences.iter().filter(|sequence| !sequence.outputs.is_empty());
        let owed = asked.map(|sequence| {
            let rows = sequence.outputs.iter().filter(|asked| !draws_samples || asked.request != OutputRequest::Sample);
            let samples = if draws_samples { rows_that_sample(sequence).count() } else { 0 };
            (sequence.slot, samples, rows.map(|asked| asked.row).collect())
        });
        Self {
            id: step.id,
            vocab: device.vocab_size as usize,
            planned: step.sequences.len(),
            models_chip: device.modelled.is_some(),
            owed: owed.collect(),
            sequences: Vec::new(),
        }
    }

    /// Takes a part. Gives the output after the last one. The error says what does not fit its request.
    pub(crate) fn take(&mut self, part: pb::StepOutput) -> Result<Option<StepOutput>, String> {
        if part.step_id != self.id.0 {
            return Err(format!("it gave step {} when step {} was collected", part.step_id, self.id.0));
        }
        if part.sequences.is_empty() && !part.last {
            return Err(format!("it gave an empty part of step {}", part.step_id));
        }
        for sequence in part.sequences {
            self.sequence(sequence)?;
        }
        if !part.last {
            return Ok(None);
        }
        if let Some((slot, ..)) = self.owed.iter().find(|(slot, _, rows)| !rows.is_empty() || !self.has_begun(*slot)) {
            return Err(format!("it left out what slot {slot} asked for"));
        }
        if part.modelled.is_some() && !self.models_chip {
            return Err("it modelled a step, and stands for no chip".to_owned());
        }
        let modelled = part.modelled.map(|modelled| step_from(modelled, self.planned)).transpose()?;
        let sequences = std::mem::take(&mut self.sequences);
        Ok(Some(StepOutput { id: self.id, sequences, device_time_us: part.device_time_us, modelled }))
    }

    fn has_begun(&self, slot: u32) -> bool {
        self.sequences.last().is_some_and(|last| last.slot.0 == slot)
    }

    fn sequence(&mut self, wire: pb::SequenceOutput) -> Result<(), String> {
        let slot = wire.slot;
        if !self.has_begun(slot) {
            // The one before is complete when the next begins.
            if let Some(before) = self.sequences.last().map(|last| last.slot.0)
                && let Some((_, _, rows)) = self.owed.pop_front_if(|(owed, ..)| *owed == before)
                && !rows.is_empty()
            {
                return Err(format!("it left out logits of slot {before}"));
            }
            if self.owed.front().is_none_or(|(owed, ..)| *owed != slot) {
                return Err(format!("it gave output of slot {slot}, whose turn it is not"));
            }
            self.sequences.push(SequenceOutput { slot: SlotId(slot), samples: Vec::new(), logits: Vec::new() });
        }
        let (Some((_, samples, rows)), Some(output)) = (self.owed.front_mut(), self.sequences.last_mut()) else {
            return Err(format!("it gave output of slot {slot}, which asked for none"));
        };
        *samples = samples
            .checked_sub(wire.samples.len())
            .ok_or_else(|| format!("it gave more samples of slot {slot} than were asked for"))?;
        output.samples.extend(wire.samples.into_iter().map(sample));
        for row in wire.logits {
            if rows.pop_front() != Some(row.row) {
                return Err(format!("it gave logits of row {} of slot {slot}, whose turn it is not", row.row));
            }
            let (floats, rest) = row.logits.as_chunks::<4>();
            if floats.len() != self.vocab || !rest.is_empty() {
                let (bytes, wanted) = (row.logits.len(), 4 * self.vocab);
                return Err(format!("it gave {bytes} bytes of logits for row {}, not {wanted}", row.row));
            }
            output.logits.push((row.row, floats.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()));
        }
        Ok(())
    }
}

fn sample(wire: pb::Sample) -> SampledToken {
    let logprobs = wire.logprobs.into_iter().map(|entry| TokenLogprob { id: entry.token, logprob: entry.logprob });
    SampledToken { id: wire.token, position: wire.position, logprobs: logprobs.collect() }
}

fn rows_that_sample(sequence: &PreparedSequence) -> impl Iterator<Item = u32> + '_ {
    sequence.outputs.iter().filter(|asked| asked.request != OutputRequest::Logits).map(|asked| asked.row)
}

/// Checks the samples that a device drew: their number and positions, tokens of the vocabulary that the masks allow, log
/// probabilities as asked for. `logprobs` says how many alternatives a slot reports.
pub(crate) fn check_samples(
    step: &Prepared,
    output: &StepOutput,
    late: &LateInputs,
    vocab: u32,
    logprobs: impl Fn(u32) -> Option<u32>,
) -> Result<(), String> {
    let asked = step.sequences.iter().filter(|sequence| !sequence.outputs.is_empty());
    for (sequence, output) in asked.zip(&output.sequences) {
        let slot = sequence.slot;
        let mut samples = output.samples.iter();
        let mut latest: Option<(usize, u32)> = None;
        for row in rows_that_sample(sequence) {
            if latest.is_some_and(|(next, token)| sequence.inputs[next] != RowInput::Token(token)) {
                break;
            }
            let Some(sample) = samples.next() else { return Err(format!("a sample of slot {slot} is missing")) };
            let position = sequence.start + row + 1;
            if sample.position != position {
                return Err(format!("a sample of slot {slot} is at position {}, not {position}", sample.position));
            }
            if sample.id >= vocab {
                return Err(format!("it sampled token {}, the vocabulary ends at {vocab}", sample.id));
            }
            let mut masks = late.masks.iter().filter(|(of, at, _)| (of.0, *at) == (slot, row));
            if masks.any(|(.., mask)| !mask.allows(sample.id)) {
                return Err(format!("it sampled token {} of slot {slot}, which the mask forbids", sample.id));
            }
            check_logprobs(sample, logprobs(slot), vocab)?;
            latest = Some((row as usize + 1, sample.id));
        }
        if samples.next().is_some() {
            return Err(format!("a sample of slot {slot} follows one that was not the next input"));
        }
    }
    Ok(())
}

fn check_logprobs(sample: &SampledToken, asked: Option<u32>, vocab: u32) -> Result<(), String> {
    let wanted = asked.map_or(0, |count| 1 + count.min(vocab - 1)) as usize;
    let has_own_first = sample.logprobs.first().is_none_or(|first| first.id == sample.id);
    let in_range = |entry: &TokenLogprob| entry.id < vocab && entry.logprob.is_finite();
    if sample.logprobs.len() != wanted || !has_own_first || !sample.logprobs.iter().all(in_range) {
        return Err(format!(
            "the log probabilities of token {} are not {wanted} finite ones, its own first",
            sample.id
        ));
    }
    Ok(())
}
