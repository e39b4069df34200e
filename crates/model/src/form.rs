//! How a model writes tool calls, as data.
//!
//! In: a row of the table here, or a model's own `tool_call_form.json`; later the text of a sampled call. Out:
//! [`ToolCallForm`] and [`ParsedCall`]. Deliberately not here: watching sampled text for calls; that is a fold of the worker's; nor
//! how reasoning is marked ([`crate::ReasoningForm`]).

use holdfast_types::TokenId;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

/// How a model writes a tool call: `open`, a JSON object with a name and arguments, `close`; several as `layout` says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolCallForm {
    /// What begins a call.
    pub open: String,
    /// The special token that spells `open`, if one does. Its bytes are empty, so a call is then seen by the token;
    /// otherwise by the text.
    #[serde(skip)]
    pub open_token: Option<TokenId>,
    /// What ends a call; `None` when it ends with the generation or as `layout` says.
    pub close: Option<String>,
    /// The special token that spells `close`, if one does.
    #[serde(skip)]
    pub close_token: Option<TokenId>,
    /// Key of the tool's name.
    pub name_key: String,
    /// Key of the arguments.
    pub arguments_key: String,
    /// What it writes between the name and the arguments.
    pub after_name: String,
    /// How several calls follow each other.
    #[serde(default)]
    pub layout: CallLayout,
    /// What stands between name and arguments where a call is no object with both.
    #[serde(default)]
    pub arguments_mark: Option<String>,
    /// What stands between the name and an id of the model's own making, which is read over.
    #[serde(default)]
    pub id_mark: Option<String>,
    /// Special tokens that spell the marks: they are text inside of a call.
    #[serde(skip)]
    pub mark_tokens: Vec<(TokenId, String)>,
}

/// How several calls follow each other, and what ends each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallLayout {
    /// Each is opened, and ends at `close` or with the generation.
    #[default]
    Enclosed,
    /// JSON objects with `;` between them. An answer may begin with one that is not opened.
    Objects,
    /// A JSON array of objects, or after each opening one name, mark and object.
    Array,
    /// Each is a message with a header that names the tool: harmony. `open` to `close` is how one is begun; a call is read by its
    /// header, whichever way that is written.
    Channels,
}

impl CallLayout {
    /// What stands between two calls of one opening.
    pub fn separator(self) -> Option<char> {
        match self {
            Self::Enclosed | Self::Channels => None,
            Self::Objects => Some(';'),
            Self::Array => Some(','),
        }
    }

    /// What may stand before the first call of an opening, and after the last.
    pub fn brackets(self) -> Option<(char, char)> {
        (self == Self::Array).then_some(('[', ']'))
    }
}

/// A call as read from sampled text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedCall {
    /// The tool; empty when the text has none.
    pub name: String,
    /// The text of the arguments exactly as sampled; the whole body when it has none.
    pub arguments: String,
    /// Why the body could not be read.
    pub parse_error: Option<String>,
}

/// A form that is known by what the chat template says.
struct FormRow {
    /// Text that the template's source holds.
    template_says: &'static str,
    open: &'static str,
    close: Option<&'static str>,
    arguments_key: &'static str,
    after_name: &'static str,
    layout: CallLayout,
}

/// Mistral's mark between name and arguments.
const ARGS: &str = "[ARGS]";
/// Mistral's mark between name and id.
const CALL_ID: &str = "[CALL_ID]";

/// What ends the header of a harmony message.
pub(crate) const MESSAGE: &str = "<|message|>";
/// What functions are called in a harmony header.
const FUNCTIONS: &str = "functions.";

/// Forms by the template's words, the first that fits.
const FORMS: &[FormRow] = &[
    // gpt-oss: a message on the commentary channel, to a function.
    FormRow {
        template_says: "<|channel|>commentary",
        open: "<|channel|>commentary to=functions.",
        close: Some("<|call|>"),
        arguments_key: "arguments",
        after_name: " <|constrain|>json<|message|>",
        layout: CallLayout::Channels,
    },
    // Hermes, Qwen 2.5 and 3, SmolLM3, and many fine-tunes.
    FormRow {
        template_says: "<tool_call>",
        open: "<tool_call>",
        close: Some("</tool_call>"),
        arguments_key: "arguments",
        after_name: "\", \"arguments\": ",
        layout: CallLayout::Enclosed,
    },
    // Mistral since tokenizer version 11: `[TOOL_CALLS]name[ARGS]{…}`.
    FormRow {
        template_says: ARGS,
        open: "[TOOL_CALLS]",
        close: None,
        arguments_key: "arguments",
        after_name: ARGS,
        layout: CallLayout::Array,
    },
    // Mistral before it: 7B v0.3, NeMo.
    FormRow {
        template_says: "[TOOL_CALLS]",
        open: "[TOOL_CALLS]",
        close: None,
        arguments_key: "arguments",
        after_name: "\", \"arguments\": ",
        layout: CallLayout::Array,
    },
    // Llama 3.1, 3.2 and 3.3.
    FormRow {
        template_says: "<|start_header_id|>ipython<|end_header_id|>",
        open: "<|python_tag|>",
        close: None,
        arguments_key: "parameters",
        after_name: "\", \"parameters\": ",
        layout: CallLayout::Objects,
    },
];

