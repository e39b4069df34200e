//! The services, one file each: pick the worker's method, convert there and back.
//!
//! In: parsed calls of tonic. Out: calls of [`Worker`](holdfast_worker_api::Worker) through the edge. Deliberately not
//! here: anything that two methods would have to do alike.

mod completion;
mod model;
mod runtime;
mod session;
mod token;

pub(crate) use completion::Completions;
#[cfg(test)]
pub(crate) use completion::parse as parse_generate;
pub(crate) use model::Models;
pub(crate) use runtime::Runtimes;
pub(crate) use session::Sessions;
#[cfg(test)]
pub(crate) use session::append as parse_append;
pub(crate) use token::Tokens;
#[cfg(test)]
pub(crate) use token::parse as parse_count;
