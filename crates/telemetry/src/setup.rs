//! Turning telemetry on and off: the log, spans and metrics over OTLP, the Prometheus page.
//!
//! In: settings. Out: a global `tracing` subscriber, [`Metrics`], and tasks that export. Everything but the log on standard error
//! is off unless set. Deliberately not here: what is measured, and reading of settings.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use opentelemetry::KeyValue;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use prometheus::{Registry, TextEncoder};
use tokio::sync::oneshot;
use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, fmt};

use crate::metrics::{Metrics, SCOPE};

/// Longest wait for one export.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);

/// Longest wait for the last exports when the process ends.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// What is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TelemetrySettings {
    /// Which log lines, in the form of `RUST_LOG`, for example `info,holdfast_engine=debug`.
    pub log: String,
    /// How they look.
    pub log_format: LogFormat,
    /// Where spans and metrics go over gRPC, for example `http://localhost:4317`.
    pub otlp_endpoint: Option<String>,
    /// Where the Prometheus page listens; it is at `/metrics`.
    pub prometheus_listen: Option<SocketAddr>,
    /// What this process calls itself to collectors.
    pub service_name: String,
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self {
            log: "info".to_owned(),
            log_format: LogFormat::Text,
            otlp_endpoint: None,
            prometheus_listen: None,
            service_name: "holdfast".to_owned(),
        }
    }
}

/// Why telemetry could not be started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter cannot be read.
    #[error("telemetry.log: the filter {filter:?} cannot be read: {problem}")]
    Filter {
        /// As it was given.
        filter: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The exporter refuses its endpoint.
    #[error("telemetry.otlp_endpoint: {endpoint:?} cannot be used: {problem}")]
    Otlp {
        /// As it was given.
        endpoint: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The Prometheus page cannot be served.
    #[error(
        "telemetry.prometheus_listen: the Prometheus page cannot be served on {address}: {problem}; choose another"
    )]
    Prometheus {
        /// As it was given.
        address: SocketAddr,
        /// What is wrong with it.
        problem: String,
    },
    /// Another subscriber is in place.
    #[error("telemetry runs already in this process")]
    AlreadyStarted,
    /// Exporting needs an async runtime.
    #[error("telemetry that exports must be started inside a tokio runtime")]
    NoRuntime,
}

/// Telemetry of this process, as long as it lives. At most one; end it with [`Telemetry::shutdown`], or the last spans are lost.
#[derive(Debug)]
pub struct Telemetry {
    metrics: Arc<Metrics>,
    traces: Option<SdkTracerProvider>,
    meters: Option<SdkMeterProvider>,
    page: Option<Page>,
}

/// The Prometheus page while it is served.
#[derive(Debug)]
struct Page {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
}

impl Telemetry {
    /// Starts what the settings ask for. `build` is the version that collectors see. Call it inside a tokio runtime if anything
    /// but the log is on.
    ///
    /// # Errors
    /// When a setting cannot be used, or telemetry runs already. Nothing is left running then.
    pub fn start(settings: &TelemetrySettings, build: &str) -> Result<Self, TelemetryError> {
        let exports = settings.otlp_endpoint.is_some() || settings.prometheus_listen.is_some();
        if exports && tokio::runtime::Handle::try_current().is_err() {
            return Err(TelemetryError::NoRuntime);
        }
        let filter = EnvFilter::try_new(&settings.log)
            .map_err(|e| TelemetryError::Filter { filter: settings.log.clone(), problem: e.to_string() })?;
        let resource = Resource::builder()
            .with_service_name(settings.service_name.clone())
            .with_attribute(KeyValue::new("service.version", build.to_owned()))
            .build();
        let traces = settings.otlp_endpoint.as_deref().map(|to| traces(to, &resource)).transpose()?;
        let registry = settings.prometheus_listen.map(|_| Registry::new());
        let meters = meters(settings, resource, registry.as_ref())?;
        // Bound before the subscriber is set, which cannot be taken back.
        let listener = settings.prometheus_listen.map(listen).transpose()?;

        let log = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
        let log = match settings.log_format {
            LogFormat::Text => log.with_filter(filter).boxed(),
            LogFormat::Json => log.json().with_filter(filter).boxed(),
        };
        // Ours only: the spans of the exporter's own connection would be exported in turn, without end.
        let exported = traces.as_ref().map(|provider| {
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer(SCOPE))
                .with_filter(Targets::new().with_target("holdfast", LevelFilter::DEBUG))
        });
        tracing_subscriber::registry()
            .with(log)
            .with(exported)
            .try_init()
            .map_err(|_| TelemetryError::AlreadyStarted)?;

