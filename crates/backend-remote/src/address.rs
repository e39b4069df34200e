//! Where a device listens: a Unix socket or a TCP port.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// `unix:/path/of/a/socket` or `host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceAddress {
    /// The path of a Unix socket.
    Unix(PathBuf),
    /// A host name or an IP address (version 6 in brackets), and a port.
    Tcp(String),
}

/// A text that is no address of a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address of a device; write unix:/path or host:port")]
pub struct AddressError(String);

impl DeviceAddress {
    /// As a URI of gRPC.
    pub(crate) fn uri(&self) -> String {
        match self {
            Self::Unix(path) => format!("unix:{}", path.display()),
            Self::Tcp(address) => format!("http://{address}"),
        }
    }
}

impl FromStr for DeviceAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(wrong()) } else { Ok(Self::Unix(path.into())) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let is_bare_v6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
        if host.is_empty() || is_bare_v6 || host.contains('/') || port.parse::<u16>().is_err() {
            return Err(wrong());
        }
        Ok(Self::Tcp(text.to_owned()))
    }
}

impl fmt::Display for DeviceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_told_as_they_are_written() {
        for text in ["unix:/run/device.sock", "unix:device.sock", "127.0.0.1:7000", "device.local:1", "[::1]:7000"] {
            assert_eq!(text.parse::<DeviceAddress>().map(|address| address.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "unix:", "localhost", ":7000", "host:70000", "http://host:1", "::1:7000"] {
            assert_eq!(text.parse::<DeviceAddress>(), Err(AddressError(text.to_owned())));
        }
    }
}
