//! Chat templates of families that people run, in the form that they were published in: what is rendered, that it is proven
//! stable, and how a call is forced. The templates are written from memory of their structure, and shortened where tools are
//! explained to the model.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use holdfast_model::random::MicroShape;
use holdfast_model::{CallLayout, LogEnd, ModelError, ModelText, Next, Prompt};
use holdfast_types::{Digest, Item, ItemContent, ItemState, Role, Tool};
use serde_json::{Value, json};

const QWEN3: &str = include_str!("templates/qwen3.jinja");
const LLAMA3: &str = include_str!("templates/llama3.jinja");
const MISTRAL: &str = include_str!("templates/mistral.jinja");
const MISTRAL_ARGS: &str = include_str!("templates/mistral_args.jinja");

const QWEN3_TOKENS: [&str; 2] = ["<think>", "</think>"];
const LLAMA3_TOKENS: [&str; 6] =
    ["<|begin_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>", "<|start_header_id|>", "<|end_header_id|>"];
const MISTRAL_TOKENS: [&str; 11] = [
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
];

/// A micro tokenizer with more special tokens; the ends of a turn are those of `stops`.
fn load(template: &str, tokens: &[&str], stops: &[&str]) -> Result<ModelText, ModelError> {
    let shape = MicroShape::default();
    let mut files = shape.text_files();
    let mut tokenizer: Value = serde_json::from_str(&files.tokenizer).unwrap();
    let mut id = shape.vocab_size;
    let mut ends = vec![2_u32];
    for token in tokens {
        tokenizer["model"]["vocab"][token] = id.into();
        let entry = json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true});
        tokenizer["added_tokens"].as_array_mut().unwrap().push(entry);
        if stops.contains(token) {
            ends.push(id);
        }
        id += 1;
    }
    files.tokenizer = tokenizer.to_string();
    files.generation_config = Some(json!({"eos_token_id": ends}).to_string());
    files.tokenizer_config =
        Some(json!({"bos_token": tokens.first(), "eos_token": stops.first().unwrap_or(&"<|im_end|>")}).to_string());
    files.chat_template = Some(template.to_owned());
    ModelText::new(Path::new("micro"), &files, id, 4096, Digest::default())
}

fn qwen3() -> ModelText {
    load(QWEN3, &QWEN3_TOKENS, &[]).unwrap()
}

fn llama3() -> ModelText {
    load(LLAMA3, &LLAMA3_TOKENS, &["<|eot_id|>", "<|eom_id|>"]).unwrap()
}

fn mistral(template: &str) -> ModelText {
    load(template, &MISTRAL_TOKENS, &["</s>"]).unwrap()
}

fn spelt(text: &ModelText, tokens: &[u32]) -> String {
    let one = |id: &u32| match text.special_text(*id) {
        Some(special) => special.as_bytes().to_vec(),
        None => text.token_bytes(*id).to_vec(),
    };
    String::from_utf8(tokens.iter().flat_map(one).collect()).unwrap()
}

fn show(text: &ModelText, prompt: &Prompt<'_>, after: LogEnd, items: &[Item], next: Next) -> String {
    spelt(text, &text.render(prompt, after, items, next).unwrap())
}

const PLAIN: Prompt<'static> = Prompt { instructions: "", tools: &[], date: "2026-11-20", template: "" };

fn tools() -> Vec<Tool> {
    vec![Tool {
        name: "look".to_owned(),
        description: "Looks.".to_owned(),
        parameters_json_schema: String::new(),
        strict: false,
    }]
}

fn user(text: &str) -> Item {
    Item::message(Role::User, text)
}

fn assistant(text: &str) -> Item {
    Item::message(Role::Assistant, text)
}

fn complete(content: ItemContent) -> Item {
    Item { content, state: ItemState::Complete }
}

fn thought(text: &str) -> Item {
    complete(ItemContent::Reasoning { text: text.to_owned() })
}

fn call(id: &str, arguments: &str) -> Item {
    complete(ItemContent::ToolCall {
        call_id: id.to_owned(),
        name: "look".to_owned(),
        arguments: arguments.to_owned(),
        parse_error: None,
    })
}

