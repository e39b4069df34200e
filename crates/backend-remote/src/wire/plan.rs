//! Plans and masks: what a runtime says to a device.

use holdfast_contracts::device_v1 as pb;
use holdfast_types::{
    BlockId, BlockMove, KvDestination, LateInputs, OutputRequest, RowInput, RowOutput, SamplingParams, SequenceStep,
    SlotChange, SlotId, SlotSampling, StepId, StepPlan, TableChange, TokenId, TokenMask,
};
use pb::{row_mask, slot_change};

use super::{precision_from, precision_to};

/// A plan as it is sent. To a device that draws no samples (`drawn` is given, and knows the latest sample of a slot) it says tokens for
/// samples, and asks for logits alone.
pub(crate) fn to_wire(plan: &StepPlan, drawn: Option<&dyn Fn(SlotId) -> TokenId>) -> pb::StepPlan {
    let change = |change: &SlotChange| match change {
        SlotChange::Open { slot, sampling } => slot_change::Change::Open(pb::SlotOpen {
            slot: slot.0,
            sampling: drawn.is_none().then(|| sampling_to(sampling)),
        }),
        SlotChange::Table(table) => slot_change::Change::Table(pb::TableChange {
            slot: table.slot.0,
            group: table.group.into(),
            first: table.first,
            blocks: table.blocks.iter().map(|block| block.0).collect(),
        }),
        SlotChange::Close { slot } => slot_change::Change::Close(slot.0),
    };
    let copy = |copy: &BlockMove| pb::BlockMove { group: copy.group.into(), from: copy.from.0, to: copy.to.0 };
    pb::StepPlan {
        step_id: plan.id.0,
        slots: plan.slots.iter().map(|slot| pb::SlotChange { change: Some(change(slot)) }).collect(),
        copies: plan.copies.iter().map(copy).collect(),
        sequences: plan.sequences.iter().map(|sequence| sequence_to(sequence, drawn)).collect(),
    }
}

fn sequence_to(sequence: &SequenceStep, drawn: Option<&dyn Fn(SlotId) -> TokenId>) -> pb::SequenceStep {
    let mut last_sample_rows = Vec::new();
    let tokens = (0..).zip(&sequence.inputs).map(|(row, input)| match (input, drawn) {
        (RowInput::Token(token), _) => *token,
        (RowInput::LastSample, Some(drawn)) => drawn(sequence.slot),
        (RowInput::LastSample, None) => {
            last_sample_rows.push(row);
            0
        }
    });
    let tokens = tokens.collect();
    let request = |request| match request {
        _ if drawn.is_some() => pb::OutputRequest::Logits,
        OutputRequest::Sample => pb::OutputRequest::Sample,
        OutputRequest::Logits => pb::OutputRequest::Logits,
        OutputRequest::LogitsAndSample => pb::OutputRequest::LogitsAndSample,
    };
    let output = |output: &RowOutput| pb::RowOutput { row: output.row, request: request(output.request).into() };
    pb::SequenceStep {
        slot: sequence.slot.0,
        start: sequence.start,
        tokens,
        last_sample_rows,
        precision: precision_to(sequence.precision).into(),
        scratch: sequence.destination == KvDestination::Scratch,
        outputs: sequence.outputs.iter().map(output).collect(),
    }
}

fn sampling_to(sampling: &SlotSampling) -> pb::SlotSampling {
    let p = &sampling.params;
    pb::SlotSampling {
        temperature: p.temperature,
        top_k: p.top_k,
        top_p: p.top_p,
        min_p: p.min_p,
        frequency_penalty: p.frequency_penalty,
        presence_penalty: p.presence_penalty,
        repetition_penalty: p.repetition_penalty,
        logit_bias: p.logit_bias.iter().map(|&(token, bias)| pb::LogitBias { token, bias }).collect(),
        logprobs: p.logprobs,
        seed: sampling.seed,
        context: sampling.context.clone(),
        drawn: sampling.sampled.iter().map(|&(token, count)| pb::DrawnToken { token, count }).collect(),
    }
}

