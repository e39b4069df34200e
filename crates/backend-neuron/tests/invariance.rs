//! The device against itself with other threads and instruction sets, and what it refuses beyond the shared suite.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use holdfast_backend::conformance::PlanBuilder;
use holdfast_backend::{Backend, BackendError, BlockCopy, CopyDirection};
use holdfast_backend_neuron::{Isa, KvFormat, KvSize, NeuronDevice, NeuronError, NeuronSettings, WeightFormat};
use holdfast_model::random::MicroFamily::{Gemma2, Gemma3, GptOss, Mistral, Phi3, Qwen2, Qwen3, SmolLm3};
use holdfast_model::random::{MicroDtype, MicroRope, MicroShape};
use holdfast_model::{Model, ModelSource};
use holdfast_types::Precision::{Int4, Int8, Native};
use holdfast_types::{BlockId, LateInputs, OutputRequest, Precision, SamplingParams, SlotSampling};

fn sampling() -> SlotSampling {
    let params = SamplingParams { temperature: 0.9, logprobs: Some(4), ..SamplingParams::default() };
    SlotSampling { params, seed: 11, context: Vec::new(), sampled: Vec::new() }
}

fn small() -> NeuronSettings {
    NeuronSettings { threads: 1, kv: KvSize::Blocks(20), slots: 3, max_step_rows: 64, ..NeuronSettings::default() }
}

/// A prompt in two uneven chunks, then a few sampled tokens, beside another sequence of any precision: every logit and log probability.
fn transcript(model: &Model, settings: &NeuronSettings, precision: Precision, beside: Precision) -> Vec<u32> {
    let mut device = NeuronDevice::new(model.config(), model.weights(), settings).unwrap();
    let vocab = device.describe().vocab_size;
    let mut bits = Vec::new();
    let token = |at: u32| (at * 37 + 11) % vocab;
    let prompt: Vec<u32> = (0..45).map(token).collect();
    let mut start = 0;
    let mut inputs = prompt[..13].to_vec();
    let mut plan = PlanBuilder::new(1).open(0, sampling()).open(1, sampling());
    for group in 0..device.describe().kv_groups.len() as u16 {
        plan = plan.table(0, group, 0, &[3, 9, 1, 4]).table(1, group, 0, &[7, 0]);
    }
    for step in 0..12 {
        let last = inputs.len() as u32 - 1;
        plan = plan.rows(0, start, &inputs, precision).want(last, OutputRequest::LogitsAndSample);
        if step < 4 {
            plan = plan.rows(1, step * 7, &(0..7).map(|at| token(at + step)).collect::<Vec<_>>(), beside);
        }
        let ticket = device.submit(&plan.build()).unwrap();
        let output = device.collect(ticket, &LateInputs::default()).unwrap().sequences.remove(0);
        bits.extend(output.logits[0].1.iter().map(|logit| logit.to_bits()));
        bits.extend(output.samples[0].logprobs.iter().flat_map(|entry| [entry.id, entry.logprob.to_bits()]));
        start += inputs.len() as u32;
        inputs = if step == 0 { prompt[13..].to_vec() } else { vec![output.samples[0].id] };
        plan = PlanBuilder::new(u64::from(step) + 2);
    }
    bits
}

