"""The 4-bit path, simulated: int8 codes in groups of 32, of which only the upper nibble is read; embeddings at 8 bits.

The gradient passes straight through. Out: a context in which a model's weights are what that path computes with.
"""

from contextlib import contextmanager

import torch

GROUP = 32


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """What `bits` of each code say. The lower bits that are not read count as their middle."""
    rows, columns = weight.shape
    groups = weight.view(rows, columns // GROUP, GROUP)
    scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-8) / 127
    codes = (groups / scale).round()
    if bits == 4:
        codes = (codes / 16).floor() * 16 + 8
    return (codes * scale).view(rows, columns)


@contextmanager
def simulated(model, bits: int = 4):
    """Weights are quantised inside of the context; gradients found there count for those before it."""
    modules = [(name, m) for name, m in model.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Embedding))]
    exact = [m.weight.detach().clone() for _, m in modules]
    with torch.no_grad():
        for name, m in modules:
            m.weight.copy_(rounded(m.weight, 8 if "embed" in name else bits))
    try:
        yield
    finally:
        with torch.no_grad():
            for (_, m), weight in zip(modules, exact):
                m.weight.copy_(weight)
