//! What a rendering may make: the meter that every larger value passes.
//!
//! In: values, by way of filters that [`crate::template_source`] puts into a template. Out: the same values, or the error that the template
//! makes too much. Charged are the bytes of every text that is made or written, and the items of every list; a value nested
//! deeper than a bound, or a namespace inside of one, is refused, since it could be without end. Together with minijinja's fuel
//! this bounds what a template from anyone can hold, and how long it takes. Deliberately not here: which values pass.

use std::fmt::{self, Write as _};

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, filters};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Instructions of one rendering: four hundred for each of ten thousand messages.
const FUEL: u64 = 4_000_000;
/// Bytes that one rendering may make, items of lists included; a prompt of a million tokens has some megabytes.
pub(crate) const MADE_BYTES_MAX: usize = 128 << 20;
/// What an item of a list costs.
const ITEM_BYTES: usize = 64;
/// Bytes that are read at the cost of one that is made.
const READ_BYTES: usize = 64;
/// What a part of a value costs that is walked through.
const PART_BYTES: usize = 8;
/// Deepest nesting of a value.
const DEPTH_MAX: usize = 128;
/// Widest indentation.
pub(crate) const INDENT_MAX: usize = 1_000;

/// Filter for what a filter, a call or a literal gave.
pub(crate) const RESULT: &str = "metered_result";
/// Filter for what is read as a whole, and not kept.
pub(crate) const READ: &str = "metered_read";
/// Filter for an operand of `~` and `+`.
pub(crate) const OPERAND: &str = "metered_operand";
/// Filter for what a namespace keeps.
pub(crate) const KEPT: &str = "metered_kept";
/// Filter that multiplies.
pub(crate) const PRODUCT: &str = "metered_product";

/// What is left of a rendering's allowance.
struct Left(usize);

/// Puts the meter into an environment: its filters, its formatter, and bounds on what is there already. What Python's Jinja does not have
/// and nothing here bounds is taken out.
pub(crate) fn install(environment: &mut Environment<'static>) {
    environment.set_fuel(Some(FUEL));
    environment.set_formatter(written);
    environment.set_unknown_method_callback(method);
    for unbounded in ["batch", "slice", "pprint", "format", "zip", "chain", "urlencode"] {
        environment.remove_filter(unbounded);
    }
    environment.remove_global("debug");
    environment.add_filter(RESULT, |state: &mut State<'_, '_>, value: Value| result(state, value));
    environment.add_filter(READ, |state: &mut State<'_, '_>, value: Value| read(state, value));
    environment.add_filter(OPERAND, |state: &mut State<'_, '_>, value: Value| operand(state, value));
    environment.add_filter(KEPT, |state: &mut State<'_, '_>, value: Value| kept(state, value));
    environment.add_filter(PRODUCT, product);
    environment.add_filter("join", join);
    environment.add_filter("replace", |state: &mut State<'_, '_>, value: Value, from: Value, to: Value| {
        let (value, from, to) = (text(state, &value)?, text(state, &from)?, text(state, &to)?);
        replace(state, &value, &from, &to)
    });
    environment.add_filter("string", |state: &mut State<'_, '_>, value: Value| match value.as_str() {
        Some(_) => Ok(value),
        None => text(state, &value).map(Value::from),
    });
    environment.add_filter("split", |state: &mut State<'_, '_>, value: Value, rest: Rest<Value>| {
        method(state, &value, "split", &rest)
    });
    environment.add_filter("lines", |state: &mut State<'_, '_>, value: Value| method(state, &value, "splitlines", &[]));
    environment.add_filter("list", |state: &mut State<'_, '_>, value: Value| {
        items(state, &value)?;
        filters::list(state, value)
    });
    environment.add_filter("indent", indent);
}

/// Charges bytes.
fn charge(state: &mut State<'_, '_>, bytes: usize) -> Result<(), Error> {
    let left = state.get_or_insert_extension_with(|| Left(MADE_BYTES_MAX));
    match left.0.checked_sub(bytes) {
        Some(rest) => {
            left.0 = rest;
            Ok(())
        }
        None => {
            left.0 = 0;
            Err(wrong(format!("it makes more than {MADE_BYTES_MAX} bytes of text and lists")))
        }
    }
}

fn wrong(problem: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem)
}

/// Charges what a value takes that is built anew, part by part.
pub(crate) fn rebuilt(state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    walk(state, value, 0, ITEM_BYTES)
}

