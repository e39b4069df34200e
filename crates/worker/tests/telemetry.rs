//! What an operator sees of turns: the spans that reach a collector over OTLP, and the metrics on the Prometheus page, against
//! the usage that clients are told.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod local;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_journal::MemoryJournal;
use holdfast_telemetry::{RunSpans, Telemetry, TelemetrySettings};
use holdfast_types::{
    EventKind, Item, Role, SamplingOverrides, SessionConfig, SessionId, Turn, TurnNumber, TurnState, Usage,
};
use holdfast_worker::WorkerSettings;
use holdfast_worker_api::{Caller, CreateSession, EventStream, Generate, StartTurn, Worker};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_stream::StreamExt as _;
use tonic::transport::server::TcpIncoming;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const REQUEST: &str = "b7ad6b7169203331";

/// Keeps what it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        self.0.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute<'a>(span: &'a Span, name: &str) -> Option<&'a Value> {
    span.attributes.iter().find(|pair| pair.key == name)?.value.as_ref()?.value.as_ref()
}

fn number(span: &Span, name: &str) -> u64 {
    match attribute(span, name) {
        Some(Value::IntValue(number)) => u64::try_from(*number).unwrap(),
        other => panic!("{name} of {}: {other:?}", span.name),
    }
}

fn text(span: &Span, name: &str) -> String {
    match attribute(span, name) {
        Some(Value::StringValue(text)) => text.clone(),
        other => panic!("{name} of {}: {other:?}", span.name),
    }
}

fn words(span: &Span, name: &str) -> Vec<String> {
    let Some(Value::ArrayValue(array)) = attribute(span, name) else { panic!("{name} of {}", span.name) };
    let word = |value: &opentelemetry_proto::tonic::common::v1::AnyValue| match &value.value {
        Some(Value::StringValue(text)) => text.clone(),
        other => panic!("{other:?}"),
    };
    array.values.iter().map(word).collect()
}

