//! A model in memory: config, weights and text together.
//!
//! In: a source. Out: [`Model`]. Deliberately not here: how any of the parts is read.

use std::path::Path;
use std::sync::Arc;

use crate::weights::{WeightBytes, verify_checksums};
use crate::{DecoderConfig, ModelError, ModelSource, ModelText, TextFiles, Weights, gguf, pebble};

const CONFIG_FILE: &str = "config.json";

/// A model, whole and checked. Immutable; shared by backends, workers and tests through an [`Arc`].
///
/// The files stay mapped as long as the value lives, and must not change meanwhile.
#[derive(Debug)]
pub struct Model {
    config: DecoderConfig,
    weights: Weights,
    text: Arc<ModelText>,
}

impl Model {
    /// Loads and checks everything.
    ///
    /// # Errors
    /// The [`ModelError`] that names the first file that is wrong, and the next step.
    pub fn load(source: &ModelSource) -> Result<Self, ModelError> {
        match source {
            ModelSource::BuiltIn(name) if name == pebble::NAME => pebble::load(),
            ModelSource::BuiltIn(name) => Err(ModelSource::unknown(name)),
            ModelSource::Directory(path) => Self::from_directory(path),
            ModelSource::File(path) => Self::from_gguf(path),
        }
    }

    /// What the decoder looks like.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Its weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Everything about its text.
    pub fn text(&self) -> &Arc<ModelText> {
        &self.text
    }

    /// Number of weights; a tied output matrix is counted once.
    pub fn parameters(&self) -> u64 {
        self.weights.parameters()
    }

    fn from_directory(directory: &Path) -> Result<Self, ModelError> {
        verify_checksums(directory, None)?;
        let files = TextFiles::from_directory(directory)?;
        let config = DecoderConfig::parse(&files.config, &directory.join(CONFIG_FILE))?;
        let weights = Weights::from_directory(directory, &config)?;
        Self::assemble(directory, config, weights, &files)
    }

    fn from_gguf(path: &Path) -> Result<Self, ModelError> {
        verify_checksums(path.parent().unwrap_or(Path::new("")), path.file_name())?;
        let parts = gguf::read(path)?;
        let weights = Weights::from_gguf(path, parts.tensors, &parts.config, parts.form)?;
        Self::assemble(path, parts.config, weights, &parts.text)
    }

    /// From files in memory. `path` stands for a directory in messages.
    ///
    /// # Errors
    /// As for a directory.
    pub(crate) fn from_memory(path: &Path, files: &TextFiles, weights: WeightBytes) -> Result<Self, ModelError> {
        let config = DecoderConfig::parse(&files.config, &path.join(CONFIG_FILE))?;
        let weights = Weights::from_bytes(path, weights, &config)?;
        Self::assemble(path, config, weights, files)
    }

    fn assemble(path: &Path, config: DecoderConfig, weights: Weights, files: &TextFiles) -> Result<Self, ModelError> {
        let text = ModelText::new(path, files, config.vocab_size, config.context_limit, weights.digest())?;
        tracing::info!(
            path = %path.display(),
            architecture = config.architecture,
            parameters = weights.parameters(),
            weights = %weights.digest(),
            "model loaded"
        );
        Ok(Self { config, weights, text: Arc::new(text) })
    }
}
