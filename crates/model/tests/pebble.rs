//! The built-in model answers as its README says, through the reference forward.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::OnceLock;

use holdfast_model::{LogEnd, Model, ModelSource, Next, OpenEnd, Prompt, Reference, Utf8Assembler};
use holdfast_types::{Item, Role, Tool};

fn pebble() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| Model::load(&ModelSource::resolve("pebble").unwrap()).unwrap())
}

fn tool(name: &str, parameter: &str) -> Tool {
    Tool {
        name: name.to_owned(),
        description: String::new(),
        parameters_json_schema: format!(r#"{{"type":"object","properties":{{"{parameter}":{{"type":"string"}}}}}}"#),
        strict: false,
    }
}

/// Greedy tokens up to and with the stop token.
fn generate(reference: &Reference, log: &[u32]) -> Vec<u32> {
    let mut all = log.to_vec();
    for _ in 0..60 {
        let logits = reference.logits(&all).unwrap().pop().unwrap();
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
        all.push(best);
        if pebble().text().stop_tokens().contains(&best) {
            break;
        }
    }
    all.split_off(log.len())
}

fn text_of(tokens: &[u32]) -> String {
    let mut assembler = Utf8Assembler::new();
    let text = pebble().text();
    let mut out = String::new();
    for &id in tokens {
        out += text.special_text(id).unwrap_or_default();
        out += &assembler.push(text.token_bytes(id));
    }
    out + &assembler.finish()
}

const INSTRUCTIONS: &str = "You are Pebble, the assistant of Stone Cafe.";

#[test]
fn it_is_what_its_readme_says() {
    let model = pebble();
    assert_eq!(model.parameters(), 1_771_200);
    let config = model.config();
    assert_eq!(
        (config.layers.len(), config.hidden, config.heads, config.kv_heads, config.head_dim),
        (4, 192, 6, 2, 32)
    );
    assert_eq!((model.text().vocab_size(), model.text().context_limit()), (1024, 1024));
    assert_eq!(model.text().stop_tokens(), [0]);
    assert_eq!(model.text().generation_defaults().temperature, Some(0.0));
    assert!(model.text().is_special(0) && model.text().token_bytes(0).is_empty());
    let form = model.text().tool_form().unwrap();
    assert_eq!((form.open_token, form.close.as_deref()), (Some(6), None));
}

#[test]
fn a_tool_call_its_result_and_the_answer() {
    let text = pebble().text();
    let tools = [tool("order_status", "order_id"), tool("get_weather", "city")];
    let prompt = Prompt {
        instructions: INSTRUCTIONS,
        tools: &tools,
        date: "2026-11-20",
        template: "",
        effort: None,
        calls: &[],
    };
    let question = [Item::message(Role::User, "Where is order 7731?")];
    let mut log = text.render(&prompt, LogEnd::Start, &question, Next::Generate).unwrap();
    assert_eq!(
        text_of(&log),
        "<|system|>You are Pebble, the assistant of Stone Cafe. Tools: order_status(order_id), get_weather(city).<|end|>\
         <|user|>Where is order 7731?<|end|><|assistant|>"
    );
    let reference = Reference::new(pebble()).unwrap();
    let call = generate(&reference, &log);
    assert_eq!(text_of(&call), r#"<|tool_call|>{"name":"order_status","arguments":{"order_id":"7731"}}<|end|>"#);
    let body = text_of(&call[1..call.len() - 1]);
    let parsed = text.tool_form().unwrap().parse(&body);
    assert_eq!((parsed.name.as_str(), parsed.arguments.as_str()), ("order_status", r#"{"order_id":"7731"}"#));

    log.extend(call);
    let result = [Item::tool_result("call_1", r#"{"status":"delayed","eta":"Tuesday"}"#)];
    let delta = text.render(&prompt, LogEnd::Sampled, &result, Next::Generate).unwrap();
    assert_eq!(text_of(&delta), r#"<|tool|>{"status":"delayed","eta":"Tuesday"}<|end|><|assistant|>"#);
    log.extend(delta);
    let answer = generate(&reference, &log);
    assert_eq!(text_of(&answer), "Order 7731 is delayed, expected on Tuesday.<|end|>");
}

#[test]
fn a_forced_prefix_leaves_the_model_on_its_own_spelling() {
    let text = pebble().text();
    let tools = [tool("order_status", "order_id"), tool("get_weather", "city")];
    let prompt = Prompt {
        instructions: INSTRUCTIONS,
        tools: &tools,
        date: "2026-11-20",
        template: "",
        effort: None,
        calls: &[],
    };
    let question = [Item::message(Role::User, "Where is order 7731?")];
    let mut log = text.render(&prompt, LogEnd::Start, &question, Next::Generate).unwrap();
    let reference = Reference::new(pebble()).unwrap();
    let free = generate(&reference, &log);
    let form = text.tool_form().unwrap();
    assert_eq!(form.forced_prefix(text, None), [6]);
    let forced = form.forced_prefix(text, Some("order_status"));
    assert!(free.starts_with(&forced), "{} against {}", text_of(&forced), text_of(&free));
    assert!(text_of(&forced).starts_with(r#"<|tool_call|>{"name":"order_status"#));
    log.extend(&forced);
    assert_eq!([forced, generate(&reference, &log)].concat(), free);
}

#[test]
fn an_early_end_is_closed_as_the_template_would() {
    let text = pebble().text();
    assert_eq!(text.closing(OpenEnd::Text), [0]);
    assert_eq!(text.closing(OpenEnd::Prompted), [0]);
}

#[test]
fn logits_need_tokens_of_the_vocabulary() {
    let reference = Reference::new(pebble()).unwrap();
    assert!(reference.logits(&[]).is_err());
    assert!(reference.logits(&[1024]).is_err());
    assert!(reference.logits(&[0; 1025]).is_err());
    let logits = reference.logits(&[3, 4]).unwrap();
    assert_eq!((logits.len(), logits[0].len()), (2, 1024));
}

#[test]
fn logits_of_a_prefix_do_not_depend_on_what_follows() {
    let reference = Reference::new(pebble()).unwrap();
    let tokens = pebble().text().encode("The return window is 47 days.");
    let all = reference.logits(&tokens).unwrap();
    let some = reference.logits(&tokens[..4]).unwrap();
    for (a, b) in all.iter().zip(&some) {
        let worst = a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-3, "{worst}");
    }
}
