//! The reference forward pass: the oracle of every backend's tests.
//!
//! In: a model and tokens. Out: logits at every position. Plain f32 on candle-core, from scratch each time: no cache, no
//! batching, nothing clever, one line per operation of the published model (Llama: Touvron et al., 2023; grouped-query
//! attention: Ainslie et al., 2023; rotary embedding: Su et al., 2021; soft caps: Gemma 2; attention sinks and the mixture of experts:
//! gpt-oss). Deliberately not here: speed.

use candle_core::{D, Device, Error, Result, Tensor};

use crate::{
    Activation, DecoderConfig, ExpertsConfig, LayerConfig, LayerRope, LayerWeights, Model, ModelError, RopeConfig,
};

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
    /// `[heads, 1, 1]`.
    sinks: Option<Tensor>,
    output: Linear,
    post_attention_norm: Option<Tensor>,
    ffn_norm: Tensor,
    feed_forward: FeedForward,
    post_ffn_norm: Option<Tensor>,
    rope: LayerRope,
    window: Option<u32>,
}

enum FeedForward {
    Dense(Gated),
    Experts { config: ExpertsConfig, router: Linear, experts: Vec<Gated> },
}

struct Gated {
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// Cosines and sines, `[tokens, rotary_dim / 2]` each.
struct Rotation {
    cos: Tensor,
    sin: Tensor,
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
        let layers = config.layers.iter().enumerate().map(|(i, layer)| Layer::new(config, layer, &weights.layer(i)));
        Ok(Self {
            config: config.clone(),
            embedding: Tensor::from_slice(weights.embeddings().values(), (vocab, hidden), &Device::Cpu)?,
            layers: layers.collect::<Result<_>>()?,
            final_norm: vector(weights.final_norm())?,
            lm_head: Tensor::from_slice(weights.lm_head().values(), (vocab, hidden), &Device::Cpu)?,
        })
    }

    fn forward(&self, tokens: &[u32]) -> Result<Tensor> {
        let config = &self.config;
        let ids = Tensor::from_slice(tokens, tokens.len(), &Device::Cpu)?;
        let global = self.rotation(&config.rope, tokens.len())?;
        let local = config.local_rope.as_ref().map(|rope| self.rotation(rope, tokens.len())).transpose()?;
        let mut x = (self.embedding.index_select(&ids, 0)? * f64::from(config.embedding_scale))?;
        for layer in &self.layers {
            let rotation = match layer.rope {
                LayerRope::Unturned => None,
                LayerRope::Global => Some(&global),
                LayerRope::Local => local.as_ref(),
            };
            let attended = self.attention(layer, &self.norm(&x, &layer.attention_norm)?, rotation)?;
            x = (x + self.post_norm(attended, layer.post_attention_norm.as_ref())?)?;
            let fed = self.feed_forward(&layer.feed_forward, &self.norm(&x, &layer.ffn_norm)?)?;
            x = (x + self.post_norm(fed, layer.post_ffn_norm.as_ref())?)?;
        }
        let logits = self.norm(&x, &self.final_norm)?.matmul(&self.lm_head.t()?)?;
        capped(logits, config.logit_cap)
    }

