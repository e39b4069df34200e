//! Checks that a row depends on its sequence's tokens alone, wherever its KV lies and however it came there.
//!
//! The measure is always the same: logits equal, bit for bit, to those of the whole sequence computed from scratch.

use holdfast_types::{BlockId, KvDestination, LateInputs, SlotId, TokenMask};

use super::rig::{Rig, greedy, same_bits};
use crate::{BackendError, BlockCopy, CopyDirection, StepTicket};

pub(super) fn chunkings(rig: &mut Rig<'_>) {
    let tokens = rig.tokens(10);
    let want = rig.computed_anew(&tokens);
    let blocks = rig.blocks(0);
    same_bits(&rig.on_slot(0, &blocks, &tokens, &[1]), &want, "token by token");
    let mut rng = fastrand::Rng::with_seed(11);
    for _ in 0..6 {
        let chunks: Vec<usize> = tokens.iter().map(|_| rng.usize(1..=20)).collect();
        same_bits(&rig.on_slot(0, &blocks, &tokens, &chunks), &want, &format!("in chunks of {chunks:?}"));
    }
}

pub(super) fn batches(rig: &mut Rig<'_>) {
    let all: Vec<Vec<u32>> = (0..3).map(|at| rig.tokens(20 + at)).collect();
    let wants: Vec<_> = all.iter().map(|tokens| rig.computed_anew(tokens)).collect();
    for slot in 0..3 {
        let blocks = rig.blocks(slot);
        rig.open(slot, &blocks, greedy());
    }
    let mut gots = vec![Vec::new(); 3];
    let mut rng = fastrand::Rng::with_seed(23);
    let share = rig.description.limits.rows as usize / 3;
    while (0..3).any(|at| gots[at].len() < all[at].len()) {
        // Long and short pieces of several sequences share a step, in changing order.
        let mut order = [0, 1, 2];
        rng.shuffle(&mut order);
        let mut plan = rig.plan();
        for at in order {
            let start = gots[at].len();
            let rows = rng.usize(0..=share.min(9)).min(all[at].len() - start);
            if rows > 0 {
                plan =
                    plan.rows(at as u32, start as u32, &all[at][start..start + rows], rig.precision).want_all_logits();
            }
        }
        for sequence in rig.run(&plan.build()).sequences {
            gots[sequence.slot.0 as usize].extend(sequence.logits.into_iter().map(|(_, row)| row));
        }
    }
    for (got, want) in gots.iter().zip(&wants) {
        same_bits(got, want, "in a batch with others");
    }
}

pub(super) fn ids(rig: &mut Rig<'_>) {
    let tokens = rig.tokens(30);
    let want = rig.computed_anew(&tokens);
    let last = rig.description.kv_groups.iter().map(|group| group.blocks).min().unwrap_or(0) - 1;
    let scattered = [last, 1, last - 2, 0];
    let last_slot = rig.description.slots - 1;
    same_bits(&rig.on_slot(0, &scattered, &tokens, &[]), &want, "on scattered blocks");
    same_bits(&rig.on_slot(last_slot, &[2, last, 0, 1], &tokens, &[7]), &want, "on another slot");
}

pub(super) fn copy_on_write(rig: &mut Rig<'_>) {
    let half = rig.description.block_tokens / 2;
    let shared = rig.description.block_tokens + half;
    let parent = rig.tokens(40);
    // The fork goes its own way from the middle of the second block on.
    let mut fork = parent[..shared as usize].to_vec();
    fork.extend(rig.tokens(41).drain(shared as usize..));
    let (want_parent, want_fork) = (rig.computed_anew(&parent), rig.computed_anew(&fork));

    let (own, other) = (rig.blocks(0), rig.blocks(1));
    rig.open(0, &own, greedy());
    rig.feed(0, 0, &parent[..shared as usize], &[]);
    let plan = rig.plan().open(1, greedy());
    let plan = rig.tables(plan, 1, 0, &[own[0]]);
    let plan = rig.tables(plan, 1, 1, &other[1..]);
    // Copy and first write ride in one plan, and the parent writes its own copy in the same step.
    let precision = rig.precision;
    let at = shared as usize;
    let plan = rig
        .copies(plan, own[1], other[1])
        .rows(0, shared, &parent[at..=at], precision)
        .want_all_logits()
        .rows(1, shared, &fork[at..=at], precision)
        .want_all_logits()
        .build();
    let mut first = rig.run(&plan).sequences.into_iter().map(|sequence| sequence.logits[0].1.clone());
    let mut got_parent = vec![first.next().unwrap_or_default()];
    let mut got_fork = vec![first.next().unwrap_or_default()];
    got_fork.extend(rig.feed(1, shared + 1, &fork[at + 1..], &[3]));
    got_parent.extend(rig.feed(0, shared + 1, &parent[at + 1..], &[]));
    same_bits(&got_parent, &want_parent[at..], "the parent of a copied block");
    same_bits(&got_fork, &want_fork[at..], "the fork on a copied block");
}

