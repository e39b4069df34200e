//! The names of every span, attribute and metric, in one place.
//!
//! GenAI names follow the OpenTelemetry semantic conventions for generative AI (status: Development), so they are pinned here
//! and change here only; what has no convention (blocks, tiers, reuse, steps, the journal) is ours, under `holdfast.*`.
//! [`ALL`] is the list that `docs/telemetry.md` prints and a test compares. Deliberately not here: values, and who records them.

/// What a name is a name of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameKind {
    /// A span.
    Span,
    /// An attribute of a span or metric.
    Attribute,
    /// A metric that only rises.
    Counter,
    /// A metric that is set.
    Gauge,
    /// A metric of distributions.
    Histogram,
}

impl NameKind {
    /// The word in `docs/telemetry.md`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Span => "span",
            Self::Attribute => "attribute",
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One name with what an operator wants to know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    /// The name itself.
    pub name: &'static str,
    /// What it names.
    pub kind: NameKind,
    /// UCUM unit of a metric; empty for spans and attributes.
    pub unit: &'static str,
    /// Meaning in one line.
    pub meaning: &'static str,
}

impl Name {
    /// The entry of a name, if it is in the list.
    pub fn find(name: &str) -> Option<&'static Name> {
        ALL.iter().find(|entry| entry.name == name)
    }
}

