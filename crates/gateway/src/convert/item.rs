//! Items and their parts.
//!
//! In: items of a request, with output-only fields empty. Out: [`Item`]s within their bounds; and numbered items back.
//! `item_bytes` counts everything a client writes into an item: parts, reasoning, call id, tool name and arguments.
//! Deliberately not here: whether an item may stand where it stands, which the worker and the template know.

use holdfast_contracts::v1;
use holdfast_contracts::v1::item::Kind;
use holdfast_types::{
    Failure, FailureDetail, Item, ItemContent, ItemNumber, ItemState, Limits, NumberedItem, Part, Reason, Role,
    TokenRange, TurnNumber,
};

use super::enumeration;
use crate::field::Field;
use crate::limits::{self, at_most};
use crate::names::Home;
use crate::unimplemented;

/// Reads the items of a request.
pub(crate) fn items(limits: &Limits, field: Field<'_>, items: Vec<v1::Item>) -> Result<Vec<Item>, Failure> {
    limits::item_count(limits, items.len(), field)?;
    items.into_iter().enumerate().map(|(at, item)| parse(limits, field.element(at), item)).collect()
}

/// Reads the results of SubmitToolResults.
pub(crate) fn tool_results(
    limits: &Limits,
    field: Field<'_>,
    results: Vec<v1::ToolResult>,
) -> Result<Vec<Item>, Failure> {
    limits::item_count(limits, results.len(), field)?;
    if results.is_empty() {
        return Err(field.invalid("needs at least one result"));
    }
    let parse = |(at, result)| {
        let content = tool_result(limits, field.element(at), result)?;
        bounded(limits, field.element(at), content)
    };
    results.into_iter().enumerate().map(parse).collect()
}

/// Writes an item with its place.
pub(crate) fn numbered(home: Home<'_>, item: &NumberedItem) -> v1::Item {
    done(home, item.number, item.turn, item.tokens, &item.item)
}

/// Writes an item that is whole or stays as it is.
pub(crate) fn done(
    home: Home<'_>,
    number: ItemNumber,
    turn: Option<TurnNumber>,
    tokens: TokenRange,
    item: &Item,
) -> v1::Item {
    let state = match item.state {
        ItemState::Complete => v1::ItemState::Complete,
        ItemState::Incomplete => v1::ItemState::Incomplete,
    };
    v1::Item { state: state as i32, token_range: Some(token_range(tokens)), ..started(home, number, turn, item) }
}

/// Writes an item that begins: it has no state and no tokens yet.
pub(crate) fn started(home: Home<'_>, number: ItemNumber, turn: Option<TurnNumber>, item: &Item) -> v1::Item {
    v1::Item {
        name: home.item(number),
        turn: turn.map(|turn| home.turn(turn)).unwrap_or_default(),
        state: v1::ItemState::Unspecified as i32,
        token_range: None,
        kind: Some(kind(&item.content)),
    }
}

/// Writes a range of tokens.
pub(crate) fn token_range(range: TokenRange) -> v1::TokenRange {
    v1::TokenRange { start: u64::from(range.start), end: u64::from(range.end) }
}

fn parse(limits: &Limits, field: Field<'_>, item: v1::Item) -> Result<Item, Failure> {
    output_only(field.member("name"), item.name.is_empty())?;
    output_only(field.member("turn"), item.turn.is_empty())?;
    output_only(field.member("token_range"), item.token_range.is_none())?;
    if enumeration::<v1::ItemState>(field.member("state"), item.state)? == v1::ItemState::Incomplete {
        return Err(field.member("state").invalid("an item of a request is COMPLETE; leave the state out"));
    }
    let content = match item.kind {
        None => return Err(field.invalid("needs one of message, reasoning, tool_call, tool_result")),
        Some(Kind::Message(message)) => self::message(limits, field.member("message"), message)?,
        Some(Kind::Reasoning(reasoning)) => ItemContent::Reasoning { text: reasoning.text },
        Some(Kind::ToolCall(call)) => tool_call(field.member("tool_call"), call)?,
        Some(Kind::ToolResult(result)) => tool_result(limits, field.member("tool_result"), result)?,
    };
    bounded(limits, field, content)
}

fn message(limits: &Limits, field: Field<'_>, message: v1::Message) -> Result<ItemContent, Failure> {
    let role = match enumeration(field.member("role"), message.role)? {
        v1::Role::Unspecified => return Err(field.member("role").invalid("is required")),
        v1::Role::System => Role::System,
        v1::Role::Developer => Role::Developer,
        v1::Role::User => Role::User,
        v1::Role::Assistant => Role::Assistant,
    };
    let content = field.member("content");
    if message.content.is_empty() {
        return Err(content.invalid("needs at least one part"));
    }
    Ok(ItemContent::Message { role, parts: parts(limits, content, message.content)? })
}

