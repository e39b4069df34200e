//! Rendering new items alone.
//!
//! In: what a session is fixed to ([`Prompt`]), how its log ends ([`LogEnd`]), new items. Out: exactly the tokens to append.
//! History is never rendered again: the delta is `render(H + new) − render(H)` for a short made-up history H that ends in the way
//! the log does, so the cost depends on the new items only. That this equals rendering the whole conversation is proven
//! when a model is loaded, on made-up histories of several kinds ([`ModelText::prove`]); a template for which it does not hold
//! is refused. Deliberately not here: Jinja, tokenisation, and what sampled tokens mean.

use std::collections::BTreeMap;
use std::path::Path;

use holdfast_types::{Item, ItemContent, Role, TokenId, Tool};
use serde_json::{Value, json};

use crate::messages::{self, Speaks};
use crate::template::{DEFAULT, Rendering};
use crate::tokenizer::Marker;
use crate::{ModelError, ModelText, RenderError};

/// What every rendering of a session shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prompt<'a> {
    /// The system message; empty for none.
    pub instructions: &'a str,
    /// Tools that the model is told of.
    pub tools: &'a [Tool],
    /// The session's pinned date, `YYYY-MM-DD`, for templates that tell one.
    pub date: &'a str,
    /// A named template; empty for the model's choice.
    pub template: &'a str,
}

/// How a session's token log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogEnd {
    /// Nothing was rendered: the system prompt and the tools come first.
    Start,
    /// After rendered items, or after closing tokens.
    Closed,
    /// The last generation ended with its stop token; what the template writes after it is not there yet.
    Sampled,
    /// The generation prompt is there, and nothing was sampled after it.
    Prompted,
}

/// What follows the new items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The generation prompt: the model speaks next.
    Generate,
    /// Nothing.
    Nothing,
}

/// How a log ends that a generation left open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenEnd {
    /// Sampled text without its stop token.
    Text,
    /// The generation prompt alone.
    Prompted,
}

/// What templates write after an assistant's text.
#[derive(Debug, Default)]
pub(crate) struct Closings {
    /// From the end of the text on: the stop token and what follows it.
    after_text: Vec<TokenId>,
    /// Behind the stop token only.
    after_stop: Vec<TokenId>,
}

impl ModelText {
    /// The tokens that new items append to a log, by the model's template.
    ///
    /// - `Start` renders instructions and tools as well. With neither items nor `Generate` it may give nothing, when the template
    ///   cannot speak of them before a first message; the log then still is at its `Start`.
    /// - `Sampled` begins with what the template writes after a stop token.
    /// - `Prompted` gives nothing without items (the prompt is there); with items it first closes the empty message.
    ///
    /// Tool results at the head of `items` answer the calls that the log ends with, in the order given.
    ///
    /// # Errors
    /// [`RenderError`]: the template refuses or drops the items, a tool's schema is no object, or the template is unknown.
    pub fn render(
        &self,
        prompt: &Prompt<'_>,
        after: LogEnd,
        items: &[Item],
        next: Next,
    ) -> Result<Vec<TokenId>, RenderError> {
        let has_tools = !prompt.tools.is_empty();
        let template = self.templates.resolve(prompt.template, has_tools).ok_or_else(|| {
            RenderError::UnknownTemplate { name: prompt.template.to_owned(), known: self.template_names().join(", ") }
        })?;
        let generate = next == Next::Generate;
        let speaks = Speaks::of(self.templates.source(template));
        let marker = self.marker(prompt, items)?;
        let new = messages::messages(items, &marker, speaks);
        let shape = Shape { template, date: prompt.date, system: !prompt.instructions.is_empty(), tools: has_tools };
        match after {
            LogEnd::Start => {
                if items.is_empty() && !generate && !self.can_begin_alone(&shape) {
                    return Ok(Vec::new());
                }
                let mut all = Vec::with_capacity(new.len() + 1);
                if shape.system {
                    all.push(messages::system(prompt.instructions, &marker));
                }
                all.extend(new);
                let tools = messages::tools(prompt.tools, &marker)?;
                let text = self.text_of(&shape, &all, &tools, generate)?;
                if shape.system && !text.contains(marker.text(prompt.instructions).trim()) {
                    return Err(RenderError::Dropped { what: "the instructions".to_owned() });
                }
                nothing_dropped(&text, items, &marker)?;
                Ok(self.encoder.rendered(&text, Some(marker.mark()), true))
            }
            LogEnd::Prompted if items.is_empty() => Ok(Vec::new()),
            LogEnd::Prompted => {
                let mut ids = self.closing(OpenEnd::Prompted);
                ids.extend(self.delta(&shape, LogEnd::Closed, SHORTEST, &new, generate, Some(&marker), items)?);
                Ok(ids)
            }
            LogEnd::Closed if items.is_empty() && !generate => Ok(Vec::new()),
            LogEnd::Sampled if items.is_empty() && !generate => Ok(self.closings.after_stop.clone()),
            LogEnd::Closed | LogEnd::Sampled => {
                self.delta(&shape, after, SHORTEST, &new, generate, Some(&marker), items)
            }
        }
    }

