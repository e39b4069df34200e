"""The files of a model directory; dialogues by which the product checks that it renders what was trained; and dialogues on
held-out values by which it measures what quantised weights cost."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from . import vocabulary
from .batches import CHARACTERS_PER_TOKEN, dialogue_of
from .dialogue import plain_text
from .render import WEIGHT_SAID, Renderer
from .train import load

CHECKED_DIALOGUES = 24
HELD_OUT_DIALOGUES = 24
HELD_OUT_TOKENS = 512

GENERATION = {"do_sample": False, "eos_token_id": 0, "pad_token_id": 1}


def export(run: Path, into: Path, product: Path) -> None:
    """Writes the checkpoint of `run` as a directory in Hugging Face's layout."""
    model, state = load(run / "checkpoint.pt")
    into.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().to(torch.bfloat16).contiguous() for name, p in model.named_parameters()}
    trained = {name: str(round(count)) for name, count in state.items()}
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt", **trained})
    (into / "model.safetensors").chmod(0o644)
    (into / "config.json").write_text(json.dumps(model.config.huggingface(), indent=1) + "\n")
    (into / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n")
    shutil.copy(run / "tokenizer.json", into / "tokenizer.json")
    for name, source in (("MODEL_CARD.md", run), ("chat_template.jinja", product)):
        if (source / name).exists() and source / name != into / name:
            shutil.copy(source / name, into / name)


def write_dialogues(template: Path, tokenizer: Path, into: Path) -> None:
    """Dialogues of every shape as messages and as the tokens of training."""
    renderer, out = Renderer(template, vocabulary.load(tokenizer)), []
    for seed in range(CHECKED_DIALOGUES):
        dialogue = dialogue_of(random.Random(seed), ("mix", "tools", "book", "chat")[seed % 4], 800)
        messages = []
        for message in dialogue.messages:
            if "tool_calls" in message:
                function = message["tool_calls"][0]["function"]
                made = {
                    "name": function["name"],
                    "arguments": plain_text(json.dumps(function["arguments"], ensure_ascii=False)),
                }
                messages.append({"role": "assistant", "call": made})
            else:
                messages.append({"role": message["role"], "content": plain_text(message["content"])})
        ids = renderer.tokenizer.encode(renderer.render(dialogue).text, add_special_tokens=False).ids
        tools = [{"name": tool.name, "arguments": list(tool.arguments)} for tool in dialogue.tools]
        out.append(
            json.dumps(
                {"instructions": dialogue.system, "tools": tools, "messages": messages, "ids": ids}, ensure_ascii=False
            )
        )
    into.write_text("[\n" + ",\n".join(out) + "\n]\n")


def write_held_out(template: Path, tokenizer: Path, into: Path) -> None:
    """Dialogues of one length on values that training never shows: their tokens, and which of them Pebble says."""
    renderer, out = Renderer(template, vocabulary.load(tokenizer)), []
    for seed in range(HELD_OUT_DIALOGUES):
        dialogue = dialogue_of(
            random.Random(1_000_000 + seed), "mix", 1.5 * HELD_OUT_TOKENS * CHARACTERS_PER_TOKEN, True
        )
        ids, weights, *_ = (of[:HELD_OUT_TOKENS] for of in renderer.tokens(dialogue, np.random.default_rng(seed)))
        spoken = np.flatnonzero(weights >= WEIGHT_SAID)
        out.append(json.dumps({"ids": ids.tolist(), "spoken": spoken.tolist()}))
    into.write_text("[\n" + ",\n".join(out) + "\n]\n")
