//! Holds a device that listens somewhere to the conformance suite: `cargo xtask device-conformance ADDRESS --model DIR` for everybody
//! who writes one.
//!
//! In: an address, and the model that the device holds. Out: the checks that passed, or the rule that is broken. Deliberately not
//! here: starting the device.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a program for the terminal: printing is its output")]

#[path = "../tests/support/lent.rs"]
mod lent;

use std::path::PathBuf;

use clap::Parser;
use holdfast_backend::conformance::Tolerance;
use holdfast_backend_remote::DeviceAddress;
use holdfast_model::{Model, ModelSource};

/// Hold a device to the conformance suite.
#[derive(Parser)]
struct Arguments {
    /// Where it listens: unix:PATH or HOST:PORT
    address: DeviceAddress,
    /// The model that it holds: a directory in Hugging Face layout, or a GGUF file. A small one will do, and takes less time
    #[arg(long)]
    model: PathBuf,
    /// How far a logit may be from the reference's
    #[arg(long, default_value_t = 1e-3)]
    abs: f32,
    /// ... and in addition, relative to it
    #[arg(long, default_value_t = 1e-3)]
    rel: f32,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let model = Model::load(&ModelSource::at(&arguments.model)?)?;
    let tolerance = Tolerance { abs: arguments.abs, rel: arguments.rel };
    let report = lent::conformance(&arguments.address, &model, tolerance)?;
    for (precision, check) in &report.checks {
        println!("ok  {precision:?}: {check}");
    }
    println!(
        "{} rows compared with the reference: largest distance {:e}, relative root mean square {:e}",
        report.rows_compared, report.max_abs_error, report.relative_rms_error
    );
    Ok(())
}
