//! Names and numbers that identify things. Parsed once at the edge, trusted afterwards.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The length is outside the allowed range.
    #[error("{what} must be {min} to {max} characters long, got {got}")]
    Length {
        /// Which name.
        what: &'static str,
        /// Fewest characters allowed.
        min: usize,
        /// Most characters allowed.
        max: usize,
        /// Characters given.
        got: usize,
    },
    /// A character outside `[A-Za-z0-9._-]`.
    #[error("{what} may hold only letters, digits, '.', '_' and '-', got {found:?} at byte {at}")]
    Character {
        /// Which name.
        what: &'static str,
        /// The first offending character.
        found: char,
        /// Its byte offset.
        at: usize,
    },
}

fn check(what: &'static str, text: &str, min: usize, max: usize) -> Result<(), IdError> {
    if text.len() < min || text.len() > max {
        return Err(IdError::Length { what, min, max, got: text.chars().count() });
    }
    match text.char_indices().find(|(_, c)| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
        Some((at, found)) => Err(IdError::Character { what, found, at }),
        None => Ok(()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $min:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses the name.
            ///
            /// # Errors
            /// [`IdError`] when the length or a character is not allowed.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                check($what, text, $min, $max)?;
                Ok(Self(text.into()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($name), &*self.0)
            }
        }
    };
}

name!(
    /// Whose sessions these are. Comes from the credential, never from a request; `default` until identity exists.
    TenantId, "tenant id", 1, 128
);
name!(
    /// A session's id, unique inside a tenant: 8 to 128 of `[A-Za-z0-9._-]`, the client's or a UUIDv7 of ours.
    SessionId, "session id", 8, 128
);
name!(
    /// Who asked, as the journal records it. `anonymous` until identity exists.
    Principal, "principal", 1, 128
);

impl Default for TenantId {
    /// The tenant of a runtime without identity.
    fn default() -> Self {
        Self("default".into())
    }
}

impl Default for Principal {
    /// The caller of a runtime without identity.
    fn default() -> Self {
        Self("anonymous".into())
    }
}

/// Ordinal of a turn in its session, from 1. Named `sessions/{id}/turns/{n}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TurnNumber(pub u32);

/// Ordinal of an item in its session, from 1. Named `sessions/{id}/items/{n}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ItemNumber(pub u32);

/// What an engine calls the conversation whose KV it holds: one per loaded session or stateless completion, drawn by the
/// worker, never reused within a process. An engine never hears of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SequenceId(pub u64);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn session_ids_have_bounds_and_an_alphabet() {
        assert!(SessionId::parse("abcdefgh").is_ok());
        assert!(SessionId::parse(&"x".repeat(128)).is_ok());
        assert!(matches!(SessionId::parse("short"), Err(IdError::Length { got: 5, .. })));
        assert!(matches!(SessionId::parse(&"x".repeat(129)), Err(IdError::Length { got: 129, .. })));
        assert_eq!(
            SessionId::parse("has space!").unwrap_err(),
            IdError::Character { what: "session id", found: ' ', at: 3 }
        );
    }

    #[test]
    fn names_are_checked_when_read_back() {
        assert!(serde_json::from_str::<SessionId>("\"a/b/c/d/e\"").is_err());
        let id: SessionId = serde_json::from_str("\"session-1\"").unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"session-1\"");
    }
}
