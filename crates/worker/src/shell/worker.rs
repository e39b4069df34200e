//! The trait's methods: each asks the core and unwraps its reply.
//!
//! Deliberately not here: checks of requests (the core's and the gateway's).

use std::sync::atomic::Ordering;

use async_trait::async_trait;
use holdfast_journal::HeadFilter;
use holdfast_types::{Failure, FailureDetail, NumberedItem, Reason, SessionId, Turn, TurnNumber};
use holdfast_worker_api::{
    AppendItems, Caller, CancelTurn, CompletionStream, CountTokens, CreateSession, EventStream, Generate, ListItems,
    ListSessions, ListTurns, ModelInfo, Page, RuntimeInfo, Session, StartTurn, SubmitToolResults, TokenCount,
    TurnStream, UpdateSession, Worker,
};

use super::follow::{Following, completion, follow};
use super::{LocalWorker, lock};
use crate::core::{Reply, Request, page_size};

fn mismatch() -> Failure {
    Failure::new(Reason::Internal, "a reply of another kind than its request")
}

macro_rules! expect {
    ($reply:expr, $pattern:pat => $value:expr) => {
        match $reply {
            $pattern => Ok($value),
            _ => Err(mismatch()),
        }
    };
}

impl LocalWorker {
    async fn turn(&self, caller: &Caller, request: Request) -> Result<(Turn, u64), Failure> {
        expect!(self.inner.ask(caller, request).await?, Reply::Turn(turn, from) => (*turn, from))
    }

    async fn session(&self, caller: &Caller, request: Request) -> Result<Session, Failure> {
        expect!(self.inner.ask(caller, request).await?, Reply::Session(session) => *session)
    }

    fn check_streams(&self) -> Result<(), Failure> {
        let limit = self.inner.settings.limits.open_streams;
        if self.inner.streams.load(Ordering::Relaxed) < limit.into() {
            return Ok(());
        }
        Err(Failure::limit("open_streams", limit.into(), u64::from(limit) + 1)
            .with(FailureDetail::RetryAfter { ms: 1_000 }))
    }

    fn follow_turn(
        &self,
        caller: &Caller,
        session: SessionId,
        (turn, from): (Turn, u64),
        owns_turn: bool,
    ) -> TurnStream {
        let following = Following { caller: caller.clone(), session, turn: Some(turn.number), from, owns_turn };
        TurnStream { turn, events: follow(&self.inner, following) }
    }
}

#[async_trait]
impl Worker for LocalWorker {
    async fn create_session(&self, caller: &Caller, request: CreateSession) -> Result<Session, Failure> {
        self.session(caller, Request::CreateSession(request)).await
    }

    async fn get_session(&self, caller: &Caller, session: &SessionId) -> Result<Session, Failure> {
        self.session(caller, Request::GetSession(session.clone())).await
    }

