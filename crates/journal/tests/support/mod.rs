//! Entries, batches and heads for the journal's tests.
//!
//! In: names and numbers. Out: batches to append. Deliberately not here: assertions.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::future::Future;

use holdfast_journal::{AppendFuture, Batch, Body, Durability, JournalError, Lsn, NewEntry, SessionHead};
use holdfast_types::{
    NumericsClass, Origin, Precision, Principal, SessionId, SessionState, TenantId, TokenRun, TurnNumber,
};

/// A tenant.
pub fn tenant(name: &str) -> TenantId {
    TenantId::parse(name).unwrap()
}

/// A session.
pub fn session(name: &str) -> SessionId {
    SessionId::parse(name).unwrap()
}

/// An entry that carries `mark` as its one token.
pub fn entry(tenant: &TenantId, session: &SessionId, mark: u32) -> NewEntry {
    NewEntry {
        tenant: tenant.clone(),
        session: session.clone(),
        time_us: 1_700_000_000_000_000 + u64::from(mark),
        principal: Principal::default(),
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
        body: Body::Sampled {
            turn: TurnNumber(1),
            generation: 0,
            run: TokenRun {
                origin: Origin::Sampled,
                precision: Precision::Native,
                numerics_class: NumericsClass::new("neuron/f32/r1"),
                ids: vec![mark],
                logprobs: Vec::new(),
            },
        },
    }
}

/// The mark of an entry of [`entry`].
pub fn mark(body: &Body) -> u32 {
    match body {
        Body::Sampled { run, .. } => run.ids[0],
        other => unreachable!("{other:?}"),
    }
}

/// A head.
pub fn head(tenant: &TenantId, session: &SessionId, state: SessionState) -> SessionHead {
    SessionHead {
        tenant: tenant.clone(),
        session: session.clone(),
        state,
        model: "pebble".to_owned(),
        created_us: 1,
        updated_us: 2,
        expires_us: None,
        labels: BTreeMap::new(),
        turns: 3,
        tokens: 4,
    }
}

/// A batch of entries with these marks.
pub fn batch(tenant: &TenantId, session: &SessionId, marks: impl IntoIterator<Item = u32>) -> Batch {
    Batch {
        entries: marks.into_iter().map(|mark| entry(tenant, session, mark)).collect(),
        head: Some(head(tenant, session, SessionState::Idle)),
        durability: Durability::Process,
    }
}

/// Waits for a commit.
pub fn wait(future: AppendFuture) -> Result<Lsn, JournalError> {
    block_on(future)
}

/// Runs a future to its end on this thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}
