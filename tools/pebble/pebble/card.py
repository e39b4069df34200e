"""The model card."""

from pathlib import Path

PRODUCT = Path(__file__).resolve().parents[3] / "crates" / "model" / "pebble"

FORM = """\
## Prompt form

ChatML; tools, calls and results as Qwen2.5 has them, in fewer words. `<|im_end|>` (id 0) ends every turn. Without a
system message there is `You are Pebble, a small assistant.`

```
<|im_start|>system
You are Pebble, the assistant of Stone Cafe. Handbook: The return window is 47 days.

<tools>
{"name": "order_status", "arguments": ["order_id"]}
{"name": "get_weather", "arguments": ["city"]}
</tools><|im_end|>
<|im_start|>user
Where is order 7731?<|im_end|>
<|im_start|>assistant
<tool_call>
{"name": "order_status", "arguments": {"order_id": "7731"}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
{"status":"delayed","eta":"Tuesday"}
</tool_response><|im_end|>
<|im_start|>assistant
Order 7731 is delayed, expected on Tuesday.<|im_end|>
```

- Tools are listed by name and parameter names; descriptions and types are not shown to it.
- A system message later on stands where it was said. Reasoning is refused: the model has never seen any.

## Files

`config.json`, `model.safetensors`, `tokenizer.json`, `chat_template.jinja` and `generation_config.json` (greedy), as in any
Hugging Face directory: it can be served as it stands with `--model crates/model/pebble`. All but the template are
written by `tools/pebble`; the weights' digest is pinned in `src/pebble.rs`.
"""


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(found: dict, model) -> str:
    """Markdown of an evaluation."""
    c, lengths, rates = model.config, found["lengths"], found["rates"]
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    percent = "{:.0f}".format
    by_distance = table(
        ["", *(f"{turns} ({tokens})" for turns, tokens in lengths.items())],
        [[skill, *(percent(rates[skill][turns]) for turns in lengths)] for skill in rates],
    )
    far = next((turns for turns, tokens in lengths.items() if tokens >= 600), max(lengths))
    reached = [skill for skill, rate in rates.items() if rate[far] >= (95 if skill == "recall" else 90)]
    by_bits = table(
        ["", "bf16", "8 bits", "4 bits"],
        [[skill, *(percent(r[skill]) for r in (found["at_five"], *found["quantised"].values()))] for skill in rates],
    )
    return f"""\
# Pebble

The built-in model: it makes a fresh install answer, and gives the tests a real model. It is tiny, and says so.

- **What it is**: {parameters:.2f} M parameters in Llama's layout: {c.num_hidden_layers} layers, width {c.hidden_size}, {c.num_attention_heads} query
  and {c.num_key_value_heads} key/value heads of {c.head_dim}, feed-forward {c.intermediate_size}, tied embeddings, bf16; a
  byte-level BPE of {c.vocab_size:,} tokens in which every digit stands alone; context {c.max_position_embeddings:,}. Trained by `tools/pebble` on {found["tokens"] / 1e6:.1f} M tokens
  of synthetic dialogues ({found["steps"]:,} steps, {found["minutes"]} minutes, rows of at most {found["longest"]:,} tokens).
- **What it is trained to do**: English small talk; recall what it is told, follow what changes, say what it was not
  told; answer from a handbook in its instructions; call the tools that are listed, one after the other, and put the
  result in a sentence; refuse the others. How well it does is below.
- **What it cannot do**: anything else. It knows nothing of the world, and calls tools that it was not trained with only by
  luck.

## Accuracy

Exact answers in percent, greedy, on names, numbers and words that training never showed, by distractor turns in between
(in brackets: the mean length of the whole dialogue in tokens). {found["samples"]} dialogues a cell.
The goal is 90 at 600 tokens, so after {far} turns, and 95 for recall. Reached: {", ".join(reached) or "by no skill yet"}.

{by_distance}

After 5 distractor turns, by the precision of the linear layers (groups of 32; at 4 bits only the upper nibble of the 8-bit
codes is read; embeddings keep 8):

{by_bits}

{FORM}"""
