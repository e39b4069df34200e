//! Registered models: a directory with one small TOML file for each name.
//!
//! In: entries, as `holdfast models add` makes them. Out: entries by name, for whoever serves or looks at models. A model stays
//! where it lies; an entry says where, and what its parts were when it was added. Entries are written whole or not at all,
//! and one file for each means that processes that add at the same time lose nothing. A damaged entry is named and
//! passed over in lists, and refused in use. Deliberately not here: loading models (`find`), and anything that is printed.

use std::fmt;
use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use holdfast_model::ModelSource;
use holdfast_types::{Digest, Reason};
use serde::{Deserialize, Serialize};

/// The form of entries that this version writes and reads.
const FORMAT: u32 = 1;
/// Most characters of a name.
const NAME_CHARS_MAX: usize = 64;
/// Most bytes of an entry's file: a model of 4,096 shards needs half of it.
const ENTRY_BYTES_MAX: u64 = 1 << 20;
/// Most files that a list looks at.
const ENTRIES_MAX: usize = 10_000;
/// What entries end with.
const EXTENSION: &str = "toml";

/// The name of a registered model: 1 to 64 letters, digits, '.', '_' and '-', the first a letter or a digit; so it is a file name that
/// leads nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ModelName(String);

impl ModelName {
    /// # Errors
    /// [`RegistryError::Name`] with the rule.
    pub(crate) fn parse(text: &str) -> Result<Self, RegistryError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let first = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        match first && text.len() <= NAME_CHARS_MAX && text.chars().all(allowed) {
            true => Ok(Self(text.to_owned())),
            false => Err(RegistryError::Name(text.to_owned())),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is known of a registered model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// [`FORMAT`].
    format: u32,
    /// As the file is called.
    pub(crate) name: String,
    /// Absolute: a directory in Hugging Face layout, or a GGUF file.
    pub(crate) path: PathBuf,
    /// The row of the loader's table.
    pub(crate) architecture: String,
    /// Number of weights.
    pub(crate) parameters: u64,
    /// Over every tensor's name, type, shape and bytes.
    pub(crate) weights: Digest,
    /// Of the tokenizer.
    pub(crate) tokenizer: Digest,
    /// Of the chat templates and the special tokens that they speak of.
    pub(crate) template: Digest,
    /// When it was added, RFC 3339 in UTC.
    pub(crate) added: String,
    /// Its files.
    pub(crate) files: Vec<FileEntry>,
}

/// A file of a registered model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileEntry {
    /// Relative to the model's directory; a GGUF file's own name.
    pub(crate) name: String,
    /// Its size.
    pub(crate) bytes: u64,
    /// BLAKE3 of its bytes.
    pub(crate) digest: Digest,
    /// Whether it holds tensors: such files are large, and read again only to verify them.
    pub(crate) tensors: bool,
}

/// What an entry is made of; the name, the form and the time come with [`Entry::new`].
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) path: PathBuf,
    pub(crate) architecture: String,
    pub(crate) parameters: u64,
    /// Weights, tokenizer, template.
    pub(crate) revision: (Digest, Digest, Digest),
    pub(crate) files: Vec<FileEntry>,
}

impl Entry {
    /// An entry of this version's form.
    pub(crate) fn new(name: &ModelName, facts: Facts, added: String) -> Self {
        let (weights, tokenizer, template) = facts.revision;
        Self {
            format: FORMAT,
            name: name.0.clone(),
            path: facts.path,
            architecture: facts.architecture,
            parameters: facts.parameters,
            weights,
            tokenizer,
            template,
            added,
            files: facts.files,
        }
    }

