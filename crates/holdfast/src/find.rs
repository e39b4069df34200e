//! What a person means by a model, and loading it: for `serve`, `chat` and `models` alike.
//!
//! In: a name or a path. Out: [`Found`]: a built-in model, else a registered one, else one at a path; and a [`Model`] that is
//! what was registered. Deliberately not here: entries and their files (`registry`), and reading a model (the model crate).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use holdfast_model::{Model, ModelError, ModelFile, ModelSource};
use holdfast_types::Digest;

use crate::models::progress;
use crate::registry::{Entry, Facts, FileEntry, ModelName, Registry, RegistryError};

/// Read at a time when a file is digested.
const CHUNK_BYTES: usize = 1 << 20;

/// A model that was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// The built-in or registered name, else the path's.
    pub(crate) name: String,
    /// Where it is.
    pub(crate) source: ModelSource,
    /// What was registered under the name.
    pub(crate) entry: Option<Entry>,
}

/// A built-in name, else a registered one, else a path.
///
/// # Errors
/// A [`RegistryError`] for a registered name that cannot be used; otherwise as [`ModelSource::resolve`] says.
pub(crate) fn find(registry: &Registry, asked: &str) -> anyhow::Result<Found> {
    let name = ModelName::parse(asked).ok().filter(|_| !ModelSource::BUILT_IN.contains(&asked));
    if let Some(name) = &name
        && let Some(entry) = registry.get(name)?
    {
        return registered(entry);
    }
    let source = ModelSource::resolve(asked).map_err(|error| match (&name, &error) {
        (Some(name), ModelError::UnknownName { .. }) => {
            let context = registry.not_registered(name).to_string();
            anyhow::Error::new(error).context(context)
        }
        _ => error.into(),
    })?;
    Ok(Found { name: source.name(), source, entry: None })
}

/// The model of an entry.
///
/// # Errors
/// [`RegistryError::Gone`] when nothing is at its path, else the [`ModelError`] that says what is there instead.
pub(crate) fn registered(entry: Entry) -> anyhow::Result<Found> {
    if !entry.path.exists() {
        return Err(RegistryError::Gone { name: entry.name, path: entry.path }.into());
    }
    let source = ModelSource::at(&entry.path).with_context(|| told(&entry))?;
    Ok(Found { name: entry.name.clone(), source, entry: Some(entry) })
}

impl Found {
    /// Loads the model. A registered one must be what was registered: its weights, tokenizer and template, and its files of
    /// text byte by byte. (`verify` reads the files of tensors byte by byte as well.)
    ///
    /// # Errors
    /// As for [`Model::load`]; [`RegistryError::Changed`].
    pub(crate) fn load(&self) -> anyhow::Result<Model> {
        let Some(entry) = &self.entry else { return Ok(progress::load(&self.source)?) };
        let model = progress::load(&self.source).with_context(|| told(entry))?;
        let mut changed = changed_parts(entry, &model);
        let is_same =
            |file: &FileEntry| digest_of(&root(&self.source).join(&file.name), |_| {}).ok() == Some(file.digest);
        let texts = entry.files.iter().filter(|file| !file.tensors && !is_same(file));
        changed.extend(texts.map(|file| file.name.clone()));
        if !changed.is_empty() {
            let what = format!("{} changed", changed.join(", "));
            return Err(RegistryError::Changed { name: entry.name.clone(), path: entry.path.clone(), what }.into());
        }
        Ok(model)
    }
}

fn told(entry: &Entry) -> String {
    let name = &entry.name;
    format!(
        "{name} is registered and cannot be loaded (`holdfast models remove {name}` forgets it, and touches none of its files)"
    )
}

/// Which of weights, tokenizer and template are not what the entry says.
pub(crate) fn changed_parts(entry: &Entry, model: &Model) -> Vec<String> {
    let (weights, tokenizer, template) = model.text().revision();
    let parts = [
        ("weights", entry.weights, weights),
        ("tokenizer", entry.tokenizer, tokenizer),
        ("template", entry.template, template),
    ];
    parts.into_iter().filter(|(_, then, now)| then != now).map(|(part, _, _)| part.to_owned()).collect()
}

