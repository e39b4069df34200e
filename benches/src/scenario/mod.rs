//! The scenarios, and the one path that each takes: play, judge the neighbours, report.
//!
//! In: the command line. Out: a [`Report`] on the terminal and wherever the user asked for it. Deliberately not here: what a
//! scenario plays.

pub(crate) mod dense;
pub(crate) mod engine;
mod failures;
pub(crate) mod interference;
pub(crate) mod overhead;
mod page_cache;
pub(crate) mod resume;
mod side;
mod sizing;
pub(crate) mod start;
pub(crate) mod turns;

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use crate::noise::Watch;
use crate::options::{AllArguments, CommandLine, Common, Scenario, in_target};
use crate::report::{Begun, Outcome, Report};
use crate::{draw, html};

/// A scenario with its options.
pub(crate) trait Play {
    /// Its name on the command line and in the report.
    const NAME: &'static str;

    /// As it is played by `all`.
    fn among_all(all: &AllArguments) -> Self;

    /// What every scenario takes.
    fn common(&self) -> &Common;

    /// Whether other servers play too; their CPU time is not a neighbour's.
    fn has_peers(&self) -> bool {
        false
    }

    /// Plays it, and stops whatever it started.
    ///
    /// # Errors
    /// What kept it from its end.
    async fn play(&self, stage: &mut Stage<'_>) -> anyhow::Result<Outcome>;
}

/// What a scenario has at hand while it plays.
pub(crate) struct Stage<'a> {
    pub(crate) common: &'a Common,
    /// On stderr; scenarios set its length and say what is going on.
    pub(crate) progress: ProgressBar,
    /// Scenarios probe at quiet moments.
    pub(crate) watch: Watch,
}

/// Runs what the command line says.
///
/// # Errors
/// What kept a scenario from its end.
pub(crate) async fn run(line: CommandLine) -> anyhow::Result<()> {
    match &line.scenario {
        Scenario::Turns(arguments) => alone(arguments).await,
        Scenario::Dense(arguments) => alone(arguments).await,
        Scenario::Resume(arguments) => alone(arguments).await,
        Scenario::Interference(arguments) => alone(arguments).await,
        Scenario::Engine(arguments) => alone(arguments).await,
        Scenario::Start(arguments) => alone(arguments).await,
        Scenario::Overhead(arguments) => alone(arguments).await,
        Scenario::All(arguments) => all(arguments).await,
        Scenario::ServeNoop(arguments) => overhead::serve(arguments).await,
    }
}

async fn alone(scenario: &impl Play) -> anyhow::Result<()> {
    let report = report(scenario).await?;
    let common = scenario.common();
    report.print();
    if let Some(path) = &common.json {
        report.write(path)?;
        println!("wrote {}", path.display());
    }
    if let Some(directory) = &common.plots {
        draw::all(&report.plots, directory)?;
        println!("drew {} plots in {}", report.plots.len(), directory.display());
    }
    Ok(())
}

async fn all(arguments: &AllArguments) -> anyhow::Result<()> {
    let mut reports = Vec::new();
    for result in [
        report(&engine::Arguments::among_all(arguments)).await,
        report(&turns::Arguments::among_all(arguments)).await,
        report(&interference::Arguments::among_all(arguments)).await,
        report(&resume::Arguments::among_all(arguments)).await,
        report(&start::Arguments::among_all(arguments)).await,
        report(&dense::Arguments::among_all(arguments)).await,
        report(&overhead::Arguments::among_all(arguments)).await,
    ] {
        let report = result?;
        report.print();
        reports.push(report);
    }
    let page = arguments.html.clone().map_or_else(|| in_target("bench/report.html"), Ok)?;
    html::write(&reports, &page)?;
    println!("wrote {}", page.display());
    if let Some(path) = &arguments.common.json {
        let directory = path.with_extension("");
        for report in &reports {
            report.write(&directory.join(format!("{}.json", report.scenario)))?;
        }
        println!("wrote {} reports in {}", reports.len(), directory.display());
    }
    if let Some(directory) = &arguments.common.plots {
        for report in &reports {
            draw::all(&report.plots, directory)?;
        }
        println!("drew the plots in {}", directory.display());
    }
    Ok(())
}

async fn report<P: Play>(scenario: &P) -> anyhow::Result<Report> {
    #[expect(clippy::disallowed_methods, reason = "a report says when it was made")]
    let begun = Begun { scenario: P::NAME, at: SystemTime::now() };
    let common = scenario.common();
    let mut stage = Stage { common, progress: bar(P::NAME), watch: Watch::begin(scenario.has_peers()) };
    let outcome = scenario.play(&mut stage).await.with_context(|| format!("scenario {}", P::NAME))?;
    stage.progress.finish_and_clear();
    Ok(Report::new(&begun, common, outcome, stage.watch.verdict()))
}

fn bar(name: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:>12} [{bar:30}] {pos}/{len} {elapsed} {msg}");
    let bar = ProgressBar::new(1).with_prefix(name);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}
