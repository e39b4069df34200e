//! Chat templates: Jinja source to a prompt's text.
//!
//! In: the templates of a model by name, its special tokens by role, and for each rendering messages, tools and the session's
//! pinned date. Out: text. The environment is what templates are written for (Hugging Face's): blocks are trimmed, Python's
//! methods exist, `tojson` writes as Python does, `raise_exception` and `strftime_now` are there; the latter tells the
//! pinned date, never the clock. Deliberately not here: which messages there are, and tokens.

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, State, Value as Jinja};
use serde_json::{Value, json};

use holdfast_types::{Digest, ReasoningEffort};

use crate::template_meter::{self, INDENT_MAX, MADE_BYTES_MAX};
use crate::template_source::metered;
use crate::{overrides, reasoning};

/// Name of the template that a session gets when it names none.
pub const DEFAULT: &str = "default";
/// The template that a session with tools gets when it names none and the model has it.
const TOOL_USE: &str = "tool_use";
/// Nesting beyond which a value is not written as JSON.
const JSON_DEPTH_MAX: usize = 128;

/// The compiled templates of a model.
pub(crate) struct Templates {
    environment: Environment<'static>,
    sources: BTreeMap<String, String>,
    /// Those of them that are rendered otherwise than published.
    replaced: BTreeMap<String, String>,
    specials: serde_json::Map<String, Value>,
}

/// What one rendering is made of.
pub(crate) struct Rendering<'a> {
    pub(crate) messages: &'a [Value],
    pub(crate) tools: &'a [Value],
    pub(crate) date: &'a str,
    pub(crate) effort: Option<ReasoningEffort>,
    pub(crate) generate: bool,
}

impl Templates {
    /// Compiles the templates. `specials` are `bos_token` and its like.
    ///
    /// On failure: the template's name and what is wrong.
    pub(crate) fn new(
        sources: BTreeMap<String, String>,
        specials: serde_json::Map<String, Value>,
    ) -> Result<Self, (String, String)> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let syntax = syntax.map_err(|e| (DEFAULT.to_owned(), e.to_string()))?;
        environment.set_syntax(syntax.clone());
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        template_meter::install(&mut environment);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", |message: String| -> Result<Jinja, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        let mut replaced = BTreeMap::new();
        for (name, source) in &sources {
            let mut compile = |key: String, source: &str| {
                let source = metered(&key, &overrides::readable(source), syntax.clone());
                let source = source.map_err(|problem| (name.clone(), problem))?;
                environment.add_template_owned(key, source).map_err(|e| (name.clone(), first_line(&e)))
            };
            match overrides::rendered_for(source) {
                Some(ours) => {
                    compile(published_key(name), source)?;
                    compile(name.clone(), &ours)?;
                    replaced.insert(name.clone(), ours);
                }
                None => compile(name.clone(), source)?,
            }
        }
        Ok(Self { environment, sources, replaced, specials })
    }

    /// The template for a session: the one it names, else `tool_use` if there are tools, else `default`.
    pub(crate) fn resolve(&self, asked: &str, has_tools: bool) -> Option<&str> {
        let name = match asked {
            "" if has_tools && self.sources.contains_key(TOOL_USE) => TOOL_USE,
            "" => DEFAULT,
            name => name,
        };
        self.sources.get_key_value(name).map(|(name, _)| name.as_str())
    }

    /// Every name, sorted.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.sources.keys().map(String::as_str)
    }

    /// The published source; empty for an unknown name.
    pub(crate) fn source(&self, name: &str) -> &str {
        self.sources.get(name).map_or("", String::as_str)
    }

    /// Whether something else is rendered in its place.
    pub(crate) fn is_replaced(&self, name: &str) -> bool {
        self.replaced.contains_key(name)
    }

    /// The source that is rendered; empty for an unknown name.
    pub(crate) fn rendered_source(&self, name: &str) -> &str {
        self.replaced.get(name).map_or(self.source(name), String::as_str)
    }

    /// BLAKE3 of one source.
    pub(crate) fn digest_of(&self, name: &str) -> Digest {
        digest_of(self.source(name))
    }

    /// BLAKE3 over all names, sources and special tokens, and what is rendered in a source's place: whatever decides what the
    /// templates render.
    pub(crate) fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"holdfast templates 1\n");
        hasher.update(json!([self.sources, self.specials]).to_string().as_bytes());
        if !self.replaced.is_empty() {
            hasher.update(json!(self.replaced).to_string().as_bytes());
        }
        Digest(*hasher.finalize().as_bytes())
    }

    /// Renders as published, where something else is rendered in its place.
    pub(crate) fn render_published(&self, name: &str, rendering: &Rendering<'_>) -> Result<String, String> {
        if self.is_replaced(name) { self.render(&published_key(name), rendering) } else { self.render(name, rendering) }
    }

    /// Renders; the error is the template's words.
    pub(crate) fn render(&self, name: &str, rendering: &Rendering<'_>) -> Result<String, String> {
        let template = self.environment.get_template(name).map_err(|e| first_line(&e))?;
        let mut context = self.specials.clone();
        context.insert("messages".to_owned(), rendering.messages.into());
        let tools = if rendering.tools.is_empty() { Value::Null } else { rendering.tools.into() };
        context.insert("tools".to_owned(), tools);
        context.insert("add_generation_prompt".to_owned(), rendering.generate.into());
        reasoning::tell(rendering.effort, &mut context);
        let date = rendering.date.to_owned();
        let now = Jinja::from_function(move |format: String| {
            strftime(&date, &format).map_err(|problem| Error::new(ErrorKind::InvalidOperation, problem))
        });
        let context: BTreeMap<String, Jinja> = context
            .into_iter()
            .map(|(key, value)| (key, Jinja::from(Serde(value))))
            .chain([("strftime_now".to_owned(), now)])
            .collect();
        template.render(Jinja::from(context)).map_err(|e| first_line(&e))
    }
}

