//! The filter of ListSessions: conditions joined by AND.
//!
//! In: `state = IDLE AND model = "models/NAME" AND labels.KEY = "VALUE"`. Out: what the worker is asked for. A quoted value
//! may hold `\"` and `\\`. Anything else is INVALID_FILTER, with the byte where reading stopped. Deliberately not here:
//! other operators, OR, parentheses; the words of AIP-160 that they would need are reserved by being refused.

use holdfast_types::{Failure, Limits, Reason, SessionState};

use crate::field::Field;
use crate::limits::{self, at_most};
use crate::{convert, names};

const FIELD: Field<'static> = Field::Root("filter");

/// What a filter asks for; the default asks for everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Filter {
    /// `state = …`.
    pub(crate) state: Option<SessionState>,
    /// `model = …`, without `models/`.
    pub(crate) model: Option<String>,
    /// `labels.KEY = …`, in the order of the filter.
    pub(crate) labels: Vec<(String, String)>,
}

/// Reads a filter. Empty: everything.
pub(crate) fn parse(limits: &Limits, text: &str) -> Result<Filter, Failure> {
    let mut reader = Reader { text, at: 0 };
    let mut filter = Filter::default();
    reader.space();
    if reader.is_done() {
        return Ok(filter);
    }
    loop {
        condition(&mut reader, &mut filter)?;
        at_most!(limits.labels_per_session, filter.labels.len(), FIELD)?;
        reader.space();
        if reader.is_done() {
            return Ok(filter);
        }
        if reader.word() != "AND" {
            return Err(reader.stopped("expected AND or the end"));
        }
        reader.space();
    }
}

fn condition(reader: &mut Reader<'_>, filter: &mut Filter) -> Result<(), Failure> {
    let start = reader.at;
    let key = reader.word();
    reader.space();
    if !reader.take('=') {
        return Err(reader.stopped("expected a field of state, model, labels.KEY, then ="));
    }
    reader.space();
    match key {
        "state" => {
            let word = reader.word();
            let state = convert::session::state_by_word(word)
                .ok_or_else(|| reader.stopped("expected IDLE, RUNNING, REQUIRES_ACTION or SUSPENDED"))?;
            set_once(reader, &mut filter.state, state)
        }
        "model" => {
            let name = reader.quoted()?;
            let model = names::parse_model(FIELD, &name).ok().filter(|model| !model.is_empty());
            let model = model.ok_or_else(|| reader.stopped("expected \"models/NAME\""))?;
            set_once(reader, &mut filter.model, model)
        }
        _ => match key.strip_prefix("labels.").filter(|label| !label.is_empty()) {
            Some(label) => {
                let value = reader.quoted()?;
                filter.labels.push((label.to_owned(), value));
                Ok(())
            }
            None => {
                reader.at = start;
                Err(reader.stopped("expected a field of state, model, labels.KEY"))
            }
        },
    }
}

fn set_once<T>(reader: &Reader<'_>, slot: &mut Option<T>, value: T) -> Result<(), Failure> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(reader.stopped("the field stands in the filter twice")),
    }
}

/// A place in the text; `at` is always between characters.
struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn is_done(&self) -> bool {
        self.rest().is_empty()
    }

    fn space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    /// Everything up to white space, `=` or a quote.
    fn word(&mut self) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c: char| c.is_whitespace() || matches!(c, '=' | '"')).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or_default()
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.rest().starts_with(wanted);
        if found {
            self.at += wanted.len_utf8();
        }
        found
    }

    fn quoted(&mut self) -> Result<String, Failure> {
        if !self.take('"') {
            return Err(self.stopped("expected a value in double quotes"));
        }
        let mut value = String::new();
        let mut characters = self.rest().char_indices();
        while let Some((offset, character)) = characters.next() {
            match character {
                '"' => {
                    self.at += offset + 1;
                    return Ok(value);
                }
                '\\' => match characters.next() {
                    Some((_, escaped @ ('"' | '\\'))) => value.push(escaped),
                    _ => {
                        self.at += offset;
                        return Err(self.stopped("a backslash may stand before a quote or a backslash only"));
                    }
                },
                _ => value.push(character),
            }
        }
        self.at = self.text.len();
        Err(self.stopped("the quote is not closed"))
    }

    fn stopped(&self, problem: &str) -> Failure {
        let rest = limits::clip(self.rest(), 40);
        FIELD.failure(Reason::InvalidFilter, format!("{problem}, at byte {} before {rest:?}", self.at))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(text: &str) -> Result<Filter, Failure> {
        parse(&Limits::default(), text)
    }

    #[test]
    fn the_contract_s_forms_are_read() {
        assert_eq!(read("").unwrap(), Filter::default());
        assert_eq!(read("  ").unwrap(), Filter::default());
        assert_eq!(read("state = IDLE").unwrap().state, Some(SessionState::Idle));
        assert_eq!(read("state=REQUIRES_ACTION").unwrap().state, Some(SessionState::RequiresAction));
        let filter = read(r#"labels.team = "a \"b\" \\" AND model="models/pebble" AND labels.env="prod" "#).unwrap();
        assert_eq!(filter.model.as_deref(), Some("pebble"));
        assert_eq!(filter.labels, [("team".into(), r#"a "b" \"#.into()), ("env".into(), "prod".into())]);
    }

    #[test]
    fn anything_else_is_refused_with_its_place() {
        for bad in [
            "state",
            "state =",
            "state = idle",
            "state = DELETING",
            "state = IDLE AND",
            "state = IDLE OR state = RUNNING",
            "state = IDLE AND state = RUNNING",
            "model = pebble",
            "model = \"pebble\"",
            "model = \"\"",
            "labels. = \"x\"",
            "labels.a = x",
            "labels.a = \"x",
            "labels.a = \"\\n\"",
            "labels.a : \"x\"",
            "owner = \"me\"",
            "(state = IDLE)",
            "=",
            "ü = \"ü\"",
        ] {
            let failure = read(bad).unwrap_err();
            assert_eq!(failure.reason, Reason::InvalidFilter, "{bad:?}");
            assert!(failure.message.contains("at byte"), "{}", failure.message);
        }
    }

    #[test]
    fn the_number_of_labels_is_bounded() {
        let many = vec!["labels.a = \"x\""; 65].join(" AND ");
        assert_eq!(read(&many).unwrap_err().reason, Reason::LimitExceeded);
    }
}
