//! Files out of the operating system's page cache, so that what is read after a restart comes from the disk.
//!
//! In: files and directories. Out: how many were dropped. Pages that another process has mapped stay, so no runtime of the run may
//! be alive. Deliberately not here: caches of a virtual machine's host, which nobody inside can drop.

use std::path::Path;

use anyhow::Context as _;

/// Writes back and drops `paths` and what lies under them; the number of files, or `None` where the system has no way to do it.
///
/// # Errors
/// When a file cannot be read, with its path.
pub(crate) fn drop_files(paths: &[&Path]) -> anyhow::Result<Option<usize>> {
    if !cfg!(target_os = "linux") {
        return Ok(None);
    }
    let mut dropped = 0;
    for path in paths {
        dropped += drop_under(path).with_context(|| format!("dropping {} from the page cache", path.display()))?;
    }
    Ok(Some(dropped))
}

fn drop_under(path: &Path) -> anyhow::Result<usize> {
    if path.is_file() {
        drop_file(path)?;
        return Ok(1);
    }
    let mut dropped = 0;
    for entry in path.read_dir()? {
        let path = entry?.path();
        dropped += if path.is_dir() || path.is_file() { drop_under(&path)? } else { 0 };
    }
    Ok(dropped)
}

#[cfg(target_os = "linux")]
fn drop_file(path: &Path) -> anyhow::Result<()> {
    let file = std::fs::File::open(path)?;
    // Only clean pages can be dropped.
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn drop_file(_path: &Path) -> anyhow::Result<()> {
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_file_under_a_directory_is_dropped_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let (here, below) = (directory.path().join("a"), directory.path().join("folder"));
        std::fs::write(&here, "1").unwrap();
        std::fs::create_dir(&below).unwrap();
        std::fs::write(below.join("b"), "2").unwrap();
        assert_eq!(drop_files(&[directory.path(), &here]).unwrap(), Some(3));
        assert_eq!(std::fs::read_to_string(below.join("b")).unwrap(), "2");
        let error = drop_files(&[&directory.path().join("none")]).unwrap_err();
        assert!(error.to_string().contains("none"), "{error:#}");
    }
}
