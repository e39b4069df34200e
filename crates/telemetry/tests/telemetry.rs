//! The Prometheus page holds every metric under its name; the document lists every name; the end is bounded.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::time::Duration;

use holdfast_telemetry::names::{self, NameKind};
use holdfast_telemetry::{BlockCounts, Metrics, Telemetry, TelemetryError, TelemetrySettings, TokenCounts};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Every method of [`Metrics`] once.
fn record_everything(metrics: &Metrics) {
    metrics.set_sessions("running", 3);
    metrics.set_turns_open("queued", 2);
    metrics.turn_ended("pebble", "completed", "end_turn", Some(Duration::from_millis(40)));
    let tokens = TokenCounts { cached: 30, computed: 9, recomputed: 1, preempted: 0, output: 5 };
    metrics.generation_ended("pebble", tokens, Some(Duration::from_millis(7)), Duration::from_millis(27));
    metrics.set_queue_depth("neuron:0", 4);
    metrics.set_blocks("neuron:0", BlockCounts { used: 10, cached: 20, free: 30 });
    let device = metrics.device("neuron:0");
    device.step(8, 24, Duration::from_millis(3));
    device.step_modelled(Duration::from_micros(800), 0.25, 0);
    device.preempted(1);
    metrics.journal_commit(5, Duration::from_micros(300));
    metrics.grpc_request("holdfast.v1.SessionService/RunTurn", "OK");
    metrics.set_streams_open(6);
}

#[test]
fn metrics_that_are_off_record_nothing() {
    record_everything(&Metrics::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_holds_every_metric_and_the_end_is_bounded() {
    // Nothing listens at the collector's address: exporting fails, which must not hold up anybody.
    let settings = TelemetrySettings {
        log: "off".to_owned(),
        otlp_endpoint: Some("http://127.0.0.1:9".to_owned()),
        prometheus_listen: Some("127.0.0.1:0".parse().unwrap()),
        ..TelemetrySettings::default()
    };
    let telemetry = Telemetry::start(&settings, "0.1.0+test").unwrap();
    assert!(matches!(Telemetry::start(&settings, "again"), Err(TelemetryError::AlreadyStarted)));
    record_everything(&telemetry.metrics());
    tracing::info_span!(target: "holdfast_test", "holdfast.turn").in_scope(|| {});

    let mut stream = tokio::net::TcpStream::connect(telemetry.prometheus_address().unwrap()).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    for entry in names::ALL.iter().filter(|e| !matches!(e.kind, NameKind::Span | NameKind::Attribute)) {
        let name = entry.name.replace('.', "_");
        assert!(text.contains(&format!("# HELP {name}")), "{name} is not in\n{text}");
    }
    for sample in [
        r#"holdfast_kv_blocks{holdfast_device="neuron:0",holdfast_kv_block_state="cached""#,
        r#"holdfast_tokens_total{holdfast_token_kind="computed""#,
        r#"gen_ai_server_time_to_first_token_seconds_bucket{gen_ai_request_model="pebble""#,
        r#"service_version="0.1.0+test""#,
    ] {
        assert!(text.contains(sample), "{sample} is not in\n{text}");
    }
    let ratio = text.lines().find(|line| line.starts_with("holdfast_reuse_ratio{")).unwrap();
    assert!(ratio.ends_with(" 0.75"), "{ratio}");

    tokio::time::timeout(Duration::from_secs(8), telemetry.shutdown()).await.unwrap();
}

#[test]
fn what_cannot_be_used_is_refused() {
    let exporting =
        TelemetrySettings { prometheus_listen: Some("127.0.0.1:0".parse().unwrap()), ..TelemetrySettings::default() };
    assert!(matches!(Telemetry::start(&exporting, ""), Err(TelemetryError::NoRuntime)));
    let filter = TelemetrySettings { log: "holdfast=loud".to_owned(), ..TelemetrySettings::default() };
    assert!(matches!(Telemetry::start(&filter, ""), Err(TelemetryError::Filter { .. })));
}

#[test]
fn the_document_lists_every_name_once_with_unit_and_meaning() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/telemetry.md");
    let text = std::fs::read_to_string(path).unwrap();
    let listed: Vec<&str> = text.lines().filter(|line| line.starts_with("| `")).collect();
    let expected: Vec<String> = names::ALL.iter().map(row).collect();
    if listed != expected {
        let whole = expected.iter().fold(String::new(), |mut all, row| {
            writeln!(all, "{row}").unwrap();
            all
        });
        panic!("docs/telemetry.md differs from names.rs; its rows are to be\n{whole}");
    }
}

fn row(entry: &names::Name) -> String {
    let name = entry.name;
    let kind = entry.kind.as_str();
    let unit = if entry.unit.is_empty() { "–" } else { entry.unit };
    format!("| `{name}` | {kind} | {unit} | {} |", entry.meaning)
}
