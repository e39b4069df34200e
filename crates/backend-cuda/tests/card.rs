//! The device on a real GPU; where there is none, every test says `skipped` with what is missing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod suite;

use holdfast_backend_cuda::{CudaDevice, CudaError, CudaSettings, cards};
use holdfast_model::Model;
use holdfast_types::Precision;

use suite::{conforms, has_the_bits_of_the_cpu_device, has_the_bits_of_the_cpu_device_over_spans, shapes};

fn device(model: &Model, settings: &CudaSettings) -> Result<CudaDevice, CudaError> {
    let settings = CudaSettings { nvrtc: std::env::var_os("NVRTC_LIBRARY").map(Into::into), ..settings.clone() };
    CudaDevice::new(model.config(), model.weights(), &settings)
}

/// Whether there is a card to test on.
fn is_there() -> bool {
    match cards(None) {
        Ok(found) if !found.cards.is_empty() => true,
        Ok(_) => {
            println!("skipped: the driver knows of no GPU");
            false
        }
        Err(error) => {
            println!("skipped: {error}");
            false
        }
    }
}

#[test]
fn every_family_passes_the_suite_in_bf16() {
    if is_there() {
        shapes().iter().for_each(|shape| println!("{:?}", conforms(&device, shape, Precision::Native)));
    }
}

#[test]
fn every_family_passes_the_suite_with_nested_weights() {
    if is_there() {
        for (shape, precision) in shapes().iter().flat_map(|shape| [(shape, Precision::Int8), (shape, Precision::Int4)])
        {
            println!("{:?}", conforms(&device, shape, precision));
        }
    }
}

#[test]
fn nested_weights_have_the_bits_of_the_cpu_device() {
    if is_there() {
        shapes().iter().for_each(|shape| assert!(has_the_bits_of_the_cpu_device(&device, shape) > 0));
        assert!(has_the_bits_of_the_cpu_device_over_spans(&device, &shapes()[0]) > 0);
    }
}

/// Without a driver, a device is refused with what is missing, and nothing panics.
#[test]
fn what_is_missing_is_named() {
    let model = shapes()[0].build().unwrap();
    match device(&model, &CudaSettings { ordinal: 1_000, ..CudaSettings::default() }) {
        Err(error @ (CudaError::NoDriver | CudaError::Driver(_) | CudaError::NoCard { .. })) => println!("{error}"),
        other => panic!("{other:?}"),
    }
}
