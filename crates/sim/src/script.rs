//! Random requests: what a simulated agent may say.
//!
//! In: a seeded generator. Out: items, sampling settings, turns. Deliberately not here: when an agent says what
//! ([`crate::clients`]).

use fastrand::Rng;
use holdfast_types::{
    Constraint, Item, ItemContent, ItemState, OnBusy, OnDisconnect, Part, Role, SamplingOverrides, SessionConfig,
    SessionId, Sharing, Tool, ToolChoice, TurnNumber, UnresolvedCalls,
};
use holdfast_worker_api::{ConfigPatch, CreateSession, Generate, SessionPatch, StartTurn};

use crate::alphabet::{CLOSE, END, OPEN};
use crate::node::MODEL;

const WORDS: [&str; 10] = ["stop", "a clock", "ab", "tea for two", "é", "{}", "no", "b\n\nb", "clock{}", "\u{1F600} t"];

/// A few words.
pub fn words(rng: &mut Rng, most: usize) -> String {
    let count = rng.usize(1..=most);
    (0..count).map(|_| WORDS[rng.usize(..WORDS.len())]).collect::<Vec<_>>().join(" ")
}

/// A session's first request. Half of all sessions have tools, some bring a conversation along.
pub fn create(rng: &mut Rng, session: SessionId) -> CreateSession {
    let tool = |name: &str| Tool { name: name.to_owned(), ..Tool::default() };
    let config = SessionConfig {
        model: if rng.bool() { MODEL.to_owned() } else { String::new() },
        instructions: if rng.bool() { words(rng, 3) } else { String::new() },
        tools: if rng.u8(..4) > 0 { vec![tool("clock"), tool("abc")] } else { Vec::new() },
        sharing: if rng.bool() { Sharing::Tenant } else { Sharing::Private },
        ..SessionConfig::default()
    };
    let items = match rng.u8(..6) {
        0 => imported(rng),
        1 => vec![Item::message(Role::User, words(rng, 2))],
        _ => Vec::new(),
    };
    let request_id = Some(format!("create-{session}"));
    CreateSession { session: Some(session), config, items, request_id, ..CreateSession::default() }
}

fn imported(rng: &mut Rng) -> Vec<Item> {
    let call_id = "imported-1".to_owned();
    let call = ItemContent::ToolCall {
        call_id: call_id.clone(),
        name: "clock".to_owned(),
        arguments: "{}".to_owned(),
        parse_error: None,
    };
    vec![
        Item::message(Role::User, words(rng, 2)),
        Item { content: call, state: ItemState::Complete },
        Item::tool_result(call_id, words(rng, 1)),
        Item::message(Role::Assistant, words(rng, 2)),
    ]
}

/// A change of a session: a name, an early end, or other instructions.
pub fn update(rng: &mut Rng) -> (SessionPatch, Option<ConfigPatch>) {
    let mut patch = SessionPatch { display_name: Some(words(rng, 1)), ..SessionPatch::default() };
    patch.ttl_s = (rng.u8(..2) == 0).then(|| rng.u64(1..4));
    let values = SessionConfig { instructions: words(rng, 2), ..SessionConfig::default() };
    let config = (rng.u8(..3) == 0).then(|| ConfigPatch { fields: vec!["config.instructions".to_owned()], values });
    (patch, config)
}

/// Items that open a turn or are appended.
pub fn items(rng: &mut Rng) -> Vec<Item> {
    (0..rng.usize(1..=2))
        .map(|_| Item::message(if rng.u8(..8) == 0 { Role::Developer } else { Role::User }, words(rng, 2)))
        .collect()
}

/// A tool's answer.
pub fn result(rng: &mut Rng, call_id: &str) -> Item {
    let parts = vec![Part::Text(words(rng, 2))];
    let content = ItemContent::ToolResult { call_id: call_id.to_owned(), parts, is_error: rng.u8(..8) == 0 };
    Item { content, state: ItemState::Complete }
}

