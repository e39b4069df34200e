//! Sampled tokens to items: UTF-8 boundaries, stop strings, held-back tool calls.
//!
//! In: sampled tokens with their log positions. Out: [`Piece`]s: items that start, grow and end, without numbers of events.
//! Deliberately not here: events' sequence, turns, the journal.
//!
//! Text that may still become a stop string or the opening of a tool call is held back until it is decided. A stop string cuts
//! the text before its first character; the token that completes it is the last one of the log. Stop strings are not looked
//! for inside of a tool call. White space before a tool call, and at the end after one, belongs to no item.

use std::sync::Arc;

use holdfast_types::{Item, ItemContent, ItemState, Part, Role, TokenId, TokenLogprob, TokenRange};

use crate::language::Language;

/// What the tokens of a generation became, in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Piece {
    /// An item begins, or goes on after an early end.
    Started {
        /// As it begins.
        item: Item,
        /// It is the item that ended early.
        again: bool,
    },
    /// Text of the open message.
    Text { text: String, tokens: TokenRange, logprobs: Vec<Vec<TokenLogprob>> },
    /// Arguments of the open call.
    Arguments { arguments: String, tokens: TokenRange },
    /// The open item is whole, or will stay as it is.
    Done { item: Item, tokens: TokenRange },
}

/// What decides where text goes; small, so that a look ahead can work on a copy.
#[derive(Debug, Clone, PartialEq, Default)]
struct Scanner {
    /// Bytes that do not make a character yet.
    bytes: Vec<u8>,
    /// Text that is not decided yet; inside of a call its text so far.
    held: String,
    in_call: bool,
    stopped: bool,
}

/// A decision of the scanner.
#[derive(Debug, PartialEq)]
enum Cut {
    Text(String),
    CallOpened,
    CallClosed(String),
    Stopped,
}

/// The markers a scanner looks for.
struct Markers<'a> {
    stops: &'a [String],
    open: Option<&'a str>,
    close: Option<&'a str>,
}

impl Scanner {
    fn push(&mut self, bytes: &[u8], markers: &Markers<'_>, cuts: &mut Vec<Cut>) {
        self.bytes.extend_from_slice(bytes);
        self.take_characters();
        while !self.stopped && self.step(markers, cuts) {}
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
        if self.in_call {
            let Some(close) = markers.close else { return false };
            let Some(at) = self.held.find(close) else { return false };
            let rest = self.held.split_off(at + close.len());
            let mut body = std::mem::replace(&mut self.held, rest);
            body.truncate(at);
            self.in_call = false;
            cuts.push(Cut::CallClosed(body));
            return true;
        }
        let stop = markers.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        let open = markers.open.and_then(|open| self.held.find(open).map(|at| (at, open.len())));
        match (stop, open) {
            (Some(at), open) if open.is_none_or(|(other, _)| at <= other) => {
                self.held.truncate(at);
                self.release(self.held.len(), cuts);
                self.held.clear();
                self.stopped = true;
                cuts.push(Cut::Stopped);
                false
            }
            (_, Some((at, len))) => {
                self.release(at, cuts);
                self.held.drain(..len);
                self.in_call = true;
                cuts.push(Cut::CallOpened);
                true
            }
            _ => {
                let all = markers.stops.iter().map(String::as_str).chain(markers.open);
                let undecided = all.map(|marker| undecided(&self.held, marker)).max().unwrap_or(0);
                self.release(self.held.len() - undecided, cuts);
                false
            }
        }
    }

    fn release(&mut self, len: usize, cuts: &mut Vec<Cut>) {
        if len > 0 {
            let rest = self.held.split_off(len);
            cuts.push(Cut::Text(std::mem::replace(&mut self.held, rest)));
        }
    }
}

/// Bytes at the end of `text` that are a proper beginning of `marker`.
fn undecided(text: &str, marker: &str) -> usize {
    marker.char_indices().map(|(at, _)| at).rev().find(|at| text.ends_with(&marker[..*at])).unwrap_or(0)
}

/// The open item.
#[derive(Debug, Clone, PartialEq)]
struct OpenItem {
    start: u32,
    /// The message so far; empty for a call, whose text the scanner holds.
    text: String,
}

