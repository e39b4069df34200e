"""Words and values that dialogues are made of.

A value is *held out* when its checksum says so: training never shows it and evaluation uses nothing else, so that
copying is measured and not memory. Names, cities and words are largely made up from syllables: a model that has seen
ten thousand names has to copy the next one.
"""

import random
import zlib

HELD_OUT_ONE_IN = 8

FIRST_NAMES = """
Ada Alan Grace Linus Ken Dennis Barbara Edsger Donald Margaret Tim Anna Ben Carla David Elena Felix Gina Hugo Ines
Jonas Kira Leo Maria Nina Omar Paul Rosa Sam Tara Uma Victor Wendy Yara Zoe Max Emma Noah Mia Luca Eva Tom Lisa Peter
Julia Mark Sara Nick Laura Jack Amy Bob Alice Carol Dan Erik Frank Helen Ivan Jane Kate Lars Mona Nora Oscar Petra
Quinn Rita Steve Tina Vera Walter Rex Luna Milo Bella Charlie Coco Rocky Daisy Buddy Simba Felipe Chen Priya Raj Yuki
Aisha Ali Fatima John Mary James Robert Michael Linda William Richard Susan Joseph Thomas Karen Sarah Nancy Betty
Sandra Ashley Emily Kevin Brian George Edward Ronald Jason Jeff Ryan Gary Eric Stephen Larry Justin Scott Brandon Ben
Andy Chris Alex Sophie Olivia Ella Lucy Ruby Max Toby
""".split()
CITIES = """
Lisbon Paris Berlin London Madrid Rome Oslo Vienna Prague Dublin Athens Tokyo Kyoto Seoul Lima Quito Cairo Nairobi
Boston Chicago Denver Austin Seattle Toronto Sydney Perth Zurich Geneva Munich Hamburg Milan Turin Porto Seville Lyon
Nice Bergen Tallinn Riga Vilnius Warsaw Krakow Budapest Zagreb Sofia Bucharest Istanbul Delhi Mumbai Hanoi Bangkok
Manila Jakarta Dakar Accra Lagos Havana Bogota Miami Dallas Houston Portland Amsterdam Brussels Copenhagen Stockholm
Helsinki Barcelona Naples Florence Moscow Beijing Shanghai Dubai
""".split()
COLORS = """
red blue green yellow orange purple black white pink brown gray silver gold teal violet crimson
""".split()
ANIMALS = """
dog cat horse rabbit parrot turtle hamster goat pony lizard duck snake fish bird mouse frog owl fox bear wolf
""".split()
FOODS = """
pizza pasta soup salad curry sushi bread cheese rice cake pie noodles tacos ramen steak stew toast waffles
""".split()
DRINKS = "tea coffee water juice milk cocoa lemonade cider soda espresso".split()
SPORTS = """
tennis soccer football golf chess rugby hockey running swimming cycling rowing boxing judo basketball
""".split()
SEASONS = "spring summer autumn winter".split()
ITEMS = """
lamps chairs tables cups plates towels pillows blankets mugs boxes bags books pens candles mirrors clocks rugs shelves
spoons forks knives bowls baskets bottles hats scarves gloves socks shirts jackets umbrellas vases tents ropes
""".split()
LANGUAGES = """
French German Spanish Italian Dutch Polish Greek Danish Finnish Turkish Swedish Czech Latin Japanese
""".split()
CURRENCIES = "euros pounds yen francs pesos kroner rupees zloty".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = """
January February March April May June July August September October November December
""".split()
SKIES = "sunny cloudy rainy windy foggy clear snowy stormy".split()
ROOMS = "kitchen bedroom hall bathroom garage office cellar attic studio garden lobby library".split()
STATUSES = "delayed shipped delivered packed lost ready waiting returned".split()
ADJECTIVES = """
Stone River Blue Golden Little Green Silver North Old Grand Red Sunny Quiet Happy Royal Harbor Maple Cedar Iron Lucky
""".split()
BUSINESSES = """
Cafe Hotel Library Clinic Museum Bank Garden Market Bakery Gym School Theater Studio Shop Inn Airlines Books Bikes
Labs
""".split()
PLAIN_NOUNS = """
table river cloud stone bridge forest candle window engine planet island mirror ladder basket pocket winter garden
rocket anchor pepper violin castle pencil tunnel button camera dragon spider pirate wizard butter hammer helmet jungle
kitten magnet marble meadow needle oyster pillow puzzle saddle salmon shadow signal silver sunset temple thunder
ticket timber tiger tulip turkey velvet walnut whistle willow falcon copper amber coral hazel lotus maple olive panda
raven tango zebra
""".split()

