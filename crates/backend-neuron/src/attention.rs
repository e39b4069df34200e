//! Attention of a step's rows: keys and values go into the pool, and queries find what is there.
//!
//! In: queries, keys and values as the product made them, positions, block tables. Out: KV in the pool, and for each row what its query
//! heads found. Deliberately not here: the arithmetic (`kernels::attention`) and the layout of blocks (`kv`).
//!
//! Neighbouring rows of a sequence are a tile, which reads keys and values once for all of them and all query heads of a KV head. Where a
//! step has few tiles, as when one long sequence decodes, the spans of each are computed apart and joined. Neither changes any bit.

use holdfast_model::{DecoderConfig, LayerRope, RopeConfig};

use crate::NeuronSettings;
use crate::decoder::Layer;
use crate::forward::{Row, Tables};
use crate::kernels::Isa;
use crate::kernels::attention::{PagedHead, Scores, Tile, attend, attend_span, join};
use crate::kernels::norm::rms_norm;
use crate::kernels::rope::RopeTable;
use crate::kv::GroupPool;
use crate::pool::{Pieces, Pool};

/// Most queries of a tile: enough to do much with each key, few enough to stay in the first cache.
const TILE_QUERIES: usize = 48;
/// Pieces of work per thread below which spans are computed apart.
const ITEMS_PER_THREAD: usize = 8;
/// Most elements of states of spans; a step that would have more leaves spans together.
const STATES_MAX: usize = 1 << 22;
/// Rows whose KV is written together.
const ROWS_WRITTEN: usize = 8;
/// Multiply-adds that take as long as turning and writing one element, about.
const WRITE_WORK: usize = 64;

/// Where a layer's KV lives, how far it looks back, and what turns its queries and keys.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) group: usize,
    pub(crate) layer: usize,
    pub(crate) window: Option<u32>,
    pub(crate) rope: LayerRope,
}

/// What attention of every layer has in common.
#[derive(Debug)]
pub(crate) struct Attention {
    isa: Isa,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    block_tokens: usize,
    norm_eps: f32,
    scale: f32,
    cap: Option<f32>,
    rope: RopeTable,
    local_rope: Option<RopeTable>,
}

/// One layer of a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step<'a> {
    pub(crate) layer: &'a Layer,
    pub(crate) place: Place,
    pub(crate) rows: &'a [Row],
    pub(crate) tables: &'a [Tables],
    pub(crate) threads: &'a Pool,
}

/// Kept between steps.
#[derive(Debug, Default)]
pub(crate) struct Tiles {
    tiles: Vec<Rows>,
    spans: Vec<SpanOf>,
    /// States of the spans, for one KV head after the other.
    states: Vec<f32>,
}

/// The rows of a tile.
#[derive(Debug, Clone, Copy)]
struct Rows {
    first: usize,
    count: usize,
    /// Where its spans begin in the list of all.
    spans: usize,
}

/// One span of one tile.
#[derive(Debug, Clone, Copy)]
struct SpanOf {
    tile: usize,
    span: usize,
    /// Where the states of its KV heads begin.
    at: usize,
}

impl Attention {
    /// `context` bounds positions.
    pub(crate) fn new(config: &DecoderConfig, context: usize, settings: &NeuronSettings) -> Self {
        let table = |rope: &RopeConfig| {
            let frequencies = rope.inverse_frequencies(config.rotary_dim);
            RopeTable::with_rest(&frequencies, rope.attention_factor(), config.head_dim, context)
        };
        Self {
            isa: settings.isa,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            block_tokens: settings.block_tokens as usize,
            norm_eps: config.norm_eps,
            scale: 1.0 / (config.query_scalar as f32).sqrt(),
            cap: config.score_cap,
            rope: table(&config.rope),
            local_rope: config.local_rope.as_ref().map(table),
        }
    }

    /// Elements of all query heads of a row.
    pub(crate) fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Norms and turns queries and keys of `qkv` (`[rows][q, k, v]`), and writes keys and values into the pool.
    pub(crate) fn write(&self, step: Step<'_>, kv: &mut GroupPool, qkv: &mut [f32]) {
        let Step { layer, place, rows, tables, threads } = step;
        let (q_width, kv_width) = (self.width(), self.kv_heads * self.head_dim);
        let width = q_width + 2 * kv_width;
        let (pieces, writer) = (Pieces::new(qkv), kv.writer());
        threads.run(rows.len().div_ceil(ROWS_WRITTEN), rows.len() * width * WRITE_WORK, |item| {
            for (at, row) in rows.iter().enumerate().skip(item * ROWS_WRITTEN).take(ROWS_WRITTEN) {
                let position = row.position as usize;
                // SAFETY: an item has rows of its own.
                let qkv = unsafe { pieces.piece(at * width, width) };
                if let Some((q_norm, k_norm)) = &layer.qk_norm {
                    self.norm_each(&mut qkv[..q_width], q_norm);
                    self.norm_each(&mut qkv[q_width..q_width + kv_width], k_norm);
                }
                if let Some(rope) = self.rope_of(place) {
                    rope.rotate(self.isa, &mut qkv[..q_width + kv_width], position);
                }
                let block = tables[row.sequence][place.group][position / self.block_tokens];
                let (keys, values) = qkv[q_width..].split_at(kv_width);
                // SAFETY: the plan was checked: no two rows of a step have the same block and position.
                unsafe { writer.write(place.layer, block, position % self.block_tokens, keys, values) };
            }
        });
    }

