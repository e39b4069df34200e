//! The built-in model reads and answers as its card says, through the reference forward. The dialogues in `pebble_dialogues.json` and
//! their tokens were written by `tools/pebble`: what the product renders is what the model was trained on.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::OnceLock;

use holdfast_model::{LogEnd, Model, ModelSource, Next, OpenEnd, Prompt, Reference, Utf8Assembler};
use holdfast_types::{Item, ItemContent, ItemState, Role, Tool};
use serde_json::Value;

fn pebble() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| Model::load(&ModelSource::resolve("pebble").unwrap()).unwrap())
}

fn tool(name: &str, parameters: &[&str]) -> Tool {
    let properties: Vec<String> = parameters.iter().map(|one| format!(r#""{one}":{{"type":"string"}}"#)).collect();
    Tool {
        name: name.to_owned(),
        description: String::new(),
        parameters_json_schema: format!(r#"{{"type":"object","properties":{{{}}}}}"#, properties.join(",")),
        strict: false,
    }
}

fn call(id: &str, name: &str, arguments: &str) -> Item {
    let (call_id, name, arguments) = (id.to_owned(), name.to_owned(), arguments.to_owned());
    let content = ItemContent::ToolCall { call_id, name, arguments, parse_error: None };
    Item { content, state: ItemState::Complete }
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

/// A conversation that is answered greedily, turn by turn.
struct Talk<'a> {
    prompt: Prompt<'a>,
    reference: Reference,
    log: Vec<u32>,
}

impl<'a> Talk<'a> {
    fn new(instructions: &'a str, tools: &'a [Tool]) -> Self {
        let prompt = Prompt { instructions, tools, date: "2026-11-20", ..Prompt::default() };
        Self { prompt, reference: Reference::new(pebble()).unwrap(), log: Vec::new() }
    }

    /// What the model writes after an item, without the stop token.
    fn hear(&mut self, item: Item) -> String {
        let after = if self.log.is_empty() { LogEnd::Start } else { LogEnd::Sampled };
        self.log.extend(pebble().text().render(&self.prompt, after, &[item], Next::Generate).unwrap());
        let answer = generate(&self.reference, &self.log);
        self.log.extend(&answer);
        text_of(&answer).trim_end_matches("<|im_end|>").to_owned()
    }

    fn say(&mut self, text: &str) -> String {
        self.hear(Item::message(Role::User, text))
    }
}

#[test]
fn it_is_what_its_card_says() {
    let model = pebble();
    assert_eq!(model.parameters(), 1_869_504);
    let config = model.config();
    assert_eq!(
        (config.layers.len(), config.hidden, config.heads, config.kv_heads, config.head_dim),
        (4, 192, 6, 2, 32)
    );
    assert_eq!((model.text().vocab_size(), model.text().context_limit()), (1536, 2048));
    assert_eq!(model.text().stop_tokens(), [0]);
    assert_eq!(model.text().generation_defaults().temperature, Some(0.0));
    assert!(model.text().is_special(0) && model.text().token_bytes(0).is_empty());
    let form = model.text().tool_form().unwrap();
    assert_eq!((form.open.as_str(), form.close.as_deref()), ("<tool_call>", Some("</tool_call>")));
}

#[test]
fn what_is_rendered_is_what_it_was_trained_on() {
    let dialogues: Vec<Value> = serde_json::from_str(include_str!("pebble_dialogues.json")).unwrap();
    assert!(dialogues.len() >= 20);
    for dialogue in &dialogues {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let of_tool = |one: &Value| {
            let arguments: Vec<&str> = one["arguments"].as_array().unwrap().iter().flat_map(Value::as_str).collect();
            tool(one["name"].as_str().unwrap(), &arguments)
        };
        let tools: Vec<Tool> = dialogue["tools"].as_array().unwrap().iter().map(of_tool).collect();
        let instructions = text(&dialogue["instructions"]);
        let prompt = Prompt { instructions: &instructions, tools: &tools, date: "2026-11-20", ..Prompt::default() };
        let mut id = 0;
        let item = |message: &Value| match (message["role"].as_str().unwrap(), message.get("call")) {
            ("assistant", Some(made)) => {
                id += 1;
                call(&format!("call-{id}"), &text(&made["name"]), &text(&made["arguments"]))
            }
            ("tool", _) => Item::tool_result(format!("call-{id}"), text(&message["content"])),
            ("assistant", None) => Item::message(Role::Assistant, text(&message["content"])),
            (_, _) => Item::message(Role::User, text(&message["content"])),
        };
        let items: Vec<Item> = dialogue["messages"].as_array().unwrap().iter().map(item).collect();
        let rendered = pebble().text().render(&prompt, LogEnd::Start, &items, Next::Nothing).unwrap();
        let trained: Vec<u32> =
            dialogue["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        assert_eq!(text_of(&rendered), text_of(&trained));
        assert_eq!(rendered, trained);
    }
}

#[test]
fn a_tool_call_its_result_and_the_answer() {
    let tools = [tool("order_status", &["order_id"]), tool("get_weather", &["city"])];
    let mut talk = Talk::new(INSTRUCTIONS, &tools);
    let called = talk.say("Where is order 7731?");
    assert_eq!(
        text_of(&talk.log).split("<tool_call>").next().unwrap(),
        "<|im_start|>system\nYou are Pebble, the assistant of Stone Cafe.\n\n<tools>\n\
         {\"name\": \"order_status\", \"arguments\": [\"order_id\"]}\n{\"name\": \"get_weather\", \"arguments\": [\"city\"]}\n\
         </tools><|im_end|>\n<|im_start|>user\nWhere is order 7731?<|im_end|>\n<|im_start|>assistant\n"
    );
    let body = called.strip_prefix("<tool_call>").and_then(|rest| rest.strip_suffix("</tool_call>")).unwrap();
    let parsed = pebble().text().tool_form().unwrap().parse(body);
    assert_eq!((parsed.name.as_str(), parsed.arguments.as_str()), ("order_status", r#"{"order_id": "7731"}"#));
    let answer = talk.hear(Item::tool_result("call_1", r#"{"status":"delayed","eta":"Tuesday"}"#));
    assert_eq!(answer, "Order 7731 is delayed, expected on Tuesday.");
}

#[test]
fn a_newcomers_first_ten_turns() {
    let tools = [tool("order_status", &["order_id"]), tool("get_weather", &["city"])];
    let mut talk = Talk::new(INSTRUCTIONS, &tools);
    assert_eq!(talk.say("hello"), "Hello! How can I help you?");
    assert_eq!(talk.say("who are you?"), "I am Pebble, a very small language model.");
    assert_eq!(talk.say("my name is Ada"), "Nice to meet you, Ada.");
    assert_eq!(talk.say("My locker code is 4471."), "Got it. Your locker code is 4471.");
    assert_eq!(talk.say("what is my name?"), "Your name is Ada.");
    assert!(talk.say("What is the weather in Lisbon?").contains("get_weather"));
    let answer = talk.hear(Item::tool_result("call_1", r#"{"temp":18,"sky":"cloudy"}"#));
    assert_eq!(answer, "It is 18 degrees and cloudy in Lisbon.");
    assert_eq!(talk.say("Actually, my locker code is 5512."), "Updated. Your locker code is 5512.");
    assert_eq!(talk.say("What is my locker code?"), "Your locker code is 5512.");
    assert_eq!(talk.say("Book a table for 4 people at 19:30."), "Sorry, I have no tool for that.");
    assert_eq!(talk.say("thanks"), "You are welcome.");
}

#[test]
fn an_early_end_is_closed_as_the_template_would() {
    let text = pebble().text();
    let newline = text.encode("\n");
    assert_eq!(text.closing(OpenEnd::Text), [&[0], newline.as_slice()].concat());
    assert_eq!(text.closing(OpenEnd::Prompted), [&[0], newline.as_slice()].concat());
}

#[test]
fn logits_need_tokens_of_the_vocabulary() {
    let reference = Reference::new(pebble()).unwrap();
    assert!(reference.logits(&[]).is_err());
    assert!(reference.logits(&[1536]).is_err());
    assert!(reference.logits(&[0; 2049]).is_err());
    let logits = reference.logits(&[3, 4]).unwrap();
    assert_eq!((logits.len(), logits[0].len()), (2, 1536));
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
