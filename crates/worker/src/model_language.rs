//! The model crate's text side as a worker's language.
//!
//! Deliberately not here: any decision; only the two vocabularies meet.

use holdfast_model::{DEFAULT_TEMPLATE, ModelText, Next, OpenEnd, ReasoningForm, ToolCallForm};
use holdfast_types::{Digest, Item, ReasoningEffort, SamplingOverrides, TokenId};

use holdfast_worker_api::{HistoryRendering, ModelSpeech};

use crate::language::{CallForm, Language, LogEnd, Prompt, ReadCall};

/// A model's text, with its tool-call form in the worker's words.
pub struct TextOfModel {
    text: std::sync::Arc<ModelText>,
    form: Option<CallForm>,
}

impl TextOfModel {
    /// The text side of one model.
    pub fn new(text: std::sync::Arc<ModelText>) -> Self {
        let form = text.tool_form().map(CallForm::from);
        Self { text, form }
    }
}

/// What a model's default template makes of reasoning and of history, in the words of the worker's interface.
pub fn speech_of(text: &ModelText) -> ModelSpeech {
    let stability = text.stability().into_iter().find(|stability| stability.template == DEFAULT_TEMPLATE);
    let history = match stability.map(|stability| stability.rendering) {
        None | Some(holdfast_model::HistoryRendering::Published) => HistoryRendering::Published,
        Some(holdfast_model::HistoryRendering::Replaced) => HistoryRendering::Replaced,
        Some(holdfast_model::HistoryRendering::Incremental) => HistoryRendering::Incremental,
    };
    let differs = stability.map(|stability| stability.differs()).unwrap_or_default();
    ModelSpeech {
        reasoning: text.reasoning_form().is_some(),
        efforts: text.efforts(&holdfast_model::Prompt::default()).to_vec(),
        history,
        history_differs: differs.iter().map(ToString::to_string).collect(),
    }
}

impl From<&ToolCallForm> for CallForm {
    fn from(form: &ToolCallForm) -> Self {
        Self {
            open: form.open.clone(),
            open_token: form.open_token,
            close: form.close.clone(),
            close_token: form.close_token,
            layout: form.layout,
            name_key: form.name_key.clone(),
            arguments_key: form.arguments_key.clone(),
            name_mark: form.arguments_mark.clone().filter(|mark| *mark == form.after_name),
            mark_tokens: form.mark_tokens.clone(),
        }
    }
}

fn words<'a>(prompt: &Prompt<'a>) -> holdfast_model::Prompt<'a> {
    let Prompt { instructions, tools, date, template, effort, calls } = *prompt;
    holdfast_model::Prompt { instructions, tools, date, template, effort, calls }
}

impl Language for TextOfModel {
    fn token_bytes(&self, id: TokenId) -> &[u8] {
        self.text.token_bytes(id)
    }

    fn is_special(&self, id: TokenId) -> bool {
        self.text.is_special(id)
    }

    fn stop_tokens(&self) -> &[TokenId] {
        self.text.stop_tokens()
    }

    fn vocab_size(&self) -> u32 {
        self.text.vocab_size()
    }

    fn context_limit(&self) -> u32 {
        self.text.context_limit()
    }

    fn generation_defaults(&self) -> &SamplingOverrides {
        self.text.generation_defaults()
    }

    fn revision(&self) -> (Digest, Digest, Digest) {
        self.text.revision()
    }

    fn has_template(&self, name: &str) -> bool {
        name.is_empty() || self.text.template_names().contains(&name)
    }

    fn call_form(&self) -> Option<&CallForm> {
        self.form.as_ref()
    }

    fn reasoning_form(&self) -> Option<&ReasoningForm> {
        self.text.reasoning_form()
    }

    fn opens_reasoning(&self, prompt: &Prompt<'_>) -> bool {
        self.text.opens_reasoning(&words(prompt))
    }

    fn efforts(&self, prompt: &Prompt<'_>) -> &[ReasoningEffort] {
        self.text.efforts(&words(prompt))
    }

    fn read_call(&self, body: &str) -> ReadCall {
        match self.text.tool_form() {
            Some(form) => {
                let call = form.parse(body);
                ReadCall { name: call.name, arguments: call.arguments, parse_error: call.parse_error }
            }
            None => ReadCall { name: String::new(), arguments: body.to_owned(), parse_error: None },
        }
    }

    fn render(&self, prompt: &Prompt<'_>, end: LogEnd, items: &[Item], generate: bool) -> Result<Vec<TokenId>, String> {
        let prompt = words(prompt);
        let after = match end {
            LogEnd::Start => holdfast_model::LogEnd::Start,
            LogEnd::Sampled => holdfast_model::LogEnd::Sampled,
            LogEnd::Closed | LogEnd::Open | LogEnd::Prompted => holdfast_model::LogEnd::Closed,
        };
        let next = if generate { Next::Generate } else { Next::Nothing };
        self.text.render(&prompt, after, items, next).map_err(|error| error.to_string())
    }

    fn closing(&self, end: LogEnd) -> Vec<TokenId> {
        match end {
            LogEnd::Open => self.text.closing(OpenEnd::Text),
            LogEnd::Prompted => self.text.closing(OpenEnd::Prompted),
            LogEnd::Start | LogEnd::Closed | LogEnd::Sampled => Vec::new(),
        }
    }
}
