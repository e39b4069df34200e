//! Requests about sessions that are no turns: create, change, append, list, read events.
//!
//! In: requests. Out: entries and replies. Deliberately not here: listings over sessions (the shell asks the journal, then
//! each session).

use std::collections::BTreeMap;

use holdfast_journal::{Body, Durability, NewEntry, RequestMark, SessionMutable};
use holdfast_types::{
    Failure, FailureDetail, Item, Reason, SessionConfig, SessionId, SessionState, TimeUs, TurnNumber,
};
use holdfast_worker_api::{
    AppendItems, Caller, ConfigPatch, CountTokens, CreateSession, ListItems, ListTurns, Page, SessionPatch, TokenCount,
    UpdateSession,
};

use super::check::{Base, Rendered, check_answered, check_items};
use super::message::{EventBatch, ReadEvents, Request};
use super::session::Session;
use super::turn::{draining, meaning, pending_calls, reused, session_busy, turn_not_found};
use super::{Reply, RequestId, Shared};
use crate::fold::{MarkUse, SessionFold, TIME_MAX_US, later};

/// Elements of a page when the request does not say.
const DEFAULT_PAGE: u32 = 100;

impl Shared {
    /// The id of a session to be made. With a request id and no name, the same request makes the same session: its id is
    /// derived (UUIDv8); else it is drawn (UUIDv7).
    pub(super) fn session_id(&self, caller: &Caller, create: &CreateSession, entropy: u128) -> SessionId {
        if let Some(session) = &create.session {
            return session.clone();
        }
        let bytes = entropy.to_le_bytes();
        let uuid = match &create.request_id {
            Some(id) => {
                let secret = self.domain(&caller.tenant, Some(id));
                let mut half = [0_u8; 16];
                half.copy_from_slice(&secret.0[..16]);
                uuid::Builder::from_custom_bytes(half)
            }
            None => {
                let mut random = [0_u8; 10];
                random.copy_from_slice(&bytes[..10]);
                uuid::Builder::from_unix_timestamp_millis(self.now / 1_000, &random)
            }
        };
        let text = uuid.into_uuid().to_string();
        #[expect(clippy::expect_used, reason = "a UUID is 36 characters of [0-9a-f-]")]
        SessionId::parse(&text).expect("a UUID is a session id")
    }

    /// What items would become as a new conversation, up to the point where the model would answer.
    pub(super) fn count_new(&self, count: &CountTokens) -> Result<TokenCount, Failure> {
        let mut config = count.config.clone();
        let device = self.check_config("conversation.", &mut config)?;
        let session =
            count.session.clone().unwrap_or_else(|| self.session_id(&Caller::default(), &CreateSession::default(), 0));
        let fold = self.begin(&Caller::default(), session, (config, device), SessionMutable::default(), None)?.0;
        self.count_after(&fold, device, &count.items)
    }

    fn count_after(&self, fold: &SessionFold, device: usize, items: &[Item]) -> Result<TokenCount, Failure> {
        let place = (Some(TurnNumber(fold.turns().len() as u32 + 1)), items.to_vec());
        let base = Base::of(fold);
        let base = self.leave_reasoning(fold, device, base, items).map_or(base, |(base, _)| base);
        let rendered = self.render(fold, device, base, place)?;
        Ok(TokenCount {
            tokens: rendered.runs.iter().map(|run| run.ids.len() as u32).sum(),
            context_tokens: base.tokens,
            context_limit: self.models[device].info.context_limit,
        })
    }

    /// A session's first entry, and its fold.
    pub(super) fn begin(
        &self,
        caller: &Caller,
        session: SessionId,
        (config, device): (SessionConfig, usize),
        mutable: SessionMutable,
        request: Option<RequestMark>,
    ) -> Result<(SessionFold, NewEntry), Failure> {
        let entry = NewEntry {
            tenant: caller.tenant.clone(),
            session,
            time_us: self.now,
            principal: caller.principal.clone(),
            traceparent: caller.traceparent.clone(),
            body: Body::SessionCreated {
                config: Box::new(config),
                revision: Box::new(self.revision(device)),
                mutable,
                request,
                pinned_date: date(self.now),
            },
        };
        let fold = SessionFold::begin(&entry, self.languages.clone())
            .map_err(|error| Failure::new(Reason::Internal, error.to_string()))?;
        Ok((fold, entry))
    }
}

