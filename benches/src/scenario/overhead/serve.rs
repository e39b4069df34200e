//! `serve-noop`: the runtime as `holdfast serve` wires it, on a device that costs nothing.
//!
//! In: an address, a directory for data, a directory for figures. Out: a runtime that answers until SIGTERM: gateway, worker,
//! engine thread and SQLite journal with the product's defaults, and Pebble's tokenizer and template. Deliberately not here:
//! settings, several models and gauges, which `holdfast serve` has beside it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use clap::Args;
use holdfast_engine::{Engine, EngineConfig, EngineHandle, EngineThread, StepObserver};
use holdfast_gateway::{Gateway, GatewaySettings};
use holdfast_journal::{SqliteJournal, SqliteSettings};
use holdfast_model::{Model, ModelSource};
use holdfast_telemetry::{Metrics, RunSpans, Telemetry, TelemetrySettings};
use holdfast_types::{Failure, Precision, Reason};
use holdfast_worker::{Clock, Device, LocalWorker, WorkerPort, WorkerSettings};
use holdfast_worker_api::{ModelInfo, Worker};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::device::{NoopDevice, describe, words};
use super::figures::{Counters, Left, listen};

/// Whose tokenizer and template are used.
pub(super) const MODEL: &str = "pebble";
/// Sequences that the device runs at once.
const SEQUENCES: u32 = 1_024;

/// A runtime on a device that answers at once
#[derive(Debug, Clone, Args)]
pub(crate) struct ServeArguments {
    /// Where it listens
    #[arg(long, value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Where it keeps its journal
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Where it tells what it counts
    #[arg(long, value_name = "DIR")]
    figures: PathBuf,
}

/// Serves until SIGTERM, then drains. On the threads that the product has: this program's own runtime has only one.
///
/// # Errors
/// When it cannot start, or serving broke down.
pub(crate) async fn serve(arguments: &ServeArguments) -> anyhow::Result<()> {
    let arguments = arguments.clone();
    let serving = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(run(&arguments))
    });
    serving.await?
}

async fn run(arguments: &ServeArguments) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let telemetry =
        Telemetry::start(&TelemetrySettings { log: "warn".to_owned(), ..TelemetrySettings::default() }, "noop")?;
    let (metrics, runs, clock) = (telemetry.metrics(), RunSpans::default(), wall());
    let counters = Arc::<Counters>::default();
    let journal = SqliteJournal::open(&arguments.data_dir, counted(&counters))?;
    let listener = TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("{} cannot be listened on", arguments.listen))?;
    let address = listener.local_addr()?;

    let (port, inbox) = WorkerPort::new();
    let (device, engine) = start_device(&counters, &clock, &port, (&*metrics, &runs))?;
    let worker = Arc::new(LocalWorker::start(
        WorkerSettings { metrics: Arc::clone(&metrics), runs, ..WorkerSettings::default() },
        (port, inbox),
        Arc::new(journal),
        vec![device],
        (clock, Arc::new(|| fastrand::u128(..))),
    ));
    let gateway = Gateway::new(
        Arc::clone(&worker) as Arc<dyn Worker>,
        GatewaySettings { build: "noop".to_owned(), metrics, ..GatewaySettings::default() },
    );
    let telling = tokio::spawn(counters.tell(listen(&arguments.figures)?));
    println!("holdfast-bench serves {MODEL} on no device on {address}");

    gateway
        .serve(listener, async move {
            terminate.recv().await;
        })
        .await?;
    worker.drain().await;
    tokio::task::spawn_blocking(move || engine.shutdown()).await?;
    telling.abort();
    let worker = Arc::into_inner(worker).context("somebody keeps the worker")?;
    // The last owner of the journal closes it, which takes its log into the database.
    tokio::task::spawn_blocking(move || drop(worker)).await?;
    Left::leave(&arguments.data_dir, &arguments.figures)
}

/// The product's journal, whose commits are counted.
fn counted(counters: &Arc<Counters>) -> SqliteSettings {
    let counters = Arc::clone(counters);
    SqliteSettings {
        on_commit: Some(Arc::new(move |report| {
            counters.commits.fetch_add(1, Ordering::Relaxed);
            counters.batches.fetch_add(report.batches as u64, Ordering::Relaxed);
        })),
        ..SqliteSettings::default()
    }
}

fn start_device(
    counters: &Arc<Counters>,
    clock: &Clock,
    port: &WorkerPort,
    (metrics, runs): (&Metrics, &RunSpans),
) -> anyhow::Result<(Device, EngineHandle)> {
    let model = Model::load(&ModelSource::resolve(MODEL)?)?;
    let text = model.text();
    let vocab_size = text.vocab_size();
    let backend = NoopDevice::new(SEQUENCES, vocab_size, words(text)?, Arc::clone(&counters.work));
    let description = describe(SEQUENCES, vocab_size);
    let group = description.kv_groups.first().context("a device without KV groups")?;
    let mut engine = Engine::new(Box::new(backend), EngineConfig::default());
    engine.observe(StepObserver::new(&description.name, metrics, runs.clone()));
    let context_limit = engine.context_limit();
    let handle = EngineThread::start("engine-0", engine, Arc::clone(clock), port.engine_sink())?;
    let (weights, tokenizer, template) = text.revision();
    let info = ModelInfo {
        name: MODEL.to_owned(),
        architecture: model.config().architecture.clone(),
        parameters: model.parameters(),
        context_limit,
        vocab_size,
        weights,
        tokenizer,
        template,
        numerics_class: description.numerics_class.clone(),
        tools: text.tool_form().is_some(),
        speech: holdfast_worker_api::ModelSpeech::default(),
        device: description.name.clone(),
        kv_blocks: (group.blocks, 0),
        kv_bytes_per_token: group.bytes_per_block / u64::from(description.block_tokens),
        is_default: true,
    };
    let (commands, blocks) = (handle.clone(), handle.clone());
    let device = Device {
        info,
        text: Arc::clone(text),
        precision: Precision::Native,
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

/// Wall time that never goes back.
#[expect(clippy::disallowed_methods, reason = "this process's one clock")]
fn wall() -> Clock {
    let begin = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let since = std::time::Instant::now();
    Arc::new(move || u64::try_from((begin + since.elapsed()).as_micros()).unwrap_or(u64::MAX))
}
