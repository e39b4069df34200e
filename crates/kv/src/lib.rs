//! Block pool, keyed chains, residency index, reservations and eviction order. Pure and synchronous.
#![forbid(unsafe_code)]

mod key;

pub use key::{ChainDomain, DomainSecret, DomainSpan};