pub(super) fn shared_prefix(rig: &mut Rig<'_>) {
    let shared = 2 * rig.description.block_tokens as usize;
    let first = rig.tokens(50);
    let mut second = first[..shared].to_vec();
    second.extend(rig.tokens(51).drain(shared..));
    let (want_first, want_second) = (rig.computed_anew(&first), rig.computed_anew(&second));

    let (own, other) = (rig.blocks(0), rig.blocks(1));
    rig.open(0, &own, greedy());
    let got = rig.feed(0, 0, &first, &[]);
    same_bits(&got, &want_first, "the first of two with one prefix");
    rig.open(1, &[own[0], own[1], other[2], other[3]], greedy());
    let got = rig.feed(1, shared as u32, &second[shared..], &[4]);
    same_bits(&got, &want_second[shared..], "the second of two with one prefix");
    // And once more after the first is gone: blocks outlive slots.
    let close = rig.plan().close(0).close(1).build();
    rig.run(&close);
    rig.open(2, &[own[0], own[1], other[2], other[3]], greedy());
    let got = rig.feed(2, shared as u32, &first[shared..], &[]);
    same_bits(&got, &want_first[shared..], "a prefix whose slots are closed");
}

/// Table entries behind a window are not set, or their blocks hold rows of somebody else by then. Without windows there are no such
/// entries, and this is one more prefix that is gone on from.
pub(super) fn windows(rig: &mut Rig<'_>) {
    let (tokens, noise) = (rig.tokens(55), rig.tokens(56));
    let want = rig.computed_anew(&tokens);
    let (own, other) = (rig.blocks(0), rig.blocks(1));
    let size = rig.description.block_tokens;
    let groups: Vec<_> = (0_u16..).zip(rig.description.kv_groups.iter().map(|group| group.window)).collect();
    for kept in [size, 2 * size - 1, 2 * size + 1, 3 * size] {
        let kept_tokens = &tokens[..kept as usize];
        rig.open(0, &own, greedy());
        rig.feed(0, 0, kept_tokens, &[]);
        let passed = |window: Option<u32>| window.map_or(0, |window| (kept + 1).saturating_sub(window) / size);
        let most = groups.iter().map(|(_, window)| passed(*window)).max().unwrap_or(0);
        let (mut fill, mut again) = (rig.plan().open(1, greedy()), rig.plan().close(0).open(2, greedy()));
        for &(group, window) in &groups {
            let passed = passed(window);
            let mut blocks = own[..passed as usize].to_vec();
            blocks.extend(&other[passed as usize..]);
            fill = fill.table(1, group, 0, &blocks);
            again = again.table(2, group, passed, &own[passed as usize..]);
        }
        rig.run(&fill.build());
        rig.feed(1, 0, &noise[..(most * size) as usize], &[]);
        // The slot that computed the rows goes on first: its table still names the blocks that are others' now.
        let next = &tokens[kept as usize..=kept as usize];
        same_bits(&rig.feed(0, kept, next, &[]), &want[kept as usize..=kept as usize], "on a table with old entries");
        rig.run(&again.build());
        let got = rig.feed(2, kept, &tokens[kept as usize..], &[1, 3]);
        same_bits(&got, &want[kept as usize..], &format!("from position {kept} on without what is behind the windows"));
        let close = rig.plan().close(1).close(2).build();
        rig.run(&close);
    }
}

pub(super) fn export_and_import(rig: &mut Rig<'_>) {
    let tokens = rig.tokens(60);
    let want = rig.computed_anew(&tokens);
    let kept = 3 * rig.description.block_tokens as usize - 2;
    let blocks = rig.blocks(0);
    rig.open(0, &blocks, greedy());
    rig.feed(0, 0, &tokens[..kept], &[]);
    let mut bytes = Vec::new();
    for group in 0..rig.description.kv_groups.len() as u16 {
        for block in &blocks[..3] {
            let copy = BlockCopy { group, block: BlockId(*block), direction: CopyDirection::Export };
            let out = rig.copy(copy).unwrap_or_default();
            assert_eq!(out.len() as u64, rig.description.kv_groups[group as usize].bytes_per_block, "a whole block");
            bytes.push((group, out));
        }
    }
    for elsewhere in [false, true] {
        if elsewhere {
            rig.renew();
        }
        let target = rig.blocks(2);
        for (at, (group, bytes)) in bytes.iter().enumerate() {
            let block = BlockId(target[at % 3]);
            rig.copy(BlockCopy { group: *group, block, direction: CopyDirection::Import(bytes.clone()) });
            let again = rig.copy(BlockCopy { group: *group, block, direction: CopyDirection::Export });
            assert!(again.as_ref() == Some(bytes), "an imported block is exported unchanged");
        }
        rig.open(1, &target, greedy());
        let got = rig.feed(1, kept as u32, &tokens[kept..], &[]);
        same_bits(&got, &want[kept..], "after export and import");
    }
}

