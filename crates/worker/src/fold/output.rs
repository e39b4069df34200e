//! Sampled tokens to items.
//!
//! In: sampled tokens with their log positions. Out: [`Piece`]s: items that start, grow and end, without numbers of events.
//! Deliberately not here: where text ends and calls begin (the scanner's), events' sequence, turns, the journal.
//!
//! Text that may still become a stop string or a tool call is held back until it is decided. A stop string cuts
//! the text before its first character; the token that completes it is the last one of the log. Stop strings are not looked
//! for inside of a tool call or of reasoning. White space before a tool call, what separates two calls, and white space at
//! the end after one belong to no item.

use std::sync::Arc;

use holdfast_types::{Item, ItemContent, ItemState, Part, Role, TokenId, TokenLogprob, TokenRange};

use super::reader::Reader;
use super::scanner::Cut;
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
    /// Text of the open reasoning.
    Thought { text: String, tokens: TokenRange },
    /// Arguments of the open call.
    Arguments { arguments: String, tokens: TokenRange },
    /// The open item is whole, or will stay as it is.
    Done { item: Item, tokens: TokenRange },
}

/// The open item.
#[derive(Debug, Clone, PartialEq)]
struct OpenItem {
    start: u32,
    kind: OpenKind,
    /// The message or reasoning so far; empty for a call, whose text the reader holds.
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OpenKind {
    Message,
    Reasoning,
    Call,
}

impl OpenItem {
    fn item(&self, text: &str) -> Item {
        match self.kind {
            OpenKind::Message | OpenKind::Call => message(text),
            OpenKind::Reasoning => reasoning(text),
        }
    }
}

/// One generation's sampled tokens, folded. Lives from its first token to its end; after an early end it is kept, so that
/// `continue` can go on in the middle of a character or of a call.
#[derive(Clone)]
pub(crate) struct OutputFold {
    reader: Reader,
    /// `call_{turn}_{generation}_`: what call ids begin with.
    id_prefix: String,
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
    /// Tokens of this generation's reasoning that is whole.
    thought: u32,
    /// Where this generation's part of the open reasoning begins.
    thought_from: u32,
    /// Position of the first token, of what was continued too.
    first: u32,
}

impl OutputFold {
    /// The fold of a generation whose first token will be at `position`; `thinking` says that its prompt has opened reasoning.
    pub(crate) fn new(
        language: Arc<dyn Language>,
        (stops, tools, thinking): (Vec<String>, Arc<[String]>, bool),
        (turn, generation): (u32, u32),
        position: u32,
    ) -> Self {
        Self {
            reader: Reader::new(language, stops, tools, thinking),
            id_prefix: format!("call_{turn}_{generation}_"),
            open: None,
            blank: String::new(),
            calls: 0,
            uncovered: position,
            logprobs: Vec::new(),
            parked_call: None,
            ended: false,
            sampled: 0,
            thought: 0,
            thought_from: position,
            first: position,
        }
    }

    /// Goes on with what ended early, as another turn's generation.
    pub(crate) fn reopen(
        mut self,
        stops: Vec<String>,
        (turn, generation): (u32, u32),
        position: u32,
        pieces: &mut Vec<Piece>,
    ) -> Self {
        self.reader.stops = stops;
        self.id_prefix = format!("call_{turn}_{generation}_");
        self.calls = 0;
        self.sampled = 0;
        self.ended = false;
        (self.thought, self.thought_from) = (0, position);
        self.reader.go_on();
        if let Some(open) = &self.open
            && self.parked_call.is_none()
        {
            pieces.push(Piece::Started { item: open.item(&open.text), again: true });
        }
        self
    }

    /// Whether a stop string has appeared.
    pub(crate) fn stopped(&self) -> bool {
        self.reader.stopped()
    }

    /// Tool calls, if the generation ended here by itself: one that is open would be whole.
    pub(crate) fn calls(&self) -> u32 {
        self.calls + u32::from(self.reader.call().is_some())
    }

    /// Position of its first token; of a generation that continues another, of the other's.
    pub(crate) fn first(&self) -> u32 {
        self.first
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
        if self.reader.stops.is_empty() {
            return tokens.len();
        }
        self.reader.stops_at(tokens).map_or(tokens.len(), |at| at + 1)
    }

