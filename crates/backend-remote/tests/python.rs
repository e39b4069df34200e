//! The example device in Python passes the suite that every backend passes. Needs python3 with grpcio-tools and numpy; `cargo xtask test`
//! runs it where they are.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/lent.rs"]
mod lent;

use std::path::Path;
use std::process::{Child, Command};

use holdfast_backend::conformance::Tolerance;
use holdfast_backend_remote::DeviceAddress;
use holdfast_model::random::MicroShape;

/// Ends with the test.
struct Device(Child);

impl Drop for Device {
    fn drop(&mut self) {
        // An error means that it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs python3 with grpcio-tools and numpy; cargo xtask test runs it"]
fn the_example_in_python_passes_the_suite() {
    let directory = tempfile::tempdir().unwrap();
    let shape = MicroShape { tied: false, seed: 8, ..MicroShape::default() };
    shape.write(directory.path()).unwrap();
    let model = shape.build().unwrap();
    let address = DeviceAddress::Unix(directory.path().join("device.sock"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/python-device/device.py");
    let mut command = Command::new("python3");
    command.arg(script).arg("--model").arg(directory.path());
    command.args(["--weights", &model.weights().digest().to_string(), "--listen", &address.to_string()]);
    let _device = Device(command.spawn().unwrap());
    let report = lent::conformance(&address, &model, Tolerance { abs: 5e-5, rel: 1e-5 }).unwrap();
    assert_eq!(report.rows_compared, 3 * 53);
}
