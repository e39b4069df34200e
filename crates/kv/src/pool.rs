//! The blocks of one KV group and what each of them is doing.
//!
//! In: asks to reserve, commit, cancel, publish, rest, wake, retain, release, evict. Out: block ids. Deliberately not here:
//! what a block holds and which block is evicted next (`index.rs`), and the bytes (the device).
//!
//! # Lifecycle
//!
//! ```text
//!             reserve            commit             publish
//!      Free ──────────▶ Reserved ──────▶ Private ───────────▶ Resident (refs ≥ 1) ◀──▶ Resident (refs = 0)
//!       ▲                  │ cancel        │ │ ▲                        retain / release      │
//!       ├──────────────────┘               │ │ └──wake── Resting ◀──rest──┐                   │
//!       ├──────────────────────discard─────┘ └─────────────│──────────────┘                   │
//!       └──────────────────────────────────────evict───────┴──────────────────────evict───────┘
//! ```
//!
//! A wrong transition is a defect of ours and panics with the block's name; no request can cause one.

use holdfast_types::BlockId;

/// What a block is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockState {
    /// On the free list.
    Free,
    /// Promised to the step in progress; committed or cancelled when it ends.
    Reserved,
    /// Partly filled, one writer.
    Private,
    /// Partly filled, its writer is at rest. May be evicted.
    Resting,
    /// Full, keyed and immutable; held by `refs` sequences. May be evicted when nobody holds it.
    Resident {
        /// Sequences that hold it.
        refs: u32,
    },
}

/// Blocks promised to one step. Give it back to [`BlockPool::commit`] or [`BlockPool::cancel`]; there is no third way, and an
/// audit finds one that was dropped.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a reservation is committed or cancelled"]
pub struct Reservation(Vec<BlockId>);

impl Reservation {
    /// The blocks, in the order in which they will be used.
    pub fn blocks(&self) -> &[BlockId] {
        &self.0
    }
}

/// Blocks by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolCounts {
    /// All blocks.
    pub total: u32,
    /// On the free list.
    pub free: u32,
    /// Kept only because they may be useful again: resident and held by nobody, or resting.
    pub cached: u32,
    /// Reserved, private, or held by a sequence.
    pub used: u32,
}

/// The pool of one KV group. Every operation but `audit` takes constant time per block.
#[derive(Debug)]
pub struct BlockPool {
    states: Vec<BlockState>,
    /// A stack: the block freed last is used first, while its bytes may still be in a cache.
    free: Vec<BlockId>,
    cached: u32,
}

impl BlockPool {
    /// A pool of `blocks` free blocks.
    pub fn new(blocks: u32) -> Self {
        Self {
            states: vec![BlockState::Free; blocks as usize],
            free: (0..blocks).rev().map(BlockId).collect(),
            cached: 0,
        }
    }

    /// Blocks on the free list.
    pub fn free(&self) -> u32 {
        self.free.len() as u32
    }

    /// Blocks by state.
    pub fn counts(&self) -> PoolCounts {
        let (total, free) = (self.states.len() as u32, self.free());
        PoolCounts { total, free, cached: self.cached, used: total - free - self.cached }
    }

    /// What a block is doing.
    pub fn state(&self, block: BlockId) -> BlockState {
        self.states[block.0 as usize]
    }

    /// Takes `count` free blocks, or none.
    pub fn reserve(&mut self, count: u32) -> Option<Reservation> {
        let keep = self.free.len().checked_sub(count as usize)?;
        let mut blocks = self.free.split_off(keep);
        blocks.reverse();
        for &block in &blocks {
            self.change(block, BlockState::Free, BlockState::Reserved);
        }
        Some(Reservation(blocks))
    }

    /// The step happened: the blocks belong to their writer.
    pub fn commit(&mut self, reservation: Reservation) -> Vec<BlockId> {
        for &block in &reservation.0 {
            self.change(block, BlockState::Reserved, BlockState::Private);
        }
        reservation.0
    }

    /// The step did not happen: the blocks are free again.
    pub fn cancel(&mut self, reservation: Reservation) {
        for block in reservation.0.into_iter().rev() {
            self.change(block, BlockState::Reserved, BlockState::Free);
            self.free.push(block);
        }
    }

    /// A private block is full and keyed; its writer holds it.
    pub fn publish(&mut self, block: BlockId) {
        self.change(block, BlockState::Private, BlockState::Resident { refs: 1 });
    }

    /// The writer of a private block goes to rest.
    pub fn rest(&mut self, block: BlockId) {
        self.change(block, BlockState::Private, BlockState::Resting);
        self.cached += 1;
    }

    /// The writer of a resting block is back.
    pub fn wake(&mut self, block: BlockId) {
        self.change(block, BlockState::Resting, BlockState::Private);
        self.cached -= 1;
    }

    /// A private block is not wanted any more.
    pub fn discard(&mut self, block: BlockId) {
        self.change(block, BlockState::Private, BlockState::Free);
        self.free.push(block);
    }

    /// One more sequence holds a resident block. Returns whether it was held by nobody before.
    pub fn retain(&mut self, block: BlockId) -> bool {
        let BlockState::Resident { refs } = self.state(block) else { self.wrong(block, "retain") };
        self.states[block.0 as usize] = BlockState::Resident { refs: refs + 1 };
        self.cached -= u32::from(refs == 0);
        refs == 0
    }

    /// One sequence fewer holds a resident block. Returns whether it is held by nobody now.
    pub fn release(&mut self, block: BlockId) -> bool {
        let BlockState::Resident { refs: refs @ 1.. } = self.state(block) else { self.wrong(block, "release") };
        self.states[block.0 as usize] = BlockState::Resident { refs: refs - 1 };
        self.cached += u32::from(refs == 1);
        refs == 1
    }

