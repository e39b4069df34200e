//! The Holdfast runtime: one binary that serves, chats, and looks after sessions and models. This file is thin: parse, load settings, run.
#![forbid(unsafe_code)]

mod build;
mod chat;
mod cli;
mod clock;
mod config;
mod device;
mod devices;
mod find;
mod flags;
mod gauges;
mod gpus;
mod models;
mod reason;
mod registry;
mod runtime;
mod serve;
mod sessions;
mod settings;
mod turn_view;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::cli::{Cli, Command, SettingsArgs};

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the one place where a command's error is told")]
            match reason::of(&error) {
                Some(reason) => eprintln!("holdfast: {reason}: {error:#}"),
                None => eprintln!("holdfast: {error:#}"),
            }
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Config(args) => return config::run(&load_settings(&args)?),
        Command::Devices(args) => return devices::run(&load_settings(&args.settings)?.settings, args.json),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "holdfast", &mut std::io::stdout());
            return Ok(());
        }
        Command::Serve(_) | Command::Chat(_) | Command::Sessions(_) | Command::Models(_) | Command::Device(_) => {}
    }
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    tokio.block_on(async {
        match cli.command {
            Command::Serve(args) => serve::run(&load_settings(&args)?.settings).await,
            Command::Chat(args) => chat::run(args).await,
            Command::Sessions(args) => sessions::run(args).await,
            Command::Models(args) => models::run(args).await,
            Command::Device(args) => device::run(args).await,
            Command::Config(_) | Command::Devices(_) | Command::Completions { .. } => Ok(()),
        }
    })
}

fn load_settings(args: &SettingsArgs) -> anyhow::Result<settings::Loaded> {
    Ok(settings::load(args.config.as_deref(), settings::environment(), flags::Flags(args))?)
}

/// `holdfast sessions list | head` ends quietly.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
