//! Turns that cannot be: empty, contradictory, too long, in the way of another, too late.

use holdfast_client::{items, v1};
use prost_types::Duration;
use tonic::Status;
use v1::constraint::Kind;
use v1::content_part::Part;

use crate::ground::{Ground, Row, rows};
use crate::support::talk;

pub(crate) const ROWS: &[Row] = rows! {
    "a turn without input" => InvalidArgument, "EMPTY_TURN", "BadRequest `input`", |ground|
        ground.given(Vec::new());
    "an item without a kind" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `input[0]`", |ground|
        ground.given(vec![v1::Item::default()]);
    "a message without a role" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `input[0].message.role`", |ground|
        ground.given(vec![items::message(v1::Role::Unspecified, "Hello")]);
    "a message without content" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `input[0].message.content`", |ground|
        ground.given(vec![message(Vec::new())]);
    "a content part without a kind" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `input[0].message.content[0]`", |ground|
        ground.given(vec![message(vec![v1::ContentPart { part: None }])]);
    "an item with an output-only name" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `input[0].name`", |ground|
        ground.given(vec![v1::Item { name: "sessions/a/items/1".to_owned(), ..items::user("Hello") }]);
    "input that does not fit into the context" => FailedPrecondition, "CONTEXT_OVERFLOW", "PreconditionFailure; metadata `limitTokens`, `usedTokens`, `wantedTokens`", |ground|
        ground.given(vec![items::user("far too long ".repeat(1_000))]);
    "a constraint without a form" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `options.constraint`", |ground|
        constrained(ground, None);
    "a JSON schema that is not JSON" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `options.constraint.json_schema`", |ground|
        constrained(ground, Some(Kind::JsonSchema("{\"type\":".to_owned())));
    "a JSON schema that nothing satisfies" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `options.constraint.json_schema`", |ground|
        constrained(ground, Some(Kind::JsonSchema(r#"{"type":"string","enum":[1]}"#.to_owned())));
    "a JSON schema with a keyword that cannot be held to" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `options.constraint.json_schema`", |ground|
        constrained(ground, Some(Kind::JsonSchema(r#"{"items":{"not":{}}}"#.to_owned())));
    "an expression that is none" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `options.constraint.regex`", |ground|
        constrained(ground, Some(Kind::Regex("(".to_owned())));
    "a grammar without a start" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `options.constraint.grammar`", |ground|
        constrained(ground, Some(Kind::Grammar("end: \"a\"".to_owned())));
    "a choice among nothing" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `options.constraint.choice`", |ground|
        constrained(ground, Some(Kind::Choice(v1::ChoiceConstraint::default())));
    "continue_last where nothing is partial" => InvalidArgument, "EMPTY_TURN", "BadRequest `input`", |ground| async {
        let (session, _) = ground.talked().await;
        let options = v1::TurnOptions { continue_last: true, ..Default::default() };
        let request = v1::RunTurnRequest { session, options: Some(options), ..Default::default() };
        talk::run(&ground.client, request).await
    };
    "continue_last with input" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `options.continue_last`", |ground|
        ground.optioned(v1::TurnOptions { continue_last: true, ..Default::default() });
    "continue_last with discard_partial" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `options.discard_partial`", |ground| async {
        let (session, _) = ground.talked().await;
        let options = v1::TurnOptions { continue_last: true, discard_partial: true, ..Default::default() };
        let request = v1::RunTurnRequest { session, options: Some(options), ..Default::default() };
        talk::run(&ground.client, request).await
    };
    "a turn while another one runs" => Aborted, "SESSION_BUSY", "ResourceInfo `Turn`; RetryInfo", |ground| async {
        let (session, _) = ground.busy().await;
        talk::run(&ground.client, talk::says(&session, "Hello")).await
    };
    "AppendItems while a turn runs" => Aborted, "SESSION_BUSY", "ResourceInfo `Turn`; RetryInfo", |ground| async {
        let (session, _) = ground.busy().await;
        append(ground, session, vec![items::user("Hello")]).await
    };
    "AppendItems without items" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `items`", |ground| async {
        append(ground, ground.session().await, Vec::new()).await
    };
    "more queued turns than a session may have" => ResourceExhausted, "QUEUE_FULL", "QuotaFailure `limits.queued_turns_per_session`; RetryInfo; metadata `retryAfterMs`", |ground| async {
        let (session, _) = ground.busy().await;
        for _ in 0..2 {
            queued(ground, &session).await?;
        }
        queued(ground, &session).await
    };
    "more turns in progress than the runtime may have" => ResourceExhausted, "QUEUE_FULL", "QuotaFailure `limits.turns_in_progress`; RetryInfo; metadata `retryAfterMs`", |ground| async {
        // All at once, so that none has ended when the last one begins.
        let mut sessions = Vec::new();
        for _ in 0..7 {
            sessions.push(ground.session().await);
        }
        let last = sessions.pop().unwrap_or_default();
        let mut starts = tokio::task::JoinSet::new();
        for session in sessions {
            let client = ground.client.clone();
            starts.spawn(async move { talk::start(&client, talk::says_with(&session, "Hello", talk::long(900))).await });
        }
        while let Some(started) = starts.join_next().await {
            started.unwrap()?;
        }
        talk::run(&ground.client, talk::says(&last, "Hello")).await
    };
    "expected_last_turn that another writer has passed" => Aborted, "TURN_MISMATCH", "metadata `lastTurn`", |ground| async {
        let (session, _) = ground.talked().await;
        let options = v1::TurnOptions { expected_last_turn: Some(0), ..Default::default() };
        talk::run(&ground.client, v1::RunTurnRequest { options: Some(options), ..talk::says(&session, "Hello") }).await
    };
    "a request id that was used for another turn" => AlreadyExists, "REQUEST_ID_REUSED", "BadRequest `request_id`", |ground| async {
        let session = ground.session().await;
        let asked = |text: &str| v1::RunTurnRequest { request_id: "ask-1".to_owned(), ..talk::says(&session, text) };
        talk::run_to_end(&ground.client, asked("Hello")).await?;
        talk::run(&ground.client, asked("Good bye")).await
    };
    "a turn deadline of zero" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `options.turn_deadline`", |ground|
        ground.optioned(v1::TurnOptions { turn_deadline: Some(Duration::default()), ..Default::default() });
    "a turn deadline of 300,000 years" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `options.turn_deadline`", |ground|
        ground.optioned(v1::TurnOptions { turn_deadline: Some(Duration { seconds: i64::MAX, nanos: 0 }), ..Default::default() });
    "CancelTurn of a turn that has ended" => FailedPrecondition, "TURN_NOT_RUNNING", "PreconditionFailure", |ground| async {
        let (_, turn) = ground.talked().await;
        talk::cancel(&ground.client, &turn).await
    };
    "a session deleted while somebody watches it" => NotFound, "SESSION_DELETED", "ResourceInfo `Session`", |ground| async {
        let session = ground.session().await;
        let request = v1::WatchSessionRequest { name: session.clone(), from_sequence: 0 };
        let stream = ground.client.sessions().watch_session(request).await?;
        talk::delete(&ground.client, &session).await?;
        talk::hear(stream.into_inner()).await
    };
    "Generate without history" => InvalidArgument, "EMPTY_TURN", "BadRequest `items`", |ground| async {
        talk::hear(ground.client.completions().generate(v1::GenerateRequest::default()).await?.into_inner()).await
    };
    "Generate with a history that does not fit into the context" => FailedPrecondition, "CONTEXT_OVERFLOW", "PreconditionFailure; metadata `limitTokens`, `usedTokens`, `wantedTokens`", |ground| async {
        let items = vec![items::user("far too long ".repeat(1_000))];
        let request = v1::GenerateRequest { items, ..Default::default() };
        talk::hear(ground.client.completions().generate(request).await?.into_inner()).await
    };
};

fn message(content: Vec<v1::ContentPart>) -> v1::Item {
    let message = v1::Message { role: v1::Role::User.into(), content };
    v1::Item { kind: Some(v1::item::Kind::Message(message)), ..Default::default() }
}

/// A message of one part.
pub(crate) fn of_part(part: Part) -> v1::Item {
    message(vec![v1::ContentPart { part: Some(part) }])
}

async fn append(ground: &Ground, session: String, items: Vec<v1::Item>) -> Result<(), Status> {
    let request = v1::AppendItemsRequest { session, items, ..Default::default() };
    ground.client.sessions().append_items(request).await.map(drop)
}

async fn queued(ground: &Ground, session: &str) -> Result<v1::Turn, Status> {
    let options = v1::TurnOptions { on_busy: v1::OnBusy::Queue.into(), ..Default::default() };
    talk::start(&ground.client, v1::RunTurnRequest { options: Some(options), ..talk::says(session, "Hello") }).await
}

async fn constrained(ground: &Ground, kind: Option<Kind>) -> Result<(), Status> {
    ground.optioned(v1::TurnOptions { constraint: Some(v1::Constraint { kind }), ..Default::default() }).await
}
