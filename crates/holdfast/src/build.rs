//! What this build is: compiled-in facts only.

/// The release version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Version and profile, as sessions record it.
pub(crate) fn build() -> String {
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    format!("holdfast {VERSION} ({profile})")
}
