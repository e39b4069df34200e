//! Rendering new items alone.
//!
//! In: what a session is fixed to ([`Prompt`]), how its log ends ([`LogEnd`]), new items. Out: exactly the tokens to append.
//! History is never rendered again: the delta is `render(H + new) − render(H)` for a short made-up history H that ends in the way
//! the log does, so the cost depends on the new items only. That this equals rendering the whole conversation is proven
//! when a model is loaded ([`crate::stability`]); where a template looks back, the delta is what follows the end of the history's
//! last answer. Deliberately not here: Jinja, tokenisation, and what sampled tokens mean.

use holdfast_types::{Item, ItemContent, ReasoningEffort, Role, TokenId, Tool};
use serde_json::Value;

use crate::messages::{self, Speaks};
use crate::stability::Facts;
use crate::synthetic::{Ending, Length, SHORTEST, Shape};
use crate::template::{DEFAULT, Rendering};
use crate::tokenizer::Marker;
use crate::{ModelText, RenderError};

/// What every rendering of a session shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prompt<'a> {
    /// The system message; empty for none.
    pub instructions: &'a str,
    /// Tools that the model is told of.
    pub tools: &'a [Tool],
    /// The session's pinned date, `YYYY-MM-DD`, for templates that tell one.
    pub date: &'a str,
    /// A named template; empty for the model's choice.
    pub template: &'a str,
    /// How much the model is to think; `None` for the template's own choice.
    pub effort: Option<ReasoningEffort>,
    /// Calls made earlier that results among the items answer: some templates name the tool again.
    pub calls: &'a [Item],
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
        let speaks = Speaks::of(self.templates.rendered_source(template));
        let marker = self.marker(prompt, items)?;
        let mut new = messages::messages(items, prompt.calls, &marker, speaks);
        let facts = self.facts.get(template);
        let instructed = !prompt.instructions.is_empty();
        let system = instructed && facts.is_none_or(|facts| facts.takes_system);
        let incremental = facts.is_some_and(Facts::is_incremental);
        let shape = Shape { template, date: prompt.date, effort: prompt.effort, system, tools: has_tools, incremental };
        match after {
            LogEnd::Start => {
                let alone = items.is_empty() && !generate;
                if alone && (instructed != system || !self.can_begin_alone(&shape)) {
                    return Ok(Vec::new());
                }
                let mut all = Vec::with_capacity(new.len() + 1);
                let first = new.first_mut().filter(|first| instructed != system && first["role"] == "user");
                match first {
                    // A template without a place for it, such as Gemma's.
                    Some(first) => messages::instruct(first, prompt.instructions, &marker),
                    None if instructed => all.push(messages::system(prompt.instructions, &marker)),
                    None => {}
                }
                all.extend(new);
                let tools = messages::tools(prompt.tools, &marker)?;
                let text = self.text_of(&shape, &all, &tools, generate)?;
                if !text.contains(marker.text(prompt.instructions).trim()) {
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
            LogEnd::Sampled if items.is_empty() && !generate => {
                Ok(facts.map(|facts| facts.closings.after_stop.clone()).unwrap_or_default())
            }
            LogEnd::Closed | LogEnd::Sampled => {
                self.delta(&shape, after, SHORTEST, &new, generate, Some(&marker), items)
            }
        }
    }

    /// The tokens that close what a generation left open after an early end: the template's stop token and what
    /// follows it. The log is `Closed` afterwards.
    pub fn closing(&self, open: OpenEnd) -> Vec<TokenId> {
        let closing = self.facts.get(DEFAULT).map(|facts| facts.closings.after_text.clone());
        match open {
            OpenEnd::Text | OpenEnd::Prompted => closing.unwrap_or_default(),
        }
    }

    /// Whether reasoning is open after the generation prompt of a session: the template begins it itself.
    pub fn opens_reasoning(&self, prompt: &Prompt<'_>) -> bool {
        self.facts_for(prompt).is_some_and(|facts| facts.opens_reasoning.contains(&prompt.effort))
    }

    /// The efforts that the template of a session can be told of, rising. One that only switches thinking on and off takes every
    /// effort but none as on.
    pub fn efforts(&self, prompt: &Prompt<'_>) -> &[ReasoningEffort] {
        self.facts_for(prompt).map_or(&[], |facts| &facts.efforts)
    }

    fn facts_for(&self, prompt: &Prompt<'_>) -> Option<&Facts> {
        self.facts.get(self.templates.resolve(prompt.template, !prompt.tools.is_empty())?)
    }

    fn marker(&self, prompt: &Prompt<'_>, items: &[Item]) -> Result<Marker<'_>, RenderError> {
        let tool_texts = |t: &'_ Tool| [t.name.clone(), t.description.clone(), t.parameters_json_schema.clone()];
        let tool_texts: Vec<String> = prompt.tools.iter().flat_map(tool_texts).collect();
        let mut texts: Vec<&str> = vec![prompt.instructions];
        texts.extend(tool_texts.iter().map(String::as_str));
        texts.extend(items.iter().chain(prompt.calls).flat_map(messages::texts));
        self.encoder.marker(&texts).ok_or(RenderError::NoFreeMark)
    }

    pub(crate) fn text_of(
        &self,
        shape: &Shape<'_>,
        messages: &[Value],
        tools: &[Value],
        generate: bool,
    ) -> Result<String, RenderError> {
        let rendering = Rendering { messages, tools, date: shape.date, effort: shape.effort, generate };
        self.templates.render(shape.template, &rendering).map_err(|message| RenderError::Rejected { message })
    }

    /// `render(H + new) − render(H)` for an H of this length that ends as the log does.
    #[expect(clippy::too_many_arguments, reason = "what a rendering depends on; a struct would only rename it")]
    pub(crate) fn delta(
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
        let Some(added) = full.strip_prefix(base.as_str()) else {
            if let Some(marker) = marker {
                nothing_dropped(&full, items, marker)?;
            }
            let mark = marker.map(Marker::mark);
            let found = self.behind_the_last_answer(&base, &full, after, mark).filter(|_| shape.incremental);
            return found.ok_or(RenderError::Unstable { what: "text of the history" });
        };
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

    /// What follows the history in `full`, though its text is another than `base`: its last answer ends with as many stop tokens
    /// before it as in `base`. No text of a client's holds one.
    fn behind_the_last_answer(
        &self,
        base: &str,
        full: &str,
        after: LogEnd,
        mark: Option<char>,
    ) -> Option<Vec<TokenId>> {
        let is_stop = |id: &TokenId| self.stop_tokens.contains(id);
        let base = self.encoder.rendered(base, mark, true);
        let full = self.encoder.rendered(full, mark, true);
        let ended = self.after_last_stop(&base)?;
        let stops = base.iter().filter(|id| is_stop(id)).count();
        let mut ends = full.iter().enumerate().filter(|(_, id)| is_stop(id)).map(|(at, _)| at + 1);
        let rest = &full[ends.nth(stops - 1)?..];
        match after {
            LogEnd::Sampled => Some(rest.to_vec()),
            _ => rest.strip_prefix(&base[ended..]).map(<[TokenId]>::to_vec),
        }
    }

    /// Both texts as tokens, when the first's are how the second's begin.
    pub(crate) fn split(
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

    pub(crate) fn after_last_stop(&self, tokens: &[TokenId]) -> Option<usize> {
        tokens.iter().rposition(|id| self.stop_tokens.contains(id)).map(|at| at + 1)
    }
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
