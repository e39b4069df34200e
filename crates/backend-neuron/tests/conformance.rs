//! The device through the shared conformance suite, on random micro models, against candle's forward and, where candle's has no
//! words for it (sliding windows in some layers), against a plain forward of this file.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use holdfast_backend::conformance::{self, Report, Tolerance};
use holdfast_backend::{Backend, BackendError, BlockCopy, CopyDone, CopyTicket, StepTicket};
use holdfast_backend_neuron::{KvFormat, KvSize, NeuronDevice, NeuronSettings, WeightFormat};
use holdfast_model::random::MicroFamily::{Gemma2, Gemma3, GptOss, Mistral, Phi3, Qwen2, Qwen3, SmolLm3};
use holdfast_model::random::{MICRO_VOCABULARY, MicroDtype, MicroRope, MicroShape};
use holdfast_model::{DecoderConfig, Model, Reference, WeightMatrix, Weights};
use holdfast_types::{DeviceDescription, LateInputs, Precision, SequenceStep, StepOutput, StepPlan};

struct Candle(Reference);

impl conformance::Reference for Candle {
    fn logits(&self, tokens: &[u32]) -> Vec<Vec<f32>> {
        self.0.logits(tokens).unwrap()
    }
}

fn settings() -> NeuronSettings {
    NeuronSettings {
        threads: 2,
        kv: KvSize::Blocks(20),
        slots: 5,
        max_step_rows: 24,
        in_flight: 2,
        ..NeuronSettings::default()
    }
}

fn suite(model: &Model, settings: &NeuronSettings, tolerance: Tolerance) -> Report {
    let mut factory =
        || -> Box<dyn Backend> { Box::new(NeuronDevice::new(model.config(), model.weights(), settings).unwrap()) };
    conformance::run(&mut factory, &Candle(Reference::new(model).unwrap()), tolerance)
}

fn shapes() -> Vec<MicroShape> {
    let micro = MicroShape::default();
    vec![
        micro.clone(),
        MicroShape { hidden: 40, layers: 3, heads: 3, kv_heads: 1, head_dim: 18, ffn: 70, seed: 1, ..micro.clone() },
        MicroShape {
            tied: false,
            attention_bias: true,
            mlp_bias: true,
            rope: MicroRope::Llama3,
            seed: 2,
            ..micro.clone()
        },
        MicroShape { heads: 4, kv_heads: 4, vocab_size: MICRO_VOCABULARY + 37, seed: 3, ..micro.clone() },
        MicroShape { hidden: 288, heads: 6, kv_heads: 2, head_dim: 48, ffn: 300, layers: 1, seed: 4, ..micro.clone() },
        MicroShape { dtype: MicroDtype::Bf16, layers: 4, seed: 5, ..micro.clone() },
        MicroShape { family: Qwen3, hidden: 24, heads: 4, kv_heads: 2, head_dim: 20, seed: 10, ..micro.clone() },
        MicroShape { family: Qwen3, attention_bias: true, tied: false, layers: 3, seed: 11, ..micro.clone() },
        MicroShape { family: Mistral, window: Some(20), head_dim: 12, seed: 13, ..micro.clone() },
        MicroShape { family: Qwen2, rope: MicroRope::Yarn, window: Some(9), layers: 3, seed: 14, ..micro.clone() },
        MicroShape { family: SmolLm3, attention_bias: true, layers: 4, seed: 15, ..micro.clone() },
        MicroShape { family: SmolLm3, window: Some(17), layers: 3, seed: 16, ..micro.clone() },
        MicroShape { family: Phi3, rope: MicroRope::LongRope, tied: false, seed: 17, ..micro.clone() },
        MicroShape { family: Phi3, rotary_share: 0.75, head_dim: 24, window: Some(33), seed: 18, ..micro.clone() },
        MicroShape { family: Gemma2, window: Some(18), query_scalar: Some(11), layers: 3, seed: 19, ..micro.clone() },
        MicroShape { family: Gemma2, attention_bias: true, head_dim: 12, kv_heads: 4, seed: 20, ..micro.clone() },
        MicroShape { family: Gemma3, window: Some(7), kv_heads: 1, layers: 4, seed: 21, ..micro.clone() },
        MicroShape { family: Gemma3, rope: MicroRope::Linear, window: Some(30), layers: 3, seed: 22, ..micro.clone() },
        MicroShape { family: GptOss, rope: MicroRope::Yarn, window: Some(16), tied: false, seed: 23, ..micro.clone() },
        MicroShape { family: GptOss, experts: 9, heads: 6, kv_heads: 2, ffn: 40, layers: 3, seed: 24, ..micro.clone() },
        MicroShape { family: GptOss, packed: true, window: Some(5), ffn: 64, seed: 25, ..micro },
    ]
}

