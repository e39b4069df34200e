//! SessionService: sessions, turns and items.

use std::sync::Arc;

use holdfast_contracts::v1;
use holdfast_contracts::v1::session_service_server::SessionService;
use holdfast_types::{Failure, Limits, NumberedItem, SessionId, Turn};
use holdfast_worker_api::{AppendItems, CancelTurn, EventStream, ListItems, ListSessions, ListTurns, Session};
use prost::Message as _;
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status, async_trait};

use crate::convert::turn::Run;
use crate::edge::{self, Edge};
use crate::field::Field;
use crate::names::Home;
use crate::paging::Seal;
use crate::stream::{Events, Replies, StreamKind};
use crate::telemetry::{note_session, note_turn};
use crate::{convert, filter, limits, names, paging, unimplemented};

/// Bytes that a session's answer may hold beyond what the client wrote: names, times, digests, counts.
const SESSION_OVERHEAD_BYTES: usize = 16 * 1024;

/// Bytes that an item of an answer may hold beyond what the client wrote: its names, state and range.
const ITEM_OVERHEAD_BYTES: usize = 512;

/// The service.
pub(crate) struct Sessions(pub(crate) Arc<Edge>);

#[async_trait]
impl SessionService for Sessions {
    type RunTurnStream = Replies;
    type AttachTurnStream = Replies;
    type WatchSessionStream = Replies;

    async fn create_session(
        &self,
        request: Request<v1::CreateSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let edge = &self.0;
        edge.unary("holdfast.v1.SessionService/CreateSession", request, |caller, request| async move {
            let size = request.session.as_ref().map_or(0, v1::Session::encoded_len) + SESSION_OVERHEAD_BYTES;
            answerable(&edge.limits, size)?;
            let request = convert::session::create(&edge.limits, request)?;
            let session = edge.worker.create_session(&caller, request).await?;
            note_session(&session.id);
            Ok(convert::session::session(&session))
        })
        .await
    }

