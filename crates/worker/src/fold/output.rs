//! Sampled tokens to items.
//!
//! In: sampled tokens with their log positions. Out: [`Piece`]s: items that start, grow and end, without numbers of events.
//! Deliberately not here: where text ends and calls begin (the scanner's), events' sequence, turns, the journal.
//!
//! Text that may still become a stop string or a tool call is held back until it is decided. A stop string cuts
//! the text before its first character; the token that completes it is the last one of the log. Stop strings are not looked
//! for inside of a tool call. White space before a tool call, what separates two calls, and white space at the end after
//! one belong to no item.

use std::sync::Arc;

use holdfast_types::{Item, ItemContent, ItemState, Part, Role, TokenId, TokenLogprob, TokenRange};

use super::scanner::{Cut, Markers, Scanner};
use crate::language::{CallForm, Language};

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
    /// Names of the tools that may be called; none: calls are not looked for.
    tools: Arc<[String]>,
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
    /// Position of the first token, of what was continued too.
    first: u32,
}

impl OutputFold {
    /// The fold of a generation whose first token will be at `position`.
    pub(crate) fn new(
        language: Arc<dyn Language>,
        stops: Vec<String>,
        tools: Arc<[String]>,
        (turn, generation): (u32, u32),
        position: u32,
    ) -> Self {
        Self {
            language,
            stops,
            tools,
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
            first: position,
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
        self.scanner.go_on();
        if let Some(open) = &self.open
            && self.parked_call.is_none()
        {
            pieces.push(Piece::Started { item: message(&open.text), again: true });
        }
        self
    }

    /// Whether a stop string has appeared.
    pub(crate) fn stopped(&self) -> bool {
        self.scanner.stopped()
    }

    /// Tool calls, if the generation ended here by itself: one that is open would be whole.
    pub(crate) fn calls(&self) -> u32 {
        self.calls + u32::from(self.scanner.in_call())
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
        if self.stops.is_empty() {
            return tokens.len();
        }
        let (mut scanner, mut cuts) = (self.scanner.clone(), Vec::new());
        let stops_at = tokens.iter().position(|&id| {
            scanner.push(self.bytes_of(id, scanner.in_call()), &self.markers(), &mut cuts);
            scanner.stopped()
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
        scanner.push(self.bytes_of(id, scanner.in_call()), &self.markers(), &mut cuts);
        self.scanner = scanner;
        for cut in cuts {
            match cut {
                Cut::Text(text) => self.text(text, position, pieces),
                Cut::CallOpened { bare } => {
                    self.blank.clear();
                    self.done(ItemState::Complete, position, pieces);
                    let start = if bare { self.uncovered } else { position };
                    self.open = Some(OpenItem { start, text: String::new() });
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
        if self.scanner.in_call() {
            let start = self.open.as_ref().map_or(self.uncovered, |open| open.start);
            let body = self.scanner.call().to_owned();
            self.call(&body, state, end, pieces);
            if early {
                self.open = Some(OpenItem { start, text: String::new() });
            } else {
                self.scanner = Scanner::default();
            }
            return;
        }
        let held = self.scanner.end(early);
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

    fn form(&self) -> Option<&CallForm> {
        if self.tools.is_empty() { None } else { self.language.call_form() }
    }

    fn markers(&self) -> Markers<'_> {
        Markers { stops: &self.stops, form: self.form(), tools: &self.tools }
    }

    /// A control token is text only where it opens or closes a call, or marks a part of one.
    fn bytes_of(&self, id: TokenId, in_call: bool) -> &[u8] {
        if !self.language.is_special(id) {
            return self.language.token_bytes(id);
        }
        let Some(form) = self.form() else { return &[] };
        if form.open_token == Some(id) {
            return form.open.as_bytes();
        }
        if form.close_token == Some(id) {
            return form.close.as_deref().unwrap_or_default().as_bytes();
        }
        match form.mark_tokens.iter().find(|(mark, _)| in_call && *mark == id) {
            Some((_, text)) => text.as_bytes(),
            None => &[],
        }
    }

    fn text(&mut self, text: String, position: u32, pieces: &mut Vec<Piece>) {
        if !self.tools.is_empty() && self.open.is_none() && text.trim().is_empty() {
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
