//! The gateway as a whole: its settings, its routes, and serving until shutdown.
//!
//! In: a worker, settings, a bound listener, a future that says when to stop. Out: answered calls. Deliberately not here:
//! binding addresses, TLS, signals, which are the binary's.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use holdfast_contracts::FILE_DESCRIPTOR_SET;
use holdfast_contracts::v1::completion_service_server::{CompletionServiceServer, SERVICE_NAME as COMPLETION};
use holdfast_contracts::v1::model_service_server::{ModelServiceServer, SERVICE_NAME as MODEL};
use holdfast_contracts::v1::runtime_service_server::{RuntimeServiceServer, SERVICE_NAME as RUNTIME};
use holdfast_contracts::v1::session_service_server::{SERVICE_NAME as SESSION, SessionServiceServer};
use holdfast_contracts::v1::token_service_server::{SERVICE_NAME as TOKEN, TokenServiceServer};
use holdfast_telemetry::Metrics;
use holdfast_types::Limits;
use holdfast_worker_api::Worker;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::HealthReporter;

use crate::edge::{Edge, Phase};
use crate::health::LastingHealth;
use crate::refusals;
use crate::services::{Completions, Models, Runtimes, Sessions, Tokens};
use crate::stream::OpenStreams;

/// The names that health answers for; the empty one is the whole runtime.
const HEALTH_NAMES: [&str; 6] = ["", SESSION, COMPLETION, MODEL, TOKEN, RUNTIME];

/// Bytes of a request's headers: room for credentials and trace context, not for data.
const HEADER_LIST_BYTES: u32 = 16 * 1024;

/// After every stream was told to end: time for the last bytes to leave.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// What a gateway is set to.
#[derive(Debug, Clone)]
pub struct GatewaySettings {
    /// Bounds on requests and replies.
    pub limits: Limits,
    /// Version and revision of the runtime, as [`RuntimeInfo::build`](holdfast_worker_api::RuntimeInfo) tells it.
    pub build: String,
    /// Where calls and streams are counted.
    pub metrics: Arc<Metrics>,
    /// How long running streams may go on after shutdown was asked for.
    pub drain_timeout: Duration,
    /// A connection without traffic is asked for a sign of life this often.
    pub keepalive_interval: Duration,
    /// A connection that gives no sign of life for this long is closed, and its streams are disconnects.
    pub keepalive_timeout: Duration,
}

impl Default for GatewaySettings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            build: String::new(),
            metrics: Arc::new(Metrics::default()),
            drain_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(20),
        }
    }
}

/// Why a gateway cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The descriptor set that was compiled in cannot be reflected.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The listener or a connection failed in a way that ends serving.
    #[error("serving: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// The gRPC edge of one worker.
///
/// Made once. [`Gateway::routes`] gives its services to any server, [`Gateway::serve`] runs one on a listener. It keeps no
/// session state: dropping it ends nothing but streams.
pub struct Gateway {
    edge: Arc<Edge>,
    phase: watch::Sender<Phase>,
    health: HealthReporter,
    settings: GatewaySettings,
}

impl Gateway {
    /// A gateway in front of `worker`.
    pub fn new(worker: Arc<dyn Worker>, settings: GatewaySettings) -> Self {
        let (phase, phase_receiver) = watch::channel(Phase::Serving);
        let edge = Edge {
            worker,
            limits: settings.limits.clone(),
            build: settings.build.clone(),
            metrics: settings.metrics.clone(),
            streams: OpenStreams::new(settings.limits.open_streams, settings.metrics.clone()),
            phase: phase_receiver,
        };
        Self { edge: Arc::new(edge), phase, health: HealthReporter::new(), settings }
    }

    /// All services: `holdfast.v1`, health (SERVING from now on), reflection v1 and v1alpha.
    ///
    /// # Errors
    /// [`GatewayError::Reflection`] when the descriptor set is damaged.
    pub async fn routes(&self) -> Result<Routes, GatewayError> {
        self.report(ServingStatus::Serving).await;
        let limits = &self.settings.limits;
        let request_bytes = usize::try_from(limits.request_bytes).unwrap_or(usize::MAX);
        let reply_bytes = usize::try_from(limits.reply_bytes).unwrap_or(usize::MAX);
        macro_rules! bounded {
            ($server:ident, $service:expr) => {
                $server::new($service).max_decoding_message_size(request_bytes).max_encoding_message_size(reply_bytes)
            };
        }
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let routes = Routes::new(bounded!(SessionServiceServer, Sessions(self.edge.clone())))
            .add_service(bounded!(CompletionServiceServer, Completions(self.edge.clone())))
            .add_service(bounded!(ModelServiceServer, Models(self.edge.clone())))
            .add_service(bounded!(TokenServiceServer, Tokens(self.edge.clone())))
            .add_service(bounded!(RuntimeServiceServer, Runtimes(self.edge.clone())))
            .add_service(HealthServer::new(LastingHealth::new(self.health.clone(), &HEALTH_NAMES)))
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?);
        let request_bytes = limits.request_bytes;
        let explained = axum::middleware::from_fn(move |request, next| refusals::explain(request_bytes, request, next));
        Ok(Routes::from(routes.into_axum_router().layer(explained)).prepare())
    }

    /// Serves on `listener` until `shutdown` is done and everything has drained, within bounds.
    ///
    /// Draining, in order: health turns NOT_SERVING, new streams and streams without an end get RUNTIME_DRAINING; streams
    /// of turns have `drain_timeout` to end and get RUNTIME_DRAINING then; connections are told to go away and have a last
    /// moment to do so.
    ///
    /// # Errors
    /// [`GatewayError`] when serving cannot start or breaks down.
    pub async fn serve(self, listener: TcpListener, shutdown: impl Future<Output = ()>) -> Result<(), GatewayError> {
        let routes = self.routes().await?;
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let (stop, stopped) = oneshot::channel::<()>();
        let server = Server::builder()
            .http2_keepalive_interval(Some(self.settings.keepalive_interval))
            .http2_keepalive_timeout(Some(self.settings.keepalive_timeout))
            .http2_max_header_list_size(HEADER_LIST_BYTES)
            .max_concurrent_streams(self.settings.limits.open_streams)
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, async {
                // A dropped sender means the same as a sent word.
                drop(stopped.await);
            });
        let mut server = pin!(server);
        tokio::select! {
            ended = &mut server => return Ok(ended?),
            () = shutdown => {}
        }

        tracing::info!("draining: no new streams");
        self.phase.send_replace(Phase::Draining);
        self.report(ServingStatus::NotServing).await;
        let drained = async { timeout(self.settings.drain_timeout, self.edge.streams.idle()).await };
        tokio::select! {
            ended = &mut server => return Ok(ended?),
            drained = drained => if drained.is_err() {
                tracing::warn!("streams were still open after {:?}; ending them", self.settings.drain_timeout);
            },
        }
        self.phase.send_replace(Phase::Closing);
        let mut health = self.health.clone();
        for name in HEALTH_NAMES {
            // Ends the streams of health's own watchers, which have no end otherwise.
            health.clear_service_status(name).await;
        }
        drop(stop);
        match timeout(CLOSE_GRACE, &mut server).await {
            Ok(ended) => Ok(ended?),
            Err(_) => {
                tracing::warn!("connections were still open {CLOSE_GRACE:?} after their streams; leaving them");
                Ok(())
            }
        }
    }

    async fn report(&self, status: ServingStatus) {
        for name in HEALTH_NAMES {
            self.health.set_service_status(name, status).await;
        }
    }
}
