//! What can be wrong with a model on disk, and with items that a template cannot express.
//!
//! In: what the other modules found, with the path and the values that matter. Out: [`ModelError`] and [`RenderError`],
//! each with the next step in its message, and as a [`Failure`] for whoever answers a client. Deliberately not here: any
//! decision; those are made where the facts are.

use std::path::PathBuf;

use holdfast_types::{Digest, Failure, Reason};

/// Why a model cannot be used. Every variant names the file and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The name is neither a built-in model nor a directory nor a GGUF file.
    #[error(
        "no model named {name:?}: built in are {built_in}; otherwise give the path of a directory with config.json, or of a .gguf file"
    )]
    UnknownName {
        /// What was asked for.
        name: String,
        /// The built-in names.
        built_in: String,
    },
    /// A file cannot be read.
    #[error("{path}: {source}; give a readable directory in Hugging Face layout, or a .gguf file", path = path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A text file is longer than any model needs.
    #[error("{path}: it has more than {bytes_max} bytes, which is all that is read; use another model", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Most bytes that are read.
        bytes_max: u64,
    },
    /// `config.json`, or the metadata of a GGUF file, is malformed or describes something that is not understood.
    #[error("{path}: {problem}; correct the file or use another model", path = path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the key.
        problem: String,
    },
    /// The architecture has no row in the table.
    #[error("{path}: architecture {found:?} is not known; known are {known}", path = path.display())]
    UnknownArchitecture {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// The rows of the table.
        known: String,
    },
    /// A weights file ends before its header says so.
    #[error("{path}: the file is truncated ({problem}); download it again", path = path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What is missing.
        problem: String,
    },
    /// A weights file or its index is malformed.
    #[error("{path}: {problem}; download it again or convert it anew", path = path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The config needs tensors that no file holds.
    #[error("{path}: missing tensors: {names}; add the shard that holds them", path = path.display())]
    MissingTensors {
        /// The model's directory or weights file.
        path: PathBuf,
        /// Up to eight names, and how many more.
        names: String,
    },
    /// The files hold tensors that the config has no place for.
    #[error("{path}: tensors that the config has no place for: {names}; the config and the weights belong to different models", path = path.display())]
    ExtraTensors {
        /// The model's directory or weights file.
        path: PathBuf,
        /// Up to eight names, and how many more.
        names: String,
    },
    /// A tensor has another shape than the config says.
    #[error("{path}: tensor {name} has shape {found:?}, the config asks for {expected:?}; the config and the weights belong to different models", path = path.display())]
    WrongShape {
        /// The model's directory or weights file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// From the config.
        expected: Vec<usize>,
        /// From the file.
        found: Vec<usize>,
    },
    /// A tensor has an element type that is not read.
    #[error("{path}: tensor {name} holds {found}; {read} are read: convert it", path = path.display())]
    WrongDtype {
        /// The model's directory or weights file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its element type.
        found: String,
        /// The types that are read.
        read: &'static str,
    },
    /// A weight is not a finite number.
    #[error("{path}: tensor {name} holds {value} at element {index}; the file is damaged or training diverged: use another copy", path = path.display())]
    NonFinite {
        /// The model's directory or weights file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Row-major index of the first such element.
        index: usize,
        /// The element.
        value: f32,
    },
    /// A file is not what `B3SUMS` says.
    #[error("{path}: its BLAKE3 digest is {found}, B3SUMS says {expected}; the file is damaged: download it again", path = path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// From `B3SUMS`.
        expected: Digest,
        /// Computed.
        found: Digest,
    },
    /// `B3SUMS` cannot be read as "hex  filename" lines.
    #[error("{path}: line {line}: {problem}; write the file with b3sum, or remove it", path = path.display())]
    ChecksumList {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// The tokenizer cannot be used.
    #[error("{path}: {problem}; use the tokenizer that was published with the weights", path = path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The tokenizer's decoder does not give exact bytes per token.
    #[error("{path}: {problem}; ByteLevel, and Metaspace with ByteFallback, are understood", path = path.display())]
    UnsupportedDecoder {
        /// The file.
        path: PathBuf,
        /// What it is.
        problem: String,
    },
    /// Tokenizer and embeddings disagree.
    #[error("{path}: token {token:?} has id {id}, the embeddings have {vocab_size} rows; tokenizer and weights belong to different models", path = path.display())]
    Vocabulary {
        /// The tokenizer's file.
        path: PathBuf,
        /// The token with the highest id.
        token: String,
        /// Its id.
        id: u32,
        /// `vocab_size` of the config.
        vocab_size: u32,
    },
    /// No file names a token that ends a turn.
    #[error("{path}: no end-of-turn token; set eos_token_id in generation_config.json, or tokenizer.ggml.eos_token_id in a GGUF file", path = path.display())]
    NoStopToken {
        /// The model's directory.
        path: PathBuf,
    },
    /// `generation_config.json`, `tokenizer_config.json`, or what a GGUF file says in their place, is malformed.
    #[error("{path}: {problem}; correct the file or remove the key", path = path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// There is no chat template.
    #[error("{path}: no chat template; add chat_template.jinja, or tokenizer.chat_template to a GGUF file", path = path.display())]
    NoTemplate {
        /// The model's directory.
        path: PathBuf,
    },
    /// A chat template cannot be compiled or renders nothing sensible.
    #[error("{path}: chat template {name:?}: {problem}; correct the template", path = path.display())]
    Template {
        /// The model's directory.
        path: PathBuf,
        /// The template's name.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// Rendering more items changes what the earlier ones became, so new items cannot be rendered alone.
    #[error("{path}: chat template {name:?} ({digest}) is not prefix-stable: {problem}; give a chat_template.jinja whose rendering of earlier messages does not depend on later ones", path = path.display())]
    UnstableTemplate {
        /// The model's directory.
        path: PathBuf,
        /// The template's name.
        name: String,
        /// BLAKE3 of its source.
        digest: Digest,
        /// The history at which it shows.
        problem: String,
    },
    /// `tool_call_form.json` is malformed.
    #[error("{path}: {problem}; correct the file or remove it", path = path.display())]
    ToolForm {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The reference forward failed: a defect, or too little memory.
    #[error("the reference forward failed: {0}")]
    Reference(String),
}

impl ModelError {
    /// As a failure with the reason `INVALID_MODEL`, or `MODEL_NOT_FOUND` for an unknown name.
    pub fn failure(&self) -> Failure {
        let reason = match self {
            Self::UnknownName { .. } => Reason::ModelNotFound,
            Self::Reference(_) => Reason::Internal,
            _ => Reason::InvalidModel,
        };
        Failure::new(reason, self.to_string())
    }
}

/// Why items cannot be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// The template raised an error.
    #[error("the model's chat template rejects the items: {message}")]
    Rejected {
        /// The template's words.
        message: String,
    },
    /// The template left something out without an error.
    #[error("the model's chat template leaves out {what}; say it in another role")]
    Dropped {
        /// What, with its place.
        what: String,
    },
    /// What the template makes of these items depends on more than the items.
    #[error("the model's chat template renders earlier messages differently when these items follow: {what}")]
    Unstable {
        /// Where it showed.
        what: &'static str,
    },
    /// A tool's schema is not a JSON object.
    #[error("tool {name:?}: parameters_json_schema: {problem}")]
    InvalidTool {
        /// The tool.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// The template that the session names does not exist.
    #[error("the model has no chat template {name:?}; it has {known}")]
    UnknownTemplate {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The texts use every private-use character, so none is left to mark them with.
    #[error("the items use all of Unicode's private-use characters; at least one must stay free")]
    NoFreeMark,
}

impl RenderError {
    /// As a failure with the reason that fits.
    pub fn failure(&self) -> Failure {
        let text = self.to_string();
        match self {
            Self::InvalidTool { .. } => Failure::field(Reason::InvalidTool, "session.tools", text),
            Self::UnknownTemplate { .. } => Failure::field(Reason::InvalidArgument, "session.template", text),
            _ => Failure::new(Reason::TemplateRejectedItems, text),
        }
    }
}

/// Names for a message: the first eight, and how many more.
pub(crate) fn some_names(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(SHOWN) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}
