//! Sampled bytes to text, reasoning, calls and stops: the decisions, without items.
//!
//! In: bytes as they are sampled, in any pieces, and the [`Markers`] to look for. Out: [`Cut`]s, the same ones however the bytes
//! were cut, but for where a text is divided. Text that may still become a call or a stop string is held, and no longer than
//! that. Reasoning comes first or not at all: a mark later in an answer is text. Deliberately not here: what a call's text
//! says (the model's), items, positions, and answers of several channels ([`super::channels`]).

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
    thinking: Thinking,
    stopped: bool,
}

/// How far reasoning has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Thinking {
    /// It may yet begin.
    #[default]
    Ahead,
    /// It has begun; what follows is line breaks or its first words.
    Opened,
    /// It has said something.
    Said,
    /// It has ended; line breaks that follow are its.
    Closed,
    /// The answer has begun.
    Over,
}

/// What the held text is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    #[default]
    Text,
    /// Reasoning.
    Thought,
    Call,
    /// After a call, where another may follow without being opened.
    Between,
}

/// A decision of the scanner.
#[derive(Debug, PartialEq)]
pub(super) enum Cut {
    Text(String),
    ThoughtOpened,
    Thought(String),
    /// The message or the reasoning that is open is whole.
    Ended,
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
    /// What opens and closes reasoning.
    pub(super) reasoning: Option<(&'a str, &'a str)>,
}

impl Scanner {
    /// Of an answer whose prompt has opened reasoning.
    pub(super) fn thinking() -> Self {
        Self { place: Place::Thought, thinking: Thinking::Opened, ..Self::default() }
    }

    /// Takes bytes and decides what can be decided.
    pub(super) fn push(&mut self, bytes: &[u8], markers: &Markers<'_>, cuts: &mut Vec<Cut>) {
        self.bytes.extend_from_slice(bytes);
        take_characters(&mut self.bytes, &mut self.held);
        while !self.stopped && self.step(markers, cuts) {}
    }

    /// Whether a stop string has appeared.
    pub(super) fn stopped(&self) -> bool {
        self.stopped
    }

    /// Whether reasoning is open.
    pub(super) fn in_thought(&self) -> bool {
        self.place == Place::Thought
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
            self.place = if self.place == Place::Thought { Place::Thought } else { Place::Text };
        }
        match self.place {
            Place::Between => return String::new(),
            Place::Thought => {
                // Line breaks at its end are the mark's, if one comes.
                let rest = self.held.split_off(self.held.trim_end_matches('\n').len());
                let rest = if early { rest } else { String::new() };
                return std::mem::replace(&mut self.held, rest);
            }
            Place::Text | Place::Call => {}
        }
        if !self.held.is_empty() {
            self.begun = true;
            self.thinking = Thinking::Over;
        }
        std::mem::take(&mut self.held)
    }

    /// One decision; whether another may follow.
    fn step(&mut self, markers: &Markers<'_>, cuts: &mut Vec<Cut>) -> bool {
        match (self.place, markers.form) {
            (Place::Call, Some(form)) => self.step_call(form, cuts),
            (Place::Between, Some(form)) => self.step_between(form.layout, cuts),
            (Place::Thought, _) => self.step_thought(markers, cuts),
            _ => match self.before_text(markers, cuts) {
                Some(decided) => decided,
                None => self.step_text(markers, cuts),
            },
        }
    }

    /// Looks for reasoning before the answer, and skips the line breaks after it; whether another decision may follow, if this
    /// is one.
    fn before_text(&mut self, markers: &Markers<'_>, cuts: &mut Vec<Cut>) -> Option<bool> {
        let (open, _) = markers.reasoning?;
        match self.thinking {
            Thinking::Ahead => {}
            Thinking::Closed => {
                self.held.drain(..self.held.len() - self.held.trim_start_matches('\n').len());
                if self.held.is_empty() {
                    return Some(false);
                }
                self.thinking = Thinking::Over;
                return None;
            }
            Thinking::Opened | Thinking::Said | Thinking::Over => return None,
        }
        let blank = self.held.len() - self.held.trim_start().len();
        let head = &self.held[blank..];
        // A stop string that was whole before the mark was known to be one wins.
        let stops_by = |end: usize| find_stop(&self.held[..end], markers.stops).is_some();
        if head.starts_with(open) && !stops_by(blank + open.len()) {
            self.held.drain(..blank + open.len());
            self.place = Place::Thought;
            self.thinking = Thinking::Opened;
            cuts.push(Cut::ThoughtOpened);
            return Some(true);
        }
        if open.starts_with(head) && !stops_by(self.held.len()) {
            return Some(false);
        }
        self.thinking = Thinking::Over;
        None
    }

    fn step_thought(&mut self, markers: &Markers<'_>, cuts: &mut Vec<Cut>) -> bool {
        if self.thinking == Thinking::Opened {
            self.held.drain(..self.held.len() - self.held.trim_start_matches('\n').len());
        }
        let close = markers.reasoning.map_or("", |(_, close)| close);
        let closed = self.held.find(close).filter(|_| !close.is_empty());
        let end = closed.unwrap_or_else(|| self.held.len() - undecided(&self.held, close));
        let said = self.held[..end].trim_end_matches('\n').len();
        if said > 0 {
            self.thinking = Thinking::Said;
            cuts.push(Cut::Thought(self.held[..said].to_owned()));
        }
        match closed {
            Some(at) => {
                self.held.drain(..at + close.len());
                self.place = Place::Text;
                self.thinking = Thinking::Closed;
                cuts.push(Cut::Ended);
                true
            }
            None => {
                self.held.drain(..said);
                false
            }
        }
    }

    fn step_text(&mut self, markers: &Markers<'_>, cuts: &mut Vec<Cut>) -> bool {
        let open = markers.form.map(|form| form.open.as_str());
        if let Some(form) = markers.form
            && form.layout == CallLayout::Objects
            && !self.begun
        {
            // A stop string that was whole before the call was known to be one wins.
            let stops_by = |end: usize| find_stop(&self.held[..end], markers.stops).is_some();
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
        let stop = find_stop(&self.held, markers.stops);
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
            (CallLayout::Enclosed | CallLayout::Channels, None) => false,
            (CallLayout::Enclosed | CallLayout::Channels, Some(close)) => match self.held.find(close) {
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

/// Moves every whole character to the text; a byte that can begin or go on no character becomes U+FFFD.
pub(super) fn take_characters(bytes: &mut Vec<u8>, text: &mut String) {
    loop {
        match std::str::from_utf8(bytes) {
            Ok(whole) => {
                text.push_str(whole);
                bytes.clear();
                return;
            }
            Err(error) => {
                let valid = error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&bytes[..valid]));
                let Some(bad) = error.error_len() else {
                    bytes.drain(..valid);
                    return;
                };
                text.push('\u{FFFD}');
                bytes.drain(..valid + bad);
            }
        }
    }
}

/// Where the first stop string begins.
pub(super) fn find_stop(text: &str, stops: &[String]) -> Option<usize> {
    stops.iter().filter_map(|stop| text.find(stop.as_str())).min()
}

/// Bytes at the end of a text that may become a stop string.
pub(super) fn undecided_stop(text: &str, stops: &[String]) -> usize {
    stops.iter().map(|stop| undecided(text, stop)).max().unwrap_or(0)
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
#[path = "scanner_tests.rs"]
mod tests;
