//! Sampled tokens to cuts, by the form of a model's answers.
//!
//! In: token ids. Out: [`Cut`]s. Which tokens are text, which are marks, and which of the two scanners reads them is decided
//! here. Deliberately not here: what the scanners decide, items, positions.

use std::sync::Arc;

use holdfast_types::TokenId;

use super::channels::Channels;
use super::scanner::{Cut, Markers, Scanner};
use crate::language::{CallForm, Language, ReasoningForm};

/// What a generation's tokens are read with.
#[derive(Clone)]
pub(super) struct Reader {
    language: Arc<dyn Language>,
    pub(super) stops: Vec<String>,
    /// Names of the tools that may be called; none: calls are not looked for.
    tools: Arc<[String]>,
    state: State,
}

/// Small, so that a look ahead can work on a copy.
#[derive(Clone)]
enum State {
    Marks(Scanner),
    Channels(Channels),
}

impl Reader {
    /// A reader of a generation; `thinking` says that its prompt has opened reasoning.
    pub(super) fn new(language: Arc<dyn Language>, stops: Vec<String>, tools: Arc<[String]>, thinking: bool) -> Self {
        let state = match language.reasoning_form() {
            Some(ReasoningForm::Channels { .. }) => State::Channels(Channels::default()),
            Some(ReasoningForm::Enclosed { .. }) if thinking => State::Marks(Scanner::thinking()),
            _ => State::Marks(Scanner::default()),
        };
        Self { language, stops, tools, state }
    }

    /// Takes a token and decides what can be decided.
    pub(super) fn push(&mut self, id: TokenId, cuts: &mut Vec<Cut>) {
        let Self { language, stops, tools, state } = self;
        push(state, &**language, (stops, tools), id, cuts);
    }

    /// The first of the tokens that completes a stop string.
    pub(super) fn stops_at(&self, tokens: &[TokenId]) -> Option<usize> {
        let (mut state, mut cuts) = (self.state.clone(), Vec::new());
        tokens.iter().position(|&id| {
            push(&mut state, &*self.language, (&self.stops, &self.tools), id, &mut cuts);
            state.stopped()
        })
    }

    /// Whether tools may be called.
    pub(super) fn has_tools(&self) -> bool {
        !self.tools.is_empty()
    }

    pub(super) fn stopped(&self) -> bool {
        self.state.stopped()
    }

    /// Looks for stop strings again, after one was found.
    pub(super) fn go_on(&mut self) {
        match &mut self.state {
            State::Marks(scanner) => scanner.go_on(),
            State::Channels(channels) => channels.go_on(),
        }
    }

    /// Whether the prompt opened reasoning that goes on.
    pub(super) fn in_thought(&self) -> bool {
        matches!(&self.state, State::Marks(scanner) if scanner.in_thought())
    }

    /// The open call's text so far.
    pub(super) fn call(&self) -> Option<&str> {
        match &self.state {
            State::Marks(scanner) => scanner.in_call().then(|| scanner.call()),
            State::Channels(channels) => channels.in_call().then(|| channels.call()),
        }
    }

    /// Forgets an open call, which is whole.
    pub(super) fn drop_call(&mut self) {
        match &mut self.state {
            State::Marks(scanner) => *scanner = Scanner::default(),
            State::Channels(channels) => *channels = Channels::default(),
        }
    }

    /// Ends the answer here: what was held, which is text of what is open after all.
    pub(super) fn end(&mut self, early: bool) -> String {
        match &mut self.state {
            State::Marks(scanner) => scanner.end(early),
            State::Channels(channels) => channels.end(early),
        }
    }

    /// Reads the text of one call.
    pub(super) fn read(&self, body: &str) -> crate::language::ReadCall {
        self.language.read_call(body)
    }
}

impl State {
    fn stopped(&self) -> bool {
        match self {
            Self::Marks(scanner) => scanner.stopped(),
            Self::Channels(channels) => channels.stopped(),
        }
    }
}

fn push(
    state: &mut State,
    language: &dyn Language,
    (stops, tools): (&[String], &[String]),
    id: TokenId,
    cuts: &mut Vec<Cut>,
) {
    let form = language.call_form().filter(|_| !tools.is_empty());
    let reasoning = language.reasoning_form();
    let enclosed = match reasoning {
        Some(ReasoningForm::Enclosed { open, close, .. }) => Some((open.as_str(), close.as_str())),
        _ => None,
    };
    let markers = Markers { stops, form, tools, reasoning: enclosed };
    match (state, reasoning) {
        (State::Channels(channels), Some(ReasoningForm::Channels { marks })) => {
            match marks.iter().find(|(token, ..)| *token == id) {
                Some((_, mark, text)) => channels.mark(*mark, text, &markers, cuts),
                None if language.is_special(id) => {}
                None => channels.push(language.token_bytes(id), &markers, cuts),
            }
        }
        (State::Marks(scanner), _) => {
            let bytes = bytes_of(language, (form, reasoning), id, scanner.in_call());
            scanner.push(bytes, &markers, cuts);
        }
        // A reader's state is of its language's form.
        (State::Channels(_), _) => {}
    }
}

/// A control token is text only where it opens or closes a call or reasoning, or marks a part of a call.
fn bytes_of<'a>(
    language: &'a dyn Language,
    (form, reasoning): (Option<&'a CallForm>, Option<&'a ReasoningForm>),
    id: TokenId,
    in_call: bool,
) -> &'a [u8] {
    if !language.is_special(id) {
        return language.token_bytes(id);
    }
    if let Some(ReasoningForm::Enclosed { open, open_token, close, close_token }) = reasoning {
        if *open_token == Some(id) {
            return open.as_bytes();
        }
        if *close_token == Some(id) {
            return close.as_bytes();
        }
    }
    let Some(form) = form else { return &[] };
    if form.open_token == Some(id) {
        return form.open.as_bytes();
    }
    if form.close_token == Some(id) {
        return form.close.as_deref().unwrap_or_default().as_bytes();
    }
    match form.mark_tokens.iter().find(|(mark, _)| in_call && *mark == id) {
        Some((_, text)) => text.as_bytes(),
        None => &[],
    }
}