/// What is to be registered of a loaded model. Reads every byte of its files; `on_read` hears how many at a time, and `on_total`
/// how many in all.
///
/// # Errors
/// When a file cannot be read, or its path cannot be made absolute.
pub(crate) fn facts(
    source: &ModelSource,
    model: &Model,
    on_total: impl FnOnce(u64),
    on_read: impl FnMut(u64),
) -> anyhow::Result<Facts> {
    let path = place(source)?;
    Ok(Facts {
        files: digest_files(source, on_total, on_read)?,
        path,
        architecture: model.config().architecture.clone(),
        parameters: model.parameters(),
        revision: model.text().revision(),
    })
}

/// Every file of a model with its digest.
///
/// # Errors
/// When one of them cannot be read.
pub(crate) fn digest_files(
    source: &ModelSource,
    on_total: impl FnOnce(u64),
    mut on_read: impl FnMut(u64),
) -> anyhow::Result<Vec<FileEntry>> {
    let files = source.files()?;
    on_total(files.iter().map(|file| file.bytes).sum());
    let root = root(source);
    let entry = |file: ModelFile| -> anyhow::Result<FileEntry> {
        let name = file.path.strip_prefix(root).unwrap_or(&file.path);
        let name = name.to_str().with_context(|| format!("{} is not a path in UTF-8", file.path.display()))?;
        Ok(FileEntry {
            digest: digest_of(&file.path, &mut on_read).with_context(|| file.path.display().to_string())?,
            name: name.to_owned(),
            bytes: file.bytes,
            tensors: !file.tensors.is_empty(),
        })
    };
    files.into_iter().map(entry).collect()
}

/// What is not in `now` as it was in `then`: names of files, and what happened to each.
pub(crate) fn differences<'a>(then: &'a [FileEntry], now: &'a [FileEntry]) -> Vec<(&'a str, &'static str)> {
    fn by_name(files: &[FileEntry]) -> BTreeMap<&str, &FileEntry> {
        files.iter().map(|file| (file.name.as_str(), file)).collect()
    }
    let (before, after) = (by_name(then), by_name(now));
    let gone_or_changed = before.iter().filter_map(|(name, file)| match after.get(name) {
        None => Some((*name, "is gone")),
        Some(other) if other.digest != file.digest => Some((*name, "changed")),
        Some(_) => None,
    });
    let new = after.keys().filter(|name| !before.contains_key(**name)).map(|name| (*name, "is new"));
    gone_or_changed.chain(new).collect()
}

/// The absolute path of a model. Links to directories are followed; a file keeps its name, which says what it is.
fn place(source: &ModelSource) -> anyhow::Result<PathBuf> {
    let absolute = |path: &Path| path.canonicalize().with_context(|| path.display().to_string());
    match source {
        ModelSource::BuiltIn(name) => Err(RegistryError::BuiltIn(name.clone()).into()),
        ModelSource::Directory(path) => absolute(path),
        ModelSource::File(path) => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let name = path.file_name().with_context(|| format!("{} has no name", path.display()))?;
            Ok(absolute(parent)?.join(name))
        }
    }
}

/// What names of files are relative to.
fn root(source: &ModelSource) -> &Path {
    match source {
        ModelSource::BuiltIn(_) => Path::new(""),
        ModelSource::Directory(path) => path,
        ModelSource::File(path) => path.parent().unwrap_or(Path::new("")),
    }
}