#[test]
fn threads_and_instruction_sets_change_no_bit() {
    let micro = MicroShape::default();
    let models = [
        MicroShape { hidden: 300, heads: 6, kv_heads: 2, head_dim: 50, ffn: 700, seed: 8, ..micro.clone() }
            .build()
            .unwrap(),
        MicroShape { attention_bias: true, mlp_bias: true, seed: 9, ..micro.clone() }.build().unwrap(),
        MicroShape { family: Qwen3, head_dim: 26, seed: 12, ..micro.clone() }.build().unwrap(),
        MicroShape { family: Qwen2, rope: MicroRope::Yarn, window: Some(7), seed: 13, ..micro.clone() }
            .build()
            .unwrap(),
        MicroShape { family: SmolLm3, layers: 3, seed: 14, ..micro.clone() }.build().unwrap(),
        MicroShape {
            family: Phi3,
            rope: MicroRope::LongRope,
            rotary_share: 0.5,
            head_dim: 20,
            seed: 15,
            ..micro.clone()
        }
        .build()
        .unwrap(),
        MicroShape { family: Gemma2, window: Some(20), head_dim: 22, ffn: 77, seed: 16, ..micro.clone() }
            .build()
            .unwrap(),
        MicroShape { family: Gemma3, window: Some(9), layers: 3, seed: 17, ..micro.clone() }.build().unwrap(),
        MicroShape { family: GptOss, hidden: 250, ffn: 300, window: Some(17), seed: 18, ..micro }.build().unwrap(),
        Model::load(&ModelSource::resolve(ModelSource::BUILT_IN[0]).unwrap()).unwrap(),
    ];
    for model in &models {
        for (weights, precision, others) in [
            (WeightFormat::F32, Native, &[Native][..]),
            (WeightFormat::Bf16, Native, &[Native]),
            (WeightFormat::Nested, Int8, &[Int8, Int4]),
            (WeightFormat::Nested, Int4, &[Int8, Int4]),
        ] {
            let portable = NeuronSettings { weights, isa: Isa::PORTABLE, ..small() };
            let want = transcript(model, &portable, precision, precision);
            for (at, isa) in Isa::available().into_iter().enumerate() {
                let settings = NeuronSettings { weights, threads: 1 + at % 3, isa, ..small() };
                for beside in others {
                    let got = transcript(model, &settings, precision, *beside);
                    assert!(got == want, "{precision:?} beside {beside:?}, {} threads, {isa:?}", settings.threads);
                }
            }
        }
    }
}

#[test]
fn the_description_says_what_was_set() {
    let model = MicroShape::default().build().unwrap();
    let new = |settings: NeuronSettings| NeuronDevice::new(model.config(), model.weights(), &settings);
    let device = new(NeuronSettings { threads: 2, context: Some(100), ..small() }).unwrap();
    let d = device.describe();
    assert_eq!((d.name.as_str(), d.backend.as_str()), ("neuron:0 (cpu, 2 threads)", "neuron"));
    assert_eq!(
        (d.numerics_class.as_str(), d.precisions.as_slice()),
        ("neuron/f32/kv-f32/r3", [Precision::Native].as_slice())
    );
    assert_eq!((d.limits.context, d.epoch, d.weights), (100, 1, model.weights().digest()));
    let elements = 2 * 2 * (2 * 16) * 16;
    let size = d.kv_groups[0].bytes_per_block;
    assert_eq!(size, elements * 4, "layers, k and v, two heads of 8 padded to 16, tokens, bytes");

    let device = new(NeuronSettings { weights: WeightFormat::Nested, kv: KvSize::Bytes(100_000), ..small() }).unwrap();
    let d = device.describe();
    assert_eq!(
        (d.numerics_class.as_str(), d.precisions.as_slice()),
        ("neuron/nested/kv-bf16/r3", [Int8, Int4].as_slice())
    );
    assert_eq!((d.kv_groups[0].blocks, d.limits.context), (24, 384), "the pool bounds the context");

    assert_eq!(d.kv_groups[0].bytes_per_block, elements * 2);
    let mixed = NeuronSettings { kv_format: Some(KvFormat::F32), weights: WeightFormat::Nested, ..small() };
    let other = new(mixed).unwrap();
    let [bf16, f32] = [d, other.describe()].map(|d| (d.numerics_class.as_str().to_owned(), d.kv_layout.clone()));
    assert!(bf16.0 != f32.0 && bf16.1 != f32.1, "block keys are apart: {bf16:?} {f32:?}");

    let error = new(NeuronSettings { kv: KvSize::Bytes(100), ..small() }).unwrap_err();
    assert!(matches!(error, NeuronError::Setting { setting: "kv_bytes", .. }), "{error}");
    assert!(matches!(
        new(NeuronSettings { threads: 0, ..small() }),
        Err(NeuronError::Setting { setting: "threads", .. })
    ));
}

