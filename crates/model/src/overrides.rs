//! Parts of published templates that look back, and what is rendered in their place.
//!
//! In: a template's source as published. Out: the source that is rendered, where it differs. Parts are known by their words
//! and not by the digest of the whole, since the same ones stand in many templates; that a template can be rendered piece by
//! piece with its parts replaced is proven like that of any other. `docs/decisions/0005-templates-that-look-back.md` says
//! what differs for a model. Deliberately not here: rendering, the proof.

/// A part of a published template that makes what was rendered depend on what comes later, and what we render instead.
struct Replacement {
    published: &'static str,
    ours: &'static str,
}

const REPLACEMENTS: &[Replacement] = &[
    // Qwen3: an answer's reasoning goes away with the next user message, and the last answer has an empty one.
    Replacement { published: "loop.index0 > ns.last_query_index", ours: "reasoning_content" },
    // Mistral: tools and instructions move to the last user message. The first one is the first message, or the second.
    Replacement {
        published: "(message == user_messages[-1])",
        ours: "(loop.index0 < 2 and message == user_messages[0])",
    },
    Replacement {
        published: "loop.last and system_message is defined",
        ours: "loop.first and system_message is defined",
    },
    // Phi-3: what is no prompt for an answer is ended as if it were a document for training.
    Replacement { published: "{% else %}{{ eos_token }}{% endif %}", ours: "{% endif %}" },
];

/// Harmony (gpt-oss): from here on the published template writes the messages.
const HARMONY_MESSAGES: &str = "{%- set last_tool_call = namespace(name=none) %}";
/// A part of it without which another template's messages would be replaced.
const HARMONY_FINAL: &str = "<|start|>assistant<|channel|>final<|message|>";

/// The messages of a harmony template. As published: analysis goes away with the next answer, the last answer ends with
/// `<|return|>` and every earlier one with `<|end|>`, a message has one call, and later instructions are not written at all.
/// Here: analysis stays where it is given, an answer ends as it was sampled, every call is written, and an answer before calls
/// is a preamble.
const HARMONY_OURS: &str = "\
{%- for message in loop_messages %}
    {%- if message.role == 'assistant' %}
        {%- if message.reasoning_content %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + message.reasoning_content + '<|end|>' }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- if message.content %}
                {{- '<|start|>assistant<|channel|>commentary<|message|>' + message.content + '<|end|>' }}
            {%- endif %}
            {%- for tool_call in message.tool_calls %}
                {{- '<|start|>assistant to=functions.' + tool_call.function.name + '<|channel|>commentary json<|message|>' }}
                {{- tool_call.function.arguments | tojson }}
                {{- '<|call|>' }}
            {%- endfor %}
        {%- else %}
            {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|return|>' }}
        {%- endif %}
    {%- elif message.role == 'tool' %}
        {{- '<|start|>functions.' + (message.name or 'tool') + ' to=assistant<|channel|>commentary<|message|>' }}
        {{- message.content | tojson }}
        {{- '<|end|>' }}
    {%- else %}
        {{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant' }}
{%- endif %}
";

/// What is rendered for a published source; `None` where that is the source itself.
pub(crate) fn rendered_for(published: &str) -> Option<String> {
    let mut ours = REPLACEMENTS.iter().fold(published.to_owned(), |text, part| text.replace(part.published, part.ours));
    if let Some(at) = ours.find(HARMONY_MESSAGES).filter(|_| ours.contains(HARMONY_FINAL)) {
        ours.truncate(at);
        ours.push_str(HARMONY_OURS);
    }
    (ours != published).then_some(ours)
}

/// The source as this engine reads it: `generation` marks what a trainer learns from, and renders what is in it.
pub(crate) fn readable(source: &str) -> String {
    let mut out = source.to_owned();
    for (tag, condition) in [("generation", "if true"), ("endgeneration", "endif")] {
        for open in ["{%-", "{%"] {
            for close in ["-%}", "%}"] {
                out = out.replace(&format!("{open} {tag} {close}"), &format!("{open} {condition} {close}"));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_training_mark_is_read_over() {
        assert_eq!(readable("a{% generation %}b{%- endgeneration -%}c"), "a{% if true %}b{%- endif -%}c");
        assert_eq!(readable("{{ add_generation_prompt }}"), "{{ add_generation_prompt }}");
    }

    #[test]
    fn only_known_words_are_replaced() {
        assert_eq!(rendered_for("{{ messages }}"), None);
        assert_eq!(rendered_for(HARMONY_MESSAGES), None);
        let harmony = format!("head{HARMONY_MESSAGES}{HARMONY_FINAL}");
        assert_eq!(rendered_for(&harmony), Some(format!("head{HARMONY_OURS}")));
    }
}