    /// `x / sqrt(mean(x²) + eps) * weight`, over the last axis.
    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let root = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(self.config.norm_eps))?.sqrt()?;
        x.broadcast_div(&root)?.broadcast_mul(weight)
    }

    /// What a half of a layer adds, for families that norm it.
    fn post_norm(&self, x: Tensor, weight: Option<&Tensor>) -> Result<Tensor> {
        weight.map_or(Ok(x.clone()), |weight| self.norm(&x, weight))
    }

    fn attention(&self, layer: &Layer, x: &Tensor, rotation: Option<&Rotation>) -> Result<Tensor> {
        let config = &self.config;
        let length = x.dim(0)?;
        // [tokens, heads * dim] to [heads, tokens, dim].
        let heads = |t: Tensor, n: usize| t.reshape((length, n, config.head_dim))?.transpose(0, 1)?.contiguous();
        let mut q = heads(layer.q.apply(x)?, config.heads)?;
        let mut k = heads(layer.k.apply(x)?, config.kv_heads)?;
        if let Some((q_norm, k_norm)) = &layer.qk_norm {
            (q, k) = (self.norm(&q, q_norm)?, self.norm(&k, k_norm)?);
        }
        if let Some(rotation) = rotation {
            (q, k) = (rotation.turn(&q)?, rotation.turn(&k)?);
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
        let scale = 1.0 / config.query_scalar.sqrt();
        let scores = (q.matmul(&repeat(k)?.transpose(1, 2)?.contiguous()?)? * scale)?;
        let mut scores = capped(scores, config.score_cap)?.broadcast_add(&mask(length, layer.window)?)?;
        if let Some(sinks) = &layer.sinks {
            scores = Tensor::cat(&[scores, sinks.broadcast_as((config.heads, length, 1))?], D::Minus1)?;
        }
        let exponentials = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let shares = exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)?;
        // A sink takes a share and has nothing to mix.
        let mixed = shares.narrow(D::Minus1, 0, length)?.contiguous()?.matmul(&repeat(v)?.contiguous()?)?;
        layer.output.apply(&mixed.transpose(0, 1)?.reshape((length, config.q_width()))?)
    }

    fn feed_forward(&self, feed_forward: &FeedForward, x: &Tensor) -> Result<Tensor> {
        match feed_forward {
            FeedForward::Dense(gated) => gated.apply(x, self.config.activation),
            FeedForward::Experts { config, router, experts } => {
                let shares = shares(&router.apply(x)?, config.chosen)?;
                let mut sum = x.zeros_like()?;
                for (i, expert) in experts.iter().enumerate() {
                    let made = expert.apply(x, self.config.activation)?;
                    sum = (sum + made.broadcast_mul(&shares.narrow(1, i, 1)?)?)?;
                }
                Ok(sum)
            }
        }
    }

    /// Cosine and sine of position times frequency, times the attention factor.
    fn rotation(&self, rope: &RopeConfig, length: usize) -> Result<Rotation> {
        let frequencies = rope.inverse_frequencies(self.config.rotary_dim);
        let factor = rope.attention_factor();
        let angles: Vec<f32> =
            (0..length).flat_map(|position| frequencies.iter().map(move |f| position as f32 * f)).collect();
        let angles = Tensor::from_vec(angles, (length, frequencies.len()), &Device::Cpu)?;
        Ok(Rotation { cos: (angles.cos()? * factor)?, sin: (angles.sin()? * factor)? })
    }
}

impl Layer {
    fn new(config: &DecoderConfig, layer: &LayerConfig, w: &LayerWeights<'_>) -> Result<Self> {
        let (hidden, q, kv) = (config.hidden, config.q_width(), config.kv_width());
        Ok(Self {
            attention_norm: vector(w.attention_norm)?,
            q: Linear::new(w.q.values(), w.q_bias, q, hidden)?,
            k: Linear::new(w.k.values(), w.k_bias, kv, hidden)?,
            v: Linear::new(w.v.values(), w.v_bias, kv, hidden)?,
            qk_norm: w.q_norm.zip(w.k_norm).map(|(q, k)| Ok::<_, Error>((vector(q)?, vector(k)?))).transpose()?,
            sinks: w.sinks.map(|sinks| vector(sinks)?.reshape((config.heads, 1, 1))).transpose()?,
            output: Linear::new(w.output.values(), w.output_bias, hidden, q)?,
            post_attention_norm: w.post_attention_norm.map(vector).transpose()?,
            ffn_norm: vector(w.ffn_norm)?,
            feed_forward: FeedForward::new(config, w)?,
            post_ffn_norm: w.post_ffn_norm.map(vector).transpose()?,
            rope: layer.rope,
            window: layer.window,
        })
    }
}

