//! The cache as a specification: what is found, what is shared, what is evicted; then a random life of it against a shadow of the
//! device's memory that knows what every block must hold.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod windows;

use holdfast_types::{BlockId, LogToken, Precision, SequenceId, TokenId};
use proptest::prelude::*;

use crate::testing::windowed_device;
use crate::{ChainDomain, DomainSecret, Found, FoundSpan, Growth, Holding, KvCache};

const B: u32 = 4;
/// Most rows of a step.
const ROWS: u32 = 8;

fn log(ids: impl IntoIterator<Item = TokenId>) -> Vec<LogToken> {
    ids.into_iter().map(|id| LogToken { id, precision: Precision::Native }).collect()
}

fn domain(secret: u8) -> ChainDomain {
    ChainDomain::single(DomainSecret([secret; 32]))
}

/// The cache and what a device would hold in every block: the tokens of the whole sequence up to each cell.
struct World {
    cache: KvCache,
    memory: Vec<Vec<Vec<Vec<LogToken>>>>,
    windows: Vec<Option<u32>>,
}

impl World {
    fn new(blocks: &[u32]) -> Self {
        Self::windowed(&blocks.iter().map(|&blocks| (blocks, None)).collect::<Vec<_>>())
    }

    /// Groups by their blocks and windows.
    fn windowed(groups: &[(u32, Option<u32>)]) -> Self {
        let memory = groups.iter().map(|&(n, _)| vec![vec![Vec::new(); B as usize]; n as usize]).collect();
        let windows = groups.iter().map(|(_, window)| *window).collect();
        Self { cache: KvCache::new(&windowed_device(B, groups), ROWS), memory, windows }
    }

    /// The first position that the row at `position` sees.
    fn first_seen(&self, group: usize, position: u32) -> u32 {
        self.windows[group].map_or(0, |window| (position + 1).saturating_sub(window))
    }

    fn attach(&mut self, sequence: u64, log: &[LogToken], secret: u8) -> (Holding, Found) {
        let chain = self.cache.chain(log, domain(secret));
        let (holding, found) = self.cache.attach(SequenceId(sequence), chain, log);
        if holding.source.is_none() {
            self.check(&holding, log, found.tokens);
        }
        (holding, found)
    }

    /// A visit of a sequence that will not come back.
    fn pass_by(&mut self, sequence: u64, log: &[LogToken], secret: u8) -> Found {
        let (holding, found) = self.attach(sequence, log, secret);
        let mut holding = holding.into_transient();
        let end = log.len() as u32 - 1;
        self.compute(&mut holding, log, found.tokens, end.max(found.tokens));
        self.cache.release(holding, log, end);
        self.audit(&[], &[]);
        found
    }

    /// One step: copies, then rows `from..to`, then seals.
    fn compute(&mut self, holding: &mut Holding, log: &[LogToken], from: u32, to: u32) {
        let growth = self.cache.reserve(holding, to).expect("room");
        for copy in holding.copies(&growth) {
            let bytes = self.memory[usize::from(copy.group)][copy.from.0 as usize].clone();
            self.memory[usize::from(copy.group)][copy.to.0 as usize] = bytes;
        }
        self.cache.commit(holding, growth);
        for g in 0..self.memory.len() {
            for position in from..to {
                let block = holding.table(g).get(position / B).expect("a block for each row");
                assert!(position / B >= holding.sealed, "a sealed block is never written");
                self.memory[g][block.0 as usize][(position % B) as usize] = log[..=position as usize].to_vec();
            }
        }
        self.check(holding, log, to);
        self.cache.seal(holding, log, to);
        self.check(holding, log, to);
    }

    /// Full blocks after which a log can go on, by the words of the contract: everything that the next row sees is there, and the last
    /// token is left to compute.
    fn found_by_walk(&self, log: &[LogToken], secret: u8) -> u32 {
        let chain = self.cache.chain(log, domain(secret));
        let goes_on = |blocks: &u32| {
            (0..self.cache.groups()).all(|g| {
                let first = self.first_seen(g, blocks * B) / B;
                (first..*blocks).all(|block| self.cache.lookup(g, &chain, block).is_some())
            })
        };
        (0..=(log.len() as u32 - 1) / B).rev().find(goes_on).unwrap()
    }

    /// Blocks that a sequence holds at most in a step.
    fn most(&self, group: usize) -> u32 {
        let step =
            |start: u32| (start + self.cache.step_rows()).div_ceil(B) - self.first_seen(group, start / B * B) / B;
        self.windows[group].map_or(u32::MAX / 2, |window| (window..window + 2 * B).map(step).max().unwrap())
    }

