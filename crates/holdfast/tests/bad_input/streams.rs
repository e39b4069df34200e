//! Pages and streams from where nothing is.

use holdfast_client::v1;

use crate::ground::{Row, rows};
use crate::support::talk;

pub(crate) const ROWS: &[Row] = rows! {
    "a page token that is not ours" => InvalidArgument, "INVALID_PAGE_TOKEN", "BadRequest `page_token`", |ground| async {
        let request = v1::ListSessionsRequest { page_token: "page-two-please".to_owned(), ..Default::default() };
        ground.client.sessions().list_sessions(request).await
    };
    "a page token of another list" => InvalidArgument, "INVALID_PAGE_TOKEN", "BadRequest `page_token`", |ground| async {
        let (session, _) = ground.talked().await;
        let request = v1::ListItemsRequest { session: session.clone(), page_size: 1, ..Default::default() };
        let page_token = ground.client.sessions().list_items(request).await?.into_inner().next_page_token;
        assert!(!page_token.is_empty());
        ground.client.sessions().list_turns(v1::ListTurnsRequest { session, page_token, ..Default::default() }).await
    };
    "a page token with another filter" => InvalidArgument, "INVALID_PAGE_TOKEN", "BadRequest `page_token`", |ground| async {
        for _ in 0..2 {
            ground.session().await;
        }
        let request = v1::ListSessionsRequest { page_size: 1, ..Default::default() };
        let page_token = ground.client.sessions().list_sessions(request).await?.into_inner().next_page_token;
        let request = v1::ListSessionsRequest { page_size: 1, page_token, filter: "state = IDLE".to_owned() };
        ground.client.sessions().list_sessions(request).await
    };
    "a filter that is none" => InvalidArgument, "INVALID_FILTER", "BadRequest `filter`", |ground|
        filtered(ground, "colour = \"red\"");
    "a filter with OR" => InvalidArgument, "INVALID_FILTER", "BadRequest `filter`", |ground|
        filtered(ground, "state = IDLE OR state = RUNNING");
    "a filter whose quote is not closed" => InvalidArgument, "INVALID_FILTER", "BadRequest `filter`", |ground|
        filtered(ground, "labels.team = \"red");
    "AttachTurn from beyond the next event" => OutOfRange, "SEQUENCE_OUT_OF_RANGE", "BadRequest `from_sequence`; metadata `lastSequence`", |ground| async {
        let (_, turn) = ground.talked().await;
        talk::attach(&ground.client, &turn, 1_000_000).await
    };
    "WatchSession from beyond the next event" => OutOfRange, "SEQUENCE_OUT_OF_RANGE", "BadRequest `from_sequence`; metadata `lastSequence`", |ground| async {
        let (name, _) = ground.talked().await;
        let request = v1::WatchSessionRequest { name, from_sequence: u64::MAX };
        talk::hear(ground.client.sessions().watch_session(request).await?.into_inner()).await
    };
    "AttachTurn to a turn that was not" => NotFound, "TURN_NOT_FOUND", "ResourceInfo `Turn`", |ground| async {
        let session = ground.session().await;
        talk::attach(&ground.client, &format!("{session}/turns/1"), 0).await
    };
    "CountTokens for a session that nobody made" => NotFound, "SESSION_NOT_FOUND", "ResourceInfo `Session`", |ground| async {
        let context = v1::count_tokens_request::Context::Session("sessions/nobody-made-this".to_owned());
        let request = v1::CountTokensRequest { context: Some(context), items: Vec::new() };
        ground.client.tokens().count_tokens(request).await
    };
};

async fn filtered(ground: &crate::ground::Ground, filter: &str) -> Result<(), tonic::Status> {
    let request = v1::ListSessionsRequest { filter: filter.to_owned(), ..Default::default() };
    ground.client.sessions().list_sessions(request).await.map(drop)
}
