//! The rows of a step through the decoder, as launches: embeddings, layers, logits.
//!
//! In: an arranged step. Out: KV in the pool, and logits in the card's memory. Deliberately not here: what a step's rows are (`step`), waiting for anything,
//! and sampling.

use holdfast_model::{DecoderConfig, LayerRope};
use holdfast_types::KvGroup;

use crate::WeightFormat;
use crate::card::{Address, Card, CardError, Launch, launch};
use crate::decoder::{Decoder, FeedForward, Gated, Layer, activation};
use crate::kernels::{
    AttendParams, CapParams, EmbedParams, FEW_ROWS, GateParams, Input, Kernel, LANES, MANY_OUTPUTS, MANY_ROWS, Matrix,
    NormParams, Pool, ProductParams, QUERIES, ROW_THREADS, SPAN, TILE, TakeParams, TurnParams,
};
use crate::matrix::padded;
use crate::step::{Arranged, List, Precisions, Shape, precisions};

/// Rows whose logits are computed at once: what is enough for every sequence of most steps, and little memory beside weights.
pub(crate) const LOGIT_ROWS: u32 = 256;
/// Memory for the states of spans of attention. A step that would need more is done in several launches.
const STATE_BYTES: u64 = 128 << 20;
const F32: u64 = size_of::<f32>() as u64;

/// The decoder with its buffers.
#[derive(Debug)]
pub(crate) struct Forward {
    decoder: Decoder,
    shape: Shape,
    places: Vec<Place>,
    pools: Vec<Pool>,
    hidden: u32,
    ffn: u32,
    heads: u32,
    head_dim: u32,
    kv_heads: u32,
    pairs: u32,
    vocab: u32,
    eps: f32,
    score_scale: f32,
    score_cap: f32,
    logit_cap: Option<f32>,
    embedding_scale: f32,
    activation: (u32, f32, f32),
    buffers: Buffers,
}

/// Where a layer's KV lives, how far it looks back, and what turns its queries and keys.
#[derive(Debug, Clone, Copy)]
struct Place {
    group: usize,
    layer: u32,
    window: Option<u32>,
    rope: LayerRope,
}

/// Memory that every step uses.
#[derive(Debug)]
struct Buffers {
    /// The residual stream, `[rows][hidden]`.
    stream: Address,
    /// What a layer's half adds to it, `[rows][hidden]`.
    change: Address,
    qkv: Address,
    /// What attention makes, `[rows][heads][head_dim]`.
    mixed: Address,
    gate_up: Address,
    /// The input of the next product; its depth changes.
    input: Input,
    /// The input of the feed-forward's second product.
    inner: Input,
    /// The input of the output matrix.
    last: Input,
    logits: Address,
    states: Address,
    /// Lists of the step.
    lists: Address,
    lists_bytes: u64,
    /// Lists of the logits.
    logit_lists: Address,
    /// Of a mixture of experts; null without one.
    mixture: Mixture,
}

/// Memory of a mixture of experts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Mixture {
    /// Normed rows, `[rows][hidden]`.
    pub(crate) normed: Address,
    /// `[rows][experts]`.
    pub(crate) logits: Address,
    /// `[rows][experts of a row]`: numbers, then as many shares.
    pub(crate) routes: Address,
    /// What an expert makes, `[rows][hidden]`.
    pub(crate) made: Address,
    /// The rows of every expert, by precision, and their shares.
    pub(crate) lists: Address,
}

/// Some rows of a step: all of them, or those of one expert.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) precisions: Precisions,
    /// Where the lists of the precisions lie.
    pub(crate) lists: Address,
    /// Their numbers; null is all.
    pub(crate) list: Address,
    pub(crate) count: u32,
}

/// What waits to be added to the stream.
#[derive(Debug, Clone, Copy)]
enum Change {
    Nothing,
    /// To be normed where the address is not null.
    Of(Address),
}