/// Rendering in two pieces, wherever it is cut outside of an answer, gives the tokens of rendering at once.
fn rendering_in_pieces_is_rendering_at_once(text: &ModelText, items: &[Item]) {
    let tools = tools();
    for prompt in [PLAIN, Prompt { instructions: "Be brief.", ..PLAIN }, Prompt { tools: &tools, ..PLAIN }] {
        let whole = text.render(&prompt, LogEnd::Start, items, Next::Nothing).unwrap();
        let speaker = |item: &Item| match &item.content {
            ItemContent::Message { role, .. } => *role,
            ItemContent::Reasoning { .. } | ItemContent::ToolCall { .. } => Role::Assistant,
            ItemContent::ToolResult { .. } => Role::Developer,
        };
        for at in 1..items.len() {
            if speaker(&items[at - 1]) == speaker(&items[at]) {
                continue;
            }
            let mut tokens = text.render(&prompt, LogEnd::Start, &items[..at], Next::Nothing).unwrap();
            tokens.extend(text.render(&prompt, LogEnd::Closed, &items[at..], Next::Nothing).unwrap());
            assert_eq!(spelt(text, &tokens), spelt(text, &whole), "cut at {at}");
            assert_eq!(tokens, whole, "cut at {at}");
        }
    }
}

#[test]
fn qwen3_as_published_renders_histories_without_reasoning_as_it_was() {
    let text = qwen3();
    let tools = tools();
    let prompt = Prompt { instructions: "Be brief.", tools: &tools, ..PLAIN };
    let start = show(&text, &prompt, LogEnd::Start, &[user("hi")], Next::Generate);
    assert!(start.starts_with("<|im_start|>system\nBe brief.\n\n# Tools"), "{start}");
    assert!(start.ends_with("<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"), "{start}");
    let history = [user("a"), assistant("b"), user("c")];
    assert_eq!(
        show(&text, &PLAIN, LogEnd::Start, &history, Next::Generate),
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    );
    // Results of one round are one user message.
    let results = [Item::tool_result("1", "sun"), Item::tool_result("2", "rain")];
    assert_eq!(
        show(&text, &prompt, LogEnd::Sampled, &results, Next::Generate),
        "\n<|im_start|>user\n<tool_response>\nsun\n</tool_response>\n<tool_response>\nrain\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn qwen3_keeps_reasoning_that_is_given_and_makes_none_up() {
    let text = qwen3();
    // As published: dropped when the next user message comes, and empty for the last answer.
    let history = [user("a"), thought("hm"), assistant("b"), user("c"), assistant("d")];
    assert_eq!(
        show(&text, &PLAIN, LogEnd::Start, &history, Next::Nothing),
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\nb<|im_end|>\n\
         <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>\n"
    );
    let steps = [
        user("a"),
        thought("hm"),
        assistant("Look."),
        call("1", "{\"at\":  1}"),
        call("2", "{}"),
        Item::tool_result("1", "sun"),
        Item::tool_result("2", "rain"),
        thought("so"),
        assistant("b"),
        user("c"),
    ];
    let whole = show(&text, &PLAIN, LogEnd::Start, &steps, Next::Nothing);
    let calls = "Look.\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": 1}}\n</tool_call>\n<tool_call>\n";
    assert!(whole.contains(calls), "{whole}");
    rendering_in_pieces_is_rendering_at_once(&text, &steps);
}

#[test]
fn qwen3_in_words_that_we_do_not_know_is_refused_as_unstable() {
    let other = QWEN3.replace("loop.index0 > ns.last_query_index", "ns.last_query_index < loop.index0");
    assert_ne!(other, QWEN3);
    let error = load(&other, &QWEN3_TOKENS, &[]).unwrap_err();
    assert!(matches!(error, ModelError::UnstableTemplate { .. }), "{error}");
}

#[test]
fn what_is_rendered_instead_is_part_of_the_digest() {
    let plain = QWEN3.replace("loop.index0 > ns.last_query_index", "reasoning_content");
    let (ours, theirs) = (load(&plain, &QWEN3_TOKENS, &[]).unwrap(), qwen3());
    assert_ne!(ours.revision().2, theirs.revision().2);
    let items = [user("a"), thought("hm"), assistant("b")];
    let render = |text: &ModelText| text.render(&PLAIN, LogEnd::Start, &items, Next::Generate).unwrap();
    assert_eq!(render(&ours), render(&theirs));
}