    /// What a log demands, counted block by block from its start.
    fn demand_by_walk(&self, log: &[LogToken], secret: u8) -> Vec<u32> {
        let chain = self.cache.chain(log, domain(secret));
        let (tokens, found) = (log.len() as u32, self.found_by_walk(log, secret));
        let held = |g: usize, block: u32| {
            let resident = self.cache.lookup(g, &chain, block).unwrap();
            !self.cache.groups[g].index.is_evictable(resident)
        };
        let copied = u32::from(tokens.is_multiple_of(B));
        let demand = |g: usize| {
            let seen = self.first_seen(g, found * B) / B..found;
            let new = (tokens.div_ceil(B) + copied - found).min(self.most(g) + copied);
            new + seen.filter(|block| !held(g, *block)).count() as u32
        };
        (0..self.cache.groups()).map(demand).collect()
    }

    fn check(&self, holding: &Holding, log: &[LogToken], computed: u32) {
        for g in 0..self.memory.len() {
            let first = holding.table(g).first * B;
            assert!(first <= self.first_seen(g, computed), "group {g}: the row at {computed} sees before {first}");
            for position in first..computed {
                let BlockId(block) = holding.table(g).get(position / B).expect("a block for each position");
                let cell = &self.memory[g][block as usize][(position % B) as usize];
                assert_eq!(cell, &log[..=position as usize], "group {g}, position {position}");
            }
        }
    }

    /// A sequence comes, computes everything but the last token, and goes to rest. Returns what was found.
    fn visit(&mut self, sequence: u64, log: &[LogToken], secret: u8) -> Found {
        let (mut holding, found) = self.attach(sequence, log, secret);
        let end = log.len() as u32 - 1;
        self.compute(&mut holding, log, found.tokens, end.max(found.tokens));
        self.cache.release(holding, log, end);
        self.audit(&[], &[]);
        found
    }

    fn audit(&self, holdings: &[&Holding], growths: &[&Growth]) {
        let problems = self.cache.audit(holdings.iter().copied(), growths.iter().copied());
        assert!(problems.is_empty(), "{problems:#?}");
    }
}

fn span(until: u32, by: u64) -> FoundSpan {
    FoundSpan { until, computed_by: SequenceId(by) }
}

#[test]
fn a_sequence_that_returns_finds_all_it_computed() {
    let mut world = World::new(&[16, 12]);
    assert_eq!(world.visit(1, &log(0..11), 0).tokens, 0);
    let found = world.visit(1, &log(0..20), 0);
    assert_eq!(found, Found { tokens: 10, spans: vec![span(10, 1)] });
}

#[test]
fn another_sequence_of_the_domain_shares_full_blocks_and_never_tails() {
    let mut world = World::new(&[16]);
    world.visit(1, &log(0..11), 0);
    assert_eq!(world.visit(2, &log(0..20), 0), Found { tokens: 8, spans: vec![span(8, 1)] });
    assert_eq!(world.visit(2, &log(0..21), 0).spans, vec![span(8, 1), span(19, 2)]);
    assert_eq!(world.visit(3, &log(0..20), 9).tokens, 0, "another domain");
}

#[test]
fn a_tail_matches_by_its_longest_common_prefix() {
    let mut world = World::new(&[16]);
    world.visit(1, &log([0, 1, 2, 3, 4, 5, 6, 99]), 0);
    assert_eq!(world.visit(1, &log([0, 1, 2, 3, 4, 5, 7, 8, 9]), 0).tokens, 6);
    assert_eq!(world.visit(1, &log([0, 1, 2, 9, 4, 5, 7, 8, 9]), 0).tokens, 0, "its parent is another block");
}

#[test]
fn a_tail_is_of_use_only_behind_the_block_it_hangs_on() {
    let mut world = World::new(&[16]);
    world.visit(1, &log([0, 1, 2, 3, 4, 5, 6, 99]), 0);
    world.visit(2, &log([0, 1, 2, 9, 50]), 0);
    assert_eq!(world.visit(1, &log([0, 1, 2, 9, 4, 5, 6, 7]), 0).tokens, 4, "the other's block, and not the old tail");
}

#[test]
fn a_forgotten_sequence_leaves_only_full_blocks() {
    let mut world = World::new(&[16]);
    world.visit(1, &log(0..11), 0);
    world.cache.forget(SequenceId(1));
    world.audit(&[], &[]);
    assert_eq!(world.cache.counts(0).cached, 2);
    assert_eq!(world.visit(1, &log(0..12), 0).tokens, 8);
}

