//! The runtime as a child process: started on loopback, found by the address that it prints, drained or killed.
//!
//! In: a binary, a model, settings. Out: a [`Server`] to connect to. Each has a directory of its own for its data, which is
//! gone with it unless a restart keeps it. Deliberately not here: what is asked of it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use holdfast_client::Client;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::options::Common;

/// Longest that a start may take: large models are packed when they are loaded.
const START_MAX: Duration = Duration::from_secs(600);
/// Of the variables that the runtime reads as settings.
const SETTINGS_PREFIX: &str = "HOLDFAST_";
/// Longest that a drained runtime may take to end.
const STOP_MAX: Duration = Duration::from_secs(30);

/// What to start.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    program: PathBuf,
    arguments: Vec<String>,
}

/// A runtime that runs. Dropping it kills it.
pub(crate) struct Server {
    child: Child,
    data: TempDir,
    address: String,
}

impl Launch {
    /// `holdfast serve` with one model, the scenario's settings, and then the user's, which win.
    ///
    /// # Errors
    /// When the binary is not there.
    pub(crate) fn serve(common: &Common, model: &str, settings: &[String]) -> anyhow::Result<Self> {
        let program = binary(common)?;
        let mut arguments = vec!["serve".to_owned(), "--model".to_owned(), model.to_owned()];
        for setting in settings.iter().chain(&common.set) {
            arguments.extend(["--set".to_owned(), setting.clone()]);
        }
        Ok(Self { program, arguments })
    }

    /// Any program that takes `--listen` and `--data-dir` and prints its address as the last word of its first line.
    pub(crate) fn program(program: PathBuf, arguments: Vec<String>) -> Self {
        Self { program, arguments }
    }
}

impl Server {
    /// Starts on a free port of loopback with no data, and waits until it serves.
    ///
    /// # Errors
    /// When it ends, or says no address in time; with what it printed.
    pub(crate) async fn start(launch: &Launch) -> anyhow::Result<Self> {
        let data = tempfile::tempdir().context("no temporary directory for the runtime's data")?;
        let (child, address) = spawn(launch, data.path()).await?;
        Ok(Self { child, data, address })
    }

    /// Where it keeps its data.
    pub(crate) fn data(&self) -> &Path {
        self.data.path()
    }

    /// A connection.
    ///
    /// # Errors
    /// When nobody answers.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.address).await?)
    }

    /// SIGKILL: no handler runs, nothing is flushed. The data stays.
    ///
    /// # Errors
    /// When it had ended on its own.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("the runtime could not be killed")
    }

    /// Starts again over the same data.
    ///
    /// # Errors
    /// As for [`Server::start`].
    pub(crate) async fn restart(&mut self, launch: &Launch) -> anyhow::Result<()> {
        (self.child, self.address) = spawn(launch, self.data.path()).await?;
        Ok(())
    }

    /// Drains it with SIGTERM and waits, so that its CPU time is counted as a child's.
    ///
    /// # Errors
    /// When it does not end in time; it is killed then.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id() {
            // tokio and std know only SIGKILL, and `kill` is part of every POSIX system.
            Command::new("kill").args(["-TERM", &pid.to_string()]).status().await?;
        }
        match tokio::time::timeout(STOP_MAX, self.child.wait()).await {
            Ok(status) => status.map(drop).context("waiting for the runtime"),
            Err(_) => {
                self.child.kill().await?;
                bail!("the runtime did not end within {STOP_MAX:?} of SIGTERM and was killed")
            }
        }
    }
}

async fn spawn(launch: &Launch, data: &Path) -> anyhow::Result<(Child, String)> {
    let mut command = Command::new(&launch.program);
    // What is measured is what the scenario and --set say, not what this shell happens to set.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with(SETTINGS_PREFIX)) {
        command.env_remove(name);
    }
    let mut child = command
        .args(&launch.arguments)
        .args(["--listen", "127.0.0.1:0", "--data-dir"])
        .arg(data)
        .env("HOLDFAST_TELEMETRY__LOG", "warn")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("{} cannot be started", launch.program.display()))?;
    let stdout = child.stdout.take().context("the runtime has no output")?;
    let mut lines = BufReader::new(stdout).lines();
    let first = tokio::time::timeout(START_MAX, lines.next_line()).await;
    let first = first.with_context(|| format!("the runtime said no address within {START_MAX:?}"))??;
    let first = first.context("the runtime ended before it said its address; what it printed is above")?;
    let address = first.rsplit(' ').next().unwrap_or_default().to_owned();
    // Whatever else it prints is read and dropped, so that the pipe never fills.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok((child, address))
}

fn binary(common: &Common) -> anyhow::Result<PathBuf> {
    let beside = || {
        let this = std::env::current_exe().ok()?;
        Some(this.with_file_name(format!("holdfast{}", std::env::consts::EXE_SUFFIX)))
    };
    let path = common.binary.clone().or_else(beside).context("this program does not know where it lies")?;
    if !path.is_file() {
        bail!("no runtime at {}; build it with `cargo build --release`, or name one with --binary", path.display());
    }
    Ok(path)
}
