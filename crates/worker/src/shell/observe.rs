//! What is recorded of turns: their spans, and the metrics of their generations and ends.
//!
//! In: what passes through the shell (batches and their commits, runs, what was read of sessions, completions and their ends). Out:
//! spans under the names of `holdfast_telemetry::names`, [`Metrics`]. Deliberately not here: steps (the engine's), requests (the
//! gateway's), and any influence on what happens: a turn goes the same way whether it is observed or not.
//!
//! A turn's span begins when the turn is accepted, below the span of the request that asked for it, and ends when its end is
//! committed. Below it each generation has one, from the run that is handed to the engine to the entry of its end; steps hang
//! below those. Metrics count what is committed, so that nothing counts twice after a crash.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::{Effect as EngineEffect, Run, RunId};
use holdfast_journal::{Batch, Body, NewEntry};
use holdfast_telemetry::{Metrics, RunSpans, TokenCounts, names, propagation, set_words};
use holdfast_types::{Failure, Reason, SessionId, StopReason, TenantId, TimeUs, Turn, TurnNumber, TurnState, Usage};
use holdfast_worker_api::{Caller, Generate};
use tracing::Span;
use tracing::field::Empty;

use crate::core::{Channel, Reply, RequestId, Ticket};

/// Turns that are followed at once. One that comes on top has no span, and its duration is not counted; turns that wait for
/// tool results are the only ones without another bound.
const TURNS_MAX: usize = 65_536;

/// The one turn of a completion.
const OF_COMPLETION: TurnNumber = TurnNumber(0);

/// Who provides the model.
const PROVIDER: &str = "holdfast";

/// What a turn asks of the model: the first word of its span's name.
#[derive(Clone, Copy)]
enum Operation {
    Chat,
    TextCompletion,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::TextCompletion => "text_completion",
        }
    }
}

/// A turn that begins.
struct Opening<'a> {
    operation: Operation,
    tenant: &'a TenantId,
    model: &'a str,
    traceparent: &'a str,
    accepted_us: TimeUs,
}

/// A turn that has not ended.
struct OpenTurn {
    model: String,
    span: Span,
    /// The generation that runs.
    generation: Span,
    accepted_us: TimeUs,
    usage: Usage,
    stop_reasons: Vec<&'static str>,
}

/// What counts once its batch is committed.
enum Fact {
    Accepted(TurnNumber),
    Generation(TurnNumber, StopReason, Box<Usage>),
    Ended(TurnNumber, TurnEnd),
}

/// How a turn ended.
struct TurnEnd {
    time_us: TimeUs,
    state: TurnState,
    stop_reason: Option<StopReason>,
    reason: Option<Reason>,
}

/// Facts of a batch on its way.
struct Uncommitted {
    channel: Channel,
    model: String,
    facts: Vec<Fact>,
}

/// A completion that was asked for.
struct Asked {
    tenant: TenantId,
    traceparent: String,
    model: String,
    time_us: TimeUs,
}

/// Owned by the task that drives the core, which tells it of everything in order.
pub(super) struct Observer {
    metrics: Arc<Metrics>,
    runs: RunSpans,
    default_model: String,
    turns: HashMap<(Channel, TurnNumber), OpenTurn>,
    uncommitted: HashMap<Ticket, Uncommitted>,
    asked: HashMap<RequestId, Asked>,
}

impl Observer {
    pub(super) fn new(metrics: Arc<Metrics>, runs: RunSpans, default_model: String) -> Self {
        let (turns, uncommitted, asked) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { metrics, runs, default_model, turns, uncommitted, asked }
    }

    /// A session was read: turns that were interrupted go on, in the traces that they belong to.
    pub(super) fn loaded(&mut self, tenant: &TenantId, session: &SessionId, entries: &[NewEntry]) {
        let mut model = "";
        let mut open: BTreeMap<TurnNumber, (&NewEntry, Usage)> = BTreeMap::new();
        for entry in entries {
            match &entry.body {
                Body::SessionCreated { config, .. } | Body::SessionUpdated { config: Some(config), .. } => {
                    model = &config.model;
                }
                Body::TurnAccepted { turn, .. } => {
                    open.insert(*turn, (entry, Usage::default()));
                }
                Body::GenerationEnded { turn, usage, .. } => {
                    if let Some((_, sum)) = open.get_mut(turn) {
                        *sum += usage;
                    }
                }
                Body::TurnEnded { turn, .. } => {
                    open.remove(turn);
                }
                _ => {}
            }
        }
        for (turn, (accepted, usage)) in open {
            let key = (Channel::Session(tenant.clone(), session.clone()), turn);
            if self.turns.contains_key(&key) {
                continue;
            }
            let (traceparent, accepted_us) = (accepted.traceparent.as_str(), accepted.time_us);
            let opening = Opening { operation: Operation::Chat, tenant, model, traceparent, accepted_us };
            if let Some(open) = self.open(key, &opening) {
                open.usage = usage;
            }
        }
    }

