//! A step as kernels want it: rows side by side, and lists of who works on what.
//!
//! In: the rows of each sequence with its block tables. Out: [`Arranged`]: one piece of bytes to upload, and what lies where in it. Pure. Deliberately not
//! here: launches (`forward`), and where rows come from (`device`).

use std::ops::Range;

use crate::kernels::{AttendTile, QUERIES, SPAN};

/// Every list begins at a multiple of it.
const ALIGNMENT: usize = 16;

/// The rows of one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SequenceRows {
    /// Position of the first.
    pub(crate) start: u32,
    /// One for each row.
    pub(crate) tokens: Vec<u32>,
    /// Computed at 4 bits.
    pub(crate) narrow: bool,
    /// `[group][entry]`, up to the block of the last row. Entries wholly behind a group's window are no block's.
    pub(crate) tables: Vec<Vec<u32>>,
    /// Rows whose logits are wanted, in rising order.
    pub(crate) wanted: Vec<u32>,
}

/// Where a list of u32 lies in the upload, and how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct List {
    pub(crate) at: u64,
    pub(crate) count: u32,
}

/// Rows by precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precisions {
    /// All rows are of one.
    One { narrow: bool, count: u32 },
    /// Some are at 8 bits, the others at 4.
    Two { wide: List, narrow: List },
}

/// What attention of one KV group works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupLists {
    /// Of each row, the block that its KV is written to.
    pub(crate) blocks: List,
    /// Tables of all sequences, one after the other.
    pub(crate) tables: List,
    /// [`AttendTile`]s.
    pub(crate) tiles: List,
    /// Of each span, its tile.
    pub(crate) tile_of: List,
    /// Tiles and their spans that are worked on by one launch, in order.
    pub(crate) launches: Vec<(Range<u32>, Range<u32>)>,
}

/// A step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arranged {
    pub(crate) bytes: Vec<u8>,
    pub(crate) rows: u32,
    pub(crate) tokens: List,
    pub(crate) positions: List,
    /// One byte for each row.
    pub(crate) narrow: List,
    /// Rows whose logits are wanted.
    pub(crate) wanted: List,
    pub(crate) precisions: Precisions,
    pub(crate) groups: Vec<GroupLists>,
    /// Of each row, whether it is at 4 bits.
    pub(crate) is_narrow: Vec<bool>,
    /// Of each wanted row, the same.
    pub(crate) wanted_narrow: Vec<bool>,
}

/// What of a model decides how rows are arranged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Windows of the KV groups.
    pub(crate) windows: Vec<Option<u32>>,
    pub(crate) block_tokens: u32,
    /// Query heads that share a KV head.
    pub(crate) shared: u32,
    /// Most spans that one launch has room for.
    pub(crate) spans_max: u32,
}

impl Shape {
    /// Lays a step out.
    pub(crate) fn arrange(&self, sequences: &[SequenceRows]) -> Arranged {
        let mut bytes = Vec::new();
        let rows = || {
            sequences
                .iter()
                .flat_map(|sequence| sequence.tokens.iter().zip(sequence.start..).map(move |row| (sequence, row)))
        };
        let tokens: Vec<u32> = rows().map(|(_, (token, _))| *token).collect();
        let positions: Vec<u32> = rows().map(|(_, (_, position))| position).collect();
        let narrow: Vec<bool> = rows().map(|(sequence, _)| sequence.narrow).collect();
        let mut first = 0;
        let mut wanted = Vec::new();
        for sequence in sequences {
            wanted.extend(sequence.wanted.iter().map(|row| first + row));
            first += sequence.tokens.len() as u32;
        }
        let groups = (0..self.windows.len()).map(|group| self.group(sequences, group, &mut bytes)).collect();
        Arranged {
            rows: tokens.len() as u32,
            tokens: push(&mut bytes, &tokens),
            positions: push(&mut bytes, &positions),
            narrow: push(&mut bytes, &narrow.iter().map(|narrow| u8::from(*narrow)).collect::<Vec<_>>()),
            wanted: push(&mut bytes, &wanted),
            precisions: precisions(&narrow, &mut bytes),
            wanted_narrow: wanted.iter().map(|row| narrow[*row as usize]).collect(),
            is_narrow: narrow,
            groups,
            bytes,
        }
    }

