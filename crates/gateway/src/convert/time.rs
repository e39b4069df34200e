//! Times and durations.
//!
//! In: `google.protobuf.Timestamp` and `Duration`. Out: microseconds since the Unix epoch, whole seconds, milliseconds;
//! and timestamps back. The range is that of the well-known type, from the epoch to the end of the year 9999.
//! Deliberately not here: the present time.

use holdfast_types::{Failure, TimeUs};
use prost_types::{Duration, Timestamp};

use crate::field::Field;

const NANOS_PER_SECOND: i32 = 1_000_000_000;

/// 9999-12-31T23:59:59Z, the last second of a Timestamp.
const LAST_SECOND: i64 = 253_402_300_799;

/// Most seconds of a Duration: about 10,000 years.
const MOST_SECONDS: i64 = 315_576_000_000;

/// Reads a time; finer parts than microseconds are cut off.
pub(crate) fn time_us(field: Field<'_>, time: &Timestamp) -> Result<TimeUs, Failure> {
    let seconds = u64::try_from(time.seconds).ok().filter(|_| time.seconds <= LAST_SECOND);
    let nanos = u64::try_from(time.nanos).ok().filter(|_| time.nanos < NANOS_PER_SECOND);
    match (seconds, nanos) {
        (Some(seconds), Some(nanos)) => Ok(seconds * 1_000_000 + nanos / 1_000),
        _ => Err(field.invalid("is not a time between 1970 and 9999")),
    }
}

/// Writes a time.
pub(crate) fn timestamp(time: TimeUs) -> Timestamp {
    let seconds = i64::try_from(time / 1_000_000).unwrap_or(LAST_SECOND).min(LAST_SECOND);
    let nanos = i32::try_from(time % 1_000_000).unwrap_or_default() * 1_000;
    Timestamp { seconds, nanos }
}

/// Reads a duration of whole seconds, at least one.
pub(crate) fn whole_seconds(field: Field<'_>, duration: &Duration) -> Result<u64, Failure> {
    match u64::try_from(duration.seconds) {
        Ok(seconds) if seconds >= 1 && duration.seconds <= MOST_SECONDS && duration.nanos == 0 => Ok(seconds),
        _ => Err(field.invalid("must be whole seconds, at least one")),
    }
}

/// Writes a duration of whole seconds.
pub(crate) fn seconds(duration_s: u64) -> Duration {
    Duration { seconds: i64::try_from(duration_s).unwrap_or(MOST_SECONDS).min(MOST_SECONDS), nanos: 0 }
}

/// Reads a duration above zero in milliseconds, rounded up.
pub(crate) fn positive_ms(field: Field<'_>, duration: &Duration) -> Result<u64, Failure> {
    let seconds = u64::try_from(duration.seconds).ok().filter(|_| duration.seconds <= MOST_SECONDS);
    let nanos = u64::try_from(duration.nanos).ok().filter(|_| duration.nanos < NANOS_PER_SECOND);
    match (seconds, nanos) {
        (Some(seconds), Some(nanos)) if seconds > 0 || nanos > 0 => Ok(seconds * 1_000 + nanos.div_ceil(1_000_000)),
        _ => Err(field.invalid("must be a duration above zero")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const FIELD: Field<'static> = Field::Root("time");

    #[test]
    fn times_go_there_and_back() {
        for time in [0, 1, 999_999, 1_000_000, 1_795_170_600_123_456, 253_402_300_799_999_999] {
            assert_eq!(time_us(FIELD, &timestamp(time)).unwrap(), time);
        }
        assert_eq!(timestamp(u64::MAX).seconds, LAST_SECOND);
    }

    #[test]
    fn times_outside_the_range_are_refused() {
        for (seconds, nanos) in
            [(-1, 0), (LAST_SECOND + 1, 0), (i64::MIN, 0), (i64::MAX, 0), (1, -1), (1, NANOS_PER_SECOND)]
        {
            assert!(time_us(FIELD, &Timestamp { seconds, nanos }).is_err(), "{seconds} {nanos}");
        }
    }

    #[test]
    fn durations_are_checked() {
        assert_eq!(whole_seconds(FIELD, &Duration { seconds: 60, nanos: 0 }).unwrap(), 60);
        for (seconds, nanos) in [(0, 0), (-1, 0), (1, 1), (i64::MAX, 0)] {
            assert!(whole_seconds(FIELD, &Duration { seconds, nanos }).is_err(), "{seconds} {nanos}");
        }
        assert_eq!(positive_ms(FIELD, &Duration { seconds: 1, nanos: 1 }).unwrap(), 1001);
        assert_eq!(positive_ms(FIELD, &Duration { seconds: 0, nanos: 1 }).unwrap(), 1);
        for (seconds, nanos) in [(0, 0), (-1, 0), (0, -1), (i64::MAX, 0), (i64::MIN, i32::MIN)] {
            assert!(positive_ms(FIELD, &Duration { seconds, nanos }).is_err(), "{seconds} {nanos}");
        }
        assert_eq!(seconds(u64::MAX).seconds, MOST_SECONDS);
    }
}
