//! Every invariant of the cache, checked from scratch: for tests, simulations and idle moments.
//!
//! In: the cache and everything that holds a part of it. Out: what is wrong, in words; nothing when all is well. Never repairs.

use std::collections::HashMap;

use holdfast_types::BlockId;

use crate::{BlockState, Growth, Holding, KvCache};

impl KvCache {
    /// Checks every invariant, given every holding and every growth there is. Returns what is wrong.
    pub fn audit<'a>(
        &self,
        holdings: impl IntoIterator<Item = &'a Holding>,
        growths: impl IntoIterator<Item = &'a Growth>,
    ) -> Vec<String> {
        let mut problems = Vec::new();
        let holdings: Vec<&Holding> = holdings.into_iter().collect();
        let growths: Vec<&Growth> = growths.into_iter().collect();
        for g in 0..self.groups.len() {
            self.groups[g].pool.audit(g, &mut problems);
            self.audit_owners(g, &holdings, &growths, &mut problems);
            self.audit_index(g, &mut problems);
        }
        problems
    }

    /// Every block that is not free is owned by exactly those that the state says.
    fn audit_owners(&self, g: usize, holdings: &[&Holding], growths: &[&Growth], problems: &mut Vec<String>) {
        let group = &self.groups[g];
        let mut expected: HashMap<BlockId, BlockState> =
            group.index.iter().map(|(_, resident)| (resident.block, BlockState::Resident { refs: 0 })).collect();
        let mut claim = |block: BlockId, state: BlockState| {
            let entry = expected.entry(block).or_insert(state);
            match (entry, state) {
                (BlockState::Resident { refs }, BlockState::Resident { .. }) => {
                    *refs += 1;
                    None
                }
                (entry, _) if *entry == state => None,
                (entry, _) => Some(format!("group {g}: {block:?} is claimed as {state:?} and as {entry:?}")),
            }
        };
        let mut owned_once = std::collections::HashSet::new();
        let private = holdings.iter().flat_map(|holding| holding.tables[g].since(holding.sealed).1);
        let resting = self.tails.values().map(|tail| &tail.blocks[g]);
        let reserved = growths.iter().flat_map(|growth| growth.blocks(g));
        let single = private
            .map(|block| (block, BlockState::Private))
            .chain(resting.map(|block| (block, BlockState::Resting)))
            .chain(reserved.map(|block| (block, BlockState::Reserved)));
        for (&block, state) in single {
            problems.extend(claim(block, state));
            if !owned_once.insert(block) {
                problems.push(format!("group {g}: {block:?} has two owners, one of them as {state:?}"));
            }
        }
        for holding in holdings {
            let (table, sees_from) = (&holding.tables[g], group.sight.first(holding.sealed));
            if table.end() < holding.sealed || table.end() > holding.sealed + 1 {
                problems.push(format!("group {g}: {:?} has not one private block or none", holding.sequence));
            }
            if table.first != sees_from {
                let held = table.first;
                problems.push(format!("group {g}: {:?} holds from {held} on, it sees {sees_from}", holding.sequence));
            }
            for (depth, &block) in (table.first..).zip(&table.blocks[..table.before(holding.sealed)]) {
                problems.extend(claim(block, BlockState::Resident { refs: 0 }));
                let keyed = self.lookup(g, &holding.chain, depth).map(|resident| resident.block);
                if keyed != Some(block) {
                    problems.push(format!(
                        "group {g}: {:?} holds {block:?} at {depth}, its key is at {keyed:?}",
                        holding.sequence
                    ));
                }
            }
            if let Some(source) = &holding.source {
                problems.extend(claim(source[g], BlockState::Resident { refs: 0 }));
            }
        }
        for index in 0..group.pool.counts().total {
            let (block, state) = (BlockId(index), group.pool.state(BlockId(index)));
            let owned = expected.get(&block).copied().unwrap_or(BlockState::Free);
            if state != owned {
                problems.push(format!("group {g}: {block:?} is {state:?}, its owners say {owned:?}"));
            }
        }
    }

    /// Parents outlive children where there is no window, tails have what they see, and exactly what nobody holds can be evicted.
    fn audit_index(&self, g: usize, problems: &mut Vec<String>) {
        let group = &self.groups[g];
        for (key, resident) in group.index.iter() {
            let BlockState::Resident { refs } = group.pool.state(resident.block) else { continue };
            if group.index.is_evictable(resident) != (refs == 0) {
                problems.push(format!("group {g}: {key:?} has {refs} holders and the wrong place in the order"));
            }
            if !group.sight.is_full() {
                continue;
            }
            match group.index.get(&resident.parent) {
                None if resident.depth == 0 && resident.parent == self.roots[g] => {}
                None => problems.push(format!("group {g}: {key:?} is resident without its parent")),
                Some(parent) => {
                    let BlockState::Resident { refs: parent_refs } = group.pool.state(parent.block) else { continue };
                    let sooner = parent_refs == 0 && (refs > 0 || parent.last_use < resident.last_use);
                    if parent.depth + 1 != resident.depth || sooner {
                        problems.push(format!("group {g}: the parent of {key:?} would be evicted before it"));
                    }
                }
            }
        }
        for tail in self.tails.values() {
            let mut key = tail.parents[g];
            if tail.depth == 0 && key != self.roots[g] {
                problems.push(format!("group {g}: a tail at the start hangs on {key:?}"));
            }
            for depth in (group.sight.first(tail.depth)..tail.depth).rev() {
                let Some(resident) = group.index.get(&key).filter(|resident| resident.depth == depth) else {
                    problems.push(format!("group {g}: a tail at depth {} rests without block {depth}", tail.depth));
                    break;
                };
                if group.index.is_evictable(resident) && resident.last_use < tail.last_use {
                    problems.push(format!("group {g}: block {depth} would be evicted before the tail that sees it"));
                }
                key = resident.parent;
            }
        }
        let cached = group.pool.counts().cached;
        if group.index.evictable() != cached {
            problems.push(format!("group {g}: {} blocks in the order, {cached} cached", group.index.evictable()));
        }
    }
}
