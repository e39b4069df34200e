//! Model directories made for a test: the built-in checkpoint's files copied, then lengthened, cut, or damaged.

use std::fs;
use std::path::{Path, PathBuf};

/// The built-in checkpoint in this repository.
fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/pebble")
}

/// Copies the built-in checkpoint into a new directory.
pub(crate) fn copy(into: &Path) -> PathBuf {
    fs::create_dir_all(into).unwrap();
    for entry in fs::read_dir(source()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), into.join(entry.file_name())).unwrap();
        }
    }
    into.to_owned()
}

/// A copy whose context is longer than what the checkpoint was trained for: its answers mean little, its costs are real.
pub(crate) fn with_context(into: &Path, tokens: u32) -> PathBuf {
    let directory = copy(into);
    let path = directory.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["max_position_embeddings"] = tokens.into();
    fs::write(&path, serde_json::to_vec_pretty(&config).unwrap()).unwrap();
    directory
}

/// Changes a file of a model directory.
pub(crate) fn damage(directory: &Path, file: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let path = directory.join(file);
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
}