    /// A batch is handed to the journal.
    pub(super) fn appended(&mut self, ticket: Ticket, batch: &Batch) {
        // Batches of nothing but tokens have no head: the most frequent ones end here.
        let (Some(head), Some(first)) = (&batch.head, batch.entries.first()) else { return };
        let channel = Channel::Session(first.tenant.clone(), first.session.clone());
        let mut facts = Vec::new();
        for entry in &batch.entries {
            match &entry.body {
                Body::TurnAccepted { turn, .. } => {
                    let (operation, model) = (Operation::Chat, head.model.as_str());
                    let (tenant, traceparent, accepted_us) = (&entry.tenant, &*entry.traceparent, entry.time_us);
                    let opening = Opening { operation, tenant, model, traceparent, accepted_us };
                    self.open((channel.clone(), *turn), &opening);
                    facts.push(Fact::Accepted(*turn));
                }
                Body::TurnStarted { turn } => {
                    if let Some(open) = self.turns.get(&(channel.clone(), *turn)) {
                        tracing::debug!(parent: &open.span, "the turn left the queue");
                    }
                }
                Body::ToolResults { turn, .. } => {
                    if let Some(open) = self.turns.get(&(channel.clone(), *turn)) {
                        propagation::link(&open.span, &entry.traceparent);
                    }
                }
                Body::GenerationEnded { turn, stop_reason, usage, .. } => {
                    if let Some(open) = self.turns.get_mut(&(channel.clone(), *turn)) {
                        open.end_generation(*stop_reason, usage);
                    }
                    facts.push(Fact::Generation(*turn, *stop_reason, usage.clone()));
                }
                Body::TurnEnded { turn, state, stop_reason, failure } => {
                    let reason = failure.as_ref().map(|failure| failure.reason);
                    let end = TurnEnd { time_us: entry.time_us, state: *state, stop_reason: *stop_reason, reason };
                    facts.push(Fact::Ended(*turn, end));
                }
                _ => {}
            }
        }
        if !facts.is_empty() {
            self.uncommitted.insert(ticket, Uncommitted { channel, model: head.model.clone(), facts });
        }
    }

    /// A batch is committed, or will never be: then nothing of it happened.
    pub(super) fn committed(&mut self, ticket: Ticket, is_committed: bool) {
        let Some(Uncommitted { channel, model, facts }) = self.uncommitted.remove(&ticket) else { return };
        for fact in facts {
            match fact {
                Fact::Accepted(turn) => {
                    if !is_committed && let Some(open) = self.turns.remove(&(channel.clone(), turn)) {
                        open.span.record(names::ERROR_TYPE, Reason::JournalUnavailable.as_str());
                    }
                }
                _ if !is_committed => {}
                Fact::Generation(turn, stop_reason, usage) => {
                    self.generation_ended(&(channel.clone(), turn), &model, stop_reason, &usage);
                }
                Fact::Ended(turn, end) => self.turn_ended(&(channel.clone(), turn), &model, &end),
            }
        }
    }

    /// A run is about to be handed to its engine, for a generation of that turn if it is for one.
    pub(super) fn running(&mut self, run: &Run, turn: Option<(Channel, TurnNumber, u32)>) {
        let Some((channel, number, generation)) = turn.filter(|_| run.sample.is_some()) else { return };
        let Some(open) = self.turns.get_mut(&key(channel, number)) else { return };
        open.generation = tracing::info_span!(
            parent: &open.span,
            names::SPAN_GENERATION,
            otel.status_code = Empty,
            { names::GENERATION } = i64::from(generation),
            { names::STOP_REASON } = Empty,
            { names::GEN_AI_USAGE_INPUT_TOKENS } = Empty,
            { names::GEN_AI_USAGE_OUTPUT_TOKENS } = Empty,
            { names::GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS } = Empty,
            { names::GEN_AI_USAGE_CACHE_WRITE_INPUT_TOKENS } = Empty,
            { names::GEN_AI_USAGE_REASONING_OUTPUT_TOKENS } = Empty,
            { names::GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK } = Empty,
            { names::ERROR_TYPE } = Empty,
        );
        self.runs.insert(run.run.0, &open.generation);
    }

