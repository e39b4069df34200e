"""The evaluator: exact answers by skill and distance, and the model card.

An answer counts when every token of it, its end included, is the likeliest after what is right so far: that is what
greedy decoding writes.
"""

import json
import random
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from . import card, vocabulary
from .probes import SKILLS
from .quantize import simulated
from .render import ASSISTANT, Renderer
from .train import PRESETS, load
from .vocabulary import MARKS

DISTANCES = (0, 2, 5, 10, 14, 20)
TOKENS_PER_BATCH = 12_000


@dataclass
class Probe:
    skill: str
    turns: int
    ids: list[int]
    spans: list[tuple[int, int]]


def probe(renderer: Renderer, skill: str, turns: int, seed: int, limit: int) -> Probe | None:
    """A probe as tokens; none if it is longer than the context."""
    dialogue, asked = SKILLS[skill](random.Random(seed), turns)
    text = MARKS.sub("", renderer.marked_text(dialogue))
    answers = [m.span(1) for m in ASSISTANT.finditer(text)]
    speaks = [i - len(dialogue.messages) for i, m in enumerate(dialogue.messages) if m["role"] == "assistant"]
    chosen = [answers[speaks.index(i)] for i in asked]
    encoding = renderer.tokenizer.encode(text, add_special_tokens=False)
    starts = np.array([start for start, _ in encoding.offsets])
    spans = [(int(np.searchsorted(starts, a)), int(np.searchsorted(starts, b))) for a, b in chosen]
    return Probe(skill, turns, encoding.ids, spans) if len(encoding.ids) <= limit else None


def outcomes(model, probes: list[Probe], device: str) -> list[tuple[Probe, bool, list[int]]]:
    """Each probe, whether it is right, and the likeliest tokens."""
    out = []
    probes = sorted(probes, key=lambda p: len(p.ids))
    while probes:
        rows = max(1, TOKENS_PER_BATCH // len(probes[0].ids)) if device == "cpu" else 256
        some, probes = probes[:rows], probes[rows:]
        ids = torch.zeros(len(some), max(len(p.ids) for p in some), dtype=torch.long)
        for row, p in enumerate(some):
            ids[row, : len(p.ids)] = torch.tensor(p.ids)
        with torch.no_grad():
            hidden = model.hidden(ids.to(device))
            for row, p in enumerate(some):
                likeliest = []
                for a, b in p.spans:
                    likeliest.append(model.logits(hidden[row, a - 1 : b - 1]).argmax(-1).tolist())
                right = all(said == p.ids[a:b] for said, (a, b) in zip(likeliest, p.spans))
                out.append((p, right, likeliest))
    return out


def examine(args, template: Path, skills=tuple(SKILLS), distances=DISTANCES, bits: int = 16):
    """All probes of the skills and distances, tried on the checkpoint."""
    torch.set_num_threads(args.threads)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, state = load(args.resume or args.out / "checkpoint.pt", device)
    model = model.bfloat16().float()
    renderer = Renderer(template, vocabulary.load(args.out / "tokenizer.json"))
    probes = []
    for skill in skills:
        for turns in distances:
            seeds = range(turns * 100_000, turns * 100_000 + args.samples)
            probes += [
                p
                for p in (probe(renderer, skill, turns, seed, model.config.max_position_embeddings) for seed in seeds)
                if p
            ]
    with torch.no_grad(), simulated(model, bits) if bits < 16 else nullcontext():
        return outcomes(model, probes, device), model, state, renderer


def rates(tried) -> dict[str, dict[int, float]]:
    """Percent that are right."""
    by: dict[tuple[str, int], list[bool]] = {}
    for p, right, _ in tried:
        by.setdefault((p.skill, p.turns), []).append(right)
    table: dict[str, dict[int, float]] = {}
    for (skill, turns), found in by.items():
        table.setdefault(skill, {})[turns] = 100 * sum(found) / len(found)
    return {skill: dict(sorted(table[skill].items())) for skill in SKILLS if skill in table}


def evaluate(args) -> None:
    """The whole examination; leaves `evaluation.json` and `MODEL_CARD.md` in the output."""
    template = card.PRODUCT / "chat_template.jinja"
    tried, model, state, _ = examine(args, template)
    lengths = {d: round(np.mean([len(p.ids) for p, _, _ in tried if p.turns == d])) for d in DISTANCES}
    quantised = {bits: rates(examine(args, template, distances=(5,), bits=bits)[0]) for bits in (8, 4)}
    found = {
        "rates": rates(tried),
        "lengths": lengths,
        "at_five": {skill: row[5] for skill, row in rates(tried).items()},
        "quantised": {bits: {skill: row[5] for skill, row in found.items()} for bits, found in quantised.items()},
        "samples": args.samples,
        "tokens": state["tokens"],
        "steps": state["steps"],
        "minutes": round(state["seconds"] / 60),
        "longest": max(length for stage in PRESETS[args.preset].stages for length in stage.lengths),
    }
    (args.out / "evaluation.json").write_text(json.dumps(found, indent=1))
    text = card.write(found, model)
    (args.out / "MODEL_CARD.md").write_text(text)
    print(text)


def show(args) -> None:
    """A quick look: rates at three distances, and what goes wrong."""
    tried, _, state, renderer = examine(
        args, card.PRODUCT / "chat_template.jinja", distances=(0, 5, 20), bits=args.bits
    )
    print(state)
    for skill, row in rates(tried).items():
        print(f"{skill:48}", *(f"{rate:4.0f}" for rate in row.values()))

    def read(ids: list[int]) -> str:
        return renderer.tokenizer.decode(ids, skip_special_tokens=False)

    seen: dict[str, int] = {}
    for p, right, likeliest in tried:
        if not right and seen.setdefault(p.skill, 0) < 4:
            seen[p.skill] += 1
            a, b = p.spans[0]
            print(f"--- {p.skill} @{p.turns}: {read(p.ids[max(0, a - 18) : a])!r}")
            for said, (a, b) in zip(likeliest, p.spans):
                print(f"    right: {read(p.ids[a:b])!r} said: {read(said)!r}")
