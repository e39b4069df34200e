//! Why a remote device cannot be used, before there is a backend that could say so.

use crate::DeviceAddress;

/// Why a connection to a device did not become a [`crate::RemoteBackend`].
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// Nobody answers, or not as a device does.
    #[error(
        "no device answers at {address}: {problem}; is it running? `holdfast device serve --listen {address}` starts one"
    )]
    Unreachable {
        /// Where.
        address: DeviceAddress,
        /// What happened.
        problem: String,
    },
    /// What it says of itself cannot be.
    #[error("the device at {address} describes itself wrongly: {problem}")]
    Description {
        /// Where.
        address: DeviceAddress,
        /// What is wrong.
        problem: String,
    },
    /// It came back as another device than the one that was there at first.
    #[error("the device at {address} came back as another one: {problem}")]
    Changed {
        /// Where.
        address: DeviceAddress,
        /// What differs.
        problem: String,
    },
    /// The thread that speaks with the device could not be started.
    #[error("no thread for the connection to a device: {0}")]
    Thread(#[from] std::io::Error),
}
