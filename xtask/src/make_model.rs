//! `cargo xtask make-model`: builds the model maker in release, because it draws billions of numbers, and hands it the
//! arguments as they are. What they mean is the maker's to say.

use std::env::consts::EXE_SUFFIX;
use std::ffi::OsString;

use anyhow::Context as _;

use crate::process;

/// Write a model of a real shape with seeded random weights; `--list` shows the shapes, `--help` the rest
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// Handed to the maker as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    passed_on: Vec<OsString>,
}

/// Builds, then runs the maker where the user stands: a relative `--out` is theirs.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let here = std::env::current_dir().context("cannot tell the current directory")?;
    process::run(process::cargo().args([
        "build",
        "--release",
        "--package",
        "holdfast-model-maker",
        "--bin",
        "make-model",
    ]))?;
    let maker = process::target_directory()?.join("release").join(format!("make-model{EXE_SUFFIX}"));
    process::run(process::program(maker).current_dir(here).args(&arguments.passed_on))
}
