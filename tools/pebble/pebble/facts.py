"""Facts: what can be told, how people tell, change and ask it, and what Pebble says.

A fact is a subject and a value. `Fact.said` is the sentence that Pebble says of it, with the value marked for the loss.
"""

from dataclasses import dataclass, field

from .lexicon import ANIMALS, COLORS, DAYS, DRINKS, FOODS, PLAIN_NOUNS, SEASONS, SPORTS, Values

MARK = "\ue000"
"""Opens a value in the words of the assistant."""
UNMARK = "\ue001"
"""Closes it."""


def marked(value: str) -> str:
    return f"{MARK}{value}{UNMARK}"


UNTOLD = f"{marked('not')} something you have told me"
"""In place of a value: a refusal begins as the answer would, so that what decides between them is whether the search
for the value finds one."""
UNTOLD_PLACE = f"{marked('a')} place that you have not told me"
UNTOLD_LIKING = f"{marked('something')} that you have not told me"
UNKNOWN = f"{marked('not')} something I know"


@dataclass
class Subject:
    """What a fact is about. `user` and `pebble` are how either calls it; `{v}` in the forms is the value."""

    key: str
    kind: str
    user: str
    pebble: str
    tells: list[str] = field(default_factory=list)
    updates: list[str] = field(default_factory=list)
    asks: list[str] = field(default_factory=list)
    said: str = ""
    unknown: str = ""
    greets: str = ""


PLACES = """
locker gate door garage office studio bike suitcase safe alarm attic cellar mailbox storage gym pool roof server phone
laptop tablet printer elevator shed barn cabin boat hotel school library vault kitchen lab guest staff visitor
delivery cloud bank card
""".split()
THINGS = ["code", "number", "pin", "key number", "code number", "combination"]
NUMBER_NOUNS = """badge number|room number|table number|seat number|extension|parking spot|lucky number|student number|
ticket number|account number|house number|shoe size|order number|booking number|customer number|phone number|
zip code|pin|employee number|bus line|apartment number|case number|invoice number|membership number|
passport number|gate|floor|locker|budget|salary|rent|score|weight|height""".replace("\n", "").split("|")
WORD_NOUNS = """
wifi password|password|project name|team name|nickname|username|safe word|code word|secret word|band name|
street|company|login|secret|codename|hobby|middle name|last name|street name|school|instrument|job|
favorite word|favorite book|favorite song|favorite movie|favorite band|favorite game""".replace("\n", "").split("|")
NAME_OWNERS = """
dog cat boss sister brother mother father friend wife husband son daughter neighbor manager doctor teacher colleague
horse parrot hamster boat car assistant landlord partner uncle aunt cousin dentist coach lawyer baby roommate
grandmother
""".split()
EVENTS = """
meeting flight train appointment class shift interview dinner lunch exam party call bus lesson concert game
""".split()
CLOSED = {
    "color": COLORS,
    "colour": COLORS,
    "animal": ANIMALS,
    "food": FOODS,
    "drink": DRINKS,
    "sport": SPORTS,
    "season": SEASONS,
    "day": DAYS,
}
POLICY_WHATS = """
return refund delivery check-in check-out parking breakfast late cancellation pet guest loan warranty shipping booking
deposit membership service overtime visitor lunch meeting trial payment exchange damage storage luggage smoking noise
fitness laundry shuttle holiday sick travel expense security password meal training contract rental repair group
student family weekend
""".split()
POLICY_NOUNS = """
window limit fee time policy code number period price discount rule deadline hour charge minimum maximum
""".split()
PERSON_NOUNS = [
    "badge number",
    "room number",
    "desk number",
    "extension",
    "birthday",
    "locker code",
    "car",
    "team",
    "shift",
    "seat",
    "phone number",
]