    /// An engine reports: steps look no more for what has ended.
    pub(super) fn engine_reported(&self, effects: &[EngineEffect]) {
        for effect in effects {
            if let EngineEffect::Finished { run: RunId(run), .. } | EngineEffect::Failed { run: RunId(run), .. } =
                effect
            {
                self.runs.remove(*run);
            }
        }
    }

    /// Nothing runs any more and the process is about to end: what is open goes on elsewhere or later. Closed here, before the drain
    /// is over, because exporters stop right after it.
    pub(super) fn drained(&mut self) {
        self.turns.clear();
    }

    /// Someone asks for a completion.
    pub(super) fn completion_asked(&mut self, id: RequestId, caller: &Caller, request: &Generate, time_us: TimeUs) {
        let model = match request.config.model.as_str() {
            "" => self.default_model.clone(),
            model => model.to_owned(),
        };
        let (tenant, traceparent) = (caller.tenant.clone(), caller.traceparent.clone());
        self.asked.insert(id, Asked { tenant, traceparent, model, time_us });
    }

    /// A request is answered; a completion that was not refused has begun.
    pub(super) fn replied(&mut self, id: RequestId, result: &Result<Reply, Failure>) {
        // Most requests are none for completions: no look-up for them.
        if self.asked.is_empty() {
            return;
        }
        let Some(Asked { tenant, traceparent, model, time_us }) = self.asked.remove(&id) else { return };
        if let Ok(Reply::Completion(completion)) = result {
            let key = (Channel::Completion(*completion), OF_COMPLETION);
            let operation = Operation::TextCompletion;
            let (tenant, model, traceparent) = (&tenant, model.as_str(), traceparent.as_str());
            self.open(key, &Opening { operation, tenant, model, traceparent, accepted_us: time_us });
        }
    }

    /// A completion's stream is over; `turn` as its terminal event told it, `None` when its reader went away before.
    pub(super) fn completion_ended(&mut self, completion: u64, turn: Option<Box<Turn>>, now: TimeUs) {
        let key = (Channel::Completion(completion), OF_COMPLETION);
        let Some(model) = self.turns.get(&key).map(|open| open.model.clone()) else { return };
        let (state, stop_reason) = (TurnState::Cancelled, Some(StopReason::Cancelled));
        let mut end = TurnEnd { time_us: now, state, stop_reason, reason: None };
        if let Some(turn) = turn {
            for generation in &turn.generations {
                if let Some(open) = self.turns.get_mut(&key) {
                    open.end_generation(generation.stop_reason, &generation.usage);
                }
                self.generation_ended(&key, &model, generation.stop_reason, &generation.usage);
            }
            let reason = turn.failure.as_ref().map(|failure| failure.reason);
            let time_us = turn.ended_us.unwrap_or(now);
            end = TurnEnd { time_us, state: turn.state, stop_reason: turn.stop_reason, reason };
        }
        self.turn_ended(&key, &model, &end);
    }

    /// Follows a turn from now on; `None` when too many are followed.
    fn open(&mut self, key: (Channel, TurnNumber), opening: &Opening<'_>) -> Option<&mut OpenTurn> {
        if self.turns.len() >= TURNS_MAX {
            return None;
        }
        let Opening { operation, tenant, model, traceparent, accepted_us } = *opening;
        let operation = operation.as_str();
        let span = tracing::info_span!(
            parent: None,
            names::SPAN_TURN,
            otel.name = format!("{operation} {model}"),
            otel.status_code = Empty,
            { names::GEN_AI_OPERATION_NAME } = operation,
            { names::GEN_AI_PROVIDER_NAME } = PROVIDER,
            { names::GEN_AI_CONVERSATION_ID } = Empty,
            { names::GEN_AI_REQUEST_MODEL } = model,
            { names::GEN_AI_RESPONSE_MODEL } = model,
            { names::GEN_AI_RESPONSE_ID } = Empty,
            { names::GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK } = Empty,
            { names::GEN_AI_USAGE_INPUT_TOKENS } = Empty,
            { names::GEN_AI_USAGE_OUTPUT_TOKENS } = Empty,
            { names::GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS } = Empty,
            { names::GEN_AI_USAGE_CACHE_WRITE_INPUT_TOKENS } = Empty,
            { names::GEN_AI_USAGE_REASONING_OUTPUT_TOKENS } = Empty,
            { names::TENANT } = tenant.as_str(),
            { names::TURN_NUMBER } = Empty,
            { names::TURN_STATE } = Empty,
            { names::STOP_REASON } = Empty,
            { names::ERROR_TYPE } = Empty,
        );
        propagation::set_parent(&span, traceparent);
        if let (Channel::Session(_, session), turn) = &key
            && !span.is_disabled()
        {
            span.record(names::GEN_AI_CONVERSATION_ID, session.as_str());
            span.record(names::GEN_AI_RESPONSE_ID, format!("sessions/{session}/turns/{turn}", turn = turn.0));
            span.record(names::TURN_NUMBER, i64::from(turn.0));
        }
        let (generation, usage) = (Span::none(), Usage::default());
        let turn = OpenTurn { model: model.to_owned(), span, generation, accepted_us, usage, stop_reasons: Vec::new() };
        Some(self.turns.entry(key).insert_entry(turn).into_mut())
    }

