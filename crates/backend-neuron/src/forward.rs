//! The rows of a step through the decoder: embeddings, layers, logits.
//!
//! In: rows with positions and block tables, and which rows' logits are wanted. Out: KV in the pool, and the logits. Deliberately not
//! here: sampling and the order of steps.

use holdfast_model::DecoderConfig;

use crate::kernels::Isa;
use crate::kernels::activation::gated_silu;
use crate::kernels::attention::{Span, attend};
use crate::kernels::norm::rms_norm;
use crate::kernels::rope::RopeTable;
use crate::kv::GroupPool;
use crate::pool::{Pieces, Pool};
use crate::weights::{Decoder, Layer, Matrix, Rows};
use crate::{NeuronError, NeuronSettings, WeightFormat};

/// One row of a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) token: u32,
    pub(crate) position: u32,
    /// Index into the step's tables.
    pub(crate) sequence: usize,
}

/// Block tables of one sequence: `[group][entry]`.
pub(crate) type Tables = Vec<Vec<u32>>;

/// Where a layer's KV lives, how far it looks back, and whether positions turn its queries and keys.
#[derive(Debug, Clone, Copy)]
struct Place {
    group: usize,
    layer: usize,
    window: Option<u32>,
    rope: bool,
}

/// The decoder, its threads and its buffers.
#[derive(Debug)]
pub(crate) struct Forward {
    decoder: Decoder,
    places: Vec<Place>,
    rope: RopeTable,
    pool: Pool,
    isa: Isa,
    format: WeightFormat,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    hidden: usize,
    norm_eps: f32,
    block_tokens: usize,
    buffers: Buffers,
}

/// Kept between steps, so that a step allocates little.
#[derive(Debug, Default)]
struct Buffers {
    /// The residual stream, `[rows][hidden]`.
    stream: Vec<f32>,
    /// Input of the next product.
    input: Rows,
    /// `[rows][q, k, v]`.
    qkv: Vec<f32>,
    /// One head before its norm.
    head: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    /// What a layer's half adds to the stream, `[rows][hidden]`.
    change: Vec<f32>,
}

impl Forward {
    /// `groups` lists each KV group's layers; `context` bounds positions.
    pub(crate) fn new(
        config: &DecoderConfig,
        decoder: Decoder,
        groups: &[holdfast_types::KvGroup],
        context: usize,
        settings: &NeuronSettings,
    ) -> Result<Self, NeuronError> {
        let mut places: Vec<Place> =
            config.layers.iter().map(|layer| Place { group: 0, layer: 0, window: None, rope: layer.rope }).collect();
        for (group, kv_group) in groups.iter().enumerate() {
            for (layer, number) in kv_group.layers.iter().enumerate() {
                let place = &mut places[*number as usize];
                *place = Place { group, layer, window: kv_group.window, ..*place };
            }
        }
        Ok(Self {
            decoder,
            places,
            rope: RopeTable::with_rest(
                &config.inverse_frequencies(),
                config.rope.attention_factor(),
                config.head_dim,
                context,
            ),
            pool: Pool::new(settings.threads, settings.ordinal)?,
            isa: settings.isa,
            format: settings.weights,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            hidden: config.hidden,
            norm_eps: config.norm_eps,
            block_tokens: settings.block_tokens as usize,
            buffers: Buffers::default(),
        })
    }

    /// Computes `rows`, writes their KV, and returns the logits of `wanted` (indices of rows), `[wanted][vocab_size]`.
    pub(crate) fn run(&mut self, rows: &[Row], tables: &[Tables], wanted: &[usize], kv: &mut [GroupPool]) -> Vec<f32> {
        let mut buffers = std::mem::take(&mut self.buffers);
        buffers.stream.clear();
        for row in rows {
            let at = row.token as usize * self.hidden;
            buffers.stream.extend_from_slice(&self.decoder.embeddings[at..at + self.hidden]);
        }
        for (layer, place) in self.decoder.layers.iter().zip(&self.places) {
            self.attention(layer, *place, rows, tables, kv, &mut buffers);
            self.feed_forward(layer, rows.len(), &mut buffers);
        }
        let mut logits = vec![0.0; wanted.len() * self.decoder.lm_head.width()];
        if !wanted.is_empty() {
            buffers.input.reset(wanted.len(), self.hidden);
            for (row, out) in wanted.iter().zip(buffers.input.values_mut().chunks_exact_mut(self.hidden)) {
                let stream = &buffers.stream[row * self.hidden..(row + 1) * self.hidden];
                rms_norm(self.isa, stream, &self.decoder.final_norm, self.norm_eps, out);
            }
            buffers.input.prepare(self.format, self.isa);
            self.decoder.lm_head.multiply(&buffers.input, wanted.len(), &mut logits, &self.pool, self.isa);
        }
        self.buffers = buffers;
        logits
    }

