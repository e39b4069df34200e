//! Where a model comes from.
//!
//! In: a name or a path as a person writes it. Out: [`ModelSource`]. A directory is resolved to what in it is the model: an
//! entry of a Hugging Face hub cache to its snapshot, a directory with one GGUF file and no `config.json` to that file.
//! Deliberately not here: reading a model; resolving looks only at names, and at the one line of a cache's `refs/main`.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::error::some_names;
use crate::{ModelError, pebble};

/// What every directory in Hugging Face layout has.
const CONFIG: &str = "config.json";
/// Where a hub cache's entry keeps its revisions, each a directory of links into `blobs`.
const SNAPSHOTS: &str = "snapshots";
/// Names the snapshot that was downloaded last from the main branch.
const MAIN: &str = "refs/main";
/// Most bytes of `refs/main`; a revision is 40 hexadecimal digits.
const REVISION_BYTES_MAX: u64 = 256;
/// Most entries of a directory that are looked at for a model in it.
const ENTRIES_MAX: usize = 10_000;

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
        Self::at(Path::new(name_or_path))
    }

    /// The model at a path: a `.gguf` file; a directory in Hugging Face layout; an entry of a Hugging Face hub cache
    /// (`models--org--name`), which stands for the snapshot that its `refs/main` names, or the only one; or a directory with
    /// one `.gguf` file and no `config.json`.
    ///
    /// # Errors
    /// [`ModelError::UnknownName`] when it is none of these; [`ModelError::Read`] for a directory that cannot be read, or in which
    /// several models lie.
    pub fn at(path: &Path) -> Result<Self, ModelError> {
        if path.is_dir() {
            return in_directory(path);
        }
        if path.is_file() && is_gguf(path) {
            return Ok(Self::File(path.to_owned()));
        }
        Err(Self::unknown(&path.to_string_lossy()))
    }

    /// The name that clients use: the built-in's, the directory's last component (of a snapshot in a hub cache, the
    /// repository's name), or the file's without `.gguf`.
    pub fn name(&self) -> String {
        match self {
            Self::BuiltIn(name) => name.clone(),
            Self::File(path) => {
                path.file_stem().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
            }
            Self::Directory(path) => {
                let full = path.canonicalize().unwrap_or_else(|_| path.clone());
                let last = full.file_name().map(|name| name.to_string_lossy().into_owned());
                repository_name(&full).or(last).unwrap_or_else(|| "model".to_owned())
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

/// What in a directory is the model.
fn in_directory(path: &Path) -> Result<ModelSource, ModelError> {
    if path.join(CONFIG).exists() {
        return Ok(ModelSource::Directory(path.to_owned()));
    }
    let path = match path.join(SNAPSHOTS).is_dir() {
        true => snapshot(path)?,
        false => path.to_owned(),
    };
    if path.join(CONFIG).exists() {
        return Ok(ModelSource::Directory(path));
    }
    let files: Vec<_> = names_in(&path)?.into_iter().filter(|name| is_gguf(Path::new(name))).collect();
    match files.as_slice() {
        [] => Ok(ModelSource::Directory(path)),
        [file] => Ok(ModelSource::File(path.join(file))),
        several => {
            Err(unclear(&path, format!("it holds several .gguf files ({}): give the path of one", some_names(several))))
        }
    }
}

/// The snapshot that an entry of a hub cache stands for.
fn snapshot(entry: &Path) -> Result<PathBuf, ModelError> {
    let main = entry.join(MAIN);
    let revision = match File::open(&main) {
        Ok(file) => {
            let mut text = String::new();
            let read = file.take(REVISION_BYTES_MAX).read_to_string(&mut text);
            read.map_err(|source| ModelError::Read { path: main.clone(), source })?;
            text.trim().to_owned()
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => match names_in(&entry.join(SNAPSHOTS))?.as_slice() {
            [one] => one.clone(),
            several => {
                let problem = format!(
                    "no refs/main, and {} snapshots ({}): give the path of one",
                    several.len(),
                    some_names(several)
                );
                return Err(unclear(entry, problem));
            }
        },
        Err(source) => return Err(ModelError::Read { path: main, source }),
    };
    let is_name = !revision.is_empty() && !revision.contains(['/', '\\', '\0']) && revision != "." && revision != "..";
    let path = entry.join(SNAPSHOTS).join(&revision);
    match is_name && path.is_dir() {
        true => Ok(path),
        false => Err(unclear(
            &main,
            format!("it names the snapshot {revision:?}, which is not there: download the model again"),
        )),
    }
}

/// `name` for `…/models--org--name/snapshots/REVISION`.
fn repository_name(snapshot: &Path) -> Option<String> {
    let snapshots = snapshot.parent().filter(|parent| parent.ends_with(SNAPSHOTS))?;
    let entry = snapshots.parent()?.file_name()?.to_str()?.strip_prefix("models--")?;
    entry.rsplit("--").next().filter(|name| !name.is_empty()).map(str::to_owned)
}

/// Names in a directory, sorted.
fn names_in(directory: &Path) -> Result<Vec<String>, ModelError> {
    let wrong = |source| ModelError::Read { path: directory.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(wrong)? {
        names.push(entry.map_err(wrong)?.file_name().to_string_lossy().into_owned());
        if names.len() > ENTRIES_MAX {
            return Err(unclear(directory, format!("more than {ENTRIES_MAX} entries")));
        }
    }
    names.sort();
    Ok(names)
}

fn unclear(path: &Path, problem: String) -> ModelError {
    ModelError::Read { path: path.to_owned(), source: io::Error::new(io::ErrorKind::InvalidData, problem) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// An entry of a hub cache with snapshots of empty files.
    fn cache_entry(root: &Path, snapshots: &[(&str, &str)], main: Option<&str>) -> PathBuf {
        let entry = root.join("models--some-org--Small-1B");
        for (revision, file) in snapshots {
            let snapshot = entry.join("snapshots").join(revision);
            fs::create_dir_all(&snapshot).unwrap();
            fs::create_dir_all(entry.join("blobs")).unwrap();
            fs::write(entry.join("blobs").join("b10b"), "").unwrap();
            std::os::unix::fs::symlink("../../blobs/b10b", snapshot.join(file)).unwrap();
        }
        if let Some(main) = main {
            fs::create_dir_all(entry.join("refs")).unwrap();
            fs::write(entry.join(MAIN), main).unwrap();
        }
        entry
    }

    #[test]
    fn an_entry_of_a_hub_cache_stands_for_its_snapshot() {
        let root = tempfile::tempdir().unwrap();
        let two = [("aaa", "config.json"), ("bbb", "config.json")];
        let entry = cache_entry(root.path(), &two, Some("bbb\n"));
        let source = ModelSource::at(&entry).unwrap();
        assert_eq!(source, ModelSource::Directory(entry.join("snapshots/bbb")));
        assert_eq!(source.name(), "Small-1B");

        let one = tempfile::tempdir().unwrap();
        let entry = cache_entry(one.path(), &[("ccc", "small.Q8_0.gguf")], None);
        let source = ModelSource::at(&entry).unwrap();
        assert_eq!(source, ModelSource::File(entry.join("snapshots/ccc/small.Q8_0.gguf")), "the link, not the blob");
        assert_eq!(source.name(), "small.Q8_0");
    }

    #[test]
    fn a_hub_cache_that_names_no_snapshot_is_refused() {
        let two = [("aaa", "config.json"), ("bbb", "config.json")];
        for (main, said) in [
            (None, "aaa, bbb"),
            (Some("ccc"), "\"ccc\""),
            (Some(".."), "\"..\""),
            (Some("../../elsewhere"), "elsewhere"),
            (Some(""), "refs/main"),
        ] {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir(root.path().join("elsewhere")).unwrap();
            let text = ModelSource::at(&cache_entry(root.path(), &two, main)).unwrap_err().to_string();
            assert!(text.contains(said), "{main:?}: {text}");
        }
    }

    #[test]
    fn a_directory_of_one_gguf_file_is_that_file() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(ModelSource::at(root.path()).unwrap(), ModelSource::Directory(root.path().to_owned()));
        fs::write(root.path().join("a.gguf"), "").unwrap();
        assert_eq!(ModelSource::at(root.path()).unwrap(), ModelSource::File(root.path().join("a.gguf")));
        fs::write(root.path().join("b.GGUF"), "").unwrap();
        let text = ModelSource::at(root.path()).unwrap_err().to_string();
        assert!(text.contains("a.gguf, b.GGUF"), "{text}");
        fs::write(root.path().join("config.json"), "").unwrap();
        assert_eq!(ModelSource::at(root.path()).unwrap(), ModelSource::Directory(root.path().to_owned()));
    }

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
