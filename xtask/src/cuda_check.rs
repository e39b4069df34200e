//! `cargo xtask cuda-check`: everything that only a GPU can show, in one run. Arguments go as they are to the program that the CUDA device's crate has as an
//! example; it says `skipped` where there is no GPU.

use std::ffi::OsString;

use crate::process;

/// Hold the CUDA device to its suite on this machine's GPU, measure it, and write a report (`--out PATH`, `--nvrtc PATH`)
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// Handed to the program as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "--out FILE --nvrtc LIBRARY")]
    passed_on: Vec<OsString>,
}

/// Builds and runs the program.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let package = ["--package", "holdfast-backend-cuda", "--example", "card_check", "--"];
    process::run(process::cargo().args(["run", "--quiet", "--release"]).args(package).args(&arguments.passed_on))
}
