//! What can be wrong with a constraint, or happen to one.

use holdfast_types::TokenId;

/// Why there is no guide, or why it cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuideError {
    /// The JSON schema cannot be held to.
    #[error("at #{path}: {problem}")]
    Schema {
        /// JSON pointer (RFC 6901) to the part that is wrong; empty is the whole.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The arguments of a tool cannot be held to its schema.
    #[error("tool {tool:?}, at #{path}: {problem}")]
    Tool {
        /// Its name.
        tool: String,
        /// JSON pointer to the part of its schema.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Regular expression, grammar or choice cannot be held to.
    #[error("{0}")]
    Form(String),
    /// The model has no tokens that could begin it.
    #[error("nothing that the model can say satisfies it")]
    Unsayable,
    /// A token that was sampled before may not stand where it does.
    #[error("what was said before does not follow it, from token {token} on")]
    Refused {
        /// The token.
        token: TokenId,
    },
    /// What may come next has no token: the model's vocabulary cannot say it.
    #[error("no token of the model can go on")]
    Stuck,
    /// The constraint grew beyond what one token's mask may cost.
    #[error("it became too complex: {0}")]
    TooComplex(String),
}

impl GuideError {
    /// The same error of a tool's schema.
    pub(crate) fn of_tool(self, tool: &str) -> Self {
        match self {
            Self::Schema { path, problem } => Self::Tool { tool: tool.to_owned(), path, problem },
            other => other,
        }
    }
}
