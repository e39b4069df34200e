//! Everything about a model's text: [`ModelText`].
//!
//! In: [`TextFiles`], the text files beside the weights. Out: encoding, the bytes of tokens, stop tokens, sampling defaults, the
//! tool-call form, and (in `render`) prompts. Deliberately not here: weights; a `ModelText` can be made without any.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use holdfast_types::{Digest, SamplingOverrides, TokenId};
use serde_json::{Map, Value};

use crate::bytes::{Spelling, TokenBytes};
use crate::limits::{TEXT_BYTES_MAX, TOKENIZER_BYTES_MAX, read_text};
use crate::reasoning::ReasoningForm;
use crate::source::part;
use crate::stability::Facts;
use crate::template::{DEFAULT, Templates};
use crate::tokenizer::TextEncoder;
use crate::{ModelError, ToolCallForm};

/// Most characters of a chat template.
const TEMPLATE_CHARS_MAX: usize = 1 << 20;
/// Most named templates.
const TEMPLATES_MAX: usize = 64;

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIALS: &str = "special_tokens_map.json";
const GENERATION: &str = "generation_config.json";
const TEMPLATE: &str = "chat_template.jinja";
const MORE_TEMPLATES: &str = "additional_chat_templates";
const FORM: &str = "tool_call_form.json";

/// The text files of a model, as they are on disk.
#[derive(Debug, Clone, Default)]
pub struct TextFiles {
    /// `config.json`: end-of-turn tokens are read from it; empty is fine.
    pub config: String,
    /// `tokenizer.json`.
    pub tokenizer: String,
    /// `tokenizer_config.json`: special tokens, and templates where older exporters put them.
    pub tokenizer_config: Option<String>,
    /// `special_tokens_map.json`.
    pub special_tokens_map: Option<String>,
    /// `generation_config.json`.
    pub generation_config: Option<String>,
    /// `chat_template.jinja`; wins over the one in `tokenizer_config.json`.
    pub chat_template: Option<String>,
    /// `additional_chat_templates/NAME.jinja` by NAME.
    pub named_templates: BTreeMap<String, String>,
    /// `tool_call_form.json`; wins over what the template's words say.
    pub tool_call_form: Option<String>,
}

impl TextFiles {
    /// Reads them from a directory.
    ///
    /// # Errors
    /// [`ModelError::Read`] for a file that is needed and missing, or there and unreadable.
    pub fn from_directory(directory: &Path) -> Result<Self, ModelError> {
        let needed = |name: &str| {
            let bytes_max = if name == TOKENIZER { TOKENIZER_BYTES_MAX } else { TEXT_BYTES_MAX };
            read_text(&directory.join(name), bytes_max)
        };
        let optional = |name: &str| match needed(name) {
            Ok(text) => Ok(Some(text)),
            Err(ModelError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        };
        let mut named_templates = BTreeMap::new();
        let more = directory.join(MORE_TEMPLATES);
        if more.is_dir() {
            let wrong = |source| ModelError::Read { path: more.clone(), source };
            for entry in fs::read_dir(&more).map_err(wrong)? {
                let path = entry.map_err(wrong)?.path();
                if path.extension().is_some_and(|extension| extension == "jinja")
                    && let Some(name) = path.file_stem()
                {
                    named_templates.insert(name.to_string_lossy().into_owned(), read_text(&path, TEXT_BYTES_MAX)?);
                    if named_templates.len() > TEMPLATES_MAX {
                        let many = format!("more than {TEMPLATES_MAX} templates");
                        return Err(wrong(std::io::Error::new(std::io::ErrorKind::InvalidData, many)));
                    }
                }
            }
        }
        Ok(Self {
            config: needed(CONFIG)?,
            tokenizer: needed(TOKENIZER)?,
            tokenizer_config: optional(TOKENIZER_CONFIG)?,
            special_tokens_map: optional(SPECIALS)?,
            generation_config: optional(GENERATION)?,
            chat_template: optional(TEMPLATE)?,
            named_templates,
            tool_call_form: optional(FORM)?,
        })
    }

    /// The files as (name, text), to be written into a directory.
    pub(crate) fn entries(&self) -> Vec<(String, &str)> {
        let optional = [
            (TOKENIZER_CONFIG, &self.tokenizer_config),
            (SPECIALS, &self.special_tokens_map),
            (GENERATION, &self.generation_config),
            (TEMPLATE, &self.chat_template),
            (FORM, &self.tool_call_form),
        ];
        let needed = [(CONFIG.to_owned(), self.config.as_str()), (TOKENIZER.to_owned(), self.tokenizer.as_str())];
        let optional = optional.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text.as_deref()?)));
        let named =
            self.named_templates.iter().map(|(name, text)| (format!("{MORE_TEMPLATES}/{name}.jinja"), text.as_str()));
        needed.into_iter().chain(optional).chain(named).collect()
    }
}

