//! Tools, and the choice between them.
//!
//! In: tool definitions, `tool_choice`, `allowed_tools`. Out: tools with well-formed names, each once, whose schema is a
//! JSON object; and tools back. Deliberately not here: whether a tool that is named exists in the session.

use std::collections::BTreeSet;

use holdfast_contracts::v1;
use holdfast_types::{Failure, Limits, Reason, Tool, ToolChoice};

use crate::field::Field;
use crate::limits::{self, at_most};

/// Longest name of a tool.
const NAME_CHARS: usize = 64;

/// Reads the tools of a session or completion.
pub(crate) fn tools(limits: &Limits, field: Field<'_>, tools: Vec<v1::Tool>) -> Result<Vec<Tool>, Failure> {
    at_most!(limits.tools_per_session, tools.len(), field)?;
    let mut seen = BTreeSet::new();
    let mut parsed = Vec::with_capacity(tools.len());
    for (at, tool) in tools.into_iter().enumerate() {
        let tool = parse(limits, field.element(at), tool)?;
        if !seen.insert(tool.name.clone()) {
            let problem = format!("a tool named {:?} is there twice", tool.name);
            return Err(field.element(at).failure(Reason::InvalidTool, problem));
        }
        parsed.push(tool);
    }
    Ok(parsed)
}

/// Writes tools.
pub(crate) fn tools_out(tools: &[Tool]) -> Vec<v1::Tool> {
    let out = |tool: &Tool| v1::Tool {
        kind: Some(v1::tool::Kind::Function(v1::FunctionTool {
            name: tool.name.clone(),
            description: tool.description.clone(),
            parameters_json_schema: tool.parameters_json_schema.clone(),
            strict: tool.strict,
        })),
    };
    tools.iter().map(out).collect()
}

/// Reads a tool choice; not set is auto.
pub(crate) fn choice(field: Field<'_>, choice: Option<v1::ToolChoice>) -> Result<ToolChoice, Failure> {
    use v1::tool_choice::Choice;
    Ok(match choice.and_then(|choice| choice.choice) {
        None | Some(Choice::Auto(())) => ToolChoice::Auto,
        Some(Choice::None(())) => ToolChoice::None,
        Some(Choice::Required(())) => ToolChoice::Required,
        Some(Choice::Name(name)) => {
            check_name(field.member("name"), &name)?;
            ToolChoice::Name(name)
        }
    })
}

/// Reads the names of allowed tools; empty is all.
pub(crate) fn allowed(limits: &Limits, field: Field<'_>, names: Vec<String>) -> Result<Option<Vec<String>>, Failure> {
    at_most!(limits.tools_per_session, names.len(), field)?;
    for (at, name) in names.iter().enumerate() {
        check_name(field.element(at), name)?;
    }
    Ok((!names.is_empty()).then_some(names))
}

fn parse(limits: &Limits, field: Field<'_>, tool: v1::Tool) -> Result<Tool, Failure> {
    let Some(v1::tool::Kind::Function(function)) = tool.kind else {
        return Err(field.failure(Reason::InvalidTool, "needs a function"));
    };
    let field = field.member("function");
    let tool = Tool {
        name: function.name,
        description: function.description,
        parameters_json_schema: function.parameters_json_schema,
        strict: function.strict,
    };
    check_name(field.member("name"), &tool.name)?;
    at_most!(limits.tool_bytes, tool.description.len() + tool.parameters_json_schema.len(), field)?;
    limits::plain(field.member("description"), &tool.description)?;
    check_schema(field.member("parameters_json_schema"), &tool.parameters_json_schema)?;
    Ok(tool)
}

fn check_name(field: Field<'_>, name: &str) -> Result<(), Failure> {
    let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if letters && !name.is_empty() && name.len() <= NAME_CHARS {
        return Ok(());
    }
    let problem =
        format!("{:?} is not a tool's name: 1 to 64 letters, digits, '_', '.' and '-'", limits::clip(name, 80));
    Err(field.failure(Reason::InvalidTool, problem))
}

fn check_schema(field: Field<'_>, schema: &str) -> Result<(), Failure> {
    if schema.is_empty() {
        return Ok(());
    }
    match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(schema) {
        Ok(_) => Ok(()),
        Err(error) => Err(field.failure(Reason::InvalidTool, format!("is not a JSON object: {error}"))),
    }
}