    /// Reads an entry of that name; the error says what is wrong.
    fn parse(text: &str, name: &str) -> Result<Self, String> {
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| e.message().to_owned())?;
        match table.get("format").and_then(toml::Value::as_integer) {
            Some(format) if format == i64::from(FORMAT) => {}
            Some(format) => return Err(format!("it is of format {format}, this version reads {FORMAT}")),
            None => return Err("it has no format".to_owned()),
        }
        let entry: Self = table.try_into().map_err(|e: toml::de::Error| e.message().to_owned())?;
        if entry.name != name {
            return Err(format!("it says that its name is {:?}", entry.name));
        }
        if !entry.path.is_absolute() {
            return Err(format!("its path {} is not absolute", entry.path.display()));
        }
        Ok(entry)
    }
}

/// Why the registry cannot do what it is asked for. Every variant says what to do next.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    /// No name for a model.
    #[error(
        "{0:?} cannot name a registered model: write 1 to {NAME_CHARS_MAX} letters, digits, '.', '_' and '-', the first a letter or a digit (`--name NAME`)"
    )]
    Name(String),
    /// A built-in model has the name.
    #[error("{0} is built in; choose another name (`--name NAME`)")]
    BuiltIn(String),
    /// The name is taken.
    #[error("{name} is registered already ({file}); choose another name (`--name NAME`), or `--replace` it", file = file.display())]
    Exists {
        /// The name.
        name: String,
        /// Its entry.
        file: PathBuf,
    },
    /// Nothing is registered under the name.
    #[error("no model is registered as {name}{known}; `holdfast models add PATH` registers one")]
    NotRegistered {
        /// The name.
        name: String,
        /// `; registered are …`, or nothing.
        known: String,
    },
    /// An entry that cannot be read.
    #[error("the entry {file} is damaged: {problem}; `holdfast models remove {name}` removes it, the model itself is not touched", file = file.display())]
    Damaged {
        /// The name that it stands for.
        name: String,
        /// Where it is.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file in the registry that is no entry at all.
    #[error("{file} does not belong here: an entry is called NAME.toml; move it away", file = .0.display())]
    Stray(PathBuf),
    /// The model is not where it was.
    #[error("{name} was added from {path}, and nothing is there now; bring it back, or `holdfast models remove {name}`", path = path.display())]
    Gone {
        /// The name.
        name: String,
        /// Where it was.
        path: PathBuf,
    },
    /// The model is not what was added.
    #[error("{name} is not what was added from {path}: {what}; `holdfast models verify {name}` looks at every file, `holdfast models add {path} --name {name} --replace` accepts it as it is", path = path.display())]
    Changed {
        /// The name.
        name: String,
        /// Where it is.
        path: PathBuf,
        /// The parts that changed.
        what: String,
    },
    /// The directory or a file in it cannot be read or written.
    #[error("{path}: {source}; models_dir, else data_dir, says where models are registered", path = path.display())]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl RegistryError {
    /// The word for programs.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Name(_) => Reason::InvalidName,
            Self::BuiltIn(_) | Self::Exists { .. } => Reason::InvalidArgument,
            Self::NotRegistered { .. } | Self::Gone { .. } => Reason::ModelNotFound,
            Self::Damaged { .. } | Self::Stray(_) => Reason::InvalidModel,
            Self::Changed { .. } => Reason::ModelRevisionUnavailable,
            Self::Io { .. } => Reason::InvalidSetting,
        }
    }
}

/// The entries in a directory. Nothing is held open or in memory: every call looks anew.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    directory: PathBuf,
}

/// Every entry of a registry.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// By name.
    pub(crate) entries: Vec<Entry>,
    /// What could not be read, by file.
    pub(crate) damaged: Vec<RegistryError>,
}

impl Registry {
    /// The registry in `directory`, which need not exist before something is added.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Where the entry of a name is.
    pub(crate) fn file(&self, name: &ModelName) -> PathBuf {
        self.directory.join(format!("{name}.{EXTENSION}"))
    }

    /// Fails when a new model cannot have the name: before a long load, and again by [`Registry::add`] itself.
    ///
    /// # Errors
    /// [`RegistryError::BuiltIn`] and [`RegistryError::Exists`].
    pub(crate) fn check_free(&self, name: &ModelName, replace: bool) -> Result<(), RegistryError> {
        if ModelSource::BUILT_IN.contains(&name.as_str()) {
            return Err(RegistryError::BuiltIn(name.0.clone()));
        }
        let file = self.file(name);
        match file.symlink_metadata().is_ok() && !replace {
            true => Err(RegistryError::Exists { name: name.0.clone(), file }),
            false => Ok(()),
        }
    }

