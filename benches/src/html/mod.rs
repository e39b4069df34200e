//! One self-contained page of many reports: style and plots inside, nothing fetched, no script.
//!
//! In: reports. Out: the file. What a report says in the terminal, the page says too; settings and the JSON are folded away.
//! Deliberately not here: the page's looks (`report.html`) and the drawing of plots.

use std::path::Path;

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Value, context};

use crate::draw;
use crate::file::write_whole;
use crate::report::Report;

const PAGE: &str = include_str!("report.html");

/// Writes the page; whole or not at all.
///
/// # Errors
/// When the file cannot be written, with its path.
pub(crate) fn write(reports: &[Report], path: &Path) -> anyhow::Result<()> {
    write_whole(path, render(reports)?.as_bytes())
}

fn render(reports: &[Report]) -> anyhow::Result<String> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let colours = draw::COLOURS.map(|colour| context! { light => colour.light(), dark => colour.dark() });
    let sections = reports.iter().map(section).collect::<anyhow::Result<Vec<_>>>()?;
    let page = context! { colours => Value::from(colours.to_vec()), sections, first => reports.first().map(Serde) };
    Ok(environment.render_named_str("report.html", PAGE, page)?)
}

fn section(report: &Report) -> anyhow::Result<Value> {
    let plots = report.plots.iter().map(|plot| {
        // Markup of our own making, in which the painter has escaped every text.
        Ok(context! { title => plot.title.as_str(), svg => Value::from_safe_string(draw::svg(plot)?) })
    });
    Ok(context! {
        report => Serde(report),
        noise => report.noise_line(),
        tables => Serde(&report.tables),
        plots => plots.collect::<anyhow::Result<Vec<_>>>()?,
        model => serde_json::to_string_pretty(&report.model)?,
        settings => serde_json::to_string_pretty(&report.settings)?,
        json => serde_json::to_string_pretty(report)?,
    })
}

#[cfg(test)]
mod tests;
