//! The rows of a step through the decoder: embeddings, layers, logits.
//!
//! In: rows with positions and block tables, and which rows' logits are wanted. Out: KV in the pool, and the logits. Deliberately not
//! here: which experts a row goes to (`experts`), sampling and the order of steps.

use holdfast_model::{Activation, DecoderConfig, Weights};

use crate::attention::{Attention, Place, Step, Tiles};
use crate::decoder::{Decoder, FeedForward, Gated, Layer};
use crate::experts::Routed;
use crate::kernels::Isa;
use crate::kernels::activation::{clamped_swiglu, gated_gelu, gated_silu, soft_cap};
use crate::kernels::norm::rms_norm;
use crate::kv::GroupPool;
use crate::matrix::Matrix;
use crate::pool::{Pieces, Pool};
use crate::rows::Rows;
use crate::{NeuronError, NeuronSettings, WeightFormat};

/// Multiply-adds that take as long as reading one element of an embedding, about.
const EMBEDDING_WORK: usize = 64;

/// One row of a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) token: u32,
    pub(crate) position: u32,
    /// Computed at 4 bits.
    pub(crate) narrow: bool,
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
    /// Routers read rows in f32.
    has_experts: bool,
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
    /// What attention makes, `[rows][query heads][head_dim]`.
    mixed: Vec<f32>,
    inner: Inner,
    routed: Routed,
    /// What a layer's half is going to add to the stream, `[rows][hidden]`.
    change: Vec<f32>,
    /// Input of the output matrix.
    last: Rows,
    /// `[wanted][vocab_size]`.
    logits: Vec<f32>,
}

/// What is between the matrices of a gated feed-forward.
#[derive(Debug, Default)]
pub(crate) struct Inner {
    /// Input of the last matrix.
    rows: Rows,
    /// `[rows][width]`; not used with nested weights.
    gate: Vec<f32>,
    up: Vec<f32>,
}

/// What `Buffers::change` waits for before it is added to the stream.
#[derive(Debug, Clone, Copy)]
enum Change<'a> {
    /// There is none.
    Nothing,
    /// To be normed, in some families.
    Of(Option<&'a [f32]>),
}