/// A step that was told to begin, with all that may happen before it is collected: a copy, another step, a wrong mask.
pub(super) fn started_step(rig: &mut Rig<'_>) {
    let tokens = rig.tokens(65);
    let want = rig.computed_anew(&tokens);
    let size = rig.description.block_tokens as usize;
    let (own, precision) = (rig.blocks(0), rig.precision);
    rig.open(0, &own, greedy());
    rig.feed(0, 0, &tokens[..size], &[]);
    let before = rig.copy(BlockCopy { group: 0, block: BlockId(own[0]), direction: CopyDirection::Export });

    let begun = rig.plan().rows(0, size as u32, &tokens[size..size + 3], precision).want_all_logits().build();
    let next = rig.plan().rows(0, size as u32 + 3, &tokens[size + 3..size + 4], precision).want_all_logits().build();
    let first = rig.submit(&begun);
    rig.backend.start(&first);
    let beside = rig.copy(BlockCopy { group: 0, block: BlockId(own[0]), direction: CopyDirection::Export });
    assert!(beside == before, "a block that a started step only reads is what it was");
    let second = (rig.description.limits.in_flight > 1).then(|| rig.submit(&next));
    let wrong = LateInputs { masks: vec![(SlotId(1), 0, TokenMask::Only(vec![0]))] };
    match rig.backend.collect(StepTicket(begun.id), &wrong) {
        Err(BackendError::Rejected(_)) => {}
        other => panic!("a mask for a slot without a row must be rejected, not {other:?}"),
    }
    let mut outputs = rig.collect(first).sequences;
    let second = second.unwrap_or_else(|| rig.submit(&next));
    outputs.extend(rig.collect(second).sequences);
    let got: Vec<_> = outputs.into_iter().flat_map(|output| output.logits).map(|(_, row)| row).collect();
    same_bits(&got, &want[size..size + 4], "a step that was told to begin, and the next");
}

pub(super) fn scratch(rig: &mut Rig<'_>) {
    let start = rig.description.block_tokens as usize + 3;
    let tokens = rig.tokens(70);
    let mut drafted = tokens[..start].to_vec();
    drafted.extend(rig.tokens(71).drain(start..));
    let want = rig.computed_anew(&tokens);
    let want_drafted = rig.computed_anew(&drafted);

    let blocks = rig.blocks(0);
    rig.open(0, &blocks, greedy());
    rig.feed(0, 0, &tokens[..start], &[]);
    let rows = (rig.description.block_tokens as usize).min(rig.description.limits.rows as usize);
    let precision = rig.precision;
    let plan = rig.plan().rows(0, start as u32, &drafted[start..start + rows], precision).want_all_logits().scratch();
    let plan = plan.build();
    assert_eq!(plan.sequences[0].destination, KvDestination::Scratch);
    let draft = super::rig::only(rig.run(&plan).sequences).logits;
    let draft: Vec<_> = draft.into_iter().map(|(_, row)| row).collect();
    same_bits(&draft, &want_drafted[start..start + rows], "rows in scratch");
    let got = rig.feed(0, start as u32, &tokens[start..], &[]);
    same_bits(&got, &want[start..], "after rows in scratch");
}

pub(super) fn reopened_slot(rig: &mut Rig<'_>) {
    let (first, second) = (rig.tokens(80), rig.tokens(81));
    let want = rig.computed_anew(&second);
    let blocks = rig.blocks(0);
    rig.on_slot(0, &blocks, &first, &[]);
    same_bits(&rig.on_slot(0, &blocks, &second, &[]), &want, "on a closed slot and its blocks");
    // Tables of a reopened slot are empty.
    let precision = rig.precision;
    let plan = rig.plan().open(0, greedy()).rows(0, 0, &second[..1], precision).build();
    rig.refuse(&plan, "a row of a reopened slot without a table");
}