/// Everything about a model's text. Immutable; shared by everyone who serves the model.
pub struct ModelText {
    pub(crate) encoder: TextEncoder,
    pub(crate) templates: Templates,
    /// Of each template, by name.
    pub(crate) facts: BTreeMap<String, Facts>,
    pub(crate) stop_tokens: Vec<TokenId>,
    bytes: TokenBytes,
    /// Text of special tokens.
    specials: HashMap<TokenId, String>,
    pub(crate) form: Option<ToolCallForm>,
    pub(crate) reasoning: Option<ReasoningForm>,
    defaults: SamplingOverrides,
    vocab_size: u32,
    context_limit: u32,
    revision: (Digest, Digest, Digest),
}

impl ModelText {
    /// Reads and checks the text files, and proves on synthetic histories that new items can be rendered alone. `path` is
    /// for messages; `weights` becomes part of [`ModelText::revision`].
    ///
    /// # Errors
    /// The [`ModelError`] that names the file and what is wrong with it.
    pub fn new(
        path: &Path,
        files: &TextFiles,
        vocab_size: u32,
        context_limit: u32,
        weights: Digest,
    ) -> Result<Self, ModelError> {
        let tokenizer_path = part(path, TOKENIZER);
        let tokenizer_error = |problem: String| ModelError::Tokenizer { path: tokenizer_path.clone(), problem };
        let json: Map<String, Value> =
            serde_json::from_str(&files.tokenizer).map_err(|e| tokenizer_error(format!("not a JSON object: {e}")))?;
        let json = Value::Object(json);
        let decoder_error = |problem| ModelError::UnsupportedDecoder { path: tokenizer_path.clone(), problem };
        let spelling = Spelling::of(&json).map_err(decoder_error)?;
        let encoder = TextEncoder::new(&json).map_err(&tokenizer_error)?;
        let (last, token) = encoder.last().clone();
        if last >= vocab_size {
            return Err(ModelError::Vocabulary { path: tokenizer_path.clone(), token, id: last, vocab_size });
        }
        let bytes = TokenBytes::new(spelling, &json, encoder.added(), vocab_size).map_err(tokenizer_error)?;
        let specials: HashMap<_, _> =
            encoder.controls().iter().filter(|t| t.special).map(|t| (t.id, t.text.clone())).collect();

        let object = |name: &str, text: &Option<String>| read_object(&part(path, name), text.as_deref());
        let tokenizer_config = object(TOKENIZER_CONFIG, &files.tokenizer_config)?;
        let special_map = object(SPECIALS, &files.special_tokens_map)?;
        let generation = object(GENERATION, &files.generation_config)?;
        let config: Map<String, Value> = serde_json::from_str(&files.config).unwrap_or_default();
        let role_texts = role_texts(&special_map, &tokenizer_config);

        let stop_tokens = stop_tokens(path, &config, &generation, &role_texts, &encoder, vocab_size)?;
        let defaults = sampling_defaults(&part(path, GENERATION), &generation)?;
        let templates = templates(path, files, &tokenizer_config, role_texts)?;
        let mut form = match &files.tool_call_form {
            Some(text) => Some(
                ToolCallForm::parse_file(text)
                    .map_err(|problem| ModelError::ToolForm { path: part(path, FORM), problem })?,
            ),
            None => templates.names().find_map(|name| ToolCallForm::of_template(templates.source(name))),
        };
        let special = |text: &str| specials.iter().find(|(_, t)| *t == text).map(|(id, _)| *id);
        if let Some(form) = &mut form {
            form.find_tokens(special);
        }
        let reasoning = templates.names().find_map(|name| ReasoningForm::of_template(templates.source(name), special));
        let revision = (weights, Digest(*blake3::hash(files.tokenizer.as_bytes()).as_bytes()), templates.digest());
        let mut this = Self {
            encoder,
            templates,
            facts: BTreeMap::new(),
            stop_tokens,
            bytes,
            specials,
            form,
            reasoning,
            defaults,
            vocab_size,
            context_limit,
            revision,
        };
        this.facts = this.find_facts(path)?;
        Ok(this)
    }