TELLS = [
    "{S} is {v}.",
    "{S} is {v}.",
    "{S} is {v}.",
    "Please remember that {s} is {v}.",
    "Remember that {s} is {v}.",
    "Remember: {s} is {v}.",
    "Remember {s}: {v}.",
    "Note that {s} is {v}.",
    "Please note: {s} is {v}.",
    "By the way, {s} is {v}.",
    "FYI {s} is {v}.",
    "Just so you know, {s} is {v}.",
    "You should know that {s} is {v}.",
    "Keep in mind that {s} is {v}.",
    "{S}: {v}",
    "Save this: {s} is {v}.",
    "I want you to remember that {s} is {v}.",
    "Can you remember that {s} is {v}?",
    "Hi, {s} is {v}.",
    "Also, {s} is {v}.",
    "And {s} is {v}.",
    "Please save {s}, it is {v}.",
    "Oh, and {s} is {v}.",
    "{S} = {v}",
    "My friend, {s} is {v}.",
    "Write down that {s} is {v}.",
    "Don't forget, {s} is {v}.",
]
UPDATES = [
    "{S} is now {v}.",
    "Actually, {s} is {v}.",
    "{S} changed to {v}.",
    "Correction: {s} is {v}.",
    "{S} has changed, it is {v} now.",
    "No, {s} is {v}.",
    "Sorry, {s} is {v}, not {old}.",
    "Please change {s} to {v}.",
    "Update {s} to {v}.",
    "I changed {s} to {v}.",
    "Wait, {s} is {v} now.",
    "{S} is no longer {old}, it is {v}.",
    "From now on {s} is {v}.",
    "They changed {s} to {v}.",
    "Actually {s} is {v} now.",
    "Change of plans, {s} is {v}.",
    "{S} is {v} now.",
    "I was wrong, {s} is {v}.",
    "{S} was changed to {v}.",
    "Oops, {s} is actually {v}.",
    "The new value of {s} is {v}.",
    "{S} is not {old}, it is {v}.",
    "Please update {s}, it is now {v}.",
]
ASKS = [
    "What is {s}?",
    "What is {s}?",
    "What is {s}?",
    "What's {s}?",
    "What is {s} again?",
    "Do you remember {s}?",
    "Can you tell me {s}?",
    "Tell me {s}.",
    "Remind me what {s} is.",
    "I forgot {s}.",
    "Do you know {s}?",
    "{S}?",
    "So what was {s}?",
    "Could you remind me of {s}?",
    "Please tell me {s}.",
    "What did I say {s} was?",
    "What was {s}?",
    "And {s}?",
    "Do you still know {s}?",
    "Do you know what {s} is?",
    "I can't remember {s}.",
    "Which is {s}?",
    "I need {s}.",
    "Give me {s}.",
    "Now what is {s}?",
    "What is {s}, please?",
    "Hey, what is {s}?",
    "Tell me again what {s} is.",
    "Ok, what is {s}?",
    "What about {s}?",
    "How about {s}?",
]
ASKS_SOME = [
    "What are {s}?",
    "What are {s}?",
    "Tell me {s}.",
    "Remind me of {s}.",
    "I need {s}.",
    "Do you know {s}?",
    "{S}?",
    "What about {s}?",
    "I forgot {s}.",
]


def mine(noun: str, kind: str) -> Subject:
    """`my noun`, which Pebble calls `your noun`."""
    return Subject(noun, kind, f"my {noun}", f"your {noun}", unknown=f"Your {noun} is {UNTOLD}.")


def ours(phrase: str, kind: str) -> Subject:
    """`the noun`, or `Anna's noun`: both call it the same."""
    return Subject(phrase, kind, phrase, phrase, unknown=f"{phrase[0].upper()}{phrase[1:]} is {UNKNOWN}.")


def policy(values: Values) -> Subject:
    """What a handbook knows."""
    rng = values.rng
    what = rng.choice(POLICY_WHATS) if rng.random() < 0.85 else values.word_any()
    return ours(f"the {what} {rng.choice(POLICY_NOUNS)}", "measure")


def called(animal: str) -> Subject:
    s = mine(f"{animal}'s name", "name")
    s.tells = [
        f"My {animal} is called {{v}}.",
        f"My {animal} is named {{v}}.",
        f"I have a {animal} called {{v}}.",
        f"I have a {animal} named {{v}}.",
        f"The name of my {animal} is {{v}}.",
        f"My {animal} {{v}} is here.",
    ]
    s.asks = [
        f"What is my {animal} called?",
        f"What's the name of my {animal}?",
        f"How is my {animal} called?",
        f"Do you remember my {animal}'s name?",
        f"Who is my {animal}?",
    ]
    return s


