//! The gRPC edge: contracts to worker-api, identity, limits, errors.
//!
//! In: HTTP/2 connections that speak `holdfast.v1`, health and reflection. Out: calls of
//! [`Worker`](holdfast_worker_api::Worker), and answers or one `google.rpc.Status` with details for whatever fails. A
//! request is checked for shape here, once; what depends on a session's state is the worker's to check. Deliberately not
//! here: sessions, tokens, the journal; idempotency and etags, which are passed on as they came; TLS and credentials.
//!
//! The path of a request, in the order of the modules: [`server`] accepts it, `refusals` speaks for the parts of tonic
//! that answer by themselves, `services` picks the worker's method, `edge` gives every call its caller, its span and its
//! bounds, `convert` turns protos into the worker's words (with `names`, `filter`, `limits` and `unimplemented`), `stream`
//! and `paging` carry the answer back, and `status` is the only place where a failure becomes a status.
#![forbid(unsafe_code)]

mod convert;
mod deadline;
mod edge;
mod field;
mod filter;
mod health;
mod identity;
mod limits;
mod names;
mod paging;
mod refusals;
mod server;
mod services;
mod status;
mod stream;
mod telemetry;
mod unimplemented;

#[cfg(test)]
mod properties;

pub use convert::event::of_session as session_event;
pub use server::{Gateway, GatewayError, GatewaySettings};
