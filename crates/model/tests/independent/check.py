"""Compares the logits that `main.rs` beside this file wrote with those of Hugging Face transformers, in f32 on the CPU.

Usage: check.py DIRECTORY. Prints, for each model, the largest absolute difference and the root of the mean square difference
divided by the root of the mean square logit; fails if one is beyond what rounding explains.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

RELATIVE_MAX = 1e-5


def compare(directory: Path) -> tuple[float, float]:
    """The largest absolute and the relative root mean square difference of one model."""
    ours = json.loads((directory / "logits.json").read_text())
    # Some families' padding token lies beyond a micro vocabulary. MXFP4 is taken apart, as here.
    config = AutoConfig.from_pretrained(directory, pad_token_id=0)
    # Eager attention is the plain one; float32 keeps the comparison to rounding.
    model = AutoModelForCausalLM.from_pretrained(
        directory, config=config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        theirs = model(torch.tensor([ours["tokens"]])).logits[0].double()
    difference = theirs - torch.tensor(ours["logits"], dtype=torch.float64)
    relative = difference.square().mean().sqrt() / theirs.square().mean().sqrt()
    return difference.abs().max().item(), relative.item()


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    worst = 0.0
    for directory in sorted(path.parent for path in Path(sys.argv[1]).glob("*/logits.json")):
        absolute, relative = compare(directory)
        worst = max(worst, relative)
        print(f"{directory.name:16} max abs {absolute:.2e}   relative rms {relative:.2e}")
    return int(not worst <= RELATIVE_MAX)


if __name__ == "__main__":
    sys.exit(main())
