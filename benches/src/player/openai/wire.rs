//! The JSON of the chat API, as much of it as is used (OpenAI API reference, chat completions; llama.cpp server's `timings`).

use serde::{Deserialize, Serialize};

use crate::player::Tokens;

/// `POST /v1/chat/completions`.
#[derive(Debug, Serialize)]
pub(super) struct Request<'a> {
    model: &'a str,
    messages: &'a [Message],
    max_tokens: u32,
    temperature: f32,
    stream: bool,
    stream_options: StreamOptions,
    #[serde(flatten)]
    hints: Option<Hints>,
}

#[derive(Debug, Serialize)]
struct StreamOptions {
    include_usage: bool,
}

/// What vLLM, SGLang and llama.cpp understand beyond OpenAI's fields.
#[derive(Debug, Serialize)]
struct Hints {
    /// Every answer has the length that was asked for, whatever its words.
    ignore_eos: bool,
    /// Reuse what the last request left (llama.cpp).
    cache_prompt: bool,
}

/// One message of the conversation.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Message {
    role: &'static str,
    content: String,
}

/// `GET /v1/models`.
#[derive(Debug, Deserialize)]
pub(super) struct Models {
    pub(super) data: Vec<Model>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Model {
    pub(super) id: String,
}

/// One event of the stream.
#[derive(Debug, Deserialize)]
pub(super) struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    timings: Option<Timings>,
    pub(super) error: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
}

#[derive(Debug, Default, Deserialize)]
struct Delta {
    content: Option<String>,
    #[serde(alias = "reasoning")]
    reasoning_content: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Debug, Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
}

/// llama.cpp's own account.
#[derive(Debug, Deserialize)]
struct Timings {
    cache_n: Option<u64>,
}

impl<'a> Request<'a> {
    pub(super) fn new(model: &'a str, messages: &'a [Message], max_tokens: u32, hints: bool) -> Self {
        let hints = hints.then_some(Hints { ignore_eos: true, cache_prompt: true });
        let stream_options = StreamOptions { include_usage: true };
        Self { model, messages, max_tokens, temperature: 0.0, stream: true, stream_options, hints }
    }
}

impl Message {
    pub(super) fn user(text: &str) -> Self {
        Self { role: "user", content: text.to_owned() }
    }

    pub(super) fn assistant(text: &str) -> Self {
        Self { role: "assistant", content: text.to_owned() }
    }
}

impl Chunk {
    /// The pieces of the answer in it; empty ones carry only a role.
    pub(super) fn words(&self) -> impl Iterator<Item = &str> {
        let deltas = self.choices.iter().map(|choice| &choice.delta);
        let words = deltas.flat_map(|delta| [&delta.reasoning_content, &delta.content]);
        words.filter_map(|word| word.as_deref()).filter(|word| !word.is_empty())
    }

    /// What the request cost, if this is the chunk that tells.
    pub(super) fn tokens(&self) -> Option<Tokens> {
        let usage = self.usage.as_ref()?;
        let details = usage.prompt_tokens_details.as_ref().and_then(|details| details.cached_tokens);
        let cached = details.or_else(|| self.timings.as_ref()?.cache_n).unwrap_or(0);
        Some(Tokens {
            input: usage.prompt_tokens,
            cached,
            computed: usage.prompt_tokens.saturating_sub(cached),
            output: usage.completion_tokens,
        })
    }
}