impl Session {
    /// Makes a session and answers; `None` when it was refused.
    pub(super) fn create(shared: &mut Shared, id: RequestId, caller: &Caller, create: CreateSession) -> Option<Self> {
        match Self::try_create(shared, caller, create) {
            Ok(mut session) => {
                session.flush(shared, Durability::Power);
                let shown = session.show(shared);
                session.reply(shared, id, Ok(Reply::Session(Box::new(shown))));
                Some(session)
            }
            Err(failure) => {
                shared.reply(id, Err(failure));
                None
            }
        }
    }

    fn try_create(shared: &mut Shared, caller: &Caller, create: CreateSession) -> Result<Self, Failure> {
        if shared.draining {
            return Err(draining());
        }
        let limit = shared.settings.limits.sessions_per_tenant;
        let count = shared.tenants.get(&caller.tenant).copied().unwrap_or(0);
        if count >= limit.into() {
            return Err(Failure::limit("sessions_per_tenant", limit.into(), count + 1));
        }
        let digest = create_meaning(&create);
        let CreateSession { session, mut config, items, patch, request_id } = create;
        let session = session.ok_or_else(|| Failure::new(Reason::Internal, "no session id"))?;
        let device = shared.check_config("session.config.", &mut config)?;
        let mut mutable = SessionMutable::default();
        patch_session(&mut mutable, patch, shared.now);
        let mark = request_id.map(|id| RequestMark { id, digest });
        let (fold, entry) = shared.begin(caller, session, (config, device), mutable, mark)?;
        check_items("initial_items", &items, |_| None)?;
        check_answered("initial_items", &items)?;
        let rendered =
            if items.is_empty() { None } else { Some(shared.render(&fold, device, Base::of(&fold), (None, items))?) };
        let mut made = Self::new(shared, fold, None);
        made.write_first(entry);
        if let Some(Rendered { items, runs }) = rendered {
            made.write(shared, caller, vec![Body::ItemsAppended { turn: None, items, runs, request: None }]);
        }
        *shared.tenants.entry(caller.tenant.clone()).or_insert(0) += 1;
        Ok(made)
    }

    /// Answers a request to make what is there.
    pub(super) fn created_again(&mut self, shared: &mut Shared, id: RequestId, create: &CreateSession) {
        let name = self.fold.session().to_string();
        let result = match create.request_id.as_ref().map(|id| (id, self.fold.mark(id))) {
            _ if self.fold.is_deleted() => Err(deleted(self.fold.session())),
            Some((_, Some((digest, MarkUse::Create)))) if digest == create_meaning(create) => {
                Ok(Reply::Session(Box::new(self.show(shared))))
            }
            Some((id, Some(_))) => Err(reused(id)),
            _ => Err(Failure::resource(
                Reason::SessionExists,
                format!("sessions/{name}"),
                format!("session {name} exists; choose another id, or use it"),
            )),
        };
        self.reply(shared, id, result);
    }

    pub(super) fn update(&mut self, shared: &mut Shared, id: RequestId, caller: &Caller, request: UpdateSession) {
        let result = self.try_update(shared, caller, request);
        self.reply(shared, id, result);
    }

    fn try_update(&mut self, shared: &mut Shared, caller: &Caller, request: UpdateSession) -> Result<Reply, Failure> {
        self.check_etag(request.etag.as_deref())?;
        let mut mutable = self.fold.mutable().clone();
        patch_session(&mut mutable, request.patch, shared.now);
        let mut config = self.fold.config().clone();
        let frozen = patch_config(&mut config, request.config)?;
        let changed = config != *self.fold.config();
        if changed && frozen && !self.fold.turns().is_empty() {
            let message = "model, instructions, tools, template, reasoning retention and sharing are fixed at the first turn; create another session";
            return Err(Failure::new(Reason::SessionConfigFrozen, message));
        }
        let mut bodies = Vec::new();
        let mut update = Body::SessionUpdated { config: None, mutable: mutable.clone(), revision: None };
        if changed {
            let device = shared.check_config("session.config.", &mut config)?;
            let revision = (config.model != self.fold.config().model).then(|| Box::new(shared.revision(device)));
            let items: Vec<_> = self.fold.items().iter().map(|item| item.item.clone()).collect();
            check_items("initial_items", &items, |_| None)?;
            // What the log begins with depends on the configuration: it is rendered anew.
            if frozen && !self.fold.log().is_empty() {
                let session = self.fold.session().clone();
                let (fold, _) = shared.begin(caller, session, (config.clone(), device), mutable.clone(), None)?;
                let rendered = shared.render(&fold, device, Base::of(&fold), (None, items))?;
                bodies.push(Body::Rebase {
                    keep_until: 0,
                    keep_items: rendered.items.len() as u32,
                    replacement: rendered.runs,
                    cause: "config_changed".to_owned(),
                });
            }
            update = Body::SessionUpdated { config: Some(Box::new(config)), mutable, revision };
            self.device = Some(device);
        }
        bodies.insert(0, update);
        self.write(shared, caller, bodies);
        self.flush(shared, Durability::Power);
        Ok(Reply::Session(Box::new(self.show(shared))))
    }