    fn group(&self, sequences: &[SequenceRows], group: usize, bytes: &mut Vec<u8>) -> GroupLists {
        let (mut blocks, mut tables, mut tiles, mut tile_of) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let rows_max = (QUERIES / self.shared).max(1);
        let mut first_row = 0;
        for sequence in sequences {
            let (table, count) = (&sequence.tables[group], sequence.tokens.len() as u32);
            blocks.extend((sequence.start..sequence.start + count).map(|at| table[(at / self.block_tokens) as usize]));
            let mut from = 0;
            while from < count {
                let rows = rows_max.min(count - from);
                let position = sequence.start + from;
                let first_seen = self.windows[group].map_or(0, |window| (position + 1).saturating_sub(window)) / SPAN;
                let spans = (position + rows - 1) / SPAN + 1 - first_seen;
                let tile = AttendTile {
                    first_row: first_row + from,
                    rows,
                    position,
                    table: tables.len() as u32,
                    first_span: tile_of.len() as u32,
                    spans,
                    first_seen,
                    padding: 0,
                };
                tile_of.extend((0..spans).map(|_| tiles.len() as u32));
                tiles.push(tile);
                from += rows;
            }
            tables.extend_from_slice(table);
            first_row += count;
        }
        GroupLists {
            blocks: push(bytes, &blocks),
            tables: push(bytes, &tables),
            launches: self.launches(&tiles),
            tiles: push(bytes, &tiles),
            tile_of: push(bytes, &tile_of),
        }
    }

    /// Cuts tiles so that the states of each launch's spans have room; a tile is never cut.
    fn launches(&self, tiles: &[AttendTile]) -> Vec<(Range<u32>, Range<u32>)> {
        let mut launches: Vec<(Range<u32>, Range<u32>)> = Vec::new();
        for (at, tile) in (0u32..).zip(tiles) {
            let end = tile.first_span + tile.spans;
            match launches.last_mut() {
                Some((tiles, spans)) if end - spans.start <= self.spans_max => (tiles.end, spans.end) = (at + 1, end),
                _ => launches.push((at..at + 1, tile.first_span..end)),
            }
        }
        launches
    }
}

/// Lists rows by precision, where there are two.
pub(crate) fn precisions(narrow: &[bool], bytes: &mut Vec<u8>) -> Precisions {
    let of = |kind: bool| -> Vec<u32> {
        (0u32..).zip(narrow).filter(|(_, narrow)| **narrow == kind).map(|(row, _)| row).collect()
    };
    let (wide, narrow) = (of(false), of(true));
    match (wide.is_empty(), narrow.is_empty()) {
        (false, false) => Precisions::Two { wide: push(bytes, &wide), narrow: push(bytes, &narrow) },
        (is_narrow, _) => Precisions::One { narrow: is_narrow, count: (wide.len() + narrow.len()) as u32 },
    }
}

