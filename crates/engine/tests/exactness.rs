//! The tokens of a run depend on its log alone: not on the batch, the chunks, the pool, preemption, cancellation or the loss of the
//! device. After every poll the audit holds, and at the end no block is held.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use harness::{Host, Spells, config, domain, start};
use holdfast_backend::BackendError;
use holdfast_engine::testing::{Call, small_device};
use holdfast_engine::{Command, FinishReason, Run, RunId, SampleRequest};
use holdfast_types::{Failure, LogToken, Precision, Reason, SamplingParams, SequenceId, TokenId};
use proptest::prelude::*;

#[derive(Debug, Clone)]
struct World {
    block_tokens: u32,
    /// Per KV group: its window, and its blocks beyond what the longest log needs, or beyond the window.
    groups: Vec<(Option<u32>, u32)>,
    slots: u32,
    rows: u32,
    sequences: u32,
    chunk: u32,
    talks: Vec<Talk>,
    faults: Vec<(u32, bool, u8)>,
}

/// A conversation of several turns.
#[derive(Debug, Clone)]
struct Talk {
    arrives: u32,
    flow: u64,
    family: u32,
    turns: Vec<TurnPlan>,
}

#[derive(Debug, Clone)]
struct TurnPlan {
    new_tokens: u32,
    max_tokens: u32,
    cancel_after: Option<u32>,
    settings: u8,
    precision: Precision,
}

fn turn() -> impl Strategy<Value = TurnPlan> {
    (1_u32..18, 1_u32..12, prop::option::weighted(0.25, 0_u32..12), 0_u8..4, prop::bool::weighted(0.2)).prop_map(
        |(new_tokens, max_tokens, cancel_after, settings, int8)| TurnPlan {
            new_tokens,
            max_tokens,
            cancel_after,
            settings,
            precision: if int8 { Precision::Int8 } else { Precision::Native },
        },
    )
}