    pub(super) fn append_items(&mut self, shared: &mut Shared, id: RequestId, caller: &Caller, request: AppendItems) {
        let prefill = request.prefill;
        let result = self.try_append(shared, caller, request);
        let appended = result.is_ok();
        self.reply(shared, id, result);
        if prefill && appended {
            self.run_prefill(shared);
        }
    }

    fn try_append(&mut self, shared: &mut Shared, caller: &Caller, request: AppendItems) -> Result<Reply, Failure> {
        let digest = meaning("append", &(&request.items, request.prefill));
        let mark = request.request_id.map(|id| RequestMark { id, digest });
        if let Some(mark) = &mark
            && let Some((digest, used)) = self.fold.mark(&mark.id)
        {
            return match used {
                MarkUse::Items(first, last) if digest == mark.digest => {
                    let items = self.fold.items().iter().filter(|item| (first..=last).contains(&item.number));
                    Ok(Reply::Items(Page { elements: items.cloned().collect(), next_page_token: String::new() }))
                }
                _ => Err(reused(&mark.id)),
            };
        }
        if shared.draining {
            return Err(draining());
        }
        if request.items.is_empty() {
            return Err(Failure::field(Reason::InvalidArgument, "items", "at least one item is needed"));
        }
        match self.fold.state() {
            SessionState::RequiresAction => {
                let turn = self.fold.current().and_then(|progress| self.fold.turn(progress.number));
                let open = turn.into_iter().flat_map(|turn| &turn.required_calls).filter(|call| !call.answered);
                let ids = open.map(|call| call.call_id.clone()).collect();
                return Err(pending_calls(turn.map_or(TurnNumber(0), |turn| turn.number), ids));
            }
            SessionState::Running => return Err(session_busy(&self.fold)),
            SessionState::Idle | SessionState::Suspended | SessionState::Deleting => {}
        }
        let (device, _) = shared.check_revision(&self.fold)?;
        check_items("items", &request.items, |call_id| self.fold.call(call_id))?;
        let base = Base::of(&self.fold);
        let (base, left) = match shared.leave_reasoning(&self.fold, device, base, &request.items) {
            Some((base, left)) => (base, Some(left)),
            None => (base, None),
        };
        let Rendered { items, runs } = shared.render(&self.fold, device, base, (None, request.items))?;
        let elements = items.clone();
        let appended = Body::ItemsAppended { turn: None, items, runs, request: mark };
        self.write(shared, caller, left.into_iter().chain([appended]).collect());
        self.flush(shared, Durability::Power);
        Ok(Reply::Items(Page { elements, next_page_token: String::new() }))
    }

    /// Requests that change nothing.
    pub(super) fn read(&self, shared: &Shared, request: Request) -> Result<Reply, Failure> {
        match request {
            Request::GetSession(_) => Ok(Reply::Session(Box::new(self.show(shared)))),
            Request::GetTurn { turn, from_sequence, .. } => {
                let missing = || turn_not_found(self.fold.session().as_str(), turn);
                let found = self.fold.turn(turn).ok_or_else(missing)?;
                self.check_position(from_sequence)?;
                let first = if found.first_sequence == 0 { self.fold.sequence() + 1 } else { found.first_sequence };
                Ok(Reply::Turn(Box::new(found.clone()), from_sequence.max(first)))
            }
            Request::Watch { from_sequence, .. } => {
                self.check_position(from_sequence)?;
                self.check_language()?;
                Ok(Reply::Position(if from_sequence == 0 { self.fold.sequence() + 1 } else { from_sequence }))
            }
            Request::ListTurns(ListTurns { page_size, page_token, .. }) => {
                let turns = self.fold.turns();
                page(shared, turns, (page_size, &page_token), false).map(Reply::Turns)
            }
            Request::ListItems(ListItems { page_size, page_token, descending, .. }) => {
                self.check_language()?;
                page(shared, self.fold.items(), (page_size, &page_token), descending).map(Reply::Items)
            }
            Request::CountTokens(count) => {
                let (device, _) = shared.check_revision(&self.fold)?;
                shared.count_after(&self.fold, device, &count.items).map(Reply::Count)
            }
            _ => Err(Failure::new(Reason::Internal, "not a read")),
        }
    }

