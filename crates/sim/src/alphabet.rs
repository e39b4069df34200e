//! A language of a few characters: the text side of the model that simulated worlds serve.
//!
//! In: items and tokens. Out: tokens and bytes, in microseconds and with everything that makes folding hard and that a real
//! vocabulary would meet once in a million tokens: stop tokens, calls that open and never close, characters split over tokens,
//! tokens of several characters. Deliberately not here: what a model samples (the device).

use holdfast_types::{Digest, Item, ItemContent, Role, SamplingOverrides, TokenId};
use holdfast_worker::language::{CallForm, Language, LogEnd, Prompt, ReadCall};

/// Ends a turn; sampled.
pub const END: TokenId = 0;
/// Opens a tool call.
pub const OPEN: TokenId = 1;
/// Closes a tool call.
pub const CLOSE: TokenId = 2;
/// The generation prompt.
pub const ASSISTANT: TokenId = 3;
const USER: TokenId = 4;
const SYSTEM: TokenId = 5;
const TOOL: TokenId = 6;
/// Tokens below are control tokens.
const SPECIALS: TokenId = 7;

/// What control tokens look like as text.
const MARKS: [&str; SPECIALS as usize] = ["<end>", "<call>", "</call>", "<a>", "<u>", "<s>", "<t>"];

/// Tokens of text after the control tokens; some split a character, some hold several.
const PIECES: [&[u8]; 37] = [
    b"a",
    b"b",
    b"c",
    b"d",
    b"e",
    b"f",
    b"g",
    b"h",
    b"i",
    b"k",
    b"l",
    b"m",
    b"n",
    b"o",
    b"r",
    b"s",
    b"t",
    b"u",
    b"0",
    b"1",
    b"2",
    b"{",
    b"}",
    b"\"",
    b":",
    b",",
    b" ",
    b"\n",
    b"clock",
    b"{}",
    b"ab",
    b"st",
    b"op",
    b"\xC3",
    b"\xA9",
    b"\xF0\x9F",
    b"\x98\x80",
];

/// What stands for a character that no token has.
const UNKNOWN: TokenId = SPECIALS + 26;

/// The language; see the module.
#[derive(Debug)]
pub struct Alphabet {
    context_limit: u32,
    defaults: SamplingOverrides,
    call_form: CallForm,
}

impl Alphabet {
    /// The language of a model with this context.
    pub fn new(context_limit: u32) -> Self {
        Self {
            context_limit,
            defaults: SamplingOverrides { temperature: Some(1.0), ..SamplingOverrides::default() },
            call_form: CallForm {
                open: MARKS[OPEN as usize].to_owned(),
                open_token: Some(OPEN),
                close: Some(MARKS[CLOSE as usize].to_owned()),
                close_token: Some(CLOSE),
                name_mark: Some(String::new()),
                ..CallForm::default()
            },
        }
    }

    /// Size of the vocabulary.
    pub const VOCAB: u32 = SPECIALS + PIECES.len() as u32;

    fn text(&self, text: &str, out: &mut Vec<TokenId>) {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let longest = PIECES.iter().zip(SPECIALS..).filter(|(piece, _)| rest.starts_with(piece));
            match longest.max_by_key(|(piece, _)| piece.len()) {
                Some((piece, id)) => {
                    out.push(id);
                    rest = &rest[piece.len()..];
                }
                None => {
                    out.push(UNKNOWN);
                    rest = &rest[1..];
                }
            }
        }
    }
}

impl Language for Alphabet {
    fn token_bytes(&self, id: TokenId) -> &[u8] {
        match id.checked_sub(SPECIALS) {
            None => MARKS[id as usize].as_bytes(),
            Some(at) => PIECES.get(at as usize).copied().unwrap_or_default(),
        }
    }

    fn is_special(&self, id: TokenId) -> bool {
        id < SPECIALS
    }

    fn stop_tokens(&self) -> &[TokenId] {
        &[END]
    }

    fn vocab_size(&self) -> u32 {
        Self::VOCAB
    }

    fn context_limit(&self) -> u32 {
        self.context_limit
    }

    fn generation_defaults(&self) -> &SamplingOverrides {
        &self.defaults
    }

    fn revision(&self) -> (Digest, Digest, Digest) {
        (Digest([1; 32]), Digest([2; 32]), Digest([3; 32]))
    }

    fn has_template(&self, name: &str) -> bool {
        name.is_empty()
    }

    fn call_form(&self) -> Option<&CallForm> {
        Some(&self.call_form)
    }

    fn read_call(&self, body: &str) -> ReadCall {
        let at = body.find(['{', ' ', '\n']).unwrap_or(body.len());
        let (name, arguments) = body.split_at(at);
        let parse_error = match arguments.trim() {
            "{}" => None,
            _ => Some("the arguments are not the empty object".to_owned()),
        };
        ReadCall { name: name.to_owned(), arguments: arguments.to_owned(), parse_error }
    }

    fn render(&self, prompt: &Prompt<'_>, end: LogEnd, items: &[Item], generate: bool) -> Result<Vec<TokenId>, String> {
        let mut out = Vec::new();
        if end == LogEnd::Start {
            out.push(SYSTEM);
            self.text(prompt.date, &mut out);
            self.text(prompt.instructions, &mut out);
            prompt.tools.iter().for_each(|tool| self.text(&tool.name, &mut out));
            out.push(END);
        }
        for item in items {
            match &item.content {
                ItemContent::Message { role, parts } => {
                    out.push(match role {
                        Role::System | Role::Developer => SYSTEM,
                        Role::User => USER,
                        Role::Assistant => ASSISTANT,
                    });
                    parts.iter().for_each(|part| self.text(part.text(), &mut out));
                }
                ItemContent::ToolCall { name, arguments, .. } => {
                    out.extend([ASSISTANT, OPEN]);
                    self.text(name, &mut out);
                    self.text(arguments, &mut out);
                    out.push(CLOSE);
                }
                ItemContent::ToolResult { parts, .. } => {
                    out.push(TOOL);
                    parts.iter().for_each(|part| self.text(part.text(), &mut out));
                }
                ItemContent::Reasoning { .. } => return Err("this language has no form for reasoning".to_owned()),
            }
            out.push(END);
        }
        if generate {
            out.push(ASSISTANT);
        }
        Ok(out)
    }

    fn closing(&self, end: LogEnd) -> Vec<TokenId> {
        if end.is_open() { vec![END] } else { Vec::new() }
    }
}
