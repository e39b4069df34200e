//! What each family's template is found to do to history, and that what is rendered in its place is stable: reasoning,
//! efforts, harmony, templates without a system role, dates.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod spoken;

use holdfast_model::{
    ChannelMark, HistoryRendering, LogEnd, LookBack, ModelText, Next, Prompt, ReasoningForm, Stability,
};
use holdfast_types::{Item, ReasoningEffort};
use spoken::*;

fn harmony() -> ModelText {
    load(GPT_OSS, &HARMONY_TOKENS, &HARMONY_STOPS).unwrap()
}

fn smollm3() -> ModelText {
    load(SMOLLM3, &QWEN3_TOKENS, &[]).unwrap()
}

fn only(text: &ModelText) -> Stability {
    let [stability] = text.stability()[..] else { panic!("one template") };
    stability.clone()
}

#[test]
fn every_family_is_known_by_what_it_looks_back_at() {
    use HistoryRendering::{Published, Replaced};
    use LookBack::{Answers, LaterSystem, Prompt, Reasoning, Results, System, Tools};
    type Row<'a> = (&'a str, &'a [&'a str], &'a [&'a str], HistoryRendering, &'a [LookBack], &'a [LookBack], bool);
    let rows: [Row<'_>; 12] = [
        (QWEN25, &[], &[], Published, &[Results], &[Results], false),
        (QWEN3, &QWEN3_TOKENS, &[], Replaced, &[Answers, Reasoning, Results], &[Results], false),
        (SMOLLM3, &QWEN3_TOKENS, &[], Published, &[Reasoning], &[Reasoning], true),
        (DEEPSEEK, &DEEPSEEK_TOKENS, &["<｜end▁of▁sentence｜>"], Published, &[], &[], false),
        (LLAMA3, &LLAMA3_TOKENS, &["<|eot_id|>"], Published, &[], &[], true),
        (MISTRAL, &MISTRAL_TOKENS, &["</s>"], Replaced, &[Tools, System], &[], false),
        (MISTRAL_V11, &MISTRAL_V11_TOKENS, &["</s>"], Published, &[], &[], false),
        (PHI3, &PHI3_TOKENS, &["<|end|>"], Replaced, &[Answers], &[], false),
        (PHI4, &["<|im_sep|>"], &[], Published, &[], &[], false),
        (GEMMA2, &GEMMA_TOKENS, &["<end_of_turn>"], Published, &[], &[], false),
        (GEMMA3, &GEMMA_TOKENS, &["<end_of_turn>"], Published, &[], &[], false),
        (GPT_OSS, &HARMONY_TOKENS, &HARMONY_STOPS, Replaced, &[Answers, Reasoning], &[], true),
    ];
    for (source, tokens, stops, rendering, published, left, dated) in rows {
        let stability = only(&load(source, tokens, stops).unwrap());
        let what = &source[..source.len().min(120)];
        assert_eq!(stability.rendering, rendering, "{what}");
        let mut expected = (published.to_vec(), left.to_vec());
        if source == DEEPSEEK {
            // Its prompt begins reasoning, and a later system message moves to the front.
            expected = (vec![Reasoning, LaterSystem, Prompt], vec![Reasoning, LaterSystem, Prompt]);
        }
        assert_eq!((stability.published, stability.left, stability.dated), (expected.0, expected.1, dated), "{what}");
    }
}

