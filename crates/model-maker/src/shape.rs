//! The table of shapes: what models look like, as data.
//!
//! In: a name. Out: a [`Shape`], its `config.json`, and whether every format can hold it. Deliberately not here: the tensors
//! that follow from it.

use holdfast_model::{RopeConfig, RopeScaling};
use serde_json::{Value, json};

use crate::tensors::{Tensor, tensors};
use crate::{MakeError, tokenizer};

/// Elements that GGUF's quantised types scale together; rows of matrices are multiples of it.
const BLOCK: usize = 32;

/// What a model looks like. The table is [`SHAPES`]; any other value is as good if it passes the checks of
/// [`make`](crate::make()).
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// As on the command line, and in the files' metadata.
    pub name: &'static str,
    /// Which family's conventions the files follow.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of one head; even.
    pub head_dim: usize,
    /// Width of the feed-forward.
    pub ffn: usize,
    /// Rows of the embedding, all of them tokens with text.
    pub vocab_size: u32,
    /// Most positions.
    pub context_limit: u32,
    /// Rotary embedding; Qwen3 knows no scaling.
    pub rope: RopeConfig,
    /// Added to the mean square before the root.
    pub norm_eps: f64,
    /// The output matrix is the embedding.
    pub tied: bool,
}

/// A family of decoders, by what distinguishes its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `LlamaForCausalLM`; in GGUF, rows of Q and K are permuted for rotary embedding in adjacent pairs.
    Llama,
    /// `Qwen3ForCausalLM`: norms on the heads of Q and K; nothing is permuted.
    Qwen3,
}

/// Every shape with a name.
pub static SHAPES: &[Shape] = &[
    Shape {
        name: "micro",
        family: Family::Llama,
        hidden: 64,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        ffn: 128,
        vocab_size: 512,
        context_limit: 2_048,
        rope: RopeConfig { theta: 10_000.0, scaling: RopeScaling::None },
        norm_eps: 1e-5,
        tied: true,
    },
    Shape {
        name: "micro-qwen3",
        family: Family::Qwen3,
        hidden: 64,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        // Not hidden / heads, as in the real ones.
        head_dim: 32,
        ffn: 128,
        vocab_size: 512,
        context_limit: 2_048,
        rope: RopeConfig { theta: 1e6, scaling: RopeScaling::None },
        norm_eps: 1e-6,
        tied: true,
    },
    Shape {
        name: "llama-22m",
        family: Family::Llama,
        hidden: 384,
        layers: 6,
        heads: 6,
        kv_heads: 2,
        head_dim: 64,
        ffn: 1_024,
        vocab_size: 32_000,
        context_limit: 16_384,
        rope: RopeConfig { theta: 500_000.0, scaling: RopeScaling::None },
        norm_eps: 1e-5,
        tied: true,
    },
    Shape {
        name: "llama-0.3b",
        family: Family::Llama,
        hidden: 1_024,
        layers: 24,
        heads: 16,
        kv_heads: 4,
        head_dim: 64,
        ffn: 3_072,
        vocab_size: 32_000,
        context_limit: 16_384,
        rope: RopeConfig { theta: 500_000.0, scaling: RopeScaling::None },
        norm_eps: 1e-5,
        tied: true,
    },
    Shape {
        name: "llama-1b",
        family: Family::Llama,
        hidden: 2_048,
        layers: 16,
        heads: 32,
        kv_heads: 8,
        head_dim: 64,
        ffn: 8_192,
        vocab_size: 32_000,
        context_limit: 16_384,
        rope: RopeConfig { theta: 500_000.0, scaling: RopeScaling::None },
        norm_eps: 1e-5,
        tied: true,
    },
    // As in the config.json of Qwen3-0.6B.
    Shape {
        name: "qwen3-0.6b",
        family: Family::Qwen3,
        hidden: 1_024,
        layers: 28,
        heads: 16,
        kv_heads: 8,
        head_dim: 128,
        ffn: 3_072,
        vocab_size: 151_936,
        context_limit: 40_960,
        rope: RopeConfig { theta: 1e6, scaling: RopeScaling::None },
        norm_eps: 1e-6,
        tied: true,
    },
    // As in the config.json of Llama 3.1 8B.
    Shape {
        name: "llama-8b",
        family: Family::Llama,
        hidden: 4_096,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        ffn: 14_336,
        vocab_size: 128_256,
        context_limit: 131_072,
        rope: RopeConfig {
            theta: 500_000.0,
            scaling: RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_context: 8_192.0,
            },
        },
        norm_eps: 1e-5,
        tied: false,
    },
];

