"""The tokenizer: byte-level BPE, trained on the dialogues themselves.

Every digit stands alone. A word is one piece without the space before it, so that it is spelt the same after a quote,
a space and an underscore and can be copied; the commonest words, which are never copied, keep their space to save
tokens.
"""

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ["<|im_end|>", "<|endoftext|>", "<|im_start|>"]
MARKUP = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>"]
END, PAD = 0, 1

COMMON = """
is my the your a of to in what have not you me for it that on at no and are do am told information about yet tool with
""".split()
PIECES = rf" (?:{'|'.join(COMMON)})(?![A-Za-z])|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+(?: [^\s\p{{L}}\p{{N}}]+)*|\s"


def train(texts, size: int) -> Tokenizer:
    """Learns merges from an iterator of texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
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
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))
