"""Batches of equal length, made in this process or in others.

A row is one conversation, drawn from a shape, grown until it fills the row and cut there.
"""

import random
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from . import vocabulary
from .curriculum import SHAPES
from .dialogue import Dialogue
from .lexicon import Values
from .render import Renderer

CHARACTERS_PER_TOKEN = 4.2
"""A little more than there are, so that rows are full; what is too much is cut."""


@dataclass(frozen=True)
class Files:
    template: Path
    tokenizer: Path


@dataclass(frozen=True)
class Request:
    rows: int
    length: int
    shapes: tuple[tuple[str, float], ...]
    seed: int


_renderers: dict[Files, Renderer] = {}


def dialogue_of(rng: random.Random, shape: str, characters: float, held_out: bool = False) -> Dialogue:
    dialogue = Dialogue(rng, Values(rng, held_out), SHAPES[shape])
    written = 2.2 * len(dialogue.system) + 60 * len(dialogue.tools)
    done = 0
    while written < characters:
        dialogue.turn()
        written += sum(len(m["content"]) + 40 for m in dialogue.messages[done:])
        done = len(dialogue.messages)
    return dialogue


Batch = tuple[np.ndarray, ...]
"""Ids, weights, tools and sources as `Renderer.tokens` tells, [rows, length + 1]."""


def batch(files: Files, request: Request) -> Batch:
    if files not in _renderers:
        _renderers[files] = Renderer(files.template, vocabulary.load(files.tokenizer))
    renderer, rng = _renderers[files], random.Random(request.seed)
    noise = np.random.default_rng(request.seed)
    names, shares = zip(*request.shapes)
    ids = np.full((request.rows, request.length + 1), vocabulary.PAD, dtype=np.int16)
    weights = np.zeros((request.rows, request.length + 1), dtype=np.float16)
    tools, sources = np.zeros_like(ids), np.zeros_like(ids)
    for row in range(request.rows):
        shape = rng.choices(names, shares)[0]
        found = renderer.tokens(dialogue_of(rng, shape, request.length * CHARACTERS_PER_TOKEN), noise)
        for into, values in zip((ids, weights, tools, sources), found):
            into[row, : len(values)] = values[: request.length + 1]
    return ids, weights, tools, sources


class Source:
    """Batches in the order asked, from `workers` processes, or from this one if there are none."""

    def __init__(self, files: Files, workers: int):
        self.files, self.ahead = files, 4 * workers
        # Not forked: the parent may hold a device.
        self.pool = ProcessPoolExecutor(workers, get_context("spawn")) if workers else None
        self.pending: deque = deque()

    def get(self, request: Request) -> Batch:
        """What was asked some requests ago, once as many are under way as the workers need."""
        if self.pool is None:
            return batch(self.files, request)
        self.pending.append(self.pool.submit(batch, self.files, request))
        while len(self.pending) < self.ahead:
            more = Request(request.rows, request.length, request.shapes, request.seed + 1_000_003 * len(self.pending))
            self.pending.append(self.pool.submit(batch, self.files, more))
        return self.pending.popleft().result()

    def close(self) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)
