//! W3C trace context (<https://www.w3.org/TR/trace-context/>): from a header's text to a span's parent, and back.
//!
//! In: the text of a `traceparent`, from a client or from the journal. Out: parents and links of spans; anything malformed is
//! neither.
//! Deliberately not here: where the text comes from, and `tracestate`.

use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Name of the header.
pub const TRACEPARENT: &str = "traceparent";

struct Header<'a>(&'a str);

impl Extractor for Header<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == TRACEPARENT).then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}

/// The context that `traceparent` names, or `None` if it is empty or malformed.
pub fn parse(traceparent: &str) -> Option<opentelemetry::Context> {
    let context =
        TraceContextPropagator::new().extract_with_context(&opentelemetry::Context::new(), &Header(traceparent));
    context.span().span_context().is_valid().then_some(context)
}

/// Makes `span` a child of what `traceparent` names. Does nothing while traces are off or the text is no trace context.
pub fn set_parent(span: &tracing::Span, traceparent: &str) {
    if let Some(context) = parse(traceparent) {
        // The only error is that no layer exports spans, or that the span was closed: both mean that nobody looks.
        drop(span.set_parent(context));
    }
}

/// Links `span` to what `traceparent` names: another cause of the same work. Does nothing where [`set_parent`] does nothing.
pub fn link(span: &tracing::Span, traceparent: &str) {
    if let Some(context) = parse(traceparent) {
        span.add_link(context.span().span_context().clone());
    }
}

/// The trace context of `span` for those who continue it; empty while traces are off.
pub fn traceparent(span: &tracing::Span) -> String {
    let context = span.context();
    let span = context.span();
    let of = span.span_context();
    if !of.is_valid() {
        return String::new();
    }
    format!("00-{}-{}-{:02x}", of.trace_id(), of.span_id(), of.trace_flags().to_u8())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use opentelemetry::trace::TracerProvider as _;
    use tracing_subscriber::layer::SubscriberExt as _;

    const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_span_joins_the_trace_it_is_given_and_passes_it_on() {
        let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let span = tracing::info_span!("holdfast.request");
            set_parent(&span, GIVEN);
            let passed_on = traceparent(&span);
            assert_eq!(passed_on[..36], GIVEN[..36], "the same trace");
            assert_ne!(passed_on[36..52], GIVEN[36..52], "another span");
            assert!(parse(&passed_on).is_some());
        });
    }

    #[test]
    fn malformed_text_is_no_parent_and_off_is_silent() {
        for text in ["", "00", "zz", "00-00000000000000000000000000000000-b7ad6b7169203331-01", &GIVEN[..52]] {
            assert!(parse(text).is_none(), "{text}");
        }
        let span = tracing::info_span!("holdfast.request");
        set_parent(&span, GIVEN);
        assert_eq!(traceparent(&span), "");
    }
}
