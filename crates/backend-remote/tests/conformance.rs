//! A local device, lent over a Unix socket and over TCP, passes the suite that every backend passes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use holdfast_backend::Backend;
use holdfast_backend::conformance::{self, Report};
use holdfast_backend_neuron::{KvSize, NeuronDevice, NeuronSettings, WeightFormat};
use holdfast_backend_remote::{DeviceAddress, Listener, RemoteBackend, RemoteSettings, serve};
use holdfast_model::Model;
use holdfast_model::random::{MicroFamily, MicroShape};
use support::{Candle, Nameless, TOLERANCE};
use tokio::runtime::Runtime;

fn settings() -> NeuronSettings {
    NeuronSettings {
        threads: 1,
        kv: KvSize::Blocks(20),
        slots: 5,
        max_step_rows: 24,
        in_flight: 2,
        ..NeuronSettings::default()
    }
}

/// Every fresh device is a server of its own at an address of its own.
fn suite(model: &Model, settings: &NeuronSettings, mut address: impl FnMut() -> DeviceAddress) -> Report {
    let runtime = Runtime::new().unwrap();
    let mut factory = || -> Box<dyn Backend> {
        let device = NeuronDevice::new(model.config(), model.weights(), settings).unwrap();
        let address = address();
        let listener = runtime.block_on(Listener::bind(&address)).unwrap();
        let address = listener.address().unwrap();
        runtime.spawn(serve(Box::new(device), listener, std::future::pending()));
        let (connect_timeout, step_timeout) = (Duration::from_secs(60), Duration::from_secs(60));
        let backend = RemoteBackend::connect(RemoteSettings { address, connect_timeout, step_timeout }).unwrap();
        assert!(backend.describe().name.contains(" at "), "{}", backend.describe().name);
        // Names hold the address, and the suite asks for equal devices.
        Box::new(Nameless::new(backend))
    };
    conformance::run(&mut factory, &Candle::new(model), TOLERANCE)
}

#[test]
fn over_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let mut count = 0;
    let model = MicroShape { family: MicroFamily::Gemma3, window: Some(18), layers: 3, ..MicroShape::default() };
    let report = suite(&model.build().unwrap(), &settings(), || {
        count += 1;
        DeviceAddress::Unix(directory.path().join(format!("{count}.sock")))
    });
    assert_eq!(report.rows_compared, 3 * 53);
}

#[test]
fn over_tcp() {
    let model = MicroShape { seed: 2, ..MicroShape::default() }.build().unwrap();
    let settings = NeuronSettings { weights: WeightFormat::F32, in_flight: 1, ..settings() };
    let report = suite(&model, &settings, || "127.0.0.1:0".parse().unwrap());
    assert_eq!(report.rows_compared, 3 * 53);
}
