//! Names of resources: `sessions/{id}`, `sessions/{id}/turns/{n}`, `sessions/{id}/items/{n}`, `models/{name}`.
//!
//! In: names as clients write them. Out: parsed ids and numbers, and names written back. Deliberately not here: whether
//! what a name means exists.

use holdfast_types::{Failure, ItemNumber, Reason, SessionId, TurnNumber};

use crate::field::Field;
use crate::limits;

/// Longest model name, in bytes: long enough for a registry path with a revision.
const MODEL_NAME_BYTES: usize = 256;

/// Where items and turns belong, which decides how they are named.
#[derive(Clone, Copy)]
pub(crate) enum Home<'a> {
    /// A session.
    Session(&'a SessionId),
    /// A stateless completion, which has no session and names only its items.
    Completion,
}

impl Home<'_> {
    /// `sessions/{id}`; empty for a completion.
    pub(crate) fn session(self) -> String {
        match self {
            Self::Session(id) => session(id),
            Self::Completion => String::new(),
        }
    }

    /// `sessions/{id}/turns/{n}`; empty for a completion.
    pub(crate) fn turn(self, number: TurnNumber) -> String {
        match self {
            Self::Session(id) => format!("sessions/{id}/turns/{}", number.0),
            Self::Completion => String::new(),
        }
    }

    /// `sessions/{id}/items/{n}`, or `items/{n}` for a completion.
    pub(crate) fn item(self, number: ItemNumber) -> String {
        match self {
            Self::Session(id) => format!("sessions/{id}/items/{}", number.0),
            Self::Completion => format!("items/{}", number.0),
        }
    }
}

/// `sessions/{id}`.
pub(crate) fn session(id: &SessionId) -> String {
    format!("sessions/{id}")
}

/// `models/{name}`; empty for a model that has no name yet.
pub(crate) fn model(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!("models/{name}") }
}

/// Reads a session id that stands alone, as in `CreateSession.session_id`.
pub(crate) fn parse_session_id(field: Field<'_>, text: &str) -> Result<SessionId, Failure> {
    SessionId::parse(text).map_err(|error| field.failure(Reason::InvalidName, error.to_string()))
}

/// Reads `sessions/{id}`.
pub(crate) fn parse_session(field: Field<'_>, text: &str) -> Result<SessionId, Failure> {
    match text.strip_prefix("sessions/") {
        Some(id) if !id.contains('/') => parse_session_id(field, id),
        _ => Err(malformed(field, text, "sessions/{id}")),
    }
}

/// Reads `sessions/{id}/turns/{n}`.
pub(crate) fn parse_turn(field: Field<'_>, text: &str) -> Result<(SessionId, TurnNumber), Failure> {
    const FORM: &str = "sessions/{id}/turns/{n}";
    let parts = text.strip_prefix("sessions/").and_then(|rest| rest.split_once("/turns/"));
    let Some((id, number)) = parts else {
        return Err(malformed(field, text, FORM));
    };
    let number = ordinal(number).ok_or_else(|| malformed(field, text, FORM))?;
    Ok((parse_session_id(field, id)?, TurnNumber(number)))
}

/// Reads `models/{name}`; empty stays empty and means the default model.
pub(crate) fn parse_model(field: Field<'_>, text: &str) -> Result<String, Failure> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let name = text.strip_prefix("models/").filter(|name| !name.is_empty() && name.len() <= MODEL_NAME_BYTES);
    let Some(name) = name else {
        return Err(malformed(field, text, "models/{name}"));
    };
    limits::no_control(field, Reason::InvalidName, name)?;
    Ok(name.to_owned())
}

/// A number from 1, written in exactly one way: no sign, no leading zero.
fn ordinal(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    if plain { text.parse().ok() } else { None }
}

fn malformed(field: Field<'_>, text: &str, form: &str) -> Failure {
    let problem = if text.is_empty() {
        format!("is required, in the form {form}")
    } else {
        format!("must have the form {form}, got {:?}", limits::clip(text, 160))
    };
    field.failure(Reason::InvalidName, problem)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NAME: Field<'static> = Field::Root("name");

    #[test]
    fn names_are_read_back_as_they_are_written() {
        let id = SessionId::parse("session-1").unwrap();
        assert_eq!(parse_session(NAME, &session(&id)).unwrap(), id);
        let turn = Home::Session(&id).turn(TurnNumber(7));
        assert_eq!(turn, "sessions/session-1/turns/7");
        assert_eq!(parse_turn(NAME, &turn).unwrap(), (id.clone(), TurnNumber(7)));
        assert_eq!(parse_model(NAME, &model("pebble")).unwrap(), "pebble");
        assert_eq!(parse_model(NAME, "").unwrap(), "");
        assert_eq!(Home::Session(&id).item(ItemNumber(3)), "sessions/session-1/items/3");
        assert_eq!(Home::Completion.item(ItemNumber(3)), "items/3");
        assert_eq!(Home::Completion.turn(TurnNumber(1)), "");
    }

    #[test]
    fn malformed_names_are_refused_by_field() {
        for bad in ["", "session-1", "sessions/", "sessions/short", "sessions/session-1/turns/1", "sessions/has space!"]
        {
            assert_eq!(parse_session(NAME, bad).unwrap_err().reason, Reason::InvalidName, "{bad:?}");
        }
        for bad in [
            "",
            "sessions/session-1",
            "sessions/session-1/turns/",
            "sessions/session-1/turns/0",
            "sessions/session-1/turns/01",
            "sessions/session-1/turns/+1",
            "sessions/session-1/turns/4294967296",
            "sessions/session-1/turns/1/turns/2",
            "sessions/x/turns/1",
        ] {
            assert_eq!(parse_turn(NAME, bad).unwrap_err().reason, Reason::InvalidName, "{bad:?}");
        }
        for bad in ["pebble", "models/", "models/a\nb", &format!("models/{}", "x".repeat(257))] {
            assert_eq!(parse_model(NAME, bad).unwrap_err().reason, Reason::InvalidName, "{bad:?}");
        }
    }
}
