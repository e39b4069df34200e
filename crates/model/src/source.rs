//! Where a model comes from.
//!
//! In: a name or a path as a person writes it. Out: [`ModelSource`]. Deliberately not here: reading anything; resolving a
//! name looks only at whether a directory is there.

use std::fmt;
use std::path::PathBuf;

use crate::{ModelError, pebble};

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ModelSource {
    /// Part of the binary; `pebble` is the one there is.
    BuiltIn(String),
    /// A directory in Hugging Face layout. Its files must not change while the model is served.
    Directory(PathBuf),
}

impl ModelSource {
    /// Names of the built-in models.
    pub const BUILT_IN: &'static [&'static str] = &[pebble::NAME];

    /// What `--model NAME|PATH` means: a built-in name wins over a directory of the same name (write `./pebble` for that).
    ///
    /// # Errors
    /// [`ModelError::UnknownName`] when it is neither.
    pub fn resolve(name_or_path: &str) -> Result<Self, ModelError> {
        if Self::BUILT_IN.contains(&name_or_path) {
            return Ok(Self::BuiltIn(name_or_path.to_owned()));
        }
        let path = PathBuf::from(name_or_path);
        if path.is_dir() {
            return Ok(Self::Directory(path));
        }
        Err(Self::unknown(name_or_path))
    }

    /// The name that clients use: the built-in's, or the directory's last component.
    pub fn name(&self) -> String {
        match self {
            Self::BuiltIn(name) => name.clone(),
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
            Self::Directory(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_resolve_to_built_in_models_and_directories() {
        assert_eq!(ModelSource::resolve("pebble").unwrap(), ModelSource::BuiltIn("pebble".to_owned()));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("my-model");
        std::fs::create_dir(&path).unwrap();
        let source = ModelSource::resolve(path.to_str().unwrap()).unwrap();
        assert_eq!(source.name(), "my-model");
        let text = ModelSource::resolve("no-such-model").unwrap_err().to_string();
        assert!(text.contains("no-such-model") && text.contains("pebble"), "{text}");
    }
}
