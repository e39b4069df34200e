//! What rounded weights, keys and values cost in perplexity, on dialogues that Pebble goes on with in f32.
//!
//! `cargo test -p holdfast-backend-neuron --test precision -- --nocapture` prints the figures.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use holdfast_backend::Backend;
use holdfast_backend::conformance::PlanBuilder;
use holdfast_backend_neuron::{KvFormat, KvSize, NeuronDevice, NeuronSettings, WeightFormat};
use holdfast_model::{Model, ModelSource};
use holdfast_types::{LateInputs, OutputRequest, Precision, SamplingParams, SlotSampling};

/// What users begin with; one dialogue each.
const SAID: [&str; 8] = [
    "Hello!",
    "My locker code is 4471.",
    "Remember that my gate number is 82.",
    "What is my badge number?",
    "Please note: my desk code is 7305.",
    "What can you do?",
    "Thanks, that helps.",
    "Can you tell me how long the warranty lasts?",
];
const SEQUENCES: u32 = SAID.len() as u32;
const TOKENS: u32 = 320;
const BLOCKS: u32 = TOKENS / 16;

fn device(model: &Model, weights: WeightFormat, kv_format: Option<KvFormat>) -> NeuronDevice {
    let settings = NeuronSettings {
        threads: 2,
        kv: KvSize::Blocks(SEQUENCES * BLOCKS),
        slots: SEQUENCES,
        max_step_rows: SEQUENCES * TOKENS,
        weights,
        kv_format,
        ..NeuronSettings::default()
    };
    NeuronDevice::new(model.config(), model.weights(), &settings).unwrap()
}

fn opened() -> PlanBuilder {
    (0..SEQUENCES).fold(PlanBuilder::new(1), |plan, slot| {
        let params = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
        let sampling = SlotSampling { params, seed: u64::from(slot), context: Vec::new(), sampled: Vec::new() };
        plan.open(slot, sampling).table(slot, 0, 0, &(slot * BLOCKS..(slot + 1) * BLOCKS).collect::<Vec<_>>())
    })
}

/// A user's words, and the opening of the answer.
fn prompt(model: &Model, said: &str) -> Vec<u32> {
    let text = model.text();
    let mark = |name| (0..text.vocab_size()).find(|id| text.special_text(*id) == Some(name)).unwrap();
    let (start, end) = (mark("<|im_start|>"), mark("<|im_end|>"));
    let user = text.encode(&format!("user\n{said}"));
    let parts = [vec![start], user, vec![end], text.encode("\n"), vec![start], text.encode("assistant\n")];
    parts.concat()
}

/// Dialogues that f32 draws to their end.
fn written(model: &Model, prompts: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let mut device = device(model, WeightFormat::F32, None);
    let mut sequences = prompts.to_vec();
    let mut computed = vec![0; sequences.len()];
    let mut plan = opened();
    for step in 2.. {
        for (slot, tokens) in (0..).zip(&sequences).filter(|(_, tokens)| tokens.len() < TOKENS as usize) {
            let rows = &tokens[computed[slot as usize]..];
            plan = plan.rows(slot, computed[slot as usize] as u32, rows, Precision::Native);
            plan = plan.want(rows.len() as u32 - 1, OutputRequest::Sample);
            computed[slot as usize] = tokens.len();
        }
        let ticket = device.submit(&plan.build()).unwrap();
        let outputs = device.collect(ticket, &LateInputs::default()).unwrap().sequences;
        if outputs.is_empty() {
            return sequences;
        }
        for output in outputs {
            sequences[output.slot.0 as usize].push(output.samples[0].id);
        }
        plan = PlanBuilder::new(step);
    }
    sequences
}

/// e to the mean negative log probability of every token that was drawn.
fn perplexity(
    model: &Model,
    weights: WeightFormat,
    kv_format: Option<KvFormat>,
    precision: Precision,
    prompts: &[Vec<u32>],
    sequences: &[Vec<u32>],
) -> f64 {
    let mut device = device(model, weights, kv_format);
    let mut plan = opened();
    let mut drawn = 0;
    for ((slot, tokens), prompt) in (0..).zip(sequences).zip(prompts) {
        plan = plan.rows(slot, 0, tokens, precision);
        drawn += tokens.len() - prompt.len();
        for row in prompt.len() as u32 - 1..TOKENS - 1 {
            plan = plan.want(row, OutputRequest::Logits);
        }
    }
    let ticket = device.submit(&plan.build()).unwrap();
    let output = device.collect(ticket, &LateInputs::default()).unwrap();
    let mut surprise = 0.0;
    for (tokens, output) in sequences.iter().zip(&output.sequences) {
        for (row, logits) in &output.logits {
            let total: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
            surprise += total.ln() - f64::from(logits[tokens[*row as usize + 1] as usize]);
        }
    }
    (surprise / drawn as f64).exp()
}

#[test]
fn eight_bits_cost_less_than_a_percent_of_perplexity() {
    let model = Model::load(&ModelSource::resolve(ModelSource::BUILT_IN[0]).unwrap()).unwrap();
    let prompts = SAID.map(|said| prompt(&model, said));
    let sequences = written(&model, &prompts);
    let of = |weights, precision| perplexity(&model, weights, None, precision, &prompts, &sequences);
    let with_kv = |kv| perplexity(&model, WeightFormat::F32, Some(kv), Precision::Native, &prompts, &sequences);
    let f32 = of(WeightFormat::F32, Precision::Native);
    let bf16 = of(WeightFormat::Bf16, Precision::Native);
    let [kv_bf16, kv_int8] = [KvFormat::Bf16, KvFormat::Int8].map(with_kv);
    let [int8, int4] = [Precision::Int8, Precision::Int4].map(|precision| of(WeightFormat::Nested, precision));
    println!(
        "perplexity: f32 {f32:.4}, bf16 {:+.3}%, 8 bits {:+.3}%, 4 bits {:+.2}%",
        (bf16 / f32 - 1.0) * 100.0,
        (int8 / f32 - 1.0) * 100.0,
        (int4 / f32 - 1.0) * 100.0
    );
    println!(
        "with f32 weights: keys and values in bf16 {:+.3}%, in int8 {:+.3}%",
        (kv_bf16 / f32 - 1.0) * 100.0,
        (kv_int8 / f32 - 1.0) * 100.0
    );
    assert!((kv_bf16 / f32 - 1.0).abs() < 0.002, "{kv_bf16} of {f32}");
    assert!((kv_int8 / f32 - 1.0).abs() < 0.005, "{kv_int8} of {f32}");
    assert!((bf16 / f32 - 1.0).abs() < 0.002, "{bf16} of {f32}");
    assert!((int8 / f32 - 1.0).abs() < 0.01, "{int8} of {f32}");
    assert!(int4 < 2.0 * f32, "{int4} of {f32}");
}
