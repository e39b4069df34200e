//! Chat templates of families that people run, on a micro tokenizer: what tests of rendering and of sessions share.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, unreachable_pub, missing_docs)]

use std::path::Path;

use holdfast_model::random::MicroShape;
use holdfast_model::{LogEnd, ModelError, ModelText, Next, Prompt};
use holdfast_types::{Digest, Item, ItemContent, ItemState, Role, Tool};
use serde_json::{Value, json};

pub const QWEN3: &str = include_str!("../templates/qwen3.jinja");
pub const LLAMA3: &str = include_str!("../templates/llama3.jinja");
pub const MISTRAL: &str = include_str!("../templates/mistral.jinja");
pub const MISTRAL_ARGS: &str = include_str!("../templates/mistral_args.jinja");

pub const QWEN3_TOKENS: [&str; 2] = ["<think>", "</think>"];
pub const LLAMA3_TOKENS: [&str; 6] =
    ["<|begin_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>", "<|start_header_id|>", "<|end_header_id|>"];
pub const MISTRAL_TOKENS: [&str; 11] = [
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

pub const QWEN25: &str = include_str!("../templates/qwen25.jinja");
pub const SMOLLM3: &str = include_str!("../templates/smollm3.jinja");
pub const DEEPSEEK: &str = include_str!("../templates/deepseek_r1.jinja");
pub const GPT_OSS: &str = include_str!("../templates/gpt_oss.jinja");
pub const MISTRAL_V11: &str = include_str!("../templates/mistral_v11.jinja");
pub const PHI3: &str = include_str!("../templates/phi3.jinja");
pub const PHI4: &str = include_str!("../templates/phi4.jinja");
pub const GEMMA2: &str = include_str!("../templates/gemma2.jinja");
pub const GEMMA3: &str = include_str!("../templates/gemma3.jinja");

pub const HARMONY_TOKENS: [&str; 7] =
    ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>"];
pub const HARMONY_STOPS: [&str; 2] = ["<|return|>", "<|call|>"];
pub const DEEPSEEK_TOKENS: [&str; 6] =
    ["<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<think>", "</think>"];
pub const PHI3_TOKENS: [&str; 5] = ["<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"];
pub const GEMMA_TOKENS: [&str; 3] = ["<bos>", "<start_of_turn>", "<end_of_turn>"];
pub const MISTRAL_V11_TOKENS: [&str; 13] = [
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
];

/// A micro tokenizer with more special tokens; the ends of a turn are those of `stops`.
pub fn load(template: &str, tokens: &[&str], stops: &[&str]) -> Result<ModelText, ModelError> {
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
    ModelText::new(Path::new("micro"), &files, id, 65_536, Digest::default())
}

pub fn spelt(text: &ModelText, tokens: &[u32]) -> String {
    let one = |id: &u32| match text.special_text(*id) {
        Some(special) => special.as_bytes().to_vec(),
        None => text.token_bytes(*id).to_vec(),
    };
    String::from_utf8(tokens.iter().flat_map(one).collect()).unwrap()
}

pub fn show(text: &ModelText, prompt: &Prompt<'_>, after: LogEnd, items: &[Item], next: Next) -> String {
    spelt(text, &text.render(prompt, after, items, next).unwrap())
}

pub const PLAIN: Prompt<'static> =
    Prompt { instructions: "", tools: &[], date: "2026-11-20", template: "", effort: None, calls: &[] };

pub fn tools() -> Vec<Tool> {
    vec![Tool {
        name: "look".to_owned(),
        description: "Looks.".to_owned(),
        parameters_json_schema: String::new(),
        strict: false,
    }]
}

pub fn user(text: &str) -> Item {
    Item::message(Role::User, text)
}

pub fn assistant(text: &str) -> Item {
    Item::message(Role::Assistant, text)
}

pub fn complete(content: ItemContent) -> Item {
    Item { content, state: ItemState::Complete }
}

pub fn thought(text: &str) -> Item {
    complete(ItemContent::Reasoning { text: text.to_owned() })
}

pub fn call(id: &str, arguments: &str) -> Item {
    complete(ItemContent::ToolCall {
        call_id: id.to_owned(),
        name: "look".to_owned(),
        arguments: arguments.to_owned(),
        parse_error: None,
    })
}

/// Rendering in two pieces, wherever it is cut outside of an answer, gives the tokens of rendering at once.
pub fn rendering_in_pieces_is_rendering_at_once(text: &ModelText, items: &[Item]) {
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
