//! Wiring: settings become a journal, devices with their engines, a worker and a gateway, and all of them end in order.
//!
//! Deliberately not here: any decision of theirs; signals (`serve`).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use holdfast_engine::{Engine, EngineConfig, EngineHandle, EngineThread, SchedulerConfig, StepObserver};
use holdfast_gateway::{Gateway, GatewayError, GatewaySettings};
use holdfast_journal::{Journal, SqliteJournal, SqliteSettings};
use holdfast_telemetry::{Metrics, RunSpans, Telemetry, names};
use holdfast_types::{Failure, Precision, Reason};
use holdfast_worker::{Clock, Device, LocalWorker, WorkerPort, WorkerSettings};
use holdfast_worker_api::{ModelInfo, Worker};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::find::{Found, find};
use crate::registry::Registry;
use crate::settings::Settings;
use crate::{build, clock, device, gauges};

/// What this build can do, for `GetRuntime`.
const FEATURES: &[&str] = &[
    "sessions",
    "turns",
    "tool_calls",
    "tool_choice",
    "allowed_tools",
    "tools.strict",
    "parallel_tool_calls",
    "constraint.json_schema",
    "constraint.regex",
    "constraint.grammar",
    "constraint.choice",
    "completions",
    "prefill",
    "journal",
    "logprobs",
];

/// A running runtime. Ends with [`Runtime::stop`]; dropping it without is a crash, which loses nothing either.
pub(crate) struct Runtime {
    address: SocketAddr,
    models: Vec<String>,
    gateway: JoinHandle<Result<(), GatewayError>>,
    stop: oneshot::Sender<()>,
    worker: Arc<LocalWorker>,
    engines: Vec<EngineHandle>,
    gauges: JoinHandle<()>,
    telemetry: Telemetry,
}

impl Runtime {
    /// Starts everything; when this returns, the port answers and interrupted turns go on.
    ///
    /// # Errors
    /// A setting that cannot be used, a model that cannot be loaded, a data directory that another process owns, a port that is taken.
    pub(crate) async fn start(settings: &Settings) -> anyhow::Result<Self> {
        let telemetry = Telemetry::start(&telemetry_settings(settings), &build::build())?;
        if let Some(address) = telemetry.prometheus_address() {
            tracing::info!("metrics are at http://{address}/metrics");
        }
        let (metrics, runs) = (telemetry.metrics(), RunSpans::default());
        let clock = clock::wall();
        let journal = open_journal(settings, &telemetry)?;
        let listener = TcpListener::bind(settings.listen).await.with_context(|| {
            format!("INVALID_SETTING: listen: {} cannot be listened on; choose another --listen", settings.listen)
        })?;
        let address = listener.local_addr()?;

        let (port, inbox) = WorkerPort::new();
        let mut devices = Vec::new();
        let mut engines = Vec::new();
        for (place, (name, found)) in sources(settings)?.into_iter().enumerate() {
            let observed = (&*metrics, &runs);
            let (device, engine) = start_device(settings, place, (name, &found), &clock, &port, observed)?;
            devices.push(device);
            engines.push(engine);
        }
        let models: Vec<String> = devices.iter().map(|device| device.info.name.clone()).collect();
        let names = devices.iter().map(|device| device.info.device.clone()).collect();
        let worker = Arc::new(LocalWorker::start(
            worker_settings(settings, Arc::clone(&metrics), runs),
            (port, inbox),
            journal,
            devices,
            (clock, clock::entropy()),
        ));

        let gateway = Gateway::new(
            Arc::clone(&worker) as Arc<dyn Worker>,
            GatewaySettings {
                limits: settings.limits.clone(),
                build: build::build(),
                metrics: Arc::clone(&metrics),
                drain_timeout: Duration::from_secs(settings.shutdown.drain_timeout_s),
                ..GatewaySettings::default()
            },
        );
        let (stop, stopped) = oneshot::channel();
        let gateway = tokio::spawn(gateway.serve(listener, async {
            // A dropped sender means the same as a sent word.
            drop(stopped.await);
        }));
        let gauges = tokio::spawn(gauges::run(metrics, Arc::clone(&worker), names, engines.clone()));
        Ok(Self { address, models, gateway, stop, worker, engines, gauges, telemetry })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Names of the served models, the default first.
    pub(crate) fn models(&self) -> &[String] {
        &self.models
    }

    /// Ends in order: the edge drains, running turns reach a step boundary, engines end, the journal is closed.
    ///
    /// # Errors
    /// When serving had broken down.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        // An error means that the gateway ended by itself; its result says why.
        let _ = self.stop.send(());
        let served = self.gateway.await;
        self.worker.drain().await;
        self.gauges.abort();
        for engine in &self.engines {
            let engine = engine.clone();
            tokio::task::spawn_blocking(move || engine.shutdown()).await?;
        }
        drop(self.worker);
        self.telemetry.shutdown().await;
        Ok(served??)
    }
}

