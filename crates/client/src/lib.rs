//! The Rust client of a Holdfast runtime: connections, errors with their reasons, turn streams that attach again by
//! themselves, and short ways to say items.
//!
//! In: an address. Out: the generated service clients, wrapped only where a wrapper earns its place. Deliberately not
//! here: retries of unary calls (give them a `request_id` and they may be repeated) and anything that prints.
#![forbid(unsafe_code)]

mod connection;
mod error;
pub mod items;
mod turn;

pub use connection::Connection;
pub use error::ClientError;
pub use holdfast_contracts::v1;
pub use turn::TurnEvents;

use std::time::Duration;

use tonic::transport::Endpoint;
use v1::completion_service_client::CompletionServiceClient;
use v1::model_service_client::ModelServiceClient;
use v1::runtime_service_client::RuntimeServiceClient;
use v1::session_service_client::SessionServiceClient;
use v1::token_service_client::TokenServiceClient;

/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to a runtime; cheap to clone, safe to share.
#[derive(Debug, Clone)]
pub struct Client {
    connection: Connection,
}

impl Client {
    /// Connects to `address`, a URI such as `http://127.0.0.1:50051` or `HOST:PORT`.
    ///
    /// # Errors
    /// [`ClientError::Address`] when it cannot be read, [`ClientError::Connect`] when nobody answers within five seconds.
    pub async fn connect(address: &str) -> Result<Self, ClientError> {
        let uri = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let endpoint = Endpoint::from_shared(uri)
            .map_err(|error| ClientError::Address { address: address.to_owned(), problem: error.to_string() })?
            .connect_timeout(CONNECT_TIMEOUT);
        let channel = endpoint.connect().await.map_err(|error| ClientError::Connect {
            address: address.to_owned(),
            problem: std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string),
        })?;
        Ok(Self { connection: Connection::new(channel) })
    }

    /// The connection, for services that are not wrapped here, such as gRPC's health service.
    pub fn connection(&self) -> Connection {
        self.connection.clone()
    }

    /// Sessions, turns and items.
    pub fn sessions(&self) -> SessionServiceClient<Connection> {
        SessionServiceClient::new(self.connection.clone())
    }

    /// The stateless baseline.
    pub fn completions(&self) -> CompletionServiceClient<Connection> {
        CompletionServiceClient::new(self.connection.clone())
    }

    /// Served models.
    pub fn models(&self) -> ModelServiceClient<Connection> {
        ModelServiceClient::new(self.connection.clone())
    }

    /// Token counts.
    pub fn tokens(&self) -> TokenServiceClient<Connection> {
        TokenServiceClient::new(self.connection.clone())
    }

    /// The runtime itself.
    pub fn runtime(&self) -> RuntimeServiceClient<Connection> {
        RuntimeServiceClient::new(self.connection.clone())
    }

    /// Runs a turn and follows it. The stream attaches again by itself when the connection breaks, for as long as the
    /// runtime can be reached within a few seconds; every numbered event arrives exactly once.
    ///
    /// # Errors
    /// [`ClientError::Status`] when the turn is refused.
    pub async fn run_turn(&self, request: v1::RunTurnRequest) -> Result<TurnEvents, ClientError> {
        let stream = self.sessions().run_turn(request).await?.into_inner();
        Ok(TurnEvents::new(self.clone(), stream))
    }

    /// Follows a turn from an event on (0: from its first).
    ///
    /// # Errors
    /// [`ClientError::Status`] when there is no such turn.
    pub async fn attach_turn(&self, name: &str, from_sequence: u64) -> Result<TurnEvents, ClientError> {
        let request = v1::AttachTurnRequest { name: name.to_owned(), from_sequence };
        let stream = self.sessions().attach_turn(request).await?.into_inner();
        Ok(TurnEvents::new(self.clone(), stream))
    }
}
