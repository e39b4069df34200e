//! A vocabulary for tests: every byte, some longer tokens that cross the borders of what they spell, and control tokens.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, unreachable_pub)]

use holdfast_guide::{
    CallBody, CallLayout, CallSpelling, CallableTool, Calls, Guide, GuideError, Guides, Need, Spec, Spelt, Vocabulary,
};
use holdfast_types::{Constraint, TokenId, TokenMask};

/// Control tokens, each spelt here as a character that no test says.
pub const STOP: char = '\u{e000}';
pub const PAUSE: char = '\u{e001}';
pub const OPEN: char = '\u{e002}';
pub const ARGS: char = '\u{e003}';
pub const THINK: char = '\u{e004}';
pub const START: char = '\u{e005}';
pub const END: char = '\u{e006}';
const CONTROLS: [char; 7] = [STOP, PAUSE, OPEN, ARGS, THINK, START, END];

const LONGER: [&str; 16] = [
    "{\"",
    "\":",
    "\": ",
    "\"}",
    "}}",
    "\"}}",
    "}}\n",
    "}}\n</tool_call>",
    "<tool_call>",
    "</tool_call>",
    "\n{\"name\"",
    "tool",
    "look",
    "}}]",
    " [{",
    "é",
];

pub fn token(control: char) -> TokenId {
    256 + LONGER.len() as TokenId + CONTROLS.iter().position(|&c| c == control).unwrap() as TokenId
}

pub const SIZE: u32 = 256 + LONGER.len() as u32 + CONTROLS.len() as u32 + 3;

pub fn guides() -> Guides {
    let words: Vec<Vec<u8>> =
        (0..=255_u8).map(|byte| vec![byte]).chain(LONGER.map(|word| word.as_bytes().to_vec())).collect();
    let bytes = |id: TokenId| words.get(id as usize).map_or(&[][..], Vec::as_slice);
    let is_control = |id: TokenId| (token(STOP)..token(STOP) + 7).contains(&id);
    Guides::new(Vocabulary::new(SIZE, bytes, is_control, &[token(STOP), token(PAUSE)]))
}

/// One token per byte, or the longest tokens; control characters are control tokens.
pub fn tokens(text: &str, longest: bool) -> Vec<TokenId> {
    let mut ids = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let longer = (256..).zip(LONGER).filter(|(_, word)| longest && rest.starts_with(word));
        if CONTROLS.contains(&c) {
            ids.push(token(c));
            rest = &rest[c.len_utf8()..];
        } else if let Some((id, word)) = longer.max_by_key(|(_, word)| word.len()) {
            ids.push(id);
            rest = &rest[word.len()..];
        } else {
            ids.extend(rest.as_bytes()[..c.len_utf8()].iter().map(|&byte| TokenId::from(byte)));
            rest = &rest[c.len_utf8()..];
        }
    }
    ids
}

/// What became of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// It may end here, and go on.
    Whole,
    /// It has to end here.
    Ended,
    /// It has to go on.
    Part,
    /// It may not be said from the token on that begins at this byte.
    No(usize),
}

fn ends(mask: &TokenMask) -> Option<bool> {
    let stops = [STOP, PAUSE].map(|c| mask.allows(token(c)));
    assert_eq!(stops[0], stops[1], "all stop tokens or none");
    let others = (0..SIZE).filter(|&id| id != token(STOP) && id != token(PAUSE)).any(|id| mask.allows(id));
    stops[0].then_some(!others)
}

/// Says the tokens, each under its mask.
pub fn say(guide: &mut Guide, ids: &[TokenId]) -> Said {
    for (at, &id) in ids.iter().enumerate() {
        if !guide.mask().unwrap().allows(id) {
            return Said::No(at);
        }
        guide.accept(id).unwrap();
    }
    match ends(&guide.mask().unwrap()) {
        None => Said::Part,
        Some(false) => Said::Whole,
        Some(true) => Said::Ended,
    }
}

/// Says a text byte by byte and in longer tokens, which must come to the same.
pub fn said(guides: &Guides, spec: &Spec, text: &str) -> Said {
    let bytewise = say(&mut guides.begin(spec).unwrap_or_else(|e| panic!("{e}")), &tokens(text, false));
    let longest = say(&mut guides.begin(spec).unwrap(), &tokens(text, true));
    match (bytewise, longest) {
        (Said::No(_), Said::No(_)) => {}
        (a, b) => assert_eq!(a, b, "{text:?}"),
    }
    bytewise
}

pub fn refusal(guides: &Guides, answer: Constraint) -> GuideError {
    guides.begin(&answers(answer)).expect_err("refused")
}

pub fn answers(answer: Constraint) -> Spec {
    Spec { answer: Some(answer), ..Spec::default() }
}

pub fn schema(text: &str) -> Spec {
    answers(Constraint::JsonSchema(text.to_owned()))
}

fn text(text: &str) -> Spelt {
    Spelt { text: text.to_owned(), token: None }
}

fn marked(text: &str, control: char) -> Spelt {
    Spelt { text: text.to_owned(), token: Some(token(control)) }
}

fn object(arguments_key: &str) -> CallBody {
    CallBody::Object { name_key: "name".to_owned(), arguments_key: arguments_key.to_owned() }
}

pub fn hermes() -> CallSpelling {
    CallSpelling {
        open: text("<tool_call>"),
        close: Some(text("</tool_call>")),
        layout: CallLayout::Enclosed,
        body: object("arguments"),
    }
}

pub fn pebble() -> CallSpelling {
    CallSpelling {
        open: marked("<|tool_call|>", OPEN),
        close: None,
        layout: CallLayout::Enclosed,
        body: object("arguments"),
    }
}

pub fn llama(opened: bool) -> CallSpelling {
    let open = if opened { marked("<|python_tag|>", OPEN) } else { text("<|python_tag|>") };
    CallSpelling { open, close: None, layout: CallLayout::Objects, body: object("parameters") }
}

pub fn mistral_array() -> CallSpelling {
    CallSpelling {
        open: marked("[TOOL_CALLS]", OPEN),
        close: None,
        layout: CallLayout::Array,
        body: object("arguments"),
    }
}

pub fn mistral_named() -> CallSpelling {
    CallSpelling { body: CallBody::Named { mark: marked("[ARGS]", ARGS) }, ..mistral_array() }
}

/// `look` takes what is given, `stop` any object.
pub fn calls(spelling: CallSpelling, look: Option<&str>, need: Need) -> Calls {
    let tools = vec![
        CallableTool { name: "look".to_owned(), arguments: look.map(str::to_owned) },
        CallableTool { name: "stop".to_owned(), arguments: None },
    ];
    Calls { spelling, tools, need, single: false }
}

pub fn speech(calls: Calls) -> Spec {
    Spec { calls: Some(calls), ..Spec::default() }
}