#[test]
fn two_writers_of_one_block_are_rejected() {
    let model = MicroShape::default().build().unwrap();
    let mut device = NeuronDevice::new(model.config(), model.weights(), &small()).unwrap();
    let both = PlanBuilder::new(1).open(0, sampling()).open(1, sampling()).table(0, 0, 0, &[2]).table(1, 0, 0, &[2]);
    let plan = both.clone().rows(0, 0, &[1], Precision::Native).rows(1, 0, &[1], Precision::Native).build();
    assert!(matches!(device.submit(&plan), Err(BackendError::Rejected(_))));
    let ticket = device.submit(&both.rows(0, 0, &[1], Precision::Native).build()).unwrap();
    // The only place is taken, and the block that the open step writes may not be replaced.
    assert!(matches!(device.submit(&PlanBuilder::new(2).build()), Err(BackendError::Rejected(_))));
    let export = |block| BlockCopy { group: 0, block: BlockId(block), direction: CopyDirection::Export };
    assert!(matches!(device.begin_copy(export(2)), Err(BackendError::Rejected(_))));
    device.begin_copy(export(3)).unwrap();
    device.collect(ticket, &LateInputs::default()).unwrap();
    device.begin_copy(export(2)).unwrap();
    assert_eq!(device.poll_copies().len(), 2);
}

/// Contexts of several spans: alone, where threads share the spans; in one chunk or many; and beside so many other sequences that none
/// is cut.
#[test]
fn long_contexts_give_the_same_bits_alone_and_beside_others() {
    let shape =
        MicroShape { layers: 1, heads: 3, kv_heads: 1, head_dim: 16, context_limit: 4_096, ..MicroShape::default() };
    let model = shape.build().unwrap();
    let tokens: Vec<u32> = (0..2_200).map(|at| (at * 31 + at / 7) % 250).collect();
    let table: Vec<u32> = (0..138).rev().collect();
    for kv_format in [KvFormat::F32, KvFormat::Bf16, KvFormat::Int8] {
        let logits = |threads: usize, isa: Isa, chunks: &[usize], others: u32| {
            let settings = NeuronSettings {
                threads,
                isa,
                kv: KvSize::Blocks(160),
                kv_format: Some(kv_format),
                slots: 20,
                max_step_rows: 4_096,
                ..NeuronSettings::default()
            };
            let mut device = NeuronDevice::new(model.config(), model.weights(), &settings).unwrap();
            let mut plan = PlanBuilder::new(1).open(0, sampling()).table(0, 0, 0, &table);
            for other in 1..=others {
                plan = plan.open(other, sampling()).table(other, 0, 0, &[137 + other]);
            }
            let (mut bits, mut start) = (Vec::new(), 0);
            for (step, length) in chunks.iter().enumerate() {
                plan = plan.rows(0, start as u32, &tokens[start..start + length], Precision::Native);
                plan = plan.want(*length as u32 - 1, OutputRequest::Logits);
                for other in 1..=others {
                    plan = plan.rows(other, step as u32, &[other], Precision::Native);
                }
                let ticket = device.submit(&plan.build()).unwrap();
                let output = device.collect(ticket, &LateInputs::default()).unwrap().sequences.remove(0);
                start += length;
                if start > 2_190 {
                    bits.extend(
                        output.logits.iter().flat_map(|(_, logits)| logits.iter().map(|logit| logit.to_bits())),
                    );
                }
                plan = PlanBuilder::new(step as u64 + 2);
            }
            bits
        };
        let want = logits(1, Isa::widest(), &[2_190, 1, 1, 8], 0);
        assert_eq!(want.len(), 3 * model.config().vocab_size as usize);
        for isa in Isa::available() {
            assert!(logits(3, isa, &[2_190, 1, 1, 8], 0) == want, "{kv_format:?}, three threads, {isa:?}");
        }
        assert!(logits(2, Isa::widest(), &[1_000, 50, 1_140, 1, 1, 8], 19) == want, "{kv_format:?}, beside others");
    }
}

/// A checkpoint in bf16 gives the bits that it gives in f32, in half the memory.
#[test]
fn bf16_weights_have_the_bits_of_the_same_weights_in_f32() {
    for family in [MicroShape::default().family, Phi3, Gemma3, GptOss] {
        let shape = MicroShape { family, dtype: MicroDtype::Bf16, seed: 23, ..MicroShape::default() };
        let model = shape.build().unwrap();
        let [f32, bf16] = [WeightFormat::F32, WeightFormat::Bf16].map(|weights| {
            let settings = NeuronSettings { weights, kv_format: Some(KvFormat::F32), ..small() };
            transcript(&model, &settings, Native, Native)
        });
        assert!(f32 == bf16, "{family:?}");
    }
}