/// Walks through a value, so that whoever walks through it after us comes to an end: charges so many bytes for each part.
fn walk(state: &mut State<'_, '_>, value: &Value, depth: usize, bytes: usize) -> Result<(), Error> {
    charge(state, bytes)?;
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
        return Ok(());
    }
    if depth > DEPTH_MAX {
        return Err(wrong(format!("a value is nested deeper than {DEPTH_MAX}")));
    }
    let Ok(parts) = value.try_iter() else { return Ok(()) };
    for part in parts {
        if value.kind() == ValueKind::Map {
            walk(state, &value.get_item(&part)?, depth + 1, bytes)?;
        }
        walk(state, &part, depth + 1, bytes)?;
    }
    Ok(())
}

/// A new value: its own bytes, or those of its items.
fn result(state: &mut State<'_, '_>, value: Value) -> Result<Value, Error> {
    match value.as_str() {
        Some(text) => charge(state, text.len())?,
        None if matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) => {
            charge(state, value.len().unwrap_or(0).saturating_mul(ITEM_BYTES))?;
            if value.kind() == ValueKind::Seq
                && let Ok(items) = value.try_iter()
            {
                for item in items {
                    charge(state, item.as_str().map_or(0, str::len))?;
                }
            }
            walk(state, &value, 0, PART_BYTES)?;
        }
        None => {}
    }
    Ok(value)
}

/// What is read: compared, measured, searched.
fn read(state: &mut State<'_, '_>, value: Value) -> Result<Value, Error> {
    match value.as_str() {
        Some(text) => charge(state, text.len() / READ_BYTES)?,
        None => walk(state, &value, 0, 1)?,
    }
    Ok(value)
}

/// An operand of `~` and `+`: what it is as text, or its items.
fn operand(state: &mut State<'_, '_>, value: Value) -> Result<Value, Error> {
    match value.as_str() {
        Some(text) => charge(state, text.len())?,
        None => {
            // Written down to be measured, where it is more than a number.
            items(state, &value)?;
            if matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
                walk(state, &value, 0, PART_BYTES)?;
                text(state, &value)?;
            }
        }
    }
    Ok(value)
}

/// What a namespace keeps: no namespace, in which it could be itself.
fn kept(state: &mut State<'_, '_>, value: Value) -> Result<Value, Error> {
    fn is_namespace(value: &Value) -> bool {
        value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
    }
    fn holds(value: &Value, depth: usize) -> bool {
        is_namespace(value)
            || (depth <= DEPTH_MAX
                && value.kind() == ValueKind::Seq
                && value.try_iter().is_ok_and(|mut items| items.any(|item| holds(&item, depth + 1))))
            || (depth <= DEPTH_MAX
                && value.kind() == ValueKind::Map
                && value.try_iter().is_ok_and(|mut keys| {
                    keys.any(|key| value.get_item(&key).is_ok_and(|item| holds(&item, depth + 1)))
                }))
    }
    if is_namespace(&value) {
        return Err(wrong("a namespace is kept in a namespace".to_owned()));
    }
    walk(state, &value, 0, PART_BYTES)?;
    match holds(&value, 0) {
        true => Err(wrong("a namespace is kept in a namespace".to_owned())),
        false => Ok(value),
    }
}

/// `*`: numbers, or a text so many times.
fn product(state: &mut State<'_, '_>, left: Value, right: Value) -> Result<Value, Error> {
    let (text, number) = match (left.as_str(), right.as_str()) {
        (Some(text), None) => (text, &right),
        (None, Some(text)) => (text, &left),
        _ => {
            let too_large = || wrong("a product is too large".to_owned());
            if let (true, true, Some(a), Some(b)) =
                (left.is_integer(), right.is_integer(), left.as_i64(), right.as_i64())
            {
                return a.checked_mul(b).map(Value::from).ok_or_else(too_large);
            }
            return match (f64::try_from(left), f64::try_from(right)) {
                (Ok(a), Ok(b)) => Ok(Value::from(a * b)),
                _ => Err(wrong("only numbers are multiplied, and a text by a number".to_owned())),
            };
        }
    };
    let times = number.as_usize().ok_or_else(|| wrong("a text is multiplied by a whole number".to_owned()))?;
    charge(state, text.len().saturating_mul(times))?;
    Ok(Value::from(text.repeat(times)))
}