UNITS = "days dollars minutes hours euros percent people weeks".split()

_ONSETS = "b c d f g h j k l m n p r s t v w z br dr fl gr kl pr st tr sh ch th".split()
_NUCLEI = "a e i o u a e i o ai ea oo".split()
_CODAS = " n r l s m t k nd".split(" ")


def is_held_out(value: str) -> bool:
    """Whether a value belongs to evaluation."""
    return zlib.crc32(value.lower().encode()) % HELD_OUT_ONE_IN == 0


class Values:
    """Draws values of one side: for training, or held out."""

    def __init__(self, rng: random.Random, held_out: bool):
        self.rng = rng
        self.held_out = held_out

    def _draw(self, make) -> str:
        for _ in range(200):
            value = make()
            if is_held_out(value) == self.held_out:
                return value
        raise ValueError("a kind of value with nothing on one side")

    def pseudo(self) -> str:
        """A word that does not exist."""
        rng = self.rng
        parts = [
            rng.choice(_ONSETS) + rng.choice(_NUCLEI) + rng.choice(_CODAS) for _ in range(rng.choice((1, 2, 2, 2, 3)))
        ]
        return "".join(parts)

    def digits(self, low: int = 2, high: int = 5) -> str:
        n = self.rng.randint(low, high)
        return self._draw(
            lambda: str(self.rng.randint(1, 9)) + "".join(str(self.rng.randint(0, 9)) for _ in range(n - 1))
        )

    def small(self) -> str:
        return str(self.rng.randint(2, 99))

    def number(self) -> str:
        return self.digits(2, 4)

    def code(self) -> str:
        return self.digits(3, 5)

    def name(self) -> str:
        rng = self.rng
        return self._draw(lambda: rng.choice(FIRST_NAMES) if rng.random() < 0.4 else self.pseudo().capitalize())

    def city(self) -> str:
        rng = self.rng
        return self._draw(lambda: rng.choice(CITIES) if rng.random() < 0.5 else self.pseudo().capitalize())

    def word(self) -> str:
        rng = self.rng
        return self._draw(lambda: rng.choice(PLAIN_NOUNS) if rng.random() < 0.5 else self.pseudo())

    def password(self) -> str:
        return self._draw(lambda: self.word_any() + self.rng.choice(("", str(self.rng.randint(1, 99)))))

    def word_any(self) -> str:
        return self.rng.choice(PLAIN_NOUNS) if self.rng.random() < 0.5 else self.pseudo()

    def time(self) -> str:
        rng = self.rng
        return self._draw(
            lambda: f"{rng.randint(6, 23)}:{rng.choice(('00', '15', '30', '45', '10', '20', '40', '50'))}"
        )

    def date(self) -> str:
        return self._draw(lambda: f"{self.rng.choice(MONTHS)} {self.rng.randint(1, 28)}")

    def flight(self) -> str:
        rng = self.rng
        return self._draw(
            lambda: "".join(rng.choice("ABCDEFGHKLMNPQRSTUVXZ") for _ in range(2)) + str(rng.randint(100, 999))
        )

    def organisation(self) -> str:
        return f"{self.rng.choice(ADJECTIVES)} {self.rng.choice(BUSINESSES)}"

    def choice(self, words: list[str]) -> str:
        """One of a closed list: these cannot be held out, every word of them is a word of the language."""
        return self.rng.choice(words)

    def measure(self) -> str:
        """What handbooks say: an amount with its unit, a time, a day, a word."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.6:
            return f"{self.number()} {rng.choice(UNITS)}"
        if kind < 0.75:
            return self.time()
        if kind < 0.85:
            return self.password()
        return self.code()
