#!/usr/bin/env python3
"""Makes Pebble: tokenizer, training, evaluation, files. `make.py all` is the one command; `make.py --help` tells the
parts.

Uses the interpreter it runs in if that has the packages, else a virtual environment that it makes.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PRODUCT = ROOT / "crates" / "model" / "pebble"
CHECKED = PRODUCT.parent / "tests" / "pebble_dialogues.json"
HELD_OUT = ROOT / "crates" / "backend-neuron" / "tests" / "held_out_dialogues.json"
NEEDED = ("torch", "numpy", "tokenizers", "jinja2", "safetensors")
CORPUS_DIALOGUES = 6000


def in_environment(path: Path) -> None:
    """Goes on in an interpreter that has the packages."""
    if all(find_spec(name) for name in NEEDED):
        return
    python = path / "bin" / "python3"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", path], check=True)
    if Path(sys.prefix) == path.resolve():
        sys.exit(f"{path} lacks one of {', '.join(NEEDED)}; remove it and run again")
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", HERE / "requirements.txt"], check=True)
    os.execv(python, [str(python), *sys.argv])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "what", choices=("all", "tokenizer", "train", "evaluate", "export", "show"), help="the part to do"
    )
    parser.add_argument("--preset", choices=("cpu", "h200"), default="cpu", help="size, stages and length of the run")
    parser.add_argument("--out", type=Path, default=ROOT / "target" / "pebble", help="where checkpoints and files go")
    parser.add_argument("--install", action="store_true", help="export into crates/model/pebble instead")
    parser.add_argument(
        "--venv", type=Path, default=ROOT / "target" / "pebble-venv", help="the virtual environment to make"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="by default the GPU for its preset")
    parser.add_argument(
        "--minutes",
        type=float,
        help="limit in minutes, on a CPU of its own time in each process; by default the preset's",
    )
    parser.add_argument("--tokens", type=int, help="limit in tokens, by default the preset's")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--processes", type=int, default=1, help="processes that average their gradients (CPU)")
    parser.add_argument("--workers", type=int, help="processes that make dialogues, by default none on a CPU")
    parser.add_argument(
        "--autocast", action=argparse.BooleanOptionalAction, help="compute in bf16, by default on a GPU"
    )
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="torch.compile the layers"
    )
    parser.add_argument("--resume", type=Path, help="checkpoint to go on from")
    parser.add_argument("--from-weights", type=Path, help="model directory to begin from: its weights, its tokenizer")
    parser.add_argument(
        "--rate", type=float, default=1.0, help="of the peak learning rates; less to begin from weights"
    )
    parser.add_argument("--start-at", type=float, default=0.0, help="part of the plan that a resumed run leaves out")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--vocabulary", type=int, default=1536, help="tokens of the tokenizer")
    parser.add_argument("--samples", type=int, default=50, help="dialogues per skill and distance")
    parser.add_argument("--bits", type=int, choices=(4, 8, 16), default=16, help="evaluate on a quantised path")
    return parser.parse_args()


def make_tokenizer(args: argparse.Namespace) -> None:
    from pebble import vocabulary
    from pebble.batches import dialogue_of
    from pebble.render import Renderer

    renderer = Renderer(PRODUCT / "chat_template.jinja")
    rng = random.Random(args.seed)
    shapes = ("mix", "chat", "tools", "book", "facts")
    texts = [renderer.marked_text(dialogue_of(rng, shapes[i % len(shapes)], 1000)) for i in range(CORPUS_DIALOGUES)]
    args.out.mkdir(parents=True, exist_ok=True)
    vocabulary.train(texts, args.vocabulary).save(str(args.out / "tokenizer.json"))


def make_training(args: argparse.Namespace) -> None:
    import torch

    from pebble.batches import Files
    from pebble.train import PRESETS, Plan, run

    preset = PRESETS[args.preset]
    preset.config.vocab_size = args.vocabulary
    device = args.device or ("cuda" if args.preset == "h200" else "cpu")
    workers = (
        args.workers if args.workers is not None else (0 if device == "cpu" else max(1, (os.cpu_count() or 2) - 2))
    )
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device is visible; use --device cpu")
    run(
        Plan(
            preset,
            Files(PRODUCT / "chat_template.jinja", args.out / "tokenizer.json"),
            args.out,
            device,
            args.minutes or preset.minutes,
            args.tokens or preset.tokens,
            args.threads,
            args.processes,
            workers,
            device == "cuda" if args.autocast is None else args.autocast,
            args.seed,
            args.start_at,
            args.resume,
            args.from_weights,
            args.rate,
            args.compile,
        )
    )


def main() -> None:
    args = arguments()
    in_environment(args.venv)
    sys.path.insert(0, str(HERE))
    if args.from_weights and not (args.out / "tokenizer.json").exists():
        args.out.mkdir(parents=True, exist_ok=True)
        shutil.copy(args.from_weights / "tokenizer.json", args.out)
    if args.what == "tokenizer" or (args.what in ("all", "train") and not (args.out / "tokenizer.json").exists()):
        make_tokenizer(args)
    if args.what in ("all", "train"):
        make_training(args)
    if args.what in ("all", "evaluate"):
        from pebble.evaluate import evaluate

        evaluate(args)
    if args.what in ("all", "export"):
        from pebble.export import export, write_dialogues, write_held_out

        export(args.out, PRODUCT if args.install else args.out / "model", PRODUCT)
        if args.install:
            write_dialogues(PRODUCT / "chat_template.jinja", args.out / "tokenizer.json", CHECKED)
            write_held_out(PRODUCT / "chat_template.jinja", args.out / "tokenizer.json", HELD_OUT)
    if args.what == "show":
        from pebble.evaluate import show

        show(args)


if __name__ == "__main__":
    main()
