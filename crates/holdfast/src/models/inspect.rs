//! `holdfast models inspect`: everything about a model that serving it would depend on.
//!
//! In: a model, loaded and checked. Out: one page for people, or the same facts as JSON. Deliberately not here: finding any
//! fact out; the loader has, and says so by loading.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context as _;
use holdfast_model::{
    LogEnd, Model, ModelFile, ModelSource, ModelText, Next, Prompt, ReasoningForm, Stability, TextFiles,
};
use holdfast_types::{Digest, Item, Role, Tool};
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;
use serde_json::Value;

use super::progress::load;
use crate::find::{Found, changed_parts, find};
use crate::registry::Registry;
use crate::turn_view::plain;

/// Bytes of a key or value element in a cache of f32.
const KV_ELEMENT_BYTES: usize = 4;

/// What is told of a model.
#[derive(Debug, Serialize)]
struct Inspection {
    name: String,
    /// `built_in`, `registered` or `path`.
    kind: &'static str,
    path: Option<PathBuf>,
    added: Option<String>,
    /// Parts that are not what was registered.
    changed_since_added: Vec<String>,
    architecture: String,
    parameters: u64,
    layers: usize,
    hidden: usize,
    feed_forward: usize,
    heads: usize,
    kv_heads: usize,
    head_elements: usize,
    context_tokens: u32,
    kv_bytes_per_token_f32: usize,
    tokenizer: Tokenizer,
    template: Template,
    tool_calls: Option<ToolCalls>,
    reasoning: Option<Reasoning>,
    stop_tokens: Vec<u32>,
    weights_digest: Digest,
    files: Vec<FileFacts>,
}

#[derive(Debug, Serialize)]
struct Tokenizer {
    /// As its file calls it, such as `BPE`.
    kind: String,
    /// How its pieces spell bytes, such as `ByteLevel`.
    decoder: String,
    /// Entries of its vocabulary, added tokens among them.
    tokens: usize,
    /// Rows of the embedding.
    embeddings: u32,
    digest: Digest,
}

#[derive(Debug, Serialize)]
struct Template {
    names: Vec<String>,
    /// The file that holds the default template.
    from: &'static str,
    renders_tools: bool,
    /// Found on synthetic histories whenever a model is loaded.
    history: Vec<History>,
    digest: Digest,
}

/// What a template does to history.
#[derive(Debug, Serialize)]
struct History {
    template: String,
    /// How history comes to be.
    rendering: &'static str,
    /// In what that differs from the published template.
    differs: Vec<String>,
    /// It tells a date: the session's.
    dated: bool,
}

impl History {
    fn of(stability: &Stability) -> Self {
        Self {
            template: stability.template.clone(),
            rendering: stability.rendering.describe(),
            differs: stability.differs().iter().map(ToString::to_string).collect(),
            dated: stability.dated,
        }
    }
}

#[derive(Debug, Serialize)]
struct Reasoning {
    /// What begins and ends it, or the channel that it is on.
    marks: String,
    /// Whether the default template's generation prompt begins it.
    opened_by_prompt: bool,
    efforts: Vec<&'static str>,
}

impl Reasoning {
    fn of(text: &ModelText) -> Option<Self> {
        let marks = match text.reasoning_form()? {
            ReasoningForm::Enclosed { open, close, .. } => format!("{open} … {close}"),
            ReasoningForm::Channels { .. } => "the channel analysis".to_owned(),
        };
        let prompt = Prompt::default();
        let efforts = text.efforts(&prompt).iter().map(|effort| effort.name()).collect();
        Some(Self { marks, opened_by_prompt: text.opens_reasoning(&prompt), efforts })
    }
}

#[derive(Debug, Serialize)]
struct ToolCalls {
    open: String,
    close: Option<String>,
}

#[derive(Debug, Serialize)]
struct FileFacts {
    path: PathBuf,
    bytes: u64,
    /// Tensors by the type of their elements.
    tensors: BTreeMap<String, u64>,
}

