//! What a step gave, cut into parts as a server sends it. A client puts parts together in `answer`.

use holdfast_contracts::device_v1 as pb;
use holdfast_types::{SampledToken, SequenceOutput, StepOutput};

use super::modelled::step_to;

/// Bytes of logits after which a part ends.
const PART_BYTES: usize = 1 << 20;

/// The parts of an output, made one by one: logits of a large step are many times what fits a message.
pub(crate) fn parts(output: StepOutput) -> impl Iterator<Item = pb::StepOutput> {
    let (step_id, device_time_us) = (output.id.0, output.device_time_us);
    let mut modelled = output.modelled.map(step_to);
    let mut pieces = output.sequences.into_iter().flat_map(pieces).peekable();
    let mut ended = false;
    std::iter::from_fn(move || {
        if ended {
            return None;
        }
        let mut part = pb::StepOutput { step_id, ..Default::default() };
        let mut bytes = 0;
        while bytes < PART_BYTES
            && let Some(piece) = pieces.next()
        {
            bytes += piece.logits.iter().map(|row| row.logits.len()).sum::<usize>();
            match part.sequences.last_mut().filter(|last| last.slot == piece.slot) {
                Some(last) => last.logits.extend(piece.logits),
                None => part.sequences.push(piece),
            }
        }
        ended = pieces.peek().is_none();
        if ended {
            (part.last, part.device_time_us, part.modelled) = (true, device_time_us, modelled.take());
        }
        Some(part)
    })
}

/// A sequence's samples, then its rows of logits one by one.
fn pieces(output: SequenceOutput) -> impl Iterator<Item = pb::SequenceOutput> {
    let slot = output.slot.0;
    let samples = output.samples.into_iter().map(sample).collect();
    let head = pb::SequenceOutput { slot, samples, logits: Vec::new() };
    let rows = output.logits.into_iter().map(move |(row, logits)| {
        let logits = logits.into_iter().flat_map(f32::to_le_bytes).collect();
        pb::SequenceOutput { slot, samples: Vec::new(), logits: vec![pb::RowLogits { row, logits }] }
    });
    std::iter::once(head).chain(rows)
}

fn sample(sample: SampledToken) -> pb::Sample {
    let logprobs = sample.logprobs.into_iter();
    let logprobs = logprobs.map(|entry| pb::TokenLogprob { token: entry.id, logprob: entry.logprob });
    pb::Sample { token: sample.id, position: sample.position, logprobs: logprobs.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_types::{SlotId, StepId};

    #[test]
    fn a_part_ends_when_it_is_full_and_the_last_one_says_so() {
        let rows = |count| (0..count).map(|row| (row, vec![0.5_f32; PART_BYTES / 8])).collect::<Vec<_>>();
        let sequence = |slot, count| SequenceOutput { slot: SlotId(slot), samples: Vec::new(), logits: rows(count) };
        let output = |sequences| StepOutput { id: StepId(7), sequences, device_time_us: 9, modelled: None };
        let shape = |sequences| {
            let shape = |part: pb::StepOutput| {
                assert_eq!((part.step_id, part.device_time_us), (7, if part.last { 9 } else { 0 }));
                part.sequences.iter().map(|s| (s.slot, s.logits.len())).collect::<Vec<_>>()
            };
            parts(output(sequences)).map(shape).collect::<Vec<_>>()
        };
        assert_eq!(shape(vec![]), vec![vec![]]);
        assert_eq!(shape(vec![sequence(1, 5)]), [[(1, 2)], [(1, 2)], [(1, 1)]]);
        assert_eq!(shape(vec![sequence(1, 1), sequence(2, 1), sequence(3, 0)]), [vec![(1, 1), (2, 1)], vec![(3, 0)]]);
    }
}