/// One generation's sampled tokens, folded. Lives from its first token to its end; after an early end it is kept, so that
/// `continue` can go on in the middle of a character or of a call.
#[derive(Clone)]
pub(crate) struct OutputFold {
    language: Arc<dyn Language>,
    stops: Vec<String>,
    calls_allowed: bool,
    /// `call_{turn}_{generation}_`: what call ids begin with.
    id_prefix: String,
    scanner: Scanner,
    open: Option<OpenItem>,
    /// White space that nothing followed yet.
    blank: String,
    calls: u32,
    /// First position that no delta has covered.
    uncovered: u32,
    logprobs: Vec<Vec<TokenLogprob>>,
    /// Id of the call that ended early, and may go on.
    parked_call: Option<String>,
    ended: bool,
    sampled: u32,
}

impl OutputFold {
    /// The fold of a generation whose first token will be at `position`.
    pub(crate) fn new(
        language: Arc<dyn Language>,
        stops: Vec<String>,
        calls_allowed: bool,
        (turn, generation): (u32, u32),
        position: u32,
    ) -> Self {
        Self {
            language,
            stops,
            calls_allowed,
            id_prefix: format!("call_{turn}_{generation}_"),
            scanner: Scanner::default(),
            open: None,
            blank: String::new(),
            calls: 0,
            uncovered: position,
            logprobs: Vec::new(),
            parked_call: None,
            ended: false,
            sampled: 0,
        }
    }

    /// Goes on with what ended early, as another turn's generation.
    pub(crate) fn reopen(
        mut self,
        stops: Vec<String>,
        (turn, generation): (u32, u32),
        pieces: &mut Vec<Piece>,
    ) -> Self {
        self.stops = stops;
        self.id_prefix = format!("call_{turn}_{generation}_");
        self.calls = 0;
        self.sampled = 0;
        self.ended = false;
        self.scanner.stopped = false;
        if let Some(open) = &self.open
            && self.parked_call.is_none()
        {
            pieces.push(Piece::Started { item: message(&open.text), again: true });
        }
        self
    }

    /// Whether a stop string has appeared.
    pub(crate) fn stopped(&self) -> bool {
        self.scanner.stopped
    }

    /// Tool calls, if the generation ended here by itself: one that is open would be whole.
    pub(crate) fn calls(&self) -> u32 {
        self.calls + u32::from(self.scanner.in_call)
    }

    /// Tokens folded in this generation.
    pub(crate) fn sampled(&self) -> u32 {
        self.sampled
    }

    /// How many of the tokens belong to the log: all, or those up to and including the one that completes a stop string.
    pub(crate) fn accepts(&self, tokens: &[TokenId]) -> usize {
        if self.stopped() {
            return 0;
        }
        if self.stops.is_empty() {
            return tokens.len();
        }
        let (mut scanner, mut cuts) = (self.scanner.clone(), Vec::new());
        let stops_at = tokens.iter().position(|&id| {
            scanner.push(self.bytes_of(id), &self.markers(), &mut cuts);
            scanner.stopped
        });
        stops_at.map_or(tokens.len(), |at| at + 1)
    }

    /// Takes the next token.
    pub(crate) fn push(
        &mut self,
        id: TokenId,
        position: u32,
        logprobs: Option<Vec<TokenLogprob>>,
        pieces: &mut Vec<Piece>,
    ) {
        self.sampled += 1;
        self.logprobs.extend(logprobs);
        let mut cuts = Vec::new();
        let mut scanner = std::mem::take(&mut self.scanner);
        scanner.push(self.bytes_of(id), &self.markers(), &mut cuts);
        self.scanner = scanner;
        for cut in cuts {
            match cut {
                Cut::Text(text) => self.text(text, position, pieces),
                Cut::CallOpened => {
                    self.blank.clear();
                    self.done(ItemState::Complete, position, pieces);
                    self.open = Some(OpenItem { start: position, text: String::new() });
                }
                Cut::CallClosed(body) => self.call(&body, ItemState::Complete, position + 1, pieces),
                Cut::Stopped => {}
            }
        }
    }

    /// Ends the generation. `end` is the position after its last token of text. An early end leaves the open item incomplete.
    pub(crate) fn finish(&mut self, state: ItemState, end: u32, pieces: &mut Vec<Piece>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let early = state == ItemState::Incomplete;
        if self.scanner.in_call {
            let start = self.open.as_ref().map_or(self.uncovered, |open| open.start);
            let body = self.scanner.held.clone();
            self.call(&body, state, end, pieces);
            if early {
                self.open = Some(OpenItem { start, text: String::new() });
            } else {
                self.scanner = Scanner::default();
            }
            return;
        }
        if !early && !self.scanner.bytes.is_empty() {
            self.scanner.bytes.clear();
            self.scanner.held.push('\u{FFFD}');
        }
        let held = std::mem::take(&mut self.scanner.held);
        let last = end.saturating_sub(1);
        if !held.is_empty() {
            self.text(held, last, pieces);
        }
        if self.calls == 0 && self.open.is_none() && !self.blank.is_empty() {
            let blank = std::mem::take(&mut self.blank);
            self.show(blank, last, pieces);
        }
        let kept = self.open.clone().filter(|_| early);
        self.done(state, end, pieces);
        self.open = kept;
    }

