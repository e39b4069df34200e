//! The KV cache of one device: pools and indexes of all its groups moving in step, and the tails of sequences at rest.
//!
//! In: a sequence's log when it starts ([`KvCache::attach`]), the blocks that its next step needs ([`KvCache::reserve`], then
//! [`KvCache::commit`] or [`KvCache::cancel`]), what it has computed ([`KvCache::seal`]), its end ([`KvCache::release`]). Out: its block
//! tables, in its [`Holding`]. Deliberately not here: when any of this is done (the scheduler).
//!
//! - Block i of every group holds positions `i * block_tokens..`; a prefix counts as found when every group has it. Blocks
//!   behind a sliding window are kept like all others: they stay useful to whoever starts from there.
//! - Two sequences that compute the same block at the same time end up with one: who seals second drops its copy and takes the
//!   resident one, which is the same bit for bit (kernels are batch-invariant).
//! - A partial tail has one writer and no key. At rest it stays on the device, matched by the longest common prefix of tokens
//!   when its sequence comes back.
//! - A *transient* sequence will not come back. It renews the recency of no block, and what it alone has used is older than
//!   everything else: it is evicted before any block of another.

use std::collections::HashMap;

use holdfast_types::{BlockId, BlockMove, DeviceDescription, LogToken, SequenceId};

use crate::{
    BlockKey, BlockPool, BlockState, Chain, ChainDomain, Evictable, PoolCounts, Reservation, ResidencyIndex, Resident,
};

/// Recency of what only transient sequences have used: older than every release, which are counted from 1.
const NEVER_USED: u64 = 0;

/// See the module's documentation.
#[derive(Debug)]
pub struct KvCache {
    pub(crate) block_tokens: u32,
    pub(crate) roots: Vec<BlockKey>,
    pub(crate) groups: Vec<Group>,
    pub(crate) tails: HashMap<SequenceId, Tail>,
    /// Counts releases: the time that recency is measured in.
    pub(crate) tick: u64,
}

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) pool: BlockPool,
    pub(crate) index: ResidencyIndex,
    bytes_per_block: u64,
}

/// The partial block of a sequence at rest: one block per group, the keys they hang on, and the tokens in them.
#[derive(Debug)]
pub(crate) struct Tail {
    pub(crate) parents: Vec<BlockKey>,
    pub(crate) blocks: Vec<BlockId>,
    pub(crate) tokens: Vec<LogToken>,
    pub(crate) depth: u32,
    pub(crate) tick: u64,
}

/// The blocks that one running sequence holds. Made by [`KvCache::attach`], given back to [`KvCache::release`].
///
/// Per group, table entries `0..sealed` are resident blocks that it holds a reference to; at most one more is private to it.
#[derive(Debug)]
#[must_use = "a holding is released"]
pub struct Holding {
    pub(crate) sequence: SequenceId,
    pub(crate) chain: Chain,
    pub(crate) tables: Vec<Vec<BlockId>>,
    pub(crate) sealed: u32,
    /// Resident blocks, one per group, whose copy will be the next private block.
    pub(crate) source: Option<Vec<BlockId>>,
    /// Its blocks are as good as gone once it lets go of them.
    pub(crate) transient: bool,
}

impl Holding {
    /// Marks the sequence as one that will not come back: what it leaves behind goes before anything else.
    pub fn into_transient(mut self) -> Self {
        self.transient = true;
        self
    }