    async fn get_session(&self, request: Request<v1::GetSessionRequest>) -> Result<Response<v1::Session>, Status> {
        let edge = &self.0;
        edge.unary("holdfast.v1.SessionService/GetSession", request, |caller, request| async move {
            let session = session_name("name", &request.name)?;
            Ok(convert::session::session(&edge.worker.get_session(&caller, &session).await?))
        })
        .await
    }

    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        let edge = &self.0;
        edge.unary("holdfast.v1.SessionService/ListSessions", request, |caller, request| async move {
            let filter = filter::parse(&edge.limits, &request.filter)?;
            let seal = Seal::of(&["sessions", &request.filter]);
            let asked = ListSessions {
                page_size: paging::size(&edge.limits, request.page_size),
                page_token: seal.open(request.page_token)?,
                states: filter.state.into_iter().collect(),
                labels: filter.labels,
                model: filter.model,
            };
            let ask = |page_size| edge.worker.list_sessions(&caller, ListSessions { page_size, ..asked.clone() });
            let convert = |session: &Session| convert::session::session(session);
            let (sessions, next_page_token) = paging::page(&edge.limits, asked.page_size, ask, convert).await?;
            Ok(v1::ListSessionsResponse { sessions, next_page_token: seal.close(next_page_token) })
        })
        .await
    }

    async fn update_session(
        &self,
        request: Request<v1::UpdateSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let edge = &self.0;
        edge.unary("holdfast.v1.SessionService/UpdateSession", request, |caller, request| async move {
            let size = request.session.as_ref().map_or(0, v1::Session::encoded_len) + SESSION_OVERHEAD_BYTES;
            answerable(&edge.limits, size)?;
            let request = convert::update::update(&edge.limits, request)?;
            note_session(&request.session);
            Ok(convert::session::session(&edge.worker.update_session(&caller, request).await?))
        })
        .await
    }

    async fn delete_session(
        &self,
        request: Request<v1::DeleteSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let edge = &self.0;
        edge.unary("holdfast.v1.SessionService/DeleteSession", request, |caller, request| async move {
            let session = session_name("name", &request.name)?;
            let etag = convert::update::etag(Field::Root("etag"), request.etag)?;
            Ok(convert::session::session(&edge.worker.delete_session(&caller, &session, etag).await?))
        })
        .await
    }

    async fn fork_session(&self, request: Request<v1::ForkSessionRequest>) -> Result<Response<v1::Session>, Status> {
        let refuse = |_, _| async { Err(unimplemented::method("ForkSession")) };
        self.0.unary("holdfast.v1.SessionService/ForkSession", request, refuse).await
    }

    async fn suspend_session(
        &self,
        request: Request<v1::SuspendSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let refuse = |_, _| async { Err(unimplemented::method("SuspendSession")) };
        self.0.unary("holdfast.v1.SessionService/SuspendSession", request, refuse).await
    }

    async fn run_turn(&self, request: Request<v1::RunTurnRequest>) -> Result<Response<Replies>, Status> {
        let edge = &self.0;
        let method = "holdfast.v1.SessionService/RunTurn";
        edge.stream(method, StreamKind::OfTurn, request, |caller, request| async move {
            let (session, stream) = match convert::turn::run(&edge.limits, request)? {
                Run::Start(turn) => {
                    note_session(&turn.session);
                    (turn.session.clone(), edge.worker.run_turn(&caller, *turn).await?)
                }
                Run::Continue(results) => {
                    note_session(&results.session);
                    (results.session.clone(), edge.worker.continue_turn(&caller, results).await?)
                }
            };
            note_turn(stream.turn.number);
            Ok(events(session, stream.events))
        })
        .await
    }

    async fn create_turn(&self, request: Request<v1::CreateTurnRequest>) -> Result<Response<v1::Turn>, Status> {
        let edge = &self.0;
        edge.unary("holdfast.v1.SessionService/CreateTurn", request, |caller, request| async move {
            let request = convert::turn::start(&edge.limits, request)?;
            let session = request.session.clone();
            note_session(&session);
            let turn = edge.worker.start_turn(&caller, request).await?;
            note_turn(turn.number);
            Ok(convert::turn::of_session(&session, &turn))
        })
        .await
    }

    async fn submit_tool_results(
        &self,
        request: Request<v1::SubmitToolResultsRequest>,
    ) -> Result<Response<v1::Turn>, Status> {
        let edge = &self.0;
        edge.unary("holdfast.v1.SessionService/SubmitToolResults", request, |caller, request| async move {
            let request = convert::turn::submit(&edge.limits, request)?;
            let session = request.session.clone();
            note_session(&session);
            let turn = edge.worker.submit_tool_results(&caller, request).await?;
            note_turn(turn.number);
            Ok(convert::turn::of_session(&session, &turn))
        })
        .await
    }

    async fn attach_turn(&self, request: Request<v1::AttachTurnRequest>) -> Result<Response<Replies>, Status> {
        let edge = &self.0;
        let method = "holdfast.v1.SessionService/AttachTurn";
        edge.stream(method, StreamKind::OfTurn, request, |caller, request| async move {
            let (session, turn) = names::parse_turn(Field::Root("name"), &request.name)?;
            note_session(&session);
            note_turn(turn);
            let stream = edge.worker.attach_turn(&caller, &session, turn, request.from_sequence).await?;
            Ok(events(session, stream.events))
        })
        .await
    }

    async fn watch_session(&self, request: Request<v1::WatchSessionRequest>) -> Result<Response<Replies>, Status> {
        let edge = &self.0;
        let method = "holdfast.v1.SessionService/WatchSession";
        edge.stream(method, StreamKind::Endless, request, |caller, request| async move {
            let session = session_name("name", &request.name)?;
            let stream = edge.worker.watch_session(&caller, &session, request.from_sequence).await?;
            Ok(events(session, stream))
        })
        .await
    }

    async fn cancel_turn(&self, request: Request<v1::CancelTurnRequest>) -> Result<Response<v1::Turn>, Status> {
        let edge = &self.0;
        edge.unary("holdfast.v1.SessionService/CancelTurn", request, |caller, request| async move {
            let (session, turn) = names::parse_turn(Field::Root("name"), &request.name)?;
            note_session(&session);
            note_turn(turn);
            let request = CancelTurn { session: session.clone(), turn: Some(turn) };
            Ok(convert::turn::of_session(&session, &edge.worker.cancel_turn(&caller, request).await?))
        })
        .await
    }

    async fn get_turn(&self, request: Request<v1::GetTurnRequest>) -> Result<Response<v1::Turn>, Status> {
        let edge = &self.0;
        edge.unary("holdfast.v1.SessionService/GetTurn", request, |caller, request| async move {
            let (session, turn) = names::parse_turn(Field::Root("name"), &request.name)?;
            note_session(&session);
            note_turn(turn);
            let turn = edge.worker.get_turn(&caller, &session, turn).await?;
            let mut answer = convert::turn::of_session(&session, &turn);
            if request.include_modelled_cost {
                convert::turn::add_modelled_cost(&mut answer, &turn);
            }
            Ok(answer)
        })
        .await
    }

    async fn list_turns(
        &self,
        request: Request<v1::ListTurnsRequest>,
    ) -> Result<Response<v1::ListTurnsResponse>, Status> {
        let edge = &self.0;
        edge.unary("holdfast.v1.SessionService/ListTurns", request, |caller, request| async move {
            let seal = Seal::of(&["turns", &request.session]);
            let asked = ListTurns {
                session: session_name("session", &request.session)?,
                page_size: paging::size(&edge.limits, request.page_size),
                page_token: seal.open(request.page_token)?,
            };
            let ask = |page_size| edge.worker.list_turns(&caller, ListTurns { page_size, ..asked.clone() });
            let convert = |turn: &Turn| convert::turn::of_session(&asked.session, turn);
            let (turns, next_page_token) = paging::page(&edge.limits, asked.page_size, ask, convert).await?;
            Ok(v1::ListTurnsResponse { turns, next_page_token: seal.close(next_page_token) })
        })
        .await
    }

    async fn list_items(
        &self,
        request: Request<v1::ListItemsRequest>,
    ) -> Result<Response<v1::ListItemsResponse>, Status> {
        let edge = &self.0;
        edge.unary("holdfast.v1.SessionService/ListItems", request, |caller, request| async move {
            let order = if request.newest_first { "newest first" } else { "oldest first" };
            let seal = Seal::of(&["items", &request.session, order]);
            let asked = ListItems {
                session: session_name("session", &request.session)?,
                page_size: paging::size(&edge.limits, request.page_size),
                page_token: seal.open(request.page_token)?,
                descending: request.newest_first,
            };
            let ask = |page_size| edge.worker.list_items(&caller, ListItems { page_size, ..asked.clone() });
            let convert = |item: &NumberedItem| convert::item::numbered(Home::Session(&asked.session), item);
            let (items, next_page_token) = paging::page(&edge.limits, asked.page_size, ask, convert).await?;
            Ok(v1::ListItemsResponse { items, next_page_token: seal.close(next_page_token) })
        })
        .await
    }

    async fn append_items(
        &self,
        request: Request<v1::AppendItemsRequest>,
    ) -> Result<Response<v1::AppendItemsResponse>, Status> {
        let edge = &self.0;
        edge.unary("holdfast.v1.SessionService/AppendItems", request, |caller, request| async move {
            answerable(&edge.limits, request.encoded_len() + request.items.len() * ITEM_OVERHEAD_BYTES)?;
            let request = append(&edge.limits, request)?;
            let session = request.session.clone();
            note_session(&session);
            let items = edge.worker.append_items(&caller, request).await?;
            let items = items.iter().map(|item| convert::item::numbered(Home::Session(&session), item)).collect();
            Ok(v1::AppendItemsResponse { items })
        })
        .await
    }
}

