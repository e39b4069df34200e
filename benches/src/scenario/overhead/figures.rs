//! What the runtime under test counts of itself, and how the driver reads it.
//!
//! In: the device's work, the journal's commits, the kernel's times of the process. Out: [`Figures`] over a Unix socket whenever
//! somebody connects, and [`Left`] in a file once the runtime has ended. Both lie in a directory that the driver names, apart
//! from the runtime's data. Deliberately not here: rates.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use super::device::Work;

/// Name of the socket.
const SOCKET: &str = "figures.sock";
/// Name of the file with the last word.
const LEFT: &str = "left.json";

/// Counters of a running runtime; each only grows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) steps: u64,
    pub(crate) rows: u64,
    pub(crate) samples: u64,
    /// Transactions of the journal, and batches in them.
    pub(crate) commits: u64,
    pub(crate) batches: u64,
    /// CPU seconds of the process, where the system tells.
    pub(crate) cpu_s: Option<f64>,
    /// The same by name of thread; threads that ended are missing.
    pub(crate) threads_s: BTreeMap<String, f64>,
}

/// What a runtime left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Left {
    /// Bytes of the journal's files after it was closed: its log is moved into the database by then.
    pub(crate) journal_bytes: u64,
}

/// What the runtime counts with.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) work: Arc<Work>,
    pub(crate) commits: AtomicU64,
    pub(crate) batches: AtomicU64,
}

impl Counters {
    fn read(&self) -> Figures {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Figures {
            steps: of(&self.work.steps),
            rows: of(&self.work.rows),
            samples: of(&self.work.samples),
            commits: of(&self.commits),
            batches: of(&self.batches),
            cpu_s: cpu_s(),
            threads_s: threads_s(),
        }
    }

    /// Answers every connection, until it is aborted.
    pub(crate) async fn tell(self: Arc<Self>, listener: UnixListener) -> anyhow::Result<()> {
        loop {
            let (mut stream, _) = listener.accept().await?;
            let text = serde_json::to_vec(&self.read())?;
            // Who asked may have gone.
            let _ = stream.write_all(&text).await;
        }
    }
}

/// Listens in `directory`; whoever knows that the runtime serves may ask.
///
/// # Errors
/// When the socket cannot be made.
pub(crate) fn listen(directory: &Path) -> anyhow::Result<UnixListener> {
    let path = directory.join(SOCKET);
    UnixListener::bind(&path).with_context(|| format!("{} cannot be listened on", path.display()))
}

impl Figures {
    /// Asks the runtime that tells in `directory`.
    ///
    /// # Errors
    /// When nobody answers there.
    pub(crate) async fn ask(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join(SOCKET);
        let mut text = Vec::new();
        let mut stream =
            UnixStream::connect(&path).await.with_context(|| format!("nobody tells {}", path.display()))?;
        stream.read_to_end(&mut text).await?;
        serde_json::from_slice(&text).context("the runtime's figures cannot be read")
    }

    /// What was counted since an earlier look.
    pub(crate) fn since(&self, begin: &Self) -> Self {
        let before = |name: &str| begin.threads_s.get(name).copied().unwrap_or(0.0);
        Self {
            steps: self.steps - begin.steps,
            rows: self.rows - begin.rows,
            samples: self.samples - begin.samples,
            commits: self.commits - begin.commits,
            batches: self.batches - begin.batches,
            cpu_s: self.cpu_s.zip(begin.cpu_s).map(|(end, begin)| end - begin),
            threads_s: self.threads_s.iter().map(|(name, end)| (name.clone(), end - before(name))).collect(),
        }
    }
}

impl Left {
    /// Looks at the data of a runtime that has ended and leaves word in `directory`.
    ///
    /// # Errors
    /// When the data cannot be read or the word cannot be written.
    pub(crate) fn leave(data: &Path, directory: &Path) -> anyhow::Result<()> {
        let mut journal_bytes = 0;
        for entry in std::fs::read_dir(data)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("journal.db") {
                journal_bytes += entry.metadata()?.len();
            }
        }
        anyhow::ensure!(journal_bytes > 0, "no journal in {}", data.display());
        std::fs::write(directory.join(LEFT), serde_json::to_vec(&Self { journal_bytes })?)?;
        Ok(())
    }

    /// Reads the word.
    ///
    /// # Errors
    /// When the runtime did not end in order.
    pub(crate) fn find(directory: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(directory.join(LEFT)).context("the runtime left no word of its journal")?;
        Ok(serde_json::from_slice(&text)?)
    }
}

/// CPU seconds of this process so far, where the system tells.
#[cfg(target_os = "linux")]
pub(crate) fn cpu_s() -> Option<f64> {
    let stat = procfs::process::Process::myself().ok()?.stat().ok()?;
    Some(seconds(stat.utime + stat.stime))
}

#[cfg(target_os = "linux")]
fn threads_s() -> BTreeMap<String, f64> {
    let mut threads = BTreeMap::new();
    let tasks = procfs::process::Process::myself().and_then(|process| process.tasks());
    for stat in tasks.into_iter().flatten().flatten().filter_map(|task| task.stat().ok()) {
        *threads.entry(stat.comm).or_default() += seconds(stat.utime + stat.stime);
    }
    threads
}

#[cfg(target_os = "linux")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / procfs::ticks_per_second() as f64
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn cpu_s() -> Option<f64> {
    None
}

#[cfg(not(target_os = "linux"))]
fn threads_s() -> BTreeMap<String, f64> {
    BTreeMap::new()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn figures_are_told_to_whoever_asks() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Figures::ask(directory.path()).await.is_err(), "nobody is there");
        let counters = Arc::<Counters>::default();
        let telling = tokio::spawn(Arc::clone(&counters).tell(listen(directory.path()).unwrap()));
        counters.commits.fetch_add(2, Ordering::Relaxed);
        let first = Figures::ask(directory.path()).await.unwrap();
        counters.work.steps.fetch_add(5, Ordering::Relaxed);
        counters.commits.fetch_add(1, Ordering::Relaxed);
        let spent = Figures::ask(directory.path()).await.unwrap().since(&first);
        assert_eq!((first.commits, spent.commits, spent.steps), (2, 1, 5));
        telling.abort();
    }

    #[test]
    fn what_is_left_is_the_journal_alone() {
        let (data, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert!(Left::leave(data.path(), directory.path()).is_err(), "there is no journal");
        assert!(Left::find(directory.path()).is_err());
        for (name, bytes) in [("journal.db", 300), ("journal.db-wal", 20), ("lock", 7)] {
            std::fs::write(data.path().join(name), vec![0; bytes]).unwrap();
        }
        Left::leave(data.path(), directory.path()).unwrap();
        assert_eq!(Left::find(directory.path()).unwrap().journal_bytes, 320);
    }
}
