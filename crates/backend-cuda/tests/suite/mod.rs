//! What every CUDA device must show, whatever card it is on: emulated in unit tests, real in `tests/card.rs` and in the example `card_check`.
//!
//! In: a function that makes a device of a model. Out: reports, or a panic with the rule that broke. Deliberately not here: making cards.

use holdfast_backend::conformance::{self, PlanBuilder, Report, Tolerance};
use holdfast_backend::{Backend, BackendError, BlockCopy, CopyDone, CopyTicket, StepTicket};
use holdfast_backend_cuda::{CudaDevice, CudaError, CudaSettings, KvSize, WeightFormat};
use holdfast_backend_neuron::{KvSize as NeuronKvSize, NeuronDevice, NeuronSettings, WeightFormat as NeuronWeights};
use holdfast_model::random::MicroFamily::{Gemma2, Gemma3, GptOss, Mistral, Phi3, Qwen2, Qwen3, SmolLm3};
use holdfast_model::random::{MicroDtype, MicroRope, MicroShape};
use holdfast_model::{Model, Reference};
use holdfast_types::{DeviceDescription, LateInputs, OutputRequest, Precision, SamplingParams, SequenceStep};
use holdfast_types::{SlotSampling, StepOutput, StepPlan};

/// Makes a device.
pub(crate) type Make<'a> = &'a dyn Fn(&Model, &CudaSettings) -> Result<CudaDevice, CudaError>;

/// Settings of a small device.
pub(crate) fn small(weights: WeightFormat) -> CudaSettings {
    CudaSettings { weights, kv: KvSize::Blocks(20), slots: 4, max_step_rows: 70, ..CudaSettings::default() }
}

/// The families, each with what sets it apart, as the CPU device's tests have them. Their weights are exact in bf16.
pub(crate) fn shapes() -> Vec<MicroShape> {
    let micro = MicroShape { dtype: MicroDtype::Bf16, ..MicroShape::default() };
    let biased = MicroShape { attention_bias: true, mlp_bias: true, ..micro.clone() };
    vec![
        micro.clone(),
        MicroShape { heads: 8, kv_heads: 2, head_dim: 20, hidden: 72, ffn: 100, seed: 2, ..micro.clone() },
        MicroShape { rope: MicroRope::Llama3, tied: false, seed: 3, ..biased },
        MicroShape { family: Mistral, window: Some(9), seed: 4, ..micro.clone() },
        MicroShape { family: Qwen2, window: Some(20), layers: 3, rope: MicroRope::Yarn, seed: 5, ..micro.clone() },
        MicroShape { family: Qwen3, head_dim: 26, seed: 6, ..micro.clone() },
        MicroShape { family: SmolLm3, layers: 3, seed: 7, ..micro.clone() },
        MicroShape {
            family: Phi3,
            rope: MicroRope::LongRope,
            rotary_share: 0.5,
            head_dim: 20,
            seed: 8,
            ..micro.clone()
        },
        MicroShape { family: Gemma2, window: Some(20), head_dim: 22, ffn: 77, seed: 9, ..micro.clone() },
        MicroShape { family: Gemma3, window: Some(9), layers: 3, seed: 10, ..micro.clone() },
        // A router that leaves no choice: where there is one, a small change may be another choice, and is far from the reference then.
        MicroShape {
            family: GptOss,
            experts: 2,
            rope: MicroRope::Yarn,
            window: Some(16),
            tied: false,
            seed: 11,
            ..micro
        },
    ]
}

struct Candle(Reference);

impl conformance::Reference for Candle {
    fn logits(&self, tokens: &[u32]) -> Vec<Vec<f32>> {
        self.0.logits(tokens).expect("a reference that was made")
    }
}

