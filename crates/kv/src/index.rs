//! The residency index of one KV group: which keyed block is where, and which block is evicted next.
//!
//! In: blocks as they become resident, are touched, and lose their last holder. Out: lookups, and the next to evict.
//! Deliberately not here: the blocks' states (`pool.rs`) and who holds them (`cache.rs`).
//!
//! Eviction goes by session recency, tail first: the order is ([`LastUse`], deeper first). What only transient sequences have used
//! goes first; then what sessions left behind a sliding window and only they have used: they need it no more, and what they will
//! go on from is still there; then what sessions at rest go on from.
//!
//! Without a window whoever uses a block uses its whole chain, so a parent's last use is never older than a child's and its depth
//! is smaller: **a parent is never evicted before its children**, and what is left of a chain can always be found from its
//! start. With a window that holds for a partial block and the blocks that it sees, and for nothing else.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use holdfast_types::{BlockId, SequenceId};

use crate::BlockKey;

/// A resident block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    /// Where it is.
    pub block: BlockId,
    /// The key it hangs on: its parent block's, or the root.
    pub parent: BlockKey,
    /// Blocks before it in its chain.
    pub depth: u32,
    /// The sequence whose rows filled it (of several that computed the same, the one whose copy stayed).
    pub computed_by: SequenceId,
    /// A session other than the one that computed it has used it.
    pub is_shared: bool,
    /// How soon it goes.
    pub last_use: LastUse,
}

/// When a block was last of use to a session, in ticks: what is less goes sooner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LastUse {
    /// Only transient sequences have used it.
    Transient,
    /// The one session that has used it passed it: it is behind the window.
    Passed(u64),
    /// A session ended its run with it, or computed it and has not let go of it yet.
    Kept(u64),
}

/// What can be evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evictable {
    /// A resident block that nobody holds.
    Block(BlockKey),
    /// The partial block of a sequence at rest.
    Tail(SequenceId),
}

type Rank = (LastUse, Reverse<u32>, BlockId);

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct ResidencyIndex {
    by_key: HashMap<BlockKey, Resident>,
    order: BTreeMap<Rank, Evictable>,
}

impl ResidencyIndex {
    /// The resident block of a key.
    pub fn get(&self, key: &BlockKey) -> Option<&Resident> {
        self.by_key.get(key)
    }

    /// Whether the block of a key is resident and somebody holds it.
    pub fn is_held(&self, key: &BlockKey) -> bool {
        self.get(key).is_some_and(|resident| !self.is_evictable(resident))
    }

    /// Resident blocks.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether nothing is resident.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Blocks that could be evicted now.
    pub fn evictable(&self) -> u32 {
        self.order.len() as u32
    }

    /// A block became resident, held by its writer.
    ///
    /// # Panics
    /// If the key is resident already: the caller drops its own copy instead.
    pub fn insert(&mut self, key: BlockKey, resident: Resident) {
        assert!(self.by_key.insert(key, resident).is_none(), "{key:?} is resident twice");
    }

    /// A resident block that nobody held is held again.
    pub fn hold(&mut self, key: &BlockKey) {
        let rank = rank(self.resident(key));
        assert!(self.order.remove(&rank).is_some(), "{key:?} was held before");
    }

    /// The holder `by` lets go of a resident block; if it was the last one, the block may be evicted from now on. Only the session
    /// that computed a block and shares it with nobody makes it older, by passing it.
    pub fn let_go(&mut self, key: &BlockKey, by: SequenceId, last_use: LastUse, was_last: bool) {
        let Some(resident) = self.by_key.get_mut(key) else { panic!("{key:?} is held but not resident") };
        match last_use {
            LastUse::Transient => {}
            LastUse::Passed(_) if !resident.is_shared && resident.computed_by == by => resident.last_use = last_use,
            LastUse::Passed(tick) | LastUse::Kept(tick) => {
                resident.is_shared |= resident.computed_by != by;
                resident.last_use = resident.last_use.max(LastUse::Kept(tick));
            }
        }
        if was_last {
            self.order.insert(rank(resident), Evictable::Block(*key));
        }
    }

    /// The partial block of a sequence rests, behind `depth` full blocks.
    pub fn add_tail(&mut self, sequence: SequenceId, block: BlockId, depth: u32, last_use: LastUse) {
        self.order.insert((last_use, Reverse(depth), block), Evictable::Tail(sequence));
    }

    /// The partial block does not rest any more.
    pub fn remove_tail(&mut self, block: BlockId, depth: u32, last_use: LastUse) {
        assert!(self.order.remove(&(last_use, Reverse(depth), block)).is_some(), "{block:?} was not at rest");
    }

    /// What to evict next.
    pub fn next_eviction(&self) -> Option<Evictable> {
        self.order.first_key_value().map(|(_, evictable)| *evictable)
    }

    /// Forgets a resident block that nobody holds; its block is the caller's.
    pub fn remove(&mut self, key: &BlockKey) -> BlockId {
        self.hold(key);
        let block = self.resident(key).block;
        self.by_key.remove(key);
        block
    }

    /// Every resident block with its key, in no order: for audits.
    pub fn iter(&self) -> impl Iterator<Item = (&BlockKey, &Resident)> {
        self.by_key.iter()
    }

    /// Whether a resident block stands in the eviction order.
    pub fn is_evictable(&self, resident: &Resident) -> bool {
        self.order.contains_key(&rank(resident))
    }

    fn resident(&self, key: &BlockKey) -> &Resident {
        let Some(resident) = self.by_key.get(key) else { panic!("{key:?} is not resident") };
        resident
    }
}

fn rank(resident: &Resident) -> Rank {
    (resident.last_use, Reverse(resident.depth), resident.block)
}
