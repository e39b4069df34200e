//! The one clock and the one source of randomness of the process; everything else takes them as arguments.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use holdfast_worker::{Clock, Entropy};

/// Wall time that never goes back: read once from the system, then counted on by the monotonic clock.
#[expect(clippy::disallowed_methods, reason = "this is the one clock")]
pub(crate) fn wall() -> Clock {
    let begin = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = Instant::now();
    Arc::new(move || u64::try_from((begin + since.elapsed()).as_micros()).unwrap_or(u64::MAX))
}

/// 128 fresh bits from the system for each call.
pub(crate) fn entropy() -> Entropy {
    Arc::new(|| uuid::Uuid::new_v4().as_u128())
}