/// Where the published form of a replaced template is found. No file's name holds the character.
fn published_key(name: &str) -> String {
    format!("{name}\0published")
}

fn digest_of(source: &str) -> Digest {
    Digest(*blake3::hash(source.as_bytes()).as_bytes())
}

fn first_line(error: &Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Python's `json.dumps(value, ensure_ascii=False, …)`, as Hugging Face's templates have it.
fn tojson(state: &mut State<'_, '_>, value: &Jinja, options: Kwargs) -> Result<String, Error> {
    template_meter::rebuilt(state, value)?;
    let wrong = |e: String| Error::new(ErrorKind::BadSerialization, e);
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sort: Option<bool> = options.get("sort_keys")?;
    // Accepted because templates pass it; what they ask for is what happens.
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    if let Some(width) = indent.filter(|width| *width > INDENT_MAX) {
        return Err(wrong(format!("tojson with an indent of {width}; at most {INDENT_MAX}")));
    }
    if ascii == Some(true) {
        return Err(wrong("tojson with ensure_ascii=true is not supported".to_owned()));
    }
    let (item, key) = match separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }, ": "),
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(_) => return Err(wrong("separators are two strings".to_owned())),
    };
    let value = serde_json::to_value(value).map_err(|e| wrong(e.to_string()))?;
    let style = Style { item, key, indent, sort: sort.unwrap_or(false) };
    let mut out = String::new();
    style.write(&value, 0, &mut out).map_err(wrong)?;
    Ok(out)
}

struct Style<'a> {
    item: &'a str,
    key: &'a str,
    indent: Option<usize>,
    sort: bool,
}

