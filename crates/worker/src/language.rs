//! What a worker asks of a model's text side: tokens to text, items to tokens, the form of a tool call.
//!
//! In: items and token ids. Out: token ids and bytes. One trait, so that the fold and the core are tested in microseconds
//! with a language of a few characters. Deliberately not here: how any of it is done (the model crate's), weights.

pub use holdfast_model::{CallLayout, ChannelMark, ReasoningForm};
use holdfast_types::{Digest, Item, ReasoningEffort, SamplingOverrides, SessionConfig, TokenId, Tool};

/// How a token log ends, as far as rendering what follows depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogEnd {
    /// The log is empty.
    #[default]
    Start,
    /// After items that were rendered, or closed after an early end.
    Closed,
    /// After a sampled stop token.
    Sampled,
    /// After the generation prompt, with nothing sampled.
    Prompted,
    /// After sampled text without a stop token: what ended early.
    Open,
}

impl LogEnd {
    /// Whether closing tokens are due before anything else is appended.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Prompted | Self::Open)
    }
}

/// What a conversation begins with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Prompt<'a> {
    /// The system message; empty for none.
    pub instructions: &'a str,
    /// Tools that the model is told of.
    pub tools: &'a [Tool],
    /// The date that templates see as today, `YYYY-MM-DD`.
    pub date: &'a str,
    /// A named template; empty for the default.
    pub template: &'a str,
    /// How much the model is to think; `None` for the template's own choice.
    pub effort: Option<ReasoningEffort>,
    /// Calls made earlier that results among the items answer.
    pub calls: &'a [Item],
}

impl<'a> Prompt<'a> {
    /// The prompt of a session.
    pub fn of(config: &'a SessionConfig, date: &'a str) -> Self {
        Self {
            instructions: &config.instructions,
            tools: &config.tools,
            date,
            template: &config.template,
            effort: config.reasoning_effort,
            calls: &[],
        }
    }
}

/// How a model writes a tool call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CallForm {
    /// The text that opens a call.
    pub open: String,
    /// The single token that opens a call, if there is one.
    pub open_token: Option<TokenId>,
    /// The text that closes a call; `None`: it ends with the generation, or as `layout` says.
    pub close: Option<String>,
    /// The single token that closes a call, if there is one.
    pub close_token: Option<TokenId>,
    /// How several calls follow each other.
    pub layout: CallLayout,
    /// Key of the tool's name, where a call may begin without being opened.
    pub name_key: String,
    /// Key of the arguments, likewise.
    pub arguments_key: String,
    /// What the model writes between name and arguments where a call is no object with both.
    pub name_mark: Option<String>,
    /// Tokens that are text inside of a call, and nothing outside.
    pub mark_tokens: Vec<(TokenId, String)>,
}

/// The text of a call, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadCall {
    /// The tool's name as sampled; empty if it could not be found.
    pub name: String,
    /// The arguments as sampled; the whole text if it could not be read.
    pub arguments: String,
    /// Why it could not be read.
    pub parse_error: Option<String>,
}

/// A model's text side. Pure: equal arguments give equal results for the life of a revision.
pub trait Language: Send + Sync {
    /// The bytes of a token, which may split a character.
    fn token_bytes(&self, id: TokenId) -> &[u8];
    /// Whether the token is a control token, never text.
    fn is_special(&self, id: TokenId) -> bool;
    /// Tokens that end a generation.
    fn stop_tokens(&self) -> &[TokenId];
    /// Number of tokens.
    fn vocab_size(&self) -> u32;
    /// Most tokens of a context.
    fn context_limit(&self) -> u32;
    /// The model's layer of sampling settings (generation_config.json).
    fn generation_defaults(&self) -> &SamplingOverrides;
    /// Digests of weights, tokenizer and template.
    fn revision(&self) -> (Digest, Digest, Digest);
    /// Whether there is a template of this name; the empty name is the default.
    fn has_template(&self, name: &str) -> bool;
    /// How the model writes tool calls; `None` if it cannot.
    fn call_form(&self) -> Option<&CallForm>;
    /// How the model marks reasoning; `None` if it does not.
    fn reasoning_form(&self) -> Option<&ReasoningForm> {
        None
    }
    /// Whether reasoning is open after the generation prompt of a session.
    fn opens_reasoning(&self, _prompt: &Prompt<'_>) -> bool {
        false
    }
    /// The efforts that the template of a session can be told of, rising.
    fn efforts(&self, _prompt: &Prompt<'_>) -> &[ReasoningEffort] {
        &[]
    }
    /// Reads the text of one call.
    fn read_call(&self, body: &str) -> ReadCall;
    /// The tokens of new items after a log that ends in `end` (never [`LogEnd::Open`] or [`LogEnd::Prompted`]: those are closed
    /// first), with the prompt if the log is empty and with the generation prompt if `generate`.
    ///
    /// # Errors
    /// Why the template cannot express the items, in a sentence.
    fn render(&self, prompt: &Prompt<'_>, end: LogEnd, items: &[Item], generate: bool) -> Result<Vec<TokenId>, String>;
    /// Tokens that close what ended early in `end`; empty unless [`LogEnd::is_open`].
    fn closing(&self, end: LogEnd) -> Vec<TokenId>;
}
