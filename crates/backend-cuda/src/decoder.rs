//! A model's weights on a card.
//!
//! In: a config and its weights from `holdfast_model`. Out: [`Decoder`]: addresses. Deliberately not here: packing (`matrix`), and computing (`forward`).

use holdfast_model::{Activation, DecoderConfig, LayerRope, LayerWeights, RopeConfig, WeightMatrix, Weights};

use crate::card::{Address, Card, CardError};
use crate::kernels::{HEAD_DIM_MAX, LANES, Matrix, QUERIES};
use crate::matrix::{Part, load, put, random};
use crate::{CudaError, WeightFormat};

/// Most shared memory of a block of threads on the smallest card that the kernels run on (compute capability 8.6).
const SHARED_BYTES_MAX: usize = 99 << 10;

/// A whole decoder.
#[derive(Debug)]
pub(crate) struct Decoder {
    pub(crate) embeddings: Matrix,
    pub(crate) layers: Vec<Layer>,
    pub(crate) final_norm: Address,
    pub(crate) lm_head: Matrix,
    /// `[position][cos of each pair, sin of each pair]`.
    turns: Address,
    local_turns: Address,
}

/// One layer. A null address is what the layer has not.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attention_norm: Address,
    /// Queries, keys and values under one another.
    pub(crate) qkv: Matrix,
    pub(crate) q_norm: Address,
    pub(crate) k_norm: Address,
    pub(crate) sinks: Address,
    pub(crate) output: Matrix,
    pub(crate) post_attention_norm: Address,
    pub(crate) ffn_norm: Address,
    pub(crate) feed_forward: FeedForward,
    pub(crate) post_ffn_norm: Address,
}

/// The feed-forward of a layer.
#[derive(Debug)]
pub(crate) enum FeedForward {
    Dense(Gated),
    Experts(Experts),
}

/// A gated feed-forward.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gated {
    /// Gate and up under one another.
    pub(crate) gate_up: Matrix,
    pub(crate) down: Matrix,
}

/// A mixture of experts.
#[derive(Debug)]
pub(crate) struct Experts {
    /// `[experts][hidden]`, f32.
    pub(crate) router: Address,
    pub(crate) router_bias: Address,
    /// Experts of a row.
    pub(crate) chosen: u32,
    pub(crate) experts: Vec<Gated>,
}

/// Whether the kernels can compute this model.
///
/// # Errors
/// [`CudaError::Model`] with what they cannot.
pub(crate) fn check(config: &DecoderConfig) -> Result<(), CudaError> {
    let refused = |why: String| Err(CudaError::Model(why));
    if config.head_dim > HEAD_DIM_MAX as usize {
        return refused(format!("heads of {} elements, at most {HEAD_DIM_MAX}", config.head_dim));
    }
    let shared = config.heads / config.kv_heads;
    if shared > QUERIES as usize {
        return refused(format!("{shared} query heads share a KV head, at most {QUERIES} may"));
    }
    let widest = config.hidden.max(config.ffn).max(config.q_width());
    let shared_bytes = 4 * (widest + 2 * LANES as usize);
    if shared_bytes > SHARED_BYTES_MAX {
        return refused(format!(
            "rows of {widest} values need {shared_bytes} bytes of shared memory, {SHARED_BYTES_MAX} are there"
        ));
    }
    Ok(())
}

impl Decoder {
    /// Packs every matrix and brings it to the card; nothing of `weights` is kept. `context` bounds positions.
    pub(crate) fn load(
        card: &mut dyn Card,
        config: &DecoderConfig,
        weights: &Weights,
        format: WeightFormat,
        context: usize,
    ) -> Result<Self, CardError> {
        let hidden = config.hidden;
        let mut layers = Vec::with_capacity(config.layers.len());
        for index in 0..config.layers.len() {
            let layer = weights.layer(index);
            let qkv = [(layer.q, layer.q_bias), (layer.k, layer.k_bias), (layer.v, layer.v_bias)];
            layers.push(Layer {
                attention_norm: put(card, layer.attention_norm)?,
                qkv: load(card, &qkv, hidden, format)?,
                q_norm: optional(card, layer.q_norm)?,
                k_norm: optional(card, layer.k_norm)?,
                sinks: optional(card, layer.sinks)?,
                output: load(card, &[(layer.output, layer.output_bias)], config.q_width(), format)?,
                post_attention_norm: optional(card, layer.post_attention_norm)?,
                ffn_norm: put(card, layer.ffn_norm)?,
                feed_forward: FeedForward::load(card, config, &layer, format)?,
                post_ffn_norm: optional(card, layer.post_ffn_norm)?,
            });
        }
        let lm_head = load(card, &[(weights.lm_head(), None)], hidden, format)?;
        let tied = weights.is_tied();
        let table = |rope: &RopeConfig| turns(rope, config.rotary_dim, context);
        Ok(Self {
            embeddings: if tied { lm_head } else { load(card, &[(weights.embeddings(), None)], hidden, format)? },
            layers,
            final_norm: put(card, weights.final_norm())?,
            lm_head,
            turns: put(card, &table(&config.rope))?,
            local_turns: match &config.local_rope {
                Some(rope) => put(card, &table(rope))?,
                None => Address::NULL,
            },
        })
    }

