//! The habits of the house, one command each: `check`, `test`, `demo`, `bench`, `make-model`, `device-conformance`, `cuda-check`,
//! `contract`, `fmt`.
//!
//! In: the command line. Out: other programs run in the workspace's root, findings on the terminal, and an exit status that
//! CI can believe. Deliberately not here: any of the project's crates. xtask must build, and say what is wrong, when they
//! do not.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal: printing is its output")]

mod bench;
mod check;
mod contract;
mod cuda_check;
mod demo;
mod device_conformance;
mod edges;
mod fmt;
mod make_model;
mod process;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The habits of the Holdfast house.
///
/// CI runs `check` and `test`, and nothing that is not written here or in the README.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", arg_required_else_help = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Bench(bench::Arguments),
    Check(check::Arguments),
    Test(test::Arguments),
    Demo(demo::Arguments),
    Contract(contract::Arguments),
    MakeModel(make_model::Arguments),
    DeviceConformance(device_conformance::Arguments),
    CudaCheck(cuda_check::Arguments),
    /// Format every Rust file of the workspace
    Fmt,
}

fn main() -> ExitCode {
    let done = match CommandLine::parse().command {
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Contract(arguments) => contract::run(&arguments),
        Command::MakeModel(arguments) => make_model::run(&arguments),
        Command::DeviceConformance(arguments) => device_conformance::run(&arguments),
        Command::CudaCheck(arguments) => cuda_check::run(&arguments),
        Command::Fmt => fmt::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Not anyhow's own form, which adds a backtrace of xtask: what failed is another program or a rule.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        super::CommandLine::command().debug_assert();
    }
}
