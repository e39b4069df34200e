//! What a generation may say: an answer, tool calls, or either.
//!
//! Plain data, made by the worker of a turn's constraint, its tool choice, and how the model writes calls.

use holdfast_types::{Constraint, TokenId};

/// What a generation may say.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Spec {
    /// What comes before calls and before an answer that is held to a form; `None`: nothing does.
    pub thinking: Option<Thinking>,
    /// What the answer is held to; `None`: it is free text.
    pub answer: Option<Constraint>,
    /// Tool calls; `None`: the model is told of none, and nothing is to be kept from calling them.
    pub calls: Option<Calls>,
}

/// How a model thinks before it speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Thinking {
    /// Between two marks, or not at all.
    Enclosed {
        /// What begins it.
        open: Spelt,
        /// What ends it.
        close: Spelt,
        /// It has begun before the first token.
        begun: bool,
    },
    /// In messages of its own, after each of which another follows: harmony. The answer is a message on the channel `final`, a call
    /// one on `commentary` to the function.
    Channels {
        /// `<|start|>`.
        start: TokenId,
        /// `<|channel|>`.
        channel: TokenId,
        /// `<|constrain|>`.
        constrain: TokenId,
        /// `<|message|>`.
        message: TokenId,
        /// `<|end|>`.
        end: TokenId,
    },
}

/// Which calls may be made, and how the model writes them.
#[derive(Debug, Clone, PartialEq)]
pub struct Calls {
    /// How they are written.
    pub spelling: CallSpelling,
    /// Which tools may be called; none: what would open a call is not said.
    pub tools: Vec<CallableTool>,
    /// Whether there has to be one.
    pub need: Need,
    /// At most one.
    pub single: bool,
}

/// Whether a call has to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Calls or an answer. Free text may come before calls; an answer that is held to a form may not.
    Optional,
    /// Nothing but calls.
    Required,
}

/// A tool that may be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallableTool {
    /// Its name.
    pub name: String,
    /// JSON schema that its arguments are held to; `None`: any JSON object.
    pub arguments: Option<String>,
}

/// How a model writes tool calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallSpelling {
    /// What opens a call.
    pub open: Spelt,
    /// What closes it; `None`: it ends with the generation, or as `layout` says.
    pub close: Option<Spelt>,
    /// How several follow each other.
    pub layout: CallLayout,
    /// What stands in it.
    pub body: CallBody,
}

/// A text that may have a control token of its own, which then is the only way to say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spelt {
    /// The text.
    pub text: String,
    /// The control token.
    pub token: Option<TokenId>,
}

/// How several calls follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallLayout {
    /// Each is opened, and closed if there is what closes it.
    Enclosed,
    /// JSON objects with `;` between them, of which the first may be opened or begin the answer.
    Objects,
    /// A JSON array of objects after one opening; or each opened, where a call is no object.
    Array,
}

/// What stands in a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallBody {
    /// A JSON object with name and arguments under these keys.
    Object {
        /// Key of the name.
        name_key: String,
        /// Key of the arguments.
        arguments_key: String,
    },
    /// The name, this mark, the arguments.
    Named {
        /// What stands between.
        mark: Spelt,
    },
}
