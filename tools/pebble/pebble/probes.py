"""What is examined: for each skill a dialogue on held-out values that ends in the answer that is right.

A probe is a setup, so many turns of other things, and a question. Out: the dialogue, and which of its last messages
count.
"""

import random
from collections.abc import Callable
from dataclasses import replace

from .curriculum import MIX
from .dialogue import REMEMBERING, Dialogue
from .lexicon import Values
from .toolbox import TOOLS

DISTRACTIONS = {kind: share for kind, share in MIX.turns.items() if kind not in ("remembered", "argument_told")}
BARE = replace(MIX, turns=DISTRACTIONS)
LISTED = replace(BARE, no_tools=0.0)
BOOK = replace(BARE, no_policies=0.0)


def _dialogue(rng: random.Random, shape) -> Dialogue:
    return Dialogue(rng, Values(rng, True), shape)


def _distract(d: Dialogue, turns: int, hidden=None) -> None:
    """Other turns; what is to be asked is neither changed nor told again."""
    if hidden is not None:
        d.known.remove(hidden)
        d.reserved.add(hidden.subject.key)
    done = 0
    while done < turns:
        before = len(d.messages)
        d.turn()
        done += len(d.messages) > before
    if hidden is not None:
        d.known.append(hidden)


def recall(rng: random.Random, turns: int) -> tuple[Dialogue, list[int]]:
    d = _dialogue(rng, BARE)
    known = d.tell()
    _distract(d, turns, known)
    d.recall(known)
    return d, [-1]


def updated(rng: random.Random, turns: int) -> tuple[Dialogue, list[int]]:
    d = _dialogue(rng, BARE)
    known = d.tell()
    d.update(known)
    _distract(d, turns, known)
    d.recall(known)
    return d, [-1]


def never_told(rng: random.Random, turns: int) -> tuple[Dialogue, list[int]]:
    d = _dialogue(rng, BARE)
    d.tell()
    _distract(d, turns)
    d.never_told()
    return d, [-1]


def tool_call(rng: random.Random, turns: int) -> tuple[Dialogue, list[int]]:
    d = _dialogue(rng, LISTED)
    _distract(d, turns)
    tool = rng.choice(d.tools)
    d.tool_turn(tool)
    return d, [-3]


def tool_answer(rng: random.Random, turns: int) -> tuple[Dialogue, list[int]]:
    d, _ = tool_call(rng, turns)
    return d, [-1]


def remembered(rng: random.Random, turns: int) -> tuple[Dialogue, list[int]]:
    d = _dialogue(rng, LISTED)
    tool = rng.choice(REMEMBERING)
    d.tools = [t for t in d.tools if t.name != tool.name][:4]
    d.tools.insert(rng.randint(0, len(d.tools)), tool)
    known = d.tell_argument(tool)
    _distract(d, turns, known)
    d.remembered(tool)
    return d, [-3]


def handbook(rng: random.Random, turns: int) -> tuple[Dialogue, list[int]]:
    d = _dialogue(rng, BOOK)
    _distract(d, turns)
    d.policy_asked(rng.choice(d.handbook))
    return d, [-1]


def missing_policy(rng: random.Random, turns: int) -> tuple[Dialogue, list[int]]:
    d = _dialogue(rng, BOOK)
    _distract(d, turns)
    before = len(d.messages)
    while len(d.messages) == before:
        d.policy_missing()
    return d, [-1]


def unlisted_tool(rng: random.Random, turns: int) -> tuple[Dialogue, list[int]]:
    d = _dialogue(rng, LISTED)
    _distract(d, turns)
    d.tool_turn(rng.choice([t for t in TOOLS if t.name not in {t.name for t in d.tools}]))
    return d, [-1]


def two_steps(rng: random.Random, turns: int) -> tuple[Dialogue, list[int]]:
    """Both calls have to be right."""
    d = _dialogue(rng, LISTED)
    (first, _), (second, _) = d._steps()
    others = [t for t in d.tools if t.name not in (first.name, second.name)][:2]
    d.tools = [first, second, *others]
    rng.shuffle(d.tools)
    _distract(d, turns)
    before = 0
    while len(d.messages) - before != 6:
        before = len(d.messages)
        d.two_steps()
    return d, [-5, -3]


def small_talk(rng: random.Random, turns: int) -> tuple[Dialogue, list[int]]:
    d = _dialogue(rng, BARE)
    _distract(d, turns)
    d.small_talk()
    return d, [-1]


SKILLS: dict[str, Callable] = {
    "recall": recall,
    "updated fact": updated,
    "fact never told": never_told,
    "tool call": tool_call,
    "its answer": tool_answer,
    "call with a remembered argument": remembered,
    "two calls, the second with the first's result": two_steps,
    "tool that is not listed": unlisted_tool,
    "handbook value": handbook,
    "policy that is not in the handbook": missing_policy,
    "small talk": small_talk,
}