fn world(talks: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = World> {
    let talk = (0_u32..20, 0_u64..4, 0_u32..3, prop::collection::vec(turn(), 1..4))
        .prop_map(|(arrives, flow, family, turns)| Talk { arrives, flow, family, turns });
    let shape = (1_u32..7, prop::collection::vec((prop::option::of(1_u32..20), 0_u32..12), 1..4));
    let limits = (1_u32..9, 1_u32..40, 1_u32..9, 1_u32..20);
    let fault = (0_u32..40, any::<bool>(), 0_u8..2);
    (shape, limits, prop::collection::vec(talk, talks), prop::collection::vec(fault, 0..3)).prop_map(
        |((block_tokens, groups), (slots, rows, sequences, chunk), talks, faults)| World {
            block_tokens,
            groups,
            slots,
            rows,
            sequences,
            chunk,
            talks,
            faults,
        },
    )
}

/// Where a conversation stands.
struct Progress {
    log: Vec<LogToken>,
    turn: usize,
    computed_before: u32,
    open: Option<(Run, u32)>,
}

fn settings(kind: u8) -> SamplingParams {
    let base = SamplingParams::default();
    match kind {
        0 => base,
        1 => SamplingParams { temperature: 1.0, ..base },
        2 => SamplingParams { temperature: 0.8, top_k: 7, repetition_penalty: 1.3, ..base },
        _ => SamplingParams { frequency_penalty: 0.7, presence_penalty: 0.4, ..base },
    }
}

/// Plays all conversations at once and checks every turn against its log alone.
fn play(world: &World) -> Host {
    let longest =
        world.talks.iter().map(|talk| talk.turns.iter().map(|t| t.new_tokens + t.max_tokens).sum::<u32>()).max();
    let least = longest.unwrap_or(1).div_ceil(world.block_tokens);
    let window_blocks = |window: u32| (window - 1).div_ceil(world.block_tokens) + 1;
    let blocks = world.groups.iter().map(|(window, spare)| window.map_or(least, window_blocks) + spare);
    let blocks: Vec<u32> = blocks.collect();
    let mut device = small_device(world.block_tokens, &blocks, world.slots);
    device.limits.rows = world.rows;
    device.limits.sequences = world.sequences;
    for (group, (window, _)) in device.kv_groups.iter_mut().zip(&world.groups) {
        group.window = *window;
    }
    let mut host = Host::new(device, config(world.chunk));
    for &(steps, at_submit, kind) in &world.faults {
        let error =
            if kind == 0 { BackendError::Lost("planted".into()) } else { BackendError::OutOfMemory("planted".into()) };
        host.faults.add(steps, if at_submit { Call::Submit } else { Call::Collect }, error);
    }
    let fresh = |_: &Talk| Progress { log: Vec::new(), turn: 0, computed_before: 0, open: None };
    let mut states: Vec<Progress> = world.talks.iter().map(fresh).collect();
    let mut next_run = 0;
    for step in 0_u32.. {
        assert!(step < 20_000, "the engine does not come to an end");
        let mut commands = Vec::new();
        for (index, (talk, state)) in world.talks.iter().zip(&mut states).enumerate() {
            if let Some((run, begun)) = &state.open {
                let cancel_after = talk.turns[state.turn].cancel_after;
                if cancel_after.is_some_and(|after| step - begun == after + 1) {
                    commands.push(Command::Cancel { run: run.run });
                }
            } else if step >= talk.arrives && state.turn < talk.turns.len() {
                let plan = &talk.turns[state.turn];
                let (turn, family) = (state.turn as u32, talk.family);
                let token = |i: u32| LogToken { id: (family * 7 + turn * 13 + i) % 61, precision: plan.precision };
                state.log.extend((0..plan.new_tokens).map(token));
                next_run += 1;
                let run = Run {
                    run: RunId(next_run),
                    sequence: SequenceId(index as u64),
                    log: state.log.clone(),
                    computed_before: state.computed_before,
                    domain: domain(),
                    flow: talk.flow,
                    accepted_us: host.now,
                    transient: false,
                    resumed: 0,
                    sample: (plan.settings < 3 || turn > 0).then(|| SampleRequest {
                        params: settings(plan.settings),
                        seed: u64::from(family),
                        max_tokens: plan.max_tokens,
                        stop_tokens: vec![17],
                        precision: plan.precision,
                        guide: if plan.settings == 1 { Spells::new(&[5, 6]).guide() } else { None },
                        sampled_before: vec![1, 2, 1],
                    }),
                };
                commands.push(start(run.clone()));
                state.open = Some((run, step));
            }
        }
        host.poll(commands);
        for (talk, state) in world.talks.iter().zip(&mut states) {
            let ended = state.open.take_if(|(run, _)| host.records.get(&run.run).is_some_and(|r| r.end.is_some()));
            let Some((run, _)) = ended else { continue };
            let record = &host.records[&run.run];
            let expected: Vec<TokenId> = host.expected(&run);
            // A step of one row that did not fit fails its run; the conversation goes on from what it has.
            let no_memory = |failure: &Failure| failure.reason == Reason::OutOfMemory && !world.faults.is_empty();
            let end = record.end.clone().unwrap();
            if end == Ok(FinishReason::Cancelled) || end.as_ref().is_err_and(no_memory) {
                assert!(expected.starts_with(&record.tokens), "{:?} is not the start of {expected:?}", record.tokens);
            } else {
                end.unwrap();
                assert_eq!(record.tokens, expected, "turn {} of {talk:?}", state.turn);
                let sampled = run.sample.is_some();
                assert_eq!(record.usage.input_tokens, run.log.len() as u64 - u64::from(!sampled));
                let rows =
                    record.usage.computed_tokens + record.usage.recomputed_tokens + record.usage.preempted_tokens;
                let fed_back = record.usage.output_tokens.saturating_sub(1);
                let repeats_found = record.usage.preempted_tokens > 0;
                assert!(record.usage.by_precision.total() == rows + fed_back || repeats_found);
            }
            let precision = talk.turns[state.turn].precision;
            let before = run.log.len() as u32 - 1;
            state.computed_before = state.computed_before.max(before.min(record.usage.input_tokens as u32));
            state.log.extend(record.tokens.iter().map(|&id| LogToken { id, precision }));
            state.turn += 1;
        }
        if states.iter().zip(&world.talks).all(|(state, talk)| state.turn == talk.turns.len()) {
            break;
        }
    }
    host.settle();
    host
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn tokens_depend_on_the_log_alone(world in world(1..7)) {
        play(&world);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20) })]

    #[test]
    fn among_thirty_two_others(world in world(33)) {
        play(&world);
    }
}

/// The properties above would be hollow if nothing was ever preempted, copied or evicted.
#[test]
fn the_worlds_are_hard() {
    let turns = |n: u32| {
        vec![
            TurnPlan { new_tokens: n, max_tokens: 9, cancel_after: None, settings: 0, precision: Precision::Native };
            3
        ]
    };
    let talks =
        (0..12).map(|i| Talk { arrives: i, flow: u64::from(i), family: i % 3, turns: turns(9 + i % 4) }).collect();
    let world = World {
        block_tokens: 4,
        groups: vec![(None, 3), (Some(6), 24)],
        slots: 6,
        rows: 30,
        sequences: 6,
        chunk: 8,
        talks,
        faults: vec![(30, true, 0)],
    };
    let host = play(&world);
    let snapshot = host.engine.snapshot();
    assert!(snapshot.preemptions > 3, "{snapshot:?}");
    assert_eq!(snapshot.device_losses, 1);
    let total =
        |of: fn(&holdfast_types::Usage) -> u64| host.records.values().map(|record| of(&record.usage)).sum::<u64>();
    assert!(total(|usage| usage.preempted_tokens) > 0);
    assert!(total(|usage| usage.recomputed_tokens) > 0);
    assert!(total(|usage| usage.cached.shared) > 0);
    assert!(total(|usage| usage.cached.device) > 0);
}