    /// Tokens of this generation that are reasoning, marks included, if it ends at `end`.
    pub(crate) fn reasoning(&self, end: u32) -> u32 {
        let open = self.open.as_ref().is_some_and(|open| open.kind == OpenKind::Reasoning) || self.reader.in_thought();
        self.thought + if open { end.saturating_sub(self.thought_from) } else { 0 }
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
        if self.reader.in_thought() && self.open.is_none() {
            self.think(pieces);
        }
        self.reader.push(id, &mut cuts);
        for cut in cuts {
            match cut {
                Cut::Text(text) => self.text(text, position, pieces),
                Cut::ThoughtOpened => {
                    self.blank.clear();
                    self.done(ItemState::Complete, position, pieces);
                    self.think(pieces);
                }
                Cut::Thought(text) => self.thought(text, position, pieces),
                Cut::Ended => self.done(ItemState::Complete, position + 1, pieces),
                Cut::CallOpened { bare } => {
                    self.blank.clear();
                    self.done(ItemState::Complete, position, pieces);
                    let start = if bare { self.uncovered } else { position };
                    self.open = Some(OpenItem { start, kind: OpenKind::Call, text: String::new() });
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
        if let Some(body) = self.reader.call().map(str::to_owned) {
            let start = self.open.as_ref().map_or(self.uncovered, |open| open.start);
            self.call(&body, state, end, pieces);
            if early {
                self.open = Some(OpenItem { start, kind: OpenKind::Call, text: String::new() });
            } else {
                self.reader.drop_call();
            }
            return;
        }
        let held = self.reader.end(early);
        let last = end.saturating_sub(1);
        let thinks = self.open.as_ref().is_some_and(|open| open.kind == OpenKind::Reasoning);
        match (held.is_empty(), thinks) {
            (true, _) => {}
            (false, true) => self.thought(held, last, pieces),
            (false, false) => self.text(held, last, pieces),
        }
        if self.calls == 0 && self.open.is_none() && !self.blank.is_empty() {
            let blank = std::mem::take(&mut self.blank);
            self.show(blank, last, pieces);
        }
        let kept = self.open.clone().filter(|_| early);
        self.done(state, end, pieces);
        self.open = kept;
    }

    /// Reasoning begins: with the first token that no delta has covered.
    fn think(&mut self, pieces: &mut Vec<Piece>) {
        self.thought_from = self.uncovered;
        self.open = Some(OpenItem { start: self.uncovered, kind: OpenKind::Reasoning, text: String::new() });
        pieces.push(Piece::Started { item: reasoning(""), again: false });
    }

    fn thought(&mut self, text: String, position: u32, pieces: &mut Vec<Piece>) {
        let Some(open) = &mut self.open else { return };
        open.text.push_str(&text);
        let (tokens, _) = self.cover(position + 1);
        pieces.push(Piece::Thought { text, tokens });
    }

    fn text(&mut self, text: String, position: u32, pieces: &mut Vec<Piece>) {
        let text = if self.blank.is_empty() { text } else { std::mem::take(&mut self.blank) + &text };
        let mut said = text;
        if self.reader.has_tools() {
            self.blank = said.split_off(said.trim_end().len());
        }
        if !said.is_empty() {
            self.show(said, position, pieces);
        }
    }

    fn show(&mut self, text: String, position: u32, pieces: &mut Vec<Piece>) {
        let start = self.uncovered;
        let open = self.open.get_or_insert_with(|| {
            pieces.push(Piece::Started { item: message(""), again: false });
            OpenItem { start, kind: OpenKind::Message, text: String::new() }
        });
        open.text.push_str(&text);
        let (tokens, logprobs) = self.cover(position + 1);
        pieces.push(Piece::Text { text, tokens, logprobs });
    }

    fn call(&mut self, body: &str, state: ItemState, end: u32, pieces: &mut Vec<Piece>) {
        let start = self.open.take().map_or(self.uncovered, |open| open.start);
        let read = self.reader.read(body);
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
        if self.open.as_ref().is_some_and(|open| open.kind == OpenKind::Message) && !self.blank.is_empty() {
            // No call follows: it is the message's after all.
            let blank = std::mem::take(&mut self.blank);
            self.show(blank, end.saturating_sub(1), pieces);
        }
        if let Some(open) = self.open.take() {
            let mut item = open.item(&open.text);
            item.state = state;
            if open.kind == OpenKind::Reasoning {
                // Its end is no delta of its own: the answer's tokens begin behind it.
                self.thought += end.saturating_sub(self.thought_from);
                self.cover(end);
            }
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

fn reasoning(text: &str) -> Item {
    Item { content: ItemContent::Reasoning { text: text.to_owned() }, state: ItemState::Complete }
}

fn call_item(call_id: &str, name: &str, parse_error: Option<String>, arguments: String) -> Item {
    Item {
        content: ItemContent::ToolCall { call_id: call_id.to_owned(), name: name.to_owned(), arguments, parse_error },
        state: ItemState::Complete,
    }
}