async fn page(telemetry: &Telemetry) -> String {
    let mut stream = tokio::net::TcpStream::connect(telemetry.prometheus_address().unwrap()).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// The sum over the samples of a name that hold every one of these words.
fn sample(page: &str, name: &str, words: &[&str]) -> f64 {
    let lines = page.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    let lines = lines.filter(|line| words.iter().all(|word| line.contains(word)));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

fn caller() -> Caller {
    Caller { traceparent: format!("00-{TRACE}-{REQUEST}-01"), ..Caller::default() }
}

fn sampling(most: u32) -> SamplingOverrides {
    SamplingOverrides { temperature: Some(1.0), max_output_tokens: Some(most), seed: Some(11), ..Default::default() }
}

fn say(session: &SessionId, most: u32) -> StartTurn {
    let input = vec![Item::message(Role::User, "What is a holdfast?")];
    StartTurn { sampling: sampling(most), ..StartTurn::new(session.clone(), input) }
}

async fn to_the_end(events: EventStream) {
    let all: Vec<_> = tokio::time::timeout(Duration::from_secs(20), events.collect()).await.unwrap();
    assert!(all.last().unwrap().as_ref().unwrap().kind.is_terminal());
}

fn settings(telemetry: &Telemetry) -> WorkerSettings {
    WorkerSettings { metrics: telemetry.metrics(), runs: RunSpans::default(), ..WorkerSettings::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_nest_and_metrics_add_up_to_the_usage_of_turns() {
    let collector = Collector::default();
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let endpoint = format!("http://{}", incoming.local_addr().unwrap());
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone()));
    tokio::spawn(server.serve_with_incoming(incoming));
    let telemetry = TelemetrySettings {
        log: "off".to_owned(),
        otlp_endpoint: Some(endpoint),
        prometheus_listen: Some("127.0.0.1:0".parse().unwrap()),
        ..TelemetrySettings::default()
    };
    let telemetry = Telemetry::start(&telemetry, "test").unwrap();

    let journal = Arc::new(MemoryJournal::automatic([5; 32]));
    let (worker, engine) = local::worker(journal.clone(), settings(&telemetry));
    let config = SessionConfig { instructions: "You are Pebble.".into(), ..Default::default() };
    let create = CreateSession { config, ..Default::default() };
    let session = worker.create_session(&caller(), create).await.unwrap().id;
    for _ in 0..2 {
        to_the_end(worker.run_turn(&caller(), say(&session, 24)).await.unwrap().events).await;
    }
    let config = SessionConfig { sampling: sampling(12), ..Default::default() };
    let items = vec![Item::message(Role::User, "Hello")];
    let generate = Generate { config, items, ..Default::default() };
    let stream = worker.generate(&caller(), generate).await.unwrap();
    let told: Vec<_> = tokio::time::timeout(Duration::from_secs(20), stream.collect()).await.unwrap();
    let completed = told.into_iter().find_map(|event| match event.unwrap().kind {
        EventKind::TurnEnded { turn } => Some(*turn),
        _ => None,
    });
    let completed = completed.unwrap();

    // The third turn is interrupted, and goes on in another process.
    local::STEP_DELAY_US.store(10_000, Ordering::Relaxed);
    let mut stream = worker.run_turn(&caller(), say(&session, 200)).await.unwrap();
    while !matches!(stream.events.next().await.unwrap().unwrap().kind, EventKind::TextDelta { .. }) {}
    worker.drain().await;
    let interrupted = worker.get_turn(&caller(), &session, TurnNumber(3)).await.unwrap();
    assert_eq!(interrupted.state, TurnState::Running);
    local::STEP_DELAY_US.store(0, Ordering::Relaxed);
    drop(stream);
    let steps = engine.snapshot();
    engine.shutdown();
    drop(worker);
    let (worker, engine) = local::worker(journal, settings(&telemetry));
    to_the_end(worker.attach_turn(&caller(), &session, TurnNumber(3), 0).await.unwrap().events).await;
    let mut turns: Vec<Turn> = Vec::new();
    for turn in 1..=3 {
        turns.push(worker.get_turn(&caller(), &session, TurnNumber(turn)).await.unwrap());
    }
    let steps = [steps, engine.snapshot()];
    engine.shutdown();
    drop(worker);

    let all = || turns.iter().chain([&completed]);
    // What clients are told is what is counted: each generation once, also the one that was interrupted.
    let page = page(&telemetry).await;
    let sum = |of: fn(&Usage) -> u64| all().map(|turn| of(&turn.usage)).sum::<u64>() as f64;
    for (kind, expected) in [
        ("cached", sum(|usage| usage.cached.total())),
        ("computed", sum(|usage| usage.computed_tokens)),
        ("recomputed", sum(|usage| usage.recomputed_tokens)),
        ("preempted", sum(|usage| usage.preempted_tokens)),
        ("output", sum(|usage| usage.output_tokens)),
    ] {
        let kind = format!("holdfast_token_kind=\"{kind}\"");
        assert_eq!(sample(&page, "holdfast_tokens_total", &[&kind]), expected, "{kind}");
    }
    let reuse = sum(|usage| usage.cached.total()) / sum(|usage| usage.input_tokens);
    assert!(reuse > 0.0);
    assert!((sample(&page, "holdfast_reuse_ratio", &[]) - reuse).abs() < 1e-9);
    let pebble = &["gen_ai_request_model=\"pebble\""][..];
    let generations = all().map(|turn| turn.generations.len()).sum::<usize>() as f64;
    assert_eq!(generations, 4.0);
    for (name, unit) in [("time_to_first_token", 1e6), ("request_duration", 1e6)] {
        let name = format!("gen_ai_server_{name}_seconds");
        assert_eq!(sample(&page, &format!("{name}_count"), pebble), generations, "{name}");
        let expected: u64 = match &*name {
            "gen_ai_server_request_duration_seconds" => {
                all().map(|turn| turn.ended_us.unwrap() - turn.created_us).sum()
            }
            _ => all().flat_map(|turn| &turn.generations).map(|one| one.usage.time_to_first_token_us).sum(),
        };
        let found = sample(&page, &format!("{name}_sum"), pebble);
        // A completion is accepted between two ticks of this clock.
        assert!((found - expected as f64 / unit).abs() < 1e-3, "{name}: {found} s, {expected} us");
    }
    assert_eq!(sample(&page, "gen_ai_server_time_per_output_token_seconds_count", pebble), generations);
    assert_eq!(sample(&page, "holdfast_turns_ended_total", &[]), 4.0);
    let steps_total: u64 = steps.iter().map(|engine| engine.steps).sum();
    let rows: u64 = steps.iter().map(|engine| engine.computed_rows).sum();
    assert_eq!(sample(&page, "holdfast_step_duration_seconds_count", &[]), steps_total as f64);
    assert_eq!(sample(&page, "holdfast_step_sequences_sum", &[]), steps_total as f64, "one at a time");
    assert_eq!(sample(&page, "holdfast_step_rows_sum", &[]), rows as f64);

    telemetry.shutdown().await;
    let spans = collector.0.lock().unwrap().clone();
    let named = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let mut children: BTreeMap<String, Vec<&Span>> = BTreeMap::new();
    for span in &spans {
        children.entry(hex(&span.parent_span_id)).or_default().push(span);
    }
    let below = |span: &Span| children.get(&hex(&span.span_id)).cloned().unwrap_or_default();

    let chats = named("chat pebble");
    assert_eq!(chats.len(), 4, "three turns, one of them in two processes");
    let completions = named("text_completion pebble");
    assert_eq!(completions.len(), 1);
    for turn in chats.iter().chain(&completions) {
        assert_eq!(hex(&turn.trace_id), TRACE);
        assert_eq!(hex(&turn.parent_span_id), REQUEST, "{}", turn.name);
        assert_eq!(text(turn, "gen_ai.provider.name"), "holdfast");
        assert_eq!(text(turn, "gen_ai.request.model"), "pebble");
        let below_turn = below(turn);
        let [generation] = &below_turn[..] else { panic!("{below_turn:?}") };
        assert_eq!(generation.name, "holdfast.generation");
        let steps = below(generation);
        assert!(!steps.is_empty());
        for step in steps {
            assert_eq!(step.name, "holdfast.step");
            assert_eq!(hex(&step.trace_id), TRACE);
            assert_eq!(number(step, "holdfast.step.sequence_count"), 1);
            assert!(step.end_time_unix_nano >= step.start_time_unix_nano);
        }
    }
    for turn in &turns {
        let mut ended = chats.iter().filter(|span| {
            number(span, "holdfast.turn.number") == u64::from(turn.number.0)
                && attribute(span, "holdfast.turn.state").is_some()
        });
        let span = ended.next().expect("an end");
        assert!(ended.next().is_none(), "one end");
        assert_eq!(text(span, "gen_ai.operation.name"), "chat");
        assert_eq!(text(span, "gen_ai.conversation.id"), session.as_str());
        assert_eq!(text(span, "gen_ai.response.id"), format!("sessions/{session}/turns/{}", turn.number.0));
        let state = if turn.state == TurnState::Completed { "completed" } else { "incomplete" };
        assert_eq!(text(span, "holdfast.turn.state"), state);
        assert_eq!(words(span, "gen_ai.response.finish_reasons").len(), 1);
        assert!(attribute(span, "error.type").is_none());
        for span in [span, &below(span)[0]] {
            assert_eq!(number(span, "gen_ai.usage.input_tokens"), turn.usage.input_tokens);
            assert_eq!(number(span, "gen_ai.usage.output_tokens"), turn.usage.output_tokens);
            assert_eq!(number(span, "gen_ai.usage.cache_read.input_tokens"), turn.usage.cached.total());
        }
    }
    assert_eq!(text(completions[0], "gen_ai.operation.name"), "text_completion");
    assert_eq!(number(completions[0], "gen_ai.usage.output_tokens"), completed.usage.output_tokens);
    // Every step hangs below a turn, and none was lost.
    let steps = named("holdfast.step");
    assert_eq!(steps.len() as u64, steps_total);
    assert!(steps.iter().all(|step| !step.parent_span_id.is_empty()));
    assert_eq!(steps.iter().map(|step| number(step, "holdfast.step.row_count")).sum::<u64>(), rows);
}
