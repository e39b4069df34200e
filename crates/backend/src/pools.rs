//! How a device shares its KV memory out among its KV groups.
//!
//! In: the groups with their windows and bytes per block, and the bytes there are. Out: the blocks of each group. Deliberately not
//! here: where the memory is, and what becomes of the blocks (the scheduler).
//!
//! A sequence of t tokens holds t tokens of a group without a sliding window, and of a group with one no more than the window and the
//! block in progress. So which groups fill up first depends on how long the sequences are, which no device knows. The split plans for
//! sequences of [`PLANNED_WINDOWS`] windows: with those all groups run full together.

use holdfast_types::{KvGroup, StepLimits};

/// Tokens of the sequences that the split is made for, in windows. Where five layers of six have a window (the most that is usual),
/// sequences of 2 to 32 windows get at least half the memory that the split made for them would give them.
pub const PLANNED_WINDOWS: u32 = 8;

/// Gives each group its blocks out of `bytes`. A group with a window has at least what one sequence takes of it in a whole step, or
/// as many blocks as all others where memory is too short for that; none has more than `u32::MAX / 2`. Returns whether every
/// group has a block at all.
pub fn share_out(groups: &mut [KvGroup], bytes: u64, block_tokens: u32, limits: StepLimits) -> bool {
    let longest = groups.iter().filter_map(|group| group.window).max().unwrap_or(limits.context);
    let planned_tokens = longest.saturating_mul(PLANNED_WINDOWS).min(limits.context);
    let planned =
        |group: &KvGroup| u64::from(behind(group, block_tokens).min(planned_tokens.div_ceil(block_tokens)) + 1);
    let of_all: u64 = groups.iter().map(|group| group.bytes_per_block).sum();
    let of_planned: u64 = groups.iter().map(|group| group.bytes_per_block * planned(group)).sum();
    let equal = bytes / of_all.max(1);
    // Those that see furthest take what the others leave: they are the ones that limit the context.
    let furthest = groups.iter().map(|group| behind(group, block_tokens)).max().unwrap_or(0);
    let mut left = bytes;
    let step_blocks = limits.rows.div_ceil(block_tokens);
    for group in groups.iter_mut().filter(|group| behind(group, block_tokens) < furthest) {
        let step = u64::from(behind(group, block_tokens).saturating_add(1 + step_blocks));
        let share = (u128::from(bytes) * u128::from(planned(group)) / u128::from(of_planned.max(1))) as u64;
        let blocks = share.max(step).min(equal);
        group.blocks = bounded(blocks);
        left -= blocks * group.bytes_per_block;
    }
    let rest = || groups.iter().filter(|group| behind(group, block_tokens) == furthest);
    let blocks = bounded(left / rest().map(|group| group.bytes_per_block).sum::<u64>().max(1));
    groups.iter_mut().filter(|group| behind(group, block_tokens) == furthest).for_each(|group| group.blocks = blocks);
    groups.iter().all(|group| group.blocks > 0)
}

/// Blocks before the one in progress that a row sees at most.
fn behind(group: &KvGroup, block_tokens: u32) -> u32 {
    group.window.map_or(u32::MAX - 1, |window| window.saturating_sub(1).div_ceil(block_tokens))
}

fn bounded(blocks: u64) -> u32 {
    u32::try_from(blocks).unwrap_or(u32::MAX).min(u32::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: StepLimits = StepLimits { rows: 256, sequences: 8, context: 1 << 17, in_flight: 1 };

    /// Blocks of groups given by (layers, window), with a layer's block at 1,000 bytes.
    fn shared(groups: &[(u16, Option<u32>)], bytes: u64) -> Vec<u32> {
        let group = |&(layers, window): &(u16, Option<u32>)| KvGroup {
            layers: (0..layers).collect(),
            window,
            blocks: 0,
            bytes_per_block: u64::from(layers) * 1_000,
        };
        let mut groups: Vec<KvGroup> = groups.iter().map(group).collect();
        assert!(share_out(&mut groups, bytes, 16, LIMITS));
        let taken: u64 = groups.iter().map(|group| u64::from(group.blocks) * group.bytes_per_block).sum();
        let step: u64 = groups.iter().map(|group| group.bytes_per_block).sum();
        assert!(taken <= bytes && bytes - taken < step, "{taken} of {bytes} bytes are used");
        groups.into_iter().map(|group| group.blocks).collect()
    }

    #[test]
    fn groups_that_see_the_same_get_the_same() {
        assert_eq!(shared(&[(4, None)], 400_000), [100]);
        assert_eq!(shared(&[(4, None), (6, None)], 400_000), [40, 40]);
        assert_eq!(shared(&[(4, Some(4096))], 400_000), [100], "one group has it all, window or not");
    }

    #[test]
    fn a_window_gets_what_sequences_of_eight_windows_hold_of_it() {
        // As in Gemma 3: five layers with a window of 1,024 tokens to one without.
        let blocks = shared(&[(25, Some(1024)), (5, None)], 1_000_000_000);
        let sequences = |tokens: u32| (blocks[0] / 65).min(blocks[1] / tokens.div_ceil(16));
        let best = |tokens: u32| (1_000_000 / (65 * 25 + tokens.div_ceil(16) * 5)) as f64;
        assert!(sequences(8 * 1024) as f64 > 0.97 * best(8 * 1024), "{blocks:?}");
        for windows in 2..=32 {
            let (held, best) = (sequences(windows * 1024) as f64, best(windows * 1024));
            assert!(held > best / 2.0, "{held} sequences of {windows} windows, {best} with a split for them");
        }
    }

    #[test]
    fn little_memory_is_split_equally_and_a_step_always_fits() {
        assert_eq!(shared(&[(5, Some(1024)), (5, None)], 400_000), [40, 40]);
        let blocks = shared(&[(12, Some(128)), (12, None)], 12_000 * 200);
        assert_eq!(blocks, [25, 175], "8 behind, one in progress, and 16 for the rows of a step");
        let mut none = [KvGroup { layers: vec![0], window: None, blocks: 0, bytes_per_block: 1_000 }];
        assert!(!share_out(&mut none, 999, 16, LIMITS));
    }
}
