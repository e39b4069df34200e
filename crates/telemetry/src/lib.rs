//! OpenTelemetry set-up, and the names of every span, attribute and metric.
//!
//! In: settings, and facts from every crate above. Out: log lines on standard error, spans and metrics over OTLP, a Prometheus
//! page; all but the log are off unless set. Deliberately not here: what is measured where.
#![forbid(unsafe_code)]

pub mod names;
pub mod propagation;

mod metrics;
mod setup;
mod spans;

pub use metrics::{BlockCounts, DeviceMetrics, Metrics, TokenCounts};
pub use setup::{LogFormat, Telemetry, TelemetryError, TelemetrySettings};
pub use spans::{LINKS_MAX, RunSpans, set_words};