#[test]
fn the_last_token_is_always_computed_into_a_copy_of_its_block() {
    let mut world = World::new(&[16, 16]);
    world.visit(1, &log(0..9), 0);
    let log = log(0..8);
    let (mut holding, found) = world.attach(2, &log, 0);
    assert_eq!(found, Found { tokens: 7, spans: vec![span(7, 1)] });
    let growth = world.cache.reserve(&holding, 8).unwrap();
    let copies = holding.copies(&growth);
    assert_eq!(copies.len(), 2, "one per group");
    assert!(copies.iter().all(|copy| copy.from != copy.to));
    world.audit(&[&holding], &[&growth]);
    world.cache.cancel(growth);
    world.compute(&mut holding, &log, 7, 8);
    assert_eq!(holding.table(0).get(1), Some(copies[0].from), "the copy sealed to the same key and gave way");
    world.audit(&[&holding], &[]);
    world.cache.release(holding, &log, 8);
    world.audit(&[], &[]);
}

#[test]
fn no_copy_is_begun_where_the_pool_has_no_room_for_it() {
    let mut world = World::new(&[2]);
    world.visit(1, &log(0..8), 0);
    let (mut holding, _) = world.attach(1, &log(0..9), 0);
    world.compute(&mut holding, &log(0..9), 7, 8);
    world.cache.release(holding, &log(0..8), 8);
    assert_eq!(world.visit(2, &log(0..8), 0).tokens, 4);
}

#[test]
fn the_least_recent_session_is_evicted_first_and_its_tail_before_its_head() {
    let mut world = World::new(&[8]);
    let (old, new) = (log(0..13), log(50..63));
    world.visit(1, &old, 0);
    world.visit(2, &new, 0);
    world.visit(3, &log(100..116), 0);
    assert_eq!(world.visit(2, &new, 0).tokens, 12, "more recent, untouched");
    let found = world.visit(1, &old, 0).tokens;
    assert_eq!(found, 4, "its last blocks went first");
}

#[test]
fn what_a_transient_sequence_leaves_goes_before_any_sessions_block() {
    let mut world = World::new(&[12, 12]);
    let (old, passing) = (log(0..13), log(50..67));
    world.visit(1, &old, 0);
    world.pass_by(2, &passing, 9);
    assert_eq!(world.cache.counts(0).cached, 7);
    world.cache.forget(SequenceId(2));
    // Nine more blocks are needed: five are free, and four are those of the newer sequence that only passed by.
    world.visit(3, &log(100..134), 0);
    assert_eq!(world.visit(1, &old, 0).tokens, 12, "the older session lost nothing");
    assert_eq!(world.cache.counts(0).cached, 12);
}

#[test]
fn a_transient_sequence_renews_no_block_of_a_session_and_a_session_adopts_its_blocks() {
    let mut world = World::new(&[6]);
    let (first, second) = (log(0..9), log(50..59));
    world.visit(1, &first, 0);
    world.visit(2, &second, 0);
    assert_eq!(world.pass_by(3, &first, 0).tokens, 8, "it finds what its domain has");
    world.visit(4, &log(100..113), 0);
    assert_eq!(
        (world.visit(2, &second, 0).tokens, world.visit(1, &first, 0).tokens),
        (8, 4),
        "the order is the sessions'"
    );

    let mut world = World::new(&[6]);
    world.pass_by(1, &first, 0);
    assert_eq!(world.visit(2, &log(0..13), 0).tokens, 8);
    world.pass_by(3, &second, 0);
    world.visit(4, &log(100..109), 0);
    assert_eq!(world.visit(2, &log(0..13), 0).tokens, 12, "what a session has used since is the session's");
}

#[test]
fn a_shortage_changes_nothing() {
    let mut world = World::new(&[8, 3]);
    let log = log(0..20);
    world.visit(1, &log[..9], 0);
    let (holding, _) = world.attach(2, &log[4..], 0);
    let before = (world.cache.counts(0), world.cache.counts(1));
    let shortage = world.cache.reserve(&holding, 16).unwrap_err();
    assert_eq!((shortage.group, shortage.needed, shortage.available), (1, 4, 3));
    assert_eq!((world.cache.counts(0), world.cache.counts(1)), before);
    world.cache.release(holding, &log[4..], 0);
    world.audit(&[], &[]);
}