    /// Plain text as it continues a log. No text becomes a control token.
    pub fn encode(&self, text: &str) -> Vec<TokenId> {
        self.encoder.plain(text)
    }

    /// The exact bytes of a token; empty for special tokens and for ids without a token.
    pub fn token_bytes(&self, id: TokenId) -> &[u8] {
        self.bytes.get(id)
    }

    /// Whether the tokenizer says that the token is special.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.specials.contains_key(&id)
    }

    /// How templates spell a special token.
    pub fn special_text(&self, id: TokenId) -> Option<&str> {
        self.specials.get(&id).map(String::as_str)
    }

    /// Tokens that end a turn, rising; at least one.
    pub fn stop_tokens(&self) -> &[TokenId] {
        &self.stop_tokens
    }

    /// Rows of the embedding: tokens are below it.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// Most tokens of a log.
    pub fn context_limit(&self) -> u32 {
        self.context_limit
    }

    /// What `generation_config.json` says about sampling.
    pub fn generation_defaults(&self) -> &SamplingOverrides {
        &self.defaults
    }

    /// How the model writes tool calls; `None` when it is not known to.
    pub fn tool_form(&self) -> Option<&ToolCallForm> {
        self.form.as_ref()
    }

    /// How the model marks reasoning; `None` when it is not known to.
    pub fn reasoning_form(&self) -> Option<&ReasoningForm> {
        self.reasoning.as_ref()
    }

    /// Names of the chat templates, sorted; `default` is one of them.
    pub fn template_names(&self) -> Vec<&str> {
        self.templates.names().collect()
    }

    /// Digests of weights, tokenizer and templates.
    pub fn revision(&self) -> (Digest, Digest, Digest) {
        self.revision
    }
}

impl std::fmt::Debug for ModelText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelText").field("vocab_size", &self.vocab_size).field("revision", &self.revision).finish()
    }
}

fn read_object(path: &Path, text: Option<&str>) -> Result<Map<String, Value>, ModelError> {
    let Some(text) = text else { return Ok(Map::new()) };
    serde_json::from_str(text)
        .map_err(|e| ModelError::Settings { path: path.to_owned(), problem: format!("not a JSON object: {e}") })
}

/// `bos_token`, `eos_token` and their like, as text.
fn role_texts(special_map: &Map<String, Value>, tokenizer_config: &Map<String, Value>) -> Map<String, Value> {
    let entries = special_map.iter().chain(tokenizer_config).filter(|(key, _)| key.ends_with("_token"));
    entries
        .filter_map(|(key, value)| {
            let text = value.as_str().or_else(|| value["content"].as_str())?;
            Some((key.clone(), text.into()))
        })
        .collect()
}