    /// The tokens that close what a generation left open after an early end: the template's stop token and what
    /// follows it. The log is `Closed` afterwards.
    pub fn closing(&self, open: OpenEnd) -> Vec<TokenId> {
        match open {
            OpenEnd::Text | OpenEnd::Prompted => self.closings.after_text.clone(),
        }
    }

    fn marker(&self, prompt: &Prompt<'_>, items: &[Item]) -> Result<Marker<'_>, RenderError> {
        let tool_texts = |t: &'_ Tool| [t.name.clone(), t.description.clone(), t.parameters_json_schema.clone()];
        let tool_texts: Vec<String> = prompt.tools.iter().flat_map(tool_texts).collect();
        let mut texts: Vec<&str> = vec![prompt.instructions];
        texts.extend(tool_texts.iter().map(String::as_str));
        texts.extend(items.iter().flat_map(messages::texts));
        self.encoder.marker(&texts).ok_or(RenderError::NoFreeMark)
    }

    fn text_of(
        &self,
        shape: &Shape<'_>,
        messages: &[Value],
        tools: &[Value],
        generate: bool,
    ) -> Result<String, RenderError> {
        let rendering = Rendering { messages, tools, date: shape.date, generate };
        self.templates.render(shape.template, &rendering).map_err(|message| RenderError::Rejected { message })
    }

    /// Whether what the template makes of system prompt and tools alone is how it begins with a message after them.
    fn can_begin_alone(&self, shape: &Shape<'_>) -> bool {
        let mut history = Vec::new();
        if shape.system {
            history.push(json!({"role": "system", "content": SYSTEM}));
        }
        let tools = shape.synthetic_tools();
        if history.is_empty() && tools.is_empty() {
            return false;
        }
        let Ok(base) = self.text_of(shape, &history, &tools, false) else { return false };
        // A template may keep them for the first message.
        if (shape.system && !base.contains(SYSTEM)) || (shape.tools && !base.contains(CALLED)) {
            return false;
        }
        // A first message of another role may be worked into the beginning as well; one that is refused cannot come.
        ["user", "system"].into_iter().all(|role| {
            let mut all = history.clone();
            all.push(json!({"role": role, "content": USER}));
            match self.text_of(shape, &all, &tools, false) {
                Ok(full) => full.starts_with(&base) && self.split(&base, &full, None, "the first message").is_ok(),
                Err(_) => role != "user",
            }
        })
    }

    /// `render(H + new) − render(H)` for an H of this length that ends as the log does.
    #[expect(clippy::too_many_arguments, reason = "what a rendering depends on; a struct would only rename it")]
    fn delta(
        &self,
        shape: &Shape<'_>,
        after: LogEnd,
        length: Length,
        new: &[Value],
        generate: bool,
        marker: Option<&Marker<'_>>,
        items: &[Item],
    ) -> Result<Vec<TokenId>, RenderError> {
        let ending = Ending::of(new, after);
        let after_ending = |ending: &Ending| {
            let history = shape.history(ending, length);
            self.delta_after(shape, after, &history, new, generate, marker, items)
        };
        match (after_ending(&ending), ending) {
            // Llama's template knows one call of a message; its model makes several nevertheless, and the results are due.
            (Err(RenderError::Rejected { .. }), Ending::Calls(mut ids)) if ids.len() > 1 => {
                ids.truncate(1);
                after_ending(&Ending::Calls(ids))
            }
            (delta, _) => delta,
        }
    }

    #[expect(clippy::too_many_arguments, reason = "as above")]
    fn delta_after(
        &self,
        shape: &Shape<'_>,
        after: LogEnd,
        history: &[Value],
        new: &[Value],
        generate: bool,
        marker: Option<&Marker<'_>>,
        items: &[Item],
    ) -> Result<Vec<TokenId>, RenderError> {
        let tools = shape.synthetic_tools();
        let base = self.text_of(shape, history, &tools, false)?;
        let all: Vec<Value> = history.iter().chain(new).cloned().collect();
        let full = self.text_of(shape, &all, &tools, generate)?;
        let added = full.strip_prefix(base.as_str()).ok_or(RenderError::Unstable { what: "text of the history" })?;
        if let Some(marker) = marker {
            nothing_dropped(added, items, marker)?;
        }
        let (base, full) = self.split(&base, &full, marker.map(Marker::mark), "tokens of the history")?;
        let from = match after {
            LogEnd::Sampled => {
                self.after_last_stop(&base).ok_or(RenderError::Unstable { what: "the end of a turn" })?
            }
            _ => base.len(),
        };
        Ok(full[from..].to_vec())
    }

    /// Both texts as tokens, when the first's are how the second's begin.
    fn split(
        &self,
        base: &str,
        full: &str,
        mark: Option<char>,
        what: &'static str,
    ) -> Result<(Vec<TokenId>, Vec<TokenId>), RenderError> {
        let base = self.encoder.rendered(base, mark, true);
        let full = self.encoder.rendered(full, mark, true);
        if full.starts_with(&base) { Ok((base, full)) } else { Err(RenderError::Unstable { what }) }
    }

    fn after_last_stop(&self, tokens: &[TokenId]) -> Option<usize> {
        tokens.iter().rposition(|id| self.stop_tokens.contains(id)).map(|at| at + 1)
    }

    /// Proves on made-up histories that what new items become does not depend on what was before them, for every template:
    /// with and without system message and tools; after one exchange, after several, after a round of tools; for user
    /// messages, tool results and imported answers. What a template refuses by itself is left out, but a user message it
    /// must take.
    ///
    /// # Errors
    /// [`ModelError::UnstableTemplate`] with the history at which it shows, [`ModelError::Template`] when a plain exchange
    /// cannot be rendered or an answer is not ended by a stop token.
    pub(crate) fn prove(&self, path: &Path) -> Result<Closings, ModelError> {
        let mut closings = BTreeMap::new();
        for name in self.templates.names() {
            closings.insert(name, self.prove_one(path, name)?);
        }
        let first = closings.remove(DEFAULT).unwrap_or_default();
        match closings.into_iter().find(|(_, other)| other.after_text != first.after_text) {
            None => Ok(first),
            Some((name, _)) => Err(ModelError::Template {
                path: path.to_owned(),
                name: name.to_owned(),
                problem: "it ends an answer in another way than the default template does".to_owned(),
            }),
        }
    }

    fn prove_one(&self, path: &Path, template: &str) -> Result<Closings, ModelError> {
        let broken =
            |problem: String| ModelError::Template { path: path.to_owned(), name: template.to_owned(), problem };
        let unstable = |problem: String| ModelError::UnstableTemplate {
            path: path.to_owned(),
            name: template.to_owned(),
            digest: self.templates.digest_of(template),
            problem,
        };
        let plain = Shape { template, date: PROOF_DATE, system: false, tools: false };
        let closings = self.closings_of(&plain).map_err(broken)?;
        for (system, tools) in [(false, false), (true, false), (false, true), (true, true)] {
            let shape = Shape { system, tools, ..plain };
            for new in news() {
                for (after, generate) in
                    [(LogEnd::Closed, false), (LogEnd::Closed, true), (LogEnd::Sampled, false), (LogEnd::Sampled, true)]
                {
                    let ending = Ending::of(&new, after);
                    let delta = |length| self.delta(&shape, after, length, &new, generate, None, &[]);
                    let needed = !system && !tools && ending == Ending::Assistant && new[0]["role"] == "user";
                    let what = format!("a new {} message (system {system}, tools {tools})", new[0]["role"]);
                    let shortest = match delta(SHORTEST) {
                        Ok(shortest) => shortest,
                        Err(RenderError::Rejected { .. }) if !needed => continue,
                        Err(RenderError::Rejected { message }) => return Err(broken(message)),
                        Err(e) => return Err(unstable(format!("{what}: {e}"))),
                    };
                    for (exchanges, rounds) in [(2, false), (3, false), (2, true)] {
                        match delta(Length { exchanges, rounds }) {
                            Ok(other) if other == shortest => {}
                            Err(RenderError::Rejected { .. }) if rounds => {}
                            Ok(_) => {
                                return Err(unstable(format!(
                                    "{what} renders differently after {exchanges} exchanges"
                                )));
                            }
                            Err(e) => return Err(unstable(format!("{what} after {exchanges} exchanges: {e}"))),
                        }
                    }
                }
            }
        }
        Ok(closings)
    }

    /// What the template writes after an assistant's text.
    fn closings_of(&self, shape: &Shape<'_>) -> Result<Closings, String> {
        let history = shape.history(&Ending::Assistant, SHORTEST);
        let text = self.text_of(shape, &history, &[], false).map_err(|e| e.to_string())?;
        let at = text.rfind(ASSISTANT).ok_or("an assistant's text is not rendered")?;
        let after_text = self.encoder.rendered(&text[at + ASSISTANT.len()..], None, false);
        let stop = self.after_last_stop(&after_text).ok_or_else(|| {
            let stops: Vec<_> = self.stop_tokens.iter().filter_map(|id| self.special_text(*id)).collect();
            format!("an assistant's message does not end with a stop token ({})", stops.join(", "))
        })?;
        let after_stop = after_text[stop..].to_vec();
        Ok(Closings { after_text, after_stop })
    }
}

const SYSTEM: &str = "Be kind.";
const USER: &str = "Apples?";
const ASSISTANT: &str = "Pears.";
const CALLED: &str = "look";
const PROOF_DATE: &str = "2026-01-01";

/// What a made-up history has in common with the session.
#[derive(Clone, Copy)]
struct Shape<'a> {
    template: &'a str,
    date: &'a str,
    system: bool,
    tools: bool,
}

