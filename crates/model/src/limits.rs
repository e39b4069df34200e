//! How much of a file is read: every text file of a model has a bound, and is read no further.
//!
//! In: a path, and what kind of file it is. Out: its text, or the error that tells the bound. Deliberately not here: what a text means, and
//! files of tensors, which are mapped.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use crate::ModelError;

/// `tokenizer.json`: Gemma 3's, the largest that is published, takes half.
pub(crate) const TOKENIZER_BYTES_MAX: u64 = 64 << 20;
/// `model.safetensors.index.json`: three times that of a model of 90 thousand tensors.
pub(crate) const INDEX_BYTES_MAX: u64 = 32 << 20;
/// The header of a safetensors file: a hundred thousand tensors.
pub(crate) const TENSORS_BYTES_MAX: u64 = 16 << 20;
/// Every other file of text.
pub(crate) const TEXT_BYTES_MAX: u64 = 8 << 20;

/// Reads a whole file of UTF-8.
///
/// # Errors
/// [`ModelError::Read`] when it cannot be read or is no such file, [`ModelError::TooLarge`].
pub(crate) fn read_text(path: &Path, bytes_max: u64) -> Result<String, ModelError> {
    let wrong = |source| ModelError::Read { path: path.to_owned(), source };
    let file = open(path)?;
    let metadata = file.metadata().map_err(wrong)?;
    let too_large = || ModelError::TooLarge { path: path.to_owned(), bytes_max };
    if metadata.len() > bytes_max {
        return Err(too_large());
    }
    let mut text = String::new();
    // One more than allowed, in case that it grows meanwhile.
    let read = file.take(bytes_max + 1).read_to_string(&mut text).map_err(wrong)?;
    if read as u64 > bytes_max { Err(too_large()) } else { Ok(text) }
}

/// Opens a file, and nothing that would wait for someone to write, as a pipe does.
///
/// # Errors
/// [`ModelError::Read`].
pub(crate) fn open(path: &Path) -> Result<File, ModelError> {
    let wrong = |source| ModelError::Read { path: path.to_owned(), source };
    match fs::metadata(path).map_err(wrong)?.is_file() {
        true => File::open(path).map_err(wrong),
        false => Err(wrong(io::Error::new(io::ErrorKind::InvalidInput, "not a file"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn files_are_read_up_to_their_bound() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        std::fs::write(&path, "{\"é\":1}").unwrap();
        assert_eq!(read_text(&path, 8).unwrap(), "{\"é\":1}");
        let text = read_text(&path, 7).unwrap_err().to_string();
        assert!(text.contains("a.json") && text.contains('7'), "{text}");
        std::fs::write(&path, [b'"', 0xff, b'"']).unwrap();
        assert!(read_text(&path, 8).unwrap_err().to_string().contains("UTF-8"));
        assert!(matches!(read_text(directory.path(), 8), Err(ModelError::Read { .. })));
        assert!(matches!(read_text(&directory.path().join("b"), 8), Err(ModelError::Read { .. })));
    }
}
