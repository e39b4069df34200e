//! The deadline of a call, which bounds its stream and nothing else.
//!
//! In: the `grpc-timeout` header (gRPC over HTTP/2: at most 8 digits and a unit). Out: how long the stream may last. tonic
//! holds unary calls to the same header by itself. Deliberately not here: `turn_deadline`, which bounds the work and is
//! the worker's.

use std::time::Duration;

use tonic::metadata::MetadataMap;

/// Digits of a timeout, at most.
const DIGITS: usize = 8;

/// How long the call may last; `None` without a deadline, or with a header that says none.
pub(crate) fn of(metadata: &MetadataMap) -> Option<Duration> {
    parse(metadata.get("grpc-timeout")?.to_str().ok()?)
}

fn parse(text: &str) -> Option<Duration> {
    let (at, unit) = text.char_indices().next_back()?;
    let digits = text.get(..at)?;
    if digits.is_empty() || digits.len() > DIGITS || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(value * 3600)),
        'M' => Some(Duration::from_secs(value * 60)),
        'S' => Some(Duration::from_secs(value)),
        'm' => Some(Duration::from_millis(value)),
        'u' => Some(Duration::from_micros(value)),
        'n' => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(parse("2M"), Some(Duration::from_secs(120)));
        assert_eq!(parse("3S"), Some(Duration::from_secs(3)));
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("7u"), Some(Duration::from_micros(7)));
        assert_eq!(parse("1n"), Some(Duration::from_nanos(1)));
        for bad in ["", "S", "1", "1s", "-1S", "123456789S", "1.5S", "1ü"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
