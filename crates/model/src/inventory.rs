//! What a model is made of: its files, their sizes, and the types of the elements in them.
//!
//! In: a [`ModelSource`]. Out: [`ModelFile`]s, and the text files as one form. Deliberately not here: checking anything; a
//! model is checked where it is loaded.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::limits::TENSORS_BYTES_MAX;
use crate::{ModelError, ModelSource, TextFiles, gguf, pebble};

/// The shards of a model in several files, by tensor.
const INDEX: &str = "model.safetensors.index.json";
/// Digests that the loader holds the files against.
const CHECKSUMS: &str = "B3SUMS";

/// A file of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// How many tensors it holds, by the type of their elements; empty for a file of text.
    pub tensors: BTreeMap<String, u64>,
}

impl ModelSource {
    /// The files of the model, sorted by path: the text files that the loader reads, and every file of tensors beside
    /// them. None for a built-in model.
    ///
    /// # Errors
    /// The [`ModelError`] that names a file that is missing or cannot be read.
    pub fn files(&self) -> Result<Vec<ModelFile>, ModelError> {
        match self {
            Self::BuiltIn(_) => Ok(Vec::new()),
            Self::File(path) => {
                let tensors = gguf::read(path)?.tensors;
                let elements =
                    tensors.names().into_iter().filter_map(|name| Some(tensors.get(&name)?.element.name().to_owned()));
                Ok(vec![ModelFile { path: path.clone(), bytes: size(path)?, tensors: counted(elements) }])
            }
            Self::Directory(path) => directory_files(path),
        }
    }

    /// The text files; those of a GGUF file as a directory would have them.
    ///
    /// # Errors
    /// As for loading: [`ModelError::Read`] for a file that is needed and missing, or what is wrong with the GGUF file.
    pub fn text_files(&self) -> Result<TextFiles, ModelError> {
        match self {
            Self::BuiltIn(name) if name == pebble::NAME => Ok(pebble::text_files()),
            Self::BuiltIn(name) => Err(Self::unknown(name)),
            Self::Directory(path) => TextFiles::from_directory(path),
            Self::File(path) => Ok(gguf::read(path)?.text),
        }
    }
}

fn directory_files(directory: &Path) -> Result<Vec<ModelFile>, ModelError> {
    let texts = TextFiles::from_directory(directory)?;
    let mut paths: Vec<PathBuf> = texts.entries().into_iter().map(|(name, _)| directory.join(name)).collect();
    paths.extend([INDEX, CHECKSUMS].map(|name| directory.join(name)).into_iter().filter(|path| path.is_file()));
    let mut files = Vec::new();
    for path in paths {
        files.push(ModelFile { bytes: size(&path)?, path, tensors: BTreeMap::new() });
    }
    let wrong = |source| ModelError::Read { path: directory.to_owned(), source };
    for entry in fs::read_dir(directory).map_err(wrong)? {
        let path = entry.map_err(wrong)?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            files.push(ModelFile { bytes: size(&path)?, tensors: safetensors_elements(&path)?, path });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn size(path: &Path) -> Result<u64, ModelError> {
    let metadata = fs::metadata(path).map_err(|source| ModelError::Read { path: path.to_owned(), source })?;
    Ok(metadata.len())
}

/// Reads the header of a safetensors file, and nothing behind it.
fn safetensors_elements(path: &Path) -> Result<BTreeMap<String, u64>, ModelError> {
    /// What the header says of a tensor; its entry for metadata says none of it.
    #[derive(Deserialize)]
    struct Tensor {
        dtype: Option<String>,
    }
    let read = |source| ModelError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(read)?;
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(read)?;
    let length = u64::from_le_bytes(length);
    if length > TENSORS_BYTES_MAX {
        let problem = format!("the header has {length} bytes, at most {TENSORS_BYTES_MAX} are read");
        return Err(ModelError::Weights { path: path.to_owned(), problem });
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).map_err(read)?;
    let tensors: BTreeMap<String, Tensor> = serde_json::from_slice(&header)
        .map_err(|e| ModelError::Weights { path: path.to_owned(), problem: format!("the header is not JSON: {e}") })?;
    Ok(counted(tensors.into_values().filter_map(|tensor| tensor.dtype)))
}

fn counted(elements: impl Iterator<Item = String>) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for element in elements {
        *counts.entry(element).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::random::{MicroDtype, MicroShape};

    #[test]
    fn a_directory_tells_its_files_with_sizes_and_element_types() {
        let directory = tempfile::tempdir().unwrap();
        let shape = MicroShape { dtype: MicroDtype::Bf16, ..MicroShape::default() };
        shape.write(directory.path()).unwrap();
        fs::write(directory.path().join("notes.txt"), "not a part of it").unwrap();
        let source = ModelSource::Directory(directory.path().to_owned());
        let files = source.files().unwrap();
        let name = |file: &ModelFile| file.path.file_name().unwrap().to_string_lossy().into_owned();
        let names: Vec<_> = files.iter().map(name).collect();
        for needed in ["config.json", "tokenizer.json", "model.safetensors"] {
            assert!(names.iter().any(|name| name == needed), "{needed}: {names:?}");
        }
        assert!(!names.iter().any(|name| name == "notes.txt"), "{names:?}");
        let weights = files.iter().find(|file| name(file) == "model.safetensors").unwrap();
        assert_eq!(weights.tensors, BTreeMap::from([("BF16".to_owned(), 2 * 9 + 2)]));
        assert_eq!(weights.bytes, fs::metadata(&weights.path).unwrap().len());
        assert_eq!(source.text_files().unwrap().config, shape.text_files().config);
    }

    #[test]
    fn a_header_beyond_the_bound_is_refused_before_anything_is_read() {
        let directory = tempfile::tempdir().unwrap();
        MicroShape::default().write(directory.path()).unwrap();
        let path = directory.path().join("model.safetensors");
        for (bytes, said) in
            [(&[0xff; 8][..], "at most"), (b"\x02\0\0\0\0\0\0\0[]", "not JSON"), (b"\x02", "model.safetensors")]
        {
            fs::write(&path, bytes).unwrap();
            let text = ModelSource::at(directory.path()).unwrap().files().unwrap_err().to_string();
            assert!(text.contains(said), "{text}");
        }
    }

    #[test]
    fn a_built_in_model_has_text_but_no_files() {
        let source = ModelSource::BuiltIn(pebble::NAME.to_owned());
        assert_eq!(source.files().unwrap(), []);
        assert!(source.text_files().unwrap().chat_template.is_some());
        assert!(ModelSource::BuiltIn("granite".to_owned()).text_files().is_err());
    }
}
