//! Settings: one TOML file, environment variables (`HOLDFAST_…`) and flags, in that order of growing strength.
//!
//! In: figment providers. Out: [`Settings`], and for every key where its value came from. Unknown keys are errors. Deliberately
//! not here: what a setting does (see the crate that takes it).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::providers::{Env, Format, Serialized, Toml};
use figment::{Figment, Provider};
use holdfast_backend_neuron::PackingSettings;
use holdfast_backend_neuron::program::Buckets;
use holdfast_backend_remote::DeviceAddress;
use holdfast_types::Limits;
use serde::{Deserialize, Serialize};

/// Environment variables begin with this; `__` separates levels: `HOLDFAST_DEVICE__THREADS=2`.
pub(crate) const ENV_PREFIX: &str = "HOLDFAST_";

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// Where the gRPC service listens.
    pub(crate) listen: SocketAddr,
    /// Allow listening beyond loopback without TLS or credentials.
    pub(crate) insecure: bool,
    /// Where sessions are kept.
    pub(crate) data_dir: PathBuf,
    /// Served models: a built-in name, a registered name, a directory, a GGUF file, or NAME= any of these. The first is the default model.
    pub(crate) models: Vec<String>,
    /// Where models are registered by name; `models` in `data_dir` unless set.
    pub(crate) models_dir: Option<PathBuf>,
    /// The device that each model runs on.
    pub(crate) device: DeviceSettings,
    /// The chip that each device stands for.
    pub(crate) chip: ChipSettings,
    /// What chips cost.
    pub(crate) prices: PriceSettings,
    /// How steps are filled.
    pub(crate) scheduler: SchedulerSettings,
    /// How sessions are kept in memory.
    pub(crate) worker: WorkerSettings,
    /// How the runtime ends.
    pub(crate) shutdown: ShutdownSettings,
    /// Logs, traces and metrics.
    pub(crate) telemetry: TelemetrySettings,
    /// Every bound on what a client can grow.
    pub(crate) limits: Limits,
}

/// `[device]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DeviceSettings {
    /// `neuron`, the CPU device of this process, `cuda`, a GPU, or `remote`, a device that another process lends.
    pub(crate) kind: DeviceKind,
    /// Where a remote device listens: `unix:/path` or `host:port`. The settings of the CPU device are its own then.
    pub(crate) address: Option<String>,
    /// How long the start waits for a remote device that does not answer yet, seconds.
    pub(crate) connect_timeout_s: u64,
    /// How long a remote device may take over one step before it counts as lost, seconds.
    pub(crate) step_timeout_s: u64,
    /// Threads of the CPU device; 0 is one per core.
    pub(crate) threads: usize,
    /// Which of the GPUs that the driver knows of.
    pub(crate) ordinal: u32,
    /// The part of a GPU's free memory that KV gets once weights are there, above 0 and at most 1.
    pub(crate) memory_fraction: f64,
    /// The library of NVRTC, CUDA's compiler at run time, where it is in no usual place.
    pub(crate) nvrtc: Option<PathBuf>,
    /// How weights are held: `f32`, `bf16`, `nested`, or `auto`: on a GPU bf16; on the CPU device f32 below 64 million parameters, else nested.
    pub(crate) weights: Weights,
    /// Where packed weights are kept from one start to the next; `packings` in `data_dir` unless set.
    pub(crate) packing_dir: Option<PathBuf>,
    /// Most bytes of all packed weights that are kept; 0 keeps none.
    pub(crate) packing_bytes: u64,
    /// Weights that are packed in less are not kept, milliseconds.
    pub(crate) packing_after_ms: u64,
    /// How keys and values are held: `f32`, `bf16`, `int8`, or `auto`: f32 with f32 weights, else bf16.
    pub(crate) kv_format: KvFormat,
    /// Memory of the KV pool of each model, bytes.
    pub(crate) kv_bytes: u64,
    /// Tokens per KV block.
    pub(crate) block_tokens: u32,
    /// Sequences that may run at once.
    pub(crate) slots: u32,
    /// Most rows of one step.
    pub(crate) max_step_rows: u32,
}

/// Where models are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DeviceKind {
    /// On the CPU device of this process.
    Neuron,
    /// On an NVIDIA GPU.
    Cuda,
    /// On a device that another process lends.
    Remote,
}

