//! Plots as SVG and PNG.

use std::path::Path;

use crate::plot::Plot;

/// Draws each plot twice into a directory: `NAME.svg` and `NAME.png`.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn all(_plots: &[Plot], _directory: &Path) -> anyhow::Result<()> {
    anyhow::bail!("not written yet")
}
