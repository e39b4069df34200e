//! `cargo xtask bench`: builds the runtime and the driver in release, and lets the driver measure. Everything that is measured,
//! and every option, is the driver's (`benches/`).

use std::env::consts::EXE_SUFFIX;
use std::ffi::OsString;

use crate::process;

/// What users feel, measured over gRPC against the machine's limits and against other engines
///
/// Scenarios: turns, dense, resume, interference, engine, overhead, all. `cargo xtask bench SCENARIO --help` tells the options.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// The scenario and its options, handed to the driver as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "SCENARIO [OPTIONS]")]
    passed_on: Vec<OsString>,
}

/// Builds both, then runs the driver.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    process::run(process::cargo().args([
        "build",
        "--release",
        "--package",
        "holdfast",
        "--bin",
        "holdfast",
        "--package",
        "holdfast-benches",
        "--bin",
        "holdfast-bench",
    ]))?;
    let driver = process::target_directory()?.join("release").join(format!("holdfast-bench{EXE_SUFFIX}"));
    process::run(process::program(driver).args(&arguments.passed_on))
}
