//! A model's weights as the device computes with them: matrices packed, vectors as they come.
//!
//! In: a config and its weights from `holdfast_model`. Out: [`Decoder`]. Deliberately not here: packing itself (`matrix`), and computing
//! (`forward`).

use std::time::Instant;

use holdfast_model::{DecoderConfig, LayerWeights, WeightMatrix, Weights};

use crate::matrix::{Matrix, Packer, Part};
use crate::memory::Memory;
use crate::nested::Nested;
use crate::packings::Packing;
use crate::pool::Pool;
use crate::{NeuronError, NeuronSettings, WeightFormat};

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
    Dense(Box<Gated>),
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
    /// Packs every matrix, or reads what an earlier start has packed; nothing of `weights` is kept.
    #[expect(clippy::disallowed_methods, reason = "only what takes long to pack is worth keeping")]
    pub(crate) fn new(
        config: &DecoderConfig,
        weights: &Weights,
        settings: &NeuronSettings,
        pool: &Pool,
    ) -> Result<Self, NeuronError> {
        // Other formats are copies of what the files hold.
        let kept = settings.packings.as_ref().filter(|_| settings.weights == WeightFormat::Nested);
        let packing = kept.map(|kept| Packing::of(kept, config, weights));
        let begun = Instant::now();
        let kept = packing.as_ref().and_then(Packing::open);
        let mut packer = Packer { memory: Memory::default(), pool, isa: settings.isa, kept };
        let decoder = Self::pack(config, weights, settings.weights, &mut packer)?;
        let took = begun.elapsed();
        tracing::info!(seconds = took.as_secs_f64(), read = packer.kept.is_some(), "weights packed");
        if let Some(packing) = packing {
            packing.done(packer.kept, took, decoder.nested(), pool);
        }
        Ok(decoder)
    }

    fn pack(
        config: &DecoderConfig,
        weights: &Weights,
        format: WeightFormat,
        packer: &mut Packer<'_>,
    ) -> Result<Self, NeuronError> {
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
        let mut pack = |matrix| Matrix::pack(&[(matrix, None)], hidden, format, packer);
        Ok(Self {
            embeddings: if weights.is_tied() { None } else { Some(pack(weights.embeddings())?) },
            layers,
            final_norm: weights.final_norm().to_vec(),
            lm_head: pack(weights.lm_head())?,
        })
    }

    /// Nested matrices in the order in which they were packed.
    pub(crate) fn nested(&self) -> impl Iterator<Item = &Nested> + Clone {
        fn of_layer(layer: &Layer) -> Vec<&Matrix> {
            let gated: &[Gated] = match &layer.feed_forward {
                FeedForward::Dense(gated) => std::slice::from_ref(&**gated),
                FeedForward::Experts(experts) => &experts.experts,
            };
            let gated = gated.iter().flat_map(|gated| [&gated.gate, &gated.up, &gated.down]);
            [&layer.qkv, &layer.output].into_iter().chain(gated).collect()
        }
        let layers = self.layers.iter().flat_map(of_layer);
        layers.chain(&self.embeddings).chain([&self.lm_head]).filter_map(Matrix::nested)
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
        fn part<'a>(matrix: WeightMatrix<'a>, bias: Option<&'a [f32]>, i: usize, width: usize) -> Part<'a> {
            let rows = i * width..(i + 1) * width;
            (matrix.part(rows.clone()), bias.map(|bias| &bias[rows]))
        }
        let mut gated = |i| -> Result<Gated, NeuronError> {
            let gate = part(layer.gate, layer.gate_bias, i, ffn);
            let up = part(layer.up, layer.up_bias, i, ffn);
            let down = part(layer.down, layer.down_bias, i, hidden);
            Ok(Gated {
                gate: Matrix::pack(&[gate], hidden, format, packer)?,
                up: Matrix::pack(&[up], hidden, format, packer)?,
                down: Matrix::pack(&[down], ffn, format, packer)?,
            })
        };
        Ok(match config.experts.zip(layer.router) {
            None => Self::Dense(Box::new(gated(0)?)),
            Some((experts, router)) => {
                let experts_of_layer = (0..experts.count).map(&mut gated).collect::<Result<_, _>>()?;
                let router = Matrix::pack(&[(router, layer.router_bias)], hidden, WeightFormat::F32, packer)?;
                Self::Experts(Experts { router, chosen: experts.chosen, experts: experts_of_layer })
            }
        })
    }
}
