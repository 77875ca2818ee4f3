"""Multi-head attention: self-attention, and cross-attention for the regressor (Sec. 2.1).

B clips, S tokens, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WRITTEN_OUT_UP_TO_KEYS = 256
"""Number of keys up to which attention written out is faster in bf16 on a CPU (docs/log/speed.md)."""

LOCAL_GAIN = 1.5
"""Scale of the query and key weights of a local start; 1 and 3 learn less in as many steps (docs/log/learning.md)."""

AttentionKind = Literal["factorised", "joint"]
"""Self-attention over time and then over space, or over all tokens of a clip at once."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax(q kᵀ / √d) v, for (batch, heads, S, d) each."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[-2] <= WRITTEN_OUT_UP_TO_KEYS:
        return (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


@dataclass(frozen=True)
class Rotation:
    """Rotary positions of S tokens: pairs of neighbouring channels of queries and keys turn by an angle (RoPE).

    Attributes:
        cosine, sine: (B or 1, 1, S, D/heads); channels that do not turn have cosine 1 and sine 0.
    """

    cosine: Tensor
    sine: Tensor

    @classmethod
    def by(cls, angle_BSd: Tensor) -> Rotation:
        """The rotation by angles (B or 1, S, D/heads), one for each channel."""
        return cls(angle_BSd.cos()[:, None], angle_BSd.sin()[:, None])

    def __call__(self, x: Tensor) -> Tensor:
        """Queries or keys (B, heads, S, D/heads), turned."""
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        across = torch.stack([-odd, even], dim=-1).flatten(-2)
        return (x * self.cosine + across * self.sine).to(x.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention over the second to last axis of (..., S, D)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        q, k, v = self.heads(x, rotation)
        return self.out(attend(q, k, v).transpose(1, 2).reshape(x.shape))

    def heads(self, x: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (batch, heads, S, D/heads)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # ..., S, 3, heads, D/heads
        q, k, v = (part.transpose(-3, -2).flatten(0, -4) for part in qkv.unbind(-3))
        return (q, k, v) if rotation is None else (rotation(q), rotation(k), v)

    def start_local(self) -> None:
        """Gives queries and keys the same weights, in place."""
        query, key, _ = self.qkv.weight.detach().chunk(3)
        start_alike(query, key)

    def received(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        """Attention that each token gets, (..., S): the mean over heads and queries; sums to 1 over S."""
        q, k, _ = self.heads(x, rotation)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        return weights.mean(dim=(1, 2)).view(x.shape[:-1])


class CrossAttention(nn.Module):
    """Multi-head attention from queries (B, S, D) to keys and values (B, S', D)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in ((self.q, query), (self.k, key), (self.v, value))
        )
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))

    def start_local(self) -> None:
        """Gives queries and keys the same weights, in place."""
        start_alike(self.q.weight.detach(), self.k.weight.detach())


def start_alike(query: Tensor, key: Tensor) -> None:
    """Fills both weights with the same scaled orthogonal matrix, in place: each token attends most to those like it.

    With equal content these are the ones whose positions are near.
    """
    nn.init.orthogonal_(query, gain=LOCAL_GAIN)
    key.copy_(query)
