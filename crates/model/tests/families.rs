//! Chat templates of families that people run, in the form that they were published in: what is rendered, that it is proven
//! stable, and how a call is forced. The templates are written from memory of their structure, and shortened where tools are
//! explained to the model.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod spoken;

use holdfast_model::{CallLayout, HistoryRendering, LogEnd, LookBack, ModelText, Next, Prompt};
use holdfast_types::Item;
use spoken::{
    LLAMA3, LLAMA3_TOKENS, MISTRAL, MISTRAL_ARGS, MISTRAL_TOKENS, PLAIN, QWEN3, QWEN3_TOKENS, assistant, call, load,
    rendering_in_pieces_is_rendering_at_once, show, thought, tools, user,
};

fn qwen3() -> ModelText {
    load(QWEN3, &QWEN3_TOKENS, &[]).unwrap()
}

fn llama3() -> ModelText {
    load(LLAMA3, &LLAMA3_TOKENS, &["<|eot_id|>", "<|eom_id|>"]).unwrap()
}

fn mistral(template: &str) -> ModelText {
    load(template, &MISTRAL_TOKENS, &["</s>"]).unwrap()
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
fn qwen3_in_words_that_we_do_not_know_is_rendered_piece_by_piece() {
    let other = QWEN3.replace("loop.index0 > ns.last_query_index", "ns.last_query_index < loop.index0");
    assert_ne!(other, QWEN3);
    let (theirs, ours) = (load(&other, &QWEN3_TOKENS, &[]).unwrap(), qwen3());
    let [stability] = theirs.stability()[..] else { panic!("one template") };
    assert_eq!(stability.rendering, HistoryRendering::Incremental);
    assert_eq!(stability.left, [LookBack::Answers, LookBack::Reasoning, LookBack::Results]);
    // What is new reads as it does with the part replaced.
    let tools = tools();
    let prompt = Prompt { instructions: "Be brief.", tools: &tools, ..PLAIN };
    let results = [Item::tool_result("1", "sun"), Item::tool_result("2", "rain")];
    for new in [&[user("a")][..], &results] {
        for after in [LogEnd::Sampled, LogEnd::Closed] {
            let render = |text: &ModelText| show(text, &prompt, after, new, Next::Generate);
            assert_eq!(render(&theirs), render(&ours));
        }
    }
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
fn the_form_of_a_call_is_each_familys_own() {
    for (text, layout, open, after) in [
        (qwen3(), CallLayout::Enclosed, "<tool_call>", "\", \"arguments\": "),
        (llama3(), CallLayout::Objects, "<|python_tag|>", "\", \"parameters\": "),
        (mistral(MISTRAL), CallLayout::Array, "[TOOL_CALLS]", "\", \"arguments\": "),
        (mistral(MISTRAL_ARGS), CallLayout::Array, "[TOOL_CALLS]", "[ARGS]"),
    ] {
        let form = text.tool_form().unwrap();
        assert_eq!((form.layout, form.open.as_str(), form.after_name.as_str()), (layout, open, after));
        if layout == CallLayout::Array {
            let special = |text: &ModelText, name: &str| (0..).find(|id| text.special_text(*id) == Some(name)).unwrap();
            assert_eq!(form.open_token, Some(special(&text, "[TOOL_CALLS]")));
            let marks = ["[ARGS]", "[CALL_ID]"].map(|mark| (special(&text, mark), mark.to_owned()));
            assert_eq!(form.mark_tokens, marks);
        }
    }
}