def own_name() -> Subject:
    return Subject(
        "name",
        "name",
        "my name",
        "your name",
        tells=[
            "My name is {v}.",
            "My name is {v}.",
            "My name is {v}.",
            "my name's {v}",
            "I am {v}.",
            "I'm {v}.",
            "Call me {v}.",
            "You can call me {v}.",
            "This is {v}.",
            "Hi, I am {v}.",
            "Hello, my name is {v}.",
            "Hello, I'm {v}.",
            "Hi! I'm {v}.",
            "Hey, {v} here.",
            "People call me {v}.",
            "They call me {v}.",
        ],
        updates=[
            "Actually, my name is {v}.",
            "No, my name is {v}.",
            "Call me {v} from now on.",
            "I changed my name to {v}.",
            "Sorry, my name is {v}.",
        ],
        asks=[
            "What is my name?",
            "What is my name?",
            "What's my name?",
            "Who am I?",
            "Do you remember my name?",
            "Do you know my name?",
            "Do you know who I am?",
            "Can you tell me my name?",
            "Say my name.",
            "what was my name?",
            "How am I called?",
            "And my name?",
            "Tell me my name.",
        ],
        said="Your name is {v}.",
        unknown=f"Your name is {UNTOLD}.",
        greets="Nice to meet you, {v}.",
    )


def plain(
    key: str, kind: str, said: str, instead: str, tells: list[str], updates: list[str], asks: list[str]
) -> Subject:
    """A fact with a verb of its own. `instead` stands for the value that was not told."""
    return Subject(key, kind, "", "", tells, updates, asks, said, said.replace("{v}", instead))


VERBS = [
    plain(
        "live",
        "city",
        "You live in {v}.",
        UNTOLD_PLACE,
        [
            "I live in {v}.",
            "I live in {v}.",
            "I am living in {v}.",
            "My home is in {v}.",
            "I live in {v}, by the way.",
            "Remember that I live in {v}.",
            "My city is {v}.",
        ],
        [
            "I moved to {v}.",
            "I live in {v} now.",
            "Actually, I live in {v}.",
            "I now live in {v}.",
            "I have moved to {v}.",
        ],
        [
            "Where do I live?",
            "Where do I live?",
            "Do you know where I live?",
            "Which city do I live in?",
            "Where is my home?",
            "In which city do I live?",
            "What city do I live in?",
            "Do you remember where I live?",
        ],
    ),
    plain(
        "work",
        "organisation",
        "You work at {v}.",
        UNTOLD_PLACE,
        ["I work at {v}.", "I work for {v}.", "I am working at {v}.", "My employer is {v}.", "I have a job at {v}."],
        ["I work at {v} now.", "I now work at {v}.", "I changed jobs, I work at {v}.", "Actually, I work at {v}."],
        [
            "Where do I work?",
            "Do you know where I work?",
            "Who is my employer?",
            "Do you remember where I work?",
            "For whom do I work?",
        ],
    ),
    plain(
        "from",
        "city",
        "You are from {v}.",
        UNTOLD_PLACE,
        ["I am from {v}.", "I'm from {v}.", "I come from {v}.", "I was born in {v}.", "I grew up in {v}."],
        ["Actually, I am from {v}.", "No, I am from {v}.", "Sorry, I am from {v}."],
        [
            "Where am I from?",
            "Do you know where I am from?",
            "Where was I born?",
            "Where do I come from?",
            "Do you remember where I'm from?",
        ],
    ),
    plain(
        "age",
        "small",
        "Your age is {v}.",
        UNTOLD,
        ["I am {v} years old.", "I'm {v} years old.", "I am {v}.", "My age is {v}.", "I just turned {v}."],
        ["I am {v} years old now.", "I turned {v} today.", "Actually, I am {v} years old."],
        ["How old am I?", "What is my age?", "Do you know how old I am?", "Do you remember my age?", "What's my age?"],
    ),
    plain(
        "birthday",
        "date",
        "Your birthday is {v}.",
        UNTOLD,
        ["My birthday is {v}.", "My birthday is on {v}.", "I was born on {v}.", "Remember that my birthday is on {v}."],
        ["Actually, my birthday is on {v}.", "No, my birthday is on {v}.", "Sorry, my birthday is {v}."],
        [
            "When is my birthday?",
            "When is my birthday?",
            "When was I born?",
            "What is my birthday?",
            "Do you know my birthday?",
            "Do you remember my birthday?",
        ],
    ),
    plain(
        "likes",
        "liking",
        "You like {v}.",
        UNTOLD_LIKING,
        ["I like {v}.", "I love {v}.", "I really like {v}.", "I like {v} a lot.", "I am a fan of {v}.", "I enjoy {v}."],
        ["Actually, I like {v} now.", "I changed my mind, I like {v}.", "Now I like {v}."],
        [
            "What do I like?",
            "Do you know what I like?",
            "What do I love?",
            "What do I enjoy?",
            "Do you remember what I like?",
        ],
    ),
]


