//! KV blocks as a content-addressed cache: block pool, keyed chains, residency index, reservations and eviction order.
//!
//! In: token logs, what a device is, and what steps did. Out: block tables, block copies and what was found. Deliberately not
//! here: the bytes (a device owns them), which sequence runs (the scheduler), time (recency is a count of releases) and
//! threads. Nothing here blocks or fails: what does not fit is said as [`Shortage`], and what must never happen panics.
//!
//! - `key`: what a full block is called, [`BlockKey`].
//! - `pool`: what each block is doing, [`BlockPool`].
//! - `index`: what is where and what goes next, [`ResidencyIndex`].
//! - `sight`: how many blocks a sliding window sees.
//! - `holding`: what a running sequence has of it, [`Holding`].
//! - `cache`: all of it together over the KV groups of a device, [`KvCache`]; `audit`: its invariants.
#![forbid(unsafe_code)]

mod audit;
mod cache;
mod holding;
mod index;
mod key;
mod pool;
mod sight;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use cache::KvCache;
pub use holding::{Found, FoundSpan, Growth, Holding, Replaced, Shortage, Table};
pub use index::{Evictable, LastUse, ResidencyIndex, Resident};
pub use key::{BlockKey, Chain, ChainDomain, DomainSecret, DomainSpan};
pub use pool::{BlockPool, BlockState, PoolCounts, Reservation};