/// How a device holds weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Weights {
    /// As the device and the size of the model ask for.
    Auto,
    /// As they are: the CPU device alone.
    F32,
    /// Rounded to bf16.
    Bf16,
    /// 8-bit codes with a scale per group of 32 or 64, in two planes of 4 bits: read at 8 bits, or at 4.
    Nested,
}

/// How the CPU device holds keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KvFormat {
    /// As the weights ask for.
    Auto,
    /// As computed.
    F32,
    /// Rounded to bf16.
    Bf16,
    /// In 8 bits, with a scale for each key and value.
    Int8,
}

/// `[chip]`: what it says changes modelled figures only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ChipSettings {
    /// Which.
    pub(crate) name: ChipName,
    /// Cores of each device; 0 follows the model.
    pub(crate) cores: u32,
    /// HBM of one chip, bytes; 0 is the chip's own.
    pub(crate) hbm_bytes: u64,
    /// Sequences of a program.
    pub(crate) batch_buckets: Vec<u32>,
    /// Rows of a program's sequences.
    pub(crate) query_buckets: Vec<u32>,
    /// Tokens of a program's sequences; empty is 512 and its doubles up to the context.
    pub(crate) context_buckets: Vec<u32>,
}

/// A chip of the table, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ChipName {
    /// Trn2 where the model fits it, else none.
    Auto,
    /// Nothing is modelled.
    None,
    /// Trainium 1.
    Trn1,
    /// Inferentia 2.
    Inf2,
    /// Trainium 2.
    Trn2,
    /// Trainium 3.
    Trn3,
}

/// `[prices]`: USD per hour of one chip; unset is the built-in list price, if there is one.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PriceSettings {
    /// Of a Trn1.
    pub(crate) trn1_usd_per_hour: Option<f64>,
    /// Of an Inf2.
    pub(crate) inf2_usd_per_hour: Option<f64>,
    /// Of a Trn2.
    pub(crate) trn2_usd_per_hour: Option<f64>,
    /// Of a Trn3.
    pub(crate) trn3_usd_per_hour: Option<f64>,
}

/// `[scheduler]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SchedulerSettings {
    /// Most tokens of one sequence's new input in one step.
    pub(crate) prefill_chunk_tokens: u32,
    /// How long one step should take at most, microseconds, as predicted from measured steps.
    pub(crate) step_budget_us: u64,
}

/// `[worker]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct WorkerSettings {
    /// Sessions at rest that stay folded in memory.
    pub(crate) loaded_sessions: u32,
}

/// `[shutdown]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ShutdownSettings {
    /// How long streams of running turns may go on after a signal, seconds; what is unfinished then stops at a step boundary and
    /// goes on at the next start.
    pub(crate) drain_timeout_s: u64,
}

/// `[telemetry]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TelemetrySettings {
    /// Log filter, as `tracing_subscriber::EnvFilter` reads it: `info`, `holdfast=debug,warn`.
    pub(crate) log: String,
    /// `text` or `json`.
    pub(crate) log_format: LogFormat,
    /// Where traces and metrics go over OTLP/gRPC, for example `http://127.0.0.1:4317`; off unless set.
    pub(crate) otlp_endpoint: Option<String>,
    /// Where Prometheus may read `/metrics`; off unless set.
    pub(crate) prometheus_listen: Option<SocketAddr>,
    /// `service.name` of what is exported.
    pub(crate) service_name: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl From<LogFormat> for holdfast_telemetry::LogFormat {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Text => Self::Text,
            LogFormat::Json => Self::Json,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 50051)),
            insecure: false,
            data_dir: default_data_dir(),
            models: vec!["pebble".to_owned()],
            models_dir: None,
            device: DeviceSettings::default(),
            chip: ChipSettings::default(),
            prices: PriceSettings::default(),
            scheduler: SchedulerSettings::default(),
            worker: WorkerSettings::default(),
            shutdown: ShutdownSettings::default(),
            telemetry: TelemetrySettings::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for DeviceSettings {
    fn default() -> Self {
        Self {
            kind: DeviceKind::Neuron,
            address: None,
            connect_timeout_s: 10,
            step_timeout_s: 120,
            threads: 0,
            ordinal: 0,
            memory_fraction: 0.9,
            nvrtc: None,
            weights: Weights::Auto,
            packing_dir: None,
            packing_bytes: 16 << 30,
            packing_after_ms: 1_000,
            kv_format: KvFormat::Auto,
            kv_bytes: 256 << 20,
            block_tokens: 16,
            slots: 256,
            max_step_rows: 1024,
        }
    }
}

