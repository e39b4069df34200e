//! What nested weights cost in perplexity, on text that Pebble writes itself in f32.
//!
//! `cargo test -p holdfast-backend-neuron --test precision -- --nocapture` prints the figures.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use holdfast_backend::Backend;
use holdfast_backend::conformance::PlanBuilder;
use holdfast_backend_neuron::{KvSize, NeuronDevice, NeuronSettings, WeightFormat};
use holdfast_model::{Model, ModelSource};
use holdfast_types::{LateInputs, OutputRequest, Precision, SamplingParams, SlotSampling};

const SEQUENCES: u32 = 8;
const TOKENS: u32 = 160;
const BLOCKS: u32 = TOKENS / 16;

fn device(model: &Model, weights: WeightFormat) -> NeuronDevice {
    let settings = NeuronSettings {
        threads: 2,
        kv: KvSize::Blocks(SEQUENCES * BLOCKS),
        slots: SEQUENCES,
        max_step_rows: SEQUENCES * TOKENS,
        weights,
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

/// Sequences that f32 draws.
fn written(model: &Model) -> Vec<Vec<u32>> {
    let mut device = device(model, WeightFormat::F32);
    let mut sequences: Vec<Vec<u32>> = (0..SEQUENCES).map(|slot| vec![40 + 3 * slot]).collect();
    let mut plan = opened();
    for position in 0..TOKENS - 1 {
        for (slot, tokens) in (0..).zip(&sequences) {
            let last = &tokens[position as usize..];
            plan = plan.rows(slot, position, last, Precision::Native).want(0, OutputRequest::Sample);
        }
        let ticket = device.submit(&plan.build()).unwrap();
        for (tokens, output) in
            sequences.iter_mut().zip(device.collect(ticket, &LateInputs::default()).unwrap().sequences)
        {
            tokens.push(output.samples[0].id);
        }
        plan = PlanBuilder::new(u64::from(position) + 2);
    }
    sequences
}

/// e to the mean negative log probability of every token behind the first.
fn perplexity(model: &Model, weights: WeightFormat, precision: Precision, sequences: &[Vec<u32>]) -> f64 {
    let mut device = device(model, weights);
    let mut plan = opened();
    for (slot, tokens) in (0..).zip(sequences) {
        plan = plan.rows(slot, 0, tokens, precision);
        for row in 0..TOKENS - 1 {
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
    (surprise / f64::from(SEQUENCES * (TOKENS - 1))).exp()
}

#[test]
fn eight_bits_cost_less_than_half_a_percent_of_perplexity() {
    let model = Model::load(&ModelSource::resolve(ModelSource::BUILT_IN[0]).unwrap()).unwrap();
    let sequences = written(&model);
    let of = |weights, precision| perplexity(&model, weights, precision, &sequences);
    let f32 = of(WeightFormat::F32, Precision::Native);
    let [int8, int4] = [Precision::Int8, Precision::Int4].map(|precision| of(WeightFormat::Nested, precision));
    println!(
        "perplexity: f32 {f32:.4}, 8 bits {:+.3}%, 4 bits {:+.2}%",
        (int8 / f32 - 1.0) * 100.0,
        (int4 / f32 - 1.0) * 100.0
    );
    assert!((int8 / f32 - 1.0).abs() < 0.005, "{int8} of {f32}");
    assert!(int4 < 2.0 * f32, "{int4} of {f32}");
}
