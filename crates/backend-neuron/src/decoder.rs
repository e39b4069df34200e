//! A model's weights as the device computes with them: matrices packed, vectors as they come.
//!
//! In: a config and its weights from `holdfast_model`. Out: [`Decoder`]. Deliberately not here: packing itself (`matrix`), and computing
//! (`forward`).

use holdfast_model::{DecoderConfig, LayerWeights, Weights};

use crate::matrix::{Matrix, Packer, Part};
use crate::{NeuronError, WeightFormat};

/// A whole decoder.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// `[vocab_size][hidden]`; `None` when the output matrix is the same.
    embeddings: Option<Matrix>,
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
    /// Gate and up under one another.
    pub(crate) gate_up: Matrix,
    pub(crate) down: Matrix,
}

impl Decoder {
    /// Packs every matrix; nothing of `weights` is kept.
    pub(crate) fn pack(
        config: &DecoderConfig,
        weights: &Weights,
        format: WeightFormat,
        mut packer: Packer<'_>,
    ) -> Result<Self, NeuronError> {
        let packer = &mut packer;
        let hidden = config.hidden;
        let mut layers = Vec::with_capacity(config.layers.len());
        for index in 0..config.layers.len() {
            let layer = weights.layer(index);
            let mut pack = |parts: &[Part<'_>], depth| Matrix::pack(parts, depth, format, packer);
            layers.push(Layer {
                attention_norm: layer.attention_norm.to_vec(),
                qkv: pack(&[(layer.q, layer.q_bias), (layer.k, layer.k_bias), (layer.v, layer.v_bias)], hidden)?,
                qk_norm: layer.q_norm.zip(layer.k_norm).map(|(q, k)| (q.to_vec(), k.to_vec())),
                sinks: layer.sinks.unwrap_or_default().to_vec(),
                output: pack(&[(layer.output, layer.output_bias)], config.heads * config.head_dim)?,
                post_attention_norm: layer.post_attention_norm.map(<[f32]>::to_vec),
                ffn_norm: layer.ffn_norm.to_vec(),
                feed_forward: FeedForward::pack(config, &layer, format, packer)?,
                post_ffn_norm: layer.post_ffn_norm.map(<[f32]>::to_vec),
            });
        }
        let (embeddings, lm_head) = (weights.embeddings(), weights.lm_head());
        let tied = std::ptr::eq(embeddings, lm_head);
        let mut pack = |values| Matrix::pack(&[(values, None)], hidden, format, packer);
        Ok(Self {
            embeddings: if tied { None } else { Some(pack(embeddings)?) },
            layers,
            final_norm: weights.final_norm().to_vec(),
            lm_head: pack(lm_head)?,
        })
    }

    /// A token's embedding times `scale`, `[hidden]`. At 8 bits with nested weights, whatever the precision of the row.
    pub(crate) fn embed(&self, token: u32, scale: f32, out: &mut [f32]) {
        self.embeddings.as_ref().unwrap_or(&self.lm_head).row(token as usize, scale, out);
    }
}

impl FeedForward {
    fn pack(
        config: &DecoderConfig,
        layer: &LayerWeights<'_>,
        format: WeightFormat,
        packer: &mut Packer<'_>,
    ) -> Result<Self, NeuronError> {
        let (hidden, ffn) = (config.hidden, config.ffn);
        // Part `i` of a tensor that holds those of all experts, one after the other.
        fn part<'a>(values: &'a [f32], bias: Option<&'a [f32]>, i: usize, width: usize, depth: usize) -> Part<'a> {
            let bias = bias.map(|bias| &bias[i * width..(i + 1) * width]);
            (&values[i * width * depth..(i + 1) * width * depth], bias)
        }
        let mut gated = |i| -> Result<Gated, NeuronError> {
            let gate = part(layer.gate, layer.gate_bias, i, ffn, hidden);
            let up = part(layer.up, layer.up_bias, i, ffn, hidden);
            let down = part(layer.down, layer.down_bias, i, hidden, ffn);
            Ok(Gated {
                gate_up: Matrix::pack(&[gate, up], hidden, format, packer)?,
                down: Matrix::pack(&[down], ffn, format, packer)?,
            })
        };
        Ok(match config.experts.zip(layer.router) {
            None => Self::Dense(gated(0)?),
            Some((experts, router)) => {
                let experts_of_layer = (0..experts.count).map(&mut gated).collect::<Result<_, _>>()?;
                let router = Matrix::pack(&[(router, layer.router_bias)], hidden, WeightFormat::F32, packer)?;
                Self::Experts(Experts { router, chosen: experts.chosen, experts: experts_of_layer })
            }
        })
    }
}