/// Reads AppendItems.
pub(crate) fn append(limits: &Limits, request: v1::AppendItemsRequest) -> Result<AppendItems, Failure> {
    let session = names::parse_session(Field::Root("session"), &request.session)?;
    let field = Field::Root("items");
    let items = convert::item::items(limits, field, request.items)?;
    if items.is_empty() {
        return Err(field.invalid("needs at least one item"));
    }
    let request_id = limits::request_id(limits, request.request_id)?;
    Ok(AppendItems { session, items, prefill: request.prefill, request_id })
}

/// Refuses a request whose answer, which repeats it, would not fit into a message: done work must be answerable.
fn answerable(limits: &Limits, answer_bytes: usize) -> Result<(), Failure> {
    let size = u64::try_from(answer_bytes).unwrap_or(u64::MAX);
    if size <= u64::from(limits.reply_bytes) {
        Ok(())
    } else {
        Err(edge::too_large("reply_bytes", limits.reply_bytes, size))
    }
}

fn session_name(field: &'static str, text: &str) -> Result<SessionId, Failure> {
    let session = names::parse_session(Field::Root(field), text)?;
    note_session(&session);
    Ok(session)
}

fn events(session: SessionId, events: EventStream) -> Events {
    Box::pin(events.map(move |event| event.map(|event| convert::event::of_session(&session, &event))))
}