impl Default for ChipSettings {
    fn default() -> Self {
        let Buckets { batch, query, context } = Buckets::default();
        Self {
            name: ChipName::Auto,
            cores: 0,
            hbm_bytes: 0,
            batch_buckets: batch,
            query_buckets: query,
            context_buckets: context,
        }
    }
}

impl Default for SchedulerSettings {
    fn default() -> Self {
        Self { prefill_chunk_tokens: 256, step_budget_us: 50_000 }
    }
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self { loaded_sessions: 4_096 }
    }
}

impl Default for ShutdownSettings {
    fn default() -> Self {
        Self { drain_timeout_s: 10 }
    }
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self {
            log: "warn,holdfast=info".to_owned(),
            log_format: LogFormat::Text,
            otlp_endpoint: None,
            prometheus_listen: None,
            service_name: "holdfast".to_owned(),
        }
    }
}

/// `$XDG_DATA_HOME/holdfast`, else `~/.local/share/holdfast`, else `./holdfast-data`.
fn default_data_dir() -> PathBuf {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map_or_else(|| PathBuf::from("holdfast-data"), |base| base.join("holdfast"))
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    /// The file is not there.
    #[error("INVALID_SETTING: the settings file {0} cannot be read: {1}")]
    File(PathBuf, std::io::Error),
    /// A key is unknown or a value is wrong.
    #[error("INVALID_SETTING: {0}; `holdfast config` lists every key")]
    Value(Box<figment::Error>),
    /// A value that parses and cannot be meant.
    #[error("INVALID_SETTING: {key}: {problem}")]
    Meaning {
        /// The key.
        key: &'static str,
        /// What is wrong, and what to do.
        problem: String,
    },
}

/// Settings and the layers they came from.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// What is in force.
    pub(crate) settings: Settings,
    figment: Figment,
}

/// The layer of the process's environment: `HOLDFAST_DEVICE__SLOTS` is `device.slots`.
pub(crate) fn environment() -> impl Provider {
    Env::prefixed(ENV_PREFIX).ignore(&["config", "address"]).split("__")
}

/// Merges the layers: built-in, file, environment, flags.
///
/// # Errors
/// [`SettingsError`] naming the key, the value and the layer.
pub(crate) fn load(
    file: Option<&Path>,
    environment: impl Provider,
    flags: impl Provider,
) -> Result<Loaded, SettingsError> {
    let mut figment = Figment::new().merge(Serialized::defaults(Settings::default()));
    if let Some(path) = file {
        std::fs::metadata(path).map_err(|error| SettingsError::File(path.to_owned(), error))?;
        figment = figment.merge(Toml::file_exact(path));
    }
    let figment = figment.merge(environment).merge(flags);
    let settings: Settings = figment.extract().map_err(|error| SettingsError::Value(Box::new(error)))?;
    settings.check()?;
    Ok(Loaded { settings, figment })
}

impl Loaded {
    /// Where the value of a dotted key came from.
    pub(crate) fn origin(&self, key: &str) -> String {
        let Some(metadata) = self.figment.find_metadata(key) else { return "built-in".to_owned() };
        if metadata.name.contains("environment") {
            let variable = key.to_uppercase().replace('.', "__");
            return format!("{ENV_PREFIX}{variable}");
        }
        match metadata.source.as_ref().and_then(figment::Source::file_path) {
            Some(path) => path.display().to_string(),
            None if metadata.name.contains("flag") => metadata.name.to_string(),
            None => "built-in".to_owned(),
        }
    }
}

impl Settings {
    /// Where models are registered.
    pub(crate) fn models_dir(&self) -> PathBuf {
        self.models_dir.clone().unwrap_or_else(|| self.data_dir.join("models"))
    }

    /// Where packed weights are kept, if they are.
    pub(crate) fn packings(&self) -> Option<PackingSettings> {
        let device = &self.device;
        let directory = || device.packing_dir.clone().unwrap_or_else(|| self.data_dir.join("packings"));
        (device.packing_bytes > 0).then(|| PackingSettings {
            directory: directory(),
            bytes_max: device.packing_bytes,
            after: Duration::from_millis(device.packing_after_ms),
        })
    }

