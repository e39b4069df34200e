//! Rows to words and back, as the writer and the readers both need them.
//!
//! In: rows. Out: heads and stored entries, and the other way round. Deliberately not here: which rows.

use std::collections::BTreeMap;

use holdfast_types::{Digest, SessionId, SessionState, TenantId};
use rusqlite::Row;
use rusqlite::types::Value;

use crate::chain::Stored;
use crate::{JournalError, SessionHead};

/// Columns of a head, in the order that [`head`] reads.
pub(crate) const HEAD_COLUMNS: &str =
    "tenant, session, state, model, created_us, updated_us, expires_us, labels, turns, tokens";

/// Columns of an entry, in the order that [`stored`] reads.
pub(crate) const ENTRY_COLUMNS: &str = "lsn, place, time_us, principal, traceparent, previous, hash, key_id, body";

/// Every state with its word.
const STATES: [(SessionState, &str); 5] = [
    (SessionState::Idle, "idle"),
    (SessionState::Running, "running"),
    (SessionState::RequiresAction, "requires_action"),
    (SessionState::Suspended, "suspended"),
    (SessionState::Deleting, "deleting"),
];

/// The word of a state.
pub(crate) fn state_word(state: SessionState) -> &'static str {
    STATES.iter().find(|(known, _)| *known == state).map_or("", |(_, word)| word)
}

/// A time or count as SQLite holds integers; `None` where it does not fit.
pub(crate) fn integer(value: u64) -> Option<i64> {
    i64::try_from(value).ok()
}

/// Reads a head; the message says what is wrong with the row.
pub(crate) fn head(row: &Row<'_>) -> Result<SessionHead, JournalError> {
    let session: String = row.get(1).map_err(|e| JournalError::Io(e.to_string()))?;
    read_head(row, &session).map_err(|problem| JournalError::Corrupt { session, index: 0, problem })
}

fn read_head(row: &Row<'_>, session: &str) -> Result<SessionHead, String> {
    let damaged = |e: rusqlite::Error| format!("its row for listings cannot be read: {e}");
    let positive =
        |value: i64| u64::try_from(value).map_err(|_| "its row for listings holds a negative time".to_owned());
    let tenant: String = row.get(0).map_err(damaged)?;
    let state: String = row.get(2).map_err(damaged)?;
    let labels: String = row.get(7).map_err(damaged)?;
    let expires: Option<i64> = row.get(6).map_err(damaged)?;
    let labels: BTreeMap<String, String> =
        serde_json::from_str(&labels).map_err(|e| format!("its labels cannot be read: {e}"))?;
    Ok(SessionHead {
        tenant: TenantId::parse(&tenant).map_err(|e| e.to_string())?,
        session: SessionId::parse(session).map_err(|e| e.to_string())?,
        state: STATES
            .iter()
            .find(|(_, word)| *word == state)
            .map(|(known, _)| *known)
            .ok_or_else(|| format!("its state is {state:?}"))?,
        model: row.get(3).map_err(damaged)?,
        created_us: positive(row.get(4).map_err(damaged)?)?,
        updated_us: positive(row.get(5).map_err(damaged)?)?,
        expires_us: expires.map(positive).transpose()?,
        labels,
        turns: row.get(8).map_err(damaged)?,
        tokens: row.get(9).map_err(damaged)?,
    })
}

/// A head's columns after tenant and session. `None` where a time does not fit.
pub(crate) fn head_values(head: &SessionHead) -> Option<Vec<Value>> {
    Some(vec![
        Value::Text(state_word(head.state).to_owned()),
        Value::Text(head.model.clone()),
        Value::Integer(integer(head.created_us)?),
        Value::Integer(integer(head.updated_us)?),
        match head.expires_us {
            Some(time) => Value::Integer(integer(time)?),
            None => Value::Null,
        },
        Value::Text(serde_json::to_string(&head.labels).ok()?),
        Value::Integer(head.turns.into()),
        Value::Integer(head.tokens.into()),
    ])
}

/// Reads an entry as it lies there.
pub(crate) fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    Ok(Stored {
        lsn: row.get::<_, i64>(0)?.unsigned_abs(),
        index: row.get::<_, i64>(1)?.unsigned_abs(),
        time_us: row.get::<_, i64>(2)?.cast_unsigned(),
        principal: row.get(3)?,
        traceparent: row.get(4)?,
        previous: Digest(row.get(5)?),
        hash: Digest(row.get(6)?),
        key_id: row.get(7)?,
        body: row.get(8)?,
    })
}
