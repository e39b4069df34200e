//! Random arrivals, pools, chunks, cancellations and failed steps: every job ends, audits hold, plans keep the limits, flows get
//! their share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::collections::BTreeMap;

use harness::{Books, device, job, window_blocks, with_window};
use holdfast_scheduler::{Abandon, Costs, JobId, Scheduler, SchedulerConfig};
use proptest::prelude::*;

const COSTS: Costs = Costs { step_us: 50.0, row_us: 10.0 };

#[derive(Debug, Clone)]
struct Order {
    arrives: u32,
    flow: u64,
    family: u32,
    tokens: u32,
    samples: u32,
    cancel_after: Option<u32>,
}

fn order() -> impl Strategy<Value = Order> {
    (0_u32..60, 0_u64..4, 0_u32..3, 1_u32..40, 1_u32..20, prop::option::weighted(0.2, 0_u32..30)).prop_map(
        |(arrives, flow, family, tokens, samples, cancel_after)| Order {
            arrives,
            flow,
            family,
            tokens,
            samples,
            cancel_after,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn everybody_ends_and_nothing_breaks(
        orders in prop::collection::vec(order(), 1..30),
        (block_tokens, spare, slots, rows, chunk, budget) in (1_u32..8, 0_u32..20, 1_u32..7, 1_u32..50, 1_u32..30, 0_u64..600),
        failures in prop::collection::btree_map(0_u32..200, any::<bool>(), 0..6),
        window in prop::option::of((1_u32..40, 0_u32..6)),
    ) {
        let mut device = device(block_tokens, 60_u32.div_ceil(block_tokens) + spare, slots, rows);
        if let Some((window, spare)) = window {
            device = with_window(device, window, window_blocks(window, block_tokens) + spare);
        }
        let config = SchedulerConfig { prefill_chunk_tokens: chunk, step_budget_us: budget };
        let mut scheduler = Scheduler::new(&device, config);
        let mut books = Books::default();
        let mut left: BTreeMap<JobId, (u32, Option<u32>)> = BTreeMap::new();
        let mut step = 0;
        while step < 60 || scheduler.has_work() {
            prop_assert!(step < 20_000, "{} of {} jobs starve", left.len(), orders.len());
            for (id, order) in (1..).zip(&orders).filter(|(_, order)| order.arrives == step) {
                let ids = (0..order.tokens).map(|i| order.family * 100 + i);
                scheduler.submit(job(id, order.flow, ids)).unwrap();
                left.insert(JobId(id), (order.samples, order.cancel_after.map(|after| step + after)));
            }
            let cancelled: Vec<JobId> = left.iter().filter(|(_, (_, at))| *at == Some(step)).map(|(id, _)| *id).collect();
            for id in cancelled {
                prop_assert!(scheduler.remove(id));
                left.remove(&id);
            }
            scheduler.admit();
            step += 1;
            let Some(planned) = scheduler.plan(&COSTS, u32::MAX) else { continue };
            prop_assert_eq!(scheduler.audit(), Vec::<String>::new());
            match failures.get(&step) {
                Some(true) => drop(scheduler.abandon(Abandon::NotRun)),
                Some(false) => {
                    books.run(&device, &planned.plan);
                    for id in scheduler.abandon(Abandon::Faulted) {
                        scheduler.remove(id);
                        left.remove(&id);
                    }
                }
                None => {
                    let output = books.run(&device, &planned.plan);
                    for advance in scheduler.apply(&output).unwrap() {
                        let Some((samples, _)) = left.get_mut(&advance.job) else { panic!("{advance:?}") };
                        *samples -= u32::from(advance.sampled.is_some());
                        if *samples == 0 {
                            scheduler.remove(advance.job);
                            left.remove(&advance.job);
                        }
                    }
                }
            }
            prop_assert_eq!(scheduler.audit(), Vec::<String>::new());
        }
        prop_assert!(left.is_empty());
        prop_assert!((0..scheduler.kv_groups()).all(|group| scheduler.block_counts(group).used == 0));
    }

    /// However long a log gets, a group with a window holds of it no more than the window and the rows of a step; and a pool of just
    /// that much runs it to the end.
    #[test]
    fn a_window_bounds_what_a_long_run_holds(
        (block_tokens, window, spare, chunk) in (1_u32..8, 1_u32..40, 0_u32..6, 1_u32..30),
        (tokens, samples) in (1_u32..400, 1_u32..200),
    ) {
        let few = window_blocks(window, block_tokens) + spare;
        let device = with_window(device(block_tokens, 600_u32.div_ceil(block_tokens), 1, 64), window, few);
        let config = SchedulerConfig { prefill_chunk_tokens: chunk, step_budget_us: 1_000_000 };
        let mut scheduler = Scheduler::new(&device, config);
        let mut books = Books::default();
        prop_assert_eq!(scheduler.context_limit(), 600_u32.div_ceil(block_tokens) * block_tokens);
        scheduler.submit(job(1, 1, 0..tokens)).unwrap();
        scheduler.admit();
        let (mut computed, mut left) = (0, samples);
        while left > 0 {
            let step = scheduler.plan(&COSTS, u32::MAX).unwrap();
            let output = books.run(&device, &step.plan);
            computed += step.rows;
            left -= scheduler.apply(&output).unwrap().iter().filter(|advance| advance.sampled.is_some()).count() as u32;
            let used = scheduler.block_counts(1).used;
            prop_assert!(used <= window_blocks(window, block_tokens), "{} blocks after {} tokens", used, computed);
            let all = u64::from(computed.div_ceil(block_tokens));
            prop_assert_eq!(scheduler.held_bytes(JobId(1)), all + u64::from(used));
        }
        prop_assert_eq!((computed, scheduler.preemptions()), (tokens + samples - 1, 0));
    }

    /// The theorem of the VTC paper: two flows that always have something waiting stay within twice the larger of the longest input
    /// and what the slots can sample before somebody else gets one.
    #[test]
    fn backlogged_flows_stay_within_the_bound(
        sizes in prop::collection::vec((1_u32..40, 1_u32..12), 120..160),
        flood in 2_usize..6,
        slots in 1_u32..5,
    ) {
        let device = device(4, 400, slots, 64);
        let mut scheduler = Scheduler::new(&device, SchedulerConfig { prefill_chunk_tokens: 16, step_budget_us: 1_000 });
        let mut books = Books::default();
        let mut waiting = [0_usize; 2];
        let mut left = BTreeMap::new();
        for (id, (tokens, samples)) in (0_u64..).zip(&sizes) {
            let flow = u64::from((id as usize).is_multiple_of(flood));
            scheduler.submit(job(id, flow, (0..*tokens).map(|i| (id as u32 * 41 + i) % 1000))).unwrap();
            waiting[flow as usize] += 1;
            left.insert(JobId(id), (flow, *samples));
        }
        let bound = 2 * (40_u64).max(2 * u64::from(slots) * 12);
        let mut compared = 0;
        while scheduler.has_work() {
            for admitted in scheduler.admit() {
                waiting[left[&admitted.job].0 as usize] -= 1;
            }
            if waiting.iter().all(|jobs| *jobs > 0) {
                prop_assert!(scheduler.served(0).abs_diff(scheduler.served(1)) <= bound);
                compared += 1;
            }
            let Some(planned) = scheduler.plan(&COSTS, u32::MAX) else { break };
            let output = books.run(&device, &planned.plan);
            for advance in scheduler.apply(&output).unwrap() {
                let Some((_, samples)) = left.get_mut(&advance.job) else { panic!("{advance:?}") };
                *samples -= u32::from(advance.sampled.is_some());
                if *samples == 0 {
                    scheduler.remove(advance.job);
                }
            }
        }
        prop_assert!(compared > 5);
    }
}

#[test]
fn a_quiet_flow_does_not_wait_behind_a_flood() {
    let device = device(4, 400, 2, 64);
    let mut scheduler = Scheduler::new(&device, SchedulerConfig::default());
    let mut books = Books::default();
    (1..=50).for_each(|id| scheduler.submit(job(id, 1, 0..20)).unwrap());
    scheduler.submit(job(51, 2, 500..510)).unwrap();
    let mut order = Vec::new();
    while scheduler.has_work() {
        order.extend(scheduler.admit().into_iter().map(|admitted| admitted.job.0));
        let planned = scheduler.plan(&COSTS, u32::MAX).unwrap();
        let output = books.run(&device, &planned.plan);
        for advance in scheduler.apply(&output).unwrap() {
            assert!(advance.sampled.is_none() || scheduler.remove(advance.job));
        }
    }
    assert_eq!(order[..3], [1, 51, 2], "it gets the second slot, ahead of forty-nine that came before");
}
