//! Checks that wrong plans, tickets, masks and copies are rejected as a whole and leave the device as it was.

use holdfast_types::{
    BlockId, LateInputs, OutputRequest, Precision, RowInput, SamplingParams, SlotId, StepId, StepPlan, TokenMask,
};

use super::PlanBuilder;
use super::rig::{Logits, Rig, greedy, same_bits, sampled};
use crate::{BackendError, BlockCopy, CopyDirection, StepTicket};

/// Slot 0 with one block's table and three tokens computed, slot 1 closed; and what must still come out at the end.
fn healthy(rig: &mut Rig<'_>) -> (Vec<u32>, Logits) {
    let tokens = rig.tokens(100);
    let want = rig.computed_anew(&tokens);
    rig.open(0, &[0], greedy());
    rig.feed(0, 0, &tokens[..3], &[]);
    (tokens, want)
}

#[track_caller]
fn still_healthy(rig: &mut Rig<'_>, tokens: &[u32], want: &Logits) {
    let end = rig.description.block_tokens as usize;
    let got = rig.feed(0, 3, &tokens[3..end], &[]);
    same_bits(&got, &want[3..end], "after rejected plans");
}

pub(super) fn plans(rig: &mut Rig<'_>) {
    let (tokens, want) = healthy(rig);
    for (why, plan) in wrong_plans(rig) {
        // What comes before the wrong part must not happen either.
        rig.refuse(&plan, why);
    }
    let precision = rig.precision;
    let touched = rig.plan().open(1, greedy()).table(1, 0, 0, &[1]).rows(1, 0, &[u32::MAX], precision).build();
    rig.refuse(&touched, "a wrong row after a good opening");
    let used = rig.plan().rows(1, 0, &[1], precision).build();
    rig.refuse(&used, "a slot that only a rejected plan opened");
    still_healthy(rig, &tokens, &want);
}

fn wrong_plans(rig: &mut Rig<'_>) -> Vec<(&'static str, StepPlan)> {
    let d = rig.description.clone();
    let p = rig.precision;
    let groups = d.kv_groups.len() as u16;
    let blocks = d.kv_groups[0].blocks;
    let table_max = d.limits.context.div_ceil(d.block_tokens);
    let too_many: Vec<u32> = vec![1; d.limits.rows as usize + 1];
    let all_blocks: Vec<u32> = (0..too_many.len() as u32).map(|at| at % blocks).collect();
    let hot = sampled(SamplingParams { temperature: 3.0, ..Default::default() }, 0);
    let unlisted =
        [Precision::Native, Precision::Int4, Precision::Int8].into_iter().find(|p| !d.precisions.contains(p));
    let mut plan = || rig.plan();
    let mut wrong = vec![
        ("a slot beyond the last", plan().open(d.slots, greedy())),
        ("a slot that is open already", plan().open(0, greedy())),
        ("closing a slot that is not open", plan().close(1)),
        ("a table of a slot that is not open", plan().table(1, 0, 0, &[1])),
        ("rows of a slot that is not open", plan().rows(1, 0, &[1], p)),
        ("an unknown group", plan().table(0, groups, 0, &[1])),
        ("an unknown block", plan().table(0, 0, 1, &[blocks])),
        ("a table longer than the context", plan().table(0, 0, table_max, &[1])),
        ("a table whose end overflows", plan().table(0, 0, u32::MAX, &[1, 2])),
        ("a position beyond the table", plan().rows(0, d.block_tokens, &[1], p)),
        ("rows that run off the table", plan().rows(0, d.block_tokens - 1, &[1, 2], p)),
        ("a position that overflows", plan().rows(0, u32::MAX, &[1, 1], p)),
        ("no rows", plan().rows(0, 3, &[], p)),
        ("too many rows", plan().open(1, greedy()).table(1, 0, 0, &all_blocks).rows(1, 0, &too_many, p)),
        ("one slot twice", plan().rows(0, 3, &[1], p).rows(0, 4, &[1], p)),
        ("a token outside the vocabulary", plan().rows(0, 3, &[d.vocab_size], p)),
        ("an output of a row that is not there", plan().rows(0, 3, &[1], p).want(1, OutputRequest::Sample)),
        (
            "outputs that do not rise",
            plan().rows(0, 3, &[1, 1], p).want(1, OutputRequest::Sample).want(0, OutputRequest::Logits),
        ),
        (
            "one row's output twice",
            plan().rows(0, 3, &[1, 1], p).want(0, OutputRequest::Sample).want(0, OutputRequest::Logits),
        ),
        ("the last sample of a slot that drew none", plan().inputs(0, 3, vec![RowInput::LastSample], p)),
        ("sampling settings out of range", plan().open(1, hot)),
        ("a copy in an unknown group", plan().copy(groups, 1, 2)),
        ("a copy of an unknown block", plan().copy(0, blocks, 2)),
        ("a copy into an unknown block", plan().copy(0, 1, blocks)),
        ("a copy onto itself", plan().copy(0, 2, 2)),
        ("a source that is a destination", plan().copy(0, 1, 2).copy(0, 2, 3)),
        ("two copies into one block", plan().copy(0, 1, 3).copy(0, 2, 3)),
    ];
    if let Some(unlisted) = unlisted {
        wrong.push(("a precision that is not listed", plan().rows(0, 3, &[1], unlisted)));
    }
    wrong.into_iter().map(|(why, plan)| (why, PlanBuilder::build(plan))).collect()
}