impl Shape {
    /// The shape with this name.
    ///
    /// # Errors
    /// [`MakeError::UnknownShape`], which lists the known ones.
    pub fn named(name: &str) -> Result<&'static Self, MakeError> {
        SHAPES.iter().find(|shape| shape.name == name).ok_or_else(|| MakeError::UnknownShape {
            name: name.to_owned(),
            known: SHAPES.iter().map(|shape| shape.name).collect::<Vec<_>>().join(", "),
        })
    }

    /// Number of weights; a tied output matrix is counted once.
    pub fn parameters(&self) -> u64 {
        tensors(self).iter().map(Tensor::elements).sum()
    }

    /// Elements of all query heads.
    pub(crate) fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Elements of all key heads, and of all value heads.
    pub(crate) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Refuses what some format could not hold.
    pub(crate) fn check(&self) -> Result<(), MakeError> {
        let wrong = |problem: String| Err(MakeError::Shape { name: self.name.to_owned(), problem });
        for (part, width) in [("hidden", self.hidden), ("heads * head_dim", self.q_width()), ("ffn", self.ffn)] {
            if width == 0 || !width.is_multiple_of(BLOCK) {
                return wrong(format!("{part} is {width}, expected a multiple of {BLOCK}"));
            }
        }
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return wrong(format!("{} key heads do not divide {} heads", self.kv_heads, self.heads));
        }
        if !self.head_dim.is_multiple_of(2) {
            return wrong(format!("head_dim {} is odd; rotary embedding turns pairs", self.head_dim));
        }
        if !tokenizer::SIZES.contains(&self.vocab_size) {
            return wrong(format!("vocab_size is {}, expected {:?}", self.vocab_size, tokenizer::SIZES));
        }
        match (&self.rope.scaling, self.family) {
            (RopeScaling::None, _) | (RopeScaling::Llama3 { .. }, Family::Llama) => Ok(()),
            (scaling, family) => wrong(format!("{family:?} models are not written with {scaling:?}")),
        }
    }

    /// The `config.json`.
    pub(crate) fn config(&self) -> Value {
        let (architecture, model_type) = match self.family {
            Family::Llama => ("LlamaForCausalLM", "llama"),
            Family::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
        };
        let rope_scaling = match self.rope.scaling {
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor, "original_max_position_embeddings": original_context as u64,
            }),
            _ => Value::Null,
        };
        let mut config = json!({
            "architectures": [architecture], "model_type": model_type, "torch_dtype": "bfloat16", "hidden_act": "silu",
            "hidden_size": self.hidden, "intermediate_size": self.ffn, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "vocab_size": self.vocab_size, "max_position_embeddings": self.context_limit,
            "rms_norm_eps": self.norm_eps, "rope_theta": self.rope.theta, "rope_scaling": rope_scaling,
            "attention_bias": false, "tie_word_embeddings": self.tied,
            "bos_token_id": tokenizer::END_OF_TEXT, "eos_token_id": tokenizer::END_OF_TURN,
        });
        if self.family == Family::Llama {
            config["mlp_bias"] = json!(false);
        }
        config
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_shape_can_be_written_and_has_the_size_that_it_is_known_for() {
        let known = [
            ("micro", 106_816),
            ("micro-qwen3", 131_520),
            ("llama-22m", 21_730_176),
            ("llama-0.3b", 322_225_152),
            ("llama-1b", 1_038_682_112),
            // As published for both.
            ("qwen3-0.6b", 596_049_920),
            ("llama-8b", 8_030_261_248),
        ];
        assert_eq!(known.map(|(name, _)| name).as_slice(), SHAPES.iter().map(|s| s.name).collect::<Vec<_>>());
        for (shape, (_, parameters)) in SHAPES.iter().zip(known) {
            shape.check().unwrap();
            assert_eq!(shape.parameters(), parameters, "{}", shape.name);
        }
    }

    #[test]
    fn what_no_format_holds_is_refused_with_the_reason() {
        let micro = Shape::named("micro").unwrap();
        for (shape, word) in [
            (Shape { hidden: 48, ..micro.clone() }, "hidden"),
            (Shape { kv_heads: 3, ..micro.clone() }, "key heads"),
            (Shape { vocab_size: 100, ..micro.clone() }, "vocab_size"),
            (
                Shape {
                    rope: RopeConfig { theta: 1e4, scaling: RopeScaling::Linear { factor: 2.0 } },
                    ..micro.clone()
                },
                "Linear",
            ),
        ] {
            let text = shape.check().unwrap_err().to_string();
            assert!(text.contains(word), "{text}");
        }
        let text = Shape::named("llama-9b").unwrap_err().to_string();
        assert!(text.contains("llama-9b") && text.contains("llama-8b"), "{text}");
    }
}
