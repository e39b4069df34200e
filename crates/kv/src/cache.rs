//! The KV cache of one device: pools and indexes of all its groups, and the tails of sequences at rest.
//!
//! In: a sequence's log when it starts ([`KvCache::attach`]), the blocks that its next step needs ([`KvCache::reserve`], then
//! [`KvCache::commit`] or [`KvCache::cancel`]), what it has computed ([`KvCache::seal`]), its end ([`KvCache::release`]). Out: its block
//! tables, in its [`Holding`]. Deliberately not here: when any of this is done (the scheduler).
//!
//! - Block i of every group holds positions `i * block_tokens..`. A group with a sliding window lets go of a block as soon as the
//!   sequence has passed it; every block is keyed all the same, so the chains of all groups are equally long.
//! - A prefix of k full blocks is found when every group without a window has all of them, and every group with one has those
//!   before block k that it still sees (`sight.rs`). Where a window's blocks are gone, a shorter prefix may be found, or none.
//! - What was passed stays resident until it is evicted, and goes before what sequences at rest will go on from, unless it turned
//!   out to be shared: whoever starts with the same prompt goes on from there (`index.rs`).
//! - Two sequences that compute the same block at the same time end up with one: who seals second drops its copy and takes the
//!   resident one, which is the same bit for bit (kernels are batch-invariant).
//! - A partial tail has one writer and no key. At rest it stays on the device, matched by the longest common prefix of tokens
//!   when its sequence comes back.
//! - A *transient* sequence will not come back. It renews the recency of no block, and what it alone has used is older than
//!   everything else: it is evicted before any block of another.
//!
//! What a sequence takes of a group with a window is bounded however long it gets, so such a group limits the context only when its
//! pool is smaller than a window; a pool that is only a little larger limits the rows of a step ([`KvCache::step_rows`]).

use std::collections::HashMap;

use holdfast_types::{BlockId, DeviceDescription, KvGroup, LogToken, SequenceId};

use crate::sight::Sight;
use crate::{
    BlockKey, BlockPool, BlockState, Chain, ChainDomain, Evictable, Found, Growth, Holding, LastUse, PoolCounts,
    Replaced, ResidencyIndex, Resident, Shortage, Table,
};

/// See the module's documentation.
#[derive(Debug)]
pub struct KvCache {
    pub(crate) block_tokens: u32,
    pub(crate) roots: Vec<BlockKey>,
    pub(crate) groups: Vec<Group>,
    pub(crate) tails: HashMap<SequenceId, Tail>,
    /// The group that knows who computed what: it looks back furthest.
    witness: usize,
    step_rows: u32,
    /// Counts releases: the time that recency is measured in.
    pub(crate) tick: u64,
}

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) pool: BlockPool,
    pub(crate) index: ResidencyIndex,
    pub(crate) sight: Sight,
    bytes_per_block: u64,
}

/// The partial block of a sequence at rest: one block per group, the keys they hang on, and the tokens in them.
#[derive(Debug)]
pub(crate) struct Tail {
    pub(crate) parents: Vec<BlockKey>,
    pub(crate) blocks: Vec<BlockId>,
    pub(crate) tokens: Vec<LogToken>,
    pub(crate) depth: u32,
    pub(crate) last_use: LastUse,
}