impl Forward {
    /// Takes what a step needs beside the weights. `groups` lists each KV group's layers; `context` bounds positions.
    pub(crate) fn new(
        card: &mut dyn Card,
        config: &DecoderConfig,
        decoder: Decoder,
        groups: &[KvGroup],
        context: u32,
        settings: &crate::CudaSettings,
    ) -> Result<Self, CardError> {
        let format = settings.weights;
        let layer = |rope| Place { group: 0, layer: 0, window: None, rope };
        let mut places: Vec<Place> = config.layers.iter().map(|config| layer(config.rope)).collect();
        for (group, kv_group) in groups.iter().enumerate() {
            for (layer, number) in (0u32..).zip(&kv_group.layers) {
                let place = &mut places[*number as usize];
                *place = Place { group, layer, window: kv_group.window, ..*place };
            }
        }
        let width = padded_head(config.head_dim);
        let state_bytes = u64::from(QUERIES) * config.kv_heads as u64 * (width as u64 + 2) * F32;
        let spans_max = (STATE_BYTES / state_bytes).max(u64::from(context.div_ceil(SPAN)) + 1);
        let shape = Shape {
            windows: groups.iter().map(|group| group.window).collect(),
            block_tokens: settings.block_tokens,
            shared: (config.heads / config.kv_heads) as u32,
            spans_max: u32::try_from(spans_max).unwrap_or(u32::MAX),
        };
        let rows = u64::from(settings.max_step_rows);
        let floats = |card: &mut dyn Card, count: usize| card.allocate(rows * count as u64 * F32);
        let widest = padded(config.hidden.max(config.q_width()));
        let logit_rows = rows.min(LOGIT_ROWS.into());
        let buffers = Buffers {
            stream: floats(card, config.hidden)?,
            change: floats(card, config.hidden)?,
            qkv: floats(card, config.q_width() + 2 * config.kv_width())?,
            mixed: floats(card, config.q_width())?,
            gate_up: floats(card, 2 * config.ffn)?,
            input: input(card, format, rows, widest)?,
            inner: input(card, format, rows, padded(config.ffn))?,
            last: input(card, format, logit_rows, padded(config.hidden))?,
            logits: card.allocate(logit_rows * u64::from(config.vocab_size) * F32)?,
            states: card.allocate(spans_max * state_bytes)?,
            lists: Address::NULL,
            lists_bytes: 0,
            logit_lists: card.allocate(16 * u64::from(LOGIT_ROWS))?,
            mixture: match config.experts {
                None => Mixture::default(),
                Some(experts) => Mixture {
                    normed: floats(card, config.hidden)?,
                    logits: floats(card, experts.count)?,
                    routes: floats(card, 2 * experts.chosen)?,
                    made: floats(card, config.hidden)?,
                    // Two words for each route, and the lists' alignment.
                    lists: card.allocate(8 * rows * experts.chosen as u64 + 64 * experts.count as u64)?,
                },
            },
        };
        Ok(Self {
            decoder,
            shape,
            places,
            pools: Vec::new(),
            hidden: config.hidden as u32,
            ffn: config.ffn as u32,
            heads: config.heads as u32,
            head_dim: config.head_dim as u32,
            kv_heads: config.kv_heads as u32,
            pairs: (config.rotary_dim / 2) as u32,
            vocab: config.vocab_size,
            eps: config.norm_eps,
            score_scale: 1.0 / (config.query_scalar as f32).sqrt(),
            score_cap: config.score_cap.unwrap_or(0.0),
            logit_cap: config.logit_cap,
            embedding_scale: config.embedding_scale,
            activation: activation(config.activation),
            buffers,
        })
    }

    /// Names the memory of each group's pool.
    pub(crate) fn set_pools(&mut self, pools: Vec<Pool>) {
        self.pools = pools;
    }