def event(noun: str) -> Subject:
    return plain(
        f"{noun} time",
        "when",
        f"Your {noun} is {{v}}.",
        UNTOLD,
        [
            f"My {noun} is {{v}}.",
            f"I have a {noun} {{v}}.",
            f"Remember that my {noun} is {{v}}.",
            f"There is a {noun} {{v}}.",
            f"I have my {noun} {{v}}.",
        ],
        [
            f"My {noun} moved, it is {{v}}.",
            f"My {noun} is now {{v}}.",
            f"Actually, my {noun} is {{v}}.",
            f"They moved my {noun}, it is {{v}}.",
        ],
        [
            f"When is my {noun}?",
            f"When is my {noun}?",
            f"What time is my {noun}?",
            f"When do I have my {noun}?",
            f"Do you know when my {noun} is?",
            f"At what time is my {noun}?",
        ],
    )


def draw_value(kind: str, values: Values) -> str:
    rng = values.rng
    if kind in CLOSED:
        return values.choice(CLOSED[kind])
    if kind == "when":
        return f"at {values.time()}" if rng.random() < 0.6 else f"on {rng.choice(DAYS)} at {values.time()}"
    if kind == "liking":
        return rng.choice((FOODS + DRINKS + SPORTS + PLAIN_NOUNS + COLORS))
    return getattr(values, kind)()


def draw_subject(values: Values) -> Subject:
    """Something that a user may tell."""
    rng = values.rng
    kind = rng.random()
    if kind < 0.10:
        return own_name()
    if kind < 0.30:
        return mine(f"{rng.choice(PLACES)} {rng.choice(THINGS)}", "code")
    if kind < 0.40:
        return mine(rng.choice(NUMBER_NOUNS), "number")
    if kind < 0.48:
        return mine(rng.choice(WORD_NOUNS), rng.choice(("word", "password", "name")))
    if kind < 0.54:
        noun = rng.choice(list(CLOSED))
        return mine(f"{rng.choice(('favorite', 'favorite', 'favourite', 'lucky'))} {noun}", noun)
    if kind < 0.60:
        return called(rng.choice(NAME_OWNERS))
    if kind < 0.70:
        return rng.choice(VERBS)
    if kind < 0.75:
        return event(rng.choice(EVENTS))
    if kind < 0.87:
        return ours(f"the {rng.choice(PLACES)} {rng.choice(THINGS)}", "code")
    if kind < 0.93:
        return policy(values)
    noun = rng.choice(PERSON_NOUNS)
    kind = "date" if noun == "birthday" else "word" if noun in ("car", "team") else "number"
    return ours(f"{values.name()}'s {noun}", kind)


def sentence(subject: Subject, value: str) -> str:
    """What Pebble says of a fact, the value marked."""
    form = subject.said or subject.pebble[0].upper() + subject.pebble[1:] + " is {v}."
    return form.replace("{v}", marked(value))


def told(subject: Subject, value: str) -> str:
    return f"Got it. {sentence(subject, value)}" if not subject.greets else subject.greets.replace("{v}", marked(value))


def changed(subject: Subject, value: str) -> str:
    return f"Updated. {sentence(subject, value)}"


def fill(form: str, subject: Subject, value: str = "", old: str = "") -> str:
    """A user's form with its slots filled."""
    s = subject.user
    return form.replace("{S}", s[:1].upper() + s[1:]).replace("{s}", s).replace("{v}", value).replace("{old}", old)


def tell_forms(subject: Subject, rng) -> list[str]:
    if subject.user and (not subject.tells or (not subject.greets and rng.random() < 0.5)):
        return TELLS
    return subject.tells


def update_forms(subject: Subject, rng) -> list[str]:
    if subject.user and (not subject.updates or rng.random() < 0.3):
        return UPDATES
    return subject.updates


def ask_forms(subject: Subject, rng) -> list[str]:
    if subject.user and (not subject.asks or rng.random() < 0.4):
        return ASKS
    return subject.asks
