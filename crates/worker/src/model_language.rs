//! The model crate's text side as a worker's language.
//!
//! Deliberately not here: any decision; only the two vocabularies meet.

use holdfast_model::{ModelText, Next, OpenEnd, ToolCallForm};
use holdfast_types::{Digest, Item, SamplingOverrides, TokenId};

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
        let prompt = holdfast_model::Prompt {
            instructions: prompt.instructions,
            tools: prompt.tools,
            date: prompt.date,
            template: prompt.template,
        };
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
