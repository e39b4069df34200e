//! A model's weights as the device computes with them: matrices packed, vectors as they come.
//!
//! In: a config and its weights from `holdfast_model`. Out: [`Decoder`]. Deliberately not here: packing itself (`matrix`), and computing
//! (`forward`).

use holdfast_model::{DecoderConfig, LayerWeights, Weights};

use crate::WeightFormat;
use crate::kernels::Isa;
use crate::matrix::{Matrix, Part};

/// A whole decoder.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// `[vocab_size][hidden]`.
    pub(crate) embeddings: Vec<f32>,
    pub(crate) layers: Vec<Layer>,
    /// `[hidden]`.
    pub(crate) final_norm: Vec<f32>,
    pub(crate) lm_head: Matrix,
}

/// One layer.
#[derive(Debug)]
pub(crate) struct Layer {
    /// `[hidden]`.
    pub(crate) attention_norm: Vec<f32>,
    /// Queries, keys and values under one another.
    pub(crate) qkv: Matrix,
    /// Norms of each query head and of each key head, `[head_dim]`.
    pub(crate) qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    /// A score for each query head beside those of its keys, or none.
    pub(crate) sinks: Vec<f32>,
    pub(crate) output: Matrix,
    /// Norm of what attention adds to the stream, `[hidden]`.
    pub(crate) post_attention_norm: Option<Vec<f32>>,
    /// `[hidden]`.
    pub(crate) ffn_norm: Vec<f32>,
    pub(crate) feed_forward: FeedForward,
    /// Norm of what the feed-forward adds to the stream, `[hidden]`.
    pub(crate) post_ffn_norm: Option<Vec<f32>>,
}

/// The feed-forward of a layer.
#[derive(Debug)]
pub(crate) enum FeedForward {
    Dense(Gated),
    Experts(Experts),
}

/// A mixture of experts.
#[derive(Debug)]
pub(crate) struct Experts {
    /// In f32 whatever the other matrices are: a small change of what it gives is another choice.
    pub(crate) router: Matrix,
    /// Experts of a row.
    pub(crate) chosen: usize,
    pub(crate) experts: Vec<Gated>,
}

/// A gated feed-forward.
#[derive(Debug)]
pub(crate) struct Gated {
    pub(crate) gate: Matrix,
    pub(crate) up: Matrix,
    pub(crate) down: Matrix,
}

impl Decoder {
    /// Packs every matrix; nothing of `weights` is kept.
    pub(crate) fn pack(config: &DecoderConfig, weights: &Weights, format: WeightFormat, isa: Isa) -> Self {
        let pack = |parts: &[Part<'_>], depth| Matrix::pack(parts, depth, format, isa);
        let hidden = config.hidden;
        let layers = (0..config.layers.len())
            .map(|index| {
                let layer = weights.layer(index);
                Layer {
                    attention_norm: layer.attention_norm.to_vec(),
                    qkv: pack(&[(layer.q, layer.q_bias), (layer.k, layer.k_bias), (layer.v, layer.v_bias)], hidden),
                    qk_norm: layer.q_norm.zip(layer.k_norm).map(|(q, k)| (q.to_vec(), k.to_vec())),
                    sinks: layer.sinks.unwrap_or_default().to_vec(),
                    output: pack(&[(layer.output, layer.output_bias)], config.heads * config.head_dim),
                    post_attention_norm: layer.post_attention_norm.map(<[f32]>::to_vec),
                    ffn_norm: layer.ffn_norm.to_vec(),
                    feed_forward: FeedForward::pack(config, &layer, format, isa),
                    post_ffn_norm: layer.post_ffn_norm.map(<[f32]>::to_vec),
                }
            })
            .collect();
        Self {
            embeddings: weights.embeddings().to_vec(),
            layers,
            final_norm: weights.final_norm().to_vec(),
            lm_head: pack(&[(weights.lm_head(), None)], hidden),
        }
    }
}

impl FeedForward {
    fn pack(config: &DecoderConfig, layer: &LayerWeights<'_>, format: WeightFormat, isa: Isa) -> Self {
        let (hidden, ffn) = (config.hidden, config.ffn);
        // Part `i` of a tensor that holds those of all experts, one after the other.
        let pack = |i: usize, values: &[f32], bias: Option<&[f32]>, width: usize, depth: usize| {
            let bias = bias.map(|bias| &bias[i * width..(i + 1) * width]);
            Matrix::pack(&[(&values[i * width * depth..(i + 1) * width * depth], bias)], depth, format, isa)
        };
        let gated = |i| Gated {
            gate: pack(i, layer.gate, layer.gate_bias, ffn, hidden),
            up: pack(i, layer.up, layer.up_bias, ffn, hidden),
            down: pack(i, layer.down, layer.down_bias, hidden, ffn),
        };
        match config.experts.zip(layer.router) {
            None => Self::Dense(gated(0)),
            Some((experts, router)) => Self::Experts(Experts {
                router: Matrix::pack(&[(router, layer.router_bias)], hidden, WeightFormat::F32, isa),
                chosen: experts.chosen,
                experts: (0..experts.count).map(gated).collect(),
            }),
        }
    }
}
