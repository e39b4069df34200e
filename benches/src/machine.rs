//! Where and with what a report was made.
//!
//! In: the operating system's tables and `git`. Out: [`Machine`] and [`Revision`] for the report. What cannot be read is empty, never guessed.

use std::process::Command;

use serde::Serialize;

/// The machine.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    /// Hardware threads that this process may use.
    pub(crate) threads: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) system: String,
}

/// The sources that this program was built from, as the working directory has them.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Revision {
    pub(crate) commit: String,
    /// There were changes that are in no commit.
    pub(crate) modified: bool,
}

impl Machine {
    /// Reads it.
    pub(crate) fn read() -> Self {
        let (processor, memory_bytes, system) = tables();
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { processor, threads, memory_bytes, system }
    }
}

impl Revision {
    /// Asks `git`; empty outside of a checkout.
    pub(crate) fn read() -> Self {
        let git = |arguments: &[&str]| {
            let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success());
            output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
        };
        Self {
            commit: git(&["rev-parse", "HEAD"]),
            modified: !git(&["status", "--porcelain", "--untracked-files=no"]).is_empty(),
        }
    }
}

#[cfg(target_os = "linux")]
fn tables() -> (String, u64, String) {
    use procfs::Current as _;
    let processor = procfs::CpuInfo::current().ok().and_then(|info| info.model_name(0).map(ToOwned::to_owned));
    let memory = procfs::Meminfo::current().map_or(0, |info| info.mem_total);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    (processor.unwrap_or_default(), memory, format!("Linux {} {}", kernel.trim(), std::env::consts::ARCH))
}

#[cfg(not(target_os = "linux"))]
fn tables() -> (String, u64, String) {
    (String::new(), 0, format!("{} {}", std::env::consts::OS, std::env::consts::ARCH))
}
