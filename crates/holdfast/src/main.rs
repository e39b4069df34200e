//! The Holdfast runtime.
fn main() {}