    /// The same with weights that are made up on the card: for benchmarks of shapes that no file is at hand for. Biases and sinks are left out, norms
    /// are ones, and the feed-forward is dense.
    pub(crate) fn random(
        card: &mut dyn Card,
        config: &DecoderConfig,
        format: WeightFormat,
        context: usize,
        seed: u64,
    ) -> Result<Self, CardError> {
        let ones = |card: &mut dyn Card, wanted: bool, count: usize| match wanted {
            true => put(card, &vec![1.0f32; count]),
            false => Ok(Address::NULL),
        };
        let (hidden, q, kv) = (config.hidden, config.q_width(), config.kv_width());
        let mut number = seed;
        let mut matrix = |card: &mut dyn Card, width, depth| {
            number += 1;
            random(card, width, depth, format, number)
        };
        let mut layers = Vec::with_capacity(config.layers.len());
        for layer in &config.layers {
            layers.push(Layer {
                attention_norm: ones(card, true, hidden)?,
                qkv: matrix(card, q + 2 * kv, hidden)?,
                q_norm: ones(card, layer.qk_norm, config.head_dim)?,
                k_norm: ones(card, layer.qk_norm, config.head_dim)?,
                sinks: Address::NULL,
                output: matrix(card, hidden, q)?,
                post_attention_norm: ones(card, layer.post_norms, hidden)?,
                ffn_norm: ones(card, true, hidden)?,
                feed_forward: FeedForward::Dense(Gated {
                    gate_up: matrix(card, 2 * config.ffn, hidden)?,
                    down: matrix(card, hidden, config.ffn)?,
                }),
                post_ffn_norm: ones(card, layer.post_norms, hidden)?,
            });
        }
        let vocab = config.vocab_size as usize;
        let lm_head = matrix(card, vocab, hidden)?;
        let table = |rope: &RopeConfig| turns(rope, config.rotary_dim, context);
        Ok(Self {
            embeddings: if config.tied { lm_head } else { matrix(card, vocab, hidden)? },
            layers,
            final_norm: ones(card, true, hidden)?,
            lm_head,
            turns: put(card, &table(&config.rope))?,
            local_turns: match &config.local_rope {
                Some(rope) => put(card, &table(rope))?,
                None => Address::NULL,
            },
        })
    }

    /// What turns a layer's queries and keys.
    pub(crate) fn turns_of(&self, rope: LayerRope) -> Address {
        match rope {
            LayerRope::Unturned => Address::NULL,
            LayerRope::Global => self.turns,
            LayerRope::Local => self.local_turns,
        }
    }
}

impl FeedForward {
    fn load(
        card: &mut dyn Card,
        config: &DecoderConfig,
        layer: &LayerWeights<'_>,
        format: WeightFormat,
    ) -> Result<Self, CardError> {
        let (hidden, ffn) = (config.hidden, config.ffn);
        // Part `i` of a tensor that holds those of all experts, one after the other.
        fn part<'a>(matrix: WeightMatrix<'a>, bias: Option<&'a [f32]>, i: usize, width: usize) -> Part<'a> {
            let rows = i * width..(i + 1) * width;
            (matrix.part(rows.clone()), bias.map(|bias| &bias[rows]))
        }
        let gated = |card: &mut dyn Card, i: usize| -> Result<Gated, CardError> {
            let gate = part(layer.gate, layer.gate_bias, i, ffn);
            let up = part(layer.up, layer.up_bias, i, ffn);
            let down = part(layer.down, layer.down_bias, i, hidden);
            Ok(Gated { gate_up: load(card, &[gate, up], hidden, format)?, down: load(card, &[down], ffn, format)? })
        };
        Ok(match config.experts.zip(layer.router) {
            None => Self::Dense(gated(card, 0)?),
            Some((experts, router)) => Self::Experts(Experts {
                router: put(card, router.values())?,
                router_bias: optional(card, layer.router_bias)?,
                chosen: experts.chosen as u32,
                experts: (0..experts.count).map(|i| gated(card, i)).collect::<Result<_, _>>()?,
            }),
        })
    }
}

/// Bytes that a model's matrices take, about: for a message before any of them is brought.
pub(crate) fn weight_bytes(config: &DecoderConfig, format: WeightFormat) -> u64 {
    let experts = config.experts.map_or(1, |experts| experts.count);
    let layer = config.q_width() * 2 + 2 * config.kv_width() + 3 * config.ffn * experts;
    let ends = config.vocab_size as usize * if config.tied { 1 } else { 2 };
    let elements = (config.hidden * (config.layers.len() * layer + ends)) as u64;
    match format {
        WeightFormat::Bf16 => 2 * elements,
        WeightFormat::Nested => elements + elements / 16,
    }
}

/// Number, steepness and bound of an activation, as kernels know it.
pub(crate) fn activation(activation: Activation) -> (u32, f32, f32) {
    match activation {
        Activation::Silu => (0, 0.0, 0.0),
        Activation::GeluTanh => (1, 0.0, 0.0),
        Activation::ClampedSwiglu { alpha, limit } => (2, alpha, limit),
    }
}

fn optional(card: &mut dyn Card, values: Option<&[f32]>) -> Result<Address, CardError> {
    values.map_or(Ok(Address::NULL), |values| put(card, values))
}

/// Cosines and sines of every position below `context`: angles and their functions in f64, rounded once, as on the CPU device.
fn turns(rope: &RopeConfig, rotary_dim: usize, context: usize) -> Vec<f32> {
    let (frequencies, factor) = (rope.inverse_frequencies(rotary_dim), rope.attention_factor());
    let mut values = Vec::with_capacity(context * rotary_dim);
    for position in 0..context {
        let angles = frequencies.iter().map(|frequency| position as f64 * f64::from(*frequency));
        values.extend(angles.clone().map(|angle| (libm::cos(angle) * factor) as f32));
        values.extend(angles.map(|angle| (libm::sin(angle) * factor) as f32));
    }
    values
}