/// A plan as it was received. The error says what no plan can be.
pub(crate) fn from_wire(wire: pb::StepPlan) -> Result<StepPlan, String> {
    let copy = |copy: pb::BlockMove| {
        let (from, to) = (BlockId(copy.from), BlockId(copy.to));
        Ok(BlockMove { group: group_from(copy.group)?, from, to })
    };
    Ok(StepPlan {
        id: StepId(wire.step_id),
        slots: wire.slots.into_iter().map(change_from).collect::<Result<_, _>>()?,
        copies: wire.copies.into_iter().map(copy).collect::<Result<_, String>>()?,
        sequences: wire.sequences.into_iter().map(sequence_from).collect::<Result<_, _>>()?,
    })
}

pub(crate) fn group_from(group: u32) -> Result<u16, String> {
    u16::try_from(group).map_err(|_| format!("there is no KV group {group}"))
}

fn change_from(wire: pb::SlotChange) -> Result<SlotChange, String> {
    Ok(match wire.change.ok_or("a change of a slot is not set")? {
        slot_change::Change::Open(open) => {
            let sampling = open.sampling.ok_or("this device draws samples, and a slot is opened without settings")?;
            SlotChange::Open { slot: SlotId(open.slot), sampling: Box::new(sampling_from(sampling)) }
        }
        slot_change::Change::Table(table) => SlotChange::Table(TableChange {
            slot: SlotId(table.slot),
            group: group_from(table.group)?,
            first: table.first,
            blocks: table.blocks.into_iter().map(BlockId).collect(),
        }),
        slot_change::Change::Close(slot) => SlotChange::Close { slot: SlotId(slot) },
    })
}

fn sequence_from(wire: pb::SequenceStep) -> Result<SequenceStep, String> {
    let mut inputs: Vec<RowInput> = wire.tokens.into_iter().map(RowInput::Token).collect();
    for row in wire.last_sample_rows {
        *inputs.get_mut(row as usize).ok_or_else(|| format!("there is no row {row}"))? = RowInput::LastSample;
    }
    let output = |output: pb::RowOutput| {
        let request = match pb::OutputRequest::try_from(output.request) {
            Ok(pb::OutputRequest::Sample) => OutputRequest::Sample,
            Ok(pb::OutputRequest::Logits) => OutputRequest::Logits,
            Ok(pb::OutputRequest::LogitsAndSample) => OutputRequest::LogitsAndSample,
            Ok(pb::OutputRequest::Unspecified) | Err(_) => return Err(format!("request {} is none", output.request)),
        };
        Ok(RowOutput { row: output.row, request })
    };
    Ok(SequenceStep {
        slot: SlotId(wire.slot),
        start: wire.start,
        inputs,
        precision: precision_from(wire.precision)?,
        destination: if wire.scratch { KvDestination::Scratch } else { KvDestination::Pool },
        outputs: wire.outputs.into_iter().map(output).collect::<Result<_, _>>()?,
    })
}

fn sampling_from(wire: pb::SlotSampling) -> SlotSampling {
    SlotSampling {
        params: SamplingParams {
            temperature: wire.temperature,
            top_k: wire.top_k,
            top_p: wire.top_p,
            min_p: wire.min_p,
            frequency_penalty: wire.frequency_penalty,
            presence_penalty: wire.presence_penalty,
            repetition_penalty: wire.repetition_penalty,
            logit_bias: wire.logit_bias.into_iter().map(|entry| (entry.token, entry.bias)).collect(),
            logprobs: wire.logprobs,
        },
        seed: wire.seed,
        context: wire.context,
        sampled: wire.drawn.into_iter().map(|entry| (entry.token, entry.count)).collect(),
    }
}

