//! A worker in this process over a real engine and the built-in model's text; the device draws tokens from hashes, the clock
//! counts.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, unreachable_pub, missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_engine::testing::{TokenBackend, small_device};
use holdfast_engine::{Engine, EngineConfig, EngineHandle, EngineThread, StepObserver};
use holdfast_journal::Journal;
use holdfast_model::{Model, ModelSource, ModelText};
use holdfast_types::{Failure, Reason};
use holdfast_worker::{Device, LocalWorker, WorkerPort, WorkerSettings};
use holdfast_worker_api::ModelInfo;

/// Microseconds, for every worker of the process: a worker over the journal of another begins after its end.
static TIME: AtomicU64 = AtomicU64::new(1_795_132_800_000_000);

/// How long engines wait before each step, in real microseconds: for tests that come in between.
pub static STEP_DELAY_US: AtomicU64 = AtomicU64::new(0);

fn text() -> Arc<ModelText> {
    Model::load(&ModelSource::BuiltIn("pebble".into())).unwrap().text().clone()
}

/// A worker over one device of random tokens, and that device's engine.
pub fn worker(journal: Arc<dyn Journal>, settings: WorkerSettings) -> (LocalWorker, EngineHandle) {
    let text = text();
    let mut description = small_device(16, &[256], 8);
    description.vocab_size = text.vocab_size();
    let clock: Arc<dyn Fn() -> u64 + Send + Sync> = Arc::new(|| TIME.fetch_add(10, Ordering::Relaxed));
    let port = WorkerPort::new();
    let mut engine = Engine::new(Box::new(TokenBackend::new(description.clone())), EngineConfig::default());
    engine.observe(StepObserver::new(&description.name, &settings.metrics, settings.runs.clone()));
    let paced = clock.clone();
    let paced = Arc::new(move || {
        std::thread::sleep(Duration::from_micros(STEP_DELAY_US.load(Ordering::Relaxed)));
        paced()
    });
    let handle = EngineThread::start("engine", engine, paced, port.0.engine_sink()).unwrap();
    let engine = handle.clone();
    let (weights, tokenizer, template) = text.revision();
    let info = ModelInfo {
        name: "pebble".into(),
        architecture: "LlamaForCausalLM".into(),
        parameters: 1,
        context_limit: text.context_limit(),
        vocab_size: text.vocab_size(),
        weights,
        tokenizer,
        template,
        numerics_class: description.numerics_class.clone(),
        tools: true,
        speech: holdfast_worker_api::ModelSpeech::default(),
        device: description.name.clone(),
        kv_blocks: (256, 0),
        kv_bytes_per_token: 1,
        is_default: true,
    };
    let device = Device {
        info,
        text,
        precision: holdfast_types::Precision::Native,
        engine: Box::new(move |command| {
            engine.send(command).map_err(|error| Failure::new(Reason::QueueFull, error.to_string()))
        }),
        kv_blocks: Box::new(|| (256, 0)),
    };
    let random = AtomicU64::new(7);
    let entropy = Arc::new(move || u128::from(random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)));
    (LocalWorker::start(settings, port, journal, vec![device], (clock, entropy)), handle)
}