    fn generation_ended(&mut self, key: &(Channel, TurnNumber), model: &str, stop_reason: StopReason, usage: &Usage) {
        if let Some(open) = self.turns.get_mut(key) {
            open.usage += usage;
            open.stop_reasons.push(word(stop_reason));
        }
        let tokens = TokenCounts {
            cached: usage.cached.total(),
            computed: usage.computed_tokens,
            recomputed: usage.recomputed_tokens,
            preempted: usage.preempted_tokens,
            output: usage.output_tokens,
        };
        let first = (usage.time_to_first_token_us > 0).then(|| Duration::from_micros(usage.time_to_first_token_us));
        self.metrics.generation_ended(model, tokens, first, Duration::from_micros(usage.duration_us));
    }

    fn turn_ended(&mut self, key: &(Channel, TurnNumber), model: &str, end: &TurnEnd) {
        let open = self.turns.remove(key);
        let state = state_word(end.state);
        let why = end.reason.map(|reason| reason.as_str()).or(end.stop_reason.map(word)).unwrap_or("");
        let duration = open.as_ref().map(|open| Duration::from_micros(end.time_us.saturating_sub(open.accepted_us)));
        self.metrics.turn_ended(model, state, why, duration);
        let Some(OpenTurn { span, generation, usage, stop_reasons, .. }) = open else { return };
        record_usage(&span, &usage);
        span.record(names::TURN_STATE, state);
        if let Some(stop_reason) = end.stop_reason {
            span.record(names::STOP_REASON, word(stop_reason));
        }
        set_words(&span, names::GEN_AI_RESPONSE_FINISH_REASONS, &stop_reasons);
        if let Some(reason) = end.reason {
            for failed in [&span, &generation] {
                failed.record(names::ERROR_TYPE, reason.as_str());
                failed.record("otel.status_code", "ERROR");
            }
        }
    }
}

impl OpenTurn {
    fn end_generation(&mut self, stop_reason: StopReason, usage: &Usage) {
        let span = std::mem::replace(&mut self.generation, Span::none());
        span.record(names::STOP_REASON, word(stop_reason));
        record_usage(&span, usage);
    }
}

fn record_usage(span: &Span, usage: &Usage) {
    for (name, tokens) in [
        (names::GEN_AI_USAGE_INPUT_TOKENS, usage.input_tokens),
        (names::GEN_AI_USAGE_OUTPUT_TOKENS, usage.output_tokens),
        (names::GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS, usage.cached.total()),
        (names::GEN_AI_USAGE_CACHE_WRITE_INPUT_TOKENS, usage.computed_tokens + usage.recomputed_tokens),
        (names::GEN_AI_USAGE_REASONING_OUTPUT_TOKENS, usage.reasoning_tokens),
    ] {
        // Signed: the exporter writes unsigned numbers as text.
        span.record(name, tokens as i64);
    }
    if usage.time_to_first_token_us > 0 {
        span.record(names::GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, usage.time_to_first_token_us as f64 / 1e6);
    }
}

/// A turn is found by its session and number, or by its completion, which has one only.
fn key(channel: Channel, turn: TurnNumber) -> (Channel, TurnNumber) {
    let turn = if matches!(channel, Channel::Completion(_)) { OF_COMPLETION } else { turn };
    (channel, turn)
}

/// As clients are told it.
fn word(reason: StopReason) -> &'static str {
    match reason {
        StopReason::EndTurn => "end_turn",
        StopReason::ToolCall => "tool_call",
        StopReason::MaxOutputTokens => "max_output_tokens",
        StopReason::StopSequence => "stop_sequence",
        StopReason::ContextFull => "context_full",
        StopReason::Cancelled => "cancelled",
        StopReason::DeadlineExceeded => "deadline_exceeded",
    }
}

fn state_word(state: TurnState) -> &'static str {
    match state {
        TurnState::Queued => "queued",
        TurnState::Running => "running",
        TurnState::RequiresAction => "requires_action",
        TurnState::Completed => "completed",
        TurnState::Incomplete => "incomplete",
        TurnState::Cancelled => "cancelled",
        TurnState::Failed => "failed",
    }
}
