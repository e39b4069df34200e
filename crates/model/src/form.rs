//! How a model writes tool calls, as data.
//!
//! In: a row of the table here, or a model's own `tool_call_form.json`; later the text of a sampled call. Out:
//! [`ToolCallForm`], [`ParsedCall`], and the tokens that force a call. Deliberately not here: watching sampled text for the
//! opening; that is a fold of the worker's.

use holdfast_types::TokenId;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::ModelText;

/// How a model writes a tool call: `open`, a JSON object with a name and arguments, `close`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolCallForm {
    /// What begins a call.
    pub open: String,
    /// The special token that spells `open`, if one does. Its bytes are empty, so a call is then seen by the token;
    /// otherwise by the text.
    #[serde(skip)]
    pub open_token: Option<TokenId>,
    /// What ends a call; `None` when it ends with the generation.
    pub close: Option<String>,
    /// The special token that spells `close`, if one does.
    #[serde(skip)]
    pub close_token: Option<TokenId>,
    /// Key of the tool's name.
    pub name_key: String,
    /// Key of the arguments.
    pub arguments_key: String,
    /// What the model writes between `open` and the name, when a call of one tool is forced.
    pub before_name: String,
    /// What it writes between the name and the arguments.
    pub after_name: String,
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
    before_name: &'static str,
    after_name: &'static str,
}

/// Forms by the template's words, the first that fits.
const FORMS: &[FormRow] = &[FormRow {
    // Hermes, Qwen 2.5 and 3, and many fine-tunes.
    template_says: "<tool_call>",
    open: "<tool_call>",
    close: Some("</tool_call>"),
    before_name: "\n{\"name\": \"",
    after_name: "\", \"arguments\": ",
}];

impl ToolCallForm {
    /// The form of a template that is in the table.
    pub(crate) fn of_template(source: &str) -> Option<Self> {
        FORMS.iter().find(|row| source.contains(row.template_says)).map(|row| Self {
            open: row.open.to_owned(),
            open_token: None,
            close: row.close.map(str::to_owned),
            close_token: None,
            name_key: "name".to_owned(),
            arguments_key: "arguments".to_owned(),
            before_name: row.before_name.to_owned(),
            after_name: row.after_name.to_owned(),
        })
    }

    /// Reads a `tool_call_form.json`.
    pub(crate) fn parse_file(text: &str) -> Result<Self, String> {
        let form: Self = serde_json::from_str(text).map_err(|e| e.to_string())?;
        match form.open.is_empty() || form.close.as_ref().is_some_and(String::is_empty) {
            true => Err("open and close must not be empty".to_owned()),
            false => Ok(form),
        }
    }

    /// Reads the text between `open` and `close` (or the end). Never fails: what cannot be read is said in
    /// `parse_error`, and the text is kept.
    pub fn parse(&self, body: &str) -> ParsedCall {
        let mut name = None;
        let mut arguments = None;
        let error = read_object(body, |key, raw| {
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

    /// Tokens after the generation prompt that force a call: of any tool, or of the one named (then the name is spelt out, and
    /// the model goes on with what follows it).
    pub fn forced_prefix(&self, text: &ModelText, name: Option<&str>) -> Vec<TokenId> {
        let mut ids = text.encode_control(&self.open);
        let Some(name) = name else { return ids };
        // The model would have merged the end of the prefix with what it writes next: only tokens that lie inside of the prefix
        // when an object follows are forced, so that it is not pushed off its own spelling.
        let quoted = serde_json::Value::from(name).to_string();
        let needed = format!("{}{}", self.before_name, &quoted[1..]);
        let prefix = format!("{}{}{}", self.before_name, &quoted[1..quoted.len() - 1], self.after_name);
        let spelt = text.encode(&format!("{prefix}{{\""));
        let mut bytes = 0;
        let inside = spelt.iter().take_while(|id| {
            bytes += text.token_bytes(**id).len();
            bytes <= prefix.len()
        });
        let inside: Vec<_> = inside.copied().collect();
        let covered: usize = inside.iter().map(|id| text.token_bytes(*id).len()).sum();
        match covered >= needed.len() {
            true => ids.extend(inside),
            false => ids.extend(text.encode(&prefix)),
        }
        ids
    }
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

    proptest! {
        #[test]
        fn no_text_panics(body in "[\\{\\}\\[\\]\":,a-z0-9 \\\\é]{0,60}") {
            form().parse(&body);
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
