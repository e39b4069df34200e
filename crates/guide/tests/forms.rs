//! What each kind of constraint lets be said, and how a wrong one is refused.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod speaking;

use holdfast_guide::GuideError;
use holdfast_types::Constraint;
use speaking::{Said, answers, guides, refusal, said, say, schema, token, tokens};

#[test]
fn a_json_schema_is_held_to_with_little_white_space() {
    let guides = guides();
    let person = schema(
        r##"{"type": "object", "properties": {"name": {"type": "string", "maxLength": 5}, "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}}},
            "required": ["name"], "additionalProperties": false, "$defs": {"tag": {"enum": ["a", "b", 3]}}}"##,
    );
    for (text, result) in [
        (r#"{"name":"é","tags":["a",3]}"#, Said::Ended),
        ("{\n    \"name\": \"x\"\n}", Said::Ended),
        (r#"{"name": "toolo""#, Said::Part),
        (r#"{"name": "tooloo""#, Said::No(15)),
        (r#" {"#, Said::No(0)),
        (r#"{"tags""#, Said::No(2)),
        (r#"{"name":"x","tags":["c""#, Said::No(21)),
        ("{  ", Said::No(2)),
        ("{\n\n", Said::No(2)),
        (r#"{"name":"x"}}"#, Said::No(12)),
    ] {
        assert_eq!(said(&guides, &person, text), result, "{text}");
    }
}

#[test]
fn expressions_grammars_and_choices_are_held_to() {
    let guides = guides();
    let regex = answers(Constraint::Regex(r"[a-c]+(/\d)?".to_owned()));
    for (text, result) in [("abc", Said::Whole), ("ab/7", Said::Ended), ("ab/x", Said::No(3)), ("", Said::Part)] {
        assert_eq!(said(&guides, &regex, text), result, "{text}");
    }
    let grammar = answers(Constraint::Grammar("start: sum\nsum: N (\"+\" N)*\nN: /[0-9]+/\n".to_owned()));
    for (text, result) in [("1+22", Said::Whole), ("1+", Said::Part), ("+", Said::No(0)), ("1++", Said::No(2))] {
        assert_eq!(said(&guides, &grammar, text), result, "{text}");
    }
    let choice = answers(Constraint::Choice(["look", "lookout", "say \"no\"\n"].map(str::to_owned).to_vec()));
    for (text, result) in [
        ("look", Said::Whole),
        ("lookout", Said::Ended),
        ("say \"no\"\n", Said::Ended),
        ("say", Said::Part),
        ("x", Said::No(0)),
    ] {
        assert_eq!(said(&guides, &choice, text), result, "{text}");
    }
}

#[test]
fn a_wrong_schema_is_refused_with_the_place_in_it() {
    let guides = guides();
    for (text, path) in [
        ("{", ""),
        ("7", ""),
        ("false", ""),
        (r#"{"type": "strin"}"#, ""),
        (r#"{"type": "object", "properties": {"a/b": {"not": {}}}}"#, "/properties/a~1b"),
        (r#"{"type": "array", "items": {"type": "string", "pattern": "(?=x)"}, "minItems": 1}"#, "/items"),
        (
            r#"{"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 3, "maximum": 2}}}"#,
            "/properties/a",
        ),
        (r#"{"anyOf": [{"type": "string"}, {"type": "string", "format": "colour"}]}"#, "/anyOf/1"),
        (r##"{"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}"##, "/properties/a"),
        (
            r##"{"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "array", "items": {"uniqueItems": true}}}}"##,
            "/$defs/x/items",
        ),
        (r##"{"$ref": "other.json"}"##, ""),
        (r#"{"enum": []}"#, ""),
        (r#"{"type": "string", "enum": [1]}"#, ""),
        (r#"{"type": "object", "required": ["a"], "additionalProperties": false}"#, ""),
        (r#"{"type": "string", "minLength": 3, "maxLength": 2}"#, ""),
        (r#"{"type": "array", "minItems": 3, "maxItems": 2}"#, ""),
    ] {
        match refusal(&guides, Constraint::JsonSchema(text.to_owned())) {
            GuideError::Schema { path: found, problem } => {
                assert_eq!(found, path, "{text}: {problem}");
                assert!(!problem.is_empty() && problem.len() < 200, "{problem}");
            }
            other => panic!("{text}: {other}"),
        }
    }
    assert_eq!(refusal(&guides, Constraint::JsonSchema(r##"{"$ref": "#"}"##.to_owned())), GuideError::Unsayable);
}

#[test]
fn other_wrong_forms_are_refused() {
    let guides = guides();
    for wrong in [
        Constraint::Regex(String::new()),
        Constraint::Regex("(".to_owned()),
        Constraint::Regex("a\\".to_owned()),
        Constraint::Regex("(?=a)b".to_owned()),
        Constraint::Grammar(String::new()),
        Constraint::Grammar("start: missing".to_owned()),
        Constraint::Grammar("start: <|nobody|>".to_owned()),
        Constraint::Choice(Vec::new()),
        Constraint::Choice(vec![String::new()]),
    ] {
        let error = refusal(&guides, wrong.clone());
        assert!(matches!(&error, GuideError::Form(problem) if !problem.is_empty()), "{wrong:?}: {error:?}");
    }
}

#[test]
fn a_form_beyond_its_bounds_is_refused() {
    let guides = guides();
    let properties: Vec<_> = (0..10_000).map(|n| format!("\"p{n}\": {{\"type\": \"integer\"}}")).collect();
    let huge = format!("{{\"type\": \"object\", \"properties\": {{{}}}}}", properties.join(","));
    assert!(matches!(refusal(&guides, Constraint::JsonSchema(huge)), GuideError::Schema { .. }));
    // Followed into each other, but not without end.
    let chain: Vec<_> = (0..1_500).map(|n| format!("\"d{n}\": {{\"$ref\": \"#/$defs/d{}\"}}", n + 1)).collect();
    let chain =
        format!("{{\"$ref\": \"#/$defs/d0\", \"$defs\": {{{}, \"d1500\": {{\"const\": 7}}}}}}", chain.join(","));
    assert_eq!(said(&guides, &schema(&chain), "7"), Said::Ended);
    let twice = r##"{"$ref": "#/$defs/a", "$defs": {"a": {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}, {"const": 7}]}}}"##;
    assert!(matches!(refusal(&guides, Constraint::JsonSchema(twice.to_owned())), GuideError::Schema { .. }));
    let rules: Vec<_> = (0..3_000).map(|n| format!("r{n}: r{}", n + 1)).collect();
    let rules = format!("start: r0\n{}\nr3000: \"7\"", rules.join("\n"));
    assert_eq!(said(&guides, &answers(Constraint::Grammar(rules)), "7"), Said::Ended);
    let brackets = format!("start: {}\"7\"{}", "(".repeat(30_000), ")".repeat(30_000));
    drop(guides.begin(&answers(Constraint::Grammar(brackets))));
    let deep = format!("{}true{}", "{\"items\":".repeat(200), "}".repeat(200));
    assert!(matches!(refusal(&guides, Constraint::JsonSchema(deep)), GuideError::Schema { .. }));
}

#[test]
fn a_replayed_guide_is_the_same_again_and_a_clone_goes_its_own_way() {
    let guides = guides();
    let spec = schema(r#"{"type": "array", "items": {"enum": ["look", "tool", 17]}}"#);
    let ids = tokens(r#"["look", 17,"tool"]"#, true);
    for at in 0..=ids.len() {
        let mut lived = guides.begin(&spec).unwrap();
        for &id in &ids[..at] {
            assert!(lived.mask().unwrap().allows(id));
            lived.accept(id).unwrap();
        }
        let mut replayed = guides.begin(&spec).unwrap();
        replayed.replay(&ids[..at]).unwrap();
        let mut clone = replayed.clone();
        assert_eq!(lived.mask(), replayed.mask(), "after {at}");
        assert_eq!(say(&mut clone, &ids[at..]), Said::Ended);
        assert_eq!(lived.mask(), replayed.mask(), "after {at}, and a clone went on");
    }
    let wrong = guides.begin(&spec).unwrap().replay(&tokens("[18", false));
    assert_eq!(wrong, Err(GuideError::Refused { token: u32::from(b'8') }));
    let ended = guides.begin(&spec).unwrap().replay(&[u32::from(b'['), token(speaking::STOP)]);
    assert!(matches!(ended, Err(GuideError::Refused { .. })));
}

#[test]
fn a_model_that_cannot_say_it_is_told() {
    let words = [b"a".to_vec(), b"b".to_vec(), Vec::new()];
    let vocabulary = holdfast_guide::Vocabulary::new(3, |id| &words[id as usize], |id| id == 2, &[2]);
    let guides = holdfast_guide::Guides::new(vocabulary);
    let choice = |text: &str| answers(Constraint::Choice(vec![text.to_owned()]));
    assert!(guides.begin(&choice("ab")).is_ok());
    assert_eq!(guides.begin(&choice("cab")).unwrap_err(), GuideError::Unsayable);
    let mut stuck = guides.begin(&choice("ac")).unwrap();
    stuck.accept(0).unwrap();
    assert_eq!(stuck.mask(), Err(GuideError::Stuck));
}
