//! How the next token is chosen.

use serde::{Deserialize, Serialize};

use crate::TokenId;

/// The shared sampler's settings, resolved: what a device sees.
///
/// Order of application: logit bias, penalties, token mask, then greedy if `temperature` is 0, else temperature, top-k,
/// top-p, min-p, and a draw keyed by (seed, position). Log probabilities are of the model's distribution after the mask
/// and before temperature and truncation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// 0 is greedy; at most 2.
    pub temperature: f32,
    /// Keep the k likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set whose probability reaches p, in (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens below `min_p` times the likeliest, in [0, 1]; 0 keeps all.
    pub min_p: f32,
    /// Subtracted per earlier occurrence among the tokens sampled in this turn, in [-2, 2].
    pub frequency_penalty: f32,
    /// Subtracted once if sampled earlier in this turn, in [-2, 2].
    pub presence_penalty: f32,
    /// Divides (positive) or multiplies (negative) the logits of tokens seen anywhere in the context, in (0, 10]; 1 is off.
    pub repetition_penalty: f32,
    /// Added to the logits of single tokens; negative infinity bans a token.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// How many alternatives to report beside the sampled token; `None` reports no log probabilities at all.
    pub logprobs: Option<u32>,
}

impl Default for SamplingParams {
    /// Greedy, nothing else.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            logprobs: None,
        }
    }
}

/// What one layer of precedence says about sampling: request over session over generation_config.json over built-in.
/// Absent fields fall through to the next layer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingOverrides {
    /// See [`SamplingParams::temperature`].
    pub temperature: Option<f32>,
    /// See [`SamplingParams::top_k`].
    pub top_k: Option<u32>,
    /// See [`SamplingParams::top_p`].
    pub top_p: Option<f32>,
    /// See [`SamplingParams::min_p`].
    pub min_p: Option<f32>,
    /// See [`SamplingParams::frequency_penalty`].
    pub frequency_penalty: Option<f32>,
    /// See [`SamplingParams::presence_penalty`].
    pub presence_penalty: Option<f32>,
    /// See [`SamplingParams::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
    /// See [`SamplingParams::logit_bias`]; a layer replaces the whole list.
    pub logit_bias: Option<Vec<(TokenId, f32)>>,
    /// See [`SamplingParams::logprobs`].
    pub logprobs: Option<u32>,
    /// Seed of the turn; drawn and journaled when no layer gives one.
    pub seed: Option<u64>,
    /// Most tokens that one turn may sample, over all its generations.
    pub max_output_tokens: Option<u32>,
    /// Strings that end the turn; the text is cut before the first that appears.
    pub stop: Option<Vec<String>>,
}

impl SamplingOverrides {
    /// This layer over `below`: a field of `self` wins where it is present.
    #[must_use]
    pub fn over(self, below: &Self) -> Self {
        Self {
            temperature: self.temperature.or(below.temperature),
            top_k: self.top_k.or(below.top_k),
            top_p: self.top_p.or(below.top_p),
            min_p: self.min_p.or(below.min_p),
            frequency_penalty: self.frequency_penalty.or(below.frequency_penalty),
            presence_penalty: self.presence_penalty.or(below.presence_penalty),
            repetition_penalty: self.repetition_penalty.or(below.repetition_penalty),
            logit_bias: self.logit_bias.or_else(|| below.logit_bias.clone()),
            logprobs: self.logprobs.or(below.logprobs),
            seed: self.seed.or(below.seed),
            max_output_tokens: self.max_output_tokens.or(below.max_output_tokens),
            stop: self.stop.or_else(|| below.stop.clone()),
        }
    }

    /// Fills what is still absent from the built-in defaults. `seed` is the one to use when no layer gave one.
    pub fn resolve(self, drawn_seed: u64, default_max_output_tokens: u32) -> GenerationSettings {
        let built_in = SamplingParams::default();
        GenerationSettings {
            sampling: SamplingParams {
                temperature: self.temperature.unwrap_or(built_in.temperature),
                top_k: self.top_k.unwrap_or(built_in.top_k),
                top_p: self.top_p.unwrap_or(built_in.top_p),
                min_p: self.min_p.unwrap_or(built_in.min_p),
                frequency_penalty: self.frequency_penalty.unwrap_or(built_in.frequency_penalty),
                presence_penalty: self.presence_penalty.unwrap_or(built_in.presence_penalty),
                repetition_penalty: self.repetition_penalty.unwrap_or(built_in.repetition_penalty),
                logit_bias: self.logit_bias.unwrap_or_default(),
                logprobs: self.logprobs,
            },
            seed: self.seed.unwrap_or(drawn_seed),
            max_output_tokens: self.max_output_tokens.unwrap_or(default_max_output_tokens),
            stop: self.stop.unwrap_or_default(),
        }
    }
}

/// Everything that decides what a turn samples, resolved, journaled and reported.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerationSettings {
    /// The sampler's settings.
    pub sampling: SamplingParams,
    /// The draw at log position p is keyed by (seed, p).
    pub seed: u64,
    /// Most tokens that the turn may sample, over all its generations.
    pub max_output_tokens: u32,
    /// Strings that end the turn.
    pub stop: Vec<String>,
}

/// A form that an answer is held to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// A JSON schema, as JSON text: the answer is a value that it accepts.
    JsonSchema(String),
    /// A regular expression that the whole answer matches.
    Regex(String),
    /// A context-free grammar in Lark's notation that the whole answer follows.
    Grammar(String),
    /// One of these strings.
    Choice(Vec<String>),
}

impl Constraint {
    /// Bytes of its text, all choices together.
    pub fn bytes(&self) -> usize {
        match self {
            Self::JsonSchema(text) | Self::Regex(text) | Self::Grammar(text) => text.len(),
            Self::Choice(values) => values.iter().map(String::len).sum(),
        }
    }
}
