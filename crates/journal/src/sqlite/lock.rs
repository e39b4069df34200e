//! The lock of a data directory: one process owns it, a second is refused by name.
//!
//! In: a directory. Out: a guard, held as long as the journal is open. The operating system releases the lock when the process
//! ends in any way, so a file left behind by a kill is no obstacle. Deliberately not here: what is in the directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use holdfast_types::TimeUs;

use crate::JournalError;

/// Name of the lock file.
const LOCK_FILE: &str = "journal.lock";

/// Most bytes of a lock file that an error shows.
const OWNER_BYTES: u64 = 256;

/// The lock, as long as it lives.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Takes the lock and writes down who has it.
    pub(crate) fn acquire(directory: &Path) -> Result<Self, JournalError> {
        let path = directory.join(LOCK_FILE);
        let io = |e: std::io::Error| JournalError::Io(format!("{}: {e}", path.display()));
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // Who owns it is a courtesy; that it is owned is what matters.
                let read = file.take(OWNER_BYTES).read_to_string(&mut owner);
                let owner = if read.is_err() || owner.trim().is_empty() { "unknown".to_owned() } else { owner };
                return Err(JournalError::InUse {
                    path: directory.display().to_string(),
                    owner: owner.trim().to_owned(),
                });
            }
            Err(TryLockError::Error(e)) => return Err(io(e)),
        }
        let owner = format!("pid {}, started {} us after 1970\n", std::process::id(), now_us());
        file.set_len(0).map_err(io)?;
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        file.write_all(owner.as_bytes()).map_err(io)?;
        file.flush().map_err(io)?;
        Ok(Self { _file: file })
    }
}

/// Wall time, for the lock file and the journal's date of creation only: entries carry the worker's time.
#[expect(clippy::disallowed_methods, reason = "names an owner and a date of creation to people; no logic reads it")]
pub(crate) fn now_us() -> TimeUs {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as TimeUs)
}