impl Forward {
    /// Packs the weights; nothing of them is kept. `groups` lists each KV group's layers; `context` bounds positions.
    pub(crate) fn new(
        config: &DecoderConfig,
        weights: &Weights,
        groups: &[holdfast_types::KvGroup],
        context: usize,
        settings: &NeuronSettings,
    ) -> Result<Self, NeuronError> {
        let pool = Pool::new(settings.threads, settings.ordinal)?;
        let decoder = Decoder::new(config, weights, settings, &pool)?;
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
            pool,
            isa: settings.isa,
            format: settings.weights,
            hidden: config.hidden,
            norm_eps: config.norm_eps,
            embedding_scale: config.embedding_scale,
            logit_cap: config.logit_cap,
            activation: config.activation,
            has_experts: config.experts.is_some(),
            buffers: Buffers::default(),
        })
    }

    /// Computes `rows`, writes their KV, and keeps the logits of `wanted` (indices of rows) until the next run.
    pub(crate) fn run(&mut self, rows: &[Row], tables: &[Tables], wanted: &[usize], kv: &mut [GroupPool]) {
        let mut buffers = std::mem::take(&mut self.buffers);
        self.embed(rows, &mut buffers);
        let mut change = Change::Nothing;
        for (layer, place) in self.decoder.layers.iter().zip(&self.places) {
            self.add_and_norm(change, &layer.attention_norm, &mut buffers);
            self.attention(layer, *place, rows, tables, kv, &mut buffers);
            self.add_and_norm(Change::Of(layer.post_attention_norm.as_deref()), &layer.ffn_norm, &mut buffers);
            self.feed_forward(layer, &mut buffers);
            change = Change::Of(layer.post_ffn_norm.as_deref());
        }
        self.logits(rows, wanted, change, &mut buffers);
        self.buffers = buffers;
    }

    /// What the last run left, `[wanted][vocab_size]`.
    pub(crate) fn last_logits(&self) -> &[f32] {
        &self.buffers.logits
    }

    fn embed(&self, rows: &[Row], buffers: &mut Buffers) {
        buffers.input.begin(rows.iter().map(|row| row.narrow), self.has_experts);
        buffers.stream.resize(rows.len() * self.hidden, 0.0);
        let stream = Pieces::new(&mut buffers.stream);
        self.pool.run(rows.len(), rows.len() * self.hidden * EMBEDDING_WORK, |row| {
            // SAFETY: an item is a row, which has its own part.
            let out = unsafe { stream.piece(row * self.hidden, self.hidden) };
            self.decoder.embed(rows[row].token, self.embedding_scale, out);
        });
    }

    fn logits(&self, rows: &[Row], wanted: &[usize], change: Change<'_>, buffers: &mut Buffers) {
        let Buffers { stream, change: changes, last, logits, .. } = buffers;
        let hidden = self.hidden;
        last.begin(wanted.iter().map(|row| rows[*row].narrow), false);
        self.fill(last, hidden, |at, out| {
            let part = wanted[at] * hidden..(wanted[at] + 1) * hidden;
            out.copy_from_slice(&changes[part.clone()]);
            if let Change::Of(Some(weight)) = change {
                rms_norm(self.isa, out, weight, self.norm_eps);
            }
            out.iter_mut().zip(&stream[part]).for_each(|(out, stream)| *out += stream);
            rms_norm(self.isa, out, &self.decoder.final_norm, self.norm_eps);
        });
        self.product(&self.decoder.lm_head, last, logits);
        if let Some(cap) = self.logit_cap {
            soft_cap(self.isa, logits, cap);
        }
    }

    /// Adds to the stream what the half of a layer before this one made, and makes the stream, normed, the next input.
    fn add_and_norm(&self, change: Change<'_>, weight: &[f32], buffers: &mut Buffers) {
        let Buffers { stream, change: changes, input, .. } = buffers;
        let hidden = self.hidden;
        let (stream, changes) = (Pieces::new(stream), Pieces::new(changes));
        self.fill(input, hidden, |row, out| {
            // SAFETY: `fill` calls this once for every row, which has its own part.
            let stream = unsafe { stream.piece(row * hidden, hidden) };
            if let Change::Of(post_norm) = change {
                // SAFETY: as above.
                let change = unsafe { changes.piece(row * hidden, hidden) };
                if let Some(weight) = post_norm {
                    rms_norm(self.isa, change, weight, self.norm_eps);
                }
                stream.iter_mut().zip(change).for_each(|(stream, change)| *stream += *change);
            }
            out.copy_from_slice(stream);
            rms_norm(self.isa, out, weight, self.norm_eps);
        });
    }

    /// Attention of every row: from `input` to `change`.
    fn attention(
        &self,
        layer: &Layer,
        place: Place,
        rows: &[Row],
        tables: &[Tables],
        kv: &mut [GroupPool],
        buffers: &mut Buffers,
    ) {
        self.product(&layer.qkv, &buffers.input, &mut buffers.qkv);
        let Buffers { input, qkv, tiles, mixed, change, .. } = buffers;
        let step = Step { layer, place, rows, tables, threads: &self.pool };
        let kv = &mut kv[place.group];
        self.attention.write(step, kv, qkv);
        let width = self.attention.width();
        mixed.resize(rows.len() * width, 0.0);
        self.attention.attend(step, kv, qkv, tiles, mixed);
        self.fill(input, width, |row, out| out.copy_from_slice(&mixed[row * width..(row + 1) * width]));
        self.product(&layer.output, input, change);
    }

    /// The feed-forward of every row: from `input` to `change`.
    fn feed_forward(&self, layer: &Layer, buffers: &mut Buffers) {
        let Buffers { input, inner, routed, change, .. } = buffers;
        match &layer.feed_forward {
            FeedForward::Dense(gated) => self.gated(gated, input, inner, change),
            FeedForward::Experts(experts) => self.experts(experts, input, inner, routed, change),
        }
    }

    /// `down(activation(gate(input), up(input)))` for every row.
    pub(crate) fn gated(&self, gated: &Gated, input: &Rows, inner: &mut Inner, out: &mut Vec<f32>) {
        let Inner { rows, gate, up } = inner;
        rows.begin_like(input);
        let activate = |gate: &mut [f32], up: &[f32]| match self.activation {
            Activation::Silu => gated_silu(self.isa, gate, up),
            Activation::GeluTanh => gated_gelu(self.isa, gate, up),
            Activation::ClampedSwiglu { alpha, limit } => clamped_swiglu(self.isa, gate, up, alpha, limit),
        };
        if !gated.gate.multiply_gated(&gated.up, input, rows, &self.pool, self.isa, activate) {
            self.product(&gated.gate, input, gate);
            self.product(&gated.up, input, up);
            let width = gated.gate.width();
            self.fill(rows, width, |row, out| {
                let part = row * width..(row + 1) * width;
                out.copy_from_slice(&gate[part.clone()]);
                activate(out, &up[part]);
            });
        }
        self.product(&gated.down, rows, out);
    }

    /// Writes every row with `f` and makes it ready for products with the model's matrices.
    pub(crate) fn fill(&self, rows: &mut Rows, width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
        rows.fill(width, self.format, &self.pool, self.isa, f);
    }

    pub(crate) fn product(&self, matrix: &Matrix, rows: &Rows, out: &mut Vec<f32>) {
        out.resize(rows.count() * matrix.width(), 0.0);
        matrix.multiply(rows, out, &self.pool, self.isa);
    }
}