/// What a value is as text, charged while it is written.
fn text(state: &mut State<'_, '_>, value: &Value) -> Result<String, Error> {
    struct Counted<'a, 'b, 'c> {
        state: &'a mut State<'b, 'c>,
        text: String,
        error: Option<Error>,
    }
    impl fmt::Write for Counted<'_, '_, '_> {
        fn write_str(&mut self, part: &str) -> fmt::Result {
            charge(self.state, part.len()).map_err(|error| {
                self.error = Some(error);
                fmt::Error
            })?;
            self.text.push_str(part);
            Ok(())
        }
    }
    walk(state, value, 0, PART_BYTES)?;
    let mut counted = Counted { state, text: String::new(), error: None };
    match write!(counted, "{value}") {
        Ok(()) => Ok(counted.text),
        Err(_) => Err(counted.error.unwrap_or_else(|| wrong("a value cannot be written".to_owned()))),
    }
}

/// The formatter: all that a template writes, into the prompt or into a block that is kept.
fn written(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => {
            charge(state, text.len())?;
            out.write_str(text).map_err(Error::from)
        }
        None => {
            let text = text(state, value)?;
            out.write_str(&text).map_err(Error::from)
        }
    }
}

/// Items of a list that is to be made; of a text, its characters.
fn items(state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let count = value.as_str().map(str::len).or_else(|| value.len()).unwrap_or(0);
    let is_list =
        value.as_str().is_some() || matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map);
    charge(state, if is_list { count.saturating_mul(ITEM_BYTES) } else { 0 })
}

fn join(
    state: &mut State<'_, '_>,
    value: Value,
    joiner: Option<Value>,
    attribute: Option<String>,
    options: Kwargs,
) -> Result<Value, Error> {
    let joiner = joiner.or(options.get("d")?).map_or(Ok(String::new()), |joiner| text(state, &joiner))?;
    let attribute = attribute.or(options.get("attribute")?);
    options.assert_all_used()?;
    let mut joined = String::new();
    for (i, item) in value.try_iter()?.enumerate() {
        let item = match &attribute {
            Some(path) => path.split('.').try_fold(item, |item, part| item.get_attr(part))?,
            None => item,
        };
        if i > 0 {
            charge(state, joiner.len())?;
            joined.push_str(&joiner);
        }
        joined.push_str(&text(state, &item)?);
    }
    Ok(Value::from(joined))
}

fn replace(state: &mut State<'_, '_>, text: &str, from: &str, to: &str) -> Result<Value, Error> {
    let found = text.matches(from).count();
    charge(state, found.saturating_mul(to.len()).saturating_add(text.len()))?;
    Ok(Value::from(text.replace(from, to)))
}

