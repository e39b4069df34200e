//! `cargo xtask check`: every rule that a machine can hold us to, tests aside, in one command. Quick steps go first; a
//! failure does not stop the others, and the summary at the end names every one.
//!
//! Deliberately not here: the rules themselves. Each step is a program or a module of its own.

use std::time::{Duration, Instant};

use anyhow::bail;
use clap::ValueEnum as _;

use crate::{contract, edges, process, tidy};

/// Everything that must hold before a change lands, tests aside
///
/// Runs every step, or those that are named. A failure does not stop the others; the summary at the end names each.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only these steps
    #[arg(value_enum, value_name = "STEP")]
    steps: Vec<Step>,
}

/// In the order in which they run: what answers in a second goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Step {
    /// `cargo fmt --all --check`
    Format,
    /// What every file owes its reader: its first lines, its size, its name; and where `unsafe` may be
    Files,
    /// Who imports whom, against the table of ARCHITECTURE.md
    Edges,
    /// proto/ against the baseline of the public contract
    Contract,
    /// cargo-deny: licences, duplicates, sources; skipped where cargo-deny is not installed
    Deny,
    /// clippy on all targets and features, warnings denied
    Lints,
    /// rustdoc with private items, warnings denied: links that lead nowhere
    Docs,
}

enum Outcome {
    Passed,
    Skipped(String),
    Failed(anyhow::Error),
}

/// Runs the steps, prints the summary, and fails if a step did.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let chosen = |step: &&Step| arguments.steps.is_empty() || arguments.steps.contains(step);
    let mut results = Vec::new();
    for step in Step::value_variants().iter().filter(chosen) {
        println!("\n==> {}", name(*step));
        let started = now();
        let outcome = match step.run() {
            Ok(None) => Outcome::Passed,
            Ok(Some(reason)) => {
                println!("skipped: {reason}");
                Outcome::Skipped(reason)
            }
            Err(error) => {
                println!("{error:#}");
                Outcome::Failed(error)
            }
        };
        let took = started.elapsed();
        println!("    {} in {}", word(&outcome), seconds(took));
        results.push((*step, outcome, took));
    }

    let (lines, failed) = summary(&results);
    println!("\nsummary\n{lines}");
    if !failed.is_empty() {
        bail!("{} of {} steps failed: {}", failed.len(), results.len(), failed.join(", "));
    }
    Ok(())
}

/// One line for each step that ran, and the names of those that failed.
fn summary(results: &[(Step, Outcome, Duration)]) -> (String, Vec<String>) {
    let mut lines = Vec::new();
    let mut failed = Vec::new();
    for (step, outcome, took) in results {
        let note = match outcome {
            Outcome::Passed => String::new(),
            Outcome::Skipped(reason) => reason.clone(),
            Outcome::Failed(error) => {
                failed.push(name(*step));
                error.to_string().lines().next().unwrap_or_default().trim_end_matches(':').to_owned()
            }
        };
        let line = format!("  {:8}{:>8}  {:9} {note}", word(outcome), seconds(*took), name(*step));
        lines.push(line.trim_end().to_owned());
    }
    (lines.join("\n"), failed)
}

impl Step {
    /// `None`: it ran and holds. `Some`: why it was skipped.
    fn run(self) -> anyhow::Result<Option<String>> {
        match self {
            Step::Format => process::run(process::cargo().args(["fmt", "--all", "--check"])).map(|()| None),
            Step::Files => tidy::check().map(|()| None),
            Step::Edges => edges::check().map(|()| None),
            Step::Contract => contract::check().map(|()| None),
            Step::Deny => deny(),
            Step::Lints => process::run(process::cargo().args([
                "clippy",
                "--locked",
                "--workspace",
                "--all-targets",
                "--all-features",
                "--",
                "-D",
                "warnings",
            ]))
            .map(|()| None),
            Step::Docs => process::run(process::cargo().env("RUSTDOCFLAGS", "-D warnings").args([
                "doc",
                "--locked",
                "--workspace",
                "--no-deps",
                "--document-private-items",
            ]))
            .map(|()| None),
        }
    }
}

fn deny() -> anyhow::Result<Option<String>> {
    if !process::succeeds(process::cargo().args(["deny", "--version"])) {
        return Ok(Some("cargo-deny is not installed (cargo install --locked cargo-deny)".to_owned()));
    }
    // Advisories need a database from the network: `cargo deny check advisories` is for a person or a nightly run.
    process::run(process::cargo().args(["deny", "check", "licenses", "bans", "sources"])).map(|()| None)
}

#[expect(clippy::disallowed_methods, reason = "a tool for the terminal that tells how long its steps took")]
fn now() -> Instant {
    Instant::now()
}

fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}

fn name(step: Step) -> String {
    step.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Skipped(_) => "skipped",
        Outcome::Failed(_) => "FAILED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_has_a_name_and_a_sentence() {
        for step in Step::value_variants() {
            assert!(!name(*step).is_empty());
            assert!(step.to_possible_value().is_some_and(|value| value.get_help().is_some()), "{step:?}");
        }
    }

    #[test]
    fn the_summary_names_every_failure() {
        let took = Duration::from_millis(1_250);
        let results = [
            (Step::Format, Outcome::Failed(anyhow::anyhow!("a reason:\nand its details")), took),
            (Step::Edges, Outcome::Passed, took),
            (Step::Deny, Outcome::Skipped("not installed".to_owned()), took),
            (Step::Docs, Outcome::Failed(anyhow::anyhow!("another")), took),
        ];
        let (lines, failed) = summary(&results);
        assert_eq!(failed, ["format", "docs"]);
        let expected = [
            "  FAILED     1.2 s  format    a reason",
            "  passed     1.2 s  edges",
            "  skipped    1.2 s  deny      not installed",
            "  FAILED     1.2 s  docs      another",
        ];
        assert_eq!(lines.lines().collect::<Vec<_>>(), expected);
    }
}
