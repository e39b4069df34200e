//! Events that are no longer in memory: the journal folded again, by the stream that wants them.
//!
//! In: a range of event numbers. Out: those events, a journal page at a time. Deliberately not here: events that the core still has.

use std::sync::Arc;

use holdfast_journal::Journal;
use holdfast_types::{Event, Failure, Reason, SessionId, TenantId};

use super::drive::READ_ENTRIES;
use crate::fold::{Languages, SessionFold};

/// A second fold of a session, as far as it has read.
pub(super) struct Replay {
    journal: Arc<dyn Journal>,
    languages: Languages,
    tenant: TenantId,
    session: SessionId,
    fold: Option<SessionFold>,
    read: u64,
}

impl Replay {
    pub(super) fn new(journal: Arc<dyn Journal>, languages: Languages, tenant: TenantId, session: SessionId) -> Self {
        Self { journal, languages, tenant, session, fold: None, read: 0 }
    }

    /// The events of the next page of the journal, and whether it was the last. Blocking.
    pub(super) fn page(&mut self) -> Result<(Vec<Event>, bool), Failure> {
        let entries = self
            .journal
            .read(&self.tenant, &self.session, self.read, READ_ENTRIES)
            .map_err(|error| Failure::new(Reason::JournalUnavailable, error.to_string()))?;
        let last = entries.len() < READ_ENTRIES;
        self.read += entries.len() as u64;
        let mut events = Vec::new();
        let corrupt = |error: crate::fold::FoldError| Failure::new(Reason::JournalCorrupt, error.to_string());
        for entry in entries {
            match &mut self.fold {
                None => self.fold = Some(SessionFold::begin(&entry.entry, self.languages.clone()).map_err(corrupt)?),
                Some(fold) => fold.apply(&entry.entry, &mut events).map_err(corrupt)?,
            }
        }
        Ok((events, last))
    }
}
