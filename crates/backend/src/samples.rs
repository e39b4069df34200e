//! The samplers of a device's open slots, and what they make of the logits of a step.
//!
//! In: sampler changes of prepared steps, then for each sequence the logits of the rows asked for, and late masks. Out:
//! [`SequenceOutput`]s. Deliberately not here: how one token is drawn ([`crate::sampler`]), and where logits come from.

use std::collections::BTreeSet;

use holdfast_types::{LateInputs, OutputRequest, RowInput, SequenceOutput, SlotId, TokenId, TokenMask};

use crate::BackendError;
use crate::plan::{Prepared, PreparedSequence, SamplerChange};
use crate::sampler::{SlotSampler, check_mask};

/// Samplers of open slots, as of the last step that ran.
#[derive(Debug)]
pub struct Samplers {
    live: Vec<Option<Live>>,
}

/// What a running slot remembers.
#[derive(Debug)]
struct Live {
    sampler: Box<SlotSampler>,
    last: Option<TokenId>,
}

impl Samplers {
    /// For `count` slots, none of them open.
    pub fn new(count: u32) -> Self {
        Self { live: (0..count).map(|_| None).collect() }
    }

    /// Follows the changes of a step that runs now.
    pub fn apply(&mut self, changes: &[SamplerChange]) {
        for change in changes {
            match change {
                SamplerChange::Open(slot, sampler) => {
                    self.live[*slot as usize] = Some(Live { sampler: sampler.clone(), last: None });
                }
                SamplerChange::Close(slot) => self.live[*slot as usize] = None,
            }
        }
    }

    /// The latest sample of a slot.
    pub fn last(&self, slot: u32) -> Option<TokenId> {
        self.live[slot as usize].as_ref().and_then(|live| live.last)
    }

    /// How many alternatives a slot reports beside each sample; `None` reports no log probabilities.
    pub fn logprobs(&self, slot: u32) -> Option<u32> {
        self.live[slot as usize].as_ref().and_then(|live| live.sampler.logprobs())
    }

    /// Samples and logits of one sequence; `logits` gives the rows asked for, in order.
    pub fn output<'a>(
        &mut self,
        sequence: &PreparedSequence,
        logits: &mut impl Iterator<Item = &'a [f32]>,
        late: &LateInputs,
    ) -> SequenceOutput {
        let mut out = SequenceOutput { slot: SlotId(sequence.slot), samples: Vec::new(), logits: Vec::new() };
        // The row that the latest sample predicts, and the sample.
        let mut latest: Option<(usize, TokenId)> = None;
        let mut accepted = true;
        for (asked, logits) in sequence.outputs.iter().zip(logits) {
            if asked.request != OutputRequest::Sample {
                out.logits.push((asked.row, logits.to_vec()));
            }
            if asked.request == OutputRequest::Logits {
                continue;
            }
            // A sample holds only while the rows after the one before it were what that one drew.
            accepted &= latest.is_none_or(|(row, token)| sequence.inputs[row] == RowInput::Token(token));
            let Some(live) = self.live[sequence.slot as usize].as_mut().filter(|_| accepted) else { continue };
            let mask = mask_of(late, sequence.slot, asked.row);
            let sample = live.sampler.sample(logits, sequence.start + asked.row + 1, mask);
            live.last = Some(sample.id);
            latest = Some((asked.row as usize + 1, sample.id));
            out.samples.push(sample);
        }
        out
    }
}

/// Checks late inputs against the step that they belong to.
///
/// # Errors
/// [`BackendError::Rejected`] for a mask of a row that does not sample, a second mask of one row, and a mask that is wrong in itself.
pub fn check_late(step: &Prepared, late: &LateInputs, vocab: u32) -> Result<(), BackendError> {
    let mut seen = BTreeSet::new();
    for (slot, row, mask) in &late.masks {
        let samples = step.sequences.iter().filter(|sequence| sequence.slot == slot.0).any(|sequence| {
            sequence.outputs.iter().any(|output| output.row == *row && output.request != OutputRequest::Logits)
        });
        if !samples {
            let why = format!("a mask for row {row} of slot {}, which does not sample", slot.0);
            return Err(BackendError::Rejected(why));
        }
        if !seen.insert((slot.0, *row)) {
            return Err(BackendError::Rejected(format!("two masks for row {row} of slot {}", slot.0)));
        }
        check_mask(mask, vocab)?;
    }
    Ok(())
}

/// The mask of a row, if it has one.
fn mask_of(late: &LateInputs, slot: u32, row: u32) -> Option<&TokenMask> {
    late.masks.iter().find(|(of, at, _)| (of.0, *at) == (slot, row)).map(|(_, _, mask)| mask)
}
