//! What a decoder has to compute and to read, from its shape alone.
//!
//! In: a [`DecoderConfig`] and how a device holds weights. Out: operations of a prefill or a decode, and bytes of a decode.
//! Deliberately not here: time. This is what no kernel can avoid; norms, activations, samplers and the writing of KV come on
//! top and are small beside it.

use holdfast_backend_neuron::{KvFormat, WeightFormat};
use holdfast_model::{DecoderConfig, TensorRole};

/// Bytes of a value in norms and biases, and in KV unless it is rounded.
const F32_BYTES: f64 = 4.0;
/// Depth that nested weights are padded to.
const NESTED_BLOCK: usize = 64;
/// Bytes of a nested weight at 8 bits with its share of a scale: one f16 for 32 of them, as for what Q8_0 files hold.
const NESTED_BYTES: f64 = 1.0 + 2.0 / 32.0;

/// The work of one decoder.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    config: DecoderConfig,
    weights: WeightFormat,
    kv_value_bytes: f64,
}

impl Work {
    /// Of a model on a device that holds its matrices like this.
    pub(crate) fn new(config: &DecoderConfig, weights: WeightFormat) -> Self {
        Self { config: config.clone(), weights, kv_value_bytes: F32_BYTES }
    }

    /// The same with KV that is held like this instead of in f32.
    pub(crate) fn with_kv(self, format: KvFormat) -> Self {
        let kv_value_bytes = match format {
            KvFormat::F32 => F32_BYTES,
            KvFormat::Bf16 => F32_BYTES / 2.0,
            // A code and its share of the scale of a head.
            KvFormat::Int8 => 1.0 + F32_BYTES / self.config.head_dim as f64,
        };
        Self { kv_value_bytes, ..self }
    }

    /// Operations of `tokens` tokens behind `depth` others, with the logits of the last one. A multiply-add is two.
    pub(crate) fn prefill_operations(&self, tokens: u32, depth: u32) -> f64 {
        let matrices: f64 = self.layer_matrices().map(|(rows, columns)| (rows * columns) as f64).sum();
        let logits = self.config.vocab_size as f64 * self.config.hidden as f64;
        let attention: f64 = (depth..depth + tokens).map(|position| self.attention_operations(position)).sum();
        2.0 * (f64::from(tokens) * matrices + logits) + attention
    }

    /// Operations of `tokens` steps of `batch` sequences, each behind `depth` tokens and with logits in every step.
    pub(crate) fn decode_operations(&self, tokens: u32, depth: u32, batch: u32) -> f64 {
        let steps = (depth..depth + tokens).map(|position| self.prefill_operations(1, position));
        f64::from(batch) * steps.sum::<f64>()
    }

    /// Bytes that `tokens` steps of `batch` sequences, each behind `depth` tokens, read: every weight once per step as the
    /// device holds it, one row of embeddings per token, and the keys and values that each sequence sees.
    pub(crate) fn decode_bytes(&self, tokens: u32, depth: u32, batch: u32) -> f64 {
        let embedding = self.config.hidden as f64 * F32_BYTES;
        let kv: f64 = (depth..depth + tokens).map(|position| self.kv_bytes(position)).sum();
        f64::from(tokens) * (self.weight_bytes() + f64::from(batch) * embedding) + f64::from(batch) * kv
    }

    /// Bytes of KV that a token takes over all layers.
    pub(crate) fn kv_bytes_per_token(&self) -> f64 {
        2.0 * self.config.kv_width() as f64 * self.kv_value_bytes * self.config.layers.len() as f64
    }

    /// Bytes of all weights that a step reads whole.
    fn weight_bytes(&self) -> f64 {
        let head = (self.config.vocab_size as usize, self.config.hidden);
        let matrices: f64 = self.layer_matrices().chain([head]).map(|shape| self.matrix_bytes(shape)).sum();
        let vectors: usize =
            self.config.tensors().iter().filter(|tensor| tensor.shape.len() == 1).map(|tensor| tensor.shape[0]).sum();
        matrices + vectors as f64 * F32_BYTES
    }

    fn matrix_bytes(&self, (rows, columns): (usize, usize)) -> f64 {
        match self.weights {
            WeightFormat::F32 => (rows * columns) as f64 * F32_BYTES,
            WeightFormat::Bf16 => (rows * columns) as f64 * F32_BYTES / 2.0,
            WeightFormat::Nested => (rows * columns.next_multiple_of(NESTED_BLOCK)) as f64 * NESTED_BYTES,
        }
    }

