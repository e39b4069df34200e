//! Metered templates beside the same templates as they are: published ones, and every construct that templates use.

#![allow(clippy::unwrap_used)]
use minijinja::Environment;
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::{Value as Json, json};

use super::*;
use crate::template_meter::install;

fn syntax() -> SyntaxConfig {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().unwrap()
}

/// What a source renders as it is, and metered.
fn both(source: &str) -> [Result<String, String>; 2] {
    rendered(
        source,
        &json!({"messages": [{"role": "user", "content": "Hi <b>.\n\n"}, {"role": "assistant", "content": "a,b,,c"}],
        "tools": [{"name": "look", "at": {"x": [1, 2.5, -3]}}], "none": null, "big": 9_007_199_254_740_993_i64}),
    )
}

fn rendered(source: &str, context: &Json) -> [Result<String, String>; 2] {
    let render = |environment: &mut Environment<'static>, source: String| {
        environment.set_syntax(syntax());
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |_: String| "20 Nov 2026");
        environment.add_template_owned("t", source).map_err(|e| e.to_string())?;
        environment
            .get_template("t")
            .unwrap()
            .render(Value::from(minijinja::value::Serde(context)))
            .map_err(|e| e.kind().to_string())
    };
    let mut plain = Environment::new();
    plain.set_unknown_method_callback(unknown_method_callback);
    let mut other = Environment::new();
    install(&mut other);
    [render(&mut plain, source.to_owned()), metered("t", source, syntax()).and_then(|s| render(&mut other, s))]
}

#[test]
fn what_is_written_anew_renders_the_same() {
    for source in [
        "a\n  {%- if x is not defined %}\n b {{- ' c' }}\n{% endif %}\n\n{# no #} \"q\" \\ \u{7f} 😀 {% raw %}{{ x }}{% endraw %}",
        "{% for m in messages if m.role != 'x' %}{{ loop.index0 ~ ':' ~ m['content'] | trim }}{% else %}none{% endfor %}",
        "{% for k, v in tools[0] | items %}{{ k }}={{ v }};{% endfor %}{{ tools[0].at.x[::-1] }}{{ 'abc'[1:] ~ 'abc'[:-1] }}",
        "{% set ns = namespace(a=1, b='x') %}{% for m in messages %}{% set ns.a = ns.a + loop.index * 2 - 1 %}{% endfor %}{{ ns.a }}{{ ns.b * 3 }}",
        "{% set x, y = 1, 2 %}{% set (p, q) = (3, 4) %}{{ x + y * p ** q // 3 % 7 }} {{ -x - -y }} {{ 7 / 2 }} {{ 1.5e3 * 2 }}",
        "{% macro m(a, b='d', c=none) %}[{{ a }}{{ b }}{{ caller() if caller else c }}]{% endmacro %}{{ m(1) ~ m(1, 2, c=3) }}{% call m('z') %}in{% endcall %}",
        "{% set x %}{% for i in range(3) %}{{ i }}{% endfor %}{% endset %}{{ x }}{% set y | upper | replace('A', 'bb') %}aa{% endset %}{{ y }}",
        "{% filter upper %}x{{ 'y' }}{% endfilter %}{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{% do namespace(z=1) %}",
        "{{ 'yes' if messages | length > 1 and not none or false else 'no' }}{{ 1 < 2 < 3 }}{{ 'a' in 'abc' }}{{ 4 not in [1, 2] }}",
        "{{ messages | map(attribute='role') | join(', ') }}{{ ['b', 'a'] | sort | list }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
        "{{ 'a-b'.split('-') | last }}{{ messages[1].content.split(',') }}{{ 'x y  z'.split() }}{{ ','.join(['p', 'q']) }}{{ 'aa'.replace('a', 'b') }}",
        "{{ 'l1\nl2\n\nl3' | indent(2) }}|{{ 'l1\nl2' | indent(1, true) }}|{{ 'l1\n\nl2' | indent(width=3, blank=true) }}",
        "{% if false %}a{% elif none %}b{% elif big == 9007199254740993 %}{{ big }}{% else %}d{% endif %}{{ {'k': [1, (2,), {}], 'n': none} }}",
        "{% for i in [[1, [2]], [3]] recursive %}{{ loop(i) if i is sequence else i }}{% endfor %}{{ (1, 2) + (3,) }}{{ [1] + [2] }}",
        "{{ messages[0].content is string and tools[0].at is mapping and 6 is divisibleby(3) }}{{ none }}{{ missing }}{{ missing | default('d') }}",
        "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %}{{ dict(a=1, **{'b': 2}) }}",
        "{{ missing is defined or missing is none }}{{ 'a' is eq('a') }}{{ messages[0].content.strip()[0] }}{{ messages[-1]['role'] | first }}",
        "{{ 'a' ~ 1 ~ 2.0 ~ none ~ true ~ [1] ~ missing }}{{ 'a' + 'b' + 'c' }}{{ 'x' | upper | lower | title }}{{ 1 if true }}{{ '\\n\\t\\x41\\u00e9' }}",
    ] {
        let [plain, metered] = both(source);
        assert!(plain.is_ok(), "{source}: {plain:?}");
        assert_eq!(plain, metered, "{source}");
    }
}

