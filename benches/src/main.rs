//! `cargo xtask bench`: what users feel, measured over gRPC against a runtime that is started for it.
//!
//! In: a scenario and its options. Out: a table on the terminal, and on demand JSON, plots and one HTML report. Every figure is
//! a median with its spread, taken in turn with what it is compared with; a run on a busy machine says so.
//! Deliberately not here: the parts alone (criterion, in `benches/`), and any judgement of what is fast enough.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal: printing is its output")]

mod draw;
mod engine;
mod file;
mod html;
mod machine;
mod model;
mod noise;
mod options;
mod player;
mod plot;
mod report;
mod scenario;
mod server;
mod statistics;
mod table;
mod workload;

use std::process::ExitCode;

use clap::Parser as _;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match scenario::run(options::CommandLine::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
