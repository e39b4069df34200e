//! Plots as SVG and PNG.
//!
//! In: plots as data. Out: files, or an SVG's text for the HTML report. Both formats come from one painter, which needs no font
//! of the system: the letters are in the binary. Deliberately not here: what a plot looks like (`figure`), how an axis is
//! divided (`ruler`).

mod canvas;
mod colour;
mod figure;
mod ruler;

use std::path::Path;

use anyhow::Context as _;

pub(crate) use self::colour::COLOURS;
use crate::plot::Plot;

/// Draws each plot twice into a directory: `NAME.svg` and `NAME.png`.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn all(plots: &[Plot], directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("{} cannot be made", directory.display()))?;
    for plot in plots {
        let file = |ending: &str| directory.join(format!("{}.{ending}", plot.name));
        let cannot = |file: &Path| format!("{} cannot be written", file.display());
        std::fs::write(file("svg"), svg(plot)?).with_context(|| cannot(&file("svg")))?;
        std::fs::write(file("png"), png(plot)?).with_context(|| cannot(&file("png")))?;
    }
    Ok(())
}

/// The plot as one `<svg>` element, which stands alone as a file or inside a page.
///
/// # Errors
/// When the painter fails.
pub(crate) fn svg(plot: &Plot) -> anyhow::Result<String> {
    canvas::svg(|canvas| figure::paint(plot, canvas)).with_context(|| format!("plot {}", plot.name))
}

fn png(plot: &Plot) -> anyhow::Result<Vec<u8>> {
    canvas::png(|canvas| figure::paint(plot, canvas)).with_context(|| format!("plot {}", plot.name))
}

#[cfg(test)]
mod tests;
