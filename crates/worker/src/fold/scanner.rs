//! Sampled bytes to text, calls and stops: the decisions, without items.
//!
//! In: bytes as they are sampled, in any pieces, and the [`Markers`] to look for. Out: [`Cut`]s, the same ones however the bytes
//! were cut, but for where a text is divided. Text that may still become a call or a stop string is held, and no longer than
//! that. Deliberately not here: what a call's text says (the model's), items, positions.

use super::bare::{BareCall, bare_call};
use crate::language::{CallForm, CallLayout};

/// What decides where text goes; small, so that a look ahead can work on a copy.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Scanner {
    /// Bytes that do not make a character yet.
    bytes: Vec<u8>,
    /// Text that is not decided yet; inside of a call its text so far.
    held: String,
    place: Place,
    /// The answer has begun with something else than a call that is not opened.
    begun: bool,
    /// Of the call's object.
    object: ObjectEnd,
    stopped: bool,
}

/// What the held text is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    #[default]
    Text,
    Call,
    /// After a call, where another may follow without being opened.
    Between,
}

/// A decision of the scanner.
#[derive(Debug, PartialEq)]
pub(super) enum Cut {
    Text(String),
    CallOpened {
        /// All that is held belongs to it: it began before it was known to be a call.
        bare: bool,
    },
    CallClosed(String),
    Stopped,
}

/// What a scanner looks for.
pub(super) struct Markers<'a> {
    pub(super) stops: &'a [String],
    /// `None` where no tools may be called.
    pub(super) form: Option<&'a CallForm>,
    pub(super) tools: &'a [String],
}

impl Scanner {
    /// Takes bytes and decides what can be decided.
    pub(super) fn push(&mut self, bytes: &[u8], markers: &Markers<'_>, cuts: &mut Vec<Cut>) {
        self.bytes.extend_from_slice(bytes);
        self.take_characters();
        while !self.stopped && self.step(markers, cuts) {}
    }

    /// Whether a stop string has appeared.
    pub(super) fn stopped(&self) -> bool {
        self.stopped
    }

    /// Looks for stop strings again, after one was found.
    pub(super) fn go_on(&mut self) {
        self.stopped = false;
    }

    /// Whether a call is open.
    pub(super) fn in_call(&self) -> bool {
        self.place == Place::Call
    }

    /// The open call's text so far.
    pub(super) fn call(&self) -> &str {
        &self.held
    }

    /// Ends the text here: what was held, which is text after all. Between calls that is nothing, since only what may stand
    /// between two is held there. Bytes that make no character stay if the text may go on (`early`).
    pub(super) fn end(&mut self, early: bool) -> String {
        if !early && !self.bytes.is_empty() {
            self.bytes.clear();
            self.held.push('\u{FFFD}');
            self.place = Place::Text;
        }
        if self.place == Place::Between {
            return String::new();
        }
        self.begun |= !self.held.is_empty();
        std::mem::take(&mut self.held)
    }

    /// Moves every whole character to the held text; a byte that can begin or go on no character becomes U+FFFD.
    fn take_characters(&mut self) {
        loop {
            match std::str::from_utf8(&self.bytes) {
                Ok(text) => {
                    self.held.push_str(text);
                    self.bytes.clear();
                    return;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    self.held.push_str(&String::from_utf8_lossy(&self.bytes[..valid]));
                    let Some(bad) = error.error_len() else {
                        self.bytes.drain(..valid);
                        return;
                    };
                    self.held.push('\u{FFFD}');
                    self.bytes.drain(..valid + bad);
                }
            }
        }
    }

    /// One decision; whether another may follow.
    fn step(&mut self, markers: &Markers<'_>, cuts: &mut Vec<Cut>) -> bool {
        match (self.place, markers.form) {
            (Place::Call, Some(form)) => self.step_call(form, cuts),
            (Place::Between, Some(form)) => self.step_between(form.layout, cuts),
            _ => self.step_text(markers, cuts),
        }
    }

