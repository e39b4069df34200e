//! What one running sequence has of the cache, and the words in which the cache speaks of it.
//!
//! In: nothing; [`crate::KvCache`] makes and changes all of it. Out: block tables, copies to make, what was found. Deliberately not
//! here: when blocks join and leave a holding (`cache.rs`).

use holdfast_types::{BlockId, BlockMove, SequenceId};

use crate::{Chain, Reservation};

/// The blocks that one running sequence holds. Made by [`crate::KvCache::attach`], given back to [`crate::KvCache::release`].
///
/// Per group it holds the full blocks that its next rows see, resident and counted, and at most one more that is private to it.
#[derive(Debug)]
#[must_use = "a holding is released"]
pub struct Holding {
    pub(crate) sequence: SequenceId,
    pub(crate) chain: Chain,
    pub(crate) tables: Vec<Table>,
    /// Full blocks from the start that are computed, whether they are still held or passed.
    pub(crate) sealed: u32,
    /// Full blocks that were there when it began: held with others, so that letting go of them may free nothing.
    pub(crate) attached: u32,
    /// Resident blocks, one per group, whose copy will be the next private block.
    pub(crate) source: Option<Vec<BlockId>>,
    /// Its blocks are as good as gone once it lets go of them.
    pub(crate) transient: bool,
}

/// The block table of one KV group: entry i holds positions `i * block_tokens..(i + 1) * block_tokens`. Entries before `first` are
/// behind the group's window; their blocks are others' by now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// The first entry that is held.
    pub first: u32,
    /// Its block and those after it.
    pub blocks: Vec<BlockId>,
}

impl Table {
    /// One after the last entry.
    pub fn end(&self) -> u32 {
        self.first + self.blocks.len() as u32
    }

    /// The block of an entry, if it is held.
    pub fn get(&self, entry: u32) -> Option<BlockId> {
        self.blocks.get(entry.checked_sub(self.first)? as usize).copied()
    }

    /// The entries from `entry` on that are held, with the number of the first of them.
    pub fn since(&self, entry: u32) -> (u32, &[BlockId]) {
        let first = entry.clamp(self.first, self.end());
        (first, &self.blocks[(first - self.first) as usize..])
    }

    /// How many of its entries are before `entry`.
    pub(crate) fn before(&self, entry: u32) -> usize {
        (entry.clamp(self.first, self.end()) - self.first) as usize
    }
}

impl Holding {
    /// Marks the sequence as one that will not come back: what it leaves behind goes before anything else.
    pub fn into_transient(mut self) -> Self {
        self.transient = true;
        self
    }

    /// The block table of a group.
    pub fn table(&self, group: usize) -> &Table {
        &self.tables[group]
    }

    /// The keys of its full blocks.
    pub fn into_chain(self) -> Chain {
        self.chain
    }

    /// Copies that the step which uses `growth` has to make first.
    pub fn copies(&self, growth: &Growth) -> Vec<BlockMove> {
        let sources = self.source.iter().flatten();
        let into = growth.0.iter().filter_map(|reservation| reservation.blocks().first());
        let pairs = (0_u16..).zip(sources.zip(into));
        pairs.map(|(group, (&from, &to))| BlockMove { group, from, to }).collect()
    }
}

/// Blocks reserved in every group for the next step of one sequence.
#[derive(Debug)]
#[must_use = "a growth is committed or cancelled"]
pub struct Growth(pub(crate) Vec<Reservation>);

impl Growth {
    /// The new blocks of a group, in table order.
    pub fn blocks(&self, group: usize) -> &[BlockId] {
        self.0[group].blocks()
    }
}

/// What was found of a log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// Tokens from the start of the log whose KV need not be computed.
    pub tokens: u32,
    /// Who computed them, in order of position; the last span ends at `tokens`. Blocks that are gone because every group has a
    /// window, and it is past them, count with the first block that is there.
    pub spans: Vec<FoundSpan>,
}

impl Found {
    pub(crate) fn push(&mut self, until: u32, computed_by: SequenceId) {
        self.tokens = until;
        match self.spans.last_mut() {
            Some(last) if last.computed_by == computed_by => last.until = until,
            _ => self.spans.push(FoundSpan { until, computed_by }),
        }
    }
}

/// Consecutive found tokens that one sequence computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundSpan {
    /// The span ends before this position.
    pub until: u32,
    /// Whose rows filled these blocks.
    pub computed_by: SequenceId,
}

/// A reservation does not fit, even when everything that nobody holds is evicted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("KV group {group} needs {needed} more blocks, {available} are free or evictable")]
pub struct Shortage {
    /// The first group that falls short.
    pub group: usize,
    /// Blocks asked for.
    pub needed: u32,
    /// Blocks free or evictable.
    pub available: u32,
}

/// A table entry that changed because the same block was resident already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replaced {
    /// KV group.
    pub group: usize,
    /// Table entry.
    pub index: u32,
    /// The resident block.
    pub block: BlockId,
}
