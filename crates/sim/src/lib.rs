//! Seeded simulation: crashes and pressure against the real kv, scheduler, engine, journal and worker.
#![forbid(unsafe_code)]
