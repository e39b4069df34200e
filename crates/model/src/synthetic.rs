//! Made-up histories: what new items are rendered after, since the real history never is again.
//!
//! In: what a session has in common with one ([`Shape`]), what the log ends with ([`Ending`]). Out: messages. Deliberately not
//! here: rendering them, and what is proven with them.

use holdfast_types::ReasoningEffort;
use serde_json::{Value, json};

use crate::render::LogEnd;

pub(crate) const SYSTEM: &str = "Be kind.";
pub(crate) const LATER_SYSTEM: &str = "Be brief.";
pub(crate) const USER: &str = "Apples?";
pub(crate) const ASSISTANT: &str = "Pears.";
pub(crate) const THOUGHT: &str = "Quinces";
pub(crate) const CALLED: &str = "look";
const DATE: &str = "2026-01-01";

/// What a made-up history has in common with the session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape<'a> {
    pub(crate) template: &'a str,
    pub(crate) date: &'a str,
    pub(crate) effort: Option<ReasoningEffort>,
    pub(crate) system: bool,
    pub(crate) tools: bool,
    /// Where the template looks back, what is new is found behind the end of the last answer.
    pub(crate) incremental: bool,
}

/// How long a made-up history is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Length {
    pub(crate) exchanges: usize,
    /// A round of tools is in the first of several exchanges.
    pub(crate) rounds: bool,
}

pub(crate) const SHORTEST: Length = Length { exchanges: 1, rounds: false };

/// What the made-up history ends with, so that the new messages may follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    User,
    Assistant,
    /// An assistant's calls: ids and names.
    Calls(Vec<(String, String)>),
}

impl Ending {
    pub(crate) fn of(new: &[Value], after: LogEnd) -> Self {
        match new.first().and_then(|message| message["role"].as_str()) {
            Some("tool") => {
                let results = new.iter().take_while(|message| message["role"] == "tool");
                let text = |value: &Value, other: &str| value.as_str().unwrap_or(other).to_owned();
                Self::Calls(results.map(|m| (text(&m["tool_call_id"], ""), text(&m["name"], CALLED))).collect())
            }
            Some("assistant") | None if after == LogEnd::Closed => Self::User,
            _ => Self::Assistant,
        }
    }
}

impl<'a> Shape<'a> {
    /// Without system message, tools or effort.
    pub(crate) fn plain(template: &'a str) -> Self {
        Self { template, date: DATE, effort: None, system: false, tools: false, incremental: false }
    }

    pub(crate) fn synthetic_tools(&self) -> Vec<Value> {
        let parameters = json!({"type": "object", "properties": {"at": {"type": "string"}}});
        let tool = json!({"type": "function",
            "function": {"name": CALLED, "description": "Looks.", "parameters": parameters}});
        if self.tools { vec![tool] } else { Vec::new() }
    }

    /// Messages of so many exchanges, the last one cut at the ending.
    pub(crate) fn history(&self, ending: &Ending, Length { exchanges, rounds }: Length) -> Vec<Value> {
        let mut all = Vec::new();
        if self.system {
            all.push(system());
        }
        for i in 1..exchanges {
            all.push(user());
            if rounds && i == 1 {
                all.extend([calls(&[("call00001".to_owned(), CALLED.to_owned())]), result("call00001")]);
            }
            all.push(assistant());
        }
        all.push(user());
        match ending {
            Ending::User => {}
            Ending::Assistant => all.push(assistant()),
            Ending::Calls(made) => all.push(calls(made)),
        }
        all
    }
}

pub(crate) fn system() -> Value {
    json!({"role": "system", "content": SYSTEM})
}

/// One that comes later.
pub(crate) fn later_system() -> Value {
    json!({"role": "system", "content": LATER_SYSTEM})
}

pub(crate) fn user() -> Value {
    json!({"role": "user", "content": USER})
}

/// One that says something else.
pub(crate) fn later_user() -> Value {
    json!({"role": "user", "content": "And plums? \u{1f347}\n"})
}

pub(crate) fn assistant() -> Value {
    json!({"role": "assistant", "content": ASSISTANT})
}

/// An answer after a thought.
pub(crate) fn thoughtful() -> Value {
    json!({"role": "assistant", "content": ASSISTANT, "reasoning_content": THOUGHT, "thinking": THOUGHT})
}

/// Calls by id and name.
pub(crate) fn calls(made: &[(String, String)]) -> Value {
    let call = |(id, name): &(String, String)| {
        json!({"id": id, "type": "function",
            "function": {"name": name, "arguments": {"at": "it"}, "arguments_text": "{\"at\":\"it\"}"}})
    };
    json!({"role": "assistant", "content": "", "tool_calls": made.iter().map(call).collect::<Vec<_>>()})
}

pub(crate) fn result(id: &str) -> Value {
    json!({"role": "tool", "tool_call_id": id, "name": CALLED, "content": "{\"seen\": 1}"})
}

/// New messages that the proof appends.
pub(crate) fn news() -> Vec<Vec<Value>> {
    let user = later_user();
    let answer = json!({"role": "assistant", "content": "None."});
    vec![
        vec![user.clone()],
        vec![user.clone(), answer.clone(), user],
        vec![result("call00008")],
        vec![result("call00008"), result("call00009")],
        vec![answer],
    ]
}