#[test]
fn published_templates_render_the_same() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/templates");
    let call = json!({"id": "call00001", "type": "function", "function": {"name": "look", "arguments": {"at": "it", "n": [1, 2.5]}}});
    let schema = json!({"type": "object", "required": ["at"], "properties": {
        "at": {"type": "string", "enum": ["it", "there"], "description": "Where."}, "n": {"type": "array", "items": {"type": "number"}},
        "o": {"type": "object", "properties": {"p": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}}});
    let dialogue = [
        json!({"role": "system", "content": "Be kind."}),
        json!({"role": "user", "content": "Where?"}),
        json!({"role": "assistant", "content": "", "reasoning_content": "Hm.", "thinking": "Hm.", "tool_calls": [call]}),
        json!({"role": "tool", "tool_call_id": "call00001", "name": "look", "content": "{\"seen\": true}"}),
        json!({"role": "assistant", "content": "<think>\nSo.\n</think>\n\nThere. 😀"}),
        json!({"role": "user", "content": "Thanks.\n"}),
    ];
    let mut same = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let source = std::fs::read_to_string(&path).unwrap();
        for (messages, tools) in
            [(&dialogue[1..2], false), (&dialogue[..2], true), (&dialogue[..], true), (&dialogue[4..], false)]
        {
            let tool = json!({"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": schema}});
            let context = json!({"messages": messages, "tools": if tools { json!([tool]) } else { Json::Null }, "bos_token": "<s>",
                "eos_token": "</s>", "add_generation_prompt": true, "enable_thinking": true, "reasoning_effort": "high"});
            let [plain, metered] = rendered(&source, &context);
            assert_eq!(plain, metered, "{}", path.display());
            same += usize::from(plain.is_ok());
        }
    }
    assert!(same >= 8, "{same} renderings");
}

#[test]
fn other_templates_and_blocks_are_refused() {
    for source in ["{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}", "{% block b %}{% endblock %}"] {
        assert!(metered("t", source, syntax()).unwrap_err().contains("not read"), "{source}");
    }
    assert!(metered("t", "{% if %}", syntax()).is_err());
}

#[test]
fn long_chains_are_no_deep_ones() {
    let words = |word: &str, between: &str| vec![word; 400].join(between);
    let elifs = (0..400).map(|i| format!("{{% elif x == {i} %}}{i}")).collect::<String>();
    for source in [
        format!("{{{{ {} }}}}", words("'a'", " ~ ")),
        format!("{{{{ {} }}}}", words("1", " + ")),
        format!("{{{{ {} }}}}", words("true", " and ")),
        format!("{{% if x %}}y{elifs}{{% endif %}}"),
    ] {
        let [plain, metered] = both(&source);
        assert!(plain.is_ok());
        assert_eq!(plain, metered);
    }
}

/// The reason for this file: with fuel for a thousand instructions, minijinja alone makes millions of bytes and of steps.
#[test]
fn operators_are_beyond_fuel() {
    let grown = |step: &str, times: usize, last: &str| {
        let mut environment = Environment::new();
        environment.set_fuel(Some(1_000));
        let source = format!("{{% set x = 'ab' %}}{{% set y = 'ab' %}}{}{last}", step.repeat(times));
        environment.render_str(&source, ()).unwrap()
    };
    assert_eq!(grown("{% set x = x ~ x %}", 22, "{{ x | length }}"), (2 << 22).to_string());
    assert_eq!(grown("{% set x = x + x %}", 22, "{{ x | length }}"), (2 << 22).to_string());
    // The twins share nothing with each other, so each pair of their parts is compared, four million of them.
    assert_eq!(grown("{% set x = [x, x] %}{% set y = [y, y] %}", 22, "{{ x == y }}"), "True");
}
