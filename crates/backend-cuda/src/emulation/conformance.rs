//! The whole device on emulated kernels: the shared suite of this crate, and what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../tests/suite/mod.rs"]
mod suite;

use holdfast_model::Model;
use holdfast_model::random::MicroShape;
use holdfast_types::Precision;

use self::suite::{conforms, has_the_bits_of_the_cpu_device, has_the_bits_of_the_cpu_device_over_spans, shapes, small};
use super::Emulated;
use crate::device::WeightSource;
use crate::{CudaDevice, CudaError, CudaSettings, KvSize, WeightFormat};

fn device(model: &Model, settings: &CudaSettings) -> Result<CudaDevice, CudaError> {
    let card = Emulated::new().expect("a test that asked before");
    CudaDevice::on(Box::new(card), "cuda:0 (emulated)", model.config(), WeightSource::Model(model.weights()), settings)
}

#[test]
fn bf16_passes_the_suite_and_is_near_the_reference() {
    if Emulated::new().is_some() {
        // Heads and widths that are no multiples of anything, a family with all that norms and windows can do, and experts.
        for at in [1, 9, 10] {
            conforms(&device, &shapes()[at], Precision::Native);
        }
    }
}

#[test]
fn nested_weights_pass_the_suite_and_are_near_the_reference() {
    if Emulated::new().is_some() {
        // Only one, since the next test is more than a suite with a tolerance can say.
        conforms(&device, &shapes()[8], Precision::Int4);
    }
}

#[test]
fn nested_weights_have_the_bits_of_the_cpu_device() {
    if Emulated::new().is_some() {
        // Equal bits are equal choices, so that experts are chosen among several here.
        let mixture =
            MicroShape { experts: 9, heads: 6, kv_heads: 2, ffn: 40, layers: 3, seed: 24, ..shapes()[10].clone() };
        for shape in shapes().into_iter().chain([mixture]) {
            assert!(has_the_bits_of_the_cpu_device(&device, &shape) > 0);
        }
        assert!(has_the_bits_of_the_cpu_device_over_spans(&device, &shapes()[0]) > 0);
    }
}

#[test]
fn what_the_kernels_cannot_compute_is_refused_by_name() {
    if Emulated::new().is_none() {
        return;
    }
    let refused =
        |shape: MicroShape, settings: &CudaSettings| device(&shape.build().unwrap(), settings).unwrap_err().to_string();
    let micro = MicroShape::default();
    let bf16 = small(WeightFormat::Bf16);
    let said = refused(MicroShape { head_dim: 258, ..micro.clone() }, &bf16);
    assert!(said.contains("heads of 258 elements, at most 256"), "{said}");
    let said = refused(micro.clone(), &CudaSettings { kv: KvSize::Share(1e-7), ..bf16.clone() });
    assert!(said.contains("one KV block") && said.contains("device.memory_fraction"), "{said}");
    let said = refused(micro, &CudaSettings { kv: KvSize::Blocks(1 << 20), ..bf16 });
    assert!(said.contains("out of memory"), "{said}");
}

/// Weights that are made up give numbers, at every precision.
#[test]
fn random_weights_give_logits() {
    use holdfast_backend::Backend as _;
    use holdfast_backend::conformance::PlanBuilder;
    use holdfast_types::{LateInputs, OutputRequest, SamplingParams, SlotSampling};

    if Emulated::new().is_none() {
        return;
    }
    let model = shapes()[0].build().unwrap();
    for (format, precision) in [
        (WeightFormat::Bf16, Precision::Native),
        (WeightFormat::Nested, Precision::Int8),
        (WeightFormat::Nested, Precision::Int4),
    ] {
        let card = Box::new(Emulated::new().expect("a test that asked before"));
        let mut device =
            CudaDevice::on(card, "cuda:0", model.config(), WeightSource::Random(7), &small(format)).unwrap();
        let sampling =
            SlotSampling { params: SamplingParams::default(), seed: 1, context: Vec::new(), sampled: Vec::new() };
        let plan = PlanBuilder::new(1).open(0, sampling).table(0, 0, 0, &[0]).rows(0, 0, &[5, 6, 7], precision);
        let ticket = device.submit(&plan.want(2, OutputRequest::Logits).build()).unwrap();
        let logits = device.collect(ticket, &LateInputs::default()).unwrap().sequences.remove(0).logits.remove(0).1;
        let square = logits.iter().map(|logit| logit * logit).sum::<f32>() / logits.len() as f32;
        assert!(square.is_finite() && square > 0.01 && square < 100.0, "{format:?} {precision:?}: {square}");
    }
}
