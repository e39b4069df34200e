"""The tokenizer: byte-level BPE, trained on the dialogues themselves.

Every digit stands alone. A word is one piece without the space before it, so that it is spelt the same after a quote
and after a space and can be copied; common words, which no value holds, keep their space to save tokens. A name with
underscores is one piece, and so one token if it is a tool of training: whether it is listed is then one comparison.
"""

import re
from collections import Counter
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .facts import MARK, UNMARK

SPECIAL = ["<|im_end|>", "<|endoftext|>", "<|im_start|>"]
MARKUP = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>"]
END, PAD = 0, 1

MARKS = re.compile(f"[{MARK}{UNMARK}]")
VALUE = re.compile(f"{MARK}(.*?){UNMARK}")

ALWAYS = "is a the of to in not for at no on and something".split()
"""Keep their space although some value holds them."""
COMMON_FROM = 40
"""So often a word has to be seen in the corpus to keep its space."""
PIECES = (
    r"\p{{L}}+(?:_\p{{L}}+)+|(?:system|user|assistant)\n| (?:{common})(?![\p{{L}}_])|'\p{{L}}{{1,2}}(?!\p{{L}})"
    r"|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+(?: [^\s\p{{L}}\p{{N}}]+)*|\s"
)


def common_words(texts: list[str]) -> list[str]:
    """Of marked texts: what is said often in lower case behind a space, and is never part of a value."""
    seen = Counter(word for text in texts for word in re.findall(r"(?<= )[a-z]+(?![A-Za-z_])", text))
    values = {word for text in texts for value in VALUE.findall(text) for word in re.findall(r"[A-Za-z]+", value)}
    return sorted({word for word, count in seen.items() if count >= COMMON_FROM} - values | set(ALWAYS))


def train(marked: list[str], size: int) -> Tokenizer:
    """Learns merges from marked texts."""
    tokenizer = Tokenizer(models.BPE())
    pieces = PIECES.format(common="|".join(common_words(marked)))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = [AddedToken(text, special=True, normalized=False) for text in SPECIAL] + [
        AddedToken(text, special=False, normalized=False) for text in MARKUP
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=added, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator((MARKS.sub("", text) for text in marked), trainer)
    return tokenizer


def load(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))
