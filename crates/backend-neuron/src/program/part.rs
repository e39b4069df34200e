//! One core's part of a decoder, and what the whole decoder asks for.
//!
//! In: a decoder's shape and a number of cores. Out: [`Part`], every extent as one core sees it, rounded up where it does not divide;
//! bytes of weights and KV; the multiplications that a sequence really needs. Deliberately not here: tiles.
//!
//! The split is tensor-parallel. Key/value heads go to cores; where there are more cores than these, several cores hold a copy of
//! one and share its query heads. Feed-forward, experts' insides and vocabulary are cut evenly. Sums over cores follow the
//! attention's output and the feed-forward.

use holdfast_model::{Activation, DecoderConfig, LayerConfig, LayerRope};

use super::lattice::Span;

/// How the chip holds matrices. Embeddings and norms stay bf16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightStorage {
    /// 16 bits a weight: what the chip computes with.
    Bf16,
    /// 8 bits a weight and 16 bits for each group of 32; the vector engine turns them into bf16 before the product.
    Int8,
}

impl WeightStorage {
    /// Bytes of this many weights.
    pub fn bytes(self, weights: u64) -> u64 {
        match self {
            Self::Bf16 => 2 * weights,
            Self::Int8 => weights + 2 * weights.div_ceil(32),
        }
    }
}

/// Bytes of a key or value element, and of an embedding's.
pub(crate) const BF16_BYTES: u64 = 2;

/// Layers that are alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) layer: LayerConfig,
    /// How many.
    pub(crate) count: u32,
}

/// Extents as one core sees them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Part {
    pub(crate) cores: u32,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) hidden: u32,
    pub(crate) kv_heads: u32,
    /// Query heads for each key/value head.
    pub(crate) group: u32,
    pub(crate) head_dim: u32,
    pub(crate) ffn: u32,
    pub(crate) experts: Option<(u32, u32)>,
    pub(crate) vocab: u32,
    pub(crate) tied: bool,
    /// Vector passes over a score and over an element between the feed-forward's matrices.
    pub(crate) score_passes: u32,
    pub(crate) inner_passes: u32,
    pub(crate) storage: WeightStorage,
    whole: Whole,
}

/// Multiplications of the whole decoder.
#[derive(Debug, Clone, PartialEq)]
struct Whole {
    /// Of a row in all layers, without attention's scores and sums.
    row: u64,
    /// Of a row of logits.
    logits: u64,
    /// Of a row and a key in one layer.
    pair: u64,
}

impl Part {
    /// The part of one of `cores` cores, at least 1.
    pub(crate) fn of(config: &DecoderConfig, storage: WeightStorage, cores: u32) -> Self {
        let mut kinds: Vec<Kind> = Vec::new();
        for layer in &config.layers {
            match kinds.iter_mut().find(|kind| kind.layer == *layer) {
                Some(kind) => kind.count += 1,
                None => kinds.push(Kind { layer: layer.clone(), count: 1 }),
            }
        }
        let extent = |value: usize| u32::try_from(value).unwrap_or(u32::MAX).max(1);
        let (heads, all_kv_heads) = (extent(config.heads), extent(config.kv_heads));
        // Cores that share a key/value head.
        let sharers = (cores / all_kv_heads).max(1);
        let (hidden, ffn) = (extent(config.hidden), extent(config.ffn));
        let experts = config.experts.map(|experts| (extent(experts.count), extent(experts.chosen)));
        Self {
            cores,
            hidden,
            kv_heads: all_kv_heads.div_ceil(cores),
            group: (heads / all_kv_heads).max(1).div_ceil(sharers),
            head_dim: extent(config.head_dim),
            ffn: ffn.div_ceil(cores),
            experts,
            vocab: config.vocab_size.div_ceil(cores).max(1),
            tied: config.tied,
            // Scale and mask, largest, exponential, sum, cast to bf16; and the cap.
            score_passes: 5 + u32::from(config.score_cap.is_some()),
            inner_passes: if matches!(config.activation, Activation::Silu) { 2 } else { 4 },
            storage,
            whole: Whole::of(config, &kinds),
            kinds,
        }
    }

