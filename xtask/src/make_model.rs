//! `cargo xtask make-model`: builds the model maker in release, because it draws billions of numbers, and hands it the
//! arguments as they are. What they mean is the maker's to say.

use std::ffi::OsString;

use crate::process;

/// Write a model of a real shape with seeded random weights; `--list` shows the shapes, `--help` the rest
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// Handed to the maker as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    passed_on: Vec<OsString>,
}

/// Builds, then runs the maker.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    process::run(process::built(&[("holdfast-model-maker", "make-model")])?.args(&arguments.passed_on))
}