/// Puts a list behind the others.
pub(crate) fn push<T: bytemuck::Pod>(bytes: &mut Vec<u8>, values: &[T]) -> List {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    let at = bytes.len() as u64;
    bytes.extend_from_slice(bytemuck::cast_slice(values));
    List { at, count: values.len() as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape { windows: vec![None, Some(20)], block_tokens: 16, shared: 4, spans_max: 5 }
    }

    fn sequence(start: u32, count: u32, narrow: bool, wanted: &[u32]) -> SequenceRows {
        let entries = (start + count).div_ceil(16);
        SequenceRows {
            start,
            tokens: (0..count).map(|at| 100 + at).collect(),
            narrow,
            tables: vec![
                (0..entries).map(|entry| 7 + entry).collect(),
                (0..entries).map(|entry| 1_000 - entry).collect(),
            ],
            wanted: wanted.to_vec(),
        }
    }

    fn list<T: bytemuck::Pod>(arranged: &Arranged, list: List) -> Vec<T> {
        let size = size_of::<T>() * list.count as usize;
        let bytes = &arranged.bytes[list.at as usize..][..size];
        bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }

    #[test]
    fn rows_lie_side_by_side_with_their_blocks() {
        let arranged = shape().arrange(&[sequence(14, 5, false, &[4]), sequence(0, 1, false, &[0])]);
        assert_eq!(arranged.rows, 6);
        assert_eq!(list::<u32>(&arranged, arranged.tokens), [100, 101, 102, 103, 104, 100]);
        assert_eq!(list::<u32>(&arranged, arranged.positions), [14, 15, 16, 17, 18, 0]);
        assert_eq!(list::<u32>(&arranged, arranged.wanted), [4, 5]);
        assert_eq!(arranged.precisions, Precisions::One { narrow: false, count: 6 });
        assert_eq!(list::<u32>(&arranged, arranged.groups[0].blocks), [7, 7, 8, 8, 8, 7]);
        assert_eq!(list::<u32>(&arranged, arranged.groups[1].blocks), [1_000, 1_000, 999, 999, 999, 1_000]);
        assert_eq!(list::<u32>(&arranged, arranged.groups[0].tables), [7, 8, 7]);
        for group in &arranged.groups {
            for at in [group.blocks, group.tables, group.tiles, group.tile_of] {
                assert_eq!(at.at % ALIGNMENT as u64, 0);
            }
        }
    }

    #[test]
    fn tiles_are_neighbours_of_one_sequence_and_spans_are_those_that_they_see() {
        let arranged = shape().arrange(&[sequence(2_045, 6, false, &[]), sequence(3, 1, false, &[])]);
        let tiles: Vec<AttendTile> = list(&arranged, arranged.groups[0].tiles);
        let seen: Vec<_> =
            tiles.iter().map(|tile| (tile.first_row, tile.rows, tile.position, tile.first_span, tile.spans)).collect();
        // Four rows with four heads each are a tile; position 2,048 begins the third span.
        assert_eq!(seen, [(0, 4, 2_045, 0, 3), (4, 2, 2_049, 3, 3), (6, 1, 3, 6, 1)]);
        assert_eq!(list::<u32>(&arranged, arranged.groups[0].tile_of), [0, 0, 0, 1, 1, 1, 2]);
        assert_eq!(tiles[2].table, 129, "behind the table of the first sequence");
        // Five spans have room in one launch.
        assert_eq!(arranged.groups[0].launches, [(0..1, 0..3), (1..3, 3..7)]);
        // With a window of 20 the first tile sees positions from 2,026 on.
        let tiles: Vec<AttendTile> = list(&arranged, arranged.groups[1].tiles);
        let seen: Vec<_> = tiles.iter().map(|tile| (tile.first_seen, tile.spans)).collect();
        assert_eq!(seen, [(1, 2), (1, 2), (0, 1)]);
    }

    #[test]
    fn rows_of_two_precisions_are_two_lists() {
        let arranged =
            shape().arrange(&[sequence(0, 2, true, &[1]), sequence(5, 1, false, &[0]), sequence(9, 1, true, &[])]);
        let Precisions::Two { wide, narrow } = arranged.precisions else { panic!("{:?}", arranged.precisions) };
        assert_eq!((list::<u32>(&arranged, wide), list::<u32>(&arranged, narrow)), (vec![2], vec![0, 1, 3]));
        assert_eq!(list::<u8>(&arranged, arranged.narrow), [1, 1, 0, 1]);
        assert_eq!(arranged.wanted_narrow, [true, false]);
        let one = shape().arrange(&[sequence(0, 3, true, &[])]);
        assert_eq!(one.precisions, Precisions::One { narrow: true, count: 3 });
        assert_eq!(shape().arrange(&[]).rows, 0);
    }
}