#[test]
fn harmony_says_system_developer_tools_and_messages() {
    let text = harmony();
    let mut tools = tools();
    tools[0].parameters_json_schema =
        r#"{"properties": {"at": {"type": "string", "description": "Where."}, "how": {"enum": ["far", "near"]}}, "required": ["at"]}"#
            .to_owned();
    let prompt = Prompt { instructions: "Be brief.", tools: &tools, effort: Some(ReasoningEffort::High), ..PLAIN };
    let start = show(&text, &prompt, LogEnd::Start, &[user("hi")], Next::Generate);
    assert_eq!(
        start,
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n\
         Current date: 2026-11-20\n\nReasoning: high\n\n# Valid channels: analysis, commentary, final. Channel must be included for \
         every message.\nCalls to these tools must go to the commentary channel: 'functions'.<|end|>\
         <|start|>developer<|message|># Instructions\n\nBe brief.\n\n# Tools\n\n## functions\n\nnamespace functions {\n\n// Looks.\n\
         type look = (_: {\n// Where.\nat: string,\nhow?: \"far\" | \"near\"\n}) => any;\n\n} // namespace functions<|end|>\
         <|start|>user<|message|>hi<|end|><|start|>assistant"
    );
    let calls = [call("1", "{\"at\":  1}"), call("2", "{}")];
    let results = [Item::tool_result("1", "sun"), Item::tool_result("2", "rain")];
    // Results say whose they are, though the calls were made before.
    let answering = Prompt { calls: &calls, ..prompt };
    assert_eq!(
        show(&text, &answering, LogEnd::Sampled, &results, Next::Generate),
        "<|start|>functions.look to=assistant<|channel|>commentary<|message|>\"sun\"<|end|>\
         <|start|>functions.look to=assistant<|channel|>commentary<|message|>\"rain\"<|end|><|start|>assistant"
    );
    let history = [
        user("a"),
        thought("hm"),
        assistant("Both."),
        calls[0].clone(),
        calls[1].clone(),
        results[0].clone(),
        results[1].clone(),
        thought("so"),
        assistant("b"),
        Item::message(holdfast_types::Role::Developer, "Now in verse."),
        user("c"),
    ];
    let whole = show(&text, &prompt, LogEnd::Start, &history, Next::Nothing);
    let (_, messages) = whole.split_once("namespace functions<|end|>").unwrap();
    assert_eq!(
        messages,
        "<|start|>user<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>hm<|end|>\
         <|start|>assistant<|channel|>commentary<|message|>Both.<|end|>\
         <|start|>assistant to=functions.look<|channel|>commentary json<|message|>{\"at\": 1}<|call|>\
         <|start|>assistant to=functions.look<|channel|>commentary json<|message|>{}<|call|>\
         <|start|>functions.look to=assistant<|channel|>commentary<|message|>\"sun\"<|end|>\
         <|start|>functions.look to=assistant<|channel|>commentary<|message|>\"rain\"<|end|>\
         <|start|>assistant<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>\
         <|start|>developer<|message|>Now in verse.<|end|><|start|>user<|message|>c<|end|>"
    );
}

#[test]
fn harmony_rendered_in_pieces_is_rendered_at_once_and_its_form_is_known() {
    let text = harmony();
    let steps = [user("a"), thought("hm"), assistant("b"), user("c"), assistant("d"), user("e")];
    rendering_in_pieces_is_rendering_at_once(&text, &steps);
    let form = text.tool_form().unwrap();
    assert_eq!(form.open, "<|channel|>commentary to=functions.");
    assert_eq!(form.after_name, " <|constrain|>json<|message|>");
    let Some(ReasoningForm::Channels { marks }) = text.reasoning_form() else { panic!("harmony has channels") };
    let ends = marks.iter().filter(|(_, mark, _)| *mark == ChannelMark::End).map(|(id, ..)| text.special_text(*id));
    assert_eq!(ends.collect::<Vec<_>>(), [Some("<|end|>"), Some("<|call|>"), Some("<|return|>")]);
}

#[test]
fn efforts_reach_the_template_and_others_are_not_known() {
    use ReasoningEffort::{High, Low, Medium, None as Off};
    let with = |effort| Prompt { effort, ..PLAIN };
    for (text, known) in [
        (load(QWEN3, &QWEN3_TOKENS, &[]).unwrap(), &[Off, Low, Medium, High][..]),
        (smollm3(), &[Off, Low, Medium, High]),
        (harmony(), &[Low, Medium, High]),
        (load(QWEN25, &[], &[]).unwrap(), &[]),
    ] {
        assert_eq!(text.efforts(&PLAIN), known);
    }
    let start = |text: &ModelText, effort| show(text, &with(effort), LogEnd::Start, &[user("a")], Next::Generate);
    let qwen = load(QWEN3, &QWEN3_TOKENS, &[]).unwrap();
    assert!(start(&qwen, Some(Off)).ends_with("assistant\n<think>\n\n</think>\n\n"));
    assert!(start(&qwen, Some(High)).ends_with("assistant\n"));
    assert!(start(&smollm3(), None).contains("Today Date: 20 November 2026\nReasoning Mode: /think\n"));
    let silent = start(&smollm3(), Some(Off));
    assert!(silent.contains("Reasoning Mode: /no_think") && silent.ends_with("<think>\n\n</think>\n"), "{silent}");
    assert!(start(&harmony(), None).contains("Reasoning: medium"));
    assert!(start(&harmony(), Some(Low)).contains("Reasoning: low"));
}

#[test]
fn a_prompt_that_opens_reasoning_is_known() {
    let thinking = QWEN3.replace(
        "{{- '<|im_start|>assistant\\n' }}\n    {%- if enable_thinking is defined and enable_thinking is false %}\n        {{- '<think>\\n\\n</think>\\n\\n' }}\n    {%- endif %}",
        "{{- '<|im_start|>assistant\\n<think>\\n' }}",
    );
    assert_ne!(thinking, QWEN3);
    for (source, tokens, stops, opens) in [
        (QWEN3, &QWEN3_TOKENS[..], &[][..], false),
        (&thinking, &QWEN3_TOKENS, &[], true),
        (DEEPSEEK, &DEEPSEEK_TOKENS, &["<｜end▁of▁sentence｜>"], true),
        (GPT_OSS, &HARMONY_TOKENS, &HARMONY_STOPS, false),
    ] {
        let text = load(source, tokens, stops).unwrap();
        assert_eq!(text.opens_reasoning(&PLAIN), opens);
    }
}

#[test]
fn a_template_without_a_system_role_is_instructed_in_the_first_user_message() {
    let items = [user("a"), assistant("b"), user("c")];
    let prompt = Prompt { instructions: "Be <end_of_turn> brief.", ..PLAIN };
    for source in [GEMMA2, GEMMA3] {
        let text = load(source, &GEMMA_TOKENS, &["<end_of_turn>"]).unwrap();
        // Before a first message it cannot say them.
        assert_eq!(show(&text, &prompt, LogEnd::Start, &[], Next::Nothing), "");
        let whole = show(&text, &prompt, LogEnd::Start, &items, Next::Generate);
        assert_eq!(
            whole,
            "<bos><start_of_turn>user\nBe <end_of_turn> brief.\n\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n\
             <start_of_turn>user\nc<end_of_turn>\n<start_of_turn>model\n"
        );
        let delta = show(&text, &prompt, LogEnd::Sampled, &items[2..], Next::Generate);
        assert_eq!(delta, "\n<start_of_turn>user\nc<end_of_turn>\n<start_of_turn>model\n");
        let tokens = text.render(&prompt, LogEnd::Start, &items, Next::Generate).unwrap();
        let ends = tokens.iter().filter(|id| text.special_text(**id) == Some("<end_of_turn>"));
        assert_eq!(ends.count(), 3, "a client's text is none");
        let mut pieces = text.render(&prompt, LogEnd::Start, &items[..1], Next::Nothing).unwrap();
        pieces.extend(text.render(&prompt, LogEnd::Closed, &items[1..], Next::Generate).unwrap());
        assert_eq!(pieces, tokens);
    }
}

#[test]
fn phi_and_smollm_are_rendered_in_pieces_as_at_once() {
    let history = [user("a"), assistant("b"), user("c"), assistant("d"), user("e")];
    let phi3 = load(PHI3, &PHI3_TOKENS, &["<|end|>"]).unwrap();
    let prompt = Prompt { instructions: "Be brief.", ..PLAIN };
    assert_eq!(
        show(&phi3, &prompt, LogEnd::Start, &history[..3], Next::Generate),
        "<|system|>\nBe brief.<|end|>\n<|user|>\na<|end|>\n<|assistant|>\nb<|end|>\n<|user|>\nc<|end|>\n<|assistant|>\n"
    );
    for text in [smollm3(), load(QWEN25, &[], &[]).unwrap()] {
        rendering_in_pieces_is_rendering_at_once(&text, &history);
    }
    for at in 1..history.len() {
        let mut pieces = phi3.render(&prompt, LogEnd::Start, &history[..at], Next::Nothing).unwrap();
        pieces.extend(phi3.render(&prompt, LogEnd::Closed, &history[at..], Next::Nothing).unwrap());
        assert_eq!(pieces, phi3.render(&prompt, LogEnd::Start, &history, Next::Nothing).unwrap());
    }
}