/// A device as if it had one precision.
struct Only {
    device: CudaDevice,
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

/// The shared suite with one shape; the device's logits are near the reference's.
pub(crate) fn conforms(make: Make<'_>, shape: &MicroShape, precision: Precision) -> Report {
    // Rows rounded to bf16 move logits a little, nested weights more.
    let (weights, abs, relative) = match precision {
        Precision::Int8 => (WeightFormat::Nested, 0.6, 0.02),
        Precision::Int4 => (WeightFormat::Nested, 8.0, 0.25),
        _ => (WeightFormat::Bf16, 0.25, 0.012),
    };
    let (model, settings) = (shape.build().expect("a micro model"), small(weights));
    let mut factory = || -> Box<dyn Backend> {
        let device = make(&model, &settings).expect("a device");
        let description = DeviceDescription { precisions: vec![precision], ..device.describe().clone() };
        Box::new(Only { device, description })
    };
    let reference = Candle(Reference::new(&model).expect("a reference"));
    let report = conformance::run(&mut factory, &reference, Tolerance { abs, rel: 0.0 });
    assert!(report.relative_rms_error < relative, "{precision:?} {shape:?} {report:?}");
    report
}

/// A prompt in two uneven chunks, then sampled tokens, beside another sequence: the bits of every logit.
fn transcript(device: &mut dyn Backend, precision: Precision, beside: Precision) -> Vec<u32> {
    let params = SamplingParams { temperature: 0.9, ..SamplingParams::default() };
    let sampling = || SlotSampling { params: params.clone(), seed: 11, context: Vec::new(), sampled: Vec::new() };
    let vocab = device.describe().vocab_size;
    let mut bits = Vec::new();
    let token = |at: u32| (at * 37 + 11) % vocab;
    let prompt: Vec<u32> = (0..58).map(token).collect();
    let mut start = 0;
    let mut inputs = prompt[..13].to_vec();
    let mut plan = PlanBuilder::new(1).open(0, sampling()).open(1, sampling());
    for group in 0..device.describe().kv_groups.len() as u16 {
        plan = plan.table(0, group, 0, &[3, 9, 1, 4, 11]).table(1, group, 0, &[7, 0]);
    }
    for step in 0..8 {
        let last = inputs.len() as u32 - 1;
        plan = plan.rows(0, start, &inputs, precision).want(last, OutputRequest::LogitsAndSample);
        if step < 4 {
            plan = plan.rows(1, step * 7, &(0..7).map(|at| token(at + step)).collect::<Vec<_>>(), beside);
        }
        let ticket = device.submit(&plan.build()).expect("a good plan");
        let output = device.collect(ticket, &LateInputs::default()).expect("a good step").sequences.remove(0);
        bits.extend(output.logits[0].1.iter().map(|logit| logit.to_bits()));
        start += inputs.len() as u32;
        inputs = if step == 0 { prompt[13..].to_vec() } else { vec![output.samples[0].id] };
        plan = PlanBuilder::new(u64::from(step) + 2);
    }
    bits
}

/// The property of nested weights: what the kernels say is what the CPU device says, to the last bit, at both precisions and in mixed batches. Returns
/// how many logits were compared.
pub(crate) fn has_the_bits_of_the_cpu_device(make: Make<'_>, shape: &MicroShape) -> usize {
    let model = shape.build().expect("a micro model");
    let neuron = NeuronSettings {
        threads: 1,
        kv: NeuronKvSize::Blocks(20),
        slots: 4,
        max_step_rows: 70,
        weights: NeuronWeights::Nested,
        ..NeuronSettings::default()
    };
    let mut compared = 0;
    for (precision, beside) in [
        (Precision::Int8, Precision::Int8),
        (Precision::Int4, Precision::Int4),
        (Precision::Int8, Precision::Int4),
        (Precision::Int4, Precision::Int8),
    ] {
        let mut cpu = NeuronDevice::new(model.config(), model.weights(), &neuron).expect("a CPU device");
        let mut cuda = make(&model, &small(WeightFormat::Nested)).expect("a device");
        assert_eq!(cpu.describe().kv_layout, cuda.describe().kv_layout);
        let (want, got) = (transcript(&mut cpu, precision, beside), transcript(&mut cuda, precision, beside));
        let differ = want.iter().zip(&got).filter(|(want, got)| want != got).count();
        assert_eq!(differ, 0, "of {} logits, {precision:?} beside {beside:?}: {shape:?}", want.len());
        compared += want.len();
    }
    compared
}

/// The same over chunks and spans of attention: 1,100 tokens of one sequence, in steps of 70 rows, and the logits of each step's last row.
pub(crate) fn has_the_bits_of_the_cpu_device_over_spans(make: Make<'_>, shape: &MicroShape) -> usize {
    let model = MicroShape { context_limit: 1_200, ..shape.clone() }.build().expect("a micro model");
    let neuron = NeuronSettings {
        threads: 1,
        kv: NeuronKvSize::Blocks(80),
        slots: 4,
        max_step_rows: 70,
        weights: NeuronWeights::Nested,
        ..NeuronSettings::default()
    };
    let settings = CudaSettings { kv: KvSize::Blocks(80), ..small(WeightFormat::Nested) };
    let mut cpu = NeuronDevice::new(model.config(), model.weights(), &neuron).expect("a CPU device");
    let mut cuda = make(&model, &settings).expect("a device");
    let (want, got) = (long_transcript(&mut cpu), long_transcript(&mut cuda));
    let differ = want.iter().zip(&got).filter(|(want, got)| want != got).count();
    assert_eq!(differ, 0, "of {} logits: {shape:?}", want.len());
    want.len()
}

fn long_transcript(device: &mut dyn Backend) -> Vec<u32> {
    const TOKENS: u32 = 1_100;
    let vocab = device.describe().vocab_size;
    let sampling =
        SlotSampling { params: SamplingParams::default(), seed: 1, context: Vec::new(), sampled: Vec::new() };
    let mut plan = PlanBuilder::new(1).open(0, sampling);
    for group in 0..device.describe().kv_groups.len() as u16 {
        // Blocks in an order of their own.
        plan = plan.table(0, group, 0, &(0..TOKENS.div_ceil(16)).map(|entry| entry * 7 % 73).collect::<Vec<_>>());
    }
    let mut bits = Vec::new();
    for start in (0..TOKENS).step_by(70) {
        let rows: Vec<u32> = (start..TOKENS.min(start + 70)).map(|at| (at * 37 + 11) % vocab).collect();
        let last = rows.len() as u32 - 1;
        let plan_of_step = plan.rows(0, start, &rows, Precision::Int8).want(last, OutputRequest::Logits).build();
        let ticket = device.submit(&plan_of_step).expect("a good plan");
        let output = device.collect(ticket, &LateInputs::default()).expect("a good step").sequences.remove(0);
        bits.extend(output.logits[0].1.iter().map(|logit| logit.to_bits()));
        plan = PlanBuilder::new(u64::from(start) + 2);
    }
    bits
}
