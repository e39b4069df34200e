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


class _Straight(torch.nn.Module):
    def __init__(self, bits: int):
        super().__init__()
        self.bits = bits

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + (rounded(weight, self.bits) - weight).detach()


@contextmanager
def simulated(model, bits: int = 4):
    """Weights are quantised inside of the context, and learn through it."""
    from torch.nn.utils import parametrize

    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            parametrize.register_parametrization(
                module, "weight", _Straight(8 if "embed" in name else bits), unsafe=True
            )
    try:
        with parametrize.cached():
            yield
    finally:
        for module in model.modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