    /// What single values cannot say.
    fn check(&self) -> Result<(), SettingsError> {
        let wrong = |key, problem: String| Err(SettingsError::Meaning { key, problem });
        if self.models.is_empty() {
            return wrong("models", "name at least one model, for example [\"pebble\"]".to_owned());
        }
        if !self.listen.ip().is_loopback() && !self.insecure {
            return wrong(
                "listen",
                format!(
                    "{} is beyond loopback, and this build has neither TLS nor credentials; put a proxy in front and add \
                     --insecure if that is meant",
                    self.listen
                ),
            );
        }
        let block = self.device.block_tokens;
        if block == 0 || !block.is_multiple_of(16) || block > 1024 {
            return wrong("device.block_tokens", format!("{block} is not a multiple of 16 up to 1024"));
        }
        self.device.check_remote(self.models.len())?;
        self.device.check_gpu()?;
        let share = self.device.memory_fraction;
        if !(share > 0.0 && share <= 1.0) {
            return wrong("device.memory_fraction", format!("{share} is not above 0 and at most 1"));
        }
        for (key, value) in [
            ("device.connect_timeout_s", self.device.connect_timeout_s),
            ("device.step_timeout_s", self.device.step_timeout_s),
            ("device.slots", u64::from(self.device.slots)),
            ("device.max_step_rows", u64::from(self.device.max_step_rows)),
            ("device.kv_bytes", self.device.kv_bytes),
            ("scheduler.prefill_chunk_tokens", u64::from(self.scheduler.prefill_chunk_tokens)),
            ("scheduler.step_budget_us", self.scheduler.step_budget_us),
            ("worker.loaded_sessions", u64::from(self.worker.loaded_sessions)),
        ] {
            if value == 0 {
                return wrong(key, "must be at least 1".to_owned());
            }
        }
        for (key, price) in [
            ("prices.trn1_usd_per_hour", self.prices.trn1_usd_per_hour),
            ("prices.inf2_usd_per_hour", self.prices.inf2_usd_per_hour),
            ("prices.trn2_usd_per_hour", self.prices.trn2_usd_per_hour),
            ("prices.trn3_usd_per_hour", self.prices.trn3_usd_per_hour),
        ] {
            if price.is_some_and(|price| !price.is_finite() || price < 0.0) {
                return wrong(key, "must be a number from 0 up".to_owned());
            }
        }
        if let Some(name) = self.limits.entries().into_iter().find_map(|(name, value)| (value == 0).then_some(name)) {
            return wrong("limits", format!("{name} must be at least 1"));
        }
        Ok(())
    }
}

impl DeviceSettings {
    /// Where the remote device listens; `None` for a local one.
    pub(crate) fn remote_address(&self) -> Option<DeviceAddress> {
        if self.kind == DeviceKind::Remote { self.address.as_ref()?.parse().ok() } else { None }
    }

    /// What a GPU has not.
    fn check_gpu(&self) -> Result<(), SettingsError> {
        let wrong = |key, problem: &str| Err(SettingsError::Meaning { key, problem: problem.to_owned() });
        if self.kind != DeviceKind::Cuda {
            return Ok(());
        }
        if self.weights == Weights::F32 {
            return wrong("device.weights", "a GPU holds bf16 or nested, not f32");
        }
        if !matches!(self.kv_format, KvFormat::Auto | KvFormat::Bf16) {
            return wrong("device.kv_format", "a GPU holds keys and values in bf16 alone");
        }
        Ok(())
    }

    fn check_remote(&self, models: usize) -> Result<(), SettingsError> {
        let wrong = |problem: String| Err(SettingsError::Meaning { key: "device.address", problem });
        match (self.kind, &self.address) {
            (DeviceKind::Neuron | DeviceKind::Cuda, None) => Ok(()),
            (DeviceKind::Neuron | DeviceKind::Cuda, Some(_)) => {
                wrong("is of no use unless device.kind is \"remote\"".to_owned())
            }
            (DeviceKind::Remote, None) => {
                wrong("say where the remote device listens: unix:/path or host:port".to_owned())
            }
            (DeviceKind::Remote, Some(_)) if models > 1 => {
                wrong(format!("a remote device holds one model, and {models} are to be served"))
            }
            (DeviceKind::Remote, Some(address)) => {
                address.parse::<DeviceAddress>().map(drop).or_else(|error| wrong(error.to_string()))
            }
        }
    }
}

#[cfg(test)]
mod tests;
