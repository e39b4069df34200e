//! CompletionService: the stateless yardstick.

use std::sync::Arc;

use holdfast_contracts::v1;
use holdfast_contracts::v1::completion_service_server::CompletionService;
use holdfast_types::{Failure, Limits, SessionConfig};
use holdfast_worker_api::Generate;
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status, async_trait};

use crate::convert;
use crate::edge::Edge;
use crate::field::Field;
use crate::stream::{Events, Replies, StreamKind};

/// The service.
pub(crate) struct Completions(pub(crate) Arc<Edge>);

#[async_trait]
impl CompletionService for Completions {
    type GenerateStream = Replies;

    async fn generate(&self, request: Request<v1::GenerateRequest>) -> Result<Response<Replies>, Status> {
        let edge = &self.0;
        let method = "holdfast.v1.CompletionService/Generate";
        edge.stream(method, StreamKind::OfTurn, request, |caller, request| async move {
            let events = edge.worker.generate(&caller, parse(&edge.limits, request)?).await?;
            let mut last_sequence = 0;
            let events: Events = Box::pin(
                events.map(move |event| event.map(|event| convert::event::of_completion(&mut last_sequence, &event))),
            );
            Ok(events)
        })
        .await
    }
}

/// Reads Generate.
pub(crate) fn parse(limits: &Limits, request: v1::GenerateRequest) -> Result<Generate, Failure> {
    let items_field = Field::Root("items");
    let items = convert::item::items(limits, items_field, request.items)?;
    if items.is_empty() {
        return Err(convert::item::empty_turn(items_field));
    }
    let start = v1::ConversationStart {
        model: request.model,
        instructions: request.instructions,
        tools: request.tools,
        template: request.template,
        reasoning_effort: request.reasoning_effort,
    };
    let sampling = convert::sampling::overrides(limits, Field::Root("sampling"), request.sampling)?;
    Ok(Generate {
        config: SessionConfig { sampling, ..convert::session::start(limits, Field::Request, start)? },
        items,
        allowed_tools: convert::tool::allowed(limits, Field::Root("allowed_tools"), request.allowed_tools)?,
        tool_choice: convert::tool::choice(Field::Root("tool_choice"), request.tool_choice)?,
        single_call: request.parallel_tool_calls == Some(false),
        constraint: convert::constraint::constraint(limits, Field::Root("constraint"), request.constraint)?,
        deadline_ms: convert::turn::deadline(Field::Root("turn_deadline"), request.turn_deadline)?,
    })
}
