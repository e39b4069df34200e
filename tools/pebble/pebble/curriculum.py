"""What is learned when: shapes of dialogues, and the stages that mix them at rising lengths."""

from dataclasses import dataclass

from .dialogue import Shape

FACTS = Shape({"tell": 4, "recall": 4, "never_told": 4, "update": 1}, no_tools=1.0, no_policies=1.0)
DENSE = Shape(
    {"tell_some": 3, "ask_some": 6, "update": 0.7, "recall": 0.7, "never_told": 0.7},
    policies=(1, 10),
    no_tools=0.9,
    no_policies=0.6,
)
BOOK = Shape(
    {"policy_asked": 4, "policy_missing": 4, "tell": 1, "recall": 1}, policies=(1, 6), no_tools=0.9, no_policies=0.0
)
TOOLS = Shape(
    {"tool_turn": 6, "two_steps": 1.5, "argument_told": 0.7, "remembered": 1.5},
    tools=(1, 3),
    no_tools=0.05,
    no_policies=0.9,
)
MIX = Shape(
    {
        "tell": 3,
        "tell_two": 0.4,
        "ask_some": 0.3,
        "recall": 3.5,
        "update": 1.2,
        "never_told": 1.8,
        "policy_asked": 1.6,
        "policy_missing": 1.6,
        "tool_turn": 3.5,
        "two_steps": 1.4,
        "argument_told": 1.0,
        "remembered": 1.4,
        "small_talk": 3.5,
    },
    tools=(1, 5),
    policies=(1, 6),
)
MEMORY = Shape(
    {
        "tell": 3,
        "tell_two": 0.4,
        "recall": 6,
        "update": 1.4,
        "never_told": 4,
        "policy_asked": 4,
        "policy_missing": 4,
        "tool_turn": 1,
        "two_steps": 0.7,
        "argument_told": 0.8,
        "remembered": 1.5,
        "small_talk": 1,
    },
    tools=(1, 4),
    policies=(1, 8),
)
CHAT = Shape(
    {
        "small_talk": 5,
        "tell": 3,
        "recall": 3,
        "tell_two": 0.6,
        "update": 1,
        "never_told": 1.2,
        "tool_turn": 1,
        "policy_missing": 0.5,
        "remembered": 0.3,
    },
    no_tools=0.75,
    no_policies=0.8,
)
SHAPES = {"facts": FACTS, "dense": DENSE, "book": BOOK, "tools": TOOLS, "mix": MIX, "memory": MEMORY, "chat": CHAT}


@dataclass
class Stage:
    """So much of the run, with rows of these lengths and dialogues of these shapes, both by weight."""

    until: float
    lengths: dict[int, float]
    shapes: dict[str, float]
    quantised: float = 0.0
    """Share of the steps that are taken on the simulated 4-bit path."""


CPU = [
    Stage(0.06, {96: 1.0}, {"facts": 1.0}),
    Stage(0.16, {160: 1.0}, {"facts": 2, "book": 2, "tools": 4, "chat": 1.5}),
    Stage(0.30, {256: 0.6, 512: 0.4}, {"facts": 1, "book": 1.5, "tools": 5, "memory": 3, "chat": 1}),
    Stage(0.70, {256: 0.3, 512: 0.5, 1024: 0.2}, {"dense": 6, "tools": 1, "memory": 2, "mix": 1.5, "chat": 0.5}),
    Stage(
        0.86,
        {256: 0.1, 512: 0.4, 1024: 0.5},
        {"dense": 3, "tools": 2, "memory": 3, "mix": 3, "chat": 0.8},
    ),
    Stage(
        1.0,
        {256: 0.1, 512: 0.4, 1024: 0.5},
        {"dense": 1.5, "tools": 2, "memory": 2.5, "mix": 4, "chat": 1},
        quantised=0.5,
    ),
]
GPU = [
    Stage(0.03, {128: 1.0}, {"facts": 1.0}),
    Stage(0.15, {128: 0.5, 256: 0.5}, {"facts": 2, "book": 3, "tools": 4, "chat": 2}),
    Stage(0.40, {256: 0.5, 512: 0.5}, {"dense": 4, "tools": 3, "memory": 2, "mix": 2, "chat": 1}),
    Stage(
        0.80,
        {512: 0.5, 1024: 0.3, 2048: 0.2},
        {"dense": 2, "tools": 2.5, "memory": 2.5, "mix": 4, "chat": 1},
    ),
    Stage(
        1.0,
        {256: 0.1, 512: 0.3, 1024: 0.3, 2048: 0.3},
        {"dense": 1, "tools": 2.5, "memory": 2.5, "mix": 5, "chat": 1},
        quantised=0.5,
    ),
]


def stage(stages: list[Stage], progress: float) -> Stage:
    """The stage at this part of the run, 0 to 1."""
    return next((s for s in stages if progress < s.until), stages[-1])
