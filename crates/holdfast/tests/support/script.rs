//! Scripts: conversations drawn from a seed, played against a runtime, and the trace that they leave: every sampled token
//! with the bits of its log probability, every item, every ending. Two plays of one script are equal or something is wrong.

use holdfast_client::{Client, items, v1};
use tokio::task::JoinSet;
use v1::event::Kind;

use super::talk::{self, Heard, INSTRUCTIONS, run_to_end};

/// What a user says in one turn, and how the answer is sampled.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    pub(crate) text: String,
    pub(crate) sampling: v1::Sampling,
}

/// A conversation to be played.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    pub(crate) seed: u64,
    pub(crate) config: v1::SessionConfig,
    pub(crate) turns: Vec<Said>,
}

/// How long scripts may be. Prompt, all input and all output have to fit into the context of the model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) turns: u32,
    pub(crate) input_chars: usize,
    pub(crate) output_tokens: u32,
}

/// Fits into 1,024 tokens even if every character were a token.
pub(crate) const SMALL: Shape = Shape { turns: 4, input_chars: 60, output_tokens: 20 };

/// One sampled token of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) position: u64,
    pub(crate) token: u32,
    pub(crate) logprob_bits: u32,
    pub(crate) top: Vec<(u32, u32)>,
}

/// What one turn left: everything that has to be the same however it was computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TurnTrace {
    pub(crate) state: v1::TurnState,
    pub(crate) stop_reason: v1::StopReason,
    pub(crate) items: Vec<String>,
    pub(crate) samples: Vec<Sample>,
    pub(crate) output_tokens: u64,
    pub(crate) context_tokens: u64,
}

impl Script {
    /// The script of a seed.
    pub(crate) fn random(seed: u64, shape: Shape) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let config = v1::SessionConfig {
            instructions: if random.bool() { INSTRUCTIONS.to_owned() } else { String::new() },
            tools: if random.bool() { talk::tools() } else { Vec::new() },
            ..Default::default()
        };
        let turns = (0..random.u32(1..=shape.turns)).map(|_| Said::random(&mut random, shape)).collect();
        Self { seed, config, turns }
    }

    /// Scripts of consecutive seeds.
    pub(crate) fn many(first_seed: u64, count: u64, shape: Shape) -> Vec<Self> {
        (first_seed..first_seed + count).map(|seed| Self::random(seed, shape)).collect()
    }

    /// The config, with blocks shared or not. Unshared blocks are computed by each session for itself.
    pub(crate) fn config(&self, sharing: v1::Sharing) -> v1::SessionConfig {
        v1::SessionConfig { sharing: sharing.into(), ..self.config.clone() }
    }

    /// Plays the whole script in a session of its own, which is deleted afterwards.
    pub(crate) async fn play(&self, client: &Client, sharing: v1::Sharing) -> Vec<TurnTrace> {
        let session = talk::open(client, self.config(sharing)).await;
        let trace = play_turns(client, &session, &self.turns).await;
        talk::delete(client, &session).await.unwrap();
        trace
    }
}

impl Said {
    fn random(random: &mut fastrand::Rng, shape: Shape) -> Self {
        Self { text: random_text(random, shape.input_chars), sampling: random_sampling(random, shape.output_tokens) }
    }
}

/// Plays turns in a session; tool calls are answered.
pub(crate) async fn play_turns(client: &Client, session: &str, turns: &[Said]) -> Vec<TurnTrace> {
    let mut traces = Vec::new();
    for said in turns {
        let request = talk::says_with(session, &said.text, said.sampling.clone());
        traces.push(TurnTrace::of(&run_to_end(client, request).await.unwrap()));
    }
    traces
}

/// Plays scripts all at once, each in its own session; traces in the order of the scripts.
pub(crate) async fn play_together(client: &Client, scripts: &[Script], sharing: v1::Sharing) -> Vec<Vec<TurnTrace>> {
    let mut tasks = JoinSet::new();
    for (at, script) in scripts.iter().cloned().enumerate() {
        let client = client.clone();
        tasks.spawn(async move { (at, script.play(&client, sharing).await) });
    }
    let mut traces = vec![Vec::new(); scripts.len()];
    while let Some(played) = tasks.join_next().await {
        let (at, trace) = played.unwrap();
        traces[at] = trace;
    }
    traces
}

/// Plays scripts one after the other: each is alone on the device.
pub(crate) async fn play_alone(client: &Client, scripts: &[Script], sharing: v1::Sharing) -> Vec<Vec<TurnTrace>> {
    let mut traces = Vec::new();
    for script in scripts {
        traces.push(script.play(client, sharing).await);
    }
    traces
}

