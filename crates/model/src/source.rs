//! Where a model comes from.
//!
//! In: a name or a path as a person writes it. Out: [`ModelSource`]. Deliberately not here: reading anything; resolving a
//! name looks only at what is there under it.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::{ModelError, pebble};

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ModelSource {
    /// Part of the binary; `pebble` is the one there is.
    BuiltIn(String),
    /// A directory in Hugging Face layout. Its files must not change while the model is served.
    Directory(PathBuf),
    /// A GGUF file. It must not change while the model is served.
    File(PathBuf),
}

impl ModelSource {
    /// Names of the built-in models.
    pub const BUILT_IN: &'static [&'static str] = &[pebble::NAME];

    /// What `--model NAME|PATH` means: a built-in name wins over a directory of the same name (write `./pebble` for that). A path
    /// that is a file must end in `.gguf`.
    ///
    /// # Errors
    /// [`ModelError::UnknownName`] when it is none of these.
    pub fn resolve(name_or_path: &str) -> Result<Self, ModelError> {
        if Self::BUILT_IN.contains(&name_or_path) {
            return Ok(Self::BuiltIn(name_or_path.to_owned()));
        }
        let path = PathBuf::from(name_or_path);
        if path.is_dir() {
            return Ok(Self::Directory(path));
        }
        if path.is_file() && is_gguf(&path) {
            return Ok(Self::File(path));
        }
        Err(Self::unknown(name_or_path))
    }

    /// The name that clients use: the built-in's, the directory's last component, or the file's without `.gguf`.
    pub fn name(&self) -> String {
        match self {
            Self::BuiltIn(name) => name.clone(),
            Self::File(path) => {
                path.file_stem().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
            }
            Self::Directory(path) => {
                let full = path.canonicalize().unwrap_or_else(|_| path.clone());
                full.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
            }
        }
    }

    pub(crate) fn unknown(name: &str) -> ModelError {
        ModelError::UnknownName { name: name.to_owned(), built_in: Self::BUILT_IN.join(", ") }
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn(name) => write!(f, "built-in {name}"),
            Self::Directory(path) | Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Whether the path is named as GGUF files are.
fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// The file that holds a part of a model: a GGUF file holds them all, a directory has one of this name.
pub(crate) fn part(path: &Path, name: &str) -> PathBuf {
    if is_gguf(path) { path.to_owned() } else { path.join(name) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_resolve_to_built_in_models_directories_and_files() {
        assert_eq!(ModelSource::resolve("pebble").unwrap(), ModelSource::BuiltIn("pebble".to_owned()));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("my-model");
        std::fs::create_dir(&path).unwrap();
        let source = ModelSource::resolve(path.to_str().unwrap()).unwrap();
        assert_eq!(source.name(), "my-model");
        let file = directory.path().join("small.Q8_0.gguf");
        std::fs::write(&file, "").unwrap();
        assert_eq!(ModelSource::resolve(file.to_str().unwrap()).unwrap(), ModelSource::File(file.clone()));
        assert_eq!(ModelSource::File(file.clone()).name(), "small.Q8_0");
        let other = file.with_extension("bin");
        std::fs::write(&other, "").unwrap();
        assert!(matches!(ModelSource::resolve(other.to_str().unwrap()), Err(ModelError::UnknownName { .. })));
        let text = ModelSource::resolve("no-such-model").unwrap_err().to_string();
        assert!(text.contains("no-such-model") && text.contains("pebble"), "{text}");
    }
}