/// Loads a model by name or path, and tells what it is.
///
/// # Errors
/// What is wrong with the model, as serving it would say.
pub(super) fn run(registry: &Registry, asked: &str, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let found = find(registry, asked)?;
    let model = load(&found.source)?;
    let inspection = Inspection::of(&found, &model)?;
    match json {
        true => writeln!(out, "{}", serde_json::to_string_pretty(&inspection)?)?,
        false => inspection.print(out)?,
    }
    Ok(())
}

impl Inspection {
    fn of(found: &Found, model: &Model) -> anyhow::Result<Self> {
        let (config, text) = (model.config(), model.text());
        let files = found.source.text_files()?;
        let (kind, path) = match &found.source {
            ModelSource::BuiltIn(_) => ("built_in", None),
            ModelSource::Directory(path) | ModelSource::File(path) => {
                (if found.entry.is_some() { "registered" } else { "path" }, Some(path.clone()))
            }
        };
        let (weights_digest, tokenizer, template) = text.revision();
        Ok(Self {
            name: found.name.clone(),
            kind,
            path,
            added: found.entry.as_ref().map(|entry| entry.added.clone()),
            changed_since_added: found.entry.as_ref().map(|entry| changed_parts(entry, model)).unwrap_or_default(),
            architecture: config.architecture.clone(),
            parameters: model.parameters(),
            layers: config.layers.len(),
            hidden: config.hidden,
            feed_forward: config.ffn,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_elements: config.head_dim,
            context_tokens: config.context_limit,
            kv_bytes_per_token_f32: config.layers.len() * 2 * config.kv_width() * KV_ELEMENT_BYTES,
            tokenizer: Tokenizer::of(&files, text.vocab_size(), tokenizer)?,
            template: Template {
                names: text.template_names().into_iter().map(str::to_owned).collect(),
                from: template_from(&found.source, &files),
                renders_tools: renders_tools(text),
                history: text.stability().into_iter().map(History::of).collect(),
                digest: template,
            },
            tool_calls: text.tool_form().map(|form| ToolCalls { open: form.open.clone(), close: form.close.clone() }),
            reasoning: Reasoning::of(text),
            stop_tokens: text.stop_tokens().to_vec(),
            weights_digest,
            files: found.source.files()?.into_iter().map(FileFacts::of).collect(),
        })
    }

    fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        let place = self.path.as_ref().map_or("in this program".to_owned(), |path| plain(&path.display().to_string()));
        let added = self.added.as_ref().map_or(String::new(), |added| format!(", registered {}", plain(added)));
        writeln!(out, "{}  {place}{added}", plain(&self.name))?;
        if !self.changed_since_added.is_empty() {
            let parts = self.changed_since_added.join(", ");
            writeln!(out, "  changed since then: {parts}; `holdfast models verify {}` tells which files", self.name)?;
        }
        let mut row = |what: &str, told: String| writeln!(out, "  {what:<14} {}", plain(&told));
        row("architecture", format!("{}, {} parameters", self.architecture, HumanCount(self.parameters)))?;
        row("layers", format!("{} of width {}, feed-forward {}", self.layers, self.hidden, self.feed_forward))?;
        row(
            "attention",
            format!("{} heads, {} of keys and values, {} elements each", self.heads, self.kv_heads, self.head_elements),
        )?;
        row("context", format!("{} tokens", self.context_tokens))?;
        row("KV cache", format!("{} B for each token at f32", self.kv_bytes_per_token_f32))?;
        let tokenizer = &self.tokenizer;
        row(
            "tokenizer",
            format!(
                "{} ({}), {} tokens, {} embeddings",
                tokenizer.kind, tokenizer.decoder, tokenizer.tokens, tokenizer.embeddings
            ),
        )?;
        let template = &self.template;
        let tools =
            if template.renders_tools { "tells the model of tools" } else { "does not tell the model of tools" };
        row("template", format!("{} ({}), {tools}", template.from, template.names.join(", ")))?;
        for (i, history) in template.history.iter().enumerate() {
            let what = if i == 0 { "history" } else { "" };
            let dated = if history.dated { ", tells the session's date" } else { "" };
            let told = match history.differs.as_slice() {
                [] => String::new(),
                differs => format!("; not: {}", differs.join(", ")),
            };
            row(what, format!("{}: {}{told}{dated}", history.template, history.rendering))?;
        }
        let reasoning = self.reasoning.as_ref().map_or("no known form".to_owned(), |reasoning| {
            let opened = if reasoning.opened_by_prompt { ", opened by the prompt" } else { "" };
            let efforts = if reasoning.efforts.is_empty() { "none".to_owned() } else { reasoning.efforts.join(", ") };
            format!("{}{opened}; efforts: {efforts}", reasoning.marks)
        });
        row("reasoning", reasoning)?;
        let calls = self.tool_calls.as_ref().map_or("no known form".to_owned(), |calls| {
            format!("{} … {}", calls.open, calls.close.as_deref().unwrap_or("the end of the message"))
        });
        row("tool calls", calls)?;
        let stops: Vec<String> = self.stop_tokens.iter().map(u32::to_string).collect();
        row("stop tokens", stops.join(", "))?;
        row("digests", format!("weights   {}", self.weights_digest))?;
        row("", format!("tokenizer {}", tokenizer.digest))?;
        row("", format!("template  {}", template.digest))?;
        for (i, file) in self.files.iter().enumerate() {
            let name = file.path.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
            let tensors: Vec<String> =
                file.tensors.iter().map(|(element, count)| format!("{count} of {element}")).collect();
            let size = HumanBytes(file.bytes).to_string();
            let told = format!("{name:<32} {size:>12}  {}", tensors.join(", "));
            row(if i == 0 { "files" } else { "" }, told.trim_end().to_owned())?;
        }
        Ok(())
    }
}