    fn step_text(&mut self, markers: &Markers<'_>, cuts: &mut Vec<Cut>) -> bool {
        let open = markers.form.map(|form| form.open.as_str());
        if let Some(form) = markers.form
            && form.layout == CallLayout::Objects
            && !self.begun
        {
            // A stop string that was whole before the call was known to be one wins.
            let stops_by = |end: usize| {
                markers.stops.iter().any(|stop| self.held.find(stop.as_str()).is_some_and(|at| at + stop.len() <= end))
            };
            match bare_call(form, markers.tools, &self.held) {
                BareCall::Yes { known_at } if !stops_by(known_at) => {
                    self.open_call(true, cuts);
                    return true;
                }
                BareCall::Perhaps if !stops_by(self.held.len()) => return false,
                BareCall::Perhaps | BareCall::Yes { .. } => {}
                BareCall::No => self.begun = true,
            }
        }
        let stop = markers.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        let open_at = open.and_then(|open| self.held.find(open).map(|at| (at, open.len())));
        match (stop, open_at) {
            (Some(at), open) if open.is_none_or(|(other, _)| at <= other) => {
                self.held.truncate(at);
                self.release(self.held.len(), cuts);
                self.held.clear();
                self.bytes.clear();
                self.stopped = true;
                cuts.push(Cut::Stopped);
                false
            }
            (_, Some((at, len))) => {
                self.release(at, cuts);
                self.held.drain(..len);
                self.open_call(false, cuts);
                true
            }
            _ => {
                let all = markers.stops.iter().map(String::as_str).chain(open);
                let undecided = all.map(|marker| undecided(&self.held, marker)).max().unwrap_or(0);
                self.release(self.held.len() - undecided, cuts);
                false
            }
        }
    }

    fn step_call(&mut self, form: &CallForm, cuts: &mut Vec<Cut>) -> bool {
        match (form.layout, form.close.as_deref()) {
            (CallLayout::Enclosed, None) => false,
            (CallLayout::Enclosed, Some(close)) => match self.held.find(close) {
                Some(at) => self.close_call(at, close.len(), Place::Text, cuts),
                None => false,
            },
            // What is opened and begins with no object is not cut where an object may stand in it.
            (CallLayout::Objects, _) if !self.held.trim_start().starts_with('{') => false,
            (CallLayout::Objects | CallLayout::Array, _) => {
                let brace = self.held.find('{').unwrap_or(self.held.len());
                if !self.object.begun()
                    && let Some(at) = self.held[..brace].find(form.open.as_str())
                {
                    self.close_call(at, form.open.len(), Place::Call, cuts);
                    cuts.push(Cut::CallOpened { bare: false });
                    return true;
                }
                match self.object.read(&self.held) {
                    Some(end) => self.close_call(end, 0, Place::Between, cuts),
                    None => false,
                }
            }
        }
    }

    fn step_between(&mut self, layout: CallLayout, cuts: &mut Vec<Cut>) -> bool {
        let rest = self.held.trim_start();
        if rest.is_empty() {
            return false;
        }
        if let Some((_, after)) = layout.brackets()
            && let Some(rest) = rest.strip_prefix(after)
        {
            self.held = rest.to_owned();
            self.place = Place::Text;
            return true;
        }
        let next = layout.separator().and_then(|separator| rest.strip_prefix(separator)).map(str::trim_start);
        match next {
            Some("") => false,
            Some(next) if next.starts_with('{') => {
                self.held = next.to_owned();
                self.open_call(false, cuts);
                true
            }
            _ => {
                self.place = Place::Text;
                true
            }
        }
    }

    fn open_call(&mut self, bare: bool, cuts: &mut Vec<Cut>) {
        self.begun = true;
        self.place = Place::Call;
        self.object = ObjectEnd::default();
        cuts.push(Cut::CallOpened { bare });
    }

    /// The call's text ends at `at`, `skip` bytes before what follows; whether another decision may follow: always.
    fn close_call(&mut self, at: usize, skip: usize, place: Place, cuts: &mut Vec<Cut>) -> bool {
        let rest = self.held.split_off(at + skip);
        let mut body = std::mem::replace(&mut self.held, rest);
        body.truncate(at);
        self.place = place;
        self.object = ObjectEnd::default();
        cuts.push(Cut::CallClosed(body));
        true
    }

    fn release(&mut self, len: usize, cuts: &mut Vec<Cut>) {
        if len > 0 {
            self.begun |= !self.held[..len].trim().is_empty();
            let rest = self.held.split_off(len);
            cuts.push(Cut::Text(std::mem::replace(&mut self.held, rest)));
        }
    }
}

/// Bytes at the end of `text` that are a proper beginning of `marker`.
fn undecided(text: &str, marker: &str) -> usize {
    marker.char_indices().map(|(at, _)| at).rev().find(|at| text.ends_with(&marker[..*at])).unwrap_or(0)
}

