//! The instruments that an operator of sessions needs, as one struct with a method for each fact.
//!
//! In: facts from gateway, worker, engine shells and the journal's commit hook. Out: OpenTelemetry instruments, which cost a
//! virtual call that does nothing while telemetry is off. Deliberately not here: exporters, and any clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::noop::NoopMeterProvider;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter, MeterProvider as _};

use crate::names;

/// Name of the instrumentation scope.
pub(crate) const SCOPE: &str = "holdfast";

/// 1-2-5 steps from half a millisecond to two minutes: a first token on a warm session up to a cold long context.
const LATENCY_BUCKETS_S: &[f64] =
    &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0];

/// Steps, tokens and commits: from 50 microseconds to five seconds.
const STEP_BUCKETS_S: &[f64] =
    &[0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0];

/// Powers of two: batch sizes and rows.
const SIZE_BUCKETS: &[f64] =
    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0];

/// Parts of a whole, in tenths.
const RATIO_BUCKETS: &[f64] = &[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// Blocks of KV of one device at one moment; the three are disjoint and add up to the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockCounts {
    /// Held by sequences.
    pub used: u64,
    /// Held by nobody, with contents that may be found again.
    pub cached: u64,
    /// Without contents.
    pub free: u64,
}

/// What became of a generation's tokens. The first three are disjoint parts of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TokenCounts {
    /// Input whose KV was found.
    pub cached: u64,
    /// Input computed for the first time.
    pub computed: u64,
    /// Input computed again because its KV was lost.
    pub recomputed: u64,
    /// Rows repeated because the sequence was preempted.
    pub preempted: u64,
    /// Sampled.
    pub output: u64,
}

/// Instruments of one device, whose name is written once: recording a step allocates nothing.
#[derive(Debug, Clone)]
pub struct DeviceMetrics {
    device: [KeyValue; 1],
    step_duration: Histogram<f64>,
    step_sequences: Histogram<u64>,
    step_rows: Histogram<u64>,
    step_modelled_duration: Histogram<f64>,
    step_modelled_padding: Histogram<f64>,
    modelled_programs_late: Counter<u64>,
    preemptions: Counter<u64>,
}

impl DeviceMetrics {
    /// A step was collected.
    pub fn step(&self, sequences: u64, rows: u64, duration: Duration) {
        self.step_duration.record(duration.as_secs_f64(), &self.device);
        self.step_sequences.record(sequences, &self.device);
        self.step_rows.record(rows, &self.device);
    }

    /// What a collected step would have taken on the chip that the device stands for; `padding` is from 0 to 1.
    pub fn step_modelled(&self, duration: Duration, padding: f64, programs_late: u64) {
        self.step_modelled_duration.record(duration.as_secs_f64(), &self.device);
        self.step_modelled_padding.record(padding, &self.device);
        self.modelled_programs_late.add(programs_late, &self.device);
    }

    /// Sequences lost their blocks to an older one.
    pub fn preempted(&self, sequences: u64) {
        self.preemptions.add(sequences, &self.device);
    }
}

/// Every instrument. Made once, shared by reference; recording never blocks and never fails.
#[derive(Debug)]
pub struct Metrics {
    request_duration: Histogram<f64>,
    time_to_first_token: Histogram<f64>,
    time_per_output_token: Histogram<f64>,
    sessions: Gauge<u64>,
    turns_open: Gauge<u64>,
    turns_ended: Counter<u64>,
    queue_depth: Gauge<u64>,
    kv_blocks: Gauge<u64>,
    reuse_ratio: Gauge<f64>,
    tokens: Counter<u64>,
    preemptions: Counter<u64>,
    step_duration: Histogram<f64>,
    step_sequences: Histogram<u64>,
    step_rows: Histogram<u64>,
    step_modelled_duration: Histogram<f64>,
    step_modelled_padding: Histogram<f64>,
    modelled_programs_late: Counter<u64>,
    commit_duration: Histogram<f64>,
    commit_batches: Histogram<u64>,
    grpc_requests: Counter<u64>,
    streams_open: Gauge<u64>,
    cached_total: AtomicU64,
    input_total: AtomicU64,
}

