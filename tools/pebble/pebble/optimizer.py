"""Muon on matrices, AdamW on embeddings and norms.

Muon: momentum, orthogonalised by five Newton-Schulz steps (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/). Matrices of one shape are orthogonalised together.
"""

import torch
import torch.distributed as dist

_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalised(g: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Of a stack of matrices [n, rows, columns]."""
    x = g.bfloat16() if g.is_cuda else g
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = _A * x + (_B * a + _C * a @ a) @ x
    return (x.mT if tall else x).to(g.dtype)


def shared_out(g: torch.Tensor) -> torch.Tensor:
    """`orthogonalised`, each process doing its share of the matrices."""
    if not dist.is_initialized():
        return orthogonalised(g)
    rank, processes = dist.get_rank(), dist.get_world_size()
    updates = torch.zeros_like(g)
    updates[rank::processes] = orthogonalised(g[rank::processes])
    dist.all_reduce(updates)
    return updates


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            shapes: dict = {}
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                shapes.setdefault(p.shape, []).append((p, p.grad.lerp(buffer, group["momentum"])))
            for shape, members in shapes.items():
                updates = shared_out(torch.stack([g for _, g in members]))
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for (p, _), update in zip(members, updates):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update, alpha=-group["lr"] * scale)


def optimizers(model) -> list[torch.optim.Optimizer]:
    """Both; the rates given here are the peaks."""
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    found = [Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)]
    for optimizer in found:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return found
