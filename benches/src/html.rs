//! One self-contained page of many reports.

use std::path::Path;

use crate::report::Report;

/// Writes the page.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write(_reports: &[Report], _path: &Path) -> anyhow::Result<()> {
    anyhow::bail!("not written yet")
}