    /// Layers.
    pub(crate) fn layers(&self) -> u32 {
        self.kinds.iter().map(|kind| kind.count).sum()
    }

    /// Query heads.
    pub(crate) fn heads(&self) -> u32 {
        self.kv_heads * self.group
    }

    /// Outputs of the matrix of queries, keys and values.
    pub(crate) fn qkv(&self) -> u32 {
        (self.heads() + 2 * self.kv_heads) * self.head_dim
    }

    /// Bytes of the weights that this core holds.
    pub(crate) fn weight_bytes(&self) -> u64 {
        let product = |a: u32, b: u32| u64::from(a) * u64::from(b);
        let attention = product(self.hidden, self.qkv()) + product(self.heads() * self.head_dim, self.hidden);
        let experts = self.experts.map_or(1, |(count, _)| u64::from(count));
        let router = self.experts.map_or(0, |(count, _)| 4 * product(self.hidden, count));
        let norms = 2 * BF16_BYTES * u64::from(self.hidden);
        let layer =
            self.storage.bytes(attention) + self.storage.bytes(3 * experts * product(self.hidden, self.ffn)) + router;
        let embedding = product(self.vocab, self.hidden);
        let head = if self.tied { 0 } else { self.storage.bytes(embedding) };
        u64::from(self.layers()) * (layer + norms) + BF16_BYTES * embedding + head
    }

    /// Bytes of one token's keys and values in one layer on this core.
    pub(crate) fn kv_bytes(&self) -> u64 {
        2 * BF16_BYTES * u64::from(self.kv_heads) * u64::from(self.head_dim)
    }

    /// Keys that a bucket's rows may see in a layer.
    pub(crate) fn keys(&self, layer: &LayerConfig, query: u32, context: u32) -> u32 {
        layer.window.map_or(context, |window| context.min(window.saturating_add(query - 1).next_multiple_of(128)))
    }

    /// Vector passes over the residual stream in a layer: norms (square, sum, scale, weight), sums, biases.
    pub(crate) fn stream_passes(&self, layer: &LayerConfig) -> u32 {
        let norms = if layer.post_norms { 4 } else { 2 };
        let biases = u32::from(layer.output_bias) + u32::from(layer.mlp_bias);
        3 * norms + 2 + biases
    }

    /// Vector passes over queries and keys in a layer.
    pub(crate) fn head_passes(&self, layer: &LayerConfig) -> u32 {
        let rope = if layer.rope == LayerRope::Unturned { 0 } else { 4 };
        rope + 3 * u32::from(layer.qk_norm) + u32::from(layer.qkv_bias)
    }

    /// Multiplications that the whole decoder needs for a sequence's rows, of which the last gives logits.
    pub(crate) fn needed_macs(&self, span: Span) -> u64 {
        let pairs: u64 = self.kinds.iter().map(|kind| u64::from(kind.count) * span.pairs(kind.layer.window)).sum();
        u64::from(span.rows) * self.whole.row + self.whole.logits + pairs * self.whole.pair
    }

    /// Bytes of KV that one core reads for a sequence.
    pub(crate) fn needed_kv_bytes(&self, span: Span) -> u64 {
        let seen =
            |kind: &Kind| u64::from(kind.count) * u64::from(self.keys(&kind.layer, span.rows.max(1), span.context));
        self.kinds.iter().map(seen).sum::<u64>() * self.kv_bytes()
    }
}

impl Whole {
    fn of(config: &DecoderConfig, kinds: &[Kind]) -> Self {
        let layers: u64 = kinds.iter().map(|kind| u64::from(kind.count)).sum();
        let (hidden, q, kv) = (config.hidden as u64, config.q_width() as u64, config.kv_width() as u64);
        let (chosen, router) = config.experts.map_or((1, 0), |e| (e.chosen as u64, e.count as u64 * hidden));
        let layer = hidden * (q + 2 * kv) + q * hidden + 3 * chosen * hidden * config.ffn as u64 + router;
        Self { row: layers * layer, logits: u64::from(config.vocab_size) * hidden, pair: 2 * q }
    }
}
