"""Makes the fixtures beside this file: two small SentencePiece models as GGUF files hold them, and what SentencePiece itself makes of
texts that tokenizers trip over.

Usage: make.py            (needs sentencepiece and gguf from PyPI; the fixtures are in the repository, so that tests need neither)

`llama.json` has the settings of Llama 2's model, `gemma.json` those of Gemma's: no leading space, and runs of spaces and of line ends that
the user has defined.
"""

import io
import json
from pathlib import Path

import sentencepiece
from gguf import TokenType
from sentencepiece import sentencepiece_model_pb2 as protocol

HERE = Path(__file__).parent

CORPUS = """
The quick brown fox jumps over the lazy dog. The dog sleeps; the fox does not care, for it's the fox's day.
She said: "Where's the locker code?" -- "It is 4471," he answered, 'and it was 4470 in 2024.'
def main(arguments):
    for index, argument in enumerate(arguments):
        print(f"{index}: {argument}")
        if argument == "--help":
            return {"name": "look", "arguments": {"at": [1, 2, 3]}}
Das Straßenschild in Köln zeigt 30 km/h. Où est la bibliothèque ? El niño comió piñas. 你好,世界。今天天气很好。こんにちは世界。
Привет, мир! Как дела? Η γρήγορη αλεπού. 안녕하세요 세계. naïve café résumé coöperate.
\tTabs\tand    spaces    in    columns\t1\t22\t333
""".strip().split("\n") * 8

TEXTS = [
    "Hello",
    " Hello",
    "  Hello  world   ",
    "the the  the   the    the",
    "\tTabs\t\tand\n\nlines\r\n",
    "it's the fox's; 'quoted' \"and\" so on",
    "4471 and 12345678901",
    "naïve café résumé",
    "e\u0301 is not \u00e9",
    "你好,世界。",
    "こんにちは 세계 Привет",
    "😀 emoji 👩‍👩‍👧 and 🏳️‍🌈",
    "\u0000\u0001\u007f control\u001b[0m",
    "\u00a0non\u2009breaking\u3000spaces",
    "\ufefffirst \u200bzero",
    "<s>not a start</s><unk><0x41>",
    "▁already▁escaped ▁",
    "x" * 70,
    "     " + "y" + " " * 17 + "z",
    "\n\n\n\n\n",
    "def main(arguments):\n    return {\"at\": [1, 2]}\n",
    "a",
    " ",
    "   ",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ﬁ ½ Ⅷ",
    "العربية עברית हिन्दी ไทย",
]

COMMON = {
    "model_type": "bpe",
    "byte_fallback": True,
    "character_coverage": 0.98,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "minloglevel": 2,
    "num_threads": 1,
    "max_sentencepiece_length": 16,
}

RUNS = ["▁" * count for count in range(2, 17)] + ["\n" * count for count in range(1, 6)] + ["\t"]

MODELS = {
    "llama": {"vocab_size": 560, "add_dummy_prefix": True},
    "gemma": {
        "vocab_size": 580,
        "add_dummy_prefix": False,
        "user_defined_symbols": [*RUNS, "<start_of_turn>", "<end_of_turn>"],
        "pad_id": 0,
        "eos_id": 1,
        "bos_id": 2,
        "unk_id": 3,
    },
}

KINDS = protocol.ModelProto.SentencePiece
TYPES = {
    KINDS.NORMAL: TokenType.NORMAL,
    KINDS.UNKNOWN: TokenType.UNKNOWN,
    KINDS.CONTROL: TokenType.CONTROL,
    KINDS.USER_DEFINED: TokenType.USER_DEFINED,
    KINDS.UNUSED: TokenType.UNUSED,
    KINDS.BYTE: TokenType.BYTE,
}


def make(name: str, settings: dict) -> dict:
    """The fixture of one model."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=trained, **COMMON, **settings
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    model = protocol.ModelProto.FromString(trained.getvalue())
    # Converters mark what begins and ends a turn as control.
    is_turn = {"<start_of_turn>", "<end_of_turn>"}
    kinds = [TokenType.CONTROL if piece.piece in is_turn else TYPES[piece.type] for piece in model.pieces]
    return {
        "add_space_prefix": settings["add_dummy_prefix"],
        "tokens": [piece.piece for piece in model.pieces],
        "scores": [piece.score for piece in model.pieces],
        "types": [int(kind) for kind in kinds],
        "bos": processor.bos_id(),
        "eos": processor.eos_id(),
        "texts": {text: processor.encode(text) for text in TEXTS},
    }


def main() -> None:
    for name, settings in MODELS.items():
        lines = json.dumps(make(name, settings), ensure_ascii=True, separators=(",", ":"))
        (HERE / f"{name}.json").write_text(lines.replace('],"', '],\n"').replace(',"texts"', ',\n"texts"') + "\n")
        print(f"{name}.json")


if __name__ == "__main__":
    main()
