//! What rounded weights, keys and values cost in perplexity, on dialogues that Pebble was not trained on.
//!
//! `cargo test -p holdfast-backend-neuron --test precision -- --nocapture` prints the figures.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use holdfast_backend::Backend;
use holdfast_backend::conformance::PlanBuilder;
use holdfast_backend_neuron::{KvFormat, KvSize, NeuronDevice, NeuronSettings, WeightFormat};
use holdfast_model::{Model, ModelSource};
use holdfast_types::{LateInputs, OutputRequest, Precision, SamplingParams, SlotSampling};
use serde::Deserialize;

const SEQUENCES: u32 = 24;
const TOKENS: u32 = 512;
const BLOCKS: u32 = TOKENS / 16;

/// A dialogue that `tools/pebble` wrote with names, numbers and words that training never showed.
#[derive(Deserialize)]
struct Dialogue {
    ids: Vec<u32>,
    /// Which of the tokens Pebble says.
    spoken: Vec<u32>,
}

fn held_out() -> Vec<Dialogue> {
    let dialogues: Vec<Dialogue> = serde_json::from_str(include_str!("held_out_dialogues.json")).unwrap();
    assert_eq!(dialogues.len(), SEQUENCES as usize);
    assert!(dialogues.iter().all(|dialogue| dialogue.ids.len() == TOKENS as usize));
    dialogues
}

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

/// e to the mean negative log probability: of what Pebble says, and of every token.
fn perplexities(
    model: &Model,
    weights: WeightFormat,
    kv_format: Option<KvFormat>,
    precision: Precision,
    dialogues: &[Dialogue],
) -> [f64; 2] {
    let mut device = device(model, weights, kv_format);
    let mut plan = opened();
    for (slot, dialogue) in (0..).zip(dialogues) {
        plan = plan.rows(slot, 0, &dialogue.ids, precision);
        for row in 0..TOKENS - 1 {
            plan = plan.want(row, OutputRequest::Logits);
        }
    }
    let ticket = device.submit(&plan.build()).unwrap();
    let output = device.collect(ticket, &LateInputs::default()).unwrap();
    let (mut spoken, mut all) = (Mean::default(), Mean::default());
    for (dialogue, output) in dialogues.iter().zip(&output.sequences) {
        for (row, logits) in &output.logits {
            let next = row + 1;
            let total: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
            let surprise = total.ln() - f64::from(logits[dialogue.ids[next as usize] as usize]);
            all.add(surprise);
            if dialogue.spoken.binary_search(&next).is_ok() {
                spoken.add(surprise);
            }
        }
    }
    [spoken, all].map(|mean| (mean.sum / f64::from(mean.count)).exp())
}

#[derive(Default)]
struct Mean {
    sum: f64,
    count: u32,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }
}

#[test]
fn eight_bits_cost_less_than_half_a_percent_of_perplexity() {
    let model = Model::load(&ModelSource::resolve(ModelSource::BUILT_IN[0]).unwrap()).unwrap();
    let dialogues = held_out();
    let of = |weights, kv, precision| perplexities(&model, weights, kv, precision, &dialogues);
    let exact = of(WeightFormat::F32, None, Precision::Native);
    let costs = [
        ("weights in bf16", 0.002, of(WeightFormat::Bf16, None, Precision::Native)),
        ("weights at 8 bits", 0.005, of(WeightFormat::Nested, None, Precision::Int8)),
        ("weights at 4 bits", 0.5, of(WeightFormat::Nested, None, Precision::Int4)),
        ("keys and values in bf16", 0.002, of(WeightFormat::F32, Some(KvFormat::Bf16), Precision::Native)),
        ("keys and values in int8", 0.005, of(WeightFormat::F32, Some(KvFormat::Int8), Precision::Native)),
    ];
    for (at, text) in ["what Pebble says", "every token"].into_iter().enumerate() {
        println!("perplexity of {text} in f32: {:.4}", exact[at]);
        for (what, _, found) in &costs {
            println!("    {what}: {:+.3}%", (found[at] / exact[at] - 1.0) * 100.0);
        }
    }
    for (what, most, found) in costs {
        for (found, exact) in found.into_iter().zip(exact) {
            assert!((found / exact - 1.0).abs() < most, "{what}: {found} of {exact}");
        }
    }
}
