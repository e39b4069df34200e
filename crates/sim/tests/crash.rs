//! Ten thousand seeded worlds: crashes, losses of power, device faults and pressure, at every point between the parts.
//!
//! `TEST_EFFORT=quick` runs 300 of them. `SIM_SEED=n cargo test -p holdfast-sim --test crash replay -- --nocapture` runs one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::disallowed_methods)]

use std::time::Instant;

use holdfast_sim::world::{Plant, Summary, run};

/// Worlds that may go wrong before the rest is left alone.
const VIOLATIONS_SHOWN: usize = 20;

fn seeds() -> u64 {
    if std::env::var("TEST_EFFORT").is_ok_and(|effort| effort == "quick") { 300 } else { 10_000 }
}

#[test]
fn nothing_acknowledged_is_lost_and_no_event_changes() {
    let (count, start) = (seeds(), Instant::now());
    let (mut total, mut violations) = (Summary::default(), Vec::new());
    for seed in 0..count {
        match run(seed, None) {
            Ok(summary) => total += summary,
            Err(violation) => violations.push(violation),
        }
        if violations.len() == VIOLATIONS_SHOWN {
            break;
        }
    }
    if let Some(first) = violations.first() {
        let all: Vec<_> = violations.iter().map(|of| format!("seed {}: {}", of.seed, of.problem)).collect();
        panic!("{first}\n{} worlds went wrong:\n{}", all.len(), all.join("\n"));
    }
    eprintln!("{count} worlds in {:.1} s: {total:?}", start.elapsed().as_secs_f64());
    // A simulation in which nothing happens proves nothing.
    assert!(total.crashes > count, "{total:?}");
    assert!(total.mishaps > count / 2, "{total:?}");
    assert!(total.preemptions > count / 50, "{total:?}");
    assert!(total.ended.iter().all(|&turns| turns > count / 20), "{total:?}");
    let rare = [total.purged, total.continued, total.rebased, total.results, total.completions];
    assert!(rare.iter().all(|&times| times > count / 20), "{total:?}");
    assert!(total.events > 10 * count && total.acknowledged > count, "{total:?}");
}

#[test]
fn replay() {
    let Ok(seed) = std::env::var("SIM_SEED") else { return };
    match run(seed.parse().expect("SIM_SEED is a number"), None) {
        Ok(summary) => eprintln!("seed {seed}: {summary:?}"),
        Err(violation) => panic!("{violation}"),
    }
}

#[test]
fn the_same_seed_is_the_same_world() {
    let digest = |seed| run(seed, None).map_or_else(|violation| violation.trace.digest(), |summary| summary.digest);
    for seed in 0..seeds() / 20 {
        assert_eq!(digest(seed), digest(seed), "seed {seed}");
    }
}

/// The first of a few hundred worlds in which the oracle notices.
fn noticed(plant: Plant) -> Option<String> {
    (0..300).find_map(|seed| run(seed, Some(plant)).err().map(|violation| violation.problem))
}

#[test]
fn the_oracle_notices_a_lost_commit() {
    let problem = noticed(Plant::LoseCommitted).expect("a lost commit is noticed");
    assert!(problem.contains("lost") && problem.contains("committed"), "{problem}");
}

#[test]
fn the_replay_notices_a_batch_dependent_sample() {
    let problem = noticed(Plant::BatchDependent).expect("a wrong token is noticed");
    assert!(problem.contains("alone and from scratch"), "{problem}");
}
