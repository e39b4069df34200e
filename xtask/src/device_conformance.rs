//! `cargo xtask device-conformance`: the suite that every device passes, against one that listens somewhere. Arguments go as they are to the
//! program that the remote backend's crate has as an example.

use std::ffi::OsString;

use crate::process;

/// Hold a device that listens at an address to the conformance suite; `--help` shows the arguments
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// Handed to the program as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ADDRESS --model DIR")]
    passed_on: Vec<OsString>,
}

/// Builds and runs the program.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let program = ["run", "--quiet", "--package", "holdfast-backend-remote", "--example", "conformance", "--"];
    process::run(process::cargo().args(program).args(&arguments.passed_on))
}
