//! The tensors of a shape: names in both worlds, sizes, and the order of rows in GGUF.
//!
//! In: a [`Shape`]. Out: its [`Tensor`]s. Names and permutation in GGUF are those of llama.cpp's `convert_hf_to_gguf.py`.
//! Deliberately not here: their values.

use holdfast_model::{RopeConfig, RopeScaling};

use crate::{Family, Shape};

/// One tensor, row-major. A vector is one row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tensor {
    /// In safetensors; also what its values are drawn by.
    pub(crate) name: String,
    /// In GGUF.
    pub(crate) gguf_name: String,
    pub(crate) rows: usize,
    pub(crate) width: usize,
    pub(crate) role: Role,
}

/// What a tensor is for, as far as values and order depend on it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Role {
    /// An embedding that is not the output matrix.
    Embedding,
    /// Makes the logits.
    Output,
    /// Weights of a norm: a vector.
    Norm,
    /// Weights of the norm before the output matrix.
    FinalNorm,
    /// Weights of the norm on the heads of Q or of K.
    HeadNorm,
    /// Any other matrix.
    Matrix,
    /// Q or K without such a norm; GGUF permutes the rows of each head.
    Rotary { head_dim: usize },
    /// A vector that follows from the shape.
    Given(Vec<f32>),
}

/// The tensors of a safetensors file.
pub(crate) fn tensors(shape: &Shape) -> Vec<Tensor> {
    let (hidden, vocab) = (shape.hidden, shape.vocab_size as usize);
    let tensor = |name: String, gguf_name: String, rows, width, role| Tensor { name, gguf_name, rows, width, role };
    let top = |name: &str, gguf_name: &str, rows, role| tensor(name.into(), gguf_name.into(), rows, hidden, role);
    let embedding = if shape.tied { Role::Output } else { Role::Embedding };
    let mut all = vec![top("model.embed_tokens.weight", "token_embd.weight", vocab, embedding)];
    let rotary = match shape.family {
        Family::Llama => Role::Rotary { head_dim: shape.head_dim },
        Family::Qwen3 => Role::Matrix,
    };
    let (q, kv, ffn) = (shape.q_width(), shape.kv_width(), shape.ffn);
    for layer in 0..shape.layers {
        let mut part = |name: &str, gguf_name: &str, rows, width, role| {
            let name = format!("model.layers.{layer}.{name}.weight");
            all.push(tensor(name, format!("blk.{layer}.{gguf_name}.weight"), rows, width, role));
        };
        part("input_layernorm", "attn_norm", 1, hidden, Role::Norm);
        part("self_attn.q_proj", "attn_q", q, hidden, rotary.clone());
        part("self_attn.k_proj", "attn_k", kv, hidden, rotary.clone());
        part("self_attn.v_proj", "attn_v", kv, hidden, Role::Matrix);
        part("self_attn.o_proj", "attn_output", hidden, q, Role::Matrix);
        if shape.family == Family::Qwen3 {
            part("self_attn.q_norm", "attn_q_norm", 1, shape.head_dim, Role::HeadNorm);
            part("self_attn.k_norm", "attn_k_norm", 1, shape.head_dim, Role::HeadNorm);
        }
        part("post_attention_layernorm", "ffn_norm", 1, hidden, Role::Norm);
        part("mlp.gate_proj", "ffn_gate", ffn, hidden, Role::Matrix);
        part("mlp.up_proj", "ffn_up", ffn, hidden, Role::Matrix);
        part("mlp.down_proj", "ffn_down", hidden, ffn, Role::Matrix);
    }
    all.push(top("model.norm.weight", "output_norm.weight", 1, Role::FinalNorm));
    if !shape.tied {
        all.push(top("lm_head.weight", "output.weight", vocab, Role::Output));
    }
    all
}

/// The tensors of a GGUF file: stretched rotary frequencies are a tensor there, not metadata.
pub(crate) fn gguf_tensors(shape: &Shape) -> Vec<Tensor> {
    let mut all = tensors(shape);
    if shape.rope.scaling != RopeScaling::None {
        let frequencies = |scaling| RopeConfig { scaling, ..shape.rope.clone() }.inverse_frequencies(shape.head_dim);
        let (plain, scaled) = (frequencies(RopeScaling::None), frequencies(shape.rope.scaling.clone()));
        let factors: Vec<f32> = plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled).collect();
        let name = "rope_freqs.weight".to_owned();
        let (gguf_name, width) = (name.clone(), factors.len());
        all.push(Tensor { name, gguf_name, rows: 1, width, role: Role::Given(factors) });
    }
    all
}

impl Tensor {
    pub(crate) fn elements(&self) -> u64 {
        self.rows as u64 * self.width as u64
    }

    pub(crate) fn bf16_bytes(&self) -> u64 {
        2 * self.elements()
    }

    /// Row-major, `[out, in]` for matrices.
    pub(crate) fn dimensions(&self) -> Vec<usize> {
        if self.is_vector() { vec![self.width] } else { vec![self.rows, self.width] }
    }

    pub(crate) fn is_vector(&self) -> bool {
        matches!(self.role, Role::Norm | Role::FinalNorm | Role::HeadNorm | Role::Given(_))
    }

    /// The row here that is row `row` in GGUF. llama.cpp turns elements 2i and 2i + 1 of a Llama head together, where this
    /// file's order turns i and i + dim / 2.
    pub(crate) fn row_of_gguf(&self, row: usize) -> usize {
        match self.role {
            Role::Rotary { head_dim } => {
                let (head, element) = (row / head_dim, row % head_dim);
                head * head_dim + element % 2 * (head_dim / 2) + element / 2
            }
            _ => row,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use holdfast_model::DecoderConfig;

    use super::*;
    use crate::SHAPES;

    #[test]
    fn llama_tensors_are_those_that_the_loader_asks_for() {
        for shape in SHAPES.iter().filter(|shape| shape.family == Family::Llama) {
            let config = DecoderConfig::parse(&shape.config().to_string(), Path::new("config.json")).unwrap();
            assert_eq!(config.rope, shape.rope);
            let mut asked: Vec<_> = config.tensors().into_iter().map(|spec| (spec.name, spec.shape)).collect();
            let mut made: Vec<_> = tensors(shape).into_iter().map(|t| (t.name.clone(), t.dimensions())).collect();
            asked.sort();
            made.sort();
            assert_eq!(asked, made, "{}", shape.name);
        }
    }

    #[test]
    fn the_permutation_pairs_what_rotary_embedding_turns_together() {
        let role = Role::Rotary { head_dim: 8 };
        let tensor = Tensor { name: String::new(), gguf_name: String::new(), rows: 16, width: 1, role };
        let rows: Vec<_> = (0..16).map(|row| tensor.row_of_gguf(row)).collect();
        assert_eq!(rows, [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]);
    }

    #[test]
    fn stretched_frequencies_become_divisors() {
        let shape = Shape::named("llama-8b").unwrap();
        let all = gguf_tensors(shape);
        let Some(Tensor { role: Role::Given(factors), gguf_name, .. }) = all.last() else { panic!("no factors") };
        assert_eq!((gguf_name.as_str(), factors.len()), ("rope_freqs.weight", 64));
        assert_eq!((factors[0], factors[63]), (1.0, 8.0));
        assert!(factors.windows(2).all(|pair| pair[0] <= pair[1]) && factors.iter().any(|f| (1.5..7.5).contains(f)));
    }
}
