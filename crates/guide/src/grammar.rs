//! A [`Spec`] as grammars of llguidance: one in Lark's notation that says how answer and calls follow each other, and one for each
//! JSON value in it.
//!
//! Free text is any text without the opening of a call. Where text opens a call, the text up to and with the opening is one lexeme
//! that ends as soon as it can, so that from there on only a call can follow; where a control token does, the token ends it.
//! Other control tokens may stand in free text, as without a guide.

use std::fmt::Write as _;

use holdfast_types::Constraint;
use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::regex_to_lark;
use serde_json::{Value, json};

use crate::schema::{self, JsonSchema};
use crate::{
    CallBody, CallLayout, CallSpelling, CallableTool, Calls, GuideError, Need, Spec, Spelt, Thinking, Vocabulary,
};

/// White space around a call.
const SPACE: &str = r"SPACE: /[ \t\r\n]{1,16}/";

/// A schema inside of a grammar, and whose it is.
pub(crate) struct Part {
    /// The tool whose arguments it holds; `None`: it holds the answer.
    pub(crate) tool: Option<String>,
    pub(crate) schema: JsonSchema,
}

/// The grammar of a spec, and the schemas that it is made of.
///
/// # Errors
/// When a schema is no JSON, an expression or a choice is empty.
pub(crate) fn grammar(spec: &Spec, vocabulary: &Vocabulary) -> Result<(TopLevelGrammar, Vec<Part>), GuideError> {
    let mut parts = Vec::new();
    let answer = spec.answer.as_ref().map(|answer| answer_grammar(answer, &mut parts)).transpose()?;
    if spec.calls.is_none() && spec.thinking.is_none() {
        let answer = answer.unwrap_or_else(|| GrammarWithLexer::from_lark("start: ANY\nANY: /(?s:.*)/".to_owned()));
        return Ok((TopLevelGrammar::from_grammar(answer), parts));
    }
    let mut rules = Rules { text: String::new(), grammars: Vec::new(), parts };
    rules.rule("ANY: /(?s:.*)/");
    rules.rule(SPACE);
    let has_answer = answer.is_some();
    rules.grammars.extend(answer);
    rules.start(spec, has_answer, vocabulary)?;
    let main = GrammarWithLexer { name: Some("main".to_owned()), ..GrammarWithLexer::from_lark(rules.text) };
    let grammars = std::iter::once(main).chain(rules.grammars).collect();
    Ok((TopLevelGrammar { grammars, max_tokens: None }, rules.parts))
}

fn answer_grammar(answer: &Constraint, parts: &mut Vec<Part>) -> Result<GrammarWithLexer, GuideError> {
    let grammar = match answer {
        Constraint::JsonSchema(text) => {
            let schema = JsonSchema::parse(text)?;
            let whole = GrammarWithLexer::from_json_schema(schema.whole());
            parts.push(Part { tool: None, schema });
            whole
        }
        Constraint::Regex(expression) => {
            if expression.is_empty() {
                return Err(GuideError::Form("an empty expression lets nothing be said".to_owned()));
            }
            // A backslash at the end would be lost on the way to Lark's notation.
            if expression.bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 1 {
                return Err(GuideError::Form("the expression ends in the middle of an escape".to_owned()));
            }
            GrammarWithLexer::from_lark(format!("start: /{}/", regex_to_lark(expression, "")))
        }
        Constraint::Grammar(text) => GrammarWithLexer::from_lark(text.clone()),
        Constraint::Choice(values) => {
            if values.is_empty() || values.iter().any(String::is_empty) {
                return Err(GuideError::Form("a choice is among strings that are not empty, at least one".to_owned()));
            }
            let values: Vec<_> = values.iter().map(|value| literal(value)).collect();
            GrammarWithLexer::from_lark(format!("start: CHOICE\nCHOICE: {}", values.join(" | ")))
        }
    };
    Ok(GrammarWithLexer { name: Some("answer".to_owned()), ..grammar })
}

/// A string in Lark's notation, which is JSON's.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

fn spelt(spelt: &Spelt) -> String {
    match spelt.token {
        Some(token) => format!("<[{token}]>"),
        None => literal(&spelt.text),
    }
}

/// The main grammar on its way, and those that it refers to.
struct Rules {
    text: String,
    grammars: Vec<GrammarWithLexer>,
    parts: Vec<Part>,
}

impl Rules {
    fn rule(&mut self, rule: &str) {
        // Writing into a string cannot fail.
        let _ = writeln!(self.text, "{rule}");
    }

    fn json(&mut self, name: String, schema: Value) {
        self.grammars.push(GrammarWithLexer { name: Some(name), ..GrammarWithLexer::from_json_schema(schema) });
    }

    fn start(&mut self, spec: &Spec, has_answer: bool, vocabulary: &Vocabulary) -> Result<(), GuideError> {
        let start = match &spec.thinking {
            Some(thinking @ Thinking::Channels { .. }) => self.messages(thinking, spec.calls.as_ref(), has_answer)?,
            thinking => {
                let speech = match &spec.calls {
                    None => "@answer".to_owned(),
                    Some(calls) => self.speech(calls, thinking.as_ref(), has_answer, vocabulary)?,
                };
                match thinking {
                    Some(Thinking::Enclosed { open, close, begun }) => {
                        self.thought(open, close, *begun);
                        format!("thought{} SPACE? ({speech})", if *begun { "" } else { "?" })
                    }
                    _ => speech,
                }
            }
        };
        self.rule(&format!("start: {start}"));
        Ok(())
    }

