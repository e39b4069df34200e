//! A hundred turns: every token of the log is computed exactly once but the last sample, which nobody needed yet. Without
//! a session the same conversation is computed as the sum of all its prefixes. Figures are the runtime's own usage
//! reports, held against the log's length.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use holdfast_client::{Client, items, v1};
use support::talk::{self, device_tokens};
use support::{Home, effort, model_dir};
use v1::event::Kind;

/// Of the lengthened model; the conversation must fit.
const CONTEXT_TOKENS: u32 = 16_384;

/// Short messages, as an agent's turns are.
fn said(turn: usize) -> String {
    match turn % 4 {
        0 => format!("My locker code is {}.", 1000 + turn),
        1 => "Where is order 7731?".to_owned(),
        2 => "Hello".to_owned(),
        _ => "What is my locker code?".to_owned(),
    }
}

fn sampling() -> v1::Sampling {
    v1::Sampling { max_output_tokens: Some(48), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_token_of_a_long_conversation_is_computed_once() {
    let turns = effort(20, 100);
    let home = Home::new();
    let model = model_dir::with_context(&home.path().join("long-pebble"), CONTEXT_TOKENS);
    let runtime = home.start(&["--model", &format!("long-pebble={}", model.display())]);
    let client = runtime.client().await;
    let session = talk::open(&client, talk::pebble()).await;

    let (mut computed_on_device, mut context) = (0, 0);
    for turn in 0..turns {
        let request = talk::says_with(&session, &said(turn), sampling());
        let heard = talk::run_to_end(&client, request).await.unwrap();
        let ended = heard.ended().unwrap();
        let usage = ended.usage.clone().unwrap();
        let at = format!("turn {}: {usage:?}", turn + 1);
        assert!(talk::is_final(ended.state()), "{at}");
        assert_eq!((usage.recomputed_tokens, usage.preempted_tokens), (0, 0), "{at}");
        assert_eq!(usage.input_tokens, usage.cached_tokens + usage.computed_tokens, "{at}");
        let first = ended.generations.first().unwrap().usage.clone().unwrap();
        if turn > 0 {
            assert_eq!(first.cached_tokens, context - 1, "all of the log but its last sample was found: {at}");
        }
        computed_on_device += device_tokens(&usage);
        context = usage.context_used_tokens;
        assert_eq!(computed_on_device, context - 1, "each token once, the last sample not yet: {at}");
    }
    let session = talk::session(&client, &session).await.unwrap();
    assert_eq!(session.last_turn as usize, turns);
    assert_eq!(session.context_used_tokens, context);

    let (requests, prefixes, stateless) = repeat_stateless(&client, &session.name).await;
    assert_eq!(stateless, prefixes, "without a session every prefix is computed");
    let half = requests * computed_on_device / 2;
    assert!(stateless > half / 2, "{requests} prefixes of a growing log add up to about {half}, not {stateless}");
}

/// Plays the session's conversation through the stateless service, each generation with its full history. Requests, tokens
/// of all prompts, and tokens computed for them.
async fn repeat_stateless(client: &Client, session: &str) -> (u64, u64, u64) {
    let history = talk::list_items(client, session).await;
    let (mut requests, mut prefixes, mut computed) = (0, 0, 0);
    for (at, item) in history.iter().enumerate() {
        let first_sampled = is_sampled(item) && !history.get(at.wrapping_sub(1)).is_some_and(is_sampled);
        if !first_sampled {
            continue;
        }
        let request = v1::GenerateRequest {
            instructions: talk::INSTRUCTIONS.to_owned(),
            tools: talk::tools(),
            items: history[..at].iter().map(talk::as_input).collect(),
            sampling: Some(sampling()),
            ..Default::default()
        };
        let wanted = count(client, &request).await;
        let heard = talk::hear(client.completions().generate(request).await.unwrap().into_inner()).await.unwrap();
        let usage = heard.ended().unwrap().usage.clone().unwrap();
        assert_eq!((usage.cached_tokens, usage.recomputed_tokens), (0, 0), "nothing was kept: {usage:?}");
        assert!(usage.input_tokens >= wanted, "the history is {wanted} tokens: {usage:?}");
        assert_eq!(device_tokens(&usage), usage.input_tokens + usage.output_tokens - 1, "{usage:?}");
        requests += 1;
        prefixes += usage.input_tokens;
        computed += usage.computed_tokens;
    }
    (requests, prefixes, computed)
}

/// Tokens of a history, counted without computing anything.
async fn count(client: &Client, request: &v1::GenerateRequest) -> u64 {
    let start = v1::ConversationStart {
        instructions: request.instructions.clone(),
        tools: request.tools.clone(),
        ..Default::default()
    };
    let context = Some(v1::count_tokens_request::Context::Conversation(start));
    let request = v1::CountTokensRequest { context, items: request.items.clone() };
    client.tokens().count_tokens(request).await.unwrap().into_inner().tokens
}

fn is_sampled(item: &v1::Item) -> bool {
    use v1::item::Kind as Item;
    match &item.kind {
        Some(Item::Message(message)) => message.role() == v1::Role::Assistant,
        Some(Item::Reasoning(_) | Item::ToolCall(_)) => true,
        Some(Item::ToolResult(_)) | None => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prefilled_items_cost_their_turn_nothing() {
    let home = Home::new();
    let runtime = home.start(&[]);
    let client = runtime.client().await;
    let session = talk::open(&client, talk::pebble()).await;
    let append = v1::AppendItemsRequest {
        session: session.clone(),
        items: vec![items::user("My locker code is 4471."), items::message(v1::Role::Assistant, "Noted.")],
        prefill: true,
        ..Default::default()
    };
    let appended = client.sessions().append_items(append).await.unwrap().into_inner().items;
    assert_eq!(appended.len(), 2);
    let before = talk::session(&client, &session).await.unwrap().context_used_tokens;
    assert!(before > 0);
    support::until("the appended items are computed", support::SOON, async || {
        (talk::blocks_used(&client).await > 0).then_some(())
    })
    .await;

    let heard = talk::run_to_end(&client, talk::says(&session, "What is my locker code?")).await.unwrap();
    let usage = heard.ended().unwrap().usage.clone().unwrap();
    assert_eq!(usage.recomputed_tokens, 0, "{usage:?}");
    assert_eq!(usage.cached_tokens + usage.computed_tokens, usage.input_tokens, "{usage:?}");
    let progress = heard.events.iter().filter(|event| matches!(event.kind, Some(Kind::TurnEnded(_)))).count();
    assert_eq!(progress, 1, "exactly one terminal event");
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_beginnings_are_computed_once_for_all_sessions_that_share() {
    let home = Home::new();
    let runtime = home.start(&[]);
    let client = runtime.client().await;
    let text = "The return window is 47 days. The gate code is 9025. The shop opens at 8 and closes at 19. ".repeat(2);
    for (sharing, expected) in [(v1::Sharing::Tenant, true), (v1::Sharing::Private, false)] {
        let config = v1::SessionConfig { sharing: sharing.into(), ..talk::pebble() };
        let mut found = Vec::new();
        for _ in 0..2 {
            let session = talk::open(&client, config.clone()).await;
            let request = talk::says_with(&session, &text, talk::long(4));
            let usage = talk::run_to_end(&client, request).await.unwrap().ended().unwrap().usage.clone().unwrap();
            let source = usage.cached_by_source.unwrap_or_default();
            assert_eq!(usage.cached_tokens, source.device + source.shared, "{source:?}");
            found.push(source.shared);
        }
        assert_eq!(found[0], 0, "{sharing:?}: nobody was there before");
        assert_eq!(found[1] > 0, expected, "{sharing:?}: {found:?}");
        if expected {
            assert_eq!(found[1] % 16, 0, "whole blocks are shared: {found:?}");
        }
    }
}
