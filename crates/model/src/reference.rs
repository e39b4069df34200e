//! The reference forward pass: the oracle of every backend's tests.
//!
//! In: a model and tokens. Out: logits at every position. Plain f32 on candle-core, from scratch each time: no cache, no
//! batching, nothing clever, one line per operation of the published model (Llama: Touvron et al., 2023; grouped-query
//! attention: Ainslie et al., 2023; rotary embedding: Su et al., 2021). Deliberately not here: speed.

use candle_core::{D, Device, Error, Result, Tensor};

use crate::{DecoderConfig, Model, ModelError};

/// A model ready for reference forwards. Holds a copy of the weights.
pub struct Reference {
    config: DecoderConfig,
    embedding: Tensor,
    layers: Vec<Layer>,
    final_norm: Tensor,
    lm_head: Tensor,
}

struct Layer {
    attention_norm: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    /// Of q and of k.
    qk_norm: Option<(Tensor, Tensor)>,
    output: Linear,
    ffn_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
    /// Queries and keys turn.
    rope: bool,
    window: Option<u32>,
}

struct Linear {
    /// `[in, out]`.
    transposed: Tensor,
    bias: Option<Tensor>,
}

impl Reference {
    /// Copies the weights into tensors.
    ///
    /// # Errors
    /// [`ModelError::Reference`] when candle cannot hold them.
    pub fn new(model: &Model) -> std::result::Result<Self, ModelError> {
        Self::build(model).map_err(|e| ModelError::Reference(e.to_string()))
    }

    /// Logits after every token, `[tokens][vocab_size]`.
    ///
    /// # Errors
    /// [`ModelError::Reference`] for a token outside of the vocabulary, no tokens, or more than the context holds.
    pub fn logits(&self, tokens: &[u32]) -> std::result::Result<Vec<Vec<f32>>, ModelError> {
        let wrong = |problem: String| Err(ModelError::Reference(problem));
        if tokens.is_empty() || tokens.len() > self.config.context_limit as usize {
            return wrong(format!("{} tokens, expected 1 to {}", tokens.len(), self.config.context_limit));
        }
        if let Some(token) = tokens.iter().find(|t| **t >= self.config.vocab_size) {
            return wrong(format!("token {token} is not below {}", self.config.vocab_size));
        }
        self.forward(tokens).and_then(|logits| logits.to_vec2()).map_err(|e| ModelError::Reference(e.to_string()))
    }

    fn build(model: &Model) -> Result<Self> {
        let (config, weights) = (model.config(), model.weights());
        let (hidden, vocab) = (config.hidden, config.vocab_size as usize);
        let (q, kv, ffn) = (config.q_width(), config.kv_width(), config.ffn);
        let mut layers = Vec::with_capacity(config.layers.len());
        for (i, layer) in config.layers.iter().enumerate() {
            let w = weights.layer(i);
            layers.push(Layer {
                attention_norm: vector(w.attention_norm)?,
                q: Linear::new(w.q, w.q_bias, q, hidden)?,
                k: Linear::new(w.k, w.k_bias, kv, hidden)?,
                v: Linear::new(w.v, w.v_bias, kv, hidden)?,
                qk_norm: w.q_norm.zip(w.k_norm).map(|(q, k)| Ok::<_, Error>((vector(q)?, vector(k)?))).transpose()?,
                output: Linear::new(w.output, w.output_bias, hidden, q)?,
                ffn_norm: vector(w.ffn_norm)?,
                gate: Linear::new(w.gate, w.gate_bias, ffn, hidden)?,
                up: Linear::new(w.up, w.up_bias, ffn, hidden)?,
                down: Linear::new(w.down, w.down_bias, hidden, ffn)?,
                rope: layer.rope,
                window: layer.window,
            });
        }
        Ok(Self {
            config: config.clone(),
            embedding: Tensor::from_slice(weights.embeddings(), (vocab, hidden), &Device::Cpu)?,
            layers,
            final_norm: vector(weights.final_norm())?,
            lm_head: Tensor::from_slice(weights.lm_head(), (vocab, hidden), &Device::Cpu)?,
        })
    }

    fn forward(&self, tokens: &[u32]) -> Result<Tensor> {
        let ids = Tensor::from_slice(tokens, tokens.len(), &Device::Cpu)?;
        let (cos, sin) = self.rotations(tokens.len())?;
        let mut x = self.embedding.index_select(&ids, 0)?;
        for layer in &self.layers {
            let attended = self.attention(layer, &self.norm(&x, &layer.attention_norm)?, &cos, &sin)?;
            x = (x + attended)?;
            let normed = self.norm(&x, &layer.ffn_norm)?;
            let gated = (layer.gate.apply(&normed)?.silu()? * layer.up.apply(&normed)?)?;
            x = (x + layer.down.apply(&gated)?)?;
        }
        self.norm(&x, &self.final_norm)?.matmul(&self.lm_head.t()?)
    }