/// Looks for the end of the first JSON object in a text that grows, reading each byte once.
#[derive(Debug, Clone, PartialEq, Default)]
struct ObjectEnd {
    /// Bytes read.
    read: usize,
    /// Objects and arrays that are open.
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl ObjectEnd {
    fn begun(&self) -> bool {
        self.depth > 0
    }

    /// Where the object ends, once it does. What is no JSON ends where its brackets do, if they do.
    fn read(&mut self, text: &str) -> Option<usize> {
        for &byte in &text.as_bytes()[self.read..] {
            self.read += 1;
            match byte {
                _ if std::mem::take(&mut self.escaped) => {}
                b'\\' if self.in_string => self.escaped = true,
                b'"' if self.begun() => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' => self.depth += 1,
                b'[' if self.begun() => self.depth += 1,
                b'}' | b']' if self.begun() => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(self.read);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use holdfast_model::ToolCallForm;
    use proptest::prelude::*;

    use super::*;

    /// What a whole answer became.
    #[derive(Debug, PartialEq, Eq)]
    enum Part {
        Text(String),
        Call(String),
        /// Open when the answer ended.
        Open(String),
        Stopped,
    }

    const HERMES: &str = "<tool_call>";
    const PEBBLE: &str = "pebble";
    const MISTRAL: &str = "[TOOL_CALLS][";
    const LLAMA: &str = "<|start_header_id|>ipython<|end_header_id|>";

    fn form(template: &str) -> CallForm {
        match template {
            PEBBLE => CallForm { open: "<|tool_call|>".to_owned(), ..CallForm::default() },
            known => CallForm::from(&ToolCallForm::of_template(known).unwrap()),
        }
    }

    /// Scans the pieces to the end of the answer.
    fn scan<'a>(template: &str, stops: &[String], pieces: impl Iterator<Item = &'a [u8]>) -> Vec<Part> {
        let (form, tools) = (form(template), ["look".to_owned(), "stop".to_owned()]);
        let markers = Markers { stops, form: Some(&form), tools: &tools };
        let (mut scanner, mut cuts) = (Scanner::default(), Vec::new());
        for piece in pieces {
            if !scanner.stopped() {
                scanner.push(piece, &markers, &mut cuts);
            }
        }
        let mut parts: Vec<Part> = Vec::new();
        let text = |text: String, parts: &mut Vec<Part>| match parts.last_mut() {
            Some(Part::Text(before)) => before.push_str(&text),
            _ => parts.push(Part::Text(text)),
        };
        for cut in cuts {
            match cut {
                Cut::Text(more) => text(more, &mut parts),
                Cut::CallOpened { .. } => {}
                Cut::CallClosed(body) => parts.push(Part::Call(body)),
                Cut::Stopped => parts.push(Part::Stopped),
            }
        }
        if scanner.in_call() {
            parts.push(Part::Open(scanner.call().to_owned()));
        } else {
            let rest = scanner.end(false);
            if !rest.is_empty() {
                text(rest, &mut parts);
            }
        }
        parts
    }

    fn whole(template: &str, answer: &str) -> Vec<Part> {
        scan(template, &[], std::iter::once(answer.as_bytes()))
    }

    fn text(text: &str) -> Part {
        Part::Text(text.to_owned())
    }

    fn call(body: &str) -> Part {
        Part::Call(body.to_owned())
    }

    /// Answers as models of each form give them, and what they are.
    fn answers() -> Vec<(&'static str, &'static str, Vec<Part>)> {
        let open = |body: &str| Part::Open(body.to_owned());
        vec![
            // Hermes and Qwen.
            (
                HERMES,
                "Let me see.\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"é\"}}\n</tool_call>\n<tool_call>\n{}\n</tool_call>",
                vec![
                    text("Let me see.\n"),
                    call("\n{\"name\": \"look\", \"arguments\": {\"at\": \"é\"}}\n"),
                    text("\n"),
                    call("\n{}\n"),
                ],
            ),
            (
                HERMES,
                "{\"name\": \"look\", \"parameters\": {}}",
                vec![text("{\"name\": \"look\", \"parameters\": {}}")],
            ),
            (HERMES, "a <tool_ca", vec![text("a <tool_ca")]),
            (HERMES, "<tool_call>{\"na", vec![open("{\"na")]),
            // Pebble.
            (PEBBLE, "<|tool_call|>{}{} and more", vec![open("{}{} and more")]),
            // Mistral's arrays.
            (
                MISTRAL,
                "[TOOL_CALLS] [{\"name\": \"look\", \"arguments\": {\"at\": \"}]\\\"\"}}, {\"name\": \"stop\", \"arguments\": {}}]",
                vec![
                    call(" [{\"name\": \"look\", \"arguments\": {\"at\": \"}]\\\"\"}}"),
                    call("{\"name\": \"stop\", \"arguments\": {}}"),
                ],
            ),
            (
                MISTRAL,
                "Hm.[TOOL_CALLS][{\"a\": [{}]}] Done.",
                vec![text("Hm."), call("[{\"a\": [{}]}"), text(" Done.")],
            ),
            (MISTRAL, "[TOOL_CALLS][{\"a\": 1}, x", vec![call("[{\"a\": 1}"), text(", x")]),
            (MISTRAL, "[TOOL_CALLS] none [TOOL_CALLS][{}]", vec![call(" none "), call("[{}")]),
            (MISTRAL, "[TOOL_CALLS] I will", vec![open(" I will")]),
            (MISTRAL, "[TOOL_CALLS][{\"a\": \"", vec![open("[{\"a\": \"")]),
            (MISTRAL, "[TOOL] [1, 2]", vec![text("[TOOL] [1, 2]")]),
            // Mistral's names and marks.
            (
                MISTRAL,
                "[TOOL_CALLS]look[ARGS]{\"at\": {\"é\": 1}}[TOOL_CALLS]stop[CALL_ID]abcdefghi[ARGS]{}",
                vec![call("look[ARGS]{\"at\": {\"é\": 1}}"), call("stop[CALL_ID]abcdefghi[ARGS]{}")],
            ),
            // Llama 3.
            (
                LLAMA,
                "{\"name\": \"look\", \"parameters\": {\"at\": \"{\"}}",
                vec![call("{\"name\": \"look\", \"parameters\": {\"at\": \"{\"}}")],
            ),
            (
                LLAMA,
                "{\"name\": \"look\", \"parameters\": {}}; {\"name\": \"new\", \"parameters\": {}};\n",
                vec![call("{\"name\": \"look\", \"parameters\": {}}"), call("{\"name\": \"new\", \"parameters\": {}}")],
            ),
            (
                LLAMA,
                "<|python_tag|>{\"name\": \"new\", \"parameters\": {}}; {\"type\": 1}",
                vec![call("{\"name\": \"new\", \"parameters\": {}}"), call("{\"type\": 1}")],
            ),
            (LLAMA, "<|python_tag|>print({}); look({})", vec![open("print({}); look({})")]),
            (
                LLAMA,
                " {\"type\": \"function\", \"name\": \"stop\", \"parameters\": {}} ok",
                vec![call(" {\"type\": \"function\", \"name\": \"stop\", \"parameters\": {}}"), text(" ok")],
            ),
            (
                LLAMA,
                "{\"name\": \"look\", \"parameters\": {\"at\"",
                vec![open("{\"name\": \"look\", \"parameters\": {\"at\"")],
            ),
            (LLAMA, "{\"name\": \"Ann\", \"parameters\": {}}", vec![text("{\"name\": \"Ann\", \"parameters\": {}}")]),
            (LLAMA, "{\"name\": \"look\", \"age\": {}}", vec![text("{\"name\": \"look\", \"age\": {}}")]),
            (LLAMA, "{\"name\": \"look\", \"param", vec![text("{\"name\": \"look\", \"param")]),
            (LLAMA, "{\"colour\": 1}; {\"name\": \"look\"}", vec![text("{\"colour\": 1}; {\"name\": \"look\"}")]),
            (
                LLAMA,
                "So: {\"name\": \"look\", \"parameters\": {}}",
                vec![text("So: {\"name\": \"look\", \"parameters\": {}}")],
            ),
        ]
    }

    #[test]
    fn answers_become_the_same_parts_however_their_bytes_are_cut() {
        for (template, answer, parts) in answers() {
            assert_eq!(whole(template, answer), parts, "{answer}");
            assert_eq!(scan(template, &[], answer.as_bytes().chunks(1)), parts, "{answer}");
            for at in 0..answer.len() {
                let (left, right) = answer.as_bytes().split_at(at);
                assert_eq!(scan(template, &[], [left, right].into_iter()), parts, "{answer} at {at}");
            }
        }
    }

    #[test]
    fn nothing_is_held_that_is_decided() {
        let released = |template: &str, answer: &str| {
            let (form, tools) = (form(template), ["look".to_owned()]);
            let (mut scanner, mut cuts) = (Scanner::default(), Vec::new());
            scanner.push(answer.as_bytes(), &Markers { stops: &[], form: Some(&form), tools: &tools }, &mut cuts);
            cuts
        };
        let text = |text: &str| vec![Cut::Text(text.to_owned())];
        assert_eq!(released(LLAMA, "{\"name\": \"Ann"), text("{\"name\": \"Ann"));
        assert_eq!(released(LLAMA, "{\"name\": \"lo"), []);
        assert_eq!(released(LLAMA, "[1"), text("[1"));
        assert_eq!(released(LLAMA, "{\"name\": \"look\", \"parameters\": {"), [Cut::CallOpened { bare: true }]);
        assert_eq!(released(MISTRAL, "[1] [TOOL_"), text("[1] "));
        // A call is there as soon as its object is.
        let calls = released(MISTRAL, "[TOOL_CALLS][{}, {");
        assert_eq!(calls.len(), 3, "{calls:?}");
    }

    #[test]
    fn a_stop_string_counts_until_a_call_is_known() {
        let answer = "{\"name\": \"look\", \"parameters\": {\"name\": 1}}";
        for (stop, parts) in [
            ("name", vec![text("{\""), Part::Stopped]),
            ("\": {", vec![text("{\"name\": \"look\", \"parameters"), Part::Stopped]),
            ("{\"n", vec![Part::Stopped]),
            (": {\"", vec![call(answer)]),
            ("1", vec![call(answer)]),
        ] {
            let stops = [stop.to_owned()];
            assert_eq!(scan(LLAMA, &stops, std::iter::once(answer.as_bytes())), parts, "{stop}");
            assert_eq!(scan(LLAMA, &stops, answer.as_bytes().chunks(1)), parts, "{stop}");
        }
    }

    #[test]
    fn nothing_follows_a_stop_string_not_even_half_a_character() {
        let stops = ["STOP".to_owned()];
        assert_eq!(scan(HERMES, &stops, [&b"aSTOP\xC3"[..]].into_iter()), [text("a"), Part::Stopped]);
    }

    fn answer() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("<tool_call>"),
            Just("</tool_call>"),
            Just("<|tool_call|>"),
            Just("<|python_tag|>"),
            Just("[TOOL_CALLS]"),
            Just("[ARGS]"),
            Just("{\"name\": \"look\", \"parameters\": {"),
            Just("{\"name\": \"look\","),
            Just("\"}}"),
            Just("{"),
            Just("}"),
            Just("["),
            Just("]"),
            Just("\""),
            Just("\\"),
            Just(";"),
            Just(","),
            Just(" \n"),
            Just("é🌊"),
            Just("STOP"),
            Just("a"),
        ];
        prop::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
    }

    /// A text without marks, separators and white space.
    fn said(text: &str) -> String {
        let marks = ["<tool_call>", "</tool_call>", "<|tool_call|>", "<|python_tag|>", "[TOOL_CALLS]"];
        let text = marks.iter().fold(text.to_owned(), |text, mark| text.replace(mark, "\0"));
        text.chars().filter(|c| !c.is_whitespace() && !";,]\0".contains(*c)).collect()
    }

    proptest! {
        #[test]
        fn no_cut_changes_what_an_answer_is(
            template in prop::sample::select(vec![HERMES, PEBBLE, MISTRAL, LLAMA]),
            answer in answer(),
            stop in any::<bool>(),
            sizes in prop::collection::vec(1_usize..9, 1..20),
        ) {
            let stops = if stop { vec!["STOP".to_owned()] } else { Vec::new() };
            let one = scan(template, &stops, std::iter::once(answer.as_bytes()));
            let mut rest = answer.as_bytes();
            let mut pieces = Vec::new();
            for size in sizes.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at((*size).min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            prop_assert_eq!(&scan(template, &stops, pieces.into_iter()), &one);
            // Nothing is lost but what opens, closes and separates calls, and nothing is there twice.
            if !one.contains(&Part::Stopped) {
                let parts = one.iter().map(|part| match part {
                    Part::Text(text) | Part::Call(text) | Part::Open(text) => text.as_str(),
                    Part::Stopped => "",
                });
                prop_assert_eq!(said(&parts.collect::<Vec<_>>().join("\0")), said(&answer));
            }
        }
    }
}