impl ToolCallForm {
    /// The form of a chat template that is in the table; its tokens are not known yet.
    pub fn of_template(source: &str) -> Option<Self> {
        FORMS.iter().find(|row| source.contains(row.template_says)).map(|row| Self {
            open: row.open.to_owned(),
            open_token: None,
            close: row.close.map(str::to_owned),
            close_token: None,
            name_key: "name".to_owned(),
            arguments_key: row.arguments_key.to_owned(),
            after_name: row.after_name.to_owned(),
            layout: row.layout,
            // Read whichever of its two ways Mistral's template has: a model knows both.
            arguments_mark: (row.layout == CallLayout::Array).then(|| ARGS.to_owned()),
            id_mark: (row.layout == CallLayout::Array).then(|| CALL_ID.to_owned()),
            mark_tokens: Vec::new(),
        })
    }

    /// Reads a `tool_call_form.json`.
    pub(crate) fn parse_file(text: &str) -> Result<Self, String> {
        let form: Self = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let marks = [&form.close, &form.arguments_mark, &form.id_mark];
        if form.open.is_empty() || marks.into_iter().flatten().any(String::is_empty) {
            return Err("open, close and marks must not be empty".to_owned());
        }
        if form.layout == CallLayout::Channels {
            return Err("the layout channels is harmony's, which its template tells".to_owned());
        }
        if form.close.is_some() && form.layout != CallLayout::Enclosed {
            return Err("close is for the layout enclosed: in the others a call ends with its object".to_owned());
        }
        Ok(form)
    }

    /// Finds the special tokens that spell what the form is made of.
    pub(crate) fn find_tokens(&mut self, special: impl Fn(&str) -> Option<TokenId>) {
        self.open_token = special(&self.open);
        self.close_token = self.close.as_deref().and_then(&special);
        let marks = [&self.arguments_mark, &self.id_mark].into_iter().flatten();
        self.mark_tokens = marks.filter_map(|mark| Some((special(mark)?, mark.clone()))).collect();
    }

    /// Reads the text of one call: between `open` and `close`, or as the layout cuts it. Never fails: what cannot be read is
    /// said in `parse_error`, and the text is kept.
    pub fn parse(&self, body: &str) -> ParsedCall {
        if self.layout == CallLayout::Channels {
            return parse_message(body);
        }
        let text = body.trim();
        let text = match self.layout.brackets() {
            Some((before, _)) => text.strip_prefix(before).unwrap_or(text).trim_start(),
            None => text,
        };
        match self.arguments_mark.as_deref().filter(|_| !text.starts_with('{')).and_then(|mark| text.split_once(mark)) {
            Some((head, arguments)) => self.parse_named(head, arguments),
            None => self.parse_object(body, text),
        }
    }

    /// `head` is a name, and perhaps an id after its mark.
    fn parse_named(&self, head: &str, arguments: &str) -> ParsedCall {
        let name = self.id_mark.as_deref().and_then(|mark| head.split_once(mark)).map_or(head, |(name, _)| name).trim();
        let error = read_object(arguments, |_, _| {}).err();
        let parse_error = if name.is_empty() { Some("the call has no name".to_owned()) } else { error };
        ParsedCall { name: name.to_owned(), arguments: arguments.trim().to_owned(), parse_error }
    }

    fn parse_object(&self, body: &str, text: &str) -> ParsedCall {
        let mut name = None;
        let mut arguments = None;
        let error = read_object(text, |key, raw| {
            if key == self.name_key {
                name = serde_json::from_str::<String>(raw).ok();
            } else if key == self.arguments_key {
                arguments = Some(raw.to_owned());
            }
        })
        .err();
        let missing = |what: &str| format!("the call has no {what}");
        let parse_error = error.or_else(|| match (&name, &arguments) {
            (None, _) => Some(missing(&format!("string {:?}", self.name_key))),
            (_, None) => Some(missing(&format!("{:?}", self.arguments_key))),
            (_, Some(raw)) if !raw.starts_with('{') => Some(format!("{:?} is not an object", self.arguments_key)),
            _ => None,
        });
        ParsedCall {
            name: name.unwrap_or_default(),
            arguments: arguments.unwrap_or_else(|| body.trim().to_owned()),
            parse_error,
        }
    }
}

