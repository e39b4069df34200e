//! Items to the messages and tools that chat templates expect (Hugging Face's shape).
//!
//! In: items and tool definitions. Out: JSON messages with every client's text marked, so that none of it can turn into a
//! control token. Deliberately not here: which template, and what it makes of the messages.

use holdfast_types::{Item, ItemContent, Part, Role, Tool};
use serde_json::{Map, Value, json};

use crate::RenderError;
use crate::tokenizer::Marker;

/// What a template knows how to say, by the words of its source.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Speaks {
    developer: bool,
    is_error: bool,
    arguments_text: bool,
    /// It calls reasoning `thinking`, as gpt-oss does.
    thinking: bool,
    /// It refuses ids of calls that have not nine letters and digits, as Mistral's do.
    nine_character_ids: bool,
}

impl Speaks {
    /// Reads the source.
    pub(crate) fn of(source: &str) -> Self {
        Self {
            developer: source.contains("developer"),
            is_error: source.contains("is_error"),
            arguments_text: source.contains("arguments_text"),
            thinking: source.contains("message.thinking") && !source.contains("reasoning_content"),
            nine_character_ids: source.contains("length != 9") || source.contains("length == 9"),
        }
    }

    /// The id by which the template is told of a call: the same for the call and its result.
    fn id(self, call_id: &str, marker: &Marker<'_>) -> String {
        if !self.nine_character_ids || (call_id.len() == 9 && call_id.bytes().all(|b| b.is_ascii_alphanumeric())) {
            return marker.text(call_id);
        }
        let digest = blake3::hash(call_id.as_bytes()).to_hex();
        digest[..9].to_owned()
    }
}

/// Text of all parts, one after the other.
pub(crate) fn text_of(parts: &[Part]) -> String {
    parts.iter().map(Part::text).collect()
}

/// Every text of a client's in an item.
pub(crate) fn texts(item: &Item) -> Vec<&str> {
    match &item.content {
        ItemContent::Message { parts, .. } => parts.iter().map(Part::text).collect(),
        ItemContent::Reasoning { text } => vec![text],
        ItemContent::ToolCall { call_id, name, arguments, .. } => vec![call_id, name, arguments],
        ItemContent::ToolResult { call_id, parts, .. } => {
            parts.iter().map(Part::text).chain([call_id.as_str()]).collect()
        }
    }
}

/// Messages for items. Reasoning, one text and the calls that follow become one assistant message. A developer's message
/// is a system message where the template knows no developer; a failed tool's text is introduced by `Error: ` where the
/// template does not look at `is_error`. `earlier` are calls that results may answer.
pub(crate) fn messages(items: &[Item], earlier: &[Item], marker: &Marker<'_>, speaks: Speaks) -> Vec<Value> {
    let mut out: Vec<Value> = Vec::with_capacity(items.len());
    let mut open: Option<Assistant> = None;
    for item in items {
        match &item.content {
            ItemContent::Message { role: Role::Assistant, parts } => {
                if open.as_ref().is_some_and(|a| a.content.is_some() || !a.calls.is_empty()) {
                    out.extend(open.take().map(|open| open.message(speaks)));
                }
                open.get_or_insert_default().content = Some(marker.text(&text_of(parts)));
            }
            ItemContent::Reasoning { text } => {
                out.extend(open.take().map(|open| open.message(speaks)));
                open = Some(Assistant { reasoning: Some(marker.text(text)), ..Assistant::default() });
            }
            ItemContent::ToolCall { call_id, name, arguments, .. } => {
                open.get_or_insert_default().calls.push(call(call_id, name, arguments, marker, speaks));
            }
            ItemContent::Message { role, parts } => {
                out.extend(open.take().map(|open| open.message(speaks)));
                out.push(json!({"role": role_name(*role, speaks), "content": marker.text(&text_of(parts))}));
            }
            ItemContent::ToolResult { call_id, parts, is_error } => {
                out.extend(open.take().map(|open| open.message(speaks)));
                let text = marker.text(&text_of(parts));
                let text = if *is_error && !speaks.is_error { format!("Error: {text}") } else { text };
                let mut message = json!({"role": "tool", "tool_call_id": speaks.id(call_id, marker), "content": text,
                    "is_error": is_error});
                if let Some(name) = called_name(items, call_id).or_else(|| called_name(earlier, call_id)) {
                    message["name"] = Value::String(marker.text(name));
                }
                out.push(message);
            }
        }
    }
    out.extend(open.map(|open| open.message(speaks)));
    out
}

