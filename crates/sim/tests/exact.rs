//! Bit-identical tokens and log probabilities in every circumstance, over random histories.
//!
//! `TEST_EFFORT=quick` plays 40 histories instead of 240.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::disallowed_methods)]

use std::time::Instant;

use holdfast_sim::twin::{Circumstances, Cost, Outcome, play};

fn histories() -> u64 {
    if std::env::var("TEST_EFFORT").is_ok_and(|effort| effort == "quick") { 40 } else { 240 }
}

fn circumstances() -> Vec<(&'static str, Circumstances)> {
    let calm = Circumstances::calm;
    vec![
        ("in chunks of 1", Circumstances { chunk: 1, ..calm() }),
        ("in chunks of 3", Circumstances { chunk: 3, ..calm() }),
        ("in chunks of 7", Circumstances { chunk: 7, ..calm() }),
        ("from scratch", Circumstances { is_cold: true, ..calm() }),
        ("among 32 others", Circumstances { others: 32, ..calm() }),
        ("with too little memory", Circumstances::cramped(6)),
        ("through restarts", Circumstances { crash_one_in: 12, ..calm() }),
        ("on a device that gets lost", Circumstances { loss_one_in: 8, ..calm() }),
        ("in all of that", Circumstances { chunk: 5, crash_one_in: 40, loss_one_in: 40, ..Circumstances::cramped(3) }),
    ]
}

fn played(seed: u64, name: &str, circumstances: &Circumstances) -> (Outcome, Cost) {
    play(seed, 5, circumstances).unwrap_or_else(|problem| panic!("history {seed}, {name}: {problem}"))
}

#[test]
fn a_history_is_the_same_in_every_circumstance() {
    let start = Instant::now();
    let circumstances = circumstances();
    let mut troubles = vec![(0, 0, 0); circumstances.len()];
    let (mut tokens, mut with_logprobs) = (0, 0);
    for seed in 0..histories() {
        let (expected, cost) = played(seed, "alone", &Circumstances::calm());
        tokens += expected.sampled.iter().map(|of| of.2.len()).sum::<usize>();
        with_logprobs += expected.sampled.iter().map(|of| of.3.len()).sum::<usize>();
        // A rebase leaves the partial block behind, which counts as lost.
        if cost.is_plain {
            assert_eq!(cost.repeated, 0, "history {seed}: nothing was lost, nothing is computed twice");
            assert_eq!(cost.rows, expected.log.len() as u64 - 1, "history {seed}: each token is computed once");
        }
        for ((name, circumstances), sums) in circumstances.iter().zip(&mut troubles) {
            let (found, cost) = played(seed, name, circumstances);
            for (a, b) in expected.sampled.iter().zip(&found.sampled) {
                assert_eq!(a, b, "history {seed}, {name}");
            }
            assert_eq!(found, expected, "history {seed}, {name}");
            *sums = (sums.0 + cost.troubles, sums.1 + cost.preemptions, sums.2 + cost.repeated);
        }
    }
    let figures: Vec<_> = circumstances.iter().map(|(name, _)| name).zip(&troubles).collect();
    eprintln!(
        "{} histories, {tokens} sampled tokens, {with_logprobs} with log probabilities, {:.1} s; (troubles, preemptions, repeated rows): {figures:?}",
        histories(),
        start.elapsed().as_secs_f64()
    );
    let of = |wanted: &str| figures.iter().find(|(name, _)| **name == wanted).map(|(_, sums)| **sums).unwrap();
    assert!(of("with too little memory").1 > histories() / 10, "preemptions happened");
    assert!(of("through restarts").0 > histories() && of("through restarts").2 > 0, "restarts happened");
    assert!(of("from scratch").2 > 0 && of("on a device that gets lost").0 > histories());
    assert!(tokens > 0 && with_logprobs > tokens / 4);
}
