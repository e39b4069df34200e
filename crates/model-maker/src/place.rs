//! A target appears whole or not at all: written beside its place, renamed into it.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use safetensors::SafeTensorError;

use crate::MakeError;

/// Lets `write` make a file or a directory at the path that it is given, then moves it to `target`, away from which goes what
/// was there. `needed_bytes` is for messages.
pub(crate) fn when_whole(
    target: &Path,
    needed_bytes: u64,
    write: impl FnOnce(&Path) -> Result<(), MakeError>,
) -> Result<(), MakeError> {
    let attempt = || {
        let name = target.file_name().ok_or_else(|| io::Error::from(ErrorKind::InvalidInput))?;
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent)?;
        // In the same directory, so that renaming moves no bytes. Dropping it removes whatever is left inside.
        let beside = tempfile::Builder::new().prefix(".make-model-").tempdir_in(parent)?;
        let whole = beside.path().join(name);
        write(&whole)?;
        if target.symlink_metadata().is_ok() {
            fs::rename(target, beside.path().join("replaced"))?;
        }
        fs::rename(&whole, target)?;
        Ok(())
    };
    attempt().map_err(|error: MakeError| match error {
        MakeError::Io(source) | MakeError::Safetensors(SafeTensorError::IoError(source)) => match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                MakeError::DiskFull { path: target.to_owned(), needed_bytes }
            }
            _ => MakeError::Write { path: target.to_owned(), source },
        },
        other => other,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_failed_attempt_leaves_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("model");
        fs::write(&target, "old").unwrap();
        let failed = when_whole(&target, 7, |path| {
            fs::write(path, "half")?;
            Err(io::Error::from(ErrorKind::StorageFull).into())
        });
        assert!(matches!(failed, Err(MakeError::DiskFull { needed_bytes: 7, .. })));
        assert_eq!(fs::read(&target).unwrap(), b"old");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_gives_way_to_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("new").join("model");
        when_whole(&target, 0, |path| Ok(fs::write(path, "old")?)).unwrap();
        when_whole(&target, 0, |path| Ok(fs::create_dir(path)?)).unwrap();
        assert!(target.is_dir());
        assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), 1);
    }
}