/// Masks as they are sent.
pub(crate) fn masks_to_wire(late: &LateInputs) -> Vec<pb::RowMask> {
    let mask = |mask: &TokenMask| match mask {
        TokenMask::Only(tokens) => row_mask::Mask::Only(pb::TokenList { tokens: tokens.clone() }),
        TokenMask::Bits(words) => row_mask::Mask::Bits(pb::TokenBits { words: words.clone() }),
    };
    let masks = late.masks.iter();
    masks.map(|(slot, row, of)| pb::RowMask { slot: slot.0, row: *row, mask: Some(mask(of)) }).collect()
}

/// Masks as they were received. The error says what no mask can be.
pub(crate) fn masks_from_wire(wire: Vec<pb::RowMask>) -> Result<LateInputs, String> {
    let mask = |wire: pb::RowMask| {
        let mask = match wire.mask.ok_or("a mask is not set")? {
            row_mask::Mask::Only(list) => TokenMask::Only(list.tokens),
            row_mask::Mask::Bits(bits) => TokenMask::Bits(bits.words),
        };
        Ok((SlotId(wire.slot), wire.row, mask))
    };
    Ok(LateInputs { masks: wire.into_iter().map(mask).collect::<Result<_, String>>()? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use holdfast_backend::conformance::PlanBuilder;
    use holdfast_types::Precision;

    fn plan() -> StepPlan {
        let sampling = SlotSampling {
            params: SamplingParams {
                temperature: 0.5,
                top_k: 7,
                top_p: 0.9,
                min_p: 0.1,
                frequency_penalty: 0.2,
                presence_penalty: -0.2,
                repetition_penalty: 1.1,
                logit_bias: vec![(3, f32::NEG_INFINITY)],
                logprobs: Some(0),
            },
            seed: u64::MAX,
            context: vec![1, 2],
            sampled: vec![(2, 9)],
        };
        PlanBuilder::new(u64::MAX)
            .open(0, sampling)
            .table(0, 1, 2, &[5, 6])
            .close(4)
            .copy(1, 2, 3)
            .inputs(0, 17, vec![RowInput::LastSample, RowInput::Token(5)], Precision::Int4)
            .want(0, OutputRequest::Sample)
            .want(1, OutputRequest::LogitsAndSample)
            .scratch()
            .build()
    }

    #[test]
    fn plans_and_masks_survive_the_wire() {
        assert_eq!(from_wire(to_wire(&plan(), None)).unwrap(), plan());
        let masks = vec![(SlotId(1), 2, TokenMask::Only(vec![4])), (SlotId(2), 0, TokenMask::Bits(vec![1, 0, 9]))];
        let late = LateInputs { masks };
        assert_eq!(masks_from_wire(masks_to_wire(&late)).unwrap(), late);
    }

    #[test]
    fn a_device_that_draws_nothing_hears_of_no_samples() {
        let wire = to_wire(&plan(), Some(&|slot| slot.0 + 40));
        let sequence = &wire.sequences[0];
        assert_eq!((&sequence.tokens[..], sequence.last_sample_rows.len()), (&[40, 5][..], 0));
        assert!(sequence.outputs.iter().all(|output| output.request() == pb::OutputRequest::Logits));
        let Some(slot_change::Change::Open(open)) = &wire.slots[0].change else { panic!("the slot is opened") };
        assert_eq!(open.sampling, None);
    }

    #[test]
    fn what_no_plan_can_be_is_refused() {
        let wrong = |change: fn(&mut pb::StepPlan)| {
            let mut wire = to_wire(&plan(), None);
            change(&mut wire);
            from_wire(wire).unwrap_err()
        };
        assert!(wrong(|plan| plan.slots[0].change = None).contains("not set"));
        assert!(wrong(|plan| plan.copies[0].group = 1 << 16).contains("65536"));
        assert!(wrong(|plan| plan.sequences[0].last_sample_rows[0] = 2).contains("row 2"));
        assert!(wrong(|plan| plan.sequences[0].precision = 0).contains("precision"));
        assert!(wrong(|plan| plan.sequences[0].outputs[0].request = 9).contains("request 9"));
        assert!(masks_from_wire(vec![pb::RowMask::default()]).is_err());
    }
}
