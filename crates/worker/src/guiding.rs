//! What a turn's constraint, tool choice and allowed tools mean for what is sampled.
//!
//! In: a turn's rules, the session's tools, how the model writes calls. Out: a [`Spec`] or nothing where all is free, and the guide of
//! a run, which stands behind what its generation has said so far. Deliberately not here: grammars and masks (the guide crate's).

use std::sync::Arc;

use holdfast_engine::TokenGuide;
use holdfast_guide::{
    CallBody, CallLayout as SpokenLayout, CallSpelling, CallableTool, Calls, Guide, GuideError, Guides, Need, Spec,
    Spelt, Thinking, Vocabulary,
};
use holdfast_journal::TurnRequest;
use holdfast_types::{Constraint, Failure, FailureDetail, Reason, SessionConfig, TokenId, TokenMask, Tool, ToolChoice};

use crate::language::{CallForm, CallLayout, ChannelMark, Language, Prompt, ReasoningForm};

/// What a turn says about what may be sampled.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// Which tools may be called; `None` is all of the session's.
    pub allowed_tools: Option<&'a [String]>,
    /// Whether a tool must be called.
    pub tool_choice: &'a ToolChoice,
    /// At most one call in each generation.
    pub single_call: bool,
    /// The form that the answer is held to.
    pub constraint: Option<&'a Constraint>,
}

impl<'a> Rules<'a> {
    /// Those of a turn's generation. A call that is required is required of the turn's first generation, and not of what continues
    /// an earlier turn: after results, the model may answer in words.
    pub fn of(request: &'a TurnRequest, generation: u32) -> Self {
        let rules = Self {
            allowed_tools: request.allowed_tools.as_deref(),
            tool_choice: &request.tool_choice,
            single_call: request.single_call,
            constraint: request.constraint.as_ref(),
        };
        let first = generation == 0 && !request.continue_last;
        if first { rules } else { rules.later() }
    }

    /// Those of the same turn's later generations.
    fn later(self) -> Self {
        let tool_choice = match self.tool_choice {
            ToolChoice::Required | ToolChoice::Name(_) => &ToolChoice::Auto,
            choice => choice,
        };
        Self { tool_choice, ..self }
    }

    /// Names of the tools that may be called.
    pub(crate) fn callable(self, tools: &[Tool]) -> impl Iterator<Item = &Tool> {
        tools.iter().filter(move |tool| match self.tool_choice {
            ToolChoice::None => false,
            ToolChoice::Name(name) => tool.name == *name,
            ToolChoice::Auto | ToolChoice::Required => {
                self.allowed_tools.is_none_or(|allowed| allowed.contains(&tool.name))
            }
        })
    }