/// Root mean square distances seen over these shapes are up to 3e-7 of the logits.
#[test]
fn f32_is_the_reference_within_rounding() {
    for shape in shapes() {
        let report = suite(&shape.build().unwrap(), &settings(), Tolerance { abs: 5e-5, rel: 1e-5 });
        assert_eq!(report.rows_compared, 3 * 53);
        assert!(report.relative_rms_error < 2e-6, "{report:?}");
    }
}

/// Rounded KV moves logits a little, and nothing else changes.
#[test]
fn bf16_kv_is_near_the_reference() {
    for shape in shapes() {
        let shape = MicroShape { experts: 2, ..shape };
        let settings = NeuronSettings { kv_format: Some(KvFormat::Bf16), ..settings() };
        let report = suite(&shape.build().unwrap(), &settings, Tolerance { abs: 0.1, rel: 0.0 });
        assert!(report.relative_rms_error < 0.004, "{report:?}");
    }
}

/// A device as if it had one precision.
struct Only {
    device: NeuronDevice,
    description: DeviceDescription,
}

impl Backend for Only {
    fn describe(&self) -> &DeviceDescription {
        &self.description
    }

    fn submit(&mut self, plan: &StepPlan) -> Result<StepTicket, BackendError> {
        let listed = |step: &SequenceStep| self.description.precisions.contains(&step.precision);
        if plan.sequences.iter().all(listed) {
            return self.device.submit(plan);
        }
        Err(BackendError::Rejected("a precision that is not listed".to_owned()))
    }

    fn collect(&mut self, ticket: StepTicket, late: &LateInputs) -> Result<StepOutput, BackendError> {
        self.device.collect(ticket, late)
    }

    fn begin_copy(&mut self, copy: BlockCopy) -> Result<CopyTicket, BackendError> {
        self.device.begin_copy(copy)
    }

    fn poll_copies(&mut self) -> Vec<CopyDone> {
        self.device.poll_copies()
    }
}

/// Nested weights are another model at 8 bits, and one more at 4: each agrees with itself bit for bit, and its logits stay near.
#[test]
fn nested_weights_are_near_the_reference() {
    let settings = NeuronSettings { weights: WeightFormat::Nested, ..settings() };
    for shape in shapes() {
        // A router that leaves no choice: where there is one, a small change may be another choice, and is far away then.
        let model = MicroShape { experts: 2, ..shape }.build().unwrap();
        for (precision, most, relative) in [(Precision::Int8, 0.6, 0.016), (Precision::Int4, 8.0, 0.25)] {
            let mut factory = || -> Box<dyn Backend> {
                let device = NeuronDevice::new(model.config(), model.weights(), &settings).unwrap();
                let description = DeviceDescription { precisions: vec![precision], ..device.describe().clone() };
                Box::new(Only { device, description })
            };
            let tolerance = Tolerance { abs: most, rel: 0.0 };
            let report = conformance::run(&mut factory, &Candle(Reference::new(&model).unwrap()), tolerance);
            assert!(report.relative_rms_error < relative, "{precision:?}: {report:?}");
        }
    }
}

/// What bf16 holds without loss is the model itself; other weights are a model nearby.
#[test]
fn bf16_weights_are_the_reference_where_the_files_hold_bf16() {
    let exact = NeuronSettings { weights: WeightFormat::Bf16, kv_format: Some(KvFormat::F32), ..settings() };
    for shape in shapes() {
        let model = MicroShape { dtype: MicroDtype::Bf16, ..shape.clone() }.build().unwrap();
        suite(&model, &exact, Tolerance { abs: 5e-5, rel: 1e-5 });
        // A router that leaves no choice: see above.
        let model = MicroShape { dtype: MicroDtype::F32, experts: 2, ..shape }.build().unwrap();
        let rounded = NeuronSettings { weights: WeightFormat::Bf16, ..settings() };
        let report = suite(&model, &rounded, Tolerance { abs: 0.3, rel: 0.0 });
        assert!(report.relative_rms_error < 0.008, "{report:?}");
    }
}

/// Keys and values in 8 bits are a model nearby that agrees with itself bit for bit, blocks out and in among it.
#[test]
fn keys_and_values_in_int8_are_near_the_reference() {
    let settings = NeuronSettings { kv_format: Some(KvFormat::Int8), ..settings() };
    for shape in shapes() {
        let model = MicroShape { experts: 2, ..shape }.build().unwrap();
        let report = suite(&model, &settings, Tolerance { abs: 0.4, rel: 0.0 });
        assert!(report.relative_rms_error < 0.012, "{report:?}");
    }
}