    /// Writes an entry, and makes it durable.
    ///
    /// # Errors
    /// As for [`Registry::check_free`], and [`RegistryError::Io`]. What was there before is then still there.
    pub(crate) fn add(&self, name: &ModelName, entry: &Entry, replace: bool) -> Result<(), RegistryError> {
        self.check_free(name, replace)?;
        let file = self.file(name);
        let wrong = |source| RegistryError::Io { path: file.clone(), source };
        let text = toml::to_string(entry).map_err(|e| wrong(io::Error::other(e)))?;
        fs::create_dir_all(&self.directory).map_err(wrong)?;
        let mut new = tempfile::Builder::new()
            .prefix(".")
            .suffix(".new")
            // Not a secret: who runs the runtime need not be who adds a model.
            .permissions(Permissions::from_mode(0o644))
            .tempfile_in(&self.directory)
            .map_err(wrong)?;
        new.write_all(text.as_bytes()).and_then(|()| new.as_file().sync_all()).map_err(wrong)?;
        let persisted = if replace { new.persist(&file) } else { new.persist_noclobber(&file) };
        persisted.map_err(|e| match e.error.kind() {
            io::ErrorKind::AlreadyExists => RegistryError::Exists { name: name.0.clone(), file: file.clone() },
            _ => wrong(e.error),
        })?;
        self.sync()
    }

    /// The entry of a name; `None` when there is none.
    ///
    /// # Errors
    /// [`RegistryError::Damaged`] and [`RegistryError::Io`].
    pub(crate) fn get(&self, name: &ModelName) -> Result<Option<Entry>, RegistryError> {
        let file = self.file(name);
        let damaged = |problem: String| RegistryError::Damaged { name: name.0.clone(), file: file.clone(), problem };
        match read(&file) {
            Ok(text) => Entry::parse(&text, name.as_str()).map(Some).map_err(damaged),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(damaged(e.to_string())),
            Err(source) => Err(RegistryError::Io { path: file, source }),
        }
    }

    /// Every entry.
    ///
    /// # Errors
    /// [`RegistryError::Io`] when the directory cannot be read. Damaged entries are a part of the list.
    pub(crate) fn list(&self) -> Result<Listing, RegistryError> {
        let wrong = |source| RegistryError::Io { path: self.directory.clone(), source };
        let directory = match fs::read_dir(&self.directory) {
            Ok(directory) => directory,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Listing::default()),
            Err(e) => return Err(wrong(e)),
        };
        let mut files = Vec::new();
        for entry in directory {
            let path = entry.map_err(wrong)?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                files.push(path);
            }
            if files.len() > ENTRIES_MAX {
                return Err(wrong(io::Error::other(format!("more than {ENTRIES_MAX} entries"))));
            }
        }
        files.sort();
        let mut listing = Listing::default();
        for file in files {
            let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            match ModelName::parse(stem).map(|name| self.get(&name)) {
                Ok(Ok(entry)) => listing.entries.extend(entry),
                Ok(Err(error)) => listing.damaged.push(error),
                Err(_) => listing.damaged.push(RegistryError::Stray(file)),
            }
        }
        Ok(listing)
    }

    /// Removes the entry of a name, damaged or not. The model's files are not touched.
    ///
    /// # Errors
    /// [`RegistryError::NotRegistered`] and [`RegistryError::Io`].
    pub(crate) fn remove(&self, name: &ModelName) -> Result<(), RegistryError> {
        let file = self.file(name);
        match fs::remove_file(&file) {
            Ok(()) => self.sync(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(self.not_registered(name)),
            Err(source) => Err(RegistryError::Io { path: file, source }),
        }
    }

    /// The error for a name without an entry; it tells the names that there are.
    pub(crate) fn not_registered(&self, name: &ModelName) -> RegistryError {
        let names = self.names();
        let known = if names.is_empty() { String::new() } else { format!("; registered are {names}") };
        RegistryError::NotRegistered { name: name.0.clone(), known }
    }

    /// The registered names for a message; empty when there are none, or they cannot be read.
    pub(crate) fn names(&self) -> String {
        let entries = self.list().unwrap_or_default().entries;
        entries.into_iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ")
    }

    /// Makes a new or removed name durable.
    fn sync(&self) -> Result<(), RegistryError> {
        let done = File::open(&self.directory).and_then(|directory| directory.sync_all());
        done.map_err(|source| RegistryError::Io { path: self.directory.clone(), source })
    }
}

