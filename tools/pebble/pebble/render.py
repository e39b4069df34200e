"""Dialogues to text, tokens and loss weights, through the chat template that the product renders."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from tokenizers import Tokenizer

from .dialogue import Dialogue
from .facts import MARK, UNKNOWN, UNMARK, UNTOLD, UNTOLD_LIKING, UNTOLD_PLACE
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


REFUSING = {MARKS.sub("", said[: said.index(UNMARK)]) for said in (UNTOLD, UNTOLD_PLACE, UNTOLD_LIKING, UNKNOWN)}
"""What is said in place of a value's first word."""


def last_before(text: str, value: str, end: int) -> int:
    """Where a value stands for the last time before `end`, as whole words; negative if nowhere."""
    at = text.rfind(value, 0, end)
    while at >= 0 and (text[at - 1 : at].isalnum() or text[at + len(value)].isalnum()):
        at = text.rfind(value, 0, at + len(value) - 1)
    return at


@dataclass
class Rendered:
    text: str
    weights: np.ndarray
    """Of each character, 0 where Pebble does not speak."""
    takes: dict[int, str]
    """Where an answer begins that takes a tool, listed or not: its name."""
    sources: dict[int, int]
    """Where a value begins, or what is said in its place: where it was last, or 0 if it was never told."""


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
        sources = {}
        for match in MARKS.finditer(marked):
            keep[match.start()] = False
            if match.group() == MARK:
                opened = match.start()
            else:
                # A space before is a token, and says whether there is a value.
                begins = opened - (marked[opened - 1] == " ")
                at[begins : match.start()] = WEIGHT_VALUE
                value = marked[opened + 1 : match.start()]
                first = begins + (begins == opened)
                if value in REFUSING:
                    sources[first] = 0
                elif (source := last_before(marked, value, begins)) > 0:
                    sources[first] = source
        moved = keep.cumsum() - 1
        return Rendered(
            MARKS.sub("", marked),
            at[keep],
            {int(moved[i]): name for i, name in takes.items()},
            {int(moved[i]): int(moved[source]) for i, source in sources.items()},
        )

    def tokens(self, dialogue: Dialogue, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Ids; the weight of predicting each; the tool that the answer which begins there takes, else 0; and one more
        than where the value that begins there was last, else 0."""
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
        sources = np.zeros(len(ids), dtype=np.int32)
        for character, source in rendered.sources.items():
            at = int(np.searchsorted(starts, character, "right")) - 1
            # A space before the value looks where the value looks.
            alone = rendered.text[character] == " " and starts[at + 1] == character + 1
            sources[at : at + 1 + alone] = np.searchsorted(starts, source, "right")
        return ids, weights, tools, sources