pub(super) fn late_and_copies(rig: &mut Rig<'_>) {
    let (tokens, want) = healthy(rig);
    let precision = rig.precision;
    let vocab = rig.description.vocab_size;
    refuse_collect(rig, StepId(u64::MAX), &LateInputs::default(), "a foreign ticket");

    // Row 1 samples; row 0 does not. A refused collect leaves the step open.
    let plan = rig.plan().rows(0, 3, &tokens[3..5], precision).want(1, OutputRequest::LogitsAndSample).build();
    let ticket = match rig.backend.submit(&plan) {
        Ok(ticket) => ticket,
        Err(error) => panic!("a good plan failed: {error}"),
    };
    let masked = |slot: u32, row: u32, mask: TokenMask| LateInputs { masks: vec![(SlotId(slot), row, mask)] };
    let good = TokenMask::Only(vec![1]);
    let twice = LateInputs { masks: vec![(SlotId(0), 1, good.clone()), (SlotId(0), 1, good.clone())] };
    refuse_collect(rig, StepId(u64::MAX), &LateInputs::default(), "a foreign ticket beside an open step");
    refuse_collect(rig, plan.id, &masked(0, 1, TokenMask::Only(Vec::new())), "an empty mask");
    refuse_collect(rig, plan.id, &masked(0, 1, TokenMask::Bits(vec![0])), "a mask without a bit");
    refuse_collect(rig, plan.id, &masked(0, 1, TokenMask::Only(vec![vocab])), "a mask outside the vocabulary");
    refuse_collect(rig, plan.id, &masked(0, 0, good.clone()), "a mask of a row that does not sample");
    refuse_collect(rig, plan.id, &masked(0, 2, good.clone()), "a mask of a row that is not there");
    refuse_collect(rig, plan.id, &masked(1, 1, good.clone()), "a mask of a slot that is not in the step");
    refuse_collect(rig, plan.id, &twice, "two masks of one row");

    let bytes = rig.description.kv_groups[0].bytes_per_block as usize;
    let import = |block: u32, bytes: usize| BlockCopy {
        group: 0,
        block: BlockId(block),
        direction: CopyDirection::Import(vec![0; bytes]),
    };
    let export = |group: u16, block: u32| BlockCopy { group, block: BlockId(block), direction: CopyDirection::Export };
    let blocks = rig.description.kv_groups[0].blocks;
    let groups = rig.description.kv_groups.len() as u16;
    for (why, copy) in [
        ("an import into a destination of an open step", import(0, bytes)),
        ("an export of a destination of an open step", export(0, 0)),
        ("an import of too few bytes", import(1, bytes - 1)),
        ("an import of too many bytes", import(1, bytes + 1)),
        ("an unknown block", export(0, blocks)),
        ("an unknown group", export(groups, 0)),
    ] {
        match rig.backend.begin_copy(copy) {
            Err(BackendError::Rejected(_)) => {}
            other => panic!("{why} must be rejected, not {other:?}"),
        }
    }
    assert!(rig.backend.poll_copies().is_empty(), "rejected copies never end");

    match rig.backend.collect(ticket, &masked(0, 1, good)) {
        Ok(output) => {
            assert_eq!(output.sequences[0].samples[0].id, 1, "the mask holds");
            same_bits(&[output.sequences[0].logits[0].1.clone()], &want[4..5], "after refused collects");
        }
        Err(error) => panic!("a refused collect leaves the step open: {error}"),
    }
    refuse_collect(rig, plan.id, &LateInputs::default(), "a ticket that was collected");
    let end = rig.description.block_tokens as usize;
    let got = rig.feed(0, 5, &tokens[5..end], &[]);
    same_bits(&got, &want[5..end], "after rejections");
}

#[track_caller]
fn refuse_collect(rig: &mut Rig<'_>, id: StepId, late: &LateInputs, why: &str) {
    match rig.backend.collect(StepTicket(id), late) {
        Err(BackendError::Rejected(_)) => {}
        other => panic!("{why} must be rejected, not {other:?}"),
    }
}
