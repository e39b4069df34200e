//! Groups with a sliding window: what they hold, what they leave, and what can be found again.

use super::*;

/// Full blocks that a row behind a window of 9 tokens sees at most.
const BEHIND: u32 = 2;

#[test]
fn a_long_run_holds_no_more_than_its_window() {
    let mut world = World::windowed(&[(100, None), (5, Some(9))]);
    assert_eq!((world.cache.capacity_tokens(), world.cache.step_rows()), (400, 8));
    let text = log(0..397);
    let (mut holding, _) = world.attach(1, &text, 0);
    let mut most = 0;
    for from in (0..392).step_by(8) {
        world.compute(&mut holding, &text, from, from + 8);
        most = most.max(world.cache.counts(1).used);
        assert_eq!(
            world.cache.bytes(&holding),
            64 * u64::from(world.cache.counts(0).used + world.cache.counts(1).used)
        );
        world.audit(&[&holding], &[]);
    }
    assert_eq!((most, holding.table(1).first, holding.chain.blocks()), (BEHIND, 96, 99), "and every block is keyed");
    world.cache.release(holding, &text, 392);
    assert_eq!(world.visit(1, &log(0..396), 0).tokens, 392);
}

#[test]
fn only_a_pool_smaller_than_its_window_limits_the_context() {
    let limits = |groups: &[(u32, Option<u32>)]| {
        let world = World::windowed(groups);
        (world.cache.capacity_tokens(), world.cache.step_rows())
    };
    assert_eq!(limits(&[(100, None), (2, Some(9))]), (8, 8), "a window and one block more do not fit");
    assert_eq!(limits(&[(100, None), (3, Some(9))]), (400, 1));
    assert_eq!(limits(&[(100, None), (4, Some(9))]), (400, 5));
    assert_eq!(limits(&[(3, Some(9)), (100, Some(1))]), (u32::MAX, 1), "nothing limits the context");
    assert_eq!(limits(&[(16, Some(60)), (7, Some(1 << 20))]), (28, 8), "a pool that holds a whole context");
}

#[test]
fn another_sequence_goes_on_from_what_was_passed_while_it_is_there() {
    let mut world = World::windowed(&[(32, None), (12, Some(9))]);
    world.visit(1, &log(0..33), 0);
    let mut fork: Vec<LogToken> = log(0..16);
    fork.extend(log(50..55));
    assert_eq!(world.visit(2, &fork, 0), Found { tokens: 16, spans: vec![span(16, 1)] });
    // The window behind position 16 was used by two sessions and stays; that behind position 24 goes before it.
    let mut early: Vec<LogToken> = log(0..24);
    early.extend(log(50..53));
    world.visit(3, &log(100..126), 0);
    assert_eq!(world.visit(4, &early, 0).tokens, 16, "a window has a gap, a shorter prefix has none");
    assert_eq!(world.visit(1, &log(0..40), 0).tokens, 32, "and what a session will go on from is there");
}

#[test]
fn what_was_passed_goes_before_what_sessions_at_rest_go_on_from() {
    // Three sequences at rest have three blocks each, partial ones included; a fourth has five in a step.
    let mut world = World::windowed(&[(100, None), (14, Some(9))]);
    for sequence in 1..5 {
        let text = log(sequence as u32 * 100..sequence as u32 * 100 + 30);
        let (mut holding, _) = world.attach(sequence, &text, 0);
        for from in (0..29).step_by(ROWS as usize) {
            world.compute(&mut holding, &text, from, (from + ROWS).min(29));
        }
        world.cache.release(holding, &text, 29);
    }
    assert_eq!(world.cache.counts(1).free, 0, "each of them has passed more than is left");
    for sequence in 1..5 {
        let start = sequence as u32 * 100;
        assert_eq!(world.visit(sequence, &log(start..start + 31), 0).tokens, 29, "sequence {sequence}");
    }
}

#[test]
fn a_sequence_that_lost_its_tail_goes_on_from_its_last_full_block() {
    for tokens in 17..40 {
        let mut world = World::windowed(&[(32, None), (12, Some(9)), (12, Some(1))]);
        world.visit(1, &log(0..tokens), 0);
        world.cache.forget(SequenceId(1));
        assert_eq!(world.visit(1, &log(0..tokens + 1), 0).tokens, (tokens - 1) / B * B);
    }
}

#[test]
fn where_every_group_has_a_window_a_prefix_outlives_its_start() {
    let mut world = World::windowed(&[(4, Some(5)), (6, Some(9))]);
    assert_eq!(world.cache.capacity_tokens(), u32::MAX);
    let text = log(0..60);
    let (mut holding, _) = world.attach(1, &text, 0);
    for from in (0..56).step_by(4) {
        world.compute(&mut holding, &text, from, from + 4);
    }
    world.cache.release(holding, &text, 56);
    assert_eq!(world.visit(1, &log(0..62), 0), Found { tokens: 56, spans: vec![span(56, 1)] });
    let mut world = World::windowed(&[(4, Some(1))]);
    world.visit(1, &log(0..9), 0);
    world.cache.forget(SequenceId(1));
    assert_eq!(world.visit(2, &log(0..10), 0).tokens, 8, "a row that sees only itself needs no block");
}

#[test]
fn a_copy_needs_room_for_a_window_and_itself() {
    for (blocks, found) in [(3, 12), (4, 15)] {
        let mut world = World::windowed(&[(32, None), (blocks, Some(9))]);
        let text = log(0..16);
        let (mut holding, _) = world.attach(1, &text, 0);
        for at in 0..16 {
            world.compute(&mut holding, &text, at, at + 1);
        }
        world.cache.release(holding, &text, 16);
        let (mut holding, again) = world.attach(2, &text, 0);
        if blocks == 4 {
            assert_eq!(again.tokens, found, "the last block is copied");
        }
        world.compute(&mut holding, &text, again.tokens, 16);
        world.audit(&[&holding], &[]);
        world.cache.release(holding, &text, 16);
        world.audit(&[], &[]);
    }
}

#[test]
fn a_transient_sequence_leaves_no_window_of_worth() {
    let mut world = World::windowed(&[(32, None), (8, Some(9))]);
    world.visit(1, &log(0..18), 0);
    world.pass_by(2, &log(0..26), 0);
    world.pass_by(3, &log(50..66), 9);
    world.cache.forget(SequenceId(2));
    world.cache.forget(SequenceId(3));
    assert_eq!(world.visit(1, &log(0..19), 0).tokens, 17);
}

#[test]
fn the_audit_sees_a_window_that_is_wrong() {
    let mut world = World::windowed(&[(16, None), (16, Some(9))]);
    let text = log(0..30);
    let (mut holding, _) = world.attach(1, &text, 0);
    world.compute(&mut holding, &text, 0, 22);
    let right = holding.tables[1].clone();
    holding.tables[1].first += 1;
    holding.tables[1].blocks.remove(0);
    let problems = world.cache.audit([&holding], []);
    assert!(problems.iter().any(|problem| problem.contains("it sees 3")), "{problems:?}");
    assert!(problems.iter().any(|problem| problem.contains("its owners say")), "{problems:?}");
    holding.tables[1] = right;
    let parent = holding.chain.key(1, 4).unwrap();
    world.cache.release(holding, &text, 22);
    world.audit(&[], &[]);
    world.cache.groups[1].index.remove(&parent);
    let problems = world.cache.audit([], []);
    assert!(problems.iter().any(|problem| problem.contains("rests without block 4")), "{problems:?}");
}