    async fn list_sessions(&self, caller: &Caller, request: ListSessions) -> Result<Page<Session>, Failure> {
        let wrong = |_| Failure::field(Reason::InvalidPageToken, "page_token", "not a token of this listing");
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(SessionId::parse(token).map_err(wrong)?),
        };
        let size = page_size(request.page_size, self.inner.settings.limits.page_size);
        let filter = HeadFilter { states: request.states, labels: request.labels, model: request.model };
        let (journal, tenant) = (self.inner.journal.clone(), caller.tenant.clone());
        let heads = tokio::task::spawn_blocking(move || journal.list(&tenant, &filter, after.as_ref(), size + 1)).await;
        let unavailable = |error: String| Failure::new(Reason::JournalUnavailable, error);
        let mut heads = heads.map_err(|e| unavailable(e.to_string()))?.map_err(|e| unavailable(e.to_string()))?;
        let more = heads.len() > size;
        heads.truncate(size);
        let next_page_token = heads.last().filter(|_| more).map(|head| head.session.to_string()).unwrap_or_default();
        let mut elements = Vec::with_capacity(heads.len());
        for head in heads {
            match self.get_session(caller, &head.session).await {
                Ok(session) => elements.push(session),
                // Deleted since it was listed.
                Err(failure) if failure.reason == Reason::SessionNotFound => {}
                // One damaged session must not hide the others; the operator is told, and so is whoever asks for it.
                Err(failure) if failure.reason == Reason::JournalCorrupt => {
                    tracing::error!(session = %head.session, %failure, "left out of a listing");
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(Page { elements, next_page_token })
    }

    async fn update_session(&self, caller: &Caller, request: UpdateSession) -> Result<Session, Failure> {
        self.session(caller, Request::UpdateSession(request)).await
    }

    async fn delete_session(
        &self,
        caller: &Caller,
        session: &SessionId,
        etag: Option<String>,
    ) -> Result<Session, Failure> {
        self.session(caller, Request::DeleteSession { session: session.clone(), etag }).await
    }

    async fn start_turn(&self, caller: &Caller, request: StartTurn) -> Result<Turn, Failure> {
        Ok(self.turn(caller, Request::StartTurn(request)).await?.0)
    }

    async fn run_turn(&self, caller: &Caller, request: StartTurn) -> Result<TurnStream, Failure> {
        self.check_streams()?;
        let session = request.session.clone();
        let turn = self.turn(caller, Request::StartTurn(request)).await?;
        Ok(self.follow_turn(caller, session, turn, true))
    }

    async fn submit_tool_results(&self, caller: &Caller, request: SubmitToolResults) -> Result<Turn, Failure> {
        Ok(self.turn(caller, Request::SubmitToolResults(request)).await?.0)
    }

    async fn continue_turn(&self, caller: &Caller, request: SubmitToolResults) -> Result<TurnStream, Failure> {
        self.check_streams()?;
        let session = request.session.clone();
        let turn = self.turn(caller, Request::SubmitToolResults(request)).await?;
        Ok(self.follow_turn(caller, session, turn, true))
    }

    async fn attach_turn(
        &self,
        caller: &Caller,
        session: &SessionId,
        turn: TurnNumber,
        from_sequence: u64,
    ) -> Result<TurnStream, Failure> {
        self.check_streams()?;
        let request = Request::GetTurn { session: session.clone(), turn, from_sequence };
        let turn = self.turn(caller, request).await?;
        Ok(self.follow_turn(caller, session.clone(), turn, false))
    }

    async fn watch_session(
        &self,
        caller: &Caller,
        session: &SessionId,
        from_sequence: u64,
    ) -> Result<EventStream, Failure> {
        self.check_streams()?;
        let request = Request::Watch { session: session.clone(), from_sequence };
        let from = expect!(self.inner.ask(caller, request).await?, Reply::Position(from) => from)?;
        let session = session.clone();
        Ok(follow(&self.inner, Following { caller: caller.clone(), session, turn: None, from, owns_turn: false }))
    }

    async fn cancel_turn(&self, caller: &Caller, request: CancelTurn) -> Result<Turn, Failure> {
        Ok(self.turn(caller, Request::CancelTurn(request)).await?.0)
    }

    async fn get_turn(&self, caller: &Caller, session: &SessionId, turn: TurnNumber) -> Result<Turn, Failure> {
        let request = Request::GetTurn { session: session.clone(), turn, from_sequence: 0 };
        Ok(self.turn(caller, request).await?.0)
    }

    async fn list_turns(&self, caller: &Caller, request: ListTurns) -> Result<Page<Turn>, Failure> {
        expect!(self.inner.ask(caller, Request::ListTurns(request)).await?, Reply::Turns(page) => page)
    }

    async fn list_items(&self, caller: &Caller, request: ListItems) -> Result<Page<NumberedItem>, Failure> {
        expect!(self.inner.ask(caller, Request::ListItems(request)).await?, Reply::Items(page) => page)
    }

    async fn append_items(&self, caller: &Caller, request: AppendItems) -> Result<Vec<NumberedItem>, Failure> {
        expect!(self.inner.ask(caller, Request::AppendItems(request)).await?, Reply::Items(page) => page.elements)
    }

    async fn generate(&self, caller: &Caller, request: Generate) -> Result<CompletionStream, Failure> {
        self.check_streams()?;
        let reply = self.inner.ask(caller, Request::Generate(request)).await?;
        let id = expect!(reply, Reply::Completion(id) => id)?;
        Ok(completion(&self.inner, caller.clone(), id))
    }

    async fn count_tokens(&self, caller: &Caller, request: CountTokens) -> Result<TokenCount, Failure> {
        expect!(self.inner.ask(caller, Request::CountTokens(request)).await?, Reply::Count(count) => count)
    }

    async fn list_models(&self, _caller: &Caller) -> Result<Vec<ModelInfo>, Failure> {
        let models = self.inner.devices.iter().map(|device| {
            let mut info = device.info.clone();
            info.kv_blocks = (device.kv_blocks)();
            info
        });
        Ok(models.collect())
    }

    async fn runtime(&self, caller: &Caller) -> Result<RuntimeInfo, Failure> {
        let stats = *lock(&self.inner.stats);
        let settings = &self.inner.settings;
        Ok(RuntimeInfo {
            version: settings.version.clone(),
            build: settings.build.clone(),
            features: settings.features.clone(),
            limits: settings.limits.clone(),
            models: self.list_models(caller).await?,
            sessions_loaded: stats.sessions_idle
                + stats.sessions_running
                + stats.sessions_requires_action
                + stats.sessions_deleting,
            turns_in_progress: stats.turns_in_progress,
            started_us: self.inner.started_us,
            draining: stats.draining,
        })
    }
}