/// Sampling settings; `tokens_max` bounds the turn.
pub fn sampling(rng: &mut Rng, tokens_max: u32) -> SamplingOverrides {
    let mut some = |chance: u8| rng.u8(..100) < chance;
    let (greedy, logprobs, seeded, penalties, nudge, stop) =
        (some(20), some(50), some(50), some(25), some(60), some(35));
    SamplingOverrides {
        temperature: if greedy { Some(0.0) } else { None },
        top_k: (rng.u8(..5) == 0).then(|| rng.u32(1..20)),
        top_p: (rng.u8(..5) == 0).then_some(0.9),
        min_p: (rng.u8(..5) == 0).then_some(0.05),
        frequency_penalty: penalties.then_some(0.5),
        presence_penalty: penalties.then_some(-0.25),
        repetition_penalty: (penalties && rng.bool()).then_some(1.25),
        logit_bias: nudge.then(|| vec![(END, rng.f32() * 3.0), (OPEN, rng.f32() * 3.0), (CLOSE, rng.f32() * 4.0)]),
        logprobs: logprobs.then(|| rng.u32(..3)),
        seed: seeded.then(|| rng.u64(..)),
        max_output_tokens: Some(rng.u32(1..=tokens_max)),
        stop: stop.then(|| vec!["st".to_owned(), "b".to_owned()]),
    }
}

/// A stateless request.
pub fn generate(rng: &mut Rng) -> Generate {
    let session = SessionId::parse("stateless");
    let mut config = session.map_or_else(|_| SessionConfig::default(), |session| create(rng, session).config);
    config.sampling = sampling(rng, 16);
    let items = if rng.bool() { imported(rng) } else { items(rng) };
    Generate { config, items, deadline_ms: (rng.u8(..4) == 0).then(|| rng.u64(1..40)), ..Generate::default() }
}

/// A turn without anything that time decides.
pub fn turn(rng: &mut Rng, session: SessionId, has_tools: bool, tokens_max: u32) -> StartTurn {
    let mut turn = StartTurn::new(session, items(rng));
    turn.sampling = sampling(rng, tokens_max);
    turn.tool_choice = match rng.u8(..8) {
        0 | 1 if has_tools => ToolChoice::Required,
        2 | 3 if has_tools => ToolChoice::Name("clock".to_owned()),
        4 => ToolChoice::None,
        _ => ToolChoice::Auto,
    };
    if has_tools && rng.u8(..8) == 0 {
        turn.tool_choice = ToolChoice::Auto;
        turn.allowed_tools = Some(if rng.bool() { Vec::new() } else { vec!["clock".to_owned()] });
    }
    turn.single_call = rng.u8(..8) == 0;
    turn.constraint = match rng.u8(..12) {
        0 => Some(Constraint::Regex("(clock|ab|[a-e {}]){1,20}".to_owned())),
        1 => Some(Constraint::JsonSchema(
            r#"{"type": "object", "properties": {"a": {"enum": [0, 1, 2, "ab"]}}, "additionalProperties": false}"#
                .to_owned(),
        )),
        2 => Some(Constraint::Choice(["a clock", "ab", "abba"].map(str::to_owned).to_vec())),
        _ => None,
    };
    turn
}

/// A turn with everything that a client may ask for; sometimes too much.
pub fn wild_turn(rng: &mut Rng, session: SessionId, has_tools: bool, last: Option<TurnNumber>) -> StartTurn {
    let mut turn = turn(rng, session, has_tools, 24);
    turn.on_busy = if rng.bool() { OnBusy::Queue } else { OnBusy::Reject };
    turn.on_disconnect = if rng.u8(..4) == 0 { OnDisconnect::Cancel } else { OnDisconnect::Continue };
    turn.unresolved_calls = if rng.u8(..4) == 0 { UnresolvedCalls::CloseAsCancelled } else { UnresolvedCalls::Reject };
    turn.discard_partial = rng.u8(..5) == 0;
    if rng.u8(..6) == 0 {
        turn.continue_last = true;
        turn.discard_partial = false;
        turn.input.clear();
    }
    if rng.u8(..8) == 0 {
        turn.turn_deadline_ms = Some(rng.u64(1..60));
    }
    if rng.u8(..8) == 0 {
        turn.expected_last_turn = last;
    }
    turn
}