    fn check_position(&self, from_sequence: u64) -> Result<(), Failure> {
        let next = self.fold.sequence() + 1;
        if from_sequence <= next {
            return Ok(());
        }
        let message = format!("the session's next event is {next}, the request asks for {from_sequence} on");
        Err(Failure::field(Reason::SequenceOutOfRange, "from_sequence", message)
            .with(FailureDetail::Metadata { key: "lastSequence".to_owned(), value: (next - 1).to_string() }))
    }

    /// Items and events of a session whose tokenizer is gone cannot be told.
    fn check_language(&self) -> Result<(), Failure> {
        if self.fold.language().is_some() {
            return Ok(());
        }
        let revision = self.fold.revision();
        let message = format!(
            "model {} with tokenizer {} and template {}, which the session is pinned to, is not served",
            self.fold.config().model,
            revision.tokenizer,
            revision.template
        );
        Err(Failure::new(Reason::ModelRevisionUnavailable, message))
    }

    /// Committed events; never waits.
    pub(super) fn read_events(&self, shared: &mut Shared, id: RequestId, read: &ReadEvents) {
        let result = self.check_language().map(|()| Reply::Events(self.event_batch(read)));
        shared.reply(id, result);
    }

    fn event_batch(&self, read: &ReadEvents) -> EventBatch {
        let (committed, recent) = self.events();
        let oldest = recent.front().map_or(committed + 1, |event| event.sequence).min(committed + 1);
        let from = read.from.max(1);
        let turn = read.turn.and_then(|turn| self.fold.turn(turn));
        let mut batch = EventBatch { next: from, seen: read.seen, ..EventBatch::default() };
        if from < oldest {
            batch.older = true;
            batch.next = oldest;
            return batch;
        }
        let skip = recent.front().map_or(0, |first| from.saturating_sub(first.sequence)) as usize;
        for event in recent.iter().skip(skip).take_while(|event| event.sequence <= committed) {
            if batch.events.len() == read.limit {
                break;
            }
            batch.next = event.sequence + 1;
            if read.turn.is_none_or(|turn| turn == event.turn) {
                batch.events.push(event.clone());
            }
        }
        let caught_up = batch.next > committed;
        let (version, ephemeral) = self.ephemeral();
        if caught_up {
            let mut fresh: Vec<_> = ephemeral
                .values()
                .filter(|(version, event)| {
                    *version > read.seen
                        && read.turn.is_none_or(|turn| turn == event.turn)
                        && self.fold.turn(event.turn).is_some_and(|turn| turn.first_sequence <= committed)
                })
                .collect();
            fresh.sort_unstable_by_key(|(version, _)| *version);
            batch.ephemeral = fresh.into_iter().map(|(_, event)| event.clone()).collect();
            batch.seen = version;
        }
        batch.waiting = self.fold.waiting_since();
        batch.deleted = caught_up && self.fold.is_deleted();
        batch.last = batch.deleted
            || turn.is_some_and(|turn| {
                turn.state.is_terminal() && batch.next > turn.last_sequence && turn.last_sequence <= committed
            });
        batch
    }
}

fn create_meaning(create: &CreateSession) -> holdfast_types::Digest {
    let patch = &create.patch;
    let patch = (&patch.display_name, &patch.labels, patch.expire_time_us, patch.ttl_s, patch.idle_timeout_s);
    meaning("create", &(&create.config, &create.items, patch))
}

