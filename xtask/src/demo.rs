//! `cargo xtask demo`: the product's story in one command. Builds the binary and the client's example `demo` in release
//! and lets the example drive the binary over gRPC. The script itself is the example's, not ours.

use std::env::consts::EXE_SUFFIX;

use crate::process;

/// A scripted agent against a real runtime: what was cached, what was computed, a crash and the recovery
///
/// Facts, a tool call, recall; a SIGKILL in mid-turn; and the same conversation through the stateless API, side by side.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Handed to the example as they are
    #[arg(last = true, value_name = "ARGS")]
    passed_on: Vec<String>,
}

/// Builds, then runs the example.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    // One build for both: with the same set of packages the features of what they share are the same, and nothing is
    // compiled twice.
    process::run(process::cargo().args([
        "build",
        "--release",
        "--package",
        "holdfast",
        "--bin",
        "holdfast",
        "--package",
        "holdfast-client",
        "--example",
        "demo",
    ]))?;
    let release = process::target_directory()?.join("release");
    let example = release.join("examples").join(format!("demo{EXE_SUFFIX}"));
    let binary = release.join(format!("holdfast{EXE_SUFFIX}"));
    process::run(process::program(example).arg("--binary").arg(binary).args(&arguments.passed_on))
}
