//! What the end-to-end tests stand on: the real binary as a child process, talks with it over real gRPC, scripts of
//! conversations, and how much work a run does. In: a data directory and flags. Out: an address, and what the runtime
//! said. Deliberately not here: any part of the runtime itself; what is tested is the process.
#![allow(dead_code, unused_imports, reason = "each test file uses its own part of this")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

pub(crate) mod model_dir;
pub(crate) mod process;
pub(crate) mod script;
pub(crate) mod talk;

pub(crate) use process::{Home, Runtime};
pub(crate) use talk::Heard;

use std::time::Duration;

/// How long a test waits for anything that should happen soon. Generous, because two cores may be busy with other suites.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Between two looks at a condition that nobody announces.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Waits until `probe` gives a value.
///
/// # Panics
/// When `bound` has passed.
pub(crate) async fn until<T>(what: &str, bound: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let last = tokio::time::Instant::now() + bound;
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < last, "{what}: not within {bound:?}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Bounds a future.
///
/// # Panics
/// When `bound` has passed.
pub(crate) async fn within<T>(what: &str, bound: Duration, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(bound, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {bound:?}"),
    }
}

/// `quick` of TEST_EFFORT, as `cargo xtask test --quick` sets it, else `full`.
pub(crate) fn effort<T>(quick: T, full: T) -> T {
    let said = std::env::var("TEST_EFFORT");
    match said.as_deref() {
        Ok("quick") => quick,
        Ok("full") | Err(_) => full,
        Ok(other) => panic!("TEST_EFFORT is quick or full, not {other:?}"),
    }
}