impl FeedForward {
    fn new(config: &DecoderConfig, w: &LayerWeights<'_>) -> Result<Self> {
        let (hidden, ffn) = (config.hidden, config.ffn);
        // Expert `i` of tensors that begin with the dimension of experts.
        let linear = |i: usize, weight: &[f32], bias: Option<&[f32]>, out: usize, input: usize| {
            Linear::new(&weight[i * out * input..][..out * input], bias.map(|bias| &bias[i * out..][..out]), out, input)
        };
        let gated = |i: usize| {
            Ok::<_, Error>(Gated {
                gate: linear(i, w.gate.values(), w.gate_bias, ffn, hidden)?,
                up: linear(i, w.up.values(), w.up_bias, ffn, hidden)?,
                down: linear(i, w.down.values(), w.down_bias, hidden, ffn)?,
            })
        };
        match config.experts.zip(w.router) {
            None => Ok(Self::Dense(gated(0)?)),
            Some((experts, router)) => Ok(Self::Experts {
                config: experts,
                router: Linear::new(router.values(), w.router_bias, experts.count, hidden)?,
                experts: (0..experts.count).map(gated).collect::<Result<_>>()?,
            }),
        }
    }
}

impl Gated {
    fn apply(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let (gate, up) = (self.gate.apply(x)?, self.up.apply(x)?);
        let gated = match activation {
            Activation::Silu => (gate.silu()? * up)?,
            // candle's `gelu` is the approximation by tanh.
            Activation::GeluTanh => (gate.gelu()? * up)?,
            Activation::ClampedSwiglu { alpha, limit } => {
                let (gate, up) = (gate.minimum(limit)?, up.clamp(-limit, limit)?);
                let sigmoid = ((&gate * f64::from(-alpha))?.exp()? + 1.0)?.recip()?;
                ((gate * sigmoid)? * (up + 1.0)?)?
            }
        };
        self.down.apply(&gated)
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

impl Rotation {
    /// Turns element i with element i + half, where half is the width of `cos`, for `[heads, tokens, dim]`; elements from 2 half on stay.
    fn turn(&self, x: &Tensor) -> Result<Tensor> {
        let Self { cos, sin } = self;
        let (half, dim) = (cos.dim(D::Minus1)?, x.dim(D::Minus1)?);
        let (low, high) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
        let turned_low = (low.broadcast_mul(cos)? - high.broadcast_mul(sin)?)?;
        let turned_high = (high.broadcast_mul(cos)? + low.broadcast_mul(sin)?)?;
        if dim == 2 * half {
            return Tensor::cat(&[turned_low, turned_high], D::Minus1);
        }
        Tensor::cat(&[turned_low, turned_high, x.narrow(D::Minus1, 2 * half, dim - 2 * half)?], D::Minus1)
    }
}

/// `cap * tanh(x / cap)`.
fn capped(x: Tensor, cap: Option<f32>) -> Result<Tensor> {
    let Some(cap) = cap.map(f64::from) else { return Ok(x) };
    (x / cap)?.tanh()? * cap
}

/// The softmax over the `chosen` largest logits of each token, 0 for the others, `[tokens, experts]`.
fn shares(logits: &Tensor, chosen: usize) -> Result<Tensor> {
    let (tokens, experts) = logits.dims2()?;
    let mut all = vec![0.0_f32; tokens * experts];
    for (logits, shares) in logits.to_vec2::<f32>()?.iter().zip(all.chunks_exact_mut(experts)) {
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        let largest = logits[order[0]];
        let total: f32 = order[..chosen].iter().map(|i| (logits[*i] - largest).exp()).sum();
        for i in &order[..chosen] {
            shares[*i] = (logits[*i] - largest).exp() / total;
        }
    }
    Tensor::from_vec(all, (tokens, experts), &Device::Cpu)
}

/// 0 where a query (row) sees a key (column), negative infinity elsewhere.
fn mask(length: usize, window: Option<u32>) -> Result<Tensor> {
    let sees = |query: usize, key: usize| key <= query && window.is_none_or(|w| query - key < w as usize);
    let values: Vec<f32> = (0..length)
        .flat_map(|query| (0..length).map(move |key| if sees(query, key) { 0.0 } else { f32::NEG_INFINITY }))
        .collect();
    Tensor::from_vec(values, (length, length), &Device::Cpu)
}
