"""Dialogues: a conversation that grows turn by turn, and knows what was told, listed and written down.

Out: messages in the shape that chat templates read. Values in the words of the assistant are marked for the loss.
"""

import random
from dataclasses import dataclass, field

from . import smalltalk
from .facts import (
    ASKS_SOME,
    MARK,
    UNKNOWN,
    UNMARK,
    VERBS,
    Subject,
    ask_forms,
    changed,
    draw_subject,
    draw_value,
    fill,
    marked,
    mine,
    ours,
    policy,
    sentence,
    tell_forms,
    told,
    update_forms,
)
from .lexicon import Values
from .toolbox import BY_NAME, ERRORS, FIRST_STEPS, NO_TOOL, SECOND_STEPS, TOOLS, Remembered, Tool, as_json


REMEMBERING = [tool for tool in TOOLS if tool.remembered]


@dataclass
class Shape:
    """What a dialogue is made of: weights of the turns, and how much the system message holds."""

    turns: dict[str, float]
    tools: tuple[int, int] = (0, 4)
    policies: tuple[int, int] = (0, 5)
    no_tools: float = 0.25
    no_policies: float = 0.4


@dataclass
class Known:
    subject: Subject
    value: str
    said_at: int = 0
    """How many messages there were when it was said last."""


@dataclass
class Dialogue:
    rng: random.Random
    values: Values
    shape: Shape
    messages: list[dict] = field(default_factory=list)
    known: list[Known] = field(default_factory=list)
    handbook: list[Known] = field(default_factory=list)
    tools: list[Tool] = field(default_factory=list)
    system: str = ""
    reserved: set[str] = field(default_factory=set)
    """Keys that no turn may tell of: an evaluation asks for them."""

    def __post_init__(self) -> None:
        rng, shape = self.rng, self.shape
        if rng.random() >= shape.no_tools:
            self.tools = rng.sample(TOOLS, rng.randint(max(1, shape.tools[0]), max(1, shape.tools[1])))
            some = rng.random()
            if some < 0.35 and shape.tools[1] > 1:
                (first, _), (second, _) = self._steps()
                self._list(first, second)
            elif some < 0.7:
                self._list(rng.choice(REMEMBERING))
        if rng.random() >= shape.no_policies:
            for _ in range(rng.randint(max(1, shape.policies[0]), max(1, shape.policies[1]))):
                subject = policy(self.values)
                if subject.key not in [k.subject.key for k in self.handbook]:
                    self.handbook.append(Known(subject, draw_value(subject.kind, self.values)))
        self.system = self._system()

    def _list(self, *tools: Tool) -> None:
        """Lists these, and of the others as many as there is room for."""
        others = [t for t in self.tools if t not in tools]
        self.tools = [*others[: max(0, self.shape.tools[1] - len(tools))], *tools]
        self.rng.shuffle(self.tools)

    def _system(self) -> str:
        rng = self.rng
        place = self.values.organisation()
        text = rng.choice(
            [
                f"You are Pebble, the assistant of {place}.",
                f"You are Pebble, the assistant of {place}.",
                "You are Pebble.",
                f"You are the assistant of {place}.",
                "You are Pebble, a small assistant.",
                f"You are a helpful assistant at {place}.",
                "You are a helpful assistant.",
                "",
            ]
        )
        if self.handbook:
            entries = [fill("{S} is {v}.", k.subject, k.value) for k in self.handbook]
            joined = rng.choice((" ", "\n", "\n- "))
            head = "Handbook:" + (joined if joined != " " else " ")
            text = f"{text}{rng.choice((' ', chr(10), chr(10) * 2)) if text else ''}{head}{joined.join(entries)}"
        return text

    # What the two say.

    def say(self, role: str, content: str, tool: Tool | None = None) -> None:
        """`tool` is the one that it would take."""
        self.messages.append({"role": role, "content": content, "takes": tool and tool.name})

    def user(self, text: str, keep: tuple[str, ...] = ()) -> None:
        """As people type: without the full stop, in lower case. What is in `keep` is copied, and stays as it is."""
        style = self.rng.random()
        if style < 0.25 and text[-1] in ".?!":
            text = text[:-1]
        if 0.15 < style < 0.40:
            for i, value in enumerate(keep):
                text = text.replace(value, chr(0xE100 + i)) if value else text
            text = text.lower()
            for i, value in enumerate(keep):
                text = text.replace(chr(0xE100 + i), value)
        self.say("user", text)

    def call(self, tool: Tool, arguments: dict[str, str]) -> None:
        function = {"name": tool.name, "arguments": {key: marked(value) for key, value in arguments.items()}}
        self.messages.append(
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": function}],
                "takes": tool.name,
            }
        )

    # Facts.

    def _find(self, key: str) -> Known | None:
        return next((k for k in self.known if k.subject.key == key), None)

    def _new_subject(self) -> Subject:
        taken = {k.subject.key for k in [*self.known, *self.handbook]} | self.reserved
        for _ in range(50):
            subject = draw_subject(self.values)
            if subject.key not in taken:
                return subject
        raise ValueError("no subject is left")

    def tell(self, subject: Subject | None = None) -> Known:
        known = self.learn(subject or self._new_subject())
        form = self.rng.choice(tell_forms(known.subject, self.rng))
        self.user(fill(form, known.subject, known.value), (known.value,))
        self.say("assistant", told(known.subject, known.value))
        return known

    def learn(self, subject: Subject) -> Known:
        value = draw_value(subject.kind, self.values)
        if subject.kind in ("name", "city", "word") and self.rng.random() < 0.15:
            value = value.lower()
        known = Known(subject, value, len(self.messages))
        self.known.append(known)
        return known

    def tell_some(self, count: int = 0) -> None:
        """Two to four facts in one message."""
        some = []
        for _ in range(count or self.rng.randint(2, 4)):
            subject = self._new_subject()
            known = self.learn(subject)
            form = (
                self.rng.choice((subject.tells or ["{s} is {v}."])[:2])
                if not subject.user or subject.greets
                else "{s} is {v}."
            )
            text = fill(form, subject, known.value).rstrip(".")
            some.append((known, text if text.startswith(("I ", "I'")) else text[0].lower() + text[1:]))
        *front, last = (text for _, text in some)
        text = f"{', '.join(front)}{self.rng.choice((' and ', ', and ', '. Also, ', ', '))}{last}."
        values = tuple(known.value for known, _ in some)
        self.user(text[0].upper() + text[1:] if not text.startswith(values[0]) else text, values)
        self.say("assistant", " ".join(["Got it.", *(sentence(known.subject, known.value) for known, _ in some)]))

    def tell_two(self) -> None:
        self.tell_some(2)

    def update(self, known: Known | None = None) -> Known:
        known = known or (self.rng.choice(self.known) if self.known else self.tell())
        old, value = known.value, known.value
        for _ in range(20):
            value = draw_value(known.subject.kind, self.values)
            if value != old:
                break
        known.value, known.said_at = value, len(self.messages)
        form = self.rng.choice(update_forms(known.subject, self.rng))
        self.user(fill(form, known.subject, value, old), (value, old))
        self.say("assistant", changed(known.subject, value))
        return known

    def recall(self, known: Known | None = None) -> None:
        known = known or (self._pick(self.known) if self.known else self.tell())
        self._ask(known.subject)
        self.say("assistant", sentence(known.subject, known.value))
        known.said_at = len(self.messages)

    def _pick(self, known: list[Known]) -> Known:
        """Half the time the one that was said longest ago, else any: to look far back is what needs practice."""
        return min(known, key=lambda k: k.said_at) if self.rng.random() < 0.5 else self.rng.choice(known)

    def _ask(self, subject: Subject) -> None:
        self.user(
            fill(self.rng.choice(ask_forms(subject, self.rng)), subject),
            (subject.user,) if subject.user[:1].isupper() else (),
        )

    def never_told(self, subject: Subject | None = None) -> None:
        if subject is None:
            subject = self._new_subject()
            # Half the time something near to what is known.
            near = [
                k.subject
                for k in self.known
                if " " in k.subject.key and k.subject.kind in ("code", "number", "measure")
            ]
            if near and self.rng.random() < 0.5:
                subject = self._neighbour(self.rng.choice(near)) or subject
        self._ask(subject)
        self.say("assistant", subject.unknown)

    def ask_some(self) -> None:
        """Two to four questions in one message, half of them for what was told or stands in the handbook."""
        rng, able = self.rng, [*self.known, *self.handbook]
        asked: dict[str, tuple[Subject, Known | None]] = {}
        for _ in range(rng.randint(2, 4)):
            known = self._pick(able) if able and rng.random() < 0.55 else None
            subject = known.subject if known else self._new_subject()
            if known is None and able and rng.random() < 0.4:
                subject = self._neighbour(rng.choice(able).subject) or subject
            asked.setdefault(subject.key, (subject, known))
        subjects, answers = [subject for subject, _ in asked.values()], []
        if all(subject.user for subject in subjects):
            *front, last = (subject.user for subject in subjects)
            listed = f"{', '.join(front)} and {last}" if front else last
            text = rng.choice(ASKS_SOME).replace("{s}", listed).replace("{S}", listed[0].upper() + listed[1:])
        else:
            text = " ".join(fill(rng.choice(ask_forms(subject, rng)), subject) for subject in subjects)
        self.user(text, tuple(subject.user for subject in subjects if subject.user[:1].isupper()))
        for subject, known in asked.values():
            answers.append(sentence(subject, known.value) if known else subject.unknown)
            if known:
                known.said_at = len(self.messages)
        self.say("assistant", " ".join(answers))

    def _neighbour(self, subject: Subject) -> Subject | None:
        """A subject that shares a word with one that is known."""
        other = self._new_subject()
        if not other.user or " " not in other.key:
            return None
        mix = subject.user.split(" ")
        last = other.user.split(" ")[-1]
        phrase = (
            " ".join([*mix[:-1], last])
            if self.rng.random() < 0.5
            else " ".join([*mix[:1], other.user.split(" ")[-2], mix[-1]])
        )
        if "'" in phrase or phrase in {k.subject.user for k in [*self.known, *self.handbook]}:
            return None
        if phrase.startswith("my "):
            return mine(phrase[3:], subject.kind)
        return ours(phrase, subject.kind) if phrase.startswith("the ") else None

    # The handbook.

    def policy_asked(self, known: Known | None = None) -> None:
        if known is None and not self.handbook:
            return self.policy_missing()
        known = known or self._pick(self.handbook)
        self._ask(known.subject)
        self.say("assistant", sentence(known.subject, known.value))
        known.said_at = len(self.messages)

    def policy_missing(self) -> None:
        taken = {k.subject.key for k in [*self.handbook, *self.known]} | self.reserved
        subject = policy(self.values)
        if self.handbook and self.rng.random() < 0.5:
            subject = self._neighbour(self.rng.choice(self.handbook).subject) or subject
        if subject.key not in taken:
            self._ask(subject)
            self.say("assistant", subject.unknown)

    # Tools.

    def draw_arguments(self, tool: Tool) -> dict[str, str]:
        return {key: make(self.values) for key, make in tool.arguments.items()}

    def _listed(self, tool: Tool) -> bool:
        return any(t.name == tool.name for t in self.tools)

    def _fill(self, form: str, fields: dict, mark: bool) -> str:
        for key, value in fields.items():
            form = form.replace(f"{{{key}}}", marked(str(value)) if mark else str(value))
        return form if not mark or form[0] != MARK else MARK + form[1:2].upper() + form[2:]

    def answer(self, tool: Tool, arguments: dict[str, str], fails: bool | None = None) -> dict:
        """The tool's result, and what Pebble makes of it."""
        rng = self.rng
        if rng.random() < 0.08 if fails is None else fails:
            error = rng.choice(ERRORS)
            self.say("tool", rng.choice(("Error: ", "")) + as_json({"error": error}, rng))
            self.say("assistant", f"That did not work: {error}.")
            return {}
        result = self.result(tool)
        self.say("assistant", self._fill(tool.answer, arguments | result, True))
        return result

    def result(self, tool: Tool) -> dict:
        result = {key: make(self.values) for key, make in tool.result.items()}
        self.say("tool", as_json(result, self.rng))
        return result

    def tool_turn(self, tool: Tool | None = None) -> None:
        """A question for a tool, listed or not in equal parts."""
        if tool is None:
            unlisted = [t for t in TOOLS if not self._listed(t)]
            tool = self.rng.choice(self.tools) if self.tools and self.rng.random() < 0.55 else self.rng.choice(unlisted)
        arguments = self.draw_arguments(tool)
        self.user(self._fill(self.rng.choice(tool.asks), arguments, False), tuple(arguments.values()))
        if not self._listed(tool):
            self.say("assistant", NO_TOOL, tool)
            return
        self.call(tool, arguments)
        self.answer(tool, arguments)

    def remembered(self, tool: Tool | None = None) -> None:
        """A question for a tool whose argument was told before, or is asked for."""
        if tool is None:
            listed = [t for t in REMEMBERING if self._listed(t)]
            tool = self.rng.choice(listed) if listed and self.rng.random() < 0.85 else self.rng.choice(REMEMBERING)
        about: Remembered = tool.remembered
        ((argument, make),) = tool.arguments.items()
        known = self._find(about.key)
        if known is None and self._listed(tool) and self.rng.random() < 0.6:
            known = self.tell_argument(tool)
        self.user(self.rng.choice(about.asks))
        if not self._listed(tool):
            self.say("assistant", NO_TOOL, tool)
            return
        if known is None:
            self.say("assistant", about.question, tool)
            value = make(self.values)
            form = self.rng.choice(
                about.forms or ["{v}", "{v}", "It is {v}.", "My " + about.key + " is {v}.", "It's {v}"]
            )
            self.user(form.replace("{v}", value), (value,))
        else:
            value = known.value
        self.call(tool, {argument: value})
        self.answer(tool, {argument: value})

    def tell_argument(self, tool: Tool) -> Known:
        """Tells what `tool` will be asked with."""
        ((_, make),) = tool.arguments.items()
        key = tool.remembered.key

        subject = next((s for s in VERBS if s.key == key), None) or mine(key, "code")
        known = Known(subject, make(self.values), len(self.messages))
        self.known.append(known)
        self.user(fill(self.rng.choice(tell_forms(subject, self.rng)), subject, known.value), (known.value,))
        self.say("assistant", told(subject, known.value))
        return known

    def argument_told(self) -> None:
        """Tells an argument that a listed tool can be asked with later."""
        able = [t for t in self.tools if t.remembered and self._find(t.remembered.key) is None]
        if able:
            self.tell_argument(self.rng.choice(able))
        else:
            self.remembered()

    def _steps(self):
        rng = self.rng
        kind = rng.choice(list(FIRST_STEPS))
        first, phrase = rng.choice(FIRST_STEPS[kind])
        second, form = rng.choice(SECOND_STEPS[kind])
        return (BY_NAME[first], phrase), (BY_NAME[second], form)

    def two_steps(self) -> None:
        """A question that needs two tools, one after the other."""
        pairs = []
        for _ in range(60):
            steps = self._steps()
            listed = self._listed(steps[0][0]) and self._listed(steps[1][0])
            if listed or self.rng.random() < 0.01:
                pairs.append(steps)
                break
        if not pairs:
            return self.tool_turn()
        (first, phrase), (second, form) = pairs[0]
        arguments = self.draw_arguments(first)
        said = form.replace("{x}", self._fill(phrase, arguments, False))
        self.user(said, tuple(arguments.values()))
        if not (self._listed(first) and self._listed(second)):
            self.say("assistant", NO_TOOL, first)
            return
        self.call(first, arguments)
        found = self.result(first)
        ((needed, _),) = second.arguments.items()
        found = {needed: str(next(iter(found.values())))}
        self.call(second, found)
        self.answer(second, found)

    # The rest.

    def small_talk(self) -> None:
        said, answer = smalltalk.draw(self.rng)
        keep = ()
        if answer.endswith(f" is {UNKNOWN}."):
            keep = (answer[3 : -len(f" is {UNKNOWN}.")],)
        self.user(said, keep)
        self.say("assistant", answer)

    def turn(self) -> None:
        """One turn by the shape's weights."""
        kinds = self.shape.turns
        kind = self.rng.choices(list(kinds), list(kinds.values()))[0]
        if kind == "tell" and len(self.known) > 24:
            kind = "recall"
        getattr(self, kind)()


def plain_text(text: str) -> str:
    """Without the marks."""
    return text.replace(MARK, "").replace(UNMARK, "")