    /// A cached block makes room.
    pub fn evict(&mut self, block: BlockId) {
        let (BlockState::Resident { refs: 0 } | BlockState::Resting) = self.state(block) else {
            self.wrong(block, "evict")
        };
        self.states[block.0 as usize] = BlockState::Free;
        self.free.push(block);
        self.cached -= 1;
    }

    /// Checks the pool by itself and adds what is wrong to `problems`.
    pub fn audit(&self, group: usize, problems: &mut Vec<String>) {
        let mut listed = vec![false; self.states.len()];
        for block in &self.free {
            if std::mem::replace(&mut listed[block.0 as usize], true) {
                problems.push(format!("group {group}: {block:?} is on the free list twice"));
            }
        }
        let mut cached = 0;
        for (index, state) in self.states.iter().enumerate() {
            if listed[index] != (*state == BlockState::Free) {
                problems
                    .push(format!("group {group}: block {index} is {state:?}, on the free list: {}", listed[index]));
            }
            cached += u32::from(matches!(state, BlockState::Resident { refs: 0 } | BlockState::Resting));
        }
        if cached != self.cached {
            problems.push(format!("group {group}: {cached} cached blocks, counted {}", self.cached));
        }
    }

    fn change(&mut self, block: BlockId, from: BlockState, to: BlockState) {
        assert!(self.state(block) == from, "{block:?} is {:?}, not {from:?}, on its way to {to:?}", self.state(block));
        self.states[block.0 as usize] = to;
    }

    fn wrong(&self, block: BlockId, what: &str) -> ! {
        panic!("{block:?} is {:?}: cannot {what}", self.state(block))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn audited(pool: &BlockPool) {
        let mut problems = Vec::new();
        pool.audit(0, &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
    }

    #[test]
    fn a_reservation_is_all_or_nothing() {
        let mut pool = BlockPool::new(3);
        assert!(pool.reserve(4).is_none());
        assert_eq!(pool.free(), 3);
        let reservation = pool.reserve(2).unwrap();
        assert_eq!(reservation.blocks(), [BlockId(1), BlockId(0)].iter().rev().copied().collect::<Vec<_>>());
        assert_eq!(pool.counts(), PoolCounts { total: 3, free: 1, cached: 0, used: 2 });
        pool.cancel(reservation);
        assert_eq!(pool.reserve(3).map(|all| pool.commit(all)), Some(vec![BlockId(0), BlockId(1), BlockId(2)]));
        audited(&pool);
    }

    #[test]
    fn the_whole_life_of_a_block() {
        let mut pool = BlockPool::new(1);
        let reservation = pool.reserve(1).unwrap();
        assert_eq!(pool.state(BlockId(0)), BlockState::Reserved);
        let block = pool.commit(reservation)[0];
        pool.rest(block);
        assert_eq!(pool.counts().cached, 1);
        pool.wake(block);
        pool.publish(block);
        assert!(!pool.retain(block));
        assert!(!pool.release(block));
        assert!(pool.release(block), "held by nobody");
        assert_eq!(pool.counts(), PoolCounts { total: 1, free: 0, cached: 1, used: 0 });
        assert!(pool.retain(block));
        assert!(pool.release(block));
        pool.evict(block);
        assert_eq!(pool.state(block), BlockState::Free);
        audited(&pool);
    }

    /// Every operation that takes a block, tried on every state: exactly the arrows of the lifecycle are allowed.
    #[test]
    fn exactly_the_arrows_of_the_lifecycle_exist() {
        type Operation = (&'static str, fn(&mut BlockPool));
        let operations: [Operation; 8] = [
            ("publish", |p| p.publish(BlockId(0))),
            ("rest", |p| p.rest(BlockId(0))),
            ("wake", |p| p.wake(BlockId(0))),
            ("discard", |p| p.discard(BlockId(0))),
            ("retain", |p| {
                p.retain(BlockId(0));
            }),
            ("release", |p| {
                p.release(BlockId(0));
            }),
            ("evict", |p| p.evict(BlockId(0))),
            ("commit", |p| drop(p.commit(Reservation(vec![BlockId(0)])))),
        ];
        let states = [
            (BlockState::Free, vec![]),
            (BlockState::Reserved, vec!["commit"]),
            (BlockState::Private, vec!["publish", "rest", "discard"]),
            (BlockState::Resting, vec!["wake", "evict"]),
            (BlockState::Resident { refs: 0 }, vec!["retain", "evict"]),
            (BlockState::Resident { refs: 1 }, vec!["retain", "release"]),
        ];
        let quiet = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let mut found = Vec::new();
        for (state, allowed) in &states {
            for (name, operation) in &operations {
                let mut pool = BlockPool { states: vec![*state], free: Vec::new(), cached: 1 };
                let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| operation(&mut pool))).is_ok();
                found.push((state, name, ran == allowed.contains(name)));
            }
        }
        std::panic::set_hook(quiet);
        assert_eq!(found.iter().filter(|(_, _, right)| !right).collect::<Vec<_>>(), Vec::<&_>::new());
    }

    #[test]
    fn the_audit_sees_damage() {
        let mut pool = BlockPool::new(2);
        pool.states[0] = BlockState::Private;
        pool.free.push(BlockId(1));
        pool.cached = 1;
        let mut problems = Vec::new();
        pool.audit(0, &mut problems);
        assert_eq!(problems.len(), 3, "{problems:?}");
    }
}