    /// What decides how a step is arranged.
    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Launches everything of a step but its logits.
    pub(crate) fn run(&mut self, card: &mut dyn Card, step: &Arranged) -> Result<(), CardError> {
        if step.rows == 0 {
            return Ok(());
        }
        self.bring_lists(card, step)?;
        let params = EmbedParams {
            table: self.decoder.embeddings,
            tokens: self.list(step.tokens),
            stream: self.buffers.stream,
            hidden: self.hidden,
            scale: self.embedding_scale,
        };
        launch(card, Kernel::Embed, rows(step.rows, 0), &params)?;
        let mut change = Change::Nothing;
        for (layer, place) in self.decoder.layers.iter().zip(&self.places) {
            self.add_and_norm(card, step, change, layer.attention_norm)?;
            self.attention(card, step, layer, *place)?;
            self.add_and_norm(card, step, Change::Of(layer.post_attention_norm), layer.ffn_norm)?;
            match &layer.feed_forward {
                FeedForward::Dense(gated) => self.feed_forward(card, step, gated)?,
                FeedForward::Experts(experts) => self.experts(card, step, experts)?,
            }
            change = Change::Of(layer.post_ffn_norm);
        }
        Ok(())
    }

    /// Launches the logits of the wanted rows from `first` on, at most [`LOGIT_ROWS`], after [`Forward::run`] for the same step.
    pub(crate) fn logits(&self, card: &mut dyn Card, step: &Arranged, first: u32) -> Result<u32, CardError> {
        let count = (step.wanted.count - first).min(LOGIT_ROWS);
        let change_norm = self.decoder.layers.last().map_or(Address::NULL, |layer| layer.post_ffn_norm);
        let input = self.input(self.buffers.last, self.hidden);
        let params = NormParams {
            stream: self.buffers.stream,
            change: self.buffers.change,
            change_norm,
            weight: self.decoder.final_norm,
            rows: self.list(step.wanted).plus(u64::from(first) * 4),
            narrow: self.list(step.narrow),
            input,
            width: self.hidden,
            eps: self.eps,
            keep: 0,
            normed: Address::NULL,
        };
        launch(card, Kernel::AddAndNorm, rows(count, self.hidden + 2 * LANES), &params)?;
        // Precisions of the wanted rows alone.
        let mut bytes = Vec::new();
        let part = &step.wanted_narrow[first as usize..(first + count) as usize];
        let precisions = precisions(part, &mut bytes);
        if !bytes.is_empty() {
            card.upload(self.buffers.logit_lists, &bytes)?;
        }
        self.product(card, &self.decoder.lm_head, input, precisions, self.buffers.logit_lists, self.buffers.logits)?;
        if let Some(cap) = self.logit_cap {
            let values = u64::from(count) * u64::from(self.vocab);
            let blocks = u32::try_from(values.div_ceil(ROW_THREADS.into())).unwrap_or(u32::MAX);
            let params = CapParams { values: self.buffers.logits, count: values, cap };
            launch(card, Kernel::SoftCap, Launch { grid: [blocks, 1, 1], shared_bytes: 0 }, &params)?;
        }
        Ok(count)
    }

    /// Waits for logits that were launched, `[count][vocab_size]`.
    pub(crate) fn bring_logits(&self, card: &mut dyn Card, count: u32) -> Result<Vec<f32>, CardError> {
        let mut logits = vec![0.0; count as usize * self.vocab as usize];
        card.download(self.buffers.logits, bytemuck::cast_slice_mut(&mut logits))?;
        Ok(logits)
    }

    fn bring_lists(&mut self, card: &mut dyn Card, step: &Arranged) -> Result<(), CardError> {
        let bytes = step.bytes.len() as u64;
        if bytes > self.buffers.lists_bytes {
            // What is left behind is at most as much again.
            self.buffers.lists_bytes = (2 * bytes).next_power_of_two();
            self.buffers.lists = card.allocate(self.buffers.lists_bytes)?;
        }
        card.upload(self.buffers.lists, &step.bytes)
    }

    fn list(&self, list: List) -> Address {
        self.buffers.lists.plus(list.at)
    }

    /// A buffer as the input of a product with a matrix of this depth.
    fn input(&self, buffer: Input, depth: u32) -> Input {
        Input { depth: padded(depth as usize) as u32, ..buffer }
    }

