//! The command line: one subcommand for each scenario, and what they all take.
//!
//! Deliberately not here: options of one scenario alone, which stand beside it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use crate::scenario::{dense, engine, interference, overhead, resume, start, turns};

/// Measure what users feel, against the machine's limits and against other engines.
///
/// Each scenario starts a `holdfast serve` of its own on loopback, plays its part over gRPC and stops it. Figures are medians
/// with their spread, measured in turn with what they are compared with; if the machine was busy, the output says so.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench", arg_required_else_help = true)]
pub(crate) struct CommandLine {
    #[command(subcommand)]
    pub(crate) scenario: Scenario,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Scenario {
    Turns(turns::Arguments),
    Dense(dense::Arguments),
    Resume(resume::Arguments),
    Interference(interference::Arguments),
    Engine(engine::Arguments),
    Start(start::Arguments),
    Overhead(overhead::Arguments),
    /// Every scenario, one after the other, and one HTML page of them all
    All(AllArguments),
    /// A runtime on a device that answers at once; started by `overhead`
    #[command(hide = true)]
    ServeNoop(overhead::ServeArguments),
}

/// What every scenario takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Common {
    /// A model: a name that `holdfast serve` knows, a directory or a GGUF file [default: a seeded random model, made once and
    /// kept in the cache directory]
    #[arg(long, value_name = "NAME|PATH")]
    pub(crate) model: Option<String>,
    /// Decides every random choice of the workload
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Write the report there
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Draw the plots there, as SVG and PNG
    #[arg(long, value_name = "DIR")]
    pub(crate) plots: Option<PathBuf>,
    /// Smaller, in less than a minute
    #[arg(long)]
    pub(crate) quick: bool,
    /// A setting of the runtime, as `holdfast serve --set` takes it
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// The `holdfast` binary to start [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    pub(crate) binary: Option<PathBuf>,
    /// Where models made for benchmarks are kept [default: bench-models in cargo's target directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
}

/// Other servers to play the same conversations.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Peers {
    /// A server that speaks the OpenAI chat API, played in turn with ours; may be given more than once
    #[arg(long = "peer", value_name = "NAME=URL")]
    pub(crate) peers: Vec<crate::player::openai::Peer>,
}

/// `all`.
#[derive(Debug, Clone, Args)]
pub(crate) struct AllArguments {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) peers: Peers,
    /// The page [default: bench/report.html in cargo's target directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

/// A place in cargo's target directory, of which this program lies in a folder.
///
/// # Errors
/// When this program does not know where it lies.
pub(crate) fn in_target(name: &str) -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("this program does not know where it lies")?;
    let target = this.parent().and_then(Path::parent).context("this program lies in no target directory")?;
    Ok(target.join(name))
}
