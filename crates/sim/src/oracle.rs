//! What must hold of a node, whatever happened to it.
//!
//! In: the journal after every commit, every event and acknowledgement that a client saw. Out: what is wrong, in words.
//! Deliberately not here: whether tokens are the right ones ([`crate::replay`]).

use std::collections::BTreeMap;

use holdfast_journal::{Body, Journal, JournalError, MemoryJournal, NewEntry};
use holdfast_types::{Digest, Event, EventKind, SessionId, TenantId, TurnNumber, TurnState};
use holdfast_worker::fold::{Languages, SessionFold};

use crate::clients::Acknowledged;

/// What was committed of one session, as it was when it was first seen.
#[derive(Default)]
pub struct Record {
    hashes: Vec<Digest>,
    entries: Vec<NewEntry>,
    fold: Option<SessionFold>,
    events: Vec<Event>,
    is_purged: bool,
}

impl Record {
    /// Its entries.
    pub fn entries(&self) -> &[NewEntry] {
        &self.entries
    }

    /// Its events; number n is at n − 1.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Its fold.
    pub fn fold(&self) -> Option<&SessionFold> {
        self.fold.as_ref()
    }

    /// Whether its bytes were removed.
    pub fn is_purged(&self) -> bool {
        self.is_purged
    }

    fn take(&mut self, entry: NewEntry, hash: Digest, languages: &Languages) -> Result<(), String> {
        match &mut self.fold {
            None => self.fold = Some(SessionFold::begin(&entry, languages.clone()).map_err(|error| error.to_string())?),
            Some(fold) => fold.apply(&entry, &mut self.events).map_err(|error| error.to_string())?,
        }
        self.entries.push(entry);
        self.hashes.push(hash);
        match self.events.iter().zip(1..).find(|(event, number)| event.sequence != *number) {
            Some((event, number)) => Err(format!("event {} is in the place of {number}", event.sequence)),
            None => Ok(()),
        }
    }
}

/// See the module.
pub struct Oracle {
    languages: Languages,
    records: BTreeMap<SessionId, Record>,
}

impl Oracle {
    /// An oracle that has seen nothing.
    pub fn new(languages: Languages) -> Self {
        Self { languages, records: BTreeMap::new() }
    }

    /// What was committed of a session.
    pub fn record(&self, session: &SessionId) -> Option<&Record> {
        self.records.get(session)
    }

    /// Takes what the journal has committed of a session since the last time.
    ///
    /// # Errors
    /// When its entries cannot be read or folded.
    pub fn read(&mut self, journal: &MemoryJournal, session: &SessionId) -> Result<(), String> {
        let record = self.records.entry(session.clone()).or_default();
        let from = record.hashes.len() as u64;
        let entries = match journal.read(&TenantId::default(), session, from, usize::MAX) {
            Ok(entries) => entries,
            Err(JournalError::NotFound { .. }) => {
                let is_deleted = record.fold.as_ref().is_none_or(SessionFold::is_deleted);
                record.is_purged = from > 0;
                return if is_deleted {
                    Ok(())
                } else {
                    Err(format!("{session} was purged before its deletion was committed"))
                };
            }
            Err(error) => return Err(error.to_string()),
        };
        for entry in entries {
            record.take(entry.entry, entry.hash, &self.languages).map_err(|problem| format!("{session}: {problem}"))?;
        }
        Ok(())
    }

    /// After a start: what was committed is there, bit for bit. After a loss of power the latest sampled tokens may be gone, and
    /// nothing else; they are forgotten here as well.
    ///
    /// # Errors
    /// What was lost.
    pub fn check_survival(&mut self, journal: &MemoryJournal, power: bool) -> Result<(), String> {
        for (session, record) in &mut self.records {
            if record.hashes.is_empty() || record.is_purged {
                continue;
            }
            let found = match journal.read(&TenantId::default(), session, 0, usize::MAX) {
                Ok(found) => found,
                Err(error) => return Err(format!("{session} did not survive: {error}")),
            };
            if found.iter().zip(&record.hashes).any(|(entry, hash)| entry.hash != *hash) {
                return Err(format!("{session} has other entries than before"));
            }
            let (before, after) = (record.hashes.len(), found.len());
            if after > before {
                return Err(format!("{session} has {after} entries, {before} were committed"));
            }
            let lost = &record.entries[after..];
            if !lost.iter().all(|entry| power && matches!(entry.body, Body::Sampled { .. })) {
                return Err(format!("{session} lost {} committed entries of {before}", lost.len()));
            }
            if !lost.is_empty() {
                *record = Record::default();
                for entry in found {
                    record.take(entry.entry, entry.hash, &self.languages)?;
                }
            }
        }
        Ok(())
    }

