//! The rows of a step through the decoder: embeddings, layers, logits.
//!
//! In: rows with positions and block tables, and which rows' logits are wanted. Out: KV in the pool, and the logits. Deliberately not
//! here: which experts a row goes to (`experts`), sampling and the order of steps.

use holdfast_model::{Activation, DecoderConfig};

use crate::attention::{Attention, Place, Step, Tiles};
use crate::decoder::{Decoder, FeedForward, Gated, Layer};
use crate::experts::Routed;
use crate::kernels::Isa;
use crate::kernels::activation::{clamped_swiglu, gated_gelu, gated_silu, soft_cap};
use crate::kernels::norm::rms_norm;
use crate::kv::GroupPool;
use crate::matrix::{Matrix, Rows};
use crate::pool::Pool;
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

/// The decoder, its threads and its buffers.
#[derive(Debug)]
pub(crate) struct Forward {
    decoder: Decoder,
    places: Vec<Place>,
    attention: Attention,
    pool: Pool,
    isa: Isa,
    format: WeightFormat,
    hidden: usize,
    norm_eps: f32,
    embedding_scale: f32,
    logit_cap: Option<f32>,
    activation: Activation,
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
    tiles: Tiles,
    /// One row before its norm.
    before: Vec<f32>,
    inner: Inner,
    routed: Routed,
    /// What a layer's half adds to the stream, `[rows][hidden]`.
    change: Vec<f32>,
}

/// What is between the matrices of a gated feed-forward, `[rows][ffn]`.
#[derive(Debug, Default)]
pub(crate) struct Inner {
    gate: Vec<f32>,
    up: Vec<f32>,
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
            attention: Attention::new(config, context, settings),
            pool: Pool::new(settings.threads, settings.ordinal)?,
            isa: settings.isa,
            format: settings.weights,
            hidden: config.hidden,
            norm_eps: config.norm_eps,
            embedding_scale: config.embedding_scale,
            logit_cap: config.logit_cap,
            activation: config.activation,
            buffers: Buffers::default(),
        })
    }

    /// Computes `rows`, writes their KV, and returns the logits of `wanted` (indices of rows), `[wanted][vocab_size]`.
    pub(crate) fn run(&mut self, rows: &[Row], tables: &[Tables], wanted: &[usize], kv: &mut [GroupPool]) -> Vec<f32> {
        let mut buffers = std::mem::take(&mut self.buffers);
        buffers.stream.clear();
        for row in rows {
            let at = row.token as usize * self.hidden;
            let embedding = &self.decoder.embeddings[at..at + self.hidden];
            buffers.stream.extend(embedding.iter().map(|value| value * self.embedding_scale));
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
            self.prepare(&mut buffers.input);
            self.decoder.lm_head.multiply(&buffers.input, wanted.len(), &mut logits, &self.pool, self.isa);
            if let Some(cap) = self.logit_cap {
                soft_cap(self.isa, &mut logits, cap);
            }
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
        let step = Step { layer, place, rows, tables, threads: &self.pool };
        let kv = &mut kv[place.group];
        self.attention.write(step, kv, &mut buffers.qkv);
        buffers.input.reset(rows.len(), self.attention.width());
        self.attention.attend(step, kv, &buffers.qkv, &mut buffers.tiles, buffers.input.values_mut());
        self.prepare(&mut buffers.input);
        self.product(&layer.output, &buffers.input, rows.len(), &mut buffers.change);
        self.add(layer.post_attention_norm.as_deref(), buffers);
    }

    fn feed_forward(&self, layer: &Layer, count: usize, buffers: &mut Buffers) {
        self.normed(&layer.ffn_norm, count, buffers);
        let Buffers { input, inner, routed, change, .. } = &mut *buffers;
        match &layer.feed_forward {
            FeedForward::Dense(gated) => self.gated(gated, input, count, inner, change),
            FeedForward::Experts(experts) => self.experts(experts, input, count, inner, routed, change),
        }
        self.add(layer.post_ffn_norm.as_deref(), buffers);
    }

    /// `down(activation(gate(input), up(input)))` for every row; `input` is used up.
    pub(crate) fn gated(&self, gated: &Gated, input: &mut Rows, count: usize, inner: &mut Inner, out: &mut Vec<f32>) {
        self.product(&gated.gate, input, count, &mut inner.gate);
        self.product(&gated.up, input, count, &mut inner.up);
        match self.activation {
            Activation::Silu => gated_silu(self.isa, &mut inner.gate, &inner.up),
            Activation::GeluTanh => gated_gelu(self.isa, &mut inner.gate, &inner.up),
            Activation::ClampedSwiglu { alpha, limit } => {
                clamped_swiglu(self.isa, &mut inner.gate, &inner.up, alpha, limit);
            }
        }
        input.reset(count, gated.gate.width());
        input.values_mut().copy_from_slice(&inner.gate);
        self.prepare(input);
        self.product(&gated.down, input, count, out);
    }

    /// Adds to the stream what a half of a layer made, which some families norm first.
    fn add(&self, post_norm: Option<&[f32]>, buffers: &mut Buffers) {
        if let Some(weight) = post_norm {
            self.norm_each(&mut buffers.change, weight, &mut buffers.before);
        }
        buffers.stream.iter_mut().zip(&buffers.change).for_each(|(stream, change)| *stream += change);
    }

    /// The stream, normed, as input of the next product.
    fn normed(&self, weight: &[f32], count: usize, buffers: &mut Buffers) {
        buffers.input.reset(count, self.hidden);
        let out = buffers.input.values_mut().chunks_exact_mut(self.hidden);
        for (row, out) in buffers.stream.chunks_exact(self.hidden).zip(out) {
            rms_norm(self.isa, row, weight, self.norm_eps, out);
        }
        self.prepare(&mut buffers.input);
    }

    /// Norms each piece of `pieces` as long as `weight` by itself, in place; `before` is room for one.
    fn norm_each(&self, pieces: &mut [f32], weight: &[f32], before: &mut Vec<f32>) {
        for out in pieces.chunks_exact_mut(weight.len()) {
            before.clear();
            before.extend_from_slice(out);
            rms_norm(self.isa, before, weight, self.norm_eps, out);
        }
    }

    /// Makes rows ready for products with the model's matrices.
    pub(crate) fn prepare(&self, rows: &mut Rows) {
        rows.prepare(self.format, self.isa);
    }

    pub(crate) fn product(&self, matrix: &Matrix, rows: &Rows, count: usize, out: &mut Vec<f32>) {
        out.resize(count * matrix.width(), 0.0);
        matrix.multiply(rows, count, out, &self.pool, self.isa);
    }
}