/// Asserts that two plays of the same scripts left the same.
#[track_caller]
pub(crate) fn assert_same(what: &str, scripts: &[Script], left: &[Vec<TurnTrace>], right: &[Vec<TurnTrace>]) {
    assert_eq!((scripts.len(), left.len()), (left.len(), right.len()));
    for ((script, left), right) in scripts.iter().zip(left).zip(right) {
        for (turn, (left, right)) in left.iter().zip(right).enumerate() {
            assert_eq!(left, right, "{what}: script {} differs in turn {}: {script:#?}", script.seed, turn + 1);
        }
        assert_eq!(left.len(), right.len(), "{what}: script {}", script.seed);
    }
}

/// Sampled tokens of traces that carry a log probability.
pub(crate) fn sample_count(traces: &[Vec<TurnTrace>]) -> usize {
    traces.iter().flatten().map(|turn| turn.samples.len()).sum()
}

impl TurnTrace {
    /// The trace of a turn that was heard from its first event to its last.
    pub(crate) fn of(heard: &Heard) -> Self {
        let turn = heard.ended().expect("heard to the end");
        let usage = turn.usage.clone().unwrap_or_default();
        let mut items = Vec::new();
        let mut samples = Vec::new();
        for event in &heard.events {
            match &event.kind {
                Some(Kind::ItemDone(done)) => items.push(describe(done.item.as_ref().expect("an item"))),
                Some(Kind::TextDelta(delta)) => samples.extend(delta.logprobs.iter().map(Sample::of)),
                _ => {}
            }
        }
        Self {
            state: turn.state(),
            stop_reason: turn.stop_reason(),
            items,
            samples,
            output_tokens: usage.output_tokens,
            context_tokens: usage.context_used_tokens,
        }
    }
}

impl Sample {
    pub(crate) fn of(sampled: &v1::TokenLogprob) -> Self {
        Self {
            position: sampled.position,
            token: sampled.token,
            logprob_bits: sampled.logprob.to_bits(),
            top: sampled.top.iter().map(|top| (top.token, top.logprob.to_bits())).collect(),
        }
    }
}

/// An item without what belongs to its session: names and call ids.
pub(crate) fn describe(item: &v1::Item) -> String {
    let kind = match &item.kind {
        Some(v1::item::Kind::Message(message)) => message.role().as_str_name(),
        Some(v1::item::Kind::Reasoning(_)) => "reasoning",
        Some(v1::item::Kind::ToolCall(_)) => "call",
        Some(v1::item::Kind::ToolResult(_)) => "result",
        None => "nothing",
    };
    format!("{kind} {}: {}", item.state().as_str_name(), items::text(item))
}

const CITIES: &[&str] = &["Oslo", "Lima", "Porto", "Quito"];
/// Characters of one to four bytes, some of which no training text held.
const NOISE: &[char] = &['a', 'e', 'T', '7', ' ', '?', '"', '{', '<', '|', '\n', 'ü', 'ß', '漢', '字', '🦀', '\u{301}'];

/// What users of Pebble say, or noise.
fn random_text(random: &mut fastrand::Rng, chars: usize) -> String {
    let number = random.u32(1000..9999);
    let city = random.choice(CITIES).copied().unwrap_or_default();
    let text = match random.u32(0..7) {
        0 => format!("Where is order {number}?"),
        1 => format!("What is the weather in {city}?"),
        2 => format!("My locker code is {number}."),
        3 => "What is my locker code?".to_owned(),
        4 => "Hello".to_owned(),
        _ => (0..random.usize(1..=chars / 2)).filter_map(|_| random.choice(NOISE)).collect(),
    };
    text.chars().take(chars).collect()
}

fn random_sampling(random: &mut fastrand::Rng, output_tokens: u32) -> v1::Sampling {
    let mut sometimes = |chance: u32| random.u32(0..100) < chance;
    let mut sampling = v1::Sampling { logprobs: Some(0), ..Default::default() };
    if sometimes(70) {
        sampling.temperature = Some(1.0);
    }
    if sometimes(30) {
        sampling.top_k = Some(40);
    }
    if sometimes(30) {
        sampling.top_p = Some(0.9);
    }
    if sometimes(20) {
        sampling.min_p = Some(0.02);
    }
    if sometimes(20) {
        sampling.frequency_penalty = Some(0.5);
        sampling.presence_penalty = Some(-0.25);
    }
    if sometimes(20) {
        sampling.repetition_penalty = Some(1.1);
    }
    if sometimes(30) {
        sampling.logit_bias = [(talk::END_TOKEN, -4.0), (300, 1.5)].into();
    }
    if sampling.temperature.is_some() {
        sampling.temperature = Some(0.5 + random.f32());
    }
    sampling.logprobs = Some(random.u32(0..4));
    sampling.max_output_tokens = Some(random.u32(1..=output_tokens));
    sampling.seed = Some(random.u64(..));
    sampling
}
