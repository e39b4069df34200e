//! Gauges that nobody pushes: read from the worker and the engines once a second.

use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::EngineHandle;
use holdfast_telemetry::{BlockCounts, Metrics};
use holdfast_worker::LocalWorker;

const INTERVAL: Duration = Duration::from_secs(1);

/// Records until it is aborted. `names`, of devices, and `engines` are in the same order.
pub(crate) async fn run(
    metrics: Arc<Metrics>,
    worker: Arc<LocalWorker>,
    names: Vec<String>,
    engines: Vec<EngineHandle>,
) {
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        ticks.tick().await;
        record(&metrics, &worker, &names, &engines);
    }
}

fn record(metrics: &Metrics, worker: &LocalWorker, names: &[String], engines: &[EngineHandle]) {
    let stats = worker.stats();
    for (state, count) in [
        ("idle", stats.sessions_idle),
        ("running", stats.sessions_running),
        ("requires_action", stats.sessions_requires_action),
        ("deleting", stats.sessions_deleting),
    ] {
        metrics.set_sessions(state, count.into());
    }
    metrics.set_turns_open("in_progress", stats.turns_in_progress.into());
    metrics.set_turns_open("requires_action", stats.sessions_requires_action.into());
    for (name, engine) in names.iter().zip(engines) {
        let snapshot = engine.snapshot();
        metrics.set_queue_depth(name, u64::from(snapshot.waiting));
        let blocks = snapshot.blocks;
        metrics.set_blocks(
            name,
            BlockCounts { used: blocks.used.into(), cached: blocks.cached.into(), free: blocks.free.into() },
        );
    }
}