/// A row's bits do not depend on the rows that its experts compute beside it.
#[test]
fn experts_do_not_mix_rows() {
    let model =
        MicroShape { family: GptOss, window: Some(17), experts: 7, layers: 3, seed: 19, ..MicroShape::default() };
    let model = model.build().unwrap();
    for weights in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Nested] {
        // The logits of every token of one sequence, in chunks of these lengths, beside so many rows of another one.
        let logits = |chunks: &[usize], others: u32| {
            let mut device =
                NeuronDevice::new(model.config(), model.weights(), &NeuronSettings { weights, ..small() }).unwrap();
            let precision = device.describe().precisions[0];
            let tokens: Vec<u32> = (0..40).map(|at| (at * 31 + 5) % device.describe().vocab_size).collect();
            let mut plan = PlanBuilder::new(1).open(0, sampling()).open(1, sampling());
            for group in 0..device.describe().kv_groups.len() as u16 {
                plan = plan.table(0, group, 0, &[3, 9, 1]).table(1, group, 0, &[7, 0]);
            }
            let (mut bits, mut start) = (Vec::new(), 0);
            for (step, length) in chunks.iter().enumerate() {
                plan = plan.rows(0, start as u32, &tokens[start..start + length], precision);
                for row in 0..*length {
                    plan = plan.want(row as u32, OutputRequest::Logits);
                }
                if others > 0 && step < 2 {
                    let rows: Vec<u32> = (0..others).map(|at| (at * 7 + step as u32) % 200).collect();
                    plan = plan.rows(1, step as u32 * others, &rows, precision);
                }
                let ticket = device.submit(&plan.build()).unwrap();
                let output = device.collect(ticket, &LateInputs::default()).unwrap().sequences.remove(0);
                bits.extend(output.logits.iter().flat_map(|(_, logits)| logits.iter().map(|logit| logit.to_bits())));
                start += length;
                plan = PlanBuilder::new(step as u64 + 2);
            }
            bits
        };
        let alone = logits(&[1; 40], 0);
        for (chunks, others) in [(&[40][..], 0), (&[3, 4, 5, 28], 13), (&[1, 38, 1], 9), (&[17, 23], 16)] {
            assert!(logits(chunks, others) == alone, "{weights:?}: {chunks:?} beside {others}");
        }
    }
}

#[test]
fn blocks_behind_a_window_need_not_be_in_the_table() {
    let model = MicroShape { family: Mistral, window: Some(20), seed: 20, ..MicroShape::default() }.build().unwrap();
    let mut device = NeuronDevice::new(model.config(), model.weights(), &small()).unwrap();
    let tokens: Vec<u32> = (0..56).collect();
    let mut step = |plan: PlanBuilder| {
        let ticket = device.submit(&plan.build()).unwrap();
        device.collect(ticket, &LateInputs::default()).unwrap().sequences.remove(0).logits
    };
    let prompt = PlanBuilder::new(1).open(0, sampling()).table(0, 0, 0, &[3, 9, 1, 4]);
    step(prompt.rows(0, 0, &tokens[..48], Precision::Native).want(47, OutputRequest::Logits));
    let rest = |plan: PlanBuilder| {
        plan.rows(0, 48, &tokens[48..], Precision::Native).want(0, OutputRequest::Logits).want(7, OutputRequest::Logits)
    };
    let want = step(rest(PlanBuilder::new(2)));
    // Row 48 sees positions from 29 on. Another sequence takes the first block, in the same step and before it.
    let other = PlanBuilder::new(3).open(1, sampling()).table(1, 0, 0, &[3]);
    step(other.rows(1, 0, &[7; 9], Precision::Native).want(8, OutputRequest::Logits));
    assert_eq!(step(rest(PlanBuilder::new(4)).rows(1, 9, &[8; 7], Precision::Native)), want);
    // A slot that never had the entry.
    let fresh = PlanBuilder::new(5).close(0).open(2, sampling()).table(2, 0, 1, &[9, 1, 4]);
    let fresh = fresh.rows(2, 48, &tokens[48..], Precision::Native);
    assert_eq!(step(fresh.want(0, OutputRequest::Logits).want(7, OutputRequest::Logits)), want);
}