/// A system message.
pub(crate) fn system(text: &str, marker: &Marker<'_>) -> Value {
    json!({"role": "system", "content": marker.text(text)})
}

/// Puts instructions before a message's text.
pub(crate) fn instruct(message: &mut Value, text: &str, marker: &Marker<'_>) {
    let content = message["content"].as_str().unwrap_or_default();
    message["content"] = Value::String(format!("{}\n\n{content}", marker.text(text)));
}

/// Tools in the shape of Hugging Face's templates. A schema is any JSON object; an absent one has no parameters.
pub(crate) fn tools(tools: &[Tool], marker: &Marker<'_>) -> Result<Vec<Value>, RenderError> {
    let one = |tool: &Tool| {
        let wrong = |problem: String| RenderError::InvalidTool { name: tool.name.clone(), problem };
        let text = tool.parameters_json_schema.trim();
        let mut schema: Map<String, Value> = match text {
            "" => Map::new(),
            text => serde_json::from_str(text).map_err(|e| wrong(format!("not a JSON object: {e}")))?,
        };
        schema.entry("type").or_insert_with(|| json!("object"));
        let properties = schema.entry("properties").or_insert_with(|| json!({}));
        if !properties.is_object() {
            return Err(wrong("\"properties\" is not an object".to_owned()));
        }
        Ok(json!({"type": "function", "function": {"name": marker.text(&tool.name),
            "description": marker.text(&tool.description), "parameters": marker.json(&Value::Object(schema))}}))
    };
    tools.iter().map(one).collect()
}

#[derive(Default)]
struct Assistant {
    reasoning: Option<String>,
    content: Option<String>,
    calls: Vec<Value>,
}

impl Assistant {
    fn message(self, speaks: Speaks) -> Value {
        let mut message = json!({"role": "assistant", "content": self.content.unwrap_or_default()});
        if let Some(reasoning) = self.reasoning {
            let key = if speaks.thinking { "thinking" } else { "reasoning_content" };
            message[key] = Value::String(reasoning);
        }
        if !self.calls.is_empty() {
            message["tool_calls"] = Value::Array(self.calls);
        }
        message
    }
}

/// `arguments` is an object where it can be read as one, as templates expect; `arguments_text` is exactly what was given, for
/// templates that ask for it: others write down all that is there.
fn call(call_id: &str, name: &str, arguments: &str, marker: &Marker<'_>, speaks: Speaks) -> Value {
    let text = marker.text(arguments);
    let value = match serde_json::from_str::<Value>(arguments) {
        Ok(value) => marker.json(&value),
        Err(_) => Value::String(text.clone()),
    };
    let mut function = json!({"name": marker.text(name), "arguments": value});
    if speaks.arguments_text {
        function["arguments_text"] = Value::String(text);
    }
    json!({"id": speaks.id(call_id, marker), "type": "function", "function": function})
}

fn called_name<'a>(items: &'a [Item], wanted: &str) -> Option<&'a str> {
    items.iter().find_map(|item| match &item.content {
        ItemContent::ToolCall { call_id, name, .. } if call_id == wanted => Some(name.as_str()),
        _ => None,
    })
}

fn role_name(role: Role, speaks: Speaks) -> &'static str {
    match role {
        Role::Developer if speaks.developer => "developer",
        Role::System | Role::Developer => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    }
}
