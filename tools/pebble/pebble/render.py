"""Dialogues to text, tokens and loss weights, through the chat template that the product renders."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from tokenizers import Tokenizer

from .dialogue import Dialogue
from .facts import MARK
from .vocabulary import MARKS

ASSISTANT = re.compile(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", re.DOTALL)

WEIGHT_SAID = 1.0
WEIGHT_VALUE = 3.0
WEIGHT_DECISION = 6.0
"""Of the first token of an answer: it decides between answer, call and refusal."""
WEIGHT_OTHER = 0.5
OTHER_SHARE = 0.05
"""So many of the tokens that are not Pebble's are learned as well: their features are of use."""


def template(path: Path) -> jinja2.Template:
    """The template, in the environment that Hugging Face and the product give it."""
    env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    env.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)

    def refuse(message: str):
        raise ValueError(message)

    env.globals["raise_exception"] = refuse
    return env.from_string(path.read_text())


@dataclass
class Rendered:
    text: str
    weights: np.ndarray
    """Of each character, 0 where Pebble does not speak."""
    takes: dict[int, str]
    """Where an answer begins that takes a tool, listed or not: its name."""


class Renderer:
    def __init__(self, template_path: Path, tokenizer: Tokenizer | None = None):
        self.template = template(template_path)
        self.tokenizer = tokenizer

    def marked_text(self, dialogue: Dialogue, generate: bool = False) -> str:
        messages = dialogue.messages
        if dialogue.system:
            messages = [{"role": "system", "content": dialogue.system}, *messages]
        tools = [
            {
                "type": "function",
                "function": {
                    "name": t.name,
                    "description": "",
                    "parameters": {"type": "object", "properties": {a: {} for a in t.arguments}},
                },
            }
            for t in dialogue.tools
        ]
        return self.template.render(messages=messages, tools=tools or None, add_generation_prompt=generate)

    def render(self, dialogue: Dialogue) -> Rendered:
        marked = self.marked_text(dialogue)
        at = np.zeros(len(marked), dtype=np.float32)
        answers = [message for message in dialogue.messages if message["role"] == "assistant"]
        takes = {}
        for match, message in zip(ASSISTANT.finditer(marked), answers, strict=True):
            at[match.start(1) : match.end(1)] = WEIGHT_SAID
            decision = match.start(1) + (marked[match.start(1)] == MARK)
            at[decision] = WEIGHT_DECISION
            if message["takes"]:
                takes[decision] = message["takes"]
        keep = np.ones(len(marked), dtype=bool)
        for match in MARKS.finditer(marked):
            keep[match.start()] = False
            if match.group() == MARK:
                opened = match.start()
            else:
                # A space before is a token, and says whether there is a value.
                at[opened - (marked[opened - 1] == " ") : match.start()] = WEIGHT_VALUE
        moved = keep.cumsum() - 1
        return Rendered(MARKS.sub("", marked), at[keep], {int(moved[i]): name for i, name in takes.items()})

    def tokens(self, dialogue: Dialogue, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, the weight of predicting each, and the tool that the answer which begins there takes, else 0."""
        rendered = self.render(dialogue)
        encoding = self.tokenizer.encode(rendered.text, add_special_tokens=False)
        ids = np.array(encoding.ids, dtype=np.int32)
        starts = np.array([start for start, _ in encoding.offsets])
        weights = rendered.weights[np.minimum(starts, len(rendered.weights) - 1)].copy()
        others = (weights == 0) & (rng.random(len(ids)) < OTHER_SHARE)
        weights[others] = WEIGHT_OTHER
        tools = np.zeros(len(ids), dtype=np.int32)
        for character, name in rendered.takes.items():
            tools[np.searchsorted(starts, character)] = self.tokenizer.token_to_id(name)
        return ids, weights, tools