    /// The block table of a group.
    pub fn table(&self, group: usize) -> &[BlockId] {
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
    /// Tokens from the start of the log whose KV is there.
    pub tokens: u32,
    /// Who computed them, in order of position; the last span ends at `tokens`.
    pub spans: Vec<FoundSpan>,
}

impl Found {
    fn push(&mut self, until: u32, computed_by: SequenceId) {
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

impl KvCache {
    /// An empty cache for a device.
    pub fn new(device: &DeviceDescription) -> Self {
        assert!(device.block_tokens > 0 && !device.kv_groups.is_empty(), "a device has blocks");
        Self {
            block_tokens: device.block_tokens,
            roots: (0_u16..).take(device.kv_groups.len()).map(|group| BlockKey::root(device, group)).collect(),
            groups: device
                .kv_groups
                .iter()
                .map(|group| Group {
                    pool: BlockPool::new(group.blocks),
                    index: ResidencyIndex::default(),
                    bytes_per_block: group.bytes_per_block,
                })
                .collect(),
            tails: HashMap::new(),
            tick: 0,
        }
    }

    /// Keys the full blocks of a log.
    pub fn chain(&self, log: &[LogToken], domain: ChainDomain) -> Chain {
        let mut chain = Chain::new(&self.roots, self.block_tokens, domain);
        chain.extend(log);
        chain
    }

    /// Number of KV groups.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Blocks of a group by state.
    pub fn counts(&self, group: usize) -> PoolCounts {
        self.groups[group].pool.counts()
    }

    /// Longest log, in tokens, that the pools hold when nothing else does.
    pub fn capacity_tokens(&self) -> u32 {
        let blocks = self.groups.iter().map(|group| group.pool.counts().total).min().unwrap_or(0);
        blocks.saturating_mul(self.block_tokens)
    }

    /// Bytes of device memory that a holding's blocks take. A block held by several counts for each.
    pub fn bytes(&self, holding: &Holding) -> u64 {
        let tables = self.groups.iter().zip(&holding.tables);
        tables.map(|(group, table)| table.len() as u64 * group.bytes_per_block).sum()
    }

    /// Free and evictable blocks of a group.
    pub fn available(&self, group: usize) -> u32 {
        self.groups[group].pool.free() + self.groups[group].index.evictable()
    }

    /// Blocks that a log of `tokens` tokens with these keys would take from [`KvCache::available`], group by group. Errs on the
    /// high side: a resting tail and a copied block are counted as new ones. Looks only for where what is there ends: whoever
    /// holds a block holds all before it.
    pub fn demand(&self, chain: &Chain, tokens: u32) -> impl Iterator<Item = u32> {
        let found = self.found_blocks(chain, tokens) as usize;
        let new = self.blocks_for(tokens) + u32::from(tokens.is_multiple_of(self.block_tokens));
        self.groups.iter().enumerate().map(move |(g, group)| {
            let held = chain.full(g)[..found].partition_point(|key| group.index.is_held(key));
            new - held as u32
        })
    }

    /// Blocks that a holding still takes to reach `tokens` tokens, group by group.
    pub fn missing(&self, holding: &Holding, tokens: u32) -> impl Iterator<Item = u32> {
        let blocks = self.blocks_for(tokens);
        holding.tables.iter().map(move |table| blocks.saturating_sub(table.len() as u32))
    }

    /// Takes hold of everything that is there of a log: the resident blocks of its chain, then the sequence's own resting tail,
    /// or a copy of the resident block when only the end of the log keeps it from being used whole.
    ///
    /// **All but the last token** can be found, never all: the row of the last token has to be computed, because it is what a
    /// next token is sampled from. When the resident blocks cover even that token, the last block is copied and that one row
    /// computed into the copy; a sealed block is never written.
    pub fn attach(&mut self, sequence: SequenceId, chain: Chain, log: &[LogToken]) -> (Holding, Found) {
        let limit = (log.len() as u32).saturating_sub(1);
        let mut found = Found::default();
        let full = self.found_blocks(&chain, log.len() as u32);
        let mut tables = vec![Vec::with_capacity(log.len() / self.block_tokens as usize + 1); self.groups.len()];
        for index in 0..full {
            for (g, table) in tables.iter_mut().enumerate() {
                let resident = self.hold(g, &chain, index);
                table.push(resident.block);
                if g == 0 {
                    found.push((index + 1) * self.block_tokens, resident.computed_by);
                }
            }
        }
        let rest = &log[(full * self.block_tokens) as usize..limit as usize];
        let covered = !rest.is_empty() && (0..self.groups.len()).all(|g| self.lookup(g, &chain, full).is_some());
        let mut holding = Holding { sequence, chain, tables, sealed: full, source: None, transient: false };
        if covered && self.has_room_for_a_copy(log.len() as u32) {
            self.drop_tail(sequence);
            let residents: Vec<Resident> = (0..self.groups.len()).map(|g| self.hold(g, &holding.chain, full)).collect();
            found.push(limit, residents[0].computed_by);
            holding.source = Some(residents.iter().map(|resident| resident.block).collect());
        } else {
            let matched = self.take_tail(&mut holding, rest);
            if matched > 0 {
                found.push(full * self.block_tokens + matched, sequence);
            }
        }
        (holding, found)
    }

    /// Reserves what a holding needs to reach `tokens` tokens, in every group or in none, evicting what nobody holds.
    ///
    /// # Errors
    /// [`Shortage`] when it does not fit; nothing was evicted then.
    pub fn reserve(&mut self, holding: &Holding, tokens: u32) -> Result<Growth, Shortage> {
        let missing: Vec<u32> = self.missing(holding, tokens).collect();
        for (group, &needed) in missing.iter().enumerate() {
            let available = self.available(group);
            if needed > available {
                return Err(Shortage { group, needed, available });
            }
        }
        let mut reservations = Vec::with_capacity(missing.len());
        for (g, needed) in missing.into_iter().enumerate() {
            while self.groups[g].pool.free() < needed {
                self.evict_next(g);
            }
            let Some(reservation) = self.groups[g].pool.reserve(needed) else { panic!("evicted enough for {needed}") };
            reservations.push(reservation);
        }
        Ok(Growth(reservations))
    }

    /// The step happened: the reserved blocks join the holding's tables, copies are made.
    pub fn commit(&mut self, holding: &mut Holding, growth: Growth) {
        for (g, reservation) in growth.0.into_iter().enumerate() {
            holding.tables[g].extend(self.groups[g].pool.commit(reservation));
        }
        self.drop_source(holding);
    }

    /// The step did not happen: the reserved blocks are free again, the holding is as it was.
    pub fn cancel(&mut self, growth: Growth) {
        for (group, reservation) in self.groups.iter_mut().zip(growth.0) {
            group.pool.cancel(reservation);
        }
    }

    /// Makes the blocks resident that are full now that `computed` tokens of `log` are computed. Returns the table entries that
    /// were replaced by a block that was resident already.
    pub fn seal(&mut self, holding: &mut Holding, log: &[LogToken], computed: u32) -> Vec<Replaced> {
        let mut replaced = Vec::new();
        let full = computed / self.block_tokens;
        holding.chain.extend(&log[..computed as usize]);
        for depth in holding.sealed..full {
            for (g, group) in self.groups.iter_mut().enumerate() {
                let (Some(key), Some(parent)) = (holding.chain.key(g, depth), holding.chain.parent(g, depth)) else {
                    panic!("the chain covers what is computed")
                };
                let entry = &mut holding.tables[g][depth as usize];
                if let Some(resident) = group.index.get(&key) {
                    let block = resident.block;
                    if group.pool.retain(block) {
                        group.index.hold(&key);
                    }
                    group.pool.discard(std::mem::replace(entry, block));
                    replaced.push(Replaced { group: g, index: depth, block });
                } else {
                    group.pool.publish(*entry);
                    let (block, last_use) = (*entry, if holding.transient { NEVER_USED } else { self.tick });
                    let computed_by = holding.sequence;
                    group.index.insert(key, Resident { block, parent, depth, computed_by, last_use });
                }
            }
        }
        holding.sealed = holding.sealed.max(full);
        replaced
    }

    /// Lets go of everything a sequence holds; returns its keys. Its resident blocks stay until they are evicted, and so does its
    /// partial block, with the tokens of `log` up to `computed`.
    pub fn release(&mut self, mut holding: Holding, log: &[LogToken], computed: u32) -> Chain {
        self.tick += 1;
        let tick = if holding.transient { NEVER_USED } else { self.tick };
        self.drop_source(&mut holding);
        for (g, group) in self.groups.iter_mut().enumerate() {
            for depth in 0..holding.sealed {
                let Some(key) = holding.chain.key(g, depth) else { panic!("sealed blocks are keyed") };
                let was_last = group.pool.release(holding.tables[g][depth as usize]);
                group.index.let_go(&key, tick, was_last);
            }
        }
        let tokens = &log[(holding.sealed * self.block_tokens) as usize..computed as usize];
        let private: Option<Vec<BlockId>> =
            holding.tables.iter().map(|table| table.get(holding.sealed as usize).copied()).collect();
        if let Some(blocks) = private {
            let depth = holding.sealed;
            if tokens.is_empty() {
                self.groups.iter_mut().zip(blocks).for_each(|(group, block)| group.pool.discard(block));
            } else {
                for (group, &block) in self.groups.iter_mut().zip(&blocks) {
                    group.pool.rest(block);
                    group.index.add_tail(holding.sequence, block, depth, tick);
                }
                let parents = (0..self.groups.len()).filter_map(|g| holding.chain.parent(g, depth)).collect();
                let tail = Tail { parents, blocks, tokens: tokens.to_vec(), depth, tick };
                let before = self.tails.insert(holding.sequence, tail);
                assert!(before.is_none(), "{:?} had a tail at rest while it ran", holding.sequence);
            }
        }
        holding.into_chain()
    }

    /// A sequence will not come back: its partial block is free. Its resident blocks stay until they are evicted.
    pub fn forget(&mut self, sequence: SequenceId) {
        self.drop_tail(sequence);
    }

    pub(crate) fn blocks_for(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.block_tokens)
    }

    pub(crate) fn lookup(&self, group: usize, chain: &Chain, index: u32) -> Option<&Resident> {
        self.groups[group].index.get(&chain.key(group, index)?)
    }

    /// Full blocks from the start that every group has, leaving at least the last of `tokens` to compute. A resident block's
    /// parent is resident, so what a group has of a chain ends once.
    fn found_blocks(&self, chain: &Chain, tokens: u32) -> u32 {
        let most = (tokens.saturating_sub(1) / self.block_tokens).min(chain.blocks());
        let has = |most: u32, (g, group): (usize, &Group)| {
            chain.full(g)[..most as usize].partition_point(|key| group.index.get(key).is_some()) as u32
        };
        self.groups.iter().enumerate().fold(most, has)
    }

    /// A copy takes one block more than the log for as long as it is in the making; alone in the pools that has to fit.
    fn has_room_for_a_copy(&self, tokens: u32) -> bool {
        self.blocks_for(tokens).saturating_mul(self.block_tokens) < self.capacity_tokens()
    }

    fn hold(&mut self, group: usize, chain: &Chain, index: u32) -> Resident {
        let group_state = &mut self.groups[group];
        let found = chain.key(group, index).and_then(|key| Some((key, *group_state.index.get(&key)?)));
        let Some((key, resident)) = found else { panic!("block {index} was looked up before it is held") };
        if group_state.pool.retain(resident.block) {
            group_state.index.hold(&key);
        }
        resident
    }

    /// Gives the resting tail of the holding's sequence back to it as far as it starts like `rest`. Returns the tokens that match;
    /// a tail that does not match is freed.
    fn take_tail(&mut self, holding: &mut Holding, rest: &[LogToken]) -> u32 {
        let Some(tail) = self.remove_tail(holding.sequence) else { return 0 };
        let hangs_on = |g: usize| holding.chain.parent(g, holding.sealed) == Some(tail.parents[g]);
        let same_place = tail.depth == holding.sealed && (0..self.groups.len()).all(hangs_on);
        let matched = if same_place { tail.tokens.iter().zip(rest).take_while(|(a, b)| a == b).count() } else { 0 };
        for (g, block) in tail.blocks.into_iter().enumerate() {
            let pool = &mut self.groups[g].pool;
            if matched > 0 {
                pool.wake(block);
                holding.tables[g].push(block);
            } else {
                pool.evict(block);
            }
        }
        matched as u32
    }

    fn drop_tail(&mut self, sequence: SequenceId) {
        if let Some(tail) = self.remove_tail(sequence) {
            self.groups.iter_mut().zip(tail.blocks).for_each(|(group, block)| group.pool.evict(block));
        }
    }

    fn remove_tail(&mut self, sequence: SequenceId) -> Option<Tail> {
        let tail = self.tails.remove(&sequence)?;
        for (group, &block) in self.groups.iter_mut().zip(&tail.blocks) {
            group.index.remove_tail(block, tail.depth, tail.tick);
        }
        Some(tail)
    }

    fn drop_source(&mut self, holding: &mut Holding) {
        let Some(source) = holding.source.take() else { return };
        for (g, block) in source.into_iter().enumerate() {
            let Some(key) = holding.chain.key(g, holding.sealed) else { panic!("a copied block is keyed") };
            assert!(matches!(self.groups[g].pool.state(block), BlockState::Resident { .. }), "a source is held");
            let was_last = self.groups[g].pool.release(block);
            let tick = if holding.transient { NEVER_USED } else { self.tick };
            self.groups[g].index.let_go(&key, tick, was_last);
        }
    }

    fn evict_next(&mut self, g: usize) {
        match self.groups[g].index.next_eviction() {
            Some(Evictable::Block(key)) => {
                let block = self.groups[g].index.remove(&key);
                self.groups[g].pool.evict(block);
            }
            // A tail is of use only when every group has it.
            Some(Evictable::Tail(sequence)) => self.drop_tail(sequence),
            None => panic!("what is available can be evicted"),
        }
    }
}
