//! What a session is fixed to, and the states it goes through.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{NumericsClass, SamplingOverrides};

/// A BLAKE3 digest, 256 bits; shown in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bytes = text.as_bytes();
        if bytes.len() != 64 || !text.is_ascii() {
            return Err(format!("a digest is 64 hexadecimal digits, got {} bytes", bytes.len()));
        }
        let mut out = [0_u8; 32];
        for (i, byte) in out.iter_mut().enumerate() {
            let pair = &text[2 * i..2 * i + 2];
            *byte = u8::from_str_radix(pair, 16).map_err(|e| format!("{pair:?} in a digest: {e}"))?;
        }
        Ok(Self(out))
    }
}

/// A function that the model may ask the client to run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tool {
    /// 1 to 64 of `[A-Za-z0-9_.-]`, unique in the session.
    pub name: String,
    /// What it does, for the model.
    #[serde(default)]
    pub description: String,
    /// JSON schema of the arguments, an object, as text; empty means no parameters.
    #[serde(default)]
    pub parameters_json_schema: String,
    /// Its arguments are held to the schema while they are sampled.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub strict: bool,
}

/// What happens to reasoning once it is history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReasoningRetention {
    /// It stays in the context.
    #[default]
    Keep,
    /// A rebase leaves it behind when the next user message arrives.
    DropAtNextUserMessage,
}

/// How much a model is asked to think before it answers: a hint to its template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReasoningEffort {
    /// Not at all.
    None,
    /// A little.
    Low,
    /// Some.
    Medium,
    /// A lot.
    High,
}

impl ReasoningEffort {
    /// Every effort, rising.
    pub const ALL: [Self; 4] = [Self::None, Self::Low, Self::Medium, Self::High];

    /// `none`, `low`, `medium` or `high`.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// Who may share KV blocks with the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sharing {
    /// Sessions of the same tenant.
    #[default]
    Tenant,
    /// Nobody: the session hashes under a secret of its own.
    Private,
}

/// What happens when the numerics class of the runtime is not the session's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NumericsPolicy {
    /// Go on, keep the tokens, recompute KV, record the change.
    #[default]
    AllowRecorded,
    /// Refuse turns until the class is back.
    RequireSame,
}

/// What is frozen at the first turn.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionConfig {
    /// Name of a served model.
    pub model: String,
    /// The system message; empty for none.
    pub instructions: String,
    /// Tools that the model is told of.
    pub tools: Vec<Tool>,
    /// A named template of the model's; empty for its default.
    pub template: String,
    /// What happens to reasoning.
    pub reasoning_retention: ReasoningRetention,
    /// How much the model is to think; `None` is the template's own choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_effort: Option<ReasoningEffort>,
    /// Who may share its blocks.
    pub sharing: Sharing,
    /// What happens when the numerics class changes.
    pub numerics_policy: NumericsPolicy,
    /// The session's layer of sampling settings.
    pub sampling: SamplingOverrides,
}

/// The exact revision that a session is pinned to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRevision {
    /// Digest over the weights.
    pub weights: Digest,
    /// Digest of the tokenizer.
    pub tokenizer: Digest,
    /// Digest of the chat template.
    pub template: Digest,
    /// The numerics class that its latest tokens were computed in.
    pub numerics_class: NumericsClass,
    /// Version and revision of the runtime that wrote it.
    pub build: String,
}

/// What a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// Nothing runs; the next turn may start.
    Idle,
    /// A turn is queued or running.
    Running,
    /// A turn waits for tool results.
    RequiresAction,
    /// Its KV left the device; the next turn brings it back.
    Suspended,
    /// Hidden; bytes are being removed.
    Deleting,
}