impl Tokenizer {
    fn of(files: &TextFiles, embeddings: u32, digest: Digest) -> anyhow::Result<Self> {
        let json: Value = serde_json::from_str(&files.tokenizer).context("tokenizer.json")?;
        let kind = json["model"]["type"].as_str().unwrap_or("unnamed").to_owned();
        let vocab = json["model"]["vocab"].as_object();
        let added = json["added_tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
        // Most tokenizers list their added tokens a second time in the vocabulary.
        let further = added.iter().filter_map(|token| token["content"].as_str());
        let further = further.filter(|text| vocab.is_none_or(|vocab| !vocab.contains_key(*text))).count();
        let decoder = match json["decoder"]["decoders"].as_array() {
            Some(steps) => steps.iter().filter_map(|step| step["type"].as_str()).collect::<Vec<_>>().join(", "),
            None => json["decoder"]["type"].as_str().unwrap_or("none").to_owned(),
        };
        Ok(Self { kind, decoder, tokens: vocab.map_or(0, |vocab| vocab.len()) + further, embeddings, digest })
    }
}

impl FileFacts {
    fn of(file: ModelFile) -> Self {
        Self { path: file.path, bytes: file.bytes, tensors: file.tensors }
    }
}

/// Where the default template comes from; a file of its own wins.
fn template_from(source: &ModelSource, files: &TextFiles) -> &'static str {
    match (source, &files.chat_template) {
        (ModelSource::File(_), _) => "tokenizer.chat_template",
        (_, Some(_)) => "chat_template.jinja",
        (_, None) => "tokenizer_config.json",
    }
}

/// Whether the model is told of a tool: what it reads is not the same without it.
fn renders_tools(text: &ModelText) -> bool {
    let tool = Tool {
        name: "probe".to_owned(),
        description: "A tool.".to_owned(),
        parameters_json_schema: "{}".to_owned(),
        strict: false,
    };
    let read = |tools: &[Tool]| {
        let prompt = Prompt { instructions: "", tools, date: "2026-01-01", template: "", ..Prompt::default() };
        text.render(&prompt, LogEnd::Start, &[Item::message(Role::User, "Hello.")], Next::Generate)
    };
    matches!((read(&[]), read(&[tool])), (Ok(without), Ok(with)) if without != with)
}
