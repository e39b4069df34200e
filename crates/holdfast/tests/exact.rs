//! Bit for bit: random histories leave the same tokens and log probabilities alone or among others, with one thread or two,
//! however the input is cut into steps, with hardly any memory, and after a restart. Two hundred histories over the whole
//! file. Sessions share no blocks here (but where sharing is the question), so that every play computes for itself.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use holdfast_client::{Client, items, v1};
use support::script::{
    self, SMALL, Said, Script, Shape, TurnTrace, assert_same, play_alone, play_together, sample_count,
};
use support::{Home, effort, talk};
use v1::Sharing::{Private, Tenant};

/// Plays scripts alone on a runtime of its own with default settings: what every other way is held against.
async fn reference(scripts: &[Script]) -> Vec<Vec<TurnTrace>> {
    let home = Home::new();
    let runtime = home.start(&[]);
    let traces = play_alone(&runtime.client().await, scripts, Private).await;
    assert!(sample_count(&traces) > scripts.len(), "there is something to compare");
    traces
}

/// Plays scripts together under other settings.
async fn under(settings: &[&str], scripts: &[Script]) -> Vec<Vec<TurnTrace>> {
    let home = Home::new();
    let runtime = home.start(settings);
    play_together(&runtime.client().await, scripts, Private).await
}