/// A harmony message: its header, [`MESSAGE`], the arguments.
fn parse_message(body: &str) -> ParsedCall {
    let (header, arguments) = body.split_once(MESSAGE).unwrap_or((body, ""));
    let recipient = recipient(header).unwrap_or_default();
    let name = recipient.strip_prefix(FUNCTIONS);
    let error = match read_object(arguments, |_, _| {}) {
        _ if !body.contains(MESSAGE) => Some("the call has no message".to_owned()),
        _ if name.is_none_or(str::is_empty) => Some(format!("the call is to {recipient:?}, which is no function")),
        read => read.err(),
    };
    let arguments = if body.contains(MESSAGE) { arguments } else { body };
    ParsedCall {
        name: name.unwrap_or(recipient).to_owned(),
        arguments: arguments.trim().to_owned(),
        parse_error: error,
    }
}

/// Whom a harmony header names as the message's recipient.
pub fn recipient(header: &str) -> Option<&str> {
    let at = header
        .match_indices("to=")
        .find(|(at, _)| *at == 0 || header[..*at].ends_with(char::is_whitespace) || header[..*at].ends_with("|>"))?;
    let rest = &header[at.0 + at.1.len()..];
    Some(&rest[..rest.find(|c: char| c.is_whitespace() || c == '<').unwrap_or(rest.len())])
}

/// Walks the entries of one JSON object with the exact text of every value.
fn read_object<'a>(text: &'a str, mut entry: impl FnMut(&str, &'a str)) -> Result<(), String> {
    let mut rest = text.trim().strip_prefix('{').ok_or("the call is not a JSON object")?.trim_start();
    let mut first = true;
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return match after.is_empty() {
                true => Ok(()),
                false => Err("text after the call's JSON object".to_owned()),
            };
        }
        if !first {
            rest = rest.strip_prefix(',').ok_or("expected ',' or '}' in the call")?.trim_start();
        }
        first = false;
        let (key, length) = read_value::<String>(rest)?;
        rest = rest[length..].trim_start().strip_prefix(':').ok_or("expected ':' in the call")?.trim_start();
        let (_, length) = read_value::<IgnoredAny>(rest)?;
        entry(&key, &rest[..length]);
        rest = rest[length..].trim_start();
    }
}