    /// Checks names. `path` is where the rules stand in the request, with its last dot.
    pub(crate) fn check(self, config: &SessionConfig, path: &str) -> Result<(), Failure> {
        let is_tool = |name: &str| config.tools.iter().any(|tool| tool.name == name);
        let wrong =
            |field: &str, problem: String| Err(Failure::field(Reason::InvalidTool, format!("{path}{field}"), problem));
        let unknown = |field: &str, name: &str| wrong(field, format!("the session has no tool {name:?}"));
        if let Some(name) = self.allowed_tools.unwrap_or_default().iter().find(|name| !is_tool(name)) {
            return unknown("allowed_tools", name);
        }
        match self.tool_choice {
            ToolChoice::Name(name) if !is_tool(name) => unknown("tool_choice.name", name),
            ToolChoice::Name(name) if self.allowed_tools.is_some_and(|allowed| !allowed.contains(name)) => {
                wrong("tool_choice.name", format!("tool {name:?} is not among allowed_tools"))
            }
            ToolChoice::Required if self.callable(&config.tools).next().is_none() => {
                wrong("tool_choice", "REQUIRED needs at least one tool that may be called".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// What may be said; `None` where nothing has to be kept from anything.
    fn spec(self, language: &dyn Language, prompt: &Prompt<'_>) -> Option<Spec> {
        let tools = prompt.tools;
        let form = language.call_form().filter(|_| !tools.is_empty());
        let callable: Vec<_> = self.callable(tools).collect();
        let need = match self.tool_choice {
            ToolChoice::Required | ToolChoice::Name(_) => Need::Required,
            ToolChoice::Auto | ToolChoice::None => Need::Optional,
        };
        let is_open = callable.len() == tools.len() && !callable.iter().any(|tool| tool.strict) && !self.single_call;
        if self.constraint.is_none() && (form.is_none() || (need == Need::Optional && is_open)) {
            return None;
        }
        let calls = form.map(|form| Calls {
            spelling: CallSpelling::from(form),
            tools: callable.into_iter().map(callable_tool).collect(),
            need,
            single: self.single_call || matches!(self.tool_choice, ToolChoice::Name(_)),
        });
        Some(Spec { thinking: thinking(language, prompt), answer: self.constraint.cloned(), calls })
    }

    /// The field that an error is about.
    fn failure(self, path: &str, error: &GuideError) -> Failure {
        let (reason, field) = match (error, self.constraint) {
            (GuideError::Tool { .. }, _) => (Reason::InvalidTool, "tool_choice"),
            (_, None) => (Reason::InvalidArgument, "tool_choice"),
            (_, Some(Constraint::JsonSchema(_))) => (Reason::InvalidArgument, "constraint.json_schema"),
            (_, Some(Constraint::Regex(_))) => (Reason::InvalidArgument, "constraint.regex"),
            (_, Some(Constraint::Grammar(_))) => (Reason::InvalidArgument, "constraint.grammar"),
            (_, Some(Constraint::Choice(_))) => (Reason::InvalidArgument, "constraint.choice"),
        };
        Failure::field(reason, format!("{path}{field}"), error.to_string())
    }
}

/// The guides of one model.
#[derive(Debug)]
pub struct ModelGuides(Arc<Guides>);

/// What is to be compiled before a request is looked at or a generation begins, wherever there is time for it: a large schema takes a
/// good part of a second.
#[derive(Debug)]
pub struct Compilation {
    guides: Arc<Guides>,
    specs: Vec<Spec>,
}

impl Compilation {
    /// Compiles. What comes of it, refusals included, is found by whoever asks for a guide.
    pub fn run(self) {
        for spec in &self.specs {
            drop(self.guides.begin(spec));
        }
    }
}

impl ModelGuides {
    /// Those of the model that speaks this language.
    pub fn new(language: &dyn Language) -> Self {
        let bytes = |id| language.token_bytes(id);
        let is_control = |id| language.is_special(id);
        let vocabulary = Vocabulary::new(language.vocab_size(), bytes, is_control, language.stop_tokens());
        Self(Arc::new(Guides::new(vocabulary)))
    }

    /// What is not compiled yet of what a turn under these rules asks for, in its first generation and in later ones, and of what
    /// strict tools do; `None` where nothing is missing.
    pub(crate) fn missing(
        &self,
        language: &dyn Language,
        prompt: &Prompt<'_>,
        rules: Option<Rules<'_>>,
        strict: &[Tool],
    ) -> Option<Compilation> {
        let turns = rules.into_iter().flat_map(|rules| [rules, rules.later()]);
        let turns = turns.filter_map(|rules| rules.spec(language, prompt));
        let tools = strict.iter().filter_map(|tool| strict_spec(language, tool));
        let specs: Vec<_> = turns.chain(tools).filter(|spec| !self.0.is_known(spec)).collect();
        (!specs.is_empty()).then(|| Compilation { guides: Arc::clone(&self.0), specs })
    }

    /// The guide of a generation that has said `said`; `None` where all is free. Compiles what is not compiled.
    ///
    /// # Errors
    /// What cannot be held to, with the field below `path`.
    pub fn guide(
        &self,
        language: &dyn Language,
        prompt: &Prompt<'_>,
        rules: Rules<'_>,
        said: &[TokenId],
        path: &str,
    ) -> Result<Option<Box<dyn TokenGuide>>, Failure> {
        let Some(spec) = rules.spec(language, prompt) else { return Ok(None) };
        let begun = self.0.begin(&spec);
        begun.and_then(|guide| gone_on(guide, said)).map(Some).map_err(|error| rules.failure(path, &error))
    }

    /// As [`ModelGuides::guide`], but gives back what is to be compiled first.
    ///
    /// # Errors
    /// As for [`ModelGuides::guide`].
    pub(crate) fn guide_if_compiled(
        &self,
        language: &dyn Language,
        prompt: &Prompt<'_>,
        rules: Rules<'_>,
        said: &[TokenId],
        path: &str,
    ) -> Result<Result<Option<Box<dyn TokenGuide>>, Compilation>, Failure> {
        let Some(spec) = rules.spec(language, prompt) else { return Ok(Ok(None)) };
        let found = self.0.find(&spec).and_then(|found| found.map(|guide| gone_on(guide, said)).transpose());
        match found {
            Ok(Some(guide)) => Ok(Ok(Some(guide))),
            Ok(None) => Ok(Err(Compilation { guides: Arc::clone(&self.0), specs: vec![spec] })),
            Err(error) => Err(rules.failure(path, &error)),
        }
    }

    /// Checks that a tool's arguments can be held to its schema. `path` is the tool's place in the request.
    pub(crate) fn check_strict(&self, language: &dyn Language, tool: &Tool, path: &str) -> Result<(), Failure> {
        let Some(spec) = strict_spec(language, tool) else { return Ok(()) };
        let problem = match self.0.begin(&spec) {
            Ok(_) => return Ok(()),
            Err(GuideError::Tool { path, problem, .. }) => format!("at #{path}: {problem}"),
            Err(other) => other.to_string(),
        };
        Err(Failure::field(Reason::InvalidTool, format!("{path}.function.parameters_json_schema"), problem))
    }
}

/// A guide that has taken what was said before.
fn gone_on(mut guide: Guide, said: &[TokenId]) -> Result<Box<dyn TokenGuide>, GuideError> {
    guide.replay(said)?;
    Ok(Box::new(Guided(guide)))
}

/// A call of this tool alone, if its arguments are held to its schema.
fn strict_spec(language: &dyn Language, tool: &Tool) -> Option<Spec> {
    let form = language.call_form().filter(|_| tool.strict)?;
    let calls = Calls {
        spelling: CallSpelling::from(form),
        tools: vec![callable_tool(tool)],
        need: Need::Required,
        single: true,
    };
    Some(Spec { calls: Some(calls), ..Spec::default() })
}

/// How the model thinks before it speaks.
fn thinking(language: &dyn Language, prompt: &Prompt<'_>) -> Option<Thinking> {
    Some(match language.reasoning_form()? {
        ReasoningForm::Enclosed { open, open_token, close, close_token } => Thinking::Enclosed {
            open: Spelt { text: open.clone(), token: *open_token },
            close: Spelt { text: close.clone(), token: *close_token },
            begun: language.opens_reasoning(prompt),
        },
        ReasoningForm::Channels { marks } => {
            let token =
                |wanted: ChannelMark| marks.iter().find(|(_, mark, _)| *mark == wanted).map(|(token, ..)| *token);
            Thinking::Channels {
                start: token(ChannelMark::Start)?,
                channel: token(ChannelMark::Channel)?,
                constrain: token(ChannelMark::Constrain)?,
                message: token(ChannelMark::Message)?,
                end: token(ChannelMark::End)?,
            }
        }
    })
}

/// A tool without parameters takes an empty object; one that is not strict takes any.
fn callable_tool(tool: &Tool) -> CallableTool {
    let held = tool.strict || tool.parameters_json_schema.is_empty();
    CallableTool { name: tool.name.clone(), arguments: held.then(|| tool.parameters_json_schema.clone()) }
}

impl From<&CallForm> for CallSpelling {
    fn from(form: &CallForm) -> Self {
        let marked = |text: &str| {
            let token = form.mark_tokens.iter().find(|(_, mark)| mark == text).map(|(token, _)| *token);
            Spelt { text: text.to_owned(), token }
        };
        Self {
            open: Spelt { text: form.open.clone(), token: form.open_token },
            close: form.close.clone().map(|text| Spelt { text, token: form.close_token }),
            layout: match form.layout {
                CallLayout::Enclosed => SpokenLayout::Enclosed,
                CallLayout::Objects => SpokenLayout::Objects,
                CallLayout::Array => SpokenLayout::Array,
                // Harmony's calls are messages: how they are spelt is said with its channels.
                CallLayout::Channels => SpokenLayout::Enclosed,
            },
            body: match &form.name_mark {
                Some(mark) => CallBody::Named { mark: marked(mark) },
                None => CallBody::Object { name_key: form.name_key.clone(), arguments_key: form.arguments_key.clone() },
            },
        }
    }
}

/// A guide in the engine's words.
#[derive(Debug)]
struct Guided(Guide);

impl Guided {
    fn failed(error: &GuideError) -> Failure {
        Failure::new(
            Reason::InvalidArgument,
            format!("the constraint or tool choice cannot be followed further: {error}"),
        )
        .with(FailureDetail::Metadata { key: "field".to_owned(), value: "options.constraint".to_owned() })
    }
}

impl TokenGuide for Guided {
    fn mask(&mut self) -> Result<TokenMask, Failure> {
        self.0.mask().map_err(|error| Self::failed(&error))
    }

    fn accept(&mut self, token: TokenId) -> Result<(), Failure> {
        self.0.accept(token).map_err(|error| Self::failed(&error))
    }

    fn fork(&self) -> Box<dyn TokenGuide> {
        Box::new(Self(self.0.clone()))
    }
}
