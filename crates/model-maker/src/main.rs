//! `make-model`: the model maker on the command line. `cargo xtask make-model` builds and runs it.
//!
//! In: arguments. Out: a model on disk, a progress bar on stderr, an exit status. Deliberately not here: how models are made.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal: printing is its output")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use holdfast_model_maker::{Format, SHAPES, Shape, make, remake};
use indicatif::{ProgressBar, ProgressStyle};

/// Write a model of a real shape with seeded random weights, for benchmarks and tests.
///
/// Its answers mean nothing; its sizes and its arithmetic are those of the real one.
#[derive(Parser)]
#[command(name = "make-model", bin_name = "cargo xtask make-model", arg_required_else_help = true)]
struct CommandLine {
    /// Name of a shape; --list shows them
    #[arg(long, value_name = "NAME", required_unless_present = "list", value_parser = Shape::named)]
    shape: Option<&'static Shape>,
    /// hf-bf16 (a directory), gguf-q8_0, gguf-q4_0 or gguf-f16 (a file)
    #[arg(long, value_name = "FORMAT", required_unless_present = "list")]
    format: Option<Format>,
    /// Where the model goes; appears only when it is whole
    #[arg(long, value_name = "PATH", required_unless_present = "list")]
    out: Option<PathBuf>,
    /// Decides every weight
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Take the place of what is at PATH
    #[arg(long)]
    force: bool,
    /// Show every shape with its parameters and its size in each format
    #[arg(long, exclusive = true)]
    list: bool,
}

fn main() -> ExitCode {
    let arguments = CommandLine::parse();
    let (Some(shape), Some(format), Some(out)) = (arguments.shape, arguments.format, &arguments.out) else {
        list();
        return ExitCode::SUCCESS;
    };
    match run(shape, format, arguments.seed, out, arguments.force) {
        Ok(()) => ExitCode::SUCCESS,
        // Not anyhow's own form, which adds a backtrace: what failed is the disk or an argument.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(shape: &Shape, format: Format, seed: u64, out: &Path, force: bool) -> anyhow::Result<()> {
    let style = ProgressStyle::with_template("{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        .context("the bar's template")?;
    let bar = ProgressBar::new(0).with_style(style).with_message(shape.name);
    let make = if force { remake } else { make };
    make(shape, format, seed, out, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    println!("{}", out.display());
    Ok(())
}

fn list() {
    let formats = Format::ALL.map(|format| format!("{format:>12}")).concat();
    println!("{:<12}{:>12}  {:<6}{:>10}{formats}", "shape", "parameters", "output", "context");
    for shape in SHAPES {
        let sizes = Format::ALL.map(|format| format!("{:>9.1} MB", format.weight_bytes(shape) as f64 / 1e6)).concat();
        let output = if shape.tied { "tied" } else { "own" };
        println!("{:<12}{:>12}  {output:<6}{:>10}{sizes}", shape.name, megas(shape.parameters()), shape.context_limit);
    }
}

fn megas(count: u64) -> String {
    format!("{:.1} M", count as f64 / 1e6)
}