impl Default for Metrics {
    /// Instruments that record nothing.
    fn default() -> Self {
        Self::new(&NoopMeterProvider::new().meter(SCOPE))
    }
}

impl Metrics {
    /// Instruments of `meter`.
    pub fn new(meter: &Meter) -> Self {
        Self {
            request_duration: seconds(meter, names::GEN_AI_SERVER_REQUEST_DURATION, LATENCY_BUCKETS_S),
            time_to_first_token: seconds(meter, names::GEN_AI_SERVER_TIME_TO_FIRST_TOKEN, LATENCY_BUCKETS_S),
            time_per_output_token: seconds(meter, names::GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN, STEP_BUCKETS_S),
            sessions: gauge(meter, names::SESSIONS),
            turns_open: gauge(meter, names::TURNS_OPEN),
            turns_ended: counter(meter, names::TURNS_ENDED),
            queue_depth: gauge(meter, names::QUEUE_DEPTH),
            kv_blocks: gauge(meter, names::KV_BLOCKS),
            reuse_ratio: {
                let (unit, meaning) = described(names::REUSE_RATIO);
                meter.f64_gauge(names::REUSE_RATIO).with_unit(unit).with_description(meaning).build()
            },
            tokens: counter(meter, names::TOKENS),
            preemptions: counter(meter, names::PREEMPTIONS),
            step_duration: seconds(meter, names::STEP_DURATION, STEP_BUCKETS_S),
            step_sequences: sizes(meter, names::STEP_SEQUENCES),
            step_rows: sizes(meter, names::STEP_ROWS),
            step_modelled_duration: seconds(meter, names::STEP_MODELLED_DURATION, STEP_BUCKETS_S),
            step_modelled_padding: ratios(meter, names::STEP_MODELLED_PADDING),
            modelled_programs_late: counter(meter, names::MODELLED_PROGRAMS_LATE),
            commit_duration: seconds(meter, names::JOURNAL_COMMIT_DURATION, STEP_BUCKETS_S),
            commit_batches: sizes(meter, names::JOURNAL_COMMIT_BATCHES),
            grpc_requests: counter(meter, names::GRPC_REQUESTS),
            streams_open: gauge(meter, names::STREAMS_OPEN),
            cached_total: AtomicU64::new(0),
            input_total: AtomicU64::new(0),
        }
    }

    /// Sessions in one state, now. States that became empty are set to 0 by the caller.
    pub fn set_sessions(&self, state: &'static str, count: u64) {
        self.sessions.record(count, &[KeyValue::new(names::SESSION_STATE, state)]);
    }

    /// Turns in one state that is not terminal, now.
    pub fn set_turns_open(&self, state: &'static str, count: u64) {
        self.turns_open.record(count, &[KeyValue::new(names::TURN_STATE, state)]);
    }

    /// A turn ended. `stop_reason` is the failure's reason where it failed; `duration` is from its acceptance, if that is known.
    pub fn turn_ended(&self, model: &str, state: &'static str, stop_reason: &'static str, duration: Option<Duration>) {
        self.turns_ended
            .add(1, &[KeyValue::new(names::TURN_STATE, state), KeyValue::new(names::STOP_REASON, stop_reason)]);
        if let Some(duration) = duration {
            self.request_duration.record(duration.as_secs_f64(), &[model_name(model)]);
        }
    }

    /// A generation ended. `first_token` is from acceptance, `None` if nothing was sampled; `duration` is its whole.
    pub fn generation_ended(
        &self,
        model: &str,
        tokens: TokenCounts,
        first_token: Option<Duration>,
        duration: Duration,
    ) {
        if let Some(first) = first_token {
            self.time_to_first_token.record(first.as_secs_f64(), &[model_name(model)]);
            if tokens.output > 1 {
                let rest = duration.saturating_sub(first).as_secs_f64() / (tokens.output - 1) as f64;
                self.time_per_output_token.record(rest, &[model_name(model)]);
            }
        }
        for (kind, count) in [
            ("cached", tokens.cached),
            ("computed", tokens.computed),
            ("recomputed", tokens.recomputed),
            ("preempted", tokens.preempted),
            ("output", tokens.output),
        ] {
            self.tokens.add(count, &[KeyValue::new(names::TOKEN_KIND, kind)]);
        }
        let input = tokens.cached + tokens.computed + tokens.recomputed;
        let cached_total = self.cached_total.fetch_add(tokens.cached, Ordering::Relaxed) + tokens.cached;
        let input_total = self.input_total.fetch_add(input, Ordering::Relaxed) + input;
        if input_total > 0 {
            self.reuse_ratio.record(cached_total as f64 / input_total as f64, &[]);
        }
    }

