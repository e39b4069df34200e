//! `cargo xtask fmt`: format every Rust file of the workspace. The settings are rustfmt.toml's, none are here.

use crate::process;

/// Formats in place.
pub(crate) fn run() -> anyhow::Result<()> {
    process::run(process::cargo().args(["fmt", "--all"]))
}
