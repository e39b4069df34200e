//! How far the layers of a KV group look back, counted in blocks.
//!
//! In: a group's sliding window. Out: which blocks of a sequence its next rows see, and how many blocks that can come to.
//! Deliberately not here: the blocks.
//!
//! With a window of w tokens the row at position p sees positions p - w + 1 to p. A sequence whose first k blocks are full goes on
//! at k * B or later, so it needs the ceil((w - 1) / B) blocks before block k and none before those. Counting from the start of
//! block k, not from its next row, keeps at most one block more, and the place where the sequence goes on should its partial
//! block be lost.

/// See the module's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sight {
    /// Full blocks before the one in progress that its rows see at most; `u32::MAX` where there is no window.
    behind: u32,
}

impl Sight {
    /// Of a group with that window, in tokens; `None` sees everything.
    pub(crate) fn new(window: Option<u32>, block_tokens: u32) -> Self {
        Self { behind: window.map_or(u32::MAX, |window| window.saturating_sub(1).div_ceil(block_tokens)) }
    }

    /// Whether rows see everything before them.
    pub(crate) fn is_full(self) -> bool {
        self.behind == u32::MAX
    }

    /// The first block that is still seen by a sequence whose first `full` blocks are full.
    pub(crate) fn first(self, full: u32) -> u32 {
        full.saturating_sub(self.behind)
    }

    /// Blocks that a sequence of any length holds at most while it computes `rows` rows in a step.
    pub(crate) fn most(self, rows: u32, block_tokens: u32) -> u32 {
        self.behind.saturating_add(1 + rows.saturating_sub(1).div_ceil(block_tokens))
    }

    /// Rows of a step that a pool of `blocks` blocks can take of a sequence of any length; `None` when not even one.
    pub(crate) fn rows(self, blocks: u32, block_tokens: u32) -> Option<u32> {
        let more = blocks.checked_sub(self.behind.saturating_add(1))?;
        Some(more.saturating_mul(block_tokens).saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against positions: what any row of a block sees, and what any step holds.
    #[test]
    fn blocks_are_counted_as_positions_say() {
        for (window, block_tokens) in (1_u32..40).flat_map(|window| (1_u32..9).map(move |tokens| (window, tokens))) {
            let sight = Sight::new(Some(window), block_tokens);
            for full in 0..60 {
                let oldest = (full * block_tokens + 1).saturating_sub(window);
                assert_eq!(sight.first(full), oldest / block_tokens, "window {window}, block {full} of {block_tokens}");
            }
            for rows in 1..30 {
                let held = |start: u32| (start + rows).div_ceil(block_tokens) - sight.first(start / block_tokens);
                let most = sight.most(rows, block_tokens);
                assert_eq!((0..400).map(held).max(), Some(most), "window {window}, {rows} rows");
                assert!(sight.rows(most, block_tokens).is_some_and(|taken| taken >= rows));
                assert!(sight.rows(most - 1, block_tokens).is_none_or(|taken| taken < rows));
            }
        }
    }

    #[test]
    fn without_a_window_everything_is_seen() {
        let sight = Sight::new(None, 4);
        assert!(sight.is_full() && !Sight::new(Some(1 << 20), 4).is_full());
        assert_eq!((sight.first(1_000_000), sight.most(9, 4), sight.rows(1 << 30, 4)), (0, u32::MAX, None));
        assert_eq!(Sight::new(Some(0), 4), Sight::new(Some(1), 4), "a row sees itself at least");
    }
}