    /// An answer or calls, where nothing comes before them.
    fn speech(
        &mut self,
        calls: &Calls,
        thinking: Option<&Thinking>,
        has_answer: bool,
        vocabulary: &Vocabulary,
    ) -> Result<String, GuideError> {
        let may_call = !calls.tools.is_empty();
        // Whether calls may begin the answer without being opened.
        let bare = calls.spelling.layout == CallLayout::Objects;
        if may_call {
            self.calls(calls)?;
        }
        let open = spelt(&calls.spelling.open);
        let opened = if bare { format!("{open} SPACE? calls") } else { format!("{open} calls") };
        Ok(match (calls.need, has_answer) {
            (_, true) if !may_call => "@answer".to_owned(),
            (_, false) if !may_call => {
                self.free(calls, thinking, vocabulary);
                "free".to_owned()
            }
            (Need::Required, _) if bare => format!("calls | {opened}"),
            (Need::Required, _) => opened,
            (Need::Optional, true) if bare => format!("@answer | calls | {opened}"),
            (Need::Optional, true) => format!("@answer | {opened}"),
            (Need::Optional, false) => {
                self.free(calls, thinking, vocabulary);
                let bare = if bare { "calls | " } else { "" };
                match calls.spelling.open.token {
                    Some(_) => format!("{bare}free | free {opened}"),
                    None => format!("{bare}free | lead calls"),
                }
            }
        })
    }

    /// Thoughts between marks, where text that opens a call opens none.
    fn thought(&mut self, open: &Spelt, close: &Spelt, begun: bool) {
        let open = match open.token {
            _ if begun => "",
            Some(token) => &format!("SPACE? <[{token}]> "),
            // One lexeme with the space, as free text is: the longer of two wins.
            None => {
                self.rule(&format!(r"THINK: /[ \t\r\n]{{0,16}}/ {}", literal(&open.text)));
                "THINK "
            }
        };
        match close.token {
            Some(token) => self.rule(&format!("thought: {open}ANY? <[{token}]>")),
            None => {
                self.rule(&format!("THOUGHT: ANY {}", literal(&close.text)));
                self.rule("thinking[lazy]: THOUGHT");
                self.rule(&format!("thought: {open}thinking"));
            }
        }
    }

    /// Harmony: messages of thoughts or remarks, then the answer's or a call's. Whoever generates has opened the first one.
    fn messages(&mut self, thinking: &Thinking, calls: Option<&Calls>, has_answer: bool) -> Result<String, GuideError> {
        let Thinking::Channels { start, channel, constrain, message, end } = thinking else { return Ok(String::new()) };
        self.rule("ASIDE: \"analysis\" | \"commentary\"");
        self.rule(&format!("aside: <[{channel}]> ASIDE <[{message}]> ANY? <[{end}]> <[{start}]> \"assistant\""));
        let content = if has_answer { "@answer" } else { "ANY?" };
        self.rule(&format!("answer: <[{channel}]> \"final\" <[{message}]> {content}"));
        let calls = calls.filter(|calls| !calls.tools.is_empty());
        if let Some(calls) = calls {
            self.named_calls(&format!("\" \" <[{constrain}]> \"json\" <[{message}]>"), &calls.tools)?;
            self.rule(&format!("call: <[{channel}]> \"commentary to=functions.\" named"));
        }
        Ok(match calls {
            None => "aside* answer",
            Some(calls) if calls.need == Need::Required => "aside* call",
            Some(_) => "aside* (answer | call)",
        }
        .to_owned())
    }

