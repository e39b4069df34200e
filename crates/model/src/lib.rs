//! A model on disk to memory: config, weights, tokenizer, template, and the reference forward pass.
//!
//! In: a [`ModelSource`], the built-in Pebble, a directory in Hugging Face layout or a GGUF file. Out: a [`Model`]: a decoder described by
//! data ([`DecoderConfig`]), its [`Weights`], and everything about its text ([`ModelText`]); and [`Reference`], the
//! plain forward pass that every backend is compared with. The files are refused with a reason and a next step
//! ([`ModelError`]) rather than half understood. Deliberately not here: fast kernels and quantisation (backends), sessions
//! and what sampled tokens mean to a client (the worker), and anything that talks to a network.

mod bytes;
mod config;
mod error;
mod form;
mod gguf;
mod inventory;
mod limits;
mod messages;
mod model;
mod mxfp4;
pub mod nested;
mod overrides;
mod pebble;
pub mod random;
mod reasoning;
mod reference;
mod render;
mod safetensors_header;
mod source;
mod stability;
mod synthetic;
mod template;
mod template_meter;
mod template_source;
mod text;
mod tokenizer;
mod weights;

pub use bytes::Utf8Assembler;
pub use config::{
    ARCHITECTURES, Activation, Architecture, BiasRule, CapRule, DecoderConfig, ExpertsConfig, GgufForm, LayerConfig,
    LayerPart, LayerRope, RopeConfig, RopeScaling, Storage, TensorNames, TensorRole, TensorSpec, WindowRule,
};
pub use error::{ModelError, RenderError};
pub use form::{CallLayout, ParsedCall, ToolCallForm, recipient};
pub use inventory::ModelFile;
pub use model::{LoadProgress, Model};
pub use reasoning::{ChannelMark, ReasoningForm};
pub use reference::Reference;
pub use render::{LogEnd, Next, OpenEnd, Prompt};
pub use source::ModelSource;
pub use stability::{HistoryRendering, LookBack, Stability};
pub use template::DEFAULT as DEFAULT_TEMPLATE;
pub use text::{ModelText, TextFiles};
pub use weights::{LayerWeights, OtherRow, WeightMatrix, WeightRow, Weights};