        let metrics = meters.as_ref().map_or_else(Metrics::default, |provider| Metrics::new(&provider.meter(SCOPE)));
        let page = listener.zip(registry).map(|((listener, address), registry)| serve(listener, address, registry));
        Ok(Self { metrics: Arc::new(metrics), traces, meters, page })
    }

    /// The instruments; they record nothing while metrics are off.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// Where the Prometheus page listens, if it does; the port that was found where 0 was asked for.
    pub fn prometheus_address(&self) -> Option<SocketAddr> {
        self.page.as_ref().map(|page| page.address)
    }

    /// Exports what is left and stops. Takes five seconds at most; what a collector did not take by then is lost.
    pub async fn shutdown(self) {
        let Self { traces, meters, page, metrics: _ } = self;
        if let Some(page) = page {
            // The server may be gone with its runtime already.
            let _ = page.stop.send(());
        }
        if traces.is_none() && meters.is_none() {
            return;
        }
        let (done, finished) = oneshot::channel();
        // The providers block, some without a bound: on a thread that is left behind when it takes too long.
        let thread = std::thread::Builder::new().name("telemetry-end".to_owned()).spawn(move || {
            let traces = traces.map(|provider| provider.shutdown_with_timeout(SHUTDOWN_TIMEOUT));
            let meters = meters.map(|provider| provider.shutdown());
            // Nobody listens any more after the time is over.
            drop(done.send([traces, meters]));
        });
        let results = match thread {
            Ok(_) => tokio::time::timeout(SHUTDOWN_TIMEOUT, finished).await,
            Err(error) => return tracing::warn!(%error, "the last telemetry was not exported"),
        };
        match results {
            Ok(Ok(results)) => results
                .into_iter()
                .flatten()
                .filter_map(Result::err)
                .for_each(|error| tracing::warn!(%error, "the last telemetry was not exported")),
            _ => tracing::warn!("the last telemetry was not exported in time"),
        }
    }
}

fn traces(endpoint: &str, resource: &Resource) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|e| TelemetryError::Otlp { endpoint: endpoint.to_owned(), problem: e.to_string() })?;
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.clone()).build())
}

fn meters(
    settings: &TelemetrySettings,
    resource: Resource,
    registry: Option<&Registry>,
) -> Result<Option<SdkMeterProvider>, TelemetryError> {
    if settings.otlp_endpoint.is_none() && registry.is_none() {
        return Ok(None);
    }
    let mut builder = SdkMeterProvider::builder().with_resource(resource);
    if let Some(endpoint) = &settings.otlp_endpoint {
        let exporter = MetricExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(|e| TelemetryError::Otlp { endpoint: endpoint.clone(), problem: e.to_string() })?;
        builder = builder.with_periodic_exporter(exporter);
    }
    if let (Some(registry), Some(address)) = (registry, settings.prometheus_listen) {
        let reader = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .build()
            .map_err(|e| TelemetryError::Prometheus { address, problem: e.to_string() })?;
        builder = builder.with_reader(reader);
    }
    Ok(Some(builder.build()))
}

fn listen(address: SocketAddr) -> Result<(tokio::net::TcpListener, SocketAddr), TelemetryError> {
    let bind = || -> std::io::Result<_> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let bound = listener.local_addr()?;
        Ok((tokio::net::TcpListener::from_std(listener)?, bound))
    };
    bind().map_err(|e| TelemetryError::Prometheus { address, problem: e.to_string() })
}

fn serve(listener: tokio::net::TcpListener, address: SocketAddr, registry: Registry) -> Page {
    let (stop, stopped) = oneshot::channel();
    let router = Router::new().route("/metrics", get(page)).with_state(registry);
    tokio::spawn(async move {
        // A sender that is dropped means the end as well.
        let serving = axum::serve(listener, router).with_graceful_shutdown(async move { drop(stopped.await) });
        if let Err(error) = serving.await {
            tracing::error!(%error, "the Prometheus page is no longer served");
        }
    });
    Page { address, stop }
}

async fn page(State(registry): State<Registry>) -> Response {
    match TextEncoder::new().encode_to_string(&registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