fn patch_session(mutable: &mut SessionMutable, patch: SessionPatch, now: TimeUs) {
    let SessionPatch { display_name, labels, expire_time_us, ttl_s, idle_timeout_s } = patch;
    mutable.display_name = display_name.unwrap_or_else(|| mutable.display_name.clone());
    mutable.labels = labels.unwrap_or_else(|| std::mem::take::<BTreeMap<_, _>>(&mut mutable.labels));
    mutable.expire_time_us = expire_time_us.unwrap_or(mutable.expire_time_us).map(|at| at.min(TIME_MAX_US));
    mutable.idle_timeout_s = idle_timeout_s.unwrap_or(mutable.idle_timeout_s);
    if let Some(ttl_s) = ttl_s {
        mutable.expire_time_us = Some(later(now, ttl_s, 1_000_000));
    }
}

/// Applies the named fields; whether one of them is fixed at the first turn.
fn patch_config(config: &mut SessionConfig, patch: Option<ConfigPatch>) -> Result<bool, Failure> {
    let Some(ConfigPatch { fields, values }) = patch else { return Ok(false) };
    let mut frozen = false;
    for field in &fields {
        match field.strip_prefix("config.").unwrap_or(field) {
            "model" => config.model.clone_from(&values.model),
            "instructions" => config.instructions.clone_from(&values.instructions),
            "tools" => config.tools.clone_from(&values.tools),
            "template" => config.template.clone_from(&values.template),
            "reasoning_retention" => config.reasoning_retention = values.reasoning_retention,
            "reasoning_effort" => config.reasoning_effort = values.reasoning_effort,
            "sharing" => config.sharing = values.sharing,
            "numerics_policy" => {
                config.numerics_policy = values.numerics_policy;
                continue;
            }
            "sampling" => {
                config.sampling = values.sampling.clone();
                continue;
            }
            other => {
                let problem = format!("{other:?} is no field that can be changed");
                return Err(Failure::field(Reason::InvalidArgument, "update_mask", problem));
            }
        }
        frozen = true;
    }
    Ok(frozen)
}

/// A page of a list whose element n is at n − 1. Its token is the number of the last element before it.
fn page<T: Clone>(
    shared: &Shared,
    all: &[T],
    (size, token): (u32, &str),
    descending: bool,
) -> Result<Page<T>, Failure> {
    let size = page_size(size, shared.settings.limits.page_size);
    let place = if token.is_empty() { None } else { Some(token.parse::<usize>().ok().filter(|&at| at <= all.len())) };
    let wrong = || Failure::field(Reason::InvalidPageToken, "page_token", "not a token of this listing");
    let (elements, rest): (Vec<T>, Option<usize>) = if descending {
        let end = match place {
            None => all.len(),
            Some(at) => at.and_then(|at| at.checked_sub(1)).ok_or_else(wrong)?,
        };
        let start = end.saturating_sub(size);
        (all[start..end].iter().rev().cloned().collect(), (start > 0).then_some(start + 1))
    } else {
        let start = place.map_or(Ok(0), |at| at.ok_or_else(wrong))?;
        let end = start.saturating_add(size).min(all.len());
        (all[start..end].to_vec(), (end < all.len()).then_some(end))
    };
    Ok(Page { elements, next_page_token: rest.map(|at| at.to_string()).unwrap_or_default() })
}

/// The size of a page: what was asked for, within the limit.
pub(crate) fn page_size(asked: u32, limit: u32) -> usize {
    (if asked == 0 { DEFAULT_PAGE } else { asked }).min(limit).max(1) as usize
}

/// `YYYY-MM-DD` of a time, in UTC. Days to a civil date as in Howard Hinnant, "chrono-compatible low-level date algorithms".
fn date(now: TimeUs) -> String {
    let days = (now / 86_400_000_000) as i64 + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

pub(super) fn not_found(session: &SessionId) -> Failure {
    Failure::resource(
        Reason::SessionNotFound,
        format!("sessions/{session}"),
        format!("there is no session {session}; create it first"),
    )
}

pub(super) fn deleted(session: &SessionId) -> Failure {
    Failure::resource(Reason::SessionDeleted, format!("sessions/{session}"), format!("session {session} was deleted"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_civil_ones() {
        for (seconds, text) in [(0, "1970-01-01"), (951_782_400, "2000-02-29"), (1_795_132_800, "2026-11-20")] {
            assert_eq!(date(seconds * 1_000_000), text);
        }
    }
}