    /// `(rows, columns)` of every matrix of every layer.
    fn layer_matrices(&self) -> impl Iterator<Item = (usize, usize)> {
        let layers = self.config.tensors().into_iter().filter(|tensor| matches!(tensor.role, TensorRole::Layer(..)));
        layers.filter(|tensor| tensor.shape.len() == 2).map(|tensor| (tensor.shape[0], tensor.shape[1]))
    }

    /// Scores and mixing: two products of a query head with each key that the position sees.
    fn attention_operations(&self, position: u32) -> f64 {
        self.seen(position) * 2.0 * 2.0 * self.config.q_width() as f64
    }

    /// Keys and values that a row at `position` reads.
    fn kv_bytes(&self, position: u32) -> f64 {
        self.seen(position) * 2.0 * self.config.kv_width() as f64 * self.kv_value_bytes
    }

    /// Positions that a row sees, its own among them, added up over the layers.
    fn seen(&self, position: u32) -> f64 {
        let layers = self.config.layers.iter();
        layers.map(|layer| f64::from(layer.window.map_or(position + 1, |window| window.min(position + 1)))).sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use holdfast_model::random::MicroShape;

    /// Two layers: q 32x32, k and v 16x32, output 32x32, gate and up 48x32, down 32x48; vocabulary 300; 5 norms of 32.
    fn micro() -> DecoderConfig {
        let shape = MicroShape { vocab_size: 300, ..MicroShape::default() };
        shape.build().unwrap().config().clone()
    }

    const LAYER: f64 = (32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 48 * 32) as f64;
    const HEAD: f64 = 300.0 * 32.0;

    #[test]
    fn a_prefill_multiplies_every_matrix_and_sees_every_position_before() {
        let work = Work::new(&micro(), WeightFormat::F32);
        // One token sees itself: 2 layers, 2 products, 2 operations, 32 wide.
        assert_eq!(work.prefill_operations(1, 0), 2.0 * (2.0 * LAYER + HEAD) + 256.0);
        // Three tokens at depth 10 see 11 + 12 + 13.
        assert_eq!(work.prefill_operations(3, 10), 2.0 * (6.0 * LAYER + HEAD) + 36.0 * 256.0);
        assert_eq!(work.decode_operations(3, 10, 2), 2.0 * (2.0 * 3.0 * (2.0 * LAYER + HEAD) + 36.0 * 256.0));
    }

    #[test]
    fn a_decode_reads_weights_once_and_the_kv_of_every_sequence() {
        let work = Work::new(&micro(), WeightFormat::F32);
        let weights = 4.0 * (2.0 * LAYER + HEAD + 5.0 * 32.0);
        // Keys and values of 16 values in 2 layers: 256 bytes a position.
        assert_eq!(work.kv_bytes_per_token(), 256.0);
        assert_eq!(work.clone().with_kv(KvFormat::Bf16).kv_bytes_per_token(), 128.0);
        assert_eq!(work.decode_bytes(1, 0, 1), weights + 128.0 + 256.0);
        assert_eq!(work.decode_bytes(2, 5, 3), 2.0 * weights + 6.0 * 128.0 + 3.0 * (6.0 + 7.0) * 256.0);
    }

    #[test]
    fn nested_weights_are_whole_blocks_with_a_scale_for_each_32() {
        let work = Work::new(&micro(), WeightFormat::Nested);
        // Depths of 32 and 48 are a block of 68 bytes.
        let layer = (32 + 2 * 16 + 32 + 2 * 48 + 32) as f64 * 68.0;
        assert_eq!(work.decode_bytes(1, 0, 1), 2.0 * layer + 300.0 * 68.0 + 160.0 * 4.0 + 128.0 + 256.0);
    }

    #[test]
    fn a_window_bounds_what_is_seen() {
        let mut config = micro();
        config.layers[1].window = Some(4);
        let work = Work::new(&config, WeightFormat::F32);
        let one = work.prefill_operations(1, 0);
        // Position 9 sees 10 in one layer and 4 in the other.
        assert_eq!(work.prefill_operations(1, 9) - one, (14.0 - 2.0) * 128.0);
    }
}