pub(crate) fn telemetry_settings(settings: &Settings) -> holdfast_telemetry::TelemetrySettings {
    let telemetry = &settings.telemetry;
    holdfast_telemetry::TelemetrySettings {
        log: telemetry.log.clone(),
        log_format: telemetry.log_format.into(),
        otlp_endpoint: telemetry.otlp_endpoint.clone(),
        prometheus_listen: telemetry.prometheus_listen,
        service_name: telemetry.service_name.clone(),
    }
}

fn open_journal(settings: &Settings, telemetry: &Telemetry) -> anyhow::Result<Arc<dyn Journal>> {
    let metrics = telemetry.metrics();
    let journal = SqliteJournal::open(
        &settings.data_dir,
        SqliteSettings {
            on_commit: Some(Arc::new(move |report| {
                metrics.journal_commit(report.batches as u64, report.duration);
            })),
            ..SqliteSettings::default()
        },
    )?;
    Ok(Arc::new(journal))
}

fn worker_settings(settings: &Settings, metrics: Arc<Metrics>, runs: RunSpans) -> WorkerSettings {
    WorkerSettings {
        limits: settings.limits.clone(),
        version: build::VERSION.to_owned(),
        build: build::build(),
        features: FEATURES.iter().map(|feature| (*feature).to_owned()).collect(),
        sessions_loaded: settings.worker.loaded_sessions as usize,
        metrics,
        runs,
        ..WorkerSettings::default()
    }
}

/// Names and places of the models that are to be served.
pub(crate) fn sources(settings: &Settings) -> anyhow::Result<Vec<(String, Found)>> {
    let registry = Registry::new(settings.models_dir());
    let mut names = BTreeSet::new();
    let mut sources = Vec::new();
    for model in &settings.models {
        let (name, found) = match model.split_once('=') {
            Some((name, path)) => (name.to_owned(), find(&registry, path)?),
            None => {
                let found = find(&registry, model)?;
                (found.name.clone(), found)
            }
        };
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')) {
            bail!(
                "INVALID_SETTING: models: {name:?} is no model name; write NAME=PATH with letters, digits, '.', '_', '-'"
            );
        }
        if !names.insert(name.clone()) {
            bail!("INVALID_SETTING: models: {name} is named twice; write NAME=PATH to tell them apart");
        }
        sources.push((name, found));
    }
    Ok(sources)
}

/// Loads a model, finds a device of its own for it, and starts its engine.
fn start_device(
    settings: &Settings,
    place: usize,
    (name, found): (String, &Found),
    clock: &Clock,
    port: &WorkerPort,
    (metrics, runs): (&Metrics, &RunSpans),
) -> anyhow::Result<(Device, EngineHandle)> {
    let span = tracing::info_span!(names::SPAN_MODEL_LOAD, { names::GEN_AI_REQUEST_MODEL } = name);
    let model = span.in_scope(|| found.load()).with_context(|| format!("model {name}"))?;
    let backend = device::find(settings, place, &name, &model)?;
    let description = backend.describe().clone();
    let scheduler = SchedulerConfig {
        prefill_chunk_tokens: settings.scheduler.prefill_chunk_tokens,
        step_budget_us: settings.scheduler.step_budget_us,
    };
    let mut engine = Engine::new(backend, EngineConfig { scheduler, ..EngineConfig::default() });
    engine.observe(StepObserver::new(&description.name, metrics, runs.clone()));
    let context_limit = engine.context_limit();
    let handle = EngineThread::start(&format!("engine-{place}"), engine, Arc::clone(clock), port.engine_sink())?;
    let text = model.text();
    let (weights, tokenizer, template) = text.revision();
    let kv_blocks = description.kv_groups.iter().map(|group| group.blocks).sum();
    let block_bytes: u64 = description.kv_groups.iter().map(|group| group.bytes_per_block).sum();
    let info = ModelInfo {
        name,
        architecture: model.config().architecture.clone(),
        parameters: model.parameters(),
        context_limit,
        vocab_size: text.vocab_size(),
        weights,
        tokenizer,
        template,
        numerics_class: description.numerics_class.clone(),
        tools: text.tool_form().is_some(),
        speech: holdfast_worker::speech_of(text),
        device: description.name.clone(),
        kv_blocks: (kv_blocks, 0),
        kv_bytes_per_token: block_bytes / u64::from(description.block_tokens),
        is_default: place == 0,
    };
    tracing::info!(model = info.name, device = info.device, context_limit, kv_blocks, "serving");
    let (commands, blocks) = (handle.clone(), handle.clone());
    let device = Device {
        info,
        text: Arc::clone(text),
        precision: description.precisions.first().copied().unwrap_or(Precision::Native),
        engine: Box::new(move |command| {
            commands.send(command).map_err(|error| Failure::new(Reason::QueueFull, error.to_string()))
        }),
        kv_blocks: Box::new(move || {
            let use_ = blocks.snapshot().blocks;
            (use_.total, use_.used + use_.cached)
        }),
    };
    Ok((device, handle))
}