    fn attention(
        &self,
        layer: &Layer,
        place: Place,
        rows: &[Row],
        tables: &[Tables],
        kv: &mut [GroupPool],
        buffers: &mut Buffers,
    ) {
        self.normed(&layer.attention_norm, rows.len(), buffers);
        self.product(&layer.qkv, &buffers.input, rows.len(), &mut buffers.qkv);
        let (q_width, kv_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        for (row, qkv) in rows.iter().zip(buffers.qkv.chunks_exact_mut(q_width + 2 * kv_width)) {
            let position = row.position as usize;
            if let Some((q_norm, k_norm)) = &layer.qk_norm {
                self.norm_heads(&mut qkv[..q_width], q_norm, &mut buffers.head);
                self.norm_heads(&mut qkv[q_width..q_width + kv_width], k_norm, &mut buffers.head);
            }
            if place.rope {
                self.rope.rotate(&mut qkv[..q_width + kv_width], position);
            }
            let block = tables[row.sequence][place.group][position / self.block_tokens];
            let (keys, values) = qkv[q_width..].split_at(kv_width);
            kv[place.group].write(place.layer, block, position % self.block_tokens, keys, values);
        }

        buffers.input.reset(rows.len(), q_width);
        let out = Pieces::new(buffers.input.values_mut());
        let (qkv, kv) = (&buffers.qkv, &kv[place.group]);
        let shared = q_width / self.kv_heads;
        let spans: Vec<Span> = rows.iter().map(|row| span(row.position, place.window)).collect();
        let keys: usize = spans.iter().map(|span| span.last - span.first + 1).sum();
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        self.pool.run(rows.len() * self.kv_heads, keys * q_width * 2, |item| {
            let (row, head) = (item / self.kv_heads, item % self.kv_heads);
            let queries = &qkv[row * (q_width + 2 * kv_width) + head * shared..][..shared];
            // SAFETY: an item is one row and one KV head; its query heads' places in the output are its own.
            let out = unsafe { out.piece(row * q_width + head * shared, shared) };
            let paged = kv.paged(place.layer, head, &tables[rows[row].sequence][place.group]);
            attend(self.isa, queries, paged, spans[row], scale, out);
        });
        buffers.input.prepare(self.format, self.isa);
        self.product(&layer.output, &buffers.input, rows.len(), &mut buffers.change);
        add(&mut buffers.stream, &buffers.change);
    }

    fn feed_forward(&self, layer: &Layer, count: usize, buffers: &mut Buffers) {
        self.normed(&layer.ffn_norm, count, buffers);
        self.product(&layer.gate, &buffers.input, count, &mut buffers.gate);
        self.product(&layer.up, &buffers.input, count, &mut buffers.up);
        gated_silu(self.isa, &mut buffers.gate, &buffers.up);
        buffers.input.reset(count, layer.gate.width());
        buffers.input.values_mut().copy_from_slice(&buffers.gate);
        buffers.input.prepare(self.format, self.isa);
        self.product(&layer.down, &buffers.input, count, &mut buffers.change);
        add(&mut buffers.stream, &buffers.change);
    }

    /// The stream, normed, as input of the next product.
    fn normed(&self, weight: &[f32], count: usize, buffers: &mut Buffers) {
        buffers.input.reset(count, self.hidden);
        let out = buffers.input.values_mut().chunks_exact_mut(self.hidden);
        for (row, out) in buffers.stream.chunks_exact(self.hidden).zip(out) {
            rms_norm(self.isa, row, weight, self.norm_eps, out);
        }
        buffers.input.prepare(self.format, self.isa);
    }

    /// Norms every head of `heads` by itself, in place; `head` is room for one.
    fn norm_heads(&self, heads: &mut [f32], weight: &[f32], head: &mut Vec<f32>) {
        for out in heads.chunks_exact_mut(self.head_dim) {
            head.clear();
            head.extend_from_slice(out);
            rms_norm(self.isa, head, weight, self.norm_eps, out);
        }
    }

    fn product(&self, matrix: &Matrix, rows: &Rows, count: usize, out: &mut Vec<f32>) {
        out.resize(count * matrix.width(), 0.0);
        matrix.multiply(rows, count, out, &self.pool, self.isa);
    }
}

/// A window of n tokens holds the row's own and the n - 1 before it.
fn span(position: u32, window: Option<u32>) -> Span {
    let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
    Span { first: first as usize, last: position as usize }
}

fn add(stream: &mut [f32], change: &[f32]) {
    stream.iter_mut().zip(change).for_each(|(stream, change)| *stream += change);
}
