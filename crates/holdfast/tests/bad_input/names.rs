//! Names that are not names, and names of nothing.

use holdfast_client::{items, v1};

use crate::ground::{Row, rows};
use crate::support::talk;

pub(crate) const ROWS: &[Row] = rows! {
    "GetSession of a session that nobody made" => NotFound, "SESSION_NOT_FOUND", "ResourceInfo `Session`", |ground|
        talk::session(&ground.client, "sessions/nobody-made-this");
    "RunTurn in a session that nobody made" => NotFound, "SESSION_NOT_FOUND", "ResourceInfo `Session`", |ground|
        talk::run(&ground.client, talk::says("sessions/nobody-made-this", "Hello"));
    "GetSession of an empty name" => InvalidArgument, "INVALID_NAME", "BadRequest `name`", |ground|
        talk::session(&ground.client, "");
    "a session name without `sessions/`" => InvalidArgument, "INVALID_NAME", "BadRequest `name`", |ground|
        talk::session(&ground.client, "nobody-made-this");
    "a session name with a path that climbs" => InvalidArgument, "INVALID_NAME", "BadRequest `name`", |ground|
        talk::session(&ground.client, "sessions/../../etc/passwd");
    "a session id of 7 characters" => InvalidArgument, "INVALID_NAME", "BadRequest `session_id`", |ground|
        named(ground, "shorter".to_owned());
    "a session id of 129 characters" => InvalidArgument, "INVALID_NAME", "BadRequest `session_id`", |ground|
        named(ground, "x".repeat(129));
    "a session id with a blank" => InvalidArgument, "INVALID_NAME", "BadRequest `session_id`", |ground|
        named(ground, "my session".to_owned());
    "a session id with a NUL byte" => InvalidArgument, "INVALID_NAME", "BadRequest `session_id`", |ground|
        named(ground, "my-session\0".to_owned());
    "a session id in letters beyond ASCII" => InvalidArgument, "INVALID_NAME", "BadRequest `session_id`", |ground|
        named(ground, "sitzung-für-zwei".to_owned());
    "GetTurn of turn 0" => InvalidArgument, "INVALID_NAME", "BadRequest `name`", |ground|
        talk::get_turn(&ground.client, "sessions/nobody-made-this/turns/0");
    "GetTurn with a number that fits into no integer" => InvalidArgument, "INVALID_NAME", "BadRequest `name`", |ground|
        talk::get_turn(&ground.client, "sessions/nobody-made-this/turns/99999999999999999999");
    "GetTurn of a turn that was not" => NotFound, "TURN_NOT_FOUND", "ResourceInfo `Turn`", |ground| async {
        let (session, _) = ground.talked().await;
        talk::get_turn(&ground.client, &format!("{session}/turns/7")).await
    };
    "RunTurn that continues a turn of another session" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `turn`", |ground| async {
        let (_, turn, call) = ground.waiting().await;
        let input = vec![items::tool_result(call, "{}")];
        let session = ground.session().await;
        talk::run(&ground.client, v1::RunTurnRequest { session, turn, input, ..Default::default() }).await
    };
    "a model that is not served" => NotFound, "MODEL_NOT_FOUND", "ResourceInfo `Model`", |ground|
        ground.configure(v1::SessionConfig { model: "models/gpt-17".to_owned(), ..talk::pebble() });
    "a model name without `models/`" => InvalidArgument, "INVALID_NAME", "BadRequest `session.config.model`", |ground|
        ground.configure(v1::SessionConfig { model: "pebble".to_owned(), ..talk::pebble() });
    "GetModel of a model that is not served" => NotFound, "MODEL_NOT_FOUND", "ResourceInfo `Model`", |ground| async {
        ground.client.models().get_model(v1::GetModelRequest { name: "models/gpt-17".to_owned() }).await
    };
    "a template that the model does not have" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `session.config.template`", |ground|
        ground.configure(v1::SessionConfig { template: "baroque".to_owned(), ..talk::pebble() });
};

async fn named(ground: &crate::ground::Ground, session_id: String) -> Result<(), tonic::Status> {
    let request = v1::CreateSessionRequest { session_id, ..Default::default() };
    ground.client.sessions().create_session(request).await.map(drop)
}
