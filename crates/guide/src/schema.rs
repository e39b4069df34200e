//! JSON schemas on their way into a grammar, and the place of what is wrong with one.
//!
//! In: the text of a schema. Out: the same schema as llguidance takes it, whole or at a place inside of a greater one; and, when it
//! was refused, the JSON pointer of the innermost part that is refused by itself. What llguidance does not know of JSON Schema
//! (2020-12) is refused, never ignored; keywords that no draft knows are annotations. Deliberately not here: validation of values.

use serde_json::{Map, Value, json};

use crate::GuideError;

/// White space between the parts of a JSON value: a space, or a line break and its indentation. More would let a model that has
/// lost its way fill its budget with nothing.
const SPACE: &str = r" |\r?\n[ \t]{0,32}";
/// Keyword under which llguidance takes its options.
const OPTIONS: &str = "x-guidance";
/// Keywords whose values are data, not schemas.
const DATA: [&str; 5] = ["const", "enum", "default", "examples", "required"];
/// Keywords that hold a schema, a list of them, or schemas by name.
const SINGLE: [&str; 4] = ["items", "additionalItems", "additionalProperties", "$ref"];
const LISTS: [&str; 5] = ["anyOf", "oneOf", "allOf", "prefixItems", "items"];
const MAPS: [&str; 2] = ["properties", "patternProperties"];
/// References that are followed from one to the next before they count as a circle.
const REFERENCES_MAX: usize = 32;
/// Values that may take the place of references in one schema.
const SPELT_OUT_MAX: usize = 10_000;
/// Parts that are tried by themselves to find the one that is wrong.
const TRIALS_MAX: usize = 64;

/// A schema that is an object or a boolean.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct JsonSchema(Value);

/// Adds the rule on white space to a schema that begins a grammar.
pub(crate) fn spaced(mut whole: Value) -> Value {
    if let Some(map) = whole.as_object_mut() {
        map.insert(OPTIONS.to_owned(), json!({ "whitespace_pattern": SPACE }));
    }
    whole
}

impl JsonSchema {
    /// Reads a schema.
    pub(crate) fn parse(text: &str) -> Result<Self, GuideError> {
        let wrong = |problem: String| GuideError::Schema { path: String::new(), problem };
        match serde_json::from_str(text) {
            Ok(schema @ (Value::Object(_) | Value::Bool(true))) => Ok(Self(schema)),
            Ok(Value::Bool(false)) => Err(wrong("the schema false accepts nothing".to_owned())),
            Ok(_) => Err(wrong("a schema is a JSON object".to_owned())),
            Err(error) => Err(wrong(format!("it is not JSON: {error}"))),
        }
    }

    /// Reads the schema of a tool's arguments: an object; an empty text means that there are none.
    pub(crate) fn of_arguments(text: &str) -> Result<Self, GuideError> {
        if text.is_empty() {
            return Ok(Self(json!({ "type": "object", "additionalProperties": false })));
        }
        let Self(schema) = Self::parse(text)?;
        Ok(Self(match &schema {
            Value::Object(map) if map.get("type").is_some_and(|kind| kind == "object") => schema,
            Value::Object(map) if !map.contains_key("type") => {
                let mut map = map.clone();
                map.insert("type".to_owned(), "object".into());
                Value::Object(map)
            }
            _ => {
                let problem = "arguments are a JSON object, so their schema has the type \"object\"".to_owned();
                return Err(GuideError::Schema { path: "/type".to_owned(), problem });
            }
        }))
    }

    /// As the whole of a grammar.
    pub(crate) fn whole(&self) -> Value {
        spaced(self.at(""))
    }

    /// As a part of a greater schema, at this JSON pointer.
    pub(crate) fn at(&self, place: &str) -> Value {
        let mut schema = self.0.clone();
        let mut room = SPELT_OUT_MAX;
        spell_out(&mut schema, &self.0, &mut room);
        moved(&mut schema, place);
        if let Some(map) = schema.as_object_mut() {
            map.remove(OPTIONS);
        }
        schema
    }

    /// The part that is refused by itself although all of its parts are not, with the reason. `refused` says whether a schema is.
    pub(crate) fn locate(&self, refused: impl Fn(Value) -> Option<String>, problem: String) -> GuideError {
        let mut search = Search { root: &self.0, refused: &refused, trials: 0, seen: Vec::new() };
        let (path, problem) = search.innermost(String::new(), problem);
        GuideError::Schema { path, problem }
    }
}

