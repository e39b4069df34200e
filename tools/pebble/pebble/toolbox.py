"""Tools: what they are called, how people ask for them, what they answer, and what Pebble makes of the answer.

`{name}` in a form is an argument or a field of the result. `Remembered` asks for a tool with an argument that was
told before; `STEPS` are questions that need one tool's result as another's argument.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from .lexicon import CURRENCIES, DAYS, ITEMS, LANGUAGES, PLAIN_NOUNS, ROOMS, SKIES, STATUSES, Values


@dataclass
class Tool:
    name: str
    arguments: dict[str, Callable[[Values], str]]
    result: dict[str, Callable[[Values], object]]
    answer: str
    asks: list[str]
    remembered: "Remembered | None" = None


@dataclass
class Remembered:
    """How the same is asked without saying the argument: it was told as a fact of this key, or has to be asked for."""

    key: str
    asks: list[str]
    question: str
    forms: list[str] = field(default_factory=list)


def _temperature(v: Values) -> int:
    return v.rng.randint(-9, 39)


def _ok(_: Values) -> bool:
    return True


def _phone(v: Values) -> str:
    return f"555{v.rng.randint(1000, 9999)}"


def _email(v: Values) -> str:
    return f"{v.word()}@{v.word_any()}.com"


def _price(v: Values) -> str:
    return f"{v.rng.randint(1, 99)}.{v.rng.choice(('00', '50', '90', '25', '75'))}"


def _count(v: Values) -> int:
    return int(v.small())


def _of(words: list[str]) -> Callable[[Values], str]:
    return lambda v: v.choice(words)


ORDER = Remembered(
    "order number",
    [
        "Where is my order?",
        "Where's my order?",
        "What is the status of my order?",
        "Track my order.",
        "Has my order shipped?",
        "Can you check my order?",
        "When will my order arrive?",
        "where is my package?",
    ],
    "What is your order number?",
)
HOME = Remembered(
    "live",
    [
        "How is the weather at home?",
        "What is the weather where I live?",
        "What's the weather like here?",
        "Is it raining where I live?",
        "weather at my place?",
    ],
    "Where do you live?",
    ["I live in {v}.", "In {v}."],
)
FLIGHT = Remembered(
    "flight number",
    ["When does my flight land?", "When do I land?", "Track my flight.", "Is my flight on time?"],
    "What is your flight number?",
)
ACCOUNT = Remembered(
    "account number",
    [
        "What is my balance?",
        "How much money do I have?",
        "Check my balance.",
        "What's on my account?",
        "Show me my balance.",
    ],
    "What is your account number?",
)
ROOM = Remembered(
    "room number",
    ["How warm is my room?", "What is the temperature in my room?", "Is my room warm?", "How cold is it in my room?"],
    "What is your room number?",
)

TOOLS = [
    Tool(
        "order_status",
        {"order_id": Values.code},
        {"status": _of(STATUSES), "eta": _of(DAYS)},
        "Order {order_id} is {status}, expected on {eta}.",
        [
            "Where is order {order_id}?",
            "Where is order {order_id}?",
            "Where's order {order_id}?",
            "What is the status of order {order_id}?",
            "Track order {order_id}.",
            "Has order {order_id} shipped?",
            "Can you check order {order_id}?",
            "When will order {order_id} arrive?",
            "Status of order {order_id}?",
            "Please look up order {order_id}.",
            "What about order {order_id}?",
            "Is order {order_id} on its way?",
            "I am waiting for order {order_id}.",
        ],
        ORDER,
    ),
    Tool(
        "get_weather",
        {"city": Values.city},
        {"temp": _temperature, "sky": _of(SKIES)},
        "It is {temp} degrees and {sky} in {city}.",
        [
            "What is the weather in {city}?",
            "What is the weather in {city}?",
            "What's the weather in {city}?",
            "How is the weather in {city}?",
            "Is it raining in {city}?",
            "Do I need an umbrella in {city}?",
            "How warm is it in {city}?",
            "Weather in {city}?",
            "Is it sunny in {city}?",
            "What is the weather like in {city}?",
            "How cold is it in {city}?",
            "Tell me the weather in {city}.",
            "Check the weather in {city}.",
        ],
        HOME,
    ),
    Tool(
        "get_time",
        {"city": Values.city},
        {"time": Values.time},
        "It is {time} in {city}.",
        [
            "What time is it in {city}?",
            "What's the time in {city}?",
            "How late is it in {city}?",
            "Tell me the time in {city}.",
            "Time in {city}?",
            "What is the local time in {city}?",
        ],
    ),
    Tool(
        "next_train",
        {"city": Values.city},
        {"departs": Values.time, "platform": _count},
        "The next train to {city} leaves at {departs} from platform {platform}.",
        [
            "When is the next train to {city}?",
            "When does the next train to {city} leave?",
            "Next train to {city}?",
            "I need a train to {city}.",
            "How do I get to {city} by train?",
            "Is there a train to {city}?",
        ],
    ),
    Tool(
        "check_stock",
        {"item": _of(ITEMS)},
        {"count": _count},
        "There are {count} {item} in stock.",
        [
            "How many {item} are in stock?",
            "Do we have {item} in stock?",
            "Are there any {item} left?",
            "How many {item} do we have?",
            "Check the stock of {item}.",
            "Are {item} available?",
            "Do you have {item}?",
        ],
    ),
    Tool(
        "get_price",
        {"item": _of(ITEMS)},
        {"price": _price},
        "The price of {item} is {price}.",
        [
            "What is the price of {item}?",
            "How much are the {item}?",
            "What do {item} cost?",
            "How expensive are {item}?",
            "Price of {item}?",
            "How much do {item} cost?",
        ],
    ),
    Tool(
        "find_phone",
        {"name": Values.name},
        {"phone": _phone},
        "You can reach {name} at {phone}.",
        [
            "What is the phone number of {name}?",
            "What is {name}'s phone number?",
            "I need to call {name}.",
            "How can I reach {name}?",
            "Find the number of {name}.",
            "Give me {name}'s number.",
            "Can you find {name}'s phone number?",
        ],
    ),
    Tool(
        "find_email",
        {"name": Values.name},
        {"email": _email},
        "The email of {name} is {email}.",
        [
            "What is the email of {name}?",
            "What is {name}'s email?",
            "Find {name}'s email address.",
            "I want to write to {name}.",
            "Email address of {name}?",
            "Can you find the email of {name}?",
        ],
    ),
    Tool(
        "track_flight",
        {"flight": Values.flight},
        {"lands": Values.time},
        "Flight {flight} lands at {lands}.",
        [
            "When does flight {flight} land?",
            "When does {flight} arrive?",
            "Track flight {flight}.",
            "Is flight {flight} on time?",
            "Where is flight {flight}?",
            "Status of flight {flight}?",
            "When will flight {flight} land?",
        ],
        FLIGHT,
    ),
    Tool(
        "get_balance",
        {"account": Values.code},
        {"balance": _count},
        "Account {account} has {balance} dollars.",
        [
            "What is the balance of account {account}?",
            "How much is on account {account}?",
            "Check account {account}.",
            "Balance of account {account}?",
            "How much money is in account {account}?",
        ],
        ACCOUNT,
    ),
    Tool(
        "room_temperature",
        {"room": Values.code},
        {"temp": _temperature},
        "It is {temp} degrees in room {room}.",
        [
            "How warm is room {room}?",
            "What is the temperature in room {room}?",
            "How cold is it in room {room}?",
            "Is room {room} warm?",
            "Temperature of room {room}?",
        ],
        ROOM,
    ),
    Tool(
        "cancel_order",
        {"order_id": Values.code},
        {"cancelled": _ok},
        "Order {order_id} is cancelled.",
        [
            "Cancel order {order_id}.",
            "Please cancel order {order_id}.",
            "I want to cancel order {order_id}.",
            "Can you cancel order {order_id}?",
            "I don't need order {order_id} any more, cancel it.",
        ],
    ),
    Tool(
        "refund_order",
        {"order_id": Values.code},
        {"refunded": _price},
        "{refunded} is refunded for order {order_id}.",
        [
            "Refund order {order_id}.",
            "I want my money back for order {order_id}.",
            "Please refund order {order_id}.",
            "Can I get a refund for order {order_id}?",
        ],
    ),
    Tool(
        "book_table",
        {"time": Values.time, "people": Values.small},
        {"table": _count},
        "You have table {table} for {people} people at {time}.",
        [
            "Book a table for {people} people at {time}.",
            "I need a table for {people} at {time}.",
            "Can I have a table at {time} for {people} people?",
            "Reserve a table for {people} at {time}.",
            "Table for {people} at {time}, please.",
        ],
    ),
    Tool(
        "set_alarm",
        {"time": Values.time},
        {"ok": _ok},
        "The alarm is set for {time}.",
        [
            "Set an alarm for {time}.",
            "Wake me at {time}.",
            "Wake me up at {time}.",
            "Please set the alarm to {time}.",
            "I have to get up at {time}.",
            "Alarm at {time}.",
        ],
    ),
    Tool(
        "set_timer",
        {"minutes": Values.small},
        {"ok": _ok},
        "The timer runs for {minutes} minutes.",
        [
            "Set a timer for {minutes} minutes.",
            "Start a timer of {minutes} minutes.",
            "Timer, {minutes} minutes.",
            "Tell me when {minutes} minutes are over.",
            "Count down {minutes} minutes.",
        ],
    ),
    Tool(
        "light_on",
        {"room": _of(ROOMS)},
        {"ok": _ok},
        "The light in the {room} is on.",
        [
            "Turn on the light in the {room}.",
            "Light on in the {room}.",
            "It is dark in the {room}.",
            "Switch on the {room} light.",
            "Please turn on the {room} light.",
        ],
    ),
    Tool(
        "light_off",
        {"room": _of(ROOMS)},
        {"ok": _ok},
        "The light in the {room} is off.",
        [
            "Turn off the light in the {room}.",
            "Light off in the {room}.",
            "It is too bright in the {room}.",
            "Switch off the {room} light.",
            "Please turn off the {room} light.",
        ],
    ),
    Tool(
        "lock_door",
        {"door": _of(ROOMS)},
        {"locked": _ok},
        "The {door} door is locked.",
        [
            "Lock the {door} door.",
            "Please lock the {door} door.",
            "Can you lock the {door}?",
            "Is the {door} door locked? If not, lock it.",
            "Close and lock the {door} door.",
        ],
    ),
    Tool(
        "play_music",
        {"artist": Values.name},
        {"playing": _ok},
        "Now playing {artist}.",
        [
            "Play {artist}.",
            "Play something by {artist}.",
            "Play music by {artist}.",
            "I want to hear {artist}.",
            "Put on {artist}.",
            "Can you play {artist}?",
        ],
    ),
    Tool(
        "convert_money",
        {"amount": Values.number, "currency": _of(CURRENCIES)},
        {"result": _count},
        "{amount} dollars are {result} {currency}.",
        [
            "Convert {amount} dollars to {currency}.",
            "How much are {amount} dollars in {currency}?",
            "What are {amount} dollars in {currency}?",
            "{amount} dollars in {currency}?",
            "Change {amount} dollars into {currency}.",
        ],
    ),
    Tool(
        "translate",
        {"word": _of(PLAIN_NOUNS), "language": _of(LANGUAGES)},
        {"translation": Values.pseudo},
        "{word} is {translation} in {language}.",
        [
            "What is {word} in {language}?",
            "How do you say {word} in {language}?",
            "Translate {word} to {language}.",
            "Translate {word} into {language}.",
            "What does {word} mean in {language}?",
        ],
    ),
    Tool(
        "calculator",
        {"expression": lambda v: f"{v.small()} {v.rng.choice('+-*')} {v.small()}"},
        {"result": _count},
        "{expression} is {result}.",
        [
            "What is {expression}?",
            "{expression}",
            "Calculate {expression}.",
            "How much is {expression}?",
            "Compute {expression}.",
            "What's {expression}?",
        ],
    ),
    Tool(
        "find_order",
        {"name": Values.name},
        {"order_id": Values.code},
        "The order of {name} has number {order_id}.",
        [
            "What did {name} order?",
            "Find the order of {name}.",
            "Which order is from {name}?",
            "Look up {name}'s order.",
            "What is the order number of {name}?",
        ],
    ),
    Tool(
        "order_city",
        {"order_id": Values.code},
        {"city": Values.city},
        "Order {order_id} goes to {city}.",
        [
            "Where does order {order_id} go?",
            "Which city does order {order_id} go to?",
            "What is the destination of order {order_id}?",
            "Where is order {order_id} sent to?",
        ],
    ),
    Tool(
        "find_city",
        {"name": Values.name},
        {"city": Values.city},
        "{name} lives in {city}.",
        [
            "Where does {name} live?",
            "Which city does {name} live in?",
            "Where is {name} at home?",
            "In which city does {name} live?",
        ],
    ),
    Tool(
        "order_owner",
        {"order_id": Values.code},
        {"owner": Values.name},
        "Order {order_id} belongs to {owner}.",
        [
            "Who does order {order_id} belong to?",
            "Whose order is {order_id}?",
            "Who is the owner of order {order_id}?",
            "Who ordered {order_id}?",
        ],
    ),
    Tool(
        "room_guest",
        {"room": Values.code},
        {"guest": Values.name},
        "{guest} stays in room {room}.",
        [
            "Who is in room {room}?",
            "Who stays in room {room}?",
            "Who is the guest in room {room}?",
            "Which guest has room {room}?",
        ],
    ),
    Tool(
        "box_content",
        {"box": Values.code},
        {"item": _of(ITEMS)},
        "There are {item} in box {box}.",
        [
            "What is in box {box}?",
            "What does box {box} contain?",
            "Look into box {box}.",
            "Which items are in box {box}?",
        ],
    ),
]
BY_NAME = {tool.name: tool for tool in TOOLS}

FIRST_STEPS = {
    "city": [
        ("order_city", "where order {order_id} goes"),
        ("find_city", "where {name} lives"),
        ("order_city", "at the destination of order {order_id}"),
        ("find_city", "in the city of {name}"),
    ],
    "name": [
        ("order_owner", "the owner of order {order_id}"),
        ("room_guest", "the guest in room {room}"),
        ("room_guest", "whoever is in room {room}"),
    ],
    "item": [("box_content", "the items in box {box}"), ("box_content", "the things in box {box}")],
    "order_id": [("find_order", "the order of {name}"), ("find_order", "{name}'s order")],
}
"""By the argument that they find: the tool, and how it is said."""
SECOND_STEPS = {
    "city": [
        ("get_weather", "What is the weather {x}?"),
        ("get_weather", "How warm is it {x}?"),
        ("get_weather", "Is it raining {x}?"),
        ("get_time", "What time is it {x}?"),
        ("get_time", "What is the time {x}?"),
    ],
    "name": [
        ("find_phone", "What is the phone number of {x}?"),
        ("find_phone", "I need to call {x}."),
        ("find_email", "What is the email of {x}?"),
        ("find_email", "I want to write to {x}."),
        ("play_music", "Play the music of {x}."),
    ],
    "item": [
        ("get_price", "What is the price of {x}?"),
        ("check_stock", "How many of {x} are in stock?"),
        ("get_price", "How much are {x}?"),
    ],
    "order_id": [
        ("order_status", "Where is {x}?"),
        ("order_status", "What is the status of {x}?"),
        ("cancel_order", "Cancel {x}."),
        ("refund_order", "Refund {x}."),
        ("order_status", "When will {x} arrive?"),
    ],
}
"""By the argument that they need."""

NO_TOOL = "Sorry, I have no tool for that."
ERRORS = [
    "not found",
    "timeout",
    "the tool is not available",
    "not allowed",
    "unknown",
    "service is down",
    "no such entry",
    "try again later",
    "permission denied",
    "no answer",
]


def as_json(fields: dict, rng) -> str:
    """A tool's result, spaced as one or the other of JSON's two habits."""
    return json.dumps(fields, ensure_ascii=False, separators=None if rng.random() < 0.5 else (",", ":"))