    /// Events that a client was shown: committed, and the same as ever.
    ///
    /// # Errors
    /// Which event is wrong.
    pub fn check_events(&self, session: &SessionId, events: &[Event]) -> Result<(), String> {
        let known = self.records.get(session).map(|record| record.events.as_slice()).unwrap_or_default();
        for event in events {
            let place = usize::try_from(event.sequence).ok().and_then(|number| number.checked_sub(1));
            match place.and_then(|place| known.get(place)) {
                None => return Err(format!("{session}: event {} was shown before it was committed", event.sequence)),
                Some(committed) if committed != event => {
                    return Err(format!("{session}: event {} was {committed:?}, now it is {event:?}", event.sequence));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// An acknowledgement: what it promises is committed.
    ///
    /// # Errors
    /// What is not there.
    pub fn check_acknowledged(&self, session: &SessionId, acknowledged: &Acknowledged) -> Result<(), String> {
        let missing = || Err(format!("{session}: acknowledged and not committed: {acknowledged:?}"));
        let Some(record) = self.records.get(session) else { return missing() };
        let mut bodies = record.entries.iter().map(|entry| &entry.body);
        let is_there = match acknowledged {
            Acknowledged::Session => !record.entries.is_empty(),
            Acknowledged::Turn(number, id) => bodies.any(|body| {
                matches!(body, Body::TurnAccepted { turn, request }
                    if turn == number && request.request.as_ref().is_some_and(|mark| mark.id == *id))
            }),
            Acknowledged::Results(number, wanted) => {
                let of_turn = bodies.filter_map(|body| match body {
                    Body::ToolResults { turn, results, .. } if turn == number => Some(results),
                    _ => None,
                });
                let taken: Vec<_> = of_turn.flatten().collect();
                wanted.iter().all(|item| taken.contains(&item))
            }
            Acknowledged::Items(wanted) => {
                bodies.any(|body| matches!(body, Body::ItemsAppended { turn: None, items, .. } if items == wanted))
            }
            Acknowledged::Ended(number, wanted) => bodies
                .any(|body| matches!(body, Body::TurnEnded { turn, state, .. } if turn == number && state == wanted)),
            Acknowledged::Deleted => record.is_purged || record.fold().is_some_and(SessionFold::is_deleted),
        };
        if is_there { Ok(()) } else { missing() }
    }

    /// At rest: every session folds from its first entry to the same events, every turn has had exactly one end, and usage adds
    /// up. `unlucky`: devices failed, so that turns may have failed.
    ///
    /// # Errors
    /// What does not hold.
    pub fn check_rest(&self, journal: &MemoryJournal, unlucky: bool) -> Result<(), String> {
        for (session, record) in &self.records {
            let Some(fold) = &record.fold else { continue };
            if !record.is_purged {
                let mut again = Record::default();
                let entries = journal.read(&TenantId::default(), session, 0, usize::MAX);
                for entry in entries.map_err(|error| error.to_string())? {
                    again.take(entry.entry, entry.hash, &self.languages)?;
                }
                if again.events != record.events || again.fold.as_ref().map(SessionFold::log) != Some(fold.log()) {
                    return Err(format!("{session} folds to another story the second time"));
                }
            }
            for turn in fold.turns() {
                check_turn(record, turn.number, unlucky).map_err(|problem| format!("{session}: {problem}"))?;
            }
        }
        Ok(())
    }
}

fn check_turn(record: &Record, number: TurnNumber, unlucky: bool) -> Result<(), String> {
    let events = record.events.iter().filter(|event| event.turn == number);
    let ends: Vec<_> = events.filter(|event| event.kind.is_terminal()).collect();
    let [end] = ends.as_slice() else { return Err(format!("turn {} has {} ends", number.0, ends.len())) };
    let EventKind::TurnEnded { turn } = &end.kind else { return Err("an end without a turn".to_owned()) };
    if let (TurnState::Failed, Some(failure)) = (turn.state, &turn.failure) {
        use holdfast_types::Reason as R;
        // What a turn that was queued can only be told when it begins.
        let known = matches!(
            failure.reason,
            R::SessionDeleted
                | R::ContextOverflow
                | R::EmptyTurn
                | R::InvalidArgument
                | R::DuplicateCallId
                | R::UnknownCallId
        );
        let device = matches!(failure.reason, R::DeviceFault | R::DeviceLost | R::OutOfMemory);
        if !(known || unlucky && device) {
            return Err(format!("turn {} failed: {failure}", number.0));
        }
    }
    for generation in &turn.generations {
        let usage = &generation.usage;
        let input = usage.cached.total() + usage.computed_tokens + usage.recomputed_tokens;
        if usage.input_tokens != input || usage.by_precision.total() < usage.computed_tokens + usage.recomputed_tokens {
            return Err(format!("turn {}: usage does not add up: {usage:?}", number.0));
        }
    }
    Ok(())
}