    fn add_and_norm(
        &self,
        card: &mut dyn Card,
        step: &Arranged,
        change: Change,
        weight: Address,
    ) -> Result<(), CardError> {
        let (change, change_norm) = match change {
            Change::Nothing => (Address::NULL, Address::NULL),
            Change::Of(norm) => (self.buffers.change, norm),
        };
        let params = NormParams {
            stream: self.buffers.stream,
            change,
            change_norm,
            weight,
            rows: Address::NULL,
            narrow: self.list(step.narrow),
            input: self.input(self.buffers.input, self.hidden),
            width: self.hidden,
            eps: self.eps,
            keep: 1,
            normed: self.buffers.mixture.normed,
        };
        launch(card, Kernel::AddAndNorm, rows(step.rows, self.hidden + 2 * LANES), &params)
    }

    /// Attention of every row: from the input to the change.
    fn attention(&self, card: &mut dyn Card, step: &Arranged, layer: &Layer, place: Place) -> Result<(), CardError> {
        let input = self.input(self.buffers.input, self.hidden);
        self.product(card, &layer.qkv, input, step.precisions, self.buffers.lists, self.buffers.qkv)?;
        let lists = &step.groups[place.group];
        let pool = Pool { layer: place.layer, ..self.pools[place.group] };
        let turn = TurnParams {
            qkv: self.buffers.qkv,
            positions: self.list(step.positions),
            blocks: self.list(lists.blocks),
            q_norm: layer.q_norm,
            k_norm: layer.k_norm,
            turns: self.decoder.turns_of(place.rope),
            pool,
            heads: self.heads,
            pairs: self.pairs,
            eps: self.eps,
        };
        let grid = [step.rows, self.heads + self.kv_heads, 1];
        let shared_bytes = (self.head_dim + 2 * LANES) * F32 as u32;
        launch(card, Kernel::TurnAndWrite, Launch { grid, shared_bytes }, &turn)?;
        for (tiles, spans) in &lists.launches {
            let params = AttendParams {
                qkv: self.buffers.qkv,
                tiles: self.list(lists.tiles),
                tile_of: self.list(lists.tile_of),
                tables: self.list(lists.tables),
                sinks: layer.sinks,
                states: self.buffers.states,
                out: self.buffers.mixed,
                pool,
                heads: self.heads,
                window: place.window.unwrap_or(0),
                scale: self.score_scale,
                cap: self.score_cap,
                first_item: spans.start,
            };
            let grid = [spans.end - spans.start, self.kv_heads, 1];
            let shared_bytes = QUERIES * pool.width * F32 as u32;
            // Nested weights keep the CPU device's order, which matrix instructions have not.
            let is_nested = self.decoder.lm_head.bf16 == Address::NULL;
            let kernel = if is_nested { Kernel::Attend } else { Kernel::AttendMatrix };
            launch(card, kernel, Launch { grid, shared_bytes }, &params)?;
            let from = AttendParams {
                tiles: params.tiles.plus(u64::from(tiles.start) * size_of::<crate::kernels::AttendTile>() as u64),
                ..params
            };
            let grid = [tiles.end - tiles.start, self.kv_heads, QUERIES];
            launch(card, Kernel::JoinSpans, Launch { grid, shared_bytes: 0 }, &from)?;
        }
        let width = self.heads * self.head_dim;
        let input = self.input(self.buffers.input, width);
        let narrow = self.list(step.narrow);
        let params = TakeParams { values: self.buffers.mixed, rows: Address::NULL, narrow, input, width };
        launch(card, Kernel::Take, rows(step.rows, width), &params)?;
        self.product(card, &layer.output, input, step.precisions, self.buffers.lists, self.buffers.change)
    }

    /// The feed-forward of every row: from the input to the change.
    fn feed_forward(&self, card: &mut dyn Card, step: &Arranged, gated: &Gated) -> Result<(), CardError> {
        let all =
            Rows { precisions: step.precisions, lists: self.buffers.lists, list: Address::NULL, count: step.rows };
        self.gated(card, step, gated, all, self.buffers.change)
    }