    /// Sequences that wait for a place on a device, now.
    pub fn set_queue_depth(&self, device: &str, count: u64) {
        self.queue_depth.record(count, &[device_name(device)]);
    }

    /// Blocks of a device, now.
    pub fn set_blocks(&self, device: &str, blocks: BlockCounts) {
        for (state, count) in [("used", blocks.used), ("cached", blocks.cached), ("free", blocks.free)] {
            self.kv_blocks.record(count, &[device_name(device), KeyValue::new(names::KV_BLOCK_STATE, state)]);
        }
    }

    /// The instruments that an engine records its steps with.
    pub fn device(&self, name: &str) -> DeviceMetrics {
        DeviceMetrics {
            device: [device_name(name)],
            step_duration: self.step_duration.clone(),
            step_sequences: self.step_sequences.clone(),
            step_rows: self.step_rows.clone(),
            step_modelled_duration: self.step_modelled_duration.clone(),
            step_modelled_padding: self.step_modelled_padding.clone(),
            modelled_programs_late: self.modelled_programs_late.clone(),
            preemptions: self.preemptions.clone(),
        }
    }

    /// The journal committed a group of batches.
    pub fn journal_commit(&self, batches: u64, duration: Duration) {
        self.commit_duration.record(duration.as_secs_f64(), &[]);
        self.commit_batches.record(batches, &[]);
    }

    /// A gRPC request was answered. `method` is one of ours, never the client's text; `reason` is from the closed list, or `OK`.
    pub fn grpc_request(&self, method: &'static str, reason: &'static str) {
        self.grpc_requests.add(1, &[KeyValue::new(names::RPC_METHOD, method), KeyValue::new(names::REASON, reason)]);
    }

    /// Streams that are open, now.
    pub fn set_streams_open(&self, count: u64) {
        self.streams_open.record(count, &[]);
    }
}

fn model_name(model: &str) -> KeyValue {
    KeyValue::new(names::GEN_AI_REQUEST_MODEL, model.to_owned())
}

fn device_name(device: &str) -> KeyValue {
    KeyValue::new(names::DEVICE, device.to_owned())
}

/// Unit and meaning of a metric; a name outside of the list has neither.
fn described(name: &'static str) -> (&'static str, &'static str) {
    names::Name::find(name).map_or(("", ""), |entry| (entry.unit, entry.meaning))
}

fn seconds(meter: &Meter, name: &'static str, buckets: &[f64]) -> Histogram<f64> {
    let (unit, meaning) = described(name);
    meter.f64_histogram(name).with_unit(unit).with_description(meaning).with_boundaries(buckets.to_vec()).build()
}

fn ratios(meter: &Meter, name: &'static str) -> Histogram<f64> {
    let (unit, meaning) = described(name);
    let histogram = meter.f64_histogram(name).with_unit(unit).with_description(meaning);
    histogram.with_boundaries(RATIO_BUCKETS.to_vec()).build()
}

fn sizes(meter: &Meter, name: &'static str) -> Histogram<u64> {
    let (unit, meaning) = described(name);
    meter.u64_histogram(name).with_unit(unit).with_description(meaning).with_boundaries(SIZE_BUCKETS.to_vec()).build()
}

fn counter(meter: &Meter, name: &'static str) -> Counter<u64> {
    let (unit, meaning) = described(name);
    meter.u64_counter(name).with_unit(unit).with_description(meaning).build()
}

fn gauge(meter: &Meter, name: &'static str) -> Gauge<u64> {
    let (unit, meaning) = described(name);
    meter.u64_gauge(name).with_unit(unit).with_description(meaning).build()
}
