//! The Rust client of a Holdfast runtime.