    /// `x / sqrt(mean(x²) + eps) * weight`, over the last axis.
    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let root = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(self.config.norm_eps))?.sqrt()?;
        x.broadcast_div(&root)?.broadcast_mul(weight)
    }

    fn attention(&self, layer: &Layer, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
        let config = &self.config;
        let length = x.dim(0)?;
        // [tokens, heads * dim] to [heads, tokens, dim].
        let heads = |t: Tensor, n: usize| t.reshape((length, n, config.head_dim))?.transpose(0, 1)?.contiguous();
        let mut q = heads(layer.q.apply(x)?, config.heads)?;
        let mut k = heads(layer.k.apply(x)?, config.kv_heads)?;
        if let Some((q_norm, k_norm)) = &layer.qk_norm {
            (q, k) = (self.norm(&q, q_norm)?, self.norm(&k, k_norm)?);
        }
        if layer.rope {
            (q, k) = (rotate(&q, cos, sin)?, rotate(&k, cos, sin)?);
        }
        let v = heads(layer.v.apply(x)?, config.kv_heads)?;
        // Query head i reads key head i / group.
        let group = config.heads / config.kv_heads;
        let repeat = |t: Tensor| -> Result<Tensor> {
            t.unsqueeze(1)?.broadcast_as((config.kv_heads, group, length, config.head_dim))?.reshape((
                config.heads,
                length,
                config.head_dim,
            ))
        };
        let scale = 1.0 / (config.head_dim as f64).sqrt();
        let scores = (q.matmul(&repeat(k)?.transpose(1, 2)?.contiguous()?)? * scale)?;
        let scores = scores.broadcast_add(&mask(length, layer.window)?)?;
        let exponentials = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let shares = exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)?;
        let mixed = shares.matmul(&repeat(v)?.contiguous()?)?;
        layer.output.apply(&mixed.transpose(0, 1)?.reshape((length, config.q_width()))?)
    }

    /// Cosine and sine of position times frequency, times the attention factor, `[tokens, rotary_dim / 2]` each.
    fn rotations(&self, length: usize) -> Result<(Tensor, Tensor)> {
        let frequencies = self.config.inverse_frequencies();
        let factor = self.config.rope.attention_factor();
        let angles: Vec<f32> =
            (0..length).flat_map(|position| frequencies.iter().map(move |f| position as f32 * f)).collect();
        let angles = Tensor::from_vec(angles, (length, frequencies.len()), &Device::Cpu)?;
        Ok(((angles.cos()? * factor)?, (angles.sin()? * factor)?))
    }
}

impl Linear {
    fn new(weight: &[f32], bias: Option<&[f32]>, out: usize, input: usize) -> Result<Self> {
        let transposed = Tensor::from_slice(weight, (out, input), &Device::Cpu)?.t()?.contiguous()?;
        Ok(Self { transposed, bias: bias.map(vector).transpose()? })
    }

    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.transposed)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

fn vector(values: &[f32]) -> Result<Tensor> {
    Tensor::from_slice(values, values.len(), &Device::Cpu)
}

/// Turns element i with element i + half, where half is the width of `cos`, for `[heads, tokens, dim]`; elements from 2 half on stay.
fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (half, dim) = (cos.dim(D::Minus1)?, x.dim(D::Minus1)?);
    let (low, high) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let turned_low = (low.broadcast_mul(cos)? - high.broadcast_mul(sin)?)?;
    let turned_high = (high.broadcast_mul(cos)? + low.broadcast_mul(sin)?)?;
    if dim == 2 * half {
        return Tensor::cat(&[turned_low, turned_high], D::Minus1);
    }
    Tensor::cat(&[turned_low, turned_high, x.narrow(D::Minus1, 2 * half, dim - 2 * half)?], D::Minus1)
}

/// 0 where a query (row) sees a key (column), negative infinity elsewhere.
fn mask(length: usize, window: Option<u32>) -> Result<Tensor> {
    let sees = |query: usize, key: usize| key <= query && window.is_none_or(|w| query - key < w as usize);
    let values: Vec<f32> = (0..length)
        .flat_map(|query| (0..length).map(move |key| if sees(query, key) { 0.0 } else { f32::NEG_INFINITY }))
        .collect();
    Tensor::from_vec(values, (length, length), &Device::Cpu)
}