/// The text of an entry. What can be no entry, a pipe or a gigabyte, is `InvalidData`.
fn read(file: &Path) -> io::Result<String> {
    let invalid = |problem: &str| io::Error::new(io::ErrorKind::InvalidData, problem.to_owned());
    let metadata = fs::metadata(file)?;
    if !metadata.is_file() {
        return Err(invalid("it is not a file"));
    }
    let mut text = String::new();
    File::open(file)?.take(ENTRY_BYTES_MAX + 1).read_to_string(&mut text)?;
    match text.len() as u64 > ENTRY_BYTES_MAX {
        true => Err(invalid("it is too large to be an entry")),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn name(text: &str) -> ModelName {
        ModelName::parse(text).unwrap()
    }

    fn entry(name: &ModelName, parameters: u64) -> Entry {
        let facts = Facts {
            path: PathBuf::from("/models/é \"quoted\""),
            architecture: "LlamaForCausalLM".to_owned(),
            parameters,
            revision: (Digest([1; 32]), Digest([2; 32]), Digest([3; 32])),
            files: vec![FileEntry {
                name: "config.json".to_owned(),
                bytes: 7,
                digest: Digest([4; 32]),
                tensors: false,
            }],
        };
        Entry::new(name, facts, "2026-11-20T12:00:00Z".to_owned())
    }

    fn registry() -> (tempfile::TempDir, Registry) {
        let home = tempfile::tempdir().unwrap();
        let registry = Registry::new(home.path().join("models"));
        (home, registry)
    }

    #[test]
    fn names_lead_nowhere_else() {
        for good in ["a", "Qwen3-0.6B", "small.Q8_0", "7b"] {
            assert_eq!(name(good).as_str(), good);
        }
        let long = "n".repeat(NAME_CHARS_MAX + 1);
        for bad in ["", ".", "..", ".hidden", "-flag", "a/b", "../a", "a\\b", "a b", "a=b", "ä", "a\0", "a\n", &long] {
            assert_eq!(ModelName::parse(bad).unwrap_err().reason(), Reason::InvalidName, "{bad:?}");
        }
    }

    #[test]
    fn what_is_added_is_there_until_it_is_removed() {
        let (_home, registry) = registry();
        let (one, two) = (name("one"), name("two"));
        assert!(registry.list().unwrap().entries.is_empty(), "no directory yet");
        assert_eq!(registry.get(&one).unwrap(), None);
        registry.add(&two, &entry(&two, 2), false).unwrap();
        registry.add(&one, &entry(&one, 1), false).unwrap();
        assert_eq!(registry.get(&one).unwrap(), Some(entry(&one, 1)));
        assert_eq!(registry.list().unwrap().entries, [entry(&one, 1), entry(&two, 2)]);

        let refused = registry.add(&one, &entry(&one, 3), false).unwrap_err().to_string();
        assert!(refused.contains("--replace") && refused.contains("one.toml"), "{refused}");
        registry.add(&one, &entry(&one, 3), true).unwrap();
        assert_eq!(registry.get(&one).unwrap(), Some(entry(&one, 3)));
        assert_eq!(fs::read_dir(&registry.directory).unwrap().count(), 2, "nothing else is left behind");

        registry.remove(&one).unwrap();
        let refused = registry.remove(&one).unwrap_err();
        assert_eq!(refused.reason(), Reason::ModelNotFound);
        assert!(refused.to_string().contains("registered are two"), "{refused}");
        let built_in = name("pebble");
        let refused = registry.add(&built_in, &entry(&built_in, 1), true).unwrap_err().to_string();
        assert!(refused.contains("built in"), "{refused}");
    }

    #[test]
    fn damaged_entries_are_named_refused_and_can_be_removed() {
        let (_home, registry) = registry();
        let good = name("good");
        registry.add(&good, &entry(&good, 1), false).unwrap();
        let whole = fs::read_to_string(registry.file(&good)).unwrap();
        let huge = " ".repeat(ENTRY_BYTES_MAX as usize + 1);
        let cases = [
            ("cut", whole[..whole.len() / 2].to_owned(), ""),
            ("empty", String::new(), "no format"),
            ("nonsense", "what?".to_owned(), ""),
            ("huge", huge, "too large"),
            ("newer", whole.replace("format = 1", "format = 2"), "format 2"),
            ("other", whole.clone(), "good"),
            ("unknown", format!("key = 1\n{}", whole.replace("\"good\"", "\"unknown\"")), "key"),
            ("relative", whole.replace("\"good\"", "\"relative\"").replace("/models/é", "models/é"), "absolute"),
            ("digest", whole.replace("\"good\"", "\"digest\"").replace("0101", "01"), "digest"),
        ];
        for (damaged, text, _) in &cases {
            fs::write(registry.file(&name(damaged)), text).unwrap();
        }
        fs::create_dir(registry.file(&name("directory"))).unwrap();
        fs::write(registry.directory.join(".hidden.toml"), whole).unwrap();
        fs::write(registry.directory.join("notes.txt"), "not looked at").unwrap();
        for (damaged, _, said) in &cases {
            let error = registry.get(&name(damaged)).unwrap_err();
            let text = error.to_string();
            assert_eq!(error.reason(), Reason::InvalidModel, "{text}");
            assert!(text.contains(&format!("{damaged}.toml")) && text.contains(said), "{damaged}: {text}");
            assert!(text.contains(&format!("models remove {damaged}")), "{text}");
        }
        let listing = registry.list().unwrap();
        assert_eq!(listing.entries.len(), 1);
        assert_eq!(listing.damaged.len(), cases.len() + 2);
        for (damaged, _, _) in &cases {
            registry.remove(&name(damaged)).unwrap();
        }
        assert_eq!(registry.list().unwrap().damaged.len(), 2);
    }

    #[test]
    fn of_many_who_add_one_name_at_once_one_succeeds_and_other_names_are_not_lost() {
        let (_home, registry) = registry();
        let (shared, added) = (name("shared"), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for i in 0..8_u64 {
                let (registry, shared, added) = (&registry, &shared, &added);
                scope.spawn(move || {
                    let own = name(&format!("own-{i}"));
                    registry.add(&own, &entry(&own, i), false).unwrap();
                    match registry.add(shared, &entry(shared, i), false) {
                        Ok(()) => {
                            added.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => assert!(matches!(error, RegistryError::Exists { .. }), "{error}"),
                    }
                });
            }
        });
        assert_eq!(added.into_inner(), 1);
        let listing = registry.list().unwrap();
        assert_eq!((listing.entries.len(), listing.damaged.len()), (9, 0));
    }

    #[test]
    fn a_directory_that_cannot_be_one_is_named() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "").unwrap();
        let registry = Registry::new(file.join("models"));
        let one = name("one");
        for error in [
            registry.list().unwrap_err(),
            registry.get(&one).unwrap_err(),
            registry.add(&one, &entry(&one, 1), false).unwrap_err(),
        ] {
            assert_eq!(error.reason(), Reason::InvalidSetting);
            assert!(error.to_string().contains("models_dir"), "{error}");
        }
    }
}