fn tool_call(field: Field<'_>, call: v1::ToolCall) -> Result<ItemContent, Failure> {
    call_id(field.member("call_id"), &call.call_id)?;
    limits::plain(field.member("name"), &call.name)?;
    output_only(field.member("parse_error"), call.parse_error.is_none())?;
    Ok(ItemContent::ToolCall { call_id: call.call_id, name: call.name, arguments: call.arguments, parse_error: None })
}

fn tool_result(limits: &Limits, field: Field<'_>, result: v1::ToolResult) -> Result<ItemContent, Failure> {
    call_id(field.member("call_id"), &result.call_id)?;
    let parts = parts(limits, field.member("content"), result.content)?;
    Ok(ItemContent::ToolResult { call_id: result.call_id, parts, is_error: result.is_error })
}

fn parts(limits: &Limits, field: Field<'_>, parts: Vec<v1::ContentPart>) -> Result<Vec<Part>, Failure> {
    use v1::content_part::Part as In;
    at_most!(limits.parts_per_item, parts.len(), field)?;
    let parse = |(at, part): (usize, v1::ContentPart)| {
        let field = field.element(at);
        match part.part {
            None => Err(field.invalid("needs a text")),
            Some(In::Text(text)) => Ok(Part::Text(text)),
            Some(In::Image(_)) => Err(unimplemented::field(field.member("image"))),
            Some(In::File(_)) => Err(unimplemented::field(field.member("file"))),
        }
    };
    parts.into_iter().enumerate().map(parse).collect()
}

fn call_id(field: Field<'_>, id: &str) -> Result<(), Failure> {
    if id.is_empty() {
        return Err(field.invalid("is required"));
    }
    limits::plain(field, id)
}

fn output_only(field: Field<'_>, is_empty: bool) -> Result<(), Failure> {
    if is_empty { Ok(()) } else { Err(field.invalid("is output only; leave it empty")) }
}

fn bounded(limits: &Limits, field: Field<'_>, content: ItemContent) -> Result<Item, Failure> {
    let text = |parts: &[Part]| parts.iter().map(|part| part.text().len()).sum::<usize>();
    let bytes = match &content {
        ItemContent::Message { parts, .. } => text(parts),
        ItemContent::Reasoning { text } => text.len(),
        ItemContent::ToolCall { call_id, name, arguments, .. } => call_id.len() + name.len() + arguments.len(),
        ItemContent::ToolResult { call_id, parts, .. } => call_id.len() + text(parts),
    };
    at_most!(limits.item_bytes, bytes, field)?;
    Ok(Item { content, state: ItemState::Complete })
}

fn kind(content: &ItemContent) -> Kind {
    match content {
        ItemContent::Message { role, parts } => {
            let role = match role {
                Role::System => v1::Role::System,
                Role::Developer => v1::Role::Developer,
                Role::User => v1::Role::User,
                Role::Assistant => v1::Role::Assistant,
            };
            Kind::Message(v1::Message { role: role as i32, content: parts_out(parts) })
        }
        ItemContent::Reasoning { text } => Kind::Reasoning(v1::Reasoning { text: text.clone() }),
        ItemContent::ToolCall { call_id, name, arguments, parse_error } => Kind::ToolCall(v1::ToolCall {
            call_id: call_id.clone(),
            name: name.clone(),
            arguments: arguments.clone(),
            parse_error: parse_error.clone(),
        }),
        ItemContent::ToolResult { call_id, parts, is_error } => Kind::ToolResult(v1::ToolResult {
            call_id: call_id.clone(),
            content: parts_out(parts),
            is_error: *is_error,
        }),
    }
}

fn parts_out(parts: &[Part]) -> Vec<v1::ContentPart> {
    let out = |part: &Part| match part {
        Part::Text(text) => v1::ContentPart { part: Some(v1::content_part::Part::Text(text.clone())) },
    };
    parts.iter().map(out).collect()
}

/// A turn without input, unless it extends the last one.
pub(crate) fn empty_turn(field: Field<'_>) -> Failure {
    Failure::new(Reason::EmptyTurn, "a turn needs at least one item, or continue_last")
        .with(FailureDetail::Field { path: field.to_string(), problem: "is empty".into() })
}