fn indent(
    state: &mut State<'_, '_>,
    value: Value,
    width: Option<usize>,
    first: Option<bool>,
    options: Kwargs,
) -> Result<Value, Error> {
    let width = match width {
        Some(width) => width,
        None => options.get::<Option<usize>>("width")?.unwrap_or(4),
    };
    let (first, blank): (_, Option<bool>) = (first.or(options.get("first")?), options.get("blank")?);
    options.assert_all_used()?;
    if width > INDENT_MAX {
        return Err(wrong(format!("an indentation of {width}; at most {INDENT_MAX} are written")));
    }
    let text = text(state, &value)?;
    charge(state, text.matches('\n').count().saturating_add(1).saturating_mul(width))?;
    let spaces = " ".repeat(width);
    let mut out = String::with_capacity(text.len());
    for (i, line) in text.strip_suffix('\n').unwrap_or(&text).split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        let is_indented = if i == 0 { first == Some(true) } else { !line.is_empty() || blank == Some(true) };
        if is_indented {
            out.push_str(&spaces);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

/// Python's methods, with those bounded that make more than they get.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    match (name, value.as_str()) {
        ("format", _) => return Err(wrong("the method format is not there".to_owned())),
        ("replace", Some(text)) => {
            if let [from, to, ..] = arguments
                && let (Some(from), Some(to)) = (from.as_str(), to.as_str())
            {
                charge(state, text.matches(from).count().saturating_mul(to.len()).saturating_add(text.len()))?;
            }
        }
        ("join", Some(joiner)) => {
            let [list] = arguments else { return unknown_method_callback(state, value, name, arguments) };
            walk(state, list, 0, PART_BYTES)?;
            for item in list.try_iter()? {
                charge(state, joiner.len() + item.as_str().map_or(0, str::len))?;
            }
        }
        ("split" | "splitlines", Some(text)) => {
            let pieces = match (name, arguments.first().and_then(Value::as_str)) {
                ("split", Some(separator)) => text.matches(separator).count(),
                ("split", None) => text.split_whitespace().count(),
                _ => text.matches(['\n', '\r']).count(),
            };
            charge(state, pieces.saturating_add(1).saturating_mul(ITEM_BYTES).saturating_add(text.len()))?;
        }
        _ => {}
    }
    unknown_method_callback(state, value, name, arguments)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use minijinja::syntax::SyntaxConfig;

    use super::*;
    use crate::template_source::metered;

    fn render(source: &str) -> Result<String, String> {
        let mut environment = Environment::new();
        install(&mut environment);
        let source = metered("t", source, SyntaxConfig::default())?;
        let template = environment.template_from_str(&source).map_err(|e| e.to_string())?;
        template.render(()).map_err(|e| e.to_string())
    }

    #[test]
    fn bombs_are_refused() {
        let double = "{% set ns = namespace(x='0123456789') %}{% for i in range(99) %}";
        let bombs = [
            "{{ 'x' * 10**9 }}".to_owned(),
            "{{ 10**9 * 'x' }}".to_owned(),
            "{{ [0] * 10**9 }}".to_owned(),
            "{{ range(10**9) | list }}".to_owned(),
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}".to_owned(),
            "{% for i in range(100000) %}{% for j in range(100000) %}0123456789{% endfor %}{% endfor %}".to_owned(),
            "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}".to_owned(),
            "{% set x %}{% for i in range(100000) %}{{ 'abcdefgh' * 1000 }}{% endfor %}{% endset %}".to_owned(),
            format!("{double}{{% set ns.x = ns.x ~ ns.x %}}{{% endfor %}}"),
            format!("{double}{{% set ns.x = ns.x + ns.x %}}{{% endfor %}}"),
            format!("{double}{{% set ns.x = [ns.x, ns.x] %}}{{% endfor %}}{{{{ ns.x == ns.x }}}}"),
            format!("{double}{{% set ns.x = {{'a': ns.x, 'b': ns.x}} %}}{{% endfor %}}{{{{ ns.x }}}}"),
            format!("{double}{{% set ns.x %}}{{{{ ns.x }}}}{{{{ ns.x }}}}{{% endset %}}{{% endfor %}}"),
            format!("{double}{{% set ns.x = [ns.x, ns.x] | join(ns.x) %}}{{% endfor %}}"),
            format!("{double}{{% set ns.x = ns.x | replace('0', ns.x) %}}{{% endfor %}}"),
            format!("{double}{{% set ns.x = ns.x.replace('0', ns.x) %}}{{% endfor %}}"),
            format!("{double}{{% set ns.x = ns.x.join([ns.x, ns.x]) %}}{{% endfor %}}"),
            "{{ 'a\nb' | indent(10**12) }}".to_owned(),
            "{{ '%999999999d' | format(1) }}".to_owned(),
            "{{ '{:999999999}'.format(1) }}".to_owned(),
            "{{ 'x' | batch(10**12) }}".to_owned(),
            "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}".to_owned(),
            "{% set ns = namespace() %}{% set ns.a = [{'b': ns}] %}{{ ns }}".to_owned(),
            format!("{double}{{% set ns.x = [ns.x, ns.x] if i < 22 else ns.x %}}{{% endfor %}}{{{{ ns.x | tojson }}}}"),
            "{% set x = 'x' * 10**8 %}{% for i in range(100000) %}{{ x == x }}{{ x | length }}{{ x[5] }}{% endfor %}".to_owned(),
            "{% set x = 'x' * 10**8 %}{% for i in range(100000) %}{% if 'y' in x or x.startswith('y') %}{% endif %}{% endfor %}".to_owned(),
            format!("{{{{ {}1{} }}}}", "[".repeat(5_000), "]".repeat(5_000)),
            format!("{}{}", "{% if true %}".repeat(5_000), "{% endif %}".repeat(5_000)),
        ];
        for bomb in bombs {
            assert!(render(&bomb).is_err(), "{bomb:.200}");
        }
    }

    #[test]
    fn the_allowance_is_a_renderings_own() {
        let source = format!("{{{{ ('x' * {}) | length }}}}", MADE_BYTES_MAX / 2);
        for _ in 0..3 {
            assert_eq!(render(&source).unwrap(), (MADE_BYTES_MAX / 2).to_string());
        }
        assert!(render(&format!("{source}{source}{source}")).unwrap_err().contains("makes more than"));
    }
}