#[test]
fn llama3_as_published_takes_results_of_several_calls() {
    let text = llama3();
    let tools = tools();
    let prompt = Prompt { tools: &tools, ..PLAIN };
    let results = [Item::tool_result("call_1_0_1", "sun"), Item::tool_result("call_1_0_2", "rain")];
    let delta = show(&text, &prompt, LogEnd::Sampled, &results, Next::Generate);
    assert_eq!(delta.matches("<|start_header_id|>ipython<|end_header_id|>\n\n").count(), 2, "{delta}");
    assert!(
        delta.starts_with("<|start_header_id|>ipython") && delta.ends_with("assistant<|end_header_id|>\n\n"),
        "{delta}"
    );
    let history = [user("a"), call("1", "{\"at\": 1}"), Item::tool_result("1", "sun"), assistant("b"), user("c")];
    let whole = show(&text, &prompt, LogEnd::Start, &history, Next::Nothing);
    assert!(whole.contains("{\"name\": \"look\", \"parameters\": {\"at\": 1}}<|eot_id|>"), "{whole}");
    rendering_in_pieces_is_rendering_at_once(&text, &history);
}

#[test]
fn mistral_as_published_says_tools_and_instructions_once_and_at_the_start() {
    let tools = tools();
    for template in [MISTRAL, MISTRAL_ARGS] {
        let text = mistral(template);
        let prompt = Prompt { instructions: "Be brief.", tools: &tools, ..PLAIN };
        // Before a first message it cannot say them.
        assert_eq!(show(&text, &prompt, LogEnd::Start, &[], Next::Nothing), "");
        let history = [user("a"), assistant("b"), user("a")];
        let whole = show(&text, &prompt, LogEnd::Start, &history, Next::Generate);
        assert!(whole.starts_with("<s>[AVAILABLE_TOOLS] [{\"type\": \"function\""), "{whole}");
        assert!(whole.ends_with("[INST] Be brief.\n\na[/INST] b</s>[INST] a[/INST]"), "{whole}");
        assert_eq!(show(&text, &prompt, LogEnd::Sampled, &[user("a")], Next::Generate), "[INST] a[/INST]");
    }
}

#[test]
fn mistral_gets_ids_of_nine_letters_and_digits_the_same_for_call_and_result() {
    let text = mistral(MISTRAL);
    let items = [user("a"), call("call_1_0_1", "{\"at\": 1}"), Item::tool_result("call_1_0_1", "sun"), assistant("b")];
    let whole = show(&text, &PLAIN, LogEnd::Start, &items, Next::Nothing);
    let (_, after) = whole.split_once("\"id\": \"").expect("an id");
    let id = &after[..9];
    assert!(id.bytes().all(|b| b.is_ascii_alphanumeric()), "{whole}");
    assert!(
        whole.contains(&format!("{{\"name\": \"look\", \"arguments\": {{\"at\": 1}}, \"id\": \"{id}\"}}]</s>")),
        "{whole}"
    );
    assert!(whole.contains(&format!("\"call_id\": \"{id}\"")), "{whole}");
    let theirs = [user("a"), call("abcdef123", "{}"), Item::tool_result("abcdef123", "sun")];
    assert_eq!(show(&text, &PLAIN, LogEnd::Start, &theirs, Next::Nothing).matches("abcdef123").count(), 2);
    rendering_in_pieces_is_rendering_at_once(&text, &items);
}

#[test]
fn a_call_is_forced_as_each_family_writes_it() {
    for (text, layout, any, named) in [
        (qwen3(), CallLayout::Enclosed, "<tool_call>", "<tool_call>\n{\"name\": \"look\", \"arguments\":"),
        (llama3(), CallLayout::Objects, "<|python_tag|>{\"name\": \"", "{\"name\": \"look\", \"parameters\":"),
        (mistral(MISTRAL), CallLayout::Array, "[TOOL_CALLS]", "[TOOL_CALLS] [{\"name\": \"look\", \"arguments\":"),
        (mistral(MISTRAL_ARGS), CallLayout::Array, "[TOOL_CALLS]", "[TOOL_CALLS]look[ARGS]"),
    ] {
        let form = text.tool_form().unwrap();
        assert_eq!(form.layout, layout);
        assert_eq!(spelt(&text, &form.forced_prefix(&text, None)), any);
        let forced = spelt(&text, &form.forced_prefix(&text, Some("look")));
        assert_eq!(forced.trim_end(), named);
        if layout == CallLayout::Array {
            let special = |text: &ModelText, name: &str| (0..).find(|id| text.special_text(*id) == Some(name)).unwrap();
            assert_eq!(form.open_token, Some(special(&text, "[TOOL_CALLS]")));
            let marks = ["[ARGS]", "[CALL_ID]"].map(|mark| (special(&text, mark), mark.to_owned()));
            assert_eq!(form.mark_tokens, marks);
        }
    }
}
