//! One more than each limit.

use holdfast_client::{items, v1};
use tonic::Status;

use crate::ground::{Ground, Row, rows};
use crate::support::talk;

pub(crate) const ROWS: &[Row] = rows! {
    "a request of more than 4 MiB" => ResourceExhausted, "MESSAGE_TOO_LARGE", "QuotaFailure `limits.request_bytes`", |ground|
        ground.given(vec![items::user("x".repeat(5 << 20))]);
    "an item of more than 1 MiB" => ResourceExhausted, "LIMIT_EXCEEDED", "BadRequest `input[0]`; QuotaFailure `limits.item_bytes`", |ground|
        ground.given(vec![items::user("x".repeat((1 << 20) + 1))]);
    "65 parts in an item" => ResourceExhausted, "LIMIT_EXCEEDED", "BadRequest `input[0].message.content`; QuotaFailure `limits.parts_per_item`", |ground| async {
        let mut item = items::user("");
        if let Some(v1::item::Kind::Message(message)) = &mut item.kind {
            message.content = vec![message.content[0].clone(); 65];
        }
        ground.given(vec![item]).await
    };
    "more items than a request may hold" => ResourceExhausted, "LIMIT_EXCEEDED", "BadRequest `input`; QuotaFailure `limits.items_per_request`", |ground|
        ground.given(vec![items::user("Hello"); 31]);
    "more items than a session may hold" => ResourceExhausted, "LIMIT_EXCEEDED", "QuotaFailure `limits.items_per_session`", |ground| async {
        let session = ground.session().await;
        append(ground, &session, 30).await?;
        append(ground, &session, 30).await
    };
    "more turns than a session may hold" => ResourceExhausted, "LIMIT_EXCEEDED", "QuotaFailure `limits.turns_per_session`", |ground| async {
        let session = ground.session().await;
        for _ in 0..4 {
            talk::run_to_end(&ground.client, talk::says_with(&session, "Hello", talk::long(1))).await?;
        }
        talk::run(&ground.client, talk::says(&session, "Hello")).await
    };
    "more sessions than a tenant may have" => ResourceExhausted, "LIMIT_EXCEEDED", "QuotaFailure `limits.sessions_per_tenant`", |ground| async {
        for _ in 0..8 {
            ground.session().await;
        }
        ground.create(v1::Session::default()).await
    };
    "instructions of more than 1 MiB" => ResourceExhausted, "LIMIT_EXCEEDED", "BadRequest `session.config.instructions`; QuotaFailure `limits.instructions_bytes`", |ground|
        ground.configure(v1::SessionConfig { instructions: "x".repeat((1 << 20) + 1), ..Default::default() });
    "129 tools" => ResourceExhausted, "LIMIT_EXCEEDED", "BadRequest `session.config.tools`; QuotaFailure `limits.tools_per_session`", |ground|
        ground.configure(v1::SessionConfig { tools: (0..129).map(|n| items::function(format!("t{n}"), "", "")).collect(), ..Default::default() });
    "a tool described in more than 64 KiB" => ResourceExhausted, "LIMIT_EXCEEDED", "BadRequest `session.config.tools[0].function`; QuotaFailure `limits.tool_bytes`", |ground|
        ground.configure(v1::SessionConfig { tools: vec![items::function("t", "x".repeat(65_537), "")], ..Default::default() });
    "65 labels" => ResourceExhausted, "LIMIT_EXCEEDED", "BadRequest `session.labels`; QuotaFailure `limits.labels_per_session`", |ground|
        ground.create(v1::Session { labels: (0..65).map(|n| (format!("k{n}"), String::new())).collect(), ..Default::default() });
    "a label key of 64 characters" => ResourceExhausted, "LIMIT_EXCEEDED", "BadRequest `session.labels`; QuotaFailure `limits.label_key_chars`", |ground|
        ground.create(v1::Session { labels: [("k".repeat(64), String::new())].into(), ..Default::default() });
    "a label value of 513 characters" => ResourceExhausted, "LIMIT_EXCEEDED", "BadRequest `session.labels.k`; QuotaFailure `limits.label_value_chars`", |ground|
        ground.create(v1::Session { labels: [("k".to_owned(), "v".repeat(513))].into(), ..Default::default() });
    "a request id of 129 characters" => ResourceExhausted, "LIMIT_EXCEEDED", "BadRequest `request_id`; QuotaFailure `limits.request_id_chars`", |ground| async {
        let request = v1::CreateSessionRequest { request_id: "x".repeat(129), ..Default::default() };
        ground.client.sessions().create_session(request).await
    };
    "a request id with a control byte" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `request_id`", |ground| async {
        let request = v1::CreateSessionRequest { request_id: "a\nb".to_owned(), ..Default::default() };
        ground.client.sessions().create_session(request).await
    };
    "17 stop strings" => ResourceExhausted, "LIMIT_EXCEEDED", "BadRequest `options.sampling.stop`; QuotaFailure `limits.stop_strings`", |ground|
        ground.sampled(v1::Sampling { stop: (0..17).map(|n| format!("s{n}")).collect(), ..Default::default() });
    "a stop string of 257 bytes" => ResourceExhausted, "LIMIT_EXCEEDED", "BadRequest `options.sampling.stop[0]`; QuotaFailure `limits.stop_string_bytes`", |ground|
        ground.sampled(v1::Sampling { stop: vec!["s".repeat(257)], ..Default::default() });
    "1,025 entries of logit bias" => ResourceExhausted, "LIMIT_EXCEEDED", "BadRequest `options.sampling.logit_bias`; QuotaFailure `limits.logit_bias_entries`", |ground|
        ground.sampled(v1::Sampling { logit_bias: (0..1_025).map(|token| (token, 1.0)).collect(), ..Default::default() });
    "log probabilities of 21 tokens at each position" => ResourceExhausted, "LIMIT_EXCEEDED", "BadRequest `options.sampling.logprobs`; QuotaFailure `limits.top_logprobs`", |ground|
        ground.sampled(v1::Sampling { logprobs: Some(21), ..Default::default() });
};

async fn append(ground: &Ground, session: &str, count: usize) -> Result<(), Status> {
    let items = vec![items::user("a"); count];
    let request = v1::AppendItemsRequest { session: session.to_owned(), items, ..Default::default() };
    ground.client.sessions().append_items(request).await.map(drop)
}
