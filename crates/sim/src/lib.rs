//! Seeded simulation: crashes, faults and pressure against the real kv, scheduler, engine, journal and worker.
//!
//! In: a seed. Out: nothing, or the first thing that is wrong with the last actions before it; the same for the same seed. One
//! process, one thread, no clock: whatever may happen in any order in production is put in an order by the seed, as
//! TigerBeetle's VOPR does it.
//!
//! - `node`: the parts of one process, and everything on its way between them; `device`: a device that fails on demand;
//!   `alphabet`: a language of a few characters.
//! - `clients`, `script`, `followers`: agents, what they say, and how they follow events.
//! - `oracle`: what must hold whatever happens; `replay`: that every token is the one it has to be.
//! - `world`: the loop over all of that; `trace`: what it did.
//! - `twin`: whole histories played again under other circumstances.
//!
//! Deliberately not here: the thin shells (threads, sockets, files); `holdfast`'s own tests kill the real process.
#![forbid(unsafe_code)]

pub mod alphabet;
pub mod clients;
pub mod device;
pub mod followers;
pub mod node;
pub mod oracle;
pub mod replay;
pub mod script;
pub mod trace;
pub mod twin;
pub mod world;
