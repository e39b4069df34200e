"""The network: Llama's decoder, named as its checkpoints are."""

import math
from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from .render import WEIGHT_DECISION, WEIGHT_VALUE


@dataclass
class Config:
    vocab_size: int = 1536
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rope_scaling: dict = field(
        default_factory=lambda: {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        }
    )
    """Pairs that would turn once in more than 512 tokens hardly turn: that half of a head compares words wherever they
    stand, the other half tells what is near."""
    rms_norm_eps: float = 1e-5

    def huggingface(self) -> dict:
        """`config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **asdict(self),
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": None,
            "eos_token_id": 0,
            "pad_token_id": 1,
            "torch_dtype": "bfloat16",
        }


WEIGHT_HALFWAY = 0.3
"""Of the losses of what is learned behind half of the layers."""
WEIGHT_FAR, FAR = 4.0, 64
"""Of a look at a value, beside one that is less than so many tokens back: most of those only echo what was just told."""
TOOL_HEAD, VALUE_HEAD = 0, 5
"""The heads that learn where to look."""


def rotary(config: Config, length: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, [length, head_dim], scaled as Llama 3 does."""
    half = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32) / config.head_dim
    frequencies, scaling = config.rope_theta**-half, config.rope_scaling
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    frequencies = frequencies * (kept + (1 - kept) / scaling["factor"])
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.q_proj = nn.Linear(c.hidden_size, c.num_attention_heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        c, (b, t, _) = self.c, x.shape
        heads = lambda y, n: y.view(b, t, n, c.head_dim).transpose(1, 2)  # noqa: E731
        q, k, v = (
            heads(self.q_proj(x), c.num_attention_heads),
            heads(self.k_proj(x), c.num_key_value_heads),
            heads(self.v_proj(x), c.num_key_value_heads),
        )
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))

    def looks(
        self, head: int, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rows: torch.Tensor, at: torch.Tensor
    ) -> torch.Tensor:
        """Where a head looks from positions `at` of `rows`: logits [positions, length]."""
        d = self.c.head_dim
        of = head * self.c.num_key_value_heads // self.c.num_attention_heads
        q = rotate(F.linear(x[rows, at], self.q_proj.weight[head * d : (head + 1) * d]), cos[at], sin[at])
        k = rotate(F.linear(x, self.k_proj.weight[of * d : (of + 1) * d]), cos, sin)
        later = torch.arange(x.shape[1], device=x.device) > at[:, None]
        return (torch.einsum("nd,ntd->nt", q, k[rows]) * d**-0.5).masked_fill(later, -torch.inf)


class FeedForward(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Norm(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(c.hidden_size))
        self.eps = c.rms_norm_eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


class Layer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(c), Norm(c)
        self.self_attn, self.mlp = Attention(c), FeedForward(c)

    def attend(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return x + self.self_attn(self.input_layernorm(x), cos, sin)

    def feed(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.norm = Norm(c)


class Pebble(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.config = c
        self.model = Decoder(c)
        residual = (2 * c.num_hidden_layers) ** -0.5
        for name, p in self.named_parameters():
            if p.dim() == 2:
                scale = 0.02 if "embed" in name else p.shape[1] ** -0.5 * 0.5
                nn.init.normal_(
                    p, std=scale * (residual if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0)
                )

    def hidden(self, ids: torch.Tensor, at: torch.Tensor | None = None, halfway: list | None = None) -> torch.Tensor:
        """Normed states of `ids` [rows, length]; with `at`, those of these positions of the flattened rows alone:
        nobody reads the others behind the last attention. The states of all after half of the layers go into
        `halfway`."""
        cos, sin = rotary(self.config, ids.shape[1], ids.device)
        x = self.model.embed_tokens(ids)
        *layers, last = self.model.layers
        for i, layer in enumerate(layers):
            if halfway is not None and i == self.config.num_hidden_layers // 2:
                halfway.append(x)
            x = layer.feed(layer.attend(x, cos, sin))
        x = last.attend(x, cos, sin)
        return self.model.norm(last.feed(x if at is None else x.flatten(0, 1)[at]))

    def compile(self) -> None:
        """Fuses what lies between the products. Rows have few shapes; how many positions are read varies."""
        Layer.attend = torch.compile(Layer.attend, dynamic=False)
        Layer.feed = torch.compile(Layer.feed, dynamic=True)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, self.model.embed_tokens.weight)

    def loss(
        self, ids: torch.Tensor, weights: torch.Tensor, tools: torch.Tensor, sources: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted mean of the cross entropies, and the shares that are right of decisions, values' tokens, tools'
        names, looks at tools and looks far back at values. Only positions of weight are projected. All are [rows, length + 1].

        Three things are learned behind half of the layers as well, so that the others find them there. Where an answer
        begins that takes a tool: the tool's name; and one head looks where that name is written. Where a value begins:
        one head looks where it was last. Both look at the first token if there is nothing to be found."""
        targets, weights = ids[:, 1:].flatten(), weights[:, 1:].flatten()
        at = weights.nonzero().squeeze(1)
        halfway: list[torch.Tensor] = []
        hidden = self.hidden(ids[:, :-1], at, halfway)
        logits, targets, weights = self.logits(hidden).float(), targets[at].long(), weights[at]
        losses = F.cross_entropy(logits, targets, reduction="none")
        right = (logits.detach().argmax(-1) == targets).float()
        shares = [right[weights == of].mean() for of in (WEIGHT_DECISION, WEIGHT_VALUE)]
        loss = (losses * weights).sum() / weights.sum()
        halfway_losses, halfway_shares = self.halfway(ids[:, :-1], tools[:, 1:], sources[:, 1:], halfway[0])
        return loss + WEIGHT_HALFWAY * sum(halfway_losses), torch.stack([*shares, *halfway_shares])

    def halfway(
        self, ids: torch.Tensor, tools: torch.Tensor, sources: torch.Tensor, x: torch.Tensor
    ) -> tuple[list, list]:
        """Losses and shares that are right of what is learned from `x`, the states behind half of the layers."""
        layer = self.model.layers[self.config.num_hidden_layers // 2]
        rotation = rotary(self.config, ids.shape[1], ids.device)
        normed = layer.input_layernorm(x)
        rows, at = tools.nonzero(as_tuple=True)
        names = tools[rows, at].long()
        looks = layer.self_attn.looks(TOOL_HEAD, normed, *rotation, rows, at)
        written = (ids[rows] == names[:, None]) & (looks > -torch.inf)
        named = self.logits(self.model.norm(x[rows, at]))
        pairs = [(named, names), (looks, written.int().argmax(-1))]
        losses = [F.cross_entropy(found, to, reduction="sum") / max(1, len(to)) for found, to in pairs]
        shares = [(found.argmax(-1) == to).float().mean() for found, to in pairs]
        rows, at = sources.nonzero(as_tuple=True)
        found, to = layer.self_attn.looks(VALUE_HEAD, normed, *rotation, rows, at), sources[rows, at].long() - 1
        far = at - to > FAR
        weighted = F.cross_entropy(found, to, reduction="none") * torch.where(far, WEIGHT_FAR, 1.0)
        losses.append(weighted.sum() / max(1, len(to)))
        return losses, [*shares, (found.argmax(-1) == to)[far].float().mean()]