#[test]
fn the_audit_sees_a_leak_a_double_owner_and_an_orphan() {
    let mut world = World::new(&[8]);
    let text = log(0..9);
    let (mut holding, _) = world.attach(1, &text, 0);
    let leaked = world.cache.reserve(&holding, 4).unwrap();
    assert_eq!(world.cache.audit([&holding], []).len(), 1);
    world.cache.cancel(leaked);
    world.compute(&mut holding, &text, 0, 8);
    assert_eq!(world.cache.audit([], []).len(), 2, "two blocks held by nobody that we know");
    let parent = holding.chain.key(0, 0).unwrap();
    holding.tables[0].blocks.swap(0, 1);
    assert_eq!(world.cache.audit([&holding], []).len(), 2);
    holding.tables[0].blocks.swap(0, 1);
    world.cache.release(holding, &text, 8);
    world.cache.groups[0].index.remove(&parent);
    assert!(world.cache.audit([], []).iter().any(|problem| problem.contains("without its parent")));
}

#[derive(Debug, Clone)]
enum Act {
    Start { sequence: u64, keep: usize, more: Vec<TokenId>, secret: u8, transient: bool },
    Step { pick: usize, rows: u32, abandon: bool },
    Grow { pick: usize, token: TokenId },
    Stop { pick: usize },
    Forget { sequence: u64 },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0_u64..6, 0_usize..24, prop::collection::vec(0_u32..2, 1..14), 0_u8..2, prop::bool::weighted(0.3))
            .prop_map(|(sequence, keep, more, secret, transient)| Act::Start { sequence, keep, more, secret, transient }),
        6 => (0_usize..6, 1_u32..9, prop::bool::weighted(0.2)).prop_map(|(pick, rows, abandon)| Act::Step { pick, rows, abandon }),
        3 => (0_usize..6, 0_u32..2).prop_map(|(pick, token)| Act::Grow { pick, token }),
        2 => (0_usize..6).prop_map(|pick| Act::Stop { pick }),
        1 => (0_u64..6).prop_map(|sequence| Act::Forget { sequence }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    /// Two-letter logs share prefixes all the time; small pools evict all the time. After each act every invariant holds, every
    /// cell that the next row sees is what the sequence computed or would have computed, and every log finds and demands what
    /// a walk counts.
    #[test]
    fn a_random_life_keeps_every_invariant(
        acts in prop::collection::vec(act(), 1..80),
        groups in prop::collection::vec((6_u32..20, prop::option::of(1_u32..24)), 1..4),
    ) {
        let mut world = World::windowed(&groups);
        let mut logs = vec![Vec::<LogToken>::new(); 6];
        let mut running: Vec<(u64, Holding, u32)> = Vec::new();
        for act in acts {
            match act {
                Act::Start { sequence, keep, more, secret, transient } => {
                    if running.iter().any(|(other, ..)| *other == sequence) { continue }
                    let text = &mut logs[sequence as usize];
                    text.truncate(keep);
                    text.extend(log(more));
                    let text = text.clone();
                    let walked = world.found_by_walk(&text, secret);
                    let (holding, found) = world.attach(sequence, &text, secret);
                    prop_assert_eq!(found.tokens / B, walked);
                    prop_assert_eq!(found.spans.last().map_or(0, |span| span.until), found.tokens);
                    prop_assert!(found.tokens < text.len() as u32);
                    let holding = if transient { holding.into_transient() } else { holding };
                    running.push((sequence, holding, found.tokens));
                }
                Act::Step { pick, rows, abandon } if !running.is_empty() => {
                    let pick = pick % running.len();
                    let (sequence, holding, computed) = &mut running[pick];
                    let text = logs[*sequence as usize].clone();
                    let to = (*computed + rows).min(text.len() as u32);
                    let Ok(growth) = world.cache.reserve(holding, to) else { continue };
                    world.cache.cancel(growth);
                    if !abandon {
                        world.compute(holding, &text, *computed, to);
                        *computed = to;
                    }
                }
                Act::Grow { pick, token } if !running.is_empty() => {
                    let (sequence, ..) = &running[pick % running.len()];
                    logs[*sequence as usize].extend(log([token]));
                }
                Act::Stop { pick } if !running.is_empty() => {
                    let (sequence, holding, computed) = running.swap_remove(pick % running.len());
                    world.cache.release(holding, &logs[sequence as usize], computed);
                }
                Act::Forget { sequence } => world.cache.forget(SequenceId(sequence)),
                Act::Step { .. } | Act::Grow { .. } | Act::Stop { .. } => {}
            }
            let holdings: Vec<&Holding> = running.iter().map(|(_, holding, _)| holding).collect();
            world.audit(&holdings, &[]);
            for (log, secret) in logs.iter().flat_map(|log| [(log, 0), (log, 1)]).filter(|(log, _)| !log.is_empty()) {
                let chain = world.cache.chain(log, domain(secret));
                let demand: Vec<u32> = world.cache.demand(&chain, log.len() as u32).collect();
                prop_assert_eq!(demand, world.demand_by_walk(log, secret));
            }
        }
    }
}
