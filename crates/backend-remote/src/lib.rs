//! A device over the wire: the contract of `proto/holdfast/device/v1` from both sides.
//!
//! In: an address, or a local backend. Out: a [`RemoteBackend`], which is a [`holdfast_backend::Backend`] like any other, or [`serve()`],
//! which lends a local backend to a runtime elsewhere. Deliberately not here: which device a runtime uses, and what becomes of its
//! sessions while the device is away (the engine).
//!
//! ```text
//! engine ──▶ RemoteBackend ──▶ link ── gRPC ──▶ serve ──▶ any Backend
//!            checks plans,     one life         one life
//!            answers           = one stream     = one stream
//! ```
//!
//! - `address`: where devices listen; `error`: why a device cannot be used.
//! - `remote`: the client, with its checks of plans and of the order of things; `link`: one life's connection; `answer`: what a step
//!   gave, put together and held against what was asked.
//! - `serve`: the server; `host`: the local backend behind it.
//! - `wire`: messages to words and back.
#![forbid(unsafe_code)]

mod address;
mod answer;
mod error;
mod host;
mod link;
mod remote;
mod serve;
mod wire;

pub use address::{AddressError, DeviceAddress};
pub use error::RemoteError;
pub use remote::{RemoteBackend, RemoteSettings};
pub use serve::{Listener, serve};

/// Bytes of one message of a step stream, as the contract says.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Bytes of a chunk of a block, as the contract says.
const CHUNK_BYTES_MAX: usize = 1 << 20;