macro_rules! names {
    ($(#[doc = $meaning:literal] $constant:ident = $name:literal, $kind:ident, $unit:literal;)*) => {
        $(#[doc = $meaning] pub const $constant: &str = $name;)*

        /// Every name, in the order of `docs/telemetry.md`.
        pub const ALL: &[Name] = &[
            $(Name { name: $name, kind: NameKind::$kind, unit: $unit, meaning: $meaning.trim_ascii() },)*
        ];
    };
}

names! {
    /// One gRPC request at the gateway, until its answer or its stream ends.
    SPAN_REQUEST = "holdfast.request", Span, "";
    /// One turn at the worker, from acceptance to its terminal event; shown as `chat {model}`.
    SPAN_TURN = "holdfast.turn", Span, "";
    /// One generation of a turn.
    SPAN_GENERATION = "holdfast.generation", Span, "";
    /// A session's entries are read.
    SPAN_SESSION_LOAD = "holdfast.session.load", Span, "";
    /// One step of a device, from submit to collect.
    SPAN_STEP = "holdfast.step", Span, "";
    /// One group commit of the journal.
    SPAN_JOURNAL_COMMIT = "holdfast.journal.commit", Span, "";
    /// A model is read from disk and checked.
    SPAN_MODEL_LOAD = "holdfast.model.load", Span, "";

    /// What the model is asked to do: `chat` for turns, `text_completion` for the stateless baseline.
    GEN_AI_OPERATION_NAME = "gen_ai.operation.name", Attribute, "";
    /// Always `holdfast`.
    GEN_AI_PROVIDER_NAME = "gen_ai.provider.name", Attribute, "";
    /// The session's id.
    GEN_AI_CONVERSATION_ID = "gen_ai.conversation.id", Attribute, "";
    /// The model that was asked for.
    GEN_AI_REQUEST_MODEL = "gen_ai.request.model", Attribute, "";
    /// Whether the answer is streamed.
    GEN_AI_REQUEST_STREAM = "gen_ai.request.stream", Attribute, "";
    /// The turn's name.
    GEN_AI_RESPONSE_ID = "gen_ai.response.id", Attribute, "";
    /// The model that answered.
    GEN_AI_RESPONSE_MODEL = "gen_ai.response.model", Attribute, "";
    /// Why the generations stopped.
    GEN_AI_RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons", Attribute, "";
    /// Seconds to the first chunk of the answer.
    GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk", Attribute, "";
    /// Tokens of context.
    GEN_AI_USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens", Attribute, "";
    /// Tokens sampled.
    GEN_AI_USAGE_OUTPUT_TOKENS = "gen_ai.usage.output_tokens", Attribute, "";
    /// Tokens of context whose KV was found.
    GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS = "gen_ai.usage.cache_read.input_tokens", Attribute, "";
    /// Tokens of context whose KV was computed and kept.
    GEN_AI_USAGE_CACHE_WRITE_INPUT_TOKENS = "gen_ai.usage.cache_write.input_tokens", Attribute, "";
    /// Sampled tokens that were reasoning.
    GEN_AI_USAGE_REASONING_OUTPUT_TOKENS = "gen_ai.usage.reasoning.output_tokens", Attribute, "";
    /// The tool that was asked for.
    GEN_AI_TOOL_NAME = "gen_ai.tool.name", Attribute, "";
    /// The id of a tool call.
    GEN_AI_TOOL_CALL_ID = "gen_ai.tool.call.id", Attribute, "";
    /// The reason of a failure, from the closed list.
    ERROR_TYPE = "error.type", Attribute, "";
    /// Always `grpc`.
    RPC_SYSTEM = "rpc.system", Attribute, "";
    /// The gRPC method, `package.Service/Method`.
    RPC_METHOD = "rpc.method", Attribute, "";
    /// The reason that a request was answered with, from the closed list, or `OK`.
    REASON = "holdfast.reason", Attribute, "";
    /// Whose session.
    TENANT = "holdfast.tenant", Attribute, "";
    /// Number of a turn in its session.
    TURN_NUMBER = "holdfast.turn.number", Attribute, "";
    /// State of a turn.
    TURN_STATE = "holdfast.turn.state", Attribute, "";
    /// Why a turn ended.
    STOP_REASON = "holdfast.turn.stop_reason", Attribute, "";
    /// Number of a generation in its turn.
    GENERATION = "holdfast.generation.number", Attribute, "";
    /// State of a session.
    SESSION_STATE = "holdfast.session.state", Attribute, "";
    /// Name of a device.
    DEVICE = "holdfast.device", Attribute, "";
    /// What a block of KV is doing: `used`, `cached` or `free`.
    KV_BLOCK_STATE = "holdfast.kv.block.state", Attribute, "";
    /// What became of a token: `cached`, `computed`, `recomputed`, `preempted` or `output`.
    TOKEN_KIND = "holdfast.token.kind", Attribute, "";
    /// Number of a step of a device.
    STEP_ID = "holdfast.step.id", Attribute, "";
    /// Rows of a step.
    ROWS = "holdfast.step.row_count", Attribute, "";
    /// Sequences of a step.
    SEQUENCES = "holdfast.step.sequence_count", Attribute, "";
    /// Batches of a group commit.
    BATCHES = "holdfast.journal.batch_count", Attribute, "";
    /// Entries of a group commit.
    ENTRIES = "holdfast.journal.entry_count", Attribute, "";
    /// Whether a group commit was made safe against a loss of power.
    POWER_SAFE = "holdfast.journal.power_safe", Attribute, "";

    /// From acceptance of a turn to its end.
    GEN_AI_SERVER_REQUEST_DURATION = "gen_ai.server.request.duration", Histogram, "s";
    /// From acceptance of a generation to its first sampled token.
    GEN_AI_SERVER_TIME_TO_FIRST_TOKEN = "gen_ai.server.time_to_first_token", Histogram, "s";
    /// Mean time between the tokens of a generation after its first.
    GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN = "gen_ai.server.time_per_output_token", Histogram, "s";
    /// Sessions loaded in the worker, by state.
    SESSIONS = "holdfast.sessions", Gauge, "{session}";
    /// Turns that have not ended, by state.
    TURNS_OPEN = "holdfast.turns.open", Gauge, "{turn}";
    /// Turns that ended, by state and stop reason.
    TURNS_ENDED = "holdfast.turns.ended", Counter, "{turn}";
    /// Sequences that wait for a place on a device.
    QUEUE_DEPTH = "holdfast.queue.depth", Gauge, "{sequence}";
    /// Blocks of KV of a device, by what they are doing.
    KV_BLOCKS = "holdfast.kv.blocks", Gauge, "{block}";
    /// Input tokens whose KV was found over all input tokens, since the start.
    REUSE_RATIO = "holdfast.reuse", Gauge, "1";
    /// Tokens, by what became of them.
    TOKENS = "holdfast.tokens", Counter, "{token}";
    /// Sequences that lost their blocks to an older one.
    PREEMPTIONS = "holdfast.preemptions", Counter, "{sequence}";
    /// Time of a step of a device, from submit to collect.
    STEP_DURATION = "holdfast.step.duration", Histogram, "s";
    /// Sequences in a step: the batch size.
    STEP_SEQUENCES = "holdfast.step.sequences", Histogram, "{sequence}";
    /// Rows in a step.
    STEP_ROWS = "holdfast.step.rows", Histogram, "{row}";
    /// Modelled: time of a step on the chip that the device stands for.
    STEP_MODELLED_DURATION = "holdfast.step.modelled.duration", Histogram, "s";
    /// Modelled: the part of a step's multiplications on that chip that is padding.
    STEP_MODELLED_PADDING = "holdfast.step.modelled.padding", Histogram, "1";
    /// Modelled: programs for that chip that were made after the first step; none ever should be.
    MODELLED_PROGRAMS_LATE = "holdfast.modelled.programs.late", Counter, "{program}";
    /// Time of a group commit of the journal.
    JOURNAL_COMMIT_DURATION = "holdfast.journal.commit.duration", Histogram, "s";
    /// Batches in a group commit.
    JOURNAL_COMMIT_BATCHES = "holdfast.journal.commit.batches", Histogram, "{batch}";
    /// gRPC requests that were answered, by method and reason.
    GRPC_REQUESTS = "holdfast.grpc.requests", Counter, "{request}";
    /// Streams that are open.
    STREAMS_OPEN = "holdfast.streams.open", Gauge, "{stream}";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_dotted_lowercase_and_metrics_have_units() {
        let mut seen = BTreeSet::new();
        for entry in ALL {
            assert!(seen.insert(entry.name), "{} twice", entry.name);
            assert!(
                entry.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._".contains(&b)),
                "{}",
                entry.name
            );
            let metric = !matches!(entry.kind, NameKind::Span | NameKind::Attribute);
            assert_eq!(!entry.unit.is_empty(), metric, "{}", entry.name);
            assert!(entry.meaning.ends_with('.'), "{}", entry.name);
        }
    }
}
