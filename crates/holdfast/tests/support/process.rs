//! The runtime as a child process: started on a data directory, found by the address that it prints, signalled, killed,
//! started again. What it says goes to a file in the data directory's parent, and to the screen when a test fails.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use holdfast_client::Client;

use super::{SOON, until};

/// From the start to the printed address; loading a model included.
const START: Duration = Duration::from_secs(60);
/// Lines of the log that a failing test shows.
const SHOWN_LINES: usize = 60;

/// The binary under test.
pub(crate) fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_holdfast")
}

/// A command of the binary that knows nothing of this shell's settings.
pub(crate) fn command() -> Command {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HOLDFAST_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Where runtimes live, one after the other: a data directory and what is said there.
pub(crate) struct Home {
    directory: tempfile::TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    /// The directory that holds the data directory, the log, and whatever a test puts there.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path().join("runtime.log")
    }

    /// Everything that the runtimes of this home have said.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// `holdfast serve` on this home's data directory and a free port.
    pub(crate) fn serve(&self, arguments: &[&str]) -> Command {
        let mut command = command();
        command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(self.data()).args(arguments);
        command
    }

    /// Starts a runtime.
    ///
    /// # Panics
    /// When it does not come up.
    pub(crate) fn start(&self, arguments: &[&str]) -> Runtime {
        match self.try_start(arguments, START) {
            Some(runtime) => runtime,
            None => panic!("the runtime did not print its address; it said:\n{}", self.said()),
        }
    }

    /// Starts a runtime; `None` if it has not printed its address within `bound` (it is killed then).
    pub(crate) fn try_start(&self, arguments: &[&str], bound: Duration) -> Option<Runtime> {
        self.launch(self.serve(arguments), bound)
    }

    /// Where [`Home::lend`] listens.
    pub(crate) fn device_address(&self) -> String {
        format!("unix:{}", self.path().join("device.sock").display())
    }

    /// Starts a device that is lent at this home's socket.
    ///
    /// # Panics
    /// When it does not come up.
    pub(crate) fn lend(&self, arguments: &[&str]) -> Runtime {
        let mut command = command();
        command
            .args(["device", "serve", "--listen", &self.device_address(), "--data-dir"])
            .arg(self.data())
            .args(arguments);
        match self.launch(command, START) {
            Some(device) => device,
            None => panic!("the device did not print its address; it said:\n{}", self.said()),
        }
    }

    /// Starts a process whose first line ends with its address.
    fn launch(&self, mut command: Command, bound: Duration) -> Option<Runtime> {
        let log = OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(log.try_clone().unwrap()).spawn().unwrap();
        let first = first_line(&mut child, log);
        let mut runtime = Runtime { child, address: String::new(), log: self.log() };
        // "holdfast VERSION serves MODELS on HOST:PORT", "holdfast VERSION lends DEVICE with MODEL on ADDRESS"
        let line = first.recv_timeout(bound).ok()?;
        let address = line.rsplit(' ').next().unwrap_or_default();
        assert!(line.starts_with("holdfast ") && address.contains(':'), "the first line tells the address: {line:?}");
        runtime.address = address.to_owned();
        Some(runtime)
    }

    /// Starts a process that is to end by itself, and waits for it.
    pub(crate) fn refused(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        let mut command = self.serve(arguments);
        command.envs(environment.iter().copied());
        finished(command, START)
    }
}

/// Hands over the first line of a child's output and copies all of it to `log`, so that the child never waits for us.
fn first_line(child: &mut Child, mut log: File) -> mpsc::Receiver<String> {
    let output = child.stdout.take().unwrap();
    let (sender, receiver) = mpsc::channel();
    let drain = move || {
        for line in BufReader::new(output).lines() {
            let Ok(line) = line else { break };
            // The file may be gone with its directory when the test has ended; nobody reads it then.
            let _ = writeln!(log, "{line}");
            let _ = sender.send(line);
        }
    };
    std::thread::Builder::new().name("drain".to_owned()).spawn(drain).unwrap();
    receiver
}

/// Runs a command that ends by itself.
///
/// # Panics
/// When it has not ended within `bound`.
pub(crate) fn finished(mut command: Command, bound: Duration) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let process = child.id();
    let (sender, receiver) = mpsc::channel();
    let wait = move || {
        let _ = sender.send(child.wait_with_output());
    };
    std::thread::Builder::new().name("wait".to_owned()).spawn(wait).unwrap();
    match receiver.recv_timeout(bound) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            signal(process, "KILL");
            panic!("{command:?} has not ended within {bound:?}");
        }
    }
}

/// Sends a signal by the shell's own `kill`.
pub(crate) fn signal(process: u32, name: &str) {
    let status = Command::new("sh").args(["-c", &format!("kill -{name} {process}")]).status().unwrap();
    assert!(status.success(), "kill -{name} {process}");
}

/// A running runtime. Dropping it kills it.
pub(crate) struct Runtime {
    child: Child,
    /// `HOST:PORT`, as it printed it.
    pub(crate) address: String,
    log: PathBuf,
}

impl Runtime {
    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.address).await.unwrap()
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.rsplit(':').next().unwrap().parse().unwrap()
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: no handler runs, nothing is flushed.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn terminate(&self) {
        signal(self.child.id(), "TERM");
    }

    /// Waits for the process to end.
    pub(crate) async fn exit(&mut self, bound: Duration) -> ExitStatus {
        until("the runtime ends", bound, async || self.child.try_wait().unwrap()).await
    }

    /// SIGTERM, and a clean end.
    pub(crate) async fn stop(&mut self) {
        self.terminate();
        let status = self.exit(SOON).await;
        assert!(status.success(), "after SIGTERM: {status}");
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    fn show_log(&self) {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let shown = lines.len().saturating_sub(SHOWN_LINES);
        eprintln!("--- the runtime's last words\n{}\n---", lines[shown..].join("\n"));
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            self.show_log();
            return;
        }
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        if text.contains("panicked at") {
            self.show_log();
            panic!("the runtime panicked");
        }
    }
}
