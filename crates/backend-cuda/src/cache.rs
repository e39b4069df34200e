//! Compiled kernels on disk, by everything that they were made from.
//!
//! In: a folder, a key, machine code. Out: the code again, if it is whole. A file is written beside its place and moved there, so that processes that
//! start together do not disturb each other. Deliberately not here: compiling.

use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Bytes of the checksum that a file begins with.
const CHECKSUM_BYTES: usize = 32;
/// A larger file is none of ours.
const BYTES_MAX: u64 = 256 << 20;

/// A name for what was made from these texts, in their order.
pub(crate) fn key(parts: &[&str]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// What was written under a key; `None` when there is nothing whole.
pub(crate) fn read(folder: &Path, key: &str) -> Option<Vec<u8>> {
    let path = place(folder, key);
    if std::fs::metadata(&path).ok()?.len() > BYTES_MAX {
        return None;
    }
    let mut bytes = std::fs::read(path).ok()?;
    let code = bytes.split_off(bytes.len().min(CHECKSUM_BYTES));
    (bytes == blake3::hash(&code).as_bytes()).then_some(code)
}

/// Keeps machine code under a key.
pub(crate) fn write(folder: &Path, key: &str, code: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(blake3::hash(code).as_bytes())?;
    file.write_all(code)?;
    file.persist(place(folder, key))?;
    Ok(())
}

fn place(folder: &Path, key: &str) -> PathBuf {
    folder.join(key).with_extension("cubin")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_was_written_is_read_and_what_is_broken_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("kernels");
        let key = key(&["source", "options"]);
        assert_eq!(read(&inside, &key), None);
        write(&inside, &key, b"code").unwrap();
        assert_eq!(read(&inside, &key).as_deref(), Some(&b"code"[..]));
        let path = place(&inside, &key);
        let whole = std::fs::read(&path).unwrap();
        for broken in [&whole[..whole.len() - 1], &whole[..3], b"", &[&whole[..], b"x"].concat()] {
            std::fs::write(&path, broken).unwrap();
            assert_eq!(read(&inside, &key), None);
        }
        write(&inside, &key, b"again").unwrap();
        assert_eq!(read(&inside, &key).as_deref(), Some(&b"again"[..]));
        assert_eq!(std::fs::read_dir(&inside).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn keys_are_of_parts_and_their_order() {
        let all = [key(&["a", "b"]), key(&["b", "a"]), key(&["ab"]), key(&["ab", ""]), key(&[])];
        for (at, one) in all.iter().enumerate() {
            assert!(all[at + 1..].iter().all(|other| other != one));
        }
    }
}