#[tokio::test(flavor = "multi_thread")]
async fn alone_or_among_thirty_two() {
    let scripts = Script::many(1_000, effort(32, 64), SMALL);
    let home = Home::new();
    let runtime = home.start(&[]);
    let client = runtime.client().await;
    let alone = play_alone(&client, &scripts, Private).await;
    for some in 0..scripts.len() / 32 {
        let some = some * 32..(some + 1) * 32;
        let together = play_together(&client, &scripts[some.clone()], Private).await;
        assert_same("among 32", &scripts[some.clone()], &alone[some], &together);
    }
    // Whoever comes second finds the first one's blocks, and must not be able to tell.
    let some = &scripts[..16];
    let first = play_together(&client, some, Tenant).await;
    let second = play_together(&client, some, Tenant).await;
    assert_same("sharing blocks, first", some, &alone[..16], &first);
    assert_same("sharing blocks, second", some, &alone[..16], &second);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_thread_or_two() {
    let scripts = Script::many(2_000, effort(8, 32), SMALL);
    let reference = reference(&scripts).await;
    for threads in ["1", "2"] {
        let set = format!("device.threads={threads}");
        let played = under(&["--set", &set], &scripts).await;
        assert_same(&set, &scripts, &reference, &played);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn however_the_input_is_cut_into_steps() {
    let scripts = Script::many(3_000, effort(8, 32), SMALL);
    let reference = reference(&scripts).await;
    for rows in ["1", "7", "64"] {
        let set = format!("scheduler.prefill_chunk_tokens={rows}");
        let played = under(&["--set", &set], &scripts).await;
        assert_same(&set, &scripts, &reference, &played);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_hardly_any_memory() {
    let scripts = Script::many(4_000, 32, Shape { turns: 6, ..SMALL });
    let reference = reference(&scripts).await;
    let home = Home::new();
    // Room for one full context and no more: 32 sessions push each other out.
    let bytes = kv_bytes_of_one_context().await;
    let runtime = home.start(&["--set", &format!("device.kv_bytes={bytes}")]);
    let client = runtime.client().await;
    let again = computed_again(&client, &scripts, &reference).await;
    assert!(again > 0, "with {bytes} bytes of KV something had to be computed again");
}

/// Plays scripts together, turn by turn, compares, and tells how many tokens were computed more than once.
async fn computed_again(client: &Client, scripts: &[Script], reference: &[Vec<TurnTrace>]) -> u64 {
    let mut sessions = Vec::new();
    for script in scripts {
        sessions.push(talk::open(client, script.config(Private)).await);
    }
    let mut tasks = tokio::task::JoinSet::new();
    for (at, (script, session)) in scripts.iter().cloned().zip(sessions.clone()).enumerate() {
        let client = client.clone();
        tasks.spawn(async move { (at, script::play_turns(&client, &session, &script.turns).await) });
    }
    let mut traces = vec![Vec::new(); scripts.len()];
    while let Some(played) = tasks.join_next().await {
        let (at, trace) = played.unwrap();
        traces[at] = trace;
    }
    assert_same("hardly any memory", scripts, reference, &traces);
    let mut again = 0;
    for session in &sessions {
        let request = v1::ListTurnsRequest { session: session.clone(), ..Default::default() };
        for turn in client.sessions().list_turns(request).await.unwrap().into_inner().turns {
            let usage = turn.usage.unwrap_or_default();
            again += usage.recomputed_tokens + usage.preempted_tokens;
        }
    }
    again
}

/// Bytes of KV of one full context of the default model.
async fn kv_bytes_of_one_context() -> u64 {
    let home = Home::new();
    let runtime = home.start(&[]);
    let told = talk::runtime(&runtime.client().await).await;
    let model = &told.models[0];
    model.kv_bytes_per_token * model.context_limit_tokens
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_everything_is_computed_again_to_the_same_bits() {
    let scripts = Script::many(5_000, effort(8, 24), SMALL);
    let reference = reference(&scripts).await;
    let home = Home::new();
    let mut sessions = Vec::new();
    let mut traces: Vec<Vec<TurnTrace>> = vec![Vec::new(); scripts.len()];
    let longest = scripts.iter().map(|script| script.turns.len()).max().unwrap();
    for turn in 0..longest {
        let mut runtime = home.start(&[]);
        let client = runtime.client().await;
        if turn == 0 {
            for script in &scripts {
                sessions.push(talk::open(&client, script.config(Private)).await);
            }
        }
        for (at, script) in scripts.iter().enumerate() {
            let Some(said) = script.turns.get(turn) else { continue };
            let request = talk::says_with(&sessions[at], &said.text, said.sampling.clone());
            let heard = talk::run_to_end(&client, request).await.unwrap();
            let ended = heard.ended().unwrap();
            let first = ended.generations.first().unwrap().usage.clone().unwrap();
            if turn > 0 {
                assert!(first.recomputed_tokens > 0, "the restart lost the KV state: {first:?}");
            }
            traces[at].push(TurnTrace::of(&heard));
        }
        if turn % 2 == 0 { runtime.kill() } else { runtime.stop().await }
    }
    assert_same("restarted before every turn", &scripts, &reference, &traces);
}

#[tokio::test(flavor = "multi_thread")]
async fn history_given_at_once_piece_by_piece_or_without_a_session() {
    let home = Home::new();
    let runtime = home.start(&[]);
    let client = runtime.client().await;
    for script in Script::many(6_000, effort(4, 16), SMALL) {
        let history = history_of(&script);
        let last = script.turns.last().unwrap();
        let at_once = talk::open_with(&client, script.config(Private), history.clone()).await.unwrap();
        let pieces = talk::open(&client, script.config(Private)).await;
        for item in &history {
            let append = v1::AppendItemsRequest {
                session: pieces.clone(),
                items: vec![item.clone()],
                prefill: script.seed % 2 == 0,
                ..Default::default()
            };
            client.sessions().append_items(append).await.unwrap();
        }
        let pieces_used = talk::session(&client, &pieces).await.unwrap().context_used_tokens;
        if !history.is_empty() {
            assert_eq!(at_once.context_used_tokens, pieces_used, "script {}", script.seed);
        }
        let mut traces = Vec::new();
        for session in [&at_once.name, &pieces] {
            traces.push(first_generation(&client, session, last).await);
        }
        traces.push(without_a_session(&client, &script, history, last).await);
        assert_eq!(traces[0], traces[1], "at once and piece by piece: script {}", script.seed);
        assert_eq!(traces[0], traces[2], "with and without a session: script {}", script.seed);
    }
}

/// A made-up conversation of the script's texts; every other script has a tool call in it.
fn history_of(script: &Script) -> Vec<v1::Item> {
    let mut history = Vec::new();
    for (at, said) in script.turns.iter().enumerate() {
        history.push(items::user(said.text.clone()));
        if at == 0 && !script.config.tools.is_empty() {
            let call = v1::ToolCall {
                call_id: "imported-1".to_owned(),
                name: "order_status".to_owned(),
                arguments: r#"{"order_id":"7731"}"#.to_owned(),
                parse_error: None,
            };
            history.push(v1::Item { kind: Some(v1::item::Kind::ToolCall(call)), ..Default::default() });
            history.push(items::tool_result("imported-1", talk::tool_answer("order_status")));
        }
        history.push(items::message(v1::Role::Assistant, format!("Noted, {at}.")));
    }
    history
}

async fn first_generation(client: &Client, session: &str, said: &Said) -> (Vec<String>, Vec<script::Sample>) {
    let heard = talk::run(client, talk::says_with(session, &said.text, said.sampling.clone())).await.unwrap();
    if let Some(turn) = heard.waits().map(|_| heard.turn_name()) {
        talk::cancel(client, turn).await.unwrap();
    }
    of_one_generation(&heard)
}

async fn without_a_session(
    client: &Client,
    script: &Script,
    mut history: Vec<v1::Item>,
    said: &Said,
) -> (Vec<String>, Vec<script::Sample>) {
    history.push(items::user(said.text.clone()));
    let request = v1::GenerateRequest {
        instructions: script.config.instructions.clone(),
        tools: script.config.tools.clone(),
        items: history,
        sampling: Some(said.sampling.clone()),
        ..Default::default()
    };
    let heard = talk::hear(client.completions().generate(request).await.unwrap().into_inner()).await.unwrap();
    assert!(heard.ended().is_some());
    of_one_generation(&heard)
}

/// Sampled items and tokens of what was heard; input items are left out.
fn of_one_generation(heard: &talk::Heard) -> (Vec<String>, Vec<script::Sample>) {
    let mut items = Vec::new();
    let mut samples = Vec::new();
    for event in &heard.events {
        match &event.kind {
            Some(v1::event::Kind::ItemDone(done)) => items.extend(done.item.as_ref().map(script::describe)),
            Some(v1::event::Kind::TextDelta(delta)) => samples.extend(delta.logprobs.iter().map(script::Sample::of)),
            _ => {}
        }
    }
    items.retain(|item| !item.starts_with("ROLE_USER"));
    (items, samples)
}
