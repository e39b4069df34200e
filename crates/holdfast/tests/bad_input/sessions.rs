//! Sessions made, changed and deleted wrongly.

use holdfast_client::{items, v1};
use prost_types::{Duration, Timestamp};
use tonic::Status;
use v1::session::Expiration;

use crate::ground::{Ground, Row, rows};
use crate::support::talk;

pub(crate) const ROWS: &[Row] = rows! {
    "CreateSession with an id that is taken" => AlreadyExists, "SESSION_EXISTS", "ResourceInfo `Session`", |ground| async {
        create(ground, "taken-already", "", "a").await?;
        create(ground, "taken-already", "", "a").await
    };
    "CreateSession with a request id that was used for another body" => AlreadyExists, "REQUEST_ID_REUSED", "BadRequest `request_id`", |ground| async {
        create(ground, "made-once", "first", "a").await?;
        create(ground, "made-once", "first", "b").await
    };
    "UpdateSession with a foreign etag" => Aborted, "ETAG_MISMATCH", "metadata `etag`", |ground| async {
        let name = ground.session().await;
        let session = v1::Session { name, etag: "from-elsewhere".to_owned(), display_name: "x".to_owned(), ..Default::default() };
        ground.update(session, &["display_name"]).await
    };
    "DeleteSession with a foreign etag" => Aborted, "ETAG_MISMATCH", "metadata `etag`", |ground| async {
        let request = v1::DeleteSessionRequest { name: ground.session().await, etag: "from-elsewhere".to_owned() };
        ground.client.sessions().delete_session(request).await
    };
    "UpdateSession with an etag that a turn has made old" => Aborted, "ETAG_MISMATCH", "metadata `etag`", |ground| async {
        let name = ground.session().await;
        let old = talk::session(&ground.client, &name).await?;
        talk::run_to_end(&ground.client, talk::says(&name, "Hello")).await?;
        ground.update(v1::Session { display_name: "x".to_owned(), ..old }, &["display_name"]).await
    };
    "UpdateSession of the instructions after the first turn" => FailedPrecondition, "SESSION_CONFIG_FROZEN", "PreconditionFailure", |ground| async {
        let (name, _) = ground.talked().await;
        let config = v1::SessionConfig { instructions: "Be somebody else.".to_owned(), ..Default::default() };
        let session = v1::Session { name, config: Some(config), ..Default::default() };
        ground.update(session, &["config.instructions"]).await
    };
    "UpdateSession of an output-only field" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `update_mask.paths[0]`", |ground| async {
        let name = ground.session().await;
        ground.update(v1::Session { name, ..Default::default() }, &["create_time"]).await
    };
    "UpdateSession with a mask of a field that is none" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `update_mask.paths[0]`", |ground| async {
        let name = ground.session().await;
        ground.update(v1::Session { name, ..Default::default() }, &["colour"]).await
    };
    "UpdateSession without a session" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `session`", |ground| async {
        ground.client.sessions().update_session(v1::UpdateSessionRequest::default()).await
    };
    "CreateSession with a state set" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `session.state`", |ground|
        ground.create(v1::Session { state: v1::SessionState::Running.into(), ..Default::default() });
    "a time to live of zero" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `session.ttl`", |ground|
        expires(ground, Expiration::Ttl(Duration::default()));
    "a negative time to live" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `session.ttl`", |ground|
        expires(ground, Expiration::Ttl(Duration { seconds: -5, nanos: 0 }));
    "a time to live of half a second" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `session.ttl`", |ground|
        expires(ground, Expiration::Ttl(Duration { seconds: 0, nanos: 500_000_000 }));
    "an expiry before 1970" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `session.expire_time`", |ground|
        expires(ground, Expiration::ExpireTime(Timestamp { seconds: -1, nanos: 0 }));
    "an expiry with nanoseconds out of range" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `session.expire_time`", |ground|
        expires(ground, Expiration::ExpireTime(Timestamp { seconds: 4_000_000_000, nanos: -1 }));
    "an idle timeout of zero" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `session.idle_timeout`", |ground|
        ground.create(v1::Session { idle_timeout: Some(Duration::default()), ..Default::default() });
    "a display name with an escape sequence" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `session.display_name`", |ground|
        ground.create(v1::Session { display_name: "\u{1b}[31mred".to_owned(), ..Default::default() });
    "a label key with a control byte" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `session.labels`", |ground|
        labelled(ground, "a\u{7}b", "x");
    "a label value with a NUL byte" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `session.labels.team`", |ground|
        labelled(ground, "team", "red\0");
    "an empty label key" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `session.labels`", |ground|
        labelled(ground, "", "x");
    "an enum value that the contract does not have" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `session.config.sharing`", |ground|
        ground.configure(v1::SessionConfig { sharing: 77, ..Default::default() });
    "initial items with a call that nobody answered" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `initial_items`; metadata `callCount`, `callIds`", |ground| async {
        let call = v1::ToolCall { call_id: "c1".to_owned(), name: "order_status".to_owned(), arguments: "{}".to_owned(), parse_error: None };
        let call = v1::Item { kind: Some(v1::item::Kind::ToolCall(call)), ..Default::default() };
        talk::open_with(&ground.client, talk::pebble(), vec![items::user("Where is order 7731?"), call]).await
    };
    "initial items with a result of a call that was not made" => InvalidArgument, "UNKNOWN_CALL_ID", "BadRequest `initial_items[0].tool_result.call_id`", |ground|
        talk::open_with(&ground.client, talk::pebble(), vec![items::tool_result("c9", "{}")]);
    "initial items that do not fit into the context" => FailedPrecondition, "CONTEXT_OVERFLOW", "PreconditionFailure; metadata `limitTokens`, `usedTokens`, `wantedTokens`", |ground|
        talk::open_with(&ground.client, talk::pebble(), vec![items::user("far too long ".repeat(1_000))]);
    "DeleteSession of a session that is deleted" => NotFound, "SESSION_NOT_FOUND", "ResourceInfo `Session`", |ground| async {
        let name = ground.session().await;
        talk::delete(&ground.client, &name).await?;
        talk::delete(&ground.client, &name).await
    };
};

async fn create(ground: &Ground, id: &str, request_id: &str, display_name: &str) -> Result<(), Status> {
    let session = v1::Session { display_name: display_name.to_owned(), ..Default::default() };
    let request = v1::CreateSessionRequest {
        session_id: id.to_owned(),
        session: Some(session),
        request_id: request_id.to_owned(),
        ..Default::default()
    };
    ground.client.sessions().create_session(request).await.map(drop)
}

async fn expires(ground: &Ground, expiration: Expiration) -> Result<(), Status> {
    ground.create(v1::Session { expiration: Some(expiration), ..Default::default() }).await
}

async fn labelled(ground: &Ground, key: &str, value: &str) -> Result<(), Status> {
    let labels = [(key.to_owned(), value.to_owned())].into();
    ground.create(v1::Session { labels, ..Default::default() }).await
}