/// BLAKE3 of a file; `on_read` hears of every chunk.
fn digest_of(path: &Path, mut on_read: impl FnMut(u64)) -> std::io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            return Ok(Digest(*hasher.finalize().as_bytes()));
        }
        hasher.update(&chunk[..read]);
        on_read(read as u64);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use holdfast_model::random::MicroShape;
    use holdfast_types::Reason;

    use super::*;

    struct Place {
        home: tempfile::TempDir,
        registry: Registry,
        model: PathBuf,
    }

    impl Place {
        /// A registry with a micro model under the name `micro`.
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            let model = home.path().join("some-model");
            fs::create_dir(&model).unwrap();
            MicroShape::default().write(&model).unwrap();
            let registry = Registry::new(home.path().join("models"));
            let name = ModelName::parse("micro").unwrap();
            let source = ModelSource::at(&model).unwrap();
            let (mut total, mut read) = (0, 0);
            let facts =
                facts(&source, &Model::load(&source).unwrap(), |bytes| total = bytes, |bytes| read += bytes).unwrap();
            assert_eq!(total, read, "progress ends at its end");
            registry.add(&name, &Entry::new(&name, facts, "2026-11-20T12:00:00Z".to_owned()), false).unwrap();
            Self { home, registry, model }
        }

        fn change(&self, file: &str, change: impl FnOnce(&mut Vec<u8>)) {
            let path = self.model.join(file);
            let mut bytes = fs::read(&path).unwrap_or_default();
            change(&mut bytes);
            fs::write(path, bytes).unwrap();
        }
    }

    fn reason(error: &anyhow::Error) -> Option<Reason> {
        crate::reason::of(error)
    }

    #[test]
    fn built_in_names_win_over_registered_ones_and_those_over_paths() {
        let place = Place::new();
        let found = find(&place.registry, "pebble").unwrap();
        assert_eq!((found.name.as_str(), found.entry), ("pebble", None));
        let found = find(&place.registry, "micro").unwrap();
        assert_eq!(found.source, ModelSource::Directory(place.model.canonicalize().unwrap()));
        found.load().unwrap();
        let found = find(&place.registry, place.model.to_str().unwrap()).unwrap();
        assert_eq!((found.name.as_str(), found.entry), ("some-model", None));

        let error = find(&place.registry, "granite").unwrap_err();
        assert_eq!(reason(&error), Some(Reason::ModelNotFound));
        let text = format!("{error:#}");
        for word in ["granite", "registered are micro", "models add", "pebble"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        let text = format!("{:#}", find(&place.registry, "/no/where").unwrap_err());
        assert!(!text.contains("registered"), "a path is not taken for a name: {text}");
    }

    #[test]
    fn a_registered_model_that_is_not_there_is_refused_with_its_path() {
        let place = Place::new();
        fs::remove_file(place.model.join("model.safetensors")).unwrap();
        let error = find(&place.registry, "micro").unwrap().load().unwrap_err();
        assert_eq!(reason(&error), Some(Reason::InvalidModel));
        let text = format!("{error:#}");
        assert!(text.contains("model.safetensors") && text.contains("models remove micro"), "{text}");

        fs::rename(&place.model, place.home.path().join("elsewhere")).unwrap();
        let error = find(&place.registry, "micro").unwrap_err();
        assert_eq!(reason(&error), Some(Reason::ModelNotFound));
        let text = error.to_string();
        assert!(text.contains("some-model") && text.contains("models remove micro"), "{text}");
        fs::write(&place.model, "a file of another kind").unwrap();
        let text = format!("{:#}", find(&place.registry, "micro").unwrap_err());
        assert!(text.contains("some-model") && text.contains("models remove micro"), "{text}");
    }

    #[test]
    fn a_registered_model_that_changed_is_refused_with_what_changed() {
        for (file, parts) in [
            ("model.safetensors", "weights changed"),
            ("chat_template.jinja", "template"),
            ("config.json", "config.json changed"),
        ] {
            let place = Place::new();
            place.change(file, |bytes| match file {
                "model.safetensors" => *bytes.last_mut().unwrap() ^= 0x01,
                "chat_template.jinja" => bytes.extend(b"{# a remark #}"),
                _ => bytes.extend(b"\n"),
            });
            let error = find(&place.registry, "micro").unwrap().load().unwrap_err();
            assert_eq!(reason(&error), Some(Reason::ModelRevisionUnavailable));
            let text = error.to_string();
            assert!(text.contains(parts) && text.contains("--replace"), "{file}: {text}");
        }
    }

    #[test]
    fn files_that_went_changed_or_came_are_told_apart() {
        let file = |name: &str, byte| FileEntry {
            name: name.to_owned(),
            bytes: 1,
            digest: Digest([byte; 32]),
            tensors: false,
        };
        let then = [file("a", 1), file("b", 1), file("c", 1)];
        let now = [file("a", 1), file("c", 2), file("d", 1)];
        assert_eq!(differences(&then, &now), [("b", "is gone"), ("c", "changed"), ("d", "is new")]);
        assert_eq!(differences(&then, &then), []);
    }
}
