//! The reference forward beside an independent implementation: micro models of every family and their logits, for
//! `check.py` in this directory to compare with Hugging Face transformers. Run by hand:
//!
//! ```text
//! HOLDFAST_INDEPENDENT=/tmp/independent cargo test -p holdfast-model --test independent -- --ignored
//! python crates/model/tests/independent/check.py /tmp/independent      # needs torch and transformers
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::PathBuf;

use holdfast_model::Reference;
use holdfast_model::random::MicroFamily::{Gemma2, Gemma3, GptOss, Mistral, Phi3, Qwen2, Qwen3, SmolLm3};
use holdfast_model::random::{MICRO_LONG_ROPE_CONTEXT, MICRO_VOCABULARY, MicroRope, MicroShape};
use serde_json::json;

/// Longer than every window and than LongRoPE's first context.
const TOKENS: u32 = 100;

fn shapes() -> Vec<(&'static str, MicroShape)> {
    let micro = MicroShape { layers: 4, ..MicroShape::default() };
    let long = MicroShape { family: Phi3, rope: MicroRope::LongRope, tied: false, seed: 11, ..micro.clone() };
    let gpt_oss = MicroShape { family: GptOss, ..micro.clone() };
    vec![
        ("llama", micro.clone()),
        ("llama-biases", MicroShape { attention_bias: true, mlp_bias: true, tied: false, seed: 1, ..micro.clone() }),
        ("llama-3-rope", MicroShape { rope: MicroRope::Llama3, head_dim: 16, seed: 2, ..micro.clone() }),
        ("mistral", MicroShape { family: Mistral, head_dim: 12, tied: false, seed: 3, ..micro.clone() }),
        ("mistral-window", MicroShape { family: Mistral, window: Some(20), seed: 4, ..micro.clone() }),
        ("qwen2", MicroShape { family: Qwen2, seed: 5, ..micro.clone() }),
        ("qwen2-window", MicroShape { family: Qwen2, window: Some(9), seed: 6, ..micro.clone() }),
        ("qwen2-yarn", MicroShape { family: Qwen2, rope: MicroRope::Yarn, head_dim: 16, seed: 7, ..micro.clone() }),
        ("qwen3", MicroShape { family: Qwen3, head_dim: 20, tied: false, seed: 8, ..micro.clone() }),
        ("qwen3-yarn", MicroShape { family: Qwen3, rope: MicroRope::Yarn, window: Some(30), seed: 9, ..micro.clone() }),
        ("smollm3", MicroShape { family: SmolLm3, seed: 10, ..micro.clone() }),
        ("smollm3-window", MicroShape { family: SmolLm3, window: Some(17), seed: 12, ..micro.clone() }),
        ("phi3", MicroShape { family: Phi3, window: Some(33), seed: 13, ..micro.clone() }),
        ("phi3-part", MicroShape { family: Phi3, rotary_share: 0.75, seed: 14, ..micro.clone() }),
        ("phi3-long", long.clone()),
        ("phi3-short", MicroShape { context_limit: MICRO_LONG_ROPE_CONTEXT, ..long }),
        ("gemma2", MicroShape { family: Gemma2, window: Some(21), query_scalar: Some(13), seed: 15, ..micro.clone() }),
        ("gemma2-biases", MicroShape { family: Gemma2, attention_bias: true, head_dim: 12, seed: 16, ..micro.clone() }),
        (
            "gemma3",
            MicroShape {
                family: Gemma3,
                window: Some(19),
                query_scalar: Some(5),
                kv_heads: 1,
                seed: 17,
                ..micro.clone()
            },
        ),
        (
            "gemma3-linear",
            MicroShape {
                family: Gemma3,
                rope: MicroRope::Linear,
                window: Some(33),
                tied: false,
                seed: 18,
                ..micro.clone()
            },
        ),
        ("gpt-oss", MicroShape { rope: MicroRope::Yarn, window: Some(24), tied: false, seed: 19, ..gpt_oss.clone() }),
        ("gpt-oss-wide", MicroShape { rope: MicroRope::Yarn, head_dim: 16, experts: 9, seed: 20, ..gpt_oss.clone() }),
        (
            "gpt-oss-mxfp4",
            MicroShape { rope: MicroRope::Yarn, window: Some(8), packed: true, ffn: 64, seed: 21, ..gpt_oss },
        ),
    ]
}

#[test]
#[ignore = "writes files for check.py"]
fn write_models_and_logits() {
    let all = PathBuf::from(std::env::var("HOLDFAST_INDEPENDENT").expect("HOLDFAST_INDEPENDENT names a directory"));
    for (name, shape) in shapes() {
        let directory = all.join(name);
        fs::create_dir_all(&directory).unwrap();
        shape.write(&directory).unwrap();
        let tokens: Vec<u32> =
            (0..TOKENS.min(shape.context_limit)).map(|at| (at * at + 7 * at + 3) % MICRO_VOCABULARY).collect();
        let logits = Reference::new(&shape.build().unwrap()).unwrap().logits(&tokens).unwrap();
        fs::write(directory.join("logits.json"), json!({"tokens": tokens, "logits": logits}).to_string()).unwrap();
    }
}