    /// Text that opens no call, and text up to the opening of one. Neither begins with a thought, which is a rule of its own.
    fn free(&mut self, calls: &Calls, thinking: Option<&Thinking>, vocabulary: &Vocabulary) {
        let CallSpelling { open, close, layout, body } = &calls.spelling;
        let mark = match body {
            CallBody::Named { mark } => mark.token,
            CallBody::Object { .. } => None,
        };
        let think = match thinking {
            Some(Thinking::Enclosed { open, .. }) => Some(open),
            _ => None,
        };
        let think_token = think.and_then(|think| think.token);
        let marks: Vec<_> = [open.token, close.as_ref().and_then(|close| close.token), mark, think_token]
            .into_iter()
            .flatten()
            .collect();
        self.rule(&format!("OPENS: ANY {} ANY", literal(&open.text)));
        // An object at the start might be a call: where calls may be made it is one, else it is any that does not begin like one.
        let head = match (layout, body) {
            (CallLayout::Objects, CallBody::Object { name_key, .. }) if calls.tools.is_empty() => {
                let key = literal(&format!("{name_key}\""));
                self.rule(&format!(r#"BARE: /[ \t\r\n]*\{{[ \t\r\n]*"/ ("type\"" | {key}) ANY"#));
                " & ~BARE"
            }
            (CallLayout::Objects, _) => r" & ~/[ \t\r\n]*\{(?s:.*)/",
            _ => "",
        };
        let head = match think.filter(|think| think.token.is_none()) {
            Some(think) => {
                self.rule(&format!(r"THINKS: /[ \t\r\n]{{0,16}}/ {} ANY", literal(&think.text)));
                &format!("{head} & ~THINKS")
            }
            None => head,
        };
        self.rule(&format!("TEXT: /(?s:.+)/ & ~OPENS{head}"));
        let other = vocabulary.control_ranges(&marks);
        match &other {
            Some(other) => self.rule(&format!("free: (TEXT? {other})* TEXT?")),
            None => self.rule("free: TEXT?"),
        }
        if open.token.is_none() {
            let before = other.map(|other| format!("(TEXT? {other})* ")).unwrap_or_default();
            let space = if *layout == CallLayout::Objects { " SPACE?" } else { "" };
            self.rule(&format!("LEAD: (/(?s:.+)/{head})? {}", literal(&open.text)));
            self.rule("opening[lazy]: LEAD");
            self.rule(&format!("lead: {before}opening{space}"));
        }
    }

    /// Calls after the first opening.
    fn calls(&mut self, calls: &Calls) -> Result<(), GuideError> {
        let CallSpelling { open, close, layout, body } = &calls.spelling;
        let call = match body {
            CallBody::Object { name_key, arguments_key } => {
                let schema = self.call_schema(name_key, arguments_key, calls)?;
                self.json("call".to_owned(), schema);
                "@call".to_owned()
            }
            CallBody::Named { mark } => {
                self.named_calls(&spelt(mark), &calls.tools)?;
                "named".to_owned()
            }
        };
        let open = spelt(open);
        let (one, next) = match (layout, body) {
            (CallLayout::Objects, _) => (call.clone(), format!("SPACE? \";\" SPACE? {call}")),
            (CallLayout::Array, CallBody::Object { .. }) => (format!("SPACE? {call}"), String::new()),
            (CallLayout::Array, CallBody::Named { .. }) => (call.clone(), format!("{open} {call}")),
            (CallLayout::Enclosed, _) => match close {
                Some(close) => {
                    let one = format!("SPACE? {call} SPACE? {}", spelt(close));
                    (one.clone(), format!("SPACE? {open} {one}"))
                }
                None => (format!("SPACE? {call}"), String::new()),
            },
        };
        let more = if calls.single || next.is_empty() { String::new() } else { format!(" ({next})*") };
        self.rule(&format!("calls: {one}{more}"));
        Ok(())
    }

    /// One call, or an array of them, as a JSON schema.
    fn call_schema(&mut self, name_key: &str, arguments_key: &str, calls: &Calls) -> Result<Value, GuideError> {
        let in_array = calls.spelling.layout == CallLayout::Array;
        let object = |name: Value, arguments: Value| {
            json!({
                "type": "object",
                "properties": { name_key: name, arguments_key: arguments },
                "required": [name_key, arguments_key],
                "additionalProperties": false,
            })
        };
        let mut options = Vec::new();
        for tool in &calls.tools {
            let place =
                format!("{}/anyOf/{}/properties/{arguments_key}", if in_array { "/items" } else { "" }, options.len());
            if let Some(schema) = self.arguments(tool)? {
                options.push(object(json!({ "const": tool.name }), schema.at(&place)));
            }
        }
        let others: Vec<_> =
            calls.tools.iter().filter(|tool| tool.arguments.is_none()).map(|tool| &tool.name).collect();
        if !others.is_empty() {
            options.push(object(json!({ "enum": others }), json!({ "type": "object" })));
        }
        let call = json!({ "anyOf": options });
        let whole = match in_array {
            true if calls.single => json!({ "type": "array", "items": call, "minItems": 1, "maxItems": 1 }),
            true => json!({ "type": "array", "items": call, "minItems": 1 }),
            false => call,
        };
        Ok(schema::spaced(whole))
    }

    fn named_calls(&mut self, mark: &str, tools: &[CallableTool]) -> Result<(), GuideError> {
        let mut calls = Vec::new();
        for (at, tool) in tools.iter().enumerate() {
            let schema = self.arguments(tool)?;
            let whole = schema.map_or_else(|| schema::spaced(json!({ "type": "object" })), |schema| schema.whole());
            self.json(format!("arguments{at}"), whole);
            calls.push(format!("{} {mark} @arguments{at}", literal(&tool.name)));
        }
        self.rule(&format!("named: {}", calls.join(" | ")));
        Ok(())
    }

    /// The schema of a tool's arguments, if they are held to one.
    fn arguments(&mut self, tool: &CallableTool) -> Result<Option<JsonSchema>, GuideError> {
        let Some(text) = &tool.arguments else { return Ok(None) };
        let schema = JsonSchema::of_arguments(text).map_err(|error| error.of_tool(&tool.name))?;
        self.parts.push(Part { tool: Some(tool.name.clone()), schema: schema.clone() });
        Ok(Some(schema))
    }
}