/// How long a made-up history is.
#[derive(Debug, Clone, Copy)]
struct Length {
    exchanges: usize,
    /// A round of tools is in the first of several exchanges.
    rounds: bool,
}

const SHORTEST: Length = Length { exchanges: 1, rounds: false };

/// What the made-up history ends with, so that the new messages may follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ending {
    User,
    Assistant,
    /// An assistant's calls with these ids.
    Calls(Vec<String>),
}

impl Ending {
    fn of(new: &[Value], after: LogEnd) -> Self {
        let role = |message: &Value| message["role"].as_str().unwrap_or_default().to_owned();
        match new.first().map(role).as_deref() {
            Some("tool") => {
                let results = new.iter().take_while(|message| message["role"] == "tool");
                Self::Calls(results.map(|m| m["tool_call_id"].as_str().unwrap_or_default().to_owned()).collect())
            }
            Some("assistant") | None if after == LogEnd::Closed => Self::User,
            _ => Self::Assistant,
        }
    }
}

impl Shape<'_> {
    fn synthetic_tools(&self) -> Vec<Value> {
        let parameters = json!({"type": "object", "properties": {"at": {"type": "string"}}});
        let tool = json!({"type": "function",
            "function": {"name": CALLED, "description": "Looks.", "parameters": parameters}});
        if self.tools { vec![tool] } else { Vec::new() }
    }

    /// Messages of so many exchanges, the last one cut at the ending.
    fn history(&self, ending: &Ending, Length { exchanges, rounds }: Length) -> Vec<Value> {
        let user = json!({"role": "user", "content": USER});
        let assistant = json!({"role": "assistant", "content": ASSISTANT});
        let calls = |ids: &[String]| {
            let call = |id: &String| {
                json!({"id": id, "type": "function",
                    "function": {"name": CALLED, "arguments": {"at": "it"}, "arguments_text": "{\"at\":\"it\"}"}})
            };
            json!({"role": "assistant", "content": "", "tool_calls": ids.iter().map(call).collect::<Vec<_>>()})
        };
        let mut all = Vec::new();
        if self.system {
            all.push(json!({"role": "system", "content": SYSTEM}));
        }
        for i in 1..exchanges {
            all.push(user.clone());
            if rounds && i == 1 {
                all.push(calls(&["call00001".to_owned()]));
                all.push(json!({"role": "tool", "tool_call_id": "call00001", "name": CALLED, "content": "seen"}));
            }
            all.push(assistant.clone());
        }
        all.push(user);
        match ending {
            Ending::User => {}
            Ending::Assistant => all.push(assistant),
            Ending::Calls(ids) => all.push(calls(ids)),
        }
        all
    }
}

/// New messages that the proof appends.
fn news() -> Vec<Vec<Value>> {
    let result = |id: &str| json!({"role": "tool", "tool_call_id": id, "name": CALLED, "content": "{\"seen\": 1}"});
    let user = json!({"role": "user", "content": "And plums? \u{1f347}\n"});
    let answer = json!({"role": "assistant", "content": "None."});
    vec![
        vec![user.clone()],
        vec![user.clone(), answer.clone(), user],
        vec![result("call00008")],
        vec![result("call00008"), result("call00009")],
        vec![answer],
    ]
}

/// Whether every message's text is in what was rendered. Reasoning and tool results are the template's to shape.
fn nothing_dropped(rendered: &str, items: &[Item], marker: &Marker<'_>) -> Result<(), RenderError> {
    for (i, item) in items.iter().enumerate() {
        let ItemContent::Message { role, parts } = &item.content else { continue };
        if !rendered.contains(marker.text(&messages::text_of(parts)).trim()) {
            let role = match role {
                Role::System => "system",
                Role::Developer => "developer",
                Role::User => "user",
                Role::Assistant => "assistant",
            };
            return Err(RenderError::Dropped { what: format!("item {i}, a {role} message") });
        }
    }
    Ok(())
}
