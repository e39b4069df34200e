//! What can go wrong for a client, with the reason that the runtime gave.

use tonic::Code;
use tonic_types::StatusExt;

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// The address cannot be read.
    #[error("{address:?} is not an address: {problem}; give HOST:PORT or http://HOST:PORT")]
    Address {
        /// As given.
        address: String,
        /// What is wrong.
        problem: String,
    },
    /// Nobody answers.
    #[error("no runtime answers at {address} ({problem}); start one with `holdfast serve`")]
    Connect {
        /// Where.
        address: String,
        /// What happened.
        problem: String,
    },
    /// The runtime refused or failed the call.
    #[error("{}", describe(.0))]
    Status(Box<tonic::Status>),
}

impl ClientError {
    /// The UPPER_SNAKE reason, if the runtime gave one.
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Status(status) => status.get_details_error_info().map(|info| info.reason),
            Self::Address { .. } | Self::Connect { .. } => None,
        }
    }

    /// The gRPC code, if the call got that far.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Status(status) => Some(status.code()),
            Self::Address { .. } | Self::Connect { .. } => None,
        }
    }
}

impl From<tonic::Status> for ClientError {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

fn describe(status: &tonic::Status) -> String {
    match status.get_details_error_info() {
        Some(info) => format!("{}: {}", info.reason, status.message()),
        None => format!("{:?}: {}", status.code(), status.message()),
    }
}