    /// A gated feed-forward of some rows, into these rows of `out`. Their input is not used up: another expert may want it.
    pub(crate) fn gated(
        &self,
        card: &mut dyn Card,
        step: &Arranged,
        gated: &Gated,
        of: Rows,
        out: Address,
    ) -> Result<(), CardError> {
        let input = self.input(self.buffers.input, self.hidden);
        self.product(card, &gated.gate_up, input, of.precisions, of.lists, self.buffers.gate_up)?;
        let (activation, alpha, limit) = self.activation;
        let inner = self.input(self.buffers.inner, self.ffn);
        let params = GateParams {
            gate_up: self.buffers.gate_up,
            rows: of.list,
            narrow: self.list(step.narrow),
            input: inner,
            width: self.ffn,
            activation,
            alpha,
            limit,
        };
        launch(card, Kernel::Gate, rows(of.count, self.ffn), &params)?;
        self.product(card, &gated.down, inner, of.precisions, of.lists, out)
    }

    /// What the mixture of experts works with.
    pub(crate) fn mixture(&self) -> (Mixture, Address, u32) {
        (self.buffers.mixture, self.buffers.change, self.hidden)
    }

    /// Every row of an input times a matrix. `lists` is where the lists of the precisions lie.
    fn product(
        &self,
        card: &mut dyn Card,
        matrix: &Matrix,
        input: Input,
        precisions: Precisions,
        lists: Address,
        out: Address,
    ) -> Result<(), CardError> {
        let whole = ProductParams { matrix: *matrix, input, rows: Address::NULL, out, count: 0, narrow: 0 };
        match precisions {
            Precisions::One { narrow, count } => product(card, ProductParams { count, narrow: narrow.into(), ..whole }),
            Precisions::Two { wide, narrow } => {
                for (list, narrow) in [(wide, 0), (narrow, 1)].into_iter().filter(|(list, _)| list.count > 0) {
                    let rows = lists.plus(list.at);
                    product(card, ProductParams { rows, count: list.count, narrow, ..whole })?;
                }
                Ok(())
            }
        }
    }
}

/// The kernel for a number of rows: which one it is changes no bit.
fn product(card: &mut dyn Card, params: ProductParams) -> Result<(), CardError> {
    let is_nested = params.matrix.bf16 == Address::NULL;
    let (kernel, grid) = if params.count <= FEW_ROWS {
        let kernel = if is_nested { Kernel::ProductNestedFew } else { Kernel::ProductBf16Few };
        (kernel, [params.matrix.width.div_ceil(TILE), params.count.div_ceil(FEW_ROWS), 1])
    } else {
        let kernel = if is_nested { Kernel::ProductNestedMany } else { Kernel::ProductBf16Many };
        (kernel, [params.count.div_ceil(MANY_ROWS), params.matrix.width.div_ceil(MANY_OUTPUTS), 1])
    };
    launch(card, kernel, Launch { grid, shared_bytes: 0 }, &params)
}

/// A launch of one block of threads for each row, with so many floats of shared memory.
pub(crate) fn rows(count: u32, floats: u32) -> Launch {
    Launch { grid: [count, 1, 1], shared_bytes: floats * F32 as u32 }
}

/// Stored elements of a head.
pub(crate) fn padded_head(head_dim: usize) -> usize {
    head_dim.next_multiple_of(16)
}

/// Memory for the input of products up to a depth.
fn input(card: &mut dyn Card, format: WeightFormat, rows: u64, depth: usize) -> Result<Input, CardError> {
    let (elements, blocks) = (rows * depth as u64, rows * depth as u64 / u64::from(crate::kernels::BLOCK));
    Ok(match format {
        WeightFormat::Bf16 => Input { bf16: card.allocate(2 * elements)?, ..Input::default() },
        WeightFormat::Nested => Input {
            codes: card.allocate(elements)?,
            scales: card.allocate(4 * blocks)?,
            shifts: card.allocate(8 * blocks)?,
            ..Input::default()
        },
    })
}