/// One JSON value at the start of `text`, and its length in bytes.
fn read_value<T: DeserializeOwned>(text: &str) -> Result<(T, usize), String> {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<T>();
    match stream.next() {
        Some(Ok(value)) => Ok((value, stream.byte_offset())),
        Some(Err(e)) => Err(format!("the call is not JSON: {e}")),
        None => Err("the call ends in the middle".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn form() -> ToolCallForm {
        ToolCallForm::of_template("{{ '<tool_call>' }}").unwrap()
    }

    #[test]
    fn arguments_are_kept_as_sampled() {
        let call = form().parse("\n{ \"name\" : \"f\", \"arguments\": {\"a\":  1.50, \"b\" : [ ]} }\n");
        assert_eq!(call.name, "f");
        assert_eq!(call.arguments, "{\"a\":  1.50, \"b\" : [ ]}");
        assert_eq!(call.parse_error, None);
    }

    #[test]
    fn what_cannot_be_read_is_kept_with_a_reason() {
        for (body, name) in [
            ("", ""),
            ("nonsense", ""),
            ("{\"name\":\"f\"", "f"),
            ("{\"name\":\"f\"}", "f"),
            ("{\"name\":7,\"arguments\":{}}", ""),
            ("{\"name\":\"f\",\"arguments\":{\"a\":}}", "f"),
            ("{\"name\":\"f\",\"arguments\":{}} and more", "f"),
            ("{\"name\":\"f\",\"arguments\":\"{}\"}", "f"),
            ("{,}", ""),
            ("{\"name\":\"f\" \"arguments\":{}}", "f"),
        ] {
            let call = form().parse(body);
            assert_eq!(call.name, name, "{body}");
            assert!(call.parse_error.is_some(), "{body}");
        }
        assert_eq!(form().parse("  nonsense ").arguments, "nonsense");
    }

    fn mistral() -> ToolCallForm {
        ToolCallForm::of_template("{{ '[TOOL_CALLS][' }}").unwrap()
    }

    #[test]
    fn a_template_tells_its_form() {
        let open =
            |source: &str| ToolCallForm::of_template(source).map(|form| (form.open, form.after_name, form.layout));
        let row = |open: &str, after: &str, layout| Some((open.to_owned(), after.to_owned(), layout));
        let key = |key: &str| format!("\", \"{key}\": ");
        assert_eq!(open("'<tool_call>\\n'"), row("<tool_call>", &key("arguments"), CallLayout::Enclosed));
        assert_eq!(open("\"[TOOL_CALLS] [\""), row("[TOOL_CALLS]", &key("arguments"), CallLayout::Array));
        assert_eq!(open("\"[TOOL_CALLS][\""), row("[TOOL_CALLS]", &key("arguments"), CallLayout::Array));
        assert_eq!(open("'[TOOL_CALLS]' + name + '[ARGS]'"), row("[TOOL_CALLS]", ARGS, CallLayout::Array));
        assert_eq!(
            open("<|start_header_id|>ipython<|end_header_id|>"),
            row("<|python_tag|>", &key("parameters"), CallLayout::Objects)
        );
        assert_eq!(open("<|im_start|>"), None);
    }

    #[test]
    fn one_call_of_mistrals_is_an_element_or_name_mark_and_object() {
        for (body, name, arguments) in [
            (" [{\"name\": \"f\", \"arguments\": {\"a\":  1}}", "f", "{\"a\":  1}"),
            (" {\"name\": \"f\", \"arguments\": {}, \"id\": \"abcdefghi\"}", "f", "{}"),
            ("f[ARGS]{\"a\":  [1,  2]}", "f", "{\"a\":  [1,  2]}"),
            (" f [ARGS] {}", "f", "{}"),
            ("f[CALL_ID]abcdefghi[ARGS]{\"a\": \"[ARGS]\"}", "f", "{\"a\": \"[ARGS]\"}"),
        ] {
            let call = ParsedCall { name: name.to_owned(), arguments: arguments.to_owned(), parse_error: None };
            assert_eq!(mistral().parse(body), call, "{body}");
        }
        for (body, name, arguments) in [
            ("f[ARGS]{\"a\":}", "f", "{\"a\":}"),
            ("f[ARGS]7", "f", "7"),
            ("[ARGS]{}", "", "[ARGS]{}"),
            ("f{}", "", "f{}"),
            (" []", "", "[]"),
            (" [{\"name\": \"f\"", "f", "[{\"name\": \"f\""),
        ] {
            let call = mistral().parse(body);
            assert_eq!((call.name.as_str(), call.arguments.as_str()), (name, arguments), "{body}");
            assert!(call.parse_error.is_some(), "{body}");
        }
    }

    #[test]
    fn one_call_of_harmonys_is_a_header_and_an_object() {
        let form = ToolCallForm::of_template("<|channel|>commentary").unwrap();
        for (header, name) in [
            ("<|channel|>commentary to=functions.f <|constrain|>json", "f"),
            (" to=functions.f<|channel|>commentary json", "f"),
            ("<|channel|>analysis to=functions.a.b-c code", "a.b-c"),
        ] {
            let call = form.parse(&format!("{header}<|message|>{{\"a\":  1}}"));
            let parse_error = None;
            assert_eq!(call, ParsedCall { name: name.to_owned(), arguments: "{\"a\":  1}".to_owned(), parse_error });
        }
        for (body, name, arguments) in [
            ("to=functions.f<|message|>{\"a\":", "f", "{\"a\":"),
            ("to=python<|message|>1 + 1", "python", "1 + 1"),
            ("<|channel|>commentary to=functions.f", "f", "<|channel|>commentary to=functions.f"),
            ("to=functions.<|message|>{}", "", "{}"),
        ] {
            let call = form.parse(body);
            assert_eq!((call.name.as_str(), call.arguments.as_str()), (name, arguments), "{body}");
            assert!(call.parse_error.is_some(), "{body}");
        }
    }

    #[test]
    fn a_file_may_say_the_layout_and_the_marks() {
        let file = |more: &str| {
            ToolCallForm::parse_file(&format!(
                "{{\"open\": \"[\", \"name_key\": \"n\", \"arguments_key\": \"a\", \"after_name\": \"\"{more}}}"
            ))
        };
        let layouts = ["", ", \"layout\": \"objects\"", ", \"layout\": \"array\", \"arguments_mark\": \"@\""];
        let read = layouts.map(|more| file(more).unwrap().layout);
        assert_eq!(read, [CallLayout::Enclosed, CallLayout::Objects, CallLayout::Array]);
        for wrong in [", \"id_mark\": \"\"", ", \"layout\": \"array\", \"close\": \"]\"", ", \"layout\": \"list\""] {
            assert!(file(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(body in "[\\{\\}\\[\\]\":,a-z0-9 \\\\é]{0,60}", marked in "(\\[ARGS\\]|\\[CALL_ID\\]|[\\{\\}a\" ]){0,12}") {
            form().parse(&body);
            mistral().parse(&body);
            mistral().parse(&marked);
        }

        #[test]
        fn written_calls_are_read_back(name in "[a-z_]{1,12}", key in ".{0,8}", value in ".{0,12}") {
            let arguments = serde_json::json!({ key: value }).to_string();
            let body = format!("{{\"name\": \"{name}\", \"arguments\": {arguments}}}");
            let call = form().parse(&body);
            prop_assert_eq!(call, ParsedCall { name, arguments, parse_error: None });
        }
    }
}
