//! Constraints on what is sampled: JSON schemas, regular expressions, grammars, choices and tool calls, as token masks.
//!
//! In: the tokens of a vocabulary once; per generation a [`Spec`] of what it may say, then the tokens that were sampled. Out: a
//! [`Guide`] that says before each token which ones may follow, or a [`GuideError`] that names the place in a schema.
//! Deliberately not here: sampling (the backends), which tools may be called (the worker), what a call means.
//!
//! - `vocabulary`: the tokens as a trie, and which of them are text; `guides`: compiled grammars of one vocabulary, [`Guides`].
//! - `spec`: what may be said; `grammar`: the same as grammars of llguidance; `schema`: JSON schemas on their way there.
//! - `guide`: one generation. A guide is a function of its spec and the tokens that it took: replayed, it is the same again.
#![forbid(unsafe_code)]

mod error;
mod grammar;
mod guide;
mod guides;
mod schema;
mod spec;
mod vocabulary;

pub use error::GuideError;
pub use guide::Guide;
pub use guides::Guides;
pub use spec::{CallBody, CallLayout, CallSpelling, CallableTool, Calls, Need, Spec, Spelt, Thinking};
pub use vocabulary::Vocabulary;
