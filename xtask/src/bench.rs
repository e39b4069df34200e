//! `cargo xtask bench`: builds the runtime and the driver in release, and lets the driver measure. Everything that is measured,
//! and every option, is the driver's (`benches/`).

use std::ffi::OsString;

use crate::process;

/// What users feel, measured over gRPC against the machine's limits and against other engines
///
/// Scenarios: turns, dense, resume, interference, engine, start, overhead, all. `cargo xtask bench SCENARIO --help` tells the options.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// The scenario and its options, handed to the driver as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "SCENARIO [OPTIONS]")]
    passed_on: Vec<OsString>,
}

/// Builds both, then runs the driver.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut driver = process::built(&[("holdfast", "holdfast"), ("holdfast-benches", "holdfast-bench")])?;
    process::run(driver.args(&arguments.passed_on))
}