/// Replaces references among the options of a `oneOf` by what they mean: options have to be told apart where they stand. What they
/// mean is taken as it is, and no more of it than `room` values.
fn spell_out(schema: &mut Value, root: &Value, room: &mut usize) {
    match schema {
        Value::Array(list) => list.iter_mut().for_each(|value| spell_out(value, root, room)),
        Value::Object(map) => {
            for (key, value) in map.iter_mut().filter(|(key, _)| !DATA.contains(&key.as_str())) {
                match value {
                    Value::Array(options) if key == "oneOf" => {
                        for option in options {
                            match follow(root, option) {
                                Some(meant) if values(meant) <= *room => {
                                    *room -= values(meant);
                                    *option = meant.clone();
                                }
                                _ => spell_out(option, root, room),
                            }
                        }
                    }
                    value => spell_out(value, root, room),
                }
            }
        }
        _ => {}
    }
}

/// Values in a value, itself included.
fn values(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(values).sum(),
        Value::Object(map) => map.values().map(values).sum(),
        _ => 0,
    }
}

/// Moves references along with a schema that is put at a place.
fn moved(schema: &mut Value, place: &str) {
    match schema {
        Value::Array(list) => list.iter_mut().for_each(|value| moved(value, place)),
        Value::Object(map) => {
            for (key, value) in map.iter_mut().filter(|(key, _)| !DATA.contains(&key.as_str())) {
                match value {
                    Value::String(reference) if key == "$ref" => {
                        if let Some(rest) = reference.strip_prefix('#') {
                            *reference = format!("#{place}{rest}");
                        }
                    }
                    value => moved(value, place),
                }
            }
        }
        _ => {}
    }
}

/// What a schema that is nothing but a reference means in the end; `None` for any other, and for circles.
fn follow<'a>(root: &'a Value, schema: &Value) -> Option<&'a Value> {
    let mut pointer = reference(schema)?.to_owned();
    for _ in 0..REFERENCES_MAX {
        let meant = root.pointer(&pointer)?;
        match reference(meant) {
            Some(next) => pointer = next.to_owned(),
            None => return Some(meant),
        }
    }
    None
}

/// The pointer of a schema that is nothing but a reference into its own document.
fn reference(schema: &Value) -> Option<&str> {
    let map = schema.as_object()?;
    let only = map.keys().all(|key| matches!(key.as_str(), "$ref" | "title" | "description" | "default"));
    map.get("$ref").filter(|_| only)?.as_str()?.strip_prefix('#')
}

/// Looks for the part of a schema that is wrong.
struct Search<'a> {
    root: &'a Value,
    refused: &'a dyn Fn(Value) -> Option<String>,
    trials: usize,
    /// Pointers that were tried.
    seen: Vec<String>,
}

impl Search<'_> {
    /// The part at `path` is refused: which of its parts is, innermost.
    fn innermost(&mut self, path: String, problem: String) -> (String, String) {
        let Some(schema) = self.root.pointer(&path) else { return (path, problem) };
        for part in parts(schema, &path) {
            if self.trials == TRIALS_MAX || self.seen.contains(&part) {
                continue;
            }
            self.trials += 1;
            self.seen.push(part.clone());
            if self.root.pointer(&part).is_none() {
                continue;
            }
            if let Some(problem) = (self.refused)(self.alone(&part)) {
                return self.innermost(part, problem);
            }
        }
        (path, problem)
    }

    /// The schema at `path` as a whole grammar.
    fn alone(&self, path: &str) -> Value {
        // Where references lead stays in reach under a name that no draft knows.
        const HOME: &str = "x-holdfast";
        let part = JsonSchema(self.root.pointer(path).cloned().unwrap_or(Value::Bool(true)));
        let mut whole = match part.at(&format!("/{HOME}")) {
            Value::Object(map) => map,
            other => Map::from_iter([("allOf".to_owned(), json!([other]))]),
        };
        let mut home = self.root.clone();
        moved(&mut home, &format!("/{HOME}"));
        whole.insert(HOME.to_owned(), home);
        spaced(Value::Object(whole))
    }
}

/// JSON pointers of the schemas inside of the schema at `path`, and of what it refers to.
fn parts(schema: &Value, path: &str) -> Vec<String> {
    let Some(map) = schema.as_object() else { return Vec::new() };
    let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
    let mut parts = Vec::new();
    for (key, value) in map {
        match value {
            Value::String(reference) if key == "$ref" => {
                parts.extend(reference.strip_prefix('#').filter(|pointer| !pointer.is_empty()).map(str::to_owned));
            }
            Value::Array(list) if LISTS.contains(&key.as_str()) => {
                parts.extend((0..list.len()).map(|at| format!("{path}/{key}/{at}")));
            }
            Value::Object(schemas) if MAPS.contains(&key.as_str()) => {
                parts.extend(schemas.keys().map(|name| format!("{path}/{key}/{}", escaped(name))));
            }
            Value::Object(_) if SINGLE.contains(&key.as_str()) => parts.push(format!("{path}/{key}")),
            _ => {}
        }
    }
    parts
}
