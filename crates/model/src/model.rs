//! A model in memory: config, weights and text together.
//!
//! In: a source. Out: [`Model`]. Deliberately not here: how any of the parts is read.

use std::path::Path;
use std::sync::Arc;

use crate::weights::{WeightBytes, verify_checksums};
use crate::{DecoderConfig, ModelError, ModelSource, ModelText, TextFiles, Weights, gguf, pebble};

const CONFIG_FILE: &str = "config.json";

/// How far loading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadProgress {
    /// Files are held against the digests beside them.
    Checksums,
    /// Tensors are read, converted and checked.
    Weights {
        /// Bytes of tensors so far.
        bytes_read: u64,
        /// Bytes of all tensors.
        bytes_total: u64,
    },
    /// Tokenizer and templates are read, and proven.
    Text,
}

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
        Self::load_with(source, &mut |_| {})
    }

    /// The same, and tells how far it is: in the order of [`LoadProgress`], nothing for a built-in model.
    ///
    /// # Errors
    /// As for [`Model::load`].
    pub fn load_with(source: &ModelSource, on_progress: &mut dyn FnMut(LoadProgress)) -> Result<Self, ModelError> {
        match source {
            ModelSource::BuiltIn(name) if name == pebble::NAME => pebble::load(),
            ModelSource::BuiltIn(name) => Err(ModelSource::unknown(name)),
            ModelSource::Directory(path) => Self::from_directory(path, on_progress),
            ModelSource::File(path) => Self::from_gguf(path, on_progress),
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

    fn from_directory(directory: &Path, on_progress: &mut dyn FnMut(LoadProgress)) -> Result<Self, ModelError> {
        on_progress(LoadProgress::Checksums);
        verify_checksums(directory, None)?;
        let files = TextFiles::from_directory(directory)?;
        let config = DecoderConfig::parse(&files.config, &directory.join(CONFIG_FILE))?;
        let weights = Weights::from_directory(directory, &config, &mut on_weights(on_progress))?;
        on_progress(LoadProgress::Text);
        Self::assemble(directory, config, weights, &files)
    }

    fn from_gguf(path: &Path, on_progress: &mut dyn FnMut(LoadProgress)) -> Result<Self, ModelError> {
        on_progress(LoadProgress::Checksums);
        verify_checksums(path.parent().unwrap_or(Path::new("")), path.file_name())?;
        let parts = gguf::read(path)?;
        let weights = Weights::from_gguf(path, parts.tensors, &parts.config, parts.form, &mut on_weights(on_progress))?;
        on_progress(LoadProgress::Text);
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

/// Tells of weights.
fn on_weights(on_progress: &mut dyn FnMut(LoadProgress)) -> impl FnMut(u64, u64) {
    move |bytes_read, bytes_total| on_progress(LoadProgress::Weights { bytes_read, bytes_total })
}