impl Style<'_> {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), String> {
        if depth > JSON_DEPTH_MAX {
            return Err(format!("a value is nested deeper than {JSON_DEPTH_MAX}"));
        }
        if out.len() > MADE_BYTES_MAX {
            return Err(format!("a value takes more than {MADE_BYTES_MAX} bytes"));
        }
        match value {
            Value::Array(list) if !list.is_empty() => {
                self.block(['[', ']'], list.iter(), depth, out, |item, out| self.write(item, depth + 1, out))
            }
            Value::Object(map) if !map.is_empty() => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.sort {
                    entries.sort_by_key(|(key, _)| *key);
                }
                self.block(['{', '}'], entries.into_iter(), depth, out, |(key, value), out| {
                    out.push_str(&Value::from(key.as_str()).to_string());
                    out.push_str(self.key);
                    self.write(value, depth + 1, out)
                })
            }
            plain => {
                out.push_str(&plain.to_string());
                Ok(())
            }
        }
    }

    fn block<T>(
        &self,
        brackets: [char; 2],
        entries: impl Iterator<Item = T>,
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(T, &mut String) -> Result<(), String>,
    ) -> Result<(), String> {
        let line = |depth: usize, out: &mut String| {
            if let Some(width) = self.indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', width * depth));
            }
        };
        out.push(brackets[0]);
        for (i, entry) in entries.enumerate() {
            if i > 0 {
                out.push_str(self.item);
            }
            line(depth + 1, out);
            write(entry, out)?;
        }
        line(depth, out);
        out.push(brackets[1]);
        Ok(())
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// C's strftime at midnight of an ISO 8601 date (`2026-11-20`; a time after it is not looked at).
fn strftime(date: &str, format: &str) -> Result<String, String> {
    let wrong = || format!("the session's date {date:?} is not YYYY-MM-DD");
    let day_text = date.get(..10).ok_or_else(wrong)?;
    let numbers: Vec<u32> = day_text.split('-').map(str::parse).collect::<Result<_, _>>().map_err(|_| wrong())?;
    let &[year, month @ 1..=12, day @ 1..=31] = numbers.as_slice() else { return Err(wrong()) };
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month as usize - 1];
    let day_of_year = before + day + u32::from(leap && month > 2);
    let past = year.saturating_sub(1);
    // Days since Sunday, 31 December of the year before year 1, in the proleptic Gregorian calendar.
    let weekday = (past * 365 + past / 4 - past / 100 + past / 400 + day_of_year) % 7;
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[weekday as usize]);

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = chars.next();
        }
        let number = |n: u32| if unpadded { n.to_string() } else { format!("{n:02}") };
        out.push_str(&match directive {
            Some('Y') => format!("{year:04}"),
            Some('y') => number(year % 100),
            Some('m') => number(month),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('d') => number(day),
            Some('e') => format!("{day:2}"),
            Some('j') => format!("{day_of_year:03}"),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('H' | 'M' | 'S') => number(0),
            Some('I') => number(12),
            Some('p') => "AM".to_owned(),
            Some('F') => format!("{year:04}-{month:02}-{day:02}"),
            Some('T') => "00:00:00".to_owned(),
            Some('%') => "%".to_owned(),
            other => {
                return Err(format!("strftime_now: %{} is not supported", other.map_or(String::new(), String::from)));
            }
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn render(source: &str, messages: &[Value]) -> Result<String, String> {
        let sources = BTreeMap::from([(DEFAULT.to_owned(), source.to_owned())]);
        let specials = json!({"bos_token": "<s>"}).as_object().unwrap().clone();
        let templates = Templates::new(sources, specials).map_err(|(_, problem)| problem)?;
        templates.render(DEFAULT, &Rendering { messages, tools: &[], date: "2026-11-20", effort: None, generate: true })
    }

    #[test]
    fn templates_see_what_they_are_written_for() {
        let messages = [json!({"role": "user", "content": " hi <b> "})];
        let source =
            "{{ bos_token }}{% for m in messages %}\n{{ m.content.strip() | upper }}{% endfor %}{{ tools is none }}";
        assert_eq!(render(source, &messages).unwrap().to_lowercase(), "<s>hi <b>true");
        assert_eq!(render("{{ strftime_now('%d %b %Y') }}", &[]).unwrap(), "20 Nov 2026");
    }

    #[test]
    fn tojson_writes_as_python_does() {
        let messages = [json!({"b": [1, 2.5, "é<"], "a": {}})];
        let plain = render("{{ messages[0] | tojson }}", &messages).unwrap();
        assert_eq!(plain, r#"{"b": [1, 2.5, "é<"], "a": {}}"#);
        let compact = render("{{ messages[0] | tojson(separators=(',', ':'), sort_keys=true) }}", &messages).unwrap();
        assert_eq!(compact, r#"{"a":{},"b":[1,2.5,"é<"]}"#);
        let pretty = render("{{ messages[0] | tojson(indent=2) }}", &messages).unwrap();
        assert_eq!(pretty, "{\n  \"b\": [\n    1,\n    2.5,\n    \"é<\"\n  ],\n  \"a\": {}\n}");
    }

    #[test]
    fn a_template_can_refuse() {
        let text = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
        assert!(text.contains("roles must alternate"), "{text}");
        assert!(render("{% if %}", &[]).is_err());
    }

    #[test]
    fn dates_are_the_sessions() {
        assert_eq!(strftime("2026-11-20", "%d %b %Y, %A %j").unwrap(), "20 Nov 2026, Friday 324");
        assert_eq!(strftime("2024-02-29T12:00:00Z", "%a %-d %B %y").unwrap(), "Thu 29 February 24");
        assert_eq!(strftime("2000-03-01", "%F %A").unwrap(), "2000-03-01 Wednesday");
        for bad in ["", "today", "2026-13-01", "2026-1-1"] {
            assert!(strftime(bad, "%Y").is_err(), "{bad}");
        }
        assert!(strftime("2026-01-01", "%Q").is_err());
    }
}
