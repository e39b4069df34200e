//! Devices: the one that a model runs on, made here or found elsewhere; and `holdfast device serve`, which lends one.
//!
//! In: settings and loaded models. Out: backends; a served device until a signal comes. Deliberately not here: what devices compute,
//! and what becomes of sessions while one is away (the engine).

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use holdfast_backend::Backend;
use holdfast_backend_neuron::{KvSize, NeuronDevice, NeuronSettings, WeightFormat};
use holdfast_backend_remote::{DeviceAddress, Listener, RemoteBackend, RemoteSettings, serve};
use holdfast_model::Model;
use holdfast_telemetry::Telemetry;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{DeviceArgs, DeviceCommand, DeviceServeArgs, SettingsArgs};
use crate::registry::Registry;
use crate::settings::{DeviceKind, KvFormat, Settings, Weights};
use crate::{build, devices, find, gpus, load_settings, runtime};

/// The device for the `place`th model, as the settings say.
///
/// # Errors
/// A device that cannot be made, that does not answer, or that holds another model.
pub(crate) fn find(settings: &Settings, place: usize, name: &str, model: &Model) -> anyhow::Result<Box<dyn Backend>> {
    let Some(address) = settings.device.remote_address() else { return local(settings, place, model) };
    let remote = RemoteSettings {
        address: address.clone(),
        connect_timeout: Duration::from_secs(settings.device.connect_timeout_s),
        step_timeout: Duration::from_secs(settings.device.step_timeout_s),
    };
    let backend = RemoteBackend::connect(remote)?;
    let device = backend.describe();
    let (weights, vocabulary) = (model.weights().digest(), model.config().vocab_size);
    if device.weights != weights || device.vocab_size != vocabulary {
        bail!(
            "INVALID_SETTING: device.address: the device at {address} holds weights {} with {} tokens, the model {name} has \
             weights {weights} with {vocabulary}; serve the model that the device holds, or lend one that holds this model",
            device.weights,
            device.vocab_size,
        );
    }
    Ok(Box::new(backend))
}

/// `holdfast device`.
///
/// # Errors
/// As its subcommands.
pub(crate) async fn run(args: DeviceArgs) -> anyhow::Result<()> {
    match args.command {
        DeviceCommand::Serve(args) => lend(args).await,
    }
}

/// Serves a local device until SIGTERM or Ctrl-C.
async fn lend(args: DeviceServeArgs) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let models = vec![args.model.clone()];
    let settings = load_settings(&SettingsArgs { models, ..args.settings.settings() })?.settings;
    if settings.device.remote_address().is_some() {
        bail!("INVALID_SETTING: device.kind: only a device of this machine can be lent, not a remote one");
    }
    let telemetry = Telemetry::start(&runtime::telemetry_settings(&settings), &build::build())?;
    let found = find::find(&Registry::new(settings.models_dir()), &args.model)?;
    let listener = listen(&args.listen, args.insecure).await?;
    let address = listener.address()?;
    let model = found.load().with_context(|| format!("model {}", found.name))?;
    let device = local(&settings, 0, &model)?;
    let name = device.describe().name.clone();
    drop(model);
    say(&format!("holdfast {} lends {name} with {} on {address}", build::VERSION, found.name));
    let signalled = async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        say("stopping: the runtime that has the device waits for it to come back");
    };
    let served = serve(device, listener, signalled).await;
    telemetry.shutdown().await;
    Ok(served?)
}

/// Binds an address; beyond loopback only if that is meant.
async fn listen(address: &DeviceAddress, insecure: bool) -> anyhow::Result<Listener> {
    let bound = Listener::bind(address).await;
    let listener =
        bound.with_context(|| format!("INVALID_SETTING: --listen: {address} cannot be listened on; choose another"))?;
    let is_beyond = match listener.address()? {
        DeviceAddress::Unix(_) => false,
        DeviceAddress::Tcp(bound) => !bound.parse::<SocketAddr>()?.ip().is_loopback(),
    };
    if is_beyond && !insecure {
        bail!(
            "INVALID_SETTING: --listen: {address} is beyond loopback, and a device has neither TLS nor credentials; add --insecure \
             if that is meant"
        );
    }
    Ok(listener)
}

/// A device of this machine that holds a model.
fn local(settings: &Settings, place: usize, model: &Model) -> anyhow::Result<Box<dyn Backend>> {
    if settings.device.kind == DeviceKind::Cuda {
        return gpus::device(settings, model);
    }
    Ok(Box::new(NeuronDevice::new(model.config(), model.weights(), &neuron_settings(settings, place, model)?)?))
}

/// Settings of the CPU device for `model`, the `place`th.
pub(crate) fn neuron_settings(settings: &Settings, place: usize, model: &Model) -> anyhow::Result<NeuronSettings> {
    let device = &settings.device;
    let defaults = NeuronSettings::default();
    Ok(NeuronSettings {
        ordinal: u32::try_from(place)?,
        threads: if device.threads == 0 { defaults.threads } else { device.threads },
        kv: KvSize::Bytes(device.kv_bytes),
        block_tokens: device.block_tokens,
        slots: device.slots,
        max_step_rows: device.max_step_rows,
        weights: match device.weights {
            Weights::Auto => WeightFormat::for_parameters(model.parameters()),
            Weights::F32 => WeightFormat::F32,
            Weights::Bf16 => WeightFormat::Bf16,
            Weights::Nested => WeightFormat::Nested,
        },
        kv_format: match device.kv_format {
            KvFormat::Auto => None,
            KvFormat::F32 => Some(holdfast_backend_neuron::KvFormat::F32),
            KvFormat::Bf16 => Some(holdfast_backend_neuron::KvFormat::Bf16),
            KvFormat::Int8 => Some(holdfast_backend_neuron::KvFormat::Int8),
        },
        packings: settings.packings(),
        chip: devices::chip(settings),
        ..defaults
    })
}

/// Tells whoever started the device. Nobody has to listen.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}