/// `eos_token_id` of both configs (a number or a list), and the tokenizer's `eos_token`.
fn stop_tokens(
    path: &Path,
    config: &Map<String, Value>,
    generation: &Map<String, Value>,
    role_texts: &Map<String, Value>,
    encoder: &TextEncoder,
    vocab_size: u32,
) -> Result<Vec<TokenId>, ModelError> {
    let mut all = Vec::new();
    for (file, map) in [(CONFIG, config), (GENERATION, generation)] {
        let value = map.get("eos_token_id").unwrap_or(&Value::Null);
        let list = match value {
            Value::Null => &[],
            Value::Array(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        };
        for id in list {
            match id.as_u64() {
                Some(id) if id < u64::from(vocab_size) => all.push(id as TokenId),
                _ => {
                    let problem = format!("eos_token_id {id} is no token; there are {vocab_size}");
                    return Err(ModelError::Settings { path: part(path, file), problem });
                }
            }
        }
    }
    let by_text = role_texts.get("eos_token").and_then(Value::as_str);
    all.extend(encoder.controls().iter().filter(|t| Some(t.text.as_str()) == by_text).map(|t| t.id));
    all.sort_unstable();
    all.dedup();
    if all.is_empty() {
        return Err(ModelError::NoStopToken { path: path.to_owned() });
    }
    Ok(all)
}

fn sampling_defaults(path: &Path, generation: &Map<String, Value>) -> Result<SamplingOverrides, ModelError> {
    let number = |key: &str, low: f64, high: f64| match generation.get(key).filter(|v| !v.is_null()) {
        None => Ok(None),
        Some(value) => match value.as_f64() {
            Some(n) if (low..=high).contains(&n) => Ok(Some(n)),
            _ => {
                let problem = format!("{key} is {value}, expected a number from {low} to {high}");
                Err(ModelError::Settings { path: path.to_owned(), problem })
            }
        },
    };
    let count_max = f64::from(u32::MAX);
    let greedy = generation.get("do_sample") == Some(&Value::Bool(false));
    let temperature = number("temperature", 0.0, 2.0)?.map(|n| n as f32);
    Ok(SamplingOverrides {
        temperature: if greedy { Some(0.0) } else { temperature },
        top_k: number("top_k", 0.0, count_max)?.map(|n| n as u32),
        top_p: number("top_p", 0.0, 1.0)?.map(|n| n as f32),
        min_p: number("min_p", 0.0, 1.0)?.map(|n| n as f32),
        repetition_penalty: number("repetition_penalty", f64::from(f32::MIN_POSITIVE), 10.0)?.map(|n| n as f32),
        max_output_tokens: number("max_new_tokens", 1.0, count_max)?.map(|n| n as u32),
        ..SamplingOverrides::default()
    })
}

/// Templates by name: from `tokenizer_config.json` (one, or a list with names), over them the files of their own.
fn templates(
    path: &Path,
    files: &TextFiles,
    tokenizer_config: &Map<String, Value>,
    specials: Map<String, Value>,
) -> Result<Templates, ModelError> {
    let mut sources = BTreeMap::new();
    let list = match tokenizer_config.get("chat_template") {
        Some(Value::String(source)) => {
            sources.insert(DEFAULT.to_owned(), source.clone());
            &[]
        }
        Some(Value::Array(list)) => list.as_slice(),
        _ => &[],
    };
    for entry in list {
        let (Some(name), Some(source)) = (entry["name"].as_str(), entry["template"].as_str()) else {
            let problem = "an entry of chat_template has no name or no template".to_owned();
            return Err(ModelError::Settings { path: part(path, TOKENIZER_CONFIG), problem });
        };
        sources.insert(name.to_owned(), source.to_owned());
    }
    sources.extend(files.named_templates.clone());
    sources.extend(files.chat_template.clone().map(|source| (DEFAULT.to_owned(), source)));
    let error = |(name, problem)| ModelError::Template { path: path.to_owned(), name, problem };
    if !sources.contains_key(DEFAULT) {
        return Err(ModelError::NoTemplate { path: path.to_owned() });
    }
    if sources.len() > TEMPLATES_MAX {
        return Err(error((
            DEFAULT.to_owned(),
            format!("{} templates, at most {TEMPLATES_MAX} are read", sources.len()),
        )));
    }
    if let Some((name, source)) = sources.iter().find(|(_, source)| source.len() > TEMPLATE_CHARS_MAX) {
        return Err(error((name.clone(), format!("{} bytes, at most {TEMPLATE_CHARS_MAX} are read", source.len()))));
    }
    Templates::new(sources, specials).map_err(error)
}