impl KvCache {
    /// An empty cache for a device, of whose steps one sequence takes at most `rows_max` rows.
    pub fn new(device: &DeviceDescription, rows_max: u32) -> Self {
        assert!(device.block_tokens > 0 && !device.kv_groups.is_empty(), "a device has blocks");
        let block_tokens = device.block_tokens;
        let context_blocks = device.limits.context.div_ceil(block_tokens);
        let sight = |group: &KvGroup| Sight::new(group.window, block_tokens);
        // A pool that does not hold a whole context lives on what passes behind the window.
        let tight = device.kv_groups.iter().filter(|group| group.blocks < context_blocks);
        let rows = tight.filter_map(|group| sight(group).rows(group.blocks, block_tokens)).min();
        let step_rows = rows_max.min(device.limits.rows).min(rows.unwrap_or(u32::MAX)).max(1);
        let furthest = |(_, group): &(usize, &KvGroup)| group.window.unwrap_or(u32::MAX);
        let witness = device.kv_groups.iter().enumerate().rev().max_by_key(furthest).map_or(0, |(g, _)| g);
        Self {
            block_tokens,
            roots: (0_u16..).take(device.kv_groups.len()).map(|group| BlockKey::root(device, group)).collect(),
            groups: device
                .kv_groups
                .iter()
                .map(|group| Group {
                    pool: BlockPool::new(group.blocks),
                    index: ResidencyIndex::default(),
                    sight: sight(group),
                    bytes_per_block: group.bytes_per_block,
                })
                .collect(),
            tails: HashMap::new(),
            witness,
            step_rows,
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

    /// Longest log, in tokens, that can be computed when nothing else is there. No limit comes from a group whose pool holds its
    /// window and one block more.
    pub fn capacity_tokens(&self) -> u32 {
        let capacity = |group: &Group| {
            let blocks = group.pool.counts().total;
            let slides = group.sight.rows(blocks, self.block_tokens).is_some();
            if slides { u32::MAX } else { blocks.saturating_mul(self.block_tokens) }
        };
        self.groups.iter().map(capacity).min().unwrap_or(0)
    }

    /// Most rows that one sequence may take of a step.
    pub fn step_rows(&self) -> u32 {
        self.step_rows
    }

    /// Bytes of device memory that a holding's blocks take. A block held by several counts for each.
    pub fn bytes(&self, holding: &Holding) -> u64 {
        let tables = self.groups.iter().zip(&holding.tables);
        tables.map(|(group, table)| table.blocks.len() as u64 * group.bytes_per_block).sum()
    }

    /// Free and evictable blocks of a group.
    pub fn available(&self, group: usize) -> u32 {
        self.groups[group].pool.free() + self.groups[group].index.evictable()
    }

    /// Blocks that a log of `tokens` tokens with these keys would take from [`KvCache::available`], group by group. Errs on the
    /// high side: a resting tail and a copied block are counted as new ones. Looks only for where what is there ends: whoever
    /// holds a block of a group without a window holds all before it.
    pub fn demand(&self, chain: &Chain, tokens: u32) -> impl Iterator<Item = u32> {
        let found = self.found_blocks(chain, tokens);
        let copied = u32::from(tokens.is_multiple_of(self.block_tokens));
        let new = self.blocks_for(tokens) + copied - found;
        self.groups.iter().enumerate().map(move |(g, group)| {
            let seen = &chain.full(g)[group.sight.first(found) as usize..found as usize];
            let held = if group.sight.is_full() {
                seen.partition_point(|key| group.index.is_held(key))
            } else {
                seen.iter().filter(|key| group.index.is_held(key)).count()
            };
            new.min(self.most(group).saturating_add(copied)) + (seen.len() - held) as u32
        })
    }

    /// Blocks that a holding still takes to reach `tokens` tokens, group by group. What passes behind a window comes back, but for
    /// what the sequence found when it began, which others may hold as well.
    pub fn missing(&self, holding: &Holding, tokens: u32) -> impl Iterator<Item = u32> {
        let attached = holding.attached;
        self.groups.iter().zip(&holding.tables).zip(self.growth(holding, tokens)).map(move |((group, table), new)| {
            let own = table.end() - attached.clamp(table.first, table.end());
            new.min(self.most(group).saturating_sub(own))
        })
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
        let mut tables = Vec::with_capacity(self.groups.len());
        for g in 0..self.groups.len() {
            let sight = self.groups[g].sight;
            let most = (log.len() as u32 / self.block_tokens + 1).min(sight.most(self.step_rows, self.block_tokens));
            let mut table = Table { first: sight.first(full), blocks: Vec::with_capacity(most as usize) };
            for index in table.first..full {
                let resident = self.hold(g, &chain, index);
                table.blocks.push(resident.block);
                if g == self.witness {
                    found.push((index + 1) * self.block_tokens, resident.computed_by);
                }
            }
            tables.push(table);
        }
        if found.tokens < full * self.block_tokens {
            // The row that comes next sees nothing before itself, in any group.
            found.push(full * self.block_tokens, sequence);
        }
        let rest = &log[(full * self.block_tokens) as usize..limit as usize];
        let covered = !rest.is_empty() && (0..self.groups.len()).all(|g| self.lookup(g, &chain, full).is_some());
        let mut holding =
            Holding { sequence, chain, tables, sealed: full, attached: full, source: None, transient: false };
        if covered && self.has_room_for_a_copy(full) {
            self.drop_tail(sequence);
            let residents: Vec<Resident> = (0..self.groups.len()).map(|g| self.hold(g, &holding.chain, full)).collect();
            found.push(limit, residents[self.witness].computed_by);
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
        let growth: Vec<u32> = self.growth(holding, tokens).collect();
        for (group, &needed) in growth.iter().enumerate() {
            let available = self.available(group);
            if needed > available {
                return Err(Shortage { group, needed, available });
            }
        }
        let mut reservations = Vec::with_capacity(growth.len());
        for (g, needed) in growth.into_iter().enumerate() {
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
            holding.tables[g].blocks.extend(self.groups[g].pool.commit(reservation));
        }
        self.drop_source(holding);
    }

    /// The step did not happen: the reserved blocks are free again, the holding is as it was.
    pub fn cancel(&mut self, growth: Growth) {
        for (group, reservation) in self.groups.iter_mut().zip(growth.0) {
            group.pool.cancel(reservation);
        }
    }

    /// Makes the blocks resident that are full now that `computed` tokens of `log` are computed, and lets go of those that are behind
    /// a window now. Returns the entries, of those that are left, that were replaced by a block that was resident already.
    pub fn seal(&mut self, holding: &mut Holding, log: &[LogToken], computed: u32) -> Vec<Replaced> {
        let mut replaced = Vec::new();
        let full = computed / self.block_tokens;
        holding.chain.extend(&log[..computed as usize]);
        for depth in holding.sealed..full {
            for (g, group) in self.groups.iter_mut().enumerate() {
                let (Some(key), Some(parent)) = (holding.chain.key(g, depth), holding.chain.parent(g, depth)) else {
                    panic!("the chain covers what is computed")
                };
                let table = &mut holding.tables[g];
                let entry = &mut table.blocks[(depth - table.first) as usize];
                if let Some(resident) = group.index.get(&key) {
                    let block = resident.block;
                    if group.pool.retain(block) {
                        group.index.hold(&key);
                    }
                    group.pool.discard(std::mem::replace(entry, block));
                    replaced.push(Replaced { group: g, index: depth, block });
                } else {
                    group.pool.publish(*entry);
                    let last_use = if holding.transient { LastUse::Transient } else { LastUse::Kept(self.tick) };
                    let (block, computed_by) = (*entry, holding.sequence);
                    let resident = Resident { block, parent, depth, computed_by, is_shared: false, last_use };
                    group.index.insert(key, resident);
                }
            }
        }
        holding.sealed = holding.sealed.max(full);
        self.pass(holding);
        replaced.retain(|replaced| replaced.index >= holding.tables[replaced.group].first);
        replaced
    }

    /// Lets go of everything a sequence holds; returns its keys. Its resident blocks stay until they are evicted, and so does its
    /// partial block, with the tokens of `log` up to `computed`.
    pub fn release(&mut self, mut holding: Holding, log: &[LogToken], computed: u32) -> Chain {
        self.tick += 1;
        let last_use = if holding.transient { LastUse::Transient } else { LastUse::Kept(self.tick) };
        self.drop_source(&mut holding);
        for (g, group) in self.groups.iter_mut().enumerate() {
            let table = &holding.tables[g];
            for (depth, &block) in (table.first..).zip(&table.blocks[..table.before(holding.sealed)]) {
                group.let_go(&holding, g, depth, block, last_use);
            }
        }
        let tokens = &log[(holding.sealed * self.block_tokens) as usize..computed as usize];
        let private: Option<Vec<BlockId>> = holding.tables.iter().map(|table| table.get(holding.sealed)).collect();
        if let Some(blocks) = private {
            let depth = holding.sealed;
            if tokens.is_empty() {
                self.groups.iter_mut().zip(blocks).for_each(|(group, block)| group.pool.discard(block));
            } else {
                for (group, &block) in self.groups.iter_mut().zip(&blocks) {
                    group.pool.rest(block);
                    group.index.add_tail(holding.sequence, block, depth, last_use);
                }
                let parents = (0..self.groups.len()).filter_map(|g| holding.chain.parent(g, depth)).collect();
                let tail = Tail { parents, blocks, tokens: tokens.to_vec(), depth, last_use };
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

    /// New blocks of each group for the rows up to `tokens`.
    fn growth(&self, holding: &Holding, tokens: u32) -> impl Iterator<Item = u32> {
        let blocks = self.blocks_for(tokens);
        holding.tables.iter().map(move |table| blocks.saturating_sub(table.end()))
    }

    /// Blocks of a group that a sequence holds at most, however long it gets.
    fn most(&self, group: &Group) -> u32 {
        group.sight.most(self.step_rows, self.block_tokens)
    }

    /// Full blocks from the start after which a sequence can go on, leaving at least the last of `tokens` to compute. Without a
    /// window a resident block's parent is resident, so what such a group has of a chain ends once.
    fn found_blocks(&self, chain: &Chain, tokens: u32) -> u32 {
        let most = (tokens.saturating_sub(1) / self.block_tokens).min(chain.blocks());
        let has = |most: u32, (g, group): (usize, &Group)| {
            chain.full(g)[..most as usize].partition_point(|key| group.index.get(key).is_some()) as u32
        };
        let groups = || self.groups.iter().enumerate();
        let mut blocks = groups().filter(|(_, group)| group.sight.is_full()).fold(most, has);
        // What one window allows another may not: until all agree.
        loop {
            let windows = groups().filter(|(_, group)| !group.sight.is_full());
            let agreed = windows.fold(blocks, |blocks, (g, group)| group.last_start(chain.full(g), blocks));
            if agreed == blocks {
                return blocks;
            }
            blocks = agreed;
        }
    }

    /// A copy takes one block more than the blocks that are seen, behind `full` full ones, for as long as it is in the making; alone
    /// in the pools that has to fit.
    fn has_room_for_a_copy(&self, full: u32) -> bool {
        self.groups.iter().all(|group| full - group.sight.first(full) + 2 <= group.pool.counts().total)
    }

    /// Lets go of what is behind the windows now.
    fn pass(&mut self, holding: &mut Holding) {
        let last_use = if holding.transient { LastUse::Transient } else { LastUse::Passed(self.tick) };
        for (g, group) in self.groups.iter_mut().enumerate() {
            let (first, table) = (group.sight.first(holding.sealed), &holding.tables[g]);
            if first == table.first {
                continue;
            }
            for (depth, &block) in (table.first..first).zip(&table.blocks) {
                group.let_go(holding, g, depth, block, last_use);
            }
            let table = &mut holding.tables[g];
            table.blocks.drain(..(first - table.first) as usize);
            table.first = first;
        }
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
                holding.tables[g].blocks.push(block);
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
            group.index.remove_tail(block, tail.depth, tail.last_use);
        }
        Some(tail)
    }

    fn drop_source(&mut self, holding: &mut Holding) {
        let Some(source) = holding.source.take() else { return };
        let last_use = if holding.transient { LastUse::Transient } else { LastUse::Kept(self.tick) };
        for (g, block) in source.into_iter().enumerate() {
            assert!(matches!(self.groups[g].pool.state(block), BlockState::Resident { .. }), "a source is held");
            self.groups[g].let_go(holding, g, holding.sealed, block, last_use);
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

impl Group {
    /// The most of the first `blocks` full blocks of a chain after which the group can go on: those that it still sees there are all
    /// resident. Looks at the oldest first: a gap there rules out every start up to a window behind it.
    fn last_start(&self, chain: &[BlockKey], mut blocks: u32) -> u32 {
        let is_gap = |&index: &u32| self.index.get(&chain[index as usize]).is_none();
        while let Some(gap) = (self.sight.first(blocks)..blocks).find(is_gap) {
            blocks = gap;
        }
        blocks
    }

    /// `holding` lets go of its resident block at `depth`.
    fn let_go(&mut self, holding: &Holding, group: usize, depth: u32, block: BlockId, last_use: LastUse) {
        let Some(key) = holding.chain.key(group, depth) else { panic!("sealed blocks are keyed") };
        let was_last = self.pool.release(block);
        self.index.let_go(&key, holding.sequence, last_use, was_last);
    }
}