    /// What every row's queries find, into `out` (`[rows][query heads][head_dim]`).
    pub(crate) fn attend(&self, step: Step<'_>, kv: &GroupPool, qkv: &[f32], kept: &mut Tiles, out: &mut [f32]) {
        let Step { layer, place, rows, tables, threads } = step;
        let shared = self.heads / self.kv_heads;
        let stride = self.width() + 2 * self.kv_heads * self.head_dim;
        let Tiles { tiles, spans, states } = kept;
        let window = place.window.map(|window| window as usize);
        cut(rows, (TILE_QUERIES / shared).max(1), tiles);
        let tile = |tile: Rows, head: usize| -> (Tile<'_>, PagedHead<'_>, Scores<'_>) {
            let row = rows[tile.first];
            let queries = &qkv[tile.first * stride + head * shared * self.head_dim..];
            let position = row.position as usize;
            let sinks = layer.sinks.get(head * shared..(head + 1) * shared).unwrap_or_default();
            (
                Tile { queries, stride, rows: tile.count, shared, position, window },
                kv.paged(place.layer, head, &tables[row.sequence][place.group]),
                Scores { scale: self.scale, cap: self.cap, sinks },
            )
        };
        let out = &Pieces::new(out);
        let out_of = |tile: Rows, head: usize| {
            move |row: usize| {
                let at = (tile.first + row) * self.width() + head * shared * self.head_dim;
                // SAFETY: an item is one tile and one KV head; the places of its query heads in its rows are its own.
                unsafe { out.piece(at, shared * self.head_dim) }
            }
        };
        let keys = |row: &Row| window.unwrap_or(usize::MAX).min(row.position as usize + 1);
        let work = rows.iter().map(keys).sum::<usize>() * self.width() * 2;

        let items = tiles.len() * self.kv_heads;
        let len = self.list_spans(tiles, |rows| tile(rows, 0).0, spans);
        if spans.len() == tiles.len() || items >= ITEMS_PER_THREAD * threads.threads() || len > STATES_MAX {
            // Later rows of a sequence see more: the largest first.
            threads.run(items, work, |item| {
                let (rows, head) = (tiles[tiles.len() - 1 - item / self.kv_heads], item % self.kv_heads);
                let (tile, paged, scores) = tile(rows, head);
                attend(self.isa, tile, paged, scores, out_of(rows, head));
            });
            return;
        }
        if states.len() < len {
            states.resize(len, 0.0);
        }
        let pieces = Pieces::new(states);
        threads.run(spans.len() * self.kv_heads, work, |item| {
            let (span, head) = (spans[item / self.kv_heads], item % self.kv_heads);
            let (tile, paged, scores) = tile(tiles[span.tile], head);
            let len = tile.state_len(self.head_dim);
            // SAFETY: an item is one span and one KV head, which has a state of its own.
            let state = unsafe { pieces.piece(span.at + head * len, len) };
            attend_span(self.isa, tile, paged, scores, span.span, state);
        });
        threads.run(items, len, |item| {
            let (at, head) = (item / self.kv_heads, item % self.kv_heads);
            let (tile, _, scores) = tile(tiles[at], head);
            let len = tile.state_len(self.head_dim);
            let spans = spans[tiles[at].spans..].iter().take_while(|span| span.tile == at);
            let states = spans.map(|span| &states[span.at + head * len..][..len]);
            join(self.isa, tile, self.head_dim, scores, states, out_of(tiles[at], head));
        });
    }

    /// Lists the spans of all tiles and returns how long their states are together.
    fn list_spans<'a>(&self, tiles: &mut [Rows], tile: impl Fn(Rows) -> Tile<'a>, spans: &mut Vec<SpanOf>) -> usize {
        spans.clear();
        let mut len = 0;
        for (number, rows) in tiles.iter_mut().enumerate() {
            rows.spans = spans.len();
            let tile = tile(*rows);
            for span in tile.spans() {
                spans.push(SpanOf { tile: number, span, at: len });
                len += self.kv_heads * tile.state_len(self.head_dim);
            }
        }
        len
    }

    /// What turns a layer's queries and keys.
    fn rope_of(&self, place: Place) -> Option<&RopeTable> {
        match place.rope {
            LayerRope::Unturned => None,
            LayerRope::Global => Some(&self.rope),
            LayerRope::Local => self.local_rope.as_ref(),
        }
    }

    /// Norms each piece of `pieces` as long as `weight` by itself.
    fn norm_each(&self, pieces: &mut [f32], weight: &[f32]) {
        pieces.chunks_exact_mut(weight.len()).for_each(|piece| rms_norm(self.isa, piece, weight, self.norm_eps));
    }
}

/// Cuts rows into tiles of at most `most` rows that follow each other in one sequence.
fn cut(rows: &[Row], most: usize, tiles: &mut Vec<Rows>) {
    tiles.clear();
    let mut first = 0;
    for run in rows.chunk_by(|a, b| a.sequence == b.sequence && a.position + 1 == b.position) {
        for part in run.chunks(most) {
            tiles.push(Rows { first, count: part.len(), spans: 0 });
            first += part.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_neighbours_of_one_sequence() {
        let row = |sequence, position| Row { token: 0, position, narrow: false, sequence };
        let rows = [row(0, 5), row(0, 6), row(0, 7), row(1, 8), row(1, 9), row(2, 3), row(2, 5)];
        let mut tiles = Vec::new();
        cut(&rows, 2, &mut tiles);
        let got: Vec<_> = tiles.iter().map(|tile| (tile.first, tile.count)).collect();
        assert_eq!(got, [(0, 2), (2, 1), (3, 2), (5, 1), (6, 1)]);
    }
}