    fn markers(&self) -> Markers<'_> {
        let form = if self.calls_allowed { self.language.call_form() } else { None };
        Markers {
            stops: &self.stops,
            open: form.map(|form| form.open.as_str()),
            close: form.and_then(|form| form.close.as_deref()),
        }
    }

    /// A control token is text only where it opens or closes a call.
    fn bytes_of(&self, id: TokenId) -> &[u8] {
        if !self.language.is_special(id) {
            return self.language.token_bytes(id);
        }
        let form = if self.calls_allowed { self.language.call_form() } else { None };
        match form {
            Some(form) if form.open_token == Some(id) => form.open.as_bytes(),
            Some(form) if form.close_token == Some(id) => form.close.as_deref().unwrap_or_default().as_bytes(),
            _ => &[],
        }
    }

    fn text(&mut self, text: String, position: u32, pieces: &mut Vec<Piece>) {
        if self.calls_allowed && self.open.is_none() && text.trim().is_empty() {
            self.blank.push_str(&text);
            return;
        }
        let text = if self.blank.is_empty() { text } else { std::mem::take(&mut self.blank) + &text };
        self.show(text, position, pieces);
    }

    fn show(&mut self, text: String, position: u32, pieces: &mut Vec<Piece>) {
        let start = self.uncovered;
        let open = self.open.get_or_insert_with(|| {
            pieces.push(Piece::Started { item: message(""), again: false });
            OpenItem { start, text: String::new() }
        });
        open.text.push_str(&text);
        let (tokens, logprobs) = self.cover(position + 1);
        pieces.push(Piece::Text { text, tokens, logprobs });
    }

    fn call(&mut self, body: &str, state: ItemState, end: u32, pieces: &mut Vec<Piece>) {
        let start = self.open.take().map_or(self.uncovered, |open| open.start);
        let read = self.language.read_call(body);
        let again = self.parked_call.take();
        let id = again.clone().unwrap_or_else(|| format!("{}{}", self.id_prefix, self.calls + 1));
        if state == ItemState::Complete {
            self.calls += 1;
        } else {
            self.parked_call = Some(id.clone());
        }
        let mut item = call_item(&id, &read.name, read.parse_error, String::new());
        pieces.push(Piece::Started { item: item.clone(), again: again.is_some() });
        let (tokens, _) = self.cover(end);
        pieces.push(Piece::Arguments { arguments: read.arguments.clone(), tokens });
        if let ItemContent::ToolCall { arguments, .. } = &mut item.content {
            *arguments = read.arguments;
        }
        item.state = state;
        pieces.push(Piece::Done { item, tokens: TokenRange { start, end } });
    }

    fn done(&mut self, state: ItemState, end: u32, pieces: &mut Vec<Piece>) {
        if let Some(open) = self.open.take() {
            let mut item = message(&open.text);
            item.state = state;
            pieces.push(Piece::Done { item, tokens: TokenRange { start: open.start, end: end.max(open.start) } });
        }
    }

    /// The tokens since the last delta, with their log probabilities.
    fn cover(&mut self, end: u32) -> (TokenRange, Vec<Vec<TokenLogprob>>) {
        let range = TokenRange { start: self.uncovered.min(end), end };
        self.uncovered = end.max(self.uncovered);
        let count = range.len() as usize;
        let logprobs = if self.logprobs.len() > count {
            self.logprobs.drain(..count).collect()
        } else {
            std::mem::take(&mut self.logprobs)
        };
        (range, logprobs)
    }
}

fn message(text: &str) -> Item {
    let parts = if text.is_empty() { Vec::new() } else { vec![Part::Text(text.to_owned())] };
    Item { content: ItemContent::Message { role: Role::Assistant, parts }, state: ItemState::Complete }
}

fn call_item(call_id: &str, name: &str, parse_error: Option<String>, arguments: String) -> Item {
    Item {
        content: ItemContent::ToolCall { call_id: call_id.to_owned(), name: name.to_owned(), arguments, parse_error },
        state: ItemState::Complete,
    }
}
