//! OpenTelemetry set-up, and the names of every span, attribute and metric.