#[test]
fn other_shapes_of_the_device_pass_too() {
    let model = MicroShape { seed: 6, ..MicroShape::default() }.build().unwrap();
    let tolerance = Tolerance { abs: 5e-5, rel: 1e-5 };
    for (threads, block_tokens, max_step_rows, in_flight) in [(1, 32, 8, 1), (3, 48, 160, 3)] {
        suite(&model, &NeuronSettings { threads, block_tokens, max_step_rows, in_flight, ..settings() }, tolerance);
    }
}

/// A plain forward in f64 over the model's weights, one position after the other.
struct Plain<'a> {
    config: DecoderConfig,
    weights: &'a Weights,
}

impl Plain<'_> {
    fn product(x: &[f64], matrix: WeightMatrix<'_>) -> Vec<f64> {
        matrix
            .values()
            .chunks_exact(x.len())
            .map(|row| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum())
            .collect()
    }

    fn norm(&self, x: &[f64], weight: &[f32]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let root = (mean + f64::from(self.config.norm_eps)).sqrt();
        x.iter().zip(weight).map(|(x, w)| x / root * f64::from(*w)).collect()
    }

    fn turn(&self, heads: &mut [f64], position: usize) {
        let frequencies = self.config.rope.inverse_frequencies(self.config.head_dim);
        for head in heads.chunks_exact_mut(self.config.head_dim) {
            for (i, frequency) in frequencies.iter().enumerate() {
                let (sin, cos) = (position as f64 * f64::from(*frequency)).sin_cos();
                let (a, b) = (head[i], head[i + frequencies.len()]);
                head[i] = a * cos - b * sin;
                head[i + frequencies.len()] = b * cos + a * sin;
            }
        }
    }
}

impl conformance::Reference for Plain<'_> {
    fn logits(&self, tokens: &[u32]) -> Vec<Vec<f32>> {
        let c = &self.config;
        let mut kv = vec![Vec::<(Vec<f64>, Vec<f64>)>::new(); c.layers.len()];
        let mut all = Vec::new();
        for (position, token) in tokens.iter().enumerate() {
            let row = &self.weights.embeddings().values()[*token as usize * c.hidden..][..c.hidden];
            let mut x: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
            for (index, layer) in c.layers.iter().enumerate() {
                let w = self.weights.layer(index);
                let normed = self.norm(&x, w.attention_norm);
                let (mut q, mut k) = (Self::product(&normed, w.q), Self::product(&normed, w.k));
                self.turn(&mut q, position);
                self.turn(&mut k, position);
                kv[index].push((k, Self::product(&normed, w.v)));
                let first = layer.window.map_or(0, |window| (position + 1).saturating_sub(window as usize));
                let mut mixed = vec![0.0; q.len()];
                for head in 0..c.heads {
                    let q = &q[head * c.head_dim..][..c.head_dim];
                    let at = head / (c.heads / c.kv_heads) * c.head_dim;
                    let seen = &kv[index][first..];
                    let scores: Vec<f64> = seen
                        .iter()
                        .map(|(k, _)| {
                            q.iter().zip(&k[at..]).map(|(a, b)| a * b).sum::<f64>() / (c.head_dim as f64).sqrt()
                        })
                        .map(f64::exp)
                        .collect();
                    let total: f64 = scores.iter().sum();
                    for (score, (_, v)) in scores.iter().zip(seen) {
                        let out = &mut mixed[head * c.head_dim..][..c.head_dim];
                        out.iter_mut().zip(&v[at..]).for_each(|(out, v)| *out += score / total * v);
                    }
                }
                x.iter_mut().zip(Self::product(&mixed, w.output)).for_each(|(x, y)| *x += y);
                let normed = self.norm(&x, w.ffn_norm);
                let gated: Vec<f64> = Self::product(&normed, w.gate)
                    .into_iter()
                    .zip(Self::product(&normed, w.up))
                    .map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up)
                    .collect();
                x.iter_mut().zip(Self::product(&gated, w.down)).for_each(|(x, y)| *x += y);
            }
            let logits = Self::product(&self.norm(&x, self.weights.final_norm()), self.weights.lm_head());
            all.push(logits.into_iter().map(|x| x as f32).collect());
        }
        all
    }
}

#[test]
fn layers_with_sliding_windows_have_a_group_of_their_own() {
    let model = MicroShape { layers: 4, seed: 7, ..MicroShape::default() }.build().unwrap();
    for windows in
        [[Some(5), None, Some(5), None], [Some(20), Some(20), Some(20), Some(20)], [None, Some(1), Some(17), None]]
    {
        let mut config = model.config().clone();
        config.layers.iter_mut().zip(windows).for_each(|(layer, window)| layer.window = window);
        let mut factory =
            || -> Box<dyn Backend> { Box::new(NeuronDevice::new(&config, model.weights(), &settings()).unwrap()) };
        let reference = Plain { config: config.clone(), weights: model.weights() };
        conformance::run(&mut factory, &reference, Tolerance { abs: 5e-5, rel: 1e-5 });
    }
}
