//! Calls that nothing opens: an answer that begins with the JSON object of a call.
//!
//! In: the head of an answer, the form, the session's tools. Out: whether it is a call, is none, or is too short to tell. It is
//! one from `{"name": TOOL, "parameters": {` on, TOOL being a tool of the session; `"type": "function"` may stand first, as
//! Llama likes to. Any other JSON is an answer in JSON, and text from the first character that tells. Deliberately not
//! here: where the call ends.

use crate::language::CallForm;

/// What the head of an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BareCall {
    /// Text.
    No,
    /// It goes on like a call, and is too short to tell.
    Perhaps,
    /// A call.
    Yes {
        /// Bytes of the head that tell.
        known_at: usize,
    },
}

/// Reads the head of an answer.
pub(super) fn bare_call(form: &CallForm, tools: &[String], text: &str) -> BareCall {
    let mut head = Head(text);
    match head.call(form, tools) {
        Ok(()) => BareCall::Yes { known_at: text.len() - head.0.len() },
        Err(End::Text) => BareCall::Perhaps,
        Err(End::Other) => BareCall::No,
    }
}

/// Why reading went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The text ended.
    Text,
    /// Something else stands there.
    Other,
}

/// What is left to read.
struct Head<'a>(&'a str);

impl Head<'_> {
    fn call(&mut self, form: &CallForm, tools: &[String]) -> Result<(), End> {
        self.literal("{")?;
        match self.string("type") {
            Ok(()) => {
                self.literal(":")?;
                self.string("function")?;
                self.literal(",")?;
            }
            Err(End::Other) => {}
            Err(End::Text) => return Err(End::Text),
        }
        self.string(&form.name_key)?;
        self.literal(":")?;
        self.any_string(tools)?;
        self.literal(",")?;
        self.string(&form.arguments_key)?;
        self.literal(":")?;
        self.literal("{")
    }

    /// Goes over white space of JSON's and `literal`.
    fn literal(&mut self, literal: &str) -> Result<(), End> {
        let rest = self.0.trim_start_matches([' ', '\t', '\n', '\r']);
        match rest.strip_prefix(literal) {
            Some(rest) => {
                self.0 = rest;
                Ok(())
            }
            None if literal.starts_with(rest) => Err(End::Text),
            None => Err(End::Other),
        }
    }

    fn string(&mut self, string: &str) -> Result<(), End> {
        self.literal(&serde_json::Value::from(string).to_string())
    }

    fn any_string(&mut self, strings: &[String]) -> Result<(), End> {
        let mut end = End::Other;
        for string in strings {
            match self.string(string) {
                Ok(()) => return Ok(()),
                Err(End::Text) => end = End::Text,
                Err(End::Other) => {}
            }
        }
        Err(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> BareCall {
        let form = CallForm { name_key: "name".into(), arguments_key: "parameters".into(), ..CallForm::default() };
        bare_call(&form, &["look".into(), "look_up".into()], text)
    }

    #[test]
    fn every_beginning_of_a_call_may_become_one_and_what_tells_is_the_arguments_brace() {
        for head in [
            "{\"name\": \"look\", \"parameters\": {",
            " \n{ \"name\" :\t\"look_up\" ,\"parameters\":{",
            "{\"type\": \"function\", \"name\": \"look\", \"parameters\": {",
        ] {
            for at in 0..head.len() {
                assert_eq!(read(&head[..at]), BareCall::Perhaps, "{:?}", &head[..at]);
            }
            assert_eq!(read(&format!("{head}\"a\": 1}}}}")), BareCall::Yes { known_at: head.len() });
        }
    }

    #[test]
    fn other_json_is_text_from_the_first_character_that_tells() {
        for (held, text) in [
            ("", "H"),
            ("{", "}"),
            ("{\"", "N"),
            ("{\"name\"", ","),
            ("{\"name\": \"lo", "s"),
            ("{\"name\": \"look", "s"),
            ("{\"name\": \"look\"", "}"),
            ("{\"name\": \"look\", \"", "a"),
            ("{\"name\": \"look\", \"parameters\": ", "\""),
            ("{\"type\": \"", "o"),
            ("{\"type\": \"function\", \"", "f"),
        ] {
            assert_eq!(read(held), BareCall::Perhaps, "{held}");
            assert_eq!(read(&format!("{held}{text}")), BareCall::No, "{held}{text}");
        }
    }
}
