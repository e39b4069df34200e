//! Who asks.
//!
//! In: the metadata of a call. Out: [`Caller`]. There are no credentials yet: every caller is the principal `anonymous`
//! of the tenant `default`, and no field of a request can say otherwise. A `traceparent` that is not one (W3C Trace
//! Context, version 00) is dropped, as that specification asks. Deliberately not here: what a caller may do.

use holdfast_worker_api::Caller;
use tonic::metadata::MetadataMap;

/// The caller of a request with this metadata.
pub(crate) fn caller(metadata: &MetadataMap) -> Caller {
    let traceparent = metadata.get("traceparent").and_then(|value| value.to_str().ok());
    Caller {
        traceparent: traceparent.filter(|text| is_traceparent(text)).unwrap_or_default().to_owned(),
        ..Caller::default()
    }
}

/// `00-{32 hex}-{16 hex}-{2 hex}`, lower case, with ids that are not all zero.
fn is_traceparent(text: &str) -> bool {
    let mut parts = text.split('-');
    let mut hex = |digits: usize| {
        parts.next().filter(|part| {
            part.len() == digits && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        })
    };
    let (version, trace, span, flags) = (hex(2), hex(32), hex(16), hex(2));
    let named = |id: Option<&str>| id.is_some_and(|id| id.bytes().any(|b| b != b'0'));
    version == Some("00") && named(trace) && named(span) && flags.is_some() && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_passed_on_only_if_it_is_one() {
        let mut metadata = MetadataMap::new();
        assert_eq!(caller(&metadata), Caller::default());
        metadata.insert("traceparent", GOOD.parse().unwrap());
        assert_eq!(caller(&metadata).traceparent, GOOD);
        assert_eq!(caller(&metadata).tenant.as_str(), "default");
        assert_eq!(caller(&metadata).principal.as_str(), "anonymous");
        for bad in [
            "",
            "00",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            metadata.insert("traceparent", bad.parse().unwrap());
            assert_eq!(caller(&metadata).traceparent, "", "{bad:?}");
        }
    }
}
