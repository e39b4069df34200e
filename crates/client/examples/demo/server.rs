//! The runtime as a child process: started, found by the address that it prints, killed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::Context as _;

/// A running runtime. Dropping it kills it.
pub(crate) struct Server {
    child: Child,
    /// `HOST:PORT`, as it printed it.
    pub(crate) address: String,
    /// From the start to the printed address, milliseconds.
    pub(crate) start_ms: f64,
}

impl Server {
    /// Starts the binary on a loopback port (0: a free one) and waits for its address.
    pub(crate) fn start(binary: &Path, data_dir: &Path, port: u16) -> anyhow::Result<Self> {
        #[expect(clippy::disallowed_methods, reason = "the figure is shown to a person")]
        let begin = Instant::now();
        let mut child = Command::new(binary)
            .arg("serve")
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .arg("--data-dir")
            .arg(data_dir)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} cannot be started", binary.display()))?;
        let stdout = child.stdout.take().context("the runtime has no output")?;
        let mut lines = BufReader::new(stdout).lines();
        let first = lines.next().context("the runtime ended before it said its address")??;
        let address = first.rsplit(' ').next().context("no address in the first line")?.to_owned();
        Ok(Self { child, address, start_ms: begin.elapsed().as_secs_f64() * 1e3 })
    }

    /// The port it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.address.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(0)
    }

    /// SIGKILL: no handler runs, nothing is flushed.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
