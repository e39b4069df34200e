//! Short ways to say items and to read them.

use crate::v1;
use v1::content_part::Part;
use v1::item::Kind;

/// A message of the user.
pub fn user(text: impl Into<String>) -> v1::Item {
    message(v1::Role::User, text)
}

/// A text message of any role.
pub fn message(role: v1::Role, text: impl Into<String>) -> v1::Item {
    let message = v1::Message { role: role.into(), content: vec![text_part(text)] };
    v1::Item { kind: Some(Kind::Message(message)), ..v1::Item::default() }
}

/// The answer to a tool call.
pub fn tool_result(call_id: impl Into<String>, text: impl Into<String>) -> v1::Item {
    let result = v1::ToolResult { call_id: call_id.into(), content: vec![text_part(text)], is_error: false };
    v1::Item { kind: Some(Kind::ToolResult(result)), ..v1::Item::default() }
}

/// A function that the model may call. `parameters_json_schema` is a JSON schema of an object, or empty.
pub fn function(
    name: impl Into<String>,
    description: impl Into<String>,
    parameters_json_schema: impl Into<String>,
) -> v1::Tool {
    let function = v1::FunctionTool {
        name: name.into(),
        description: description.into(),
        parameters_json_schema: parameters_json_schema.into(),
        strict: false,
    };
    v1::Tool { kind: Some(v1::tool::Kind::Function(function)) }
}

/// All text of an item, for people: messages, reasoning, arguments, results.
pub fn text(item: &v1::Item) -> String {
    match &item.kind {
        Some(Kind::Message(message)) => parts(&message.content),
        Some(Kind::Reasoning(reasoning)) => reasoning.text.clone(),
        Some(Kind::ToolCall(call)) => format!("{}({})", call.name, call.arguments),
        Some(Kind::ToolResult(result)) => parts(&result.content),
        None => String::new(),
    }
}

fn parts(content: &[v1::ContentPart]) -> String {
    let texts = content.iter().filter_map(|part| match &part.part {
        Some(Part::Text(text)) => Some(text.as_str()),
        Some(Part::Image(_) | Part::File(_)) | None => None,
    });
    texts.collect()
}

fn text_part(text: impl Into<String>) -> v1::ContentPart {
    v1::ContentPart { part: Some(Part::Text(text.into())) }
}
