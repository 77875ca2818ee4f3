"""Attention, MLP, positions, and the three kinds of block (Sec. 2.1, Table 9).

B clips, T frames, V patches a frame (visible or masked ones), D width, S any sequence length.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

NORM_EPS = 1e-6
SHORT = 256
"""Keys up to which a CPU is two to five times faster in bf16 with attention written out (docs/log.md)."""
AttentionKind = Literal["factorised", "joint"]
"""Self-attention over time and then over space, or over all tokens of a clip at once."""


def layer_norm(width: int) -> nn.LayerNorm:
    """LayerNorm as every ViT of this family has it."""
    return nn.LayerNorm(width, eps=NORM_EPS)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax(q kᵀ / √d) v, for (batch, heads, S, d) each."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[-2] <= SHORT:
        return (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class SelfAttention(nn.Module):
    """Multi-head self-attention over the second to last axis of (..., S, D)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        return self.out(attend(q, k, v).transpose(1, 2).reshape(x.shape))

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (batch, heads, S, D/heads)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # ..., S, 3, heads, D/heads
        q, k, v = (part.transpose(-3, -2).flatten(0, -4) for part in qkv.unbind(-3))
        return q, k, v

    def received(self, x: Tensor) -> Tensor:
        """How much attention each token gets, (..., S): the mean over heads and queries; 1 in sum over S."""
        q, k, _ = self.heads(x)
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


def mlp(width: int) -> nn.Sequential:
    """Linear, GELU, Linear, four times as wide inside (Table 9)."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class Residual(nn.Module):
    """What becomes of a branch before it is added to the stream: layer scale, then drop path, where asked for."""

    def __init__(self, width: int, *, layer_scale: float, drop_path: float) -> None:
        super().__init__()
        self.start = layer_scale
        self.scale_D = nn.Parameter(torch.empty(width)) if layer_scale else None
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def reset(self) -> None:
        """Sets the scale to where it starts."""
        if self.scale_D is not None:
            nn.init.constant_(self.scale_D, self.start)

    def forward(self, branch: Tensor) -> Tensor:
        return self.drop_path(branch if self.scale_D is None else branch * self.scale_D)


class SpaceTimeBlock(nn.Module):
    """Factorised space-time block: temporal attention, spatial attention, MLP; each pre-norm with a residual.

    Paper: as TimeSformer's divided attention; here: without its `temporal_fc` and CLS token, which is Table 9 and
    gives Table 3's sizes (docs/decisions.md, 2).
    """

    def __init__(self, width: int, num_heads: int, *, layer_scale: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm_time = layer_norm(width)
        self.time = SelfAttention(width, num_heads)
        self.norm_space = layer_norm(width)
        self.space = SelfAttention(width, num_heads)
        self.norm_mlp = layer_norm(width)
        self.mlp = mlp(width)
        self.add_time, self.add_space, self.add_mlp = (
            Residual(width, layer_scale=layer_scale, drop_path=drop_path) for _ in range(3)
        )

    def forward(self, x_BTVD: Tensor) -> Tensor:
        x_BTVD = self.through_time(x_BTVD)
        x_BTVD = x_BTVD + self.add_space(self.space(self.norm_space(x_BTVD)))
        return x_BTVD + self.add_mlp(self.mlp(self.norm_mlp(x_BTVD)))

    def through_time(self, x_BTVD: Tensor) -> Tensor:
        x_BVTD = self.norm_time(x_BTVD).transpose(1, 2)
        return x_BTVD + self.add_time(self.time(x_BVTD).transpose(1, 2))

    def received(self, x_BTVD: Tensor) -> Tensor:
        """How much spatial attention each patch gets in its frame, (B, T, V)."""
        return self.space.received(self.norm_space(self.through_time(x_BTVD)))


class JointBlock(nn.Module):
    """Joint space-time block: attention among all tokens of a clip, MLP; as in ViT, VideoMAE and ST-MAE."""

    def __init__(self, width: int, num_heads: int, *, layer_scale: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm_joint = layer_norm(width)
        self.joint = SelfAttention(width, num_heads)
        self.norm_mlp = layer_norm(width)
        self.mlp = mlp(width)
        self.add_joint, self.add_mlp = (Residual(width, layer_scale=layer_scale, drop_path=drop_path) for _ in range(2))

    def forward(self, x_BTVD: Tensor) -> Tensor:
        x_BSD = self.norm_joint(x_BTVD).flatten(1, 2)
        x_BTVD = x_BTVD + self.add_joint(self.joint(x_BSD).view(x_BTVD.shape))
        return x_BTVD + self.add_mlp(self.mlp(self.norm_mlp(x_BTVD)))

    def received(self, x_BTVD: Tensor) -> Tensor:
        """How much attention each patch gets within what its frame gets, (B, T, V)."""
        received_BTV = self.joint.received(self.norm_joint(x_BTVD).flatten(1, 2)).view(x_BTVD.shape[:3])
        return received_BTV / received_BTV.sum(dim=2, keepdim=True)


BLOCKS: dict[AttentionKind, type[SpaceTimeBlock] | type[JointBlock]] = {
    "factorised": SpaceTimeBlock,
    "joint": JointBlock,
}


class CrossBlock(nn.Module):
    """Regressor block: queries gather from visible tokens, then an MLP (as CAE's, with plain pre-norm residuals).

    Positions are added to queries and keys, not to values, and anew in every block.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm_query = layer_norm(width)
        self.norm_key = layer_norm(width)
        self.norm_value = layer_norm(width)
        self.cross = CrossAttention(width, num_heads)
        self.norm_mlp = layer_norm(width)
        self.mlp = mlp(width)

    def forward(self, query: Tensor, context: Tensor, *, query_position: Tensor, context_position: Tensor) -> Tensor:
        gathered = self.cross(
            self.norm_query(query + query_position),
            self.norm_key(context + context_position),
            self.norm_value(context),
        )
        x = query + gathered
        return x + self.mlp(self.norm_mlp(x))


class Positions(nn.Module):
    """Separable learnable positions: one embedding a frame plus one a patch (Sec. 2.1), shared by every part.

    Initialised with sines and cosines and learned from there: with small random values training sat on a plateau
    for hundreds of steps (docs/log.md).
    """

    def __init__(self, num_frames: int, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.grid = grid
        self.time_TD = nn.Parameter(torch.empty(num_frames, width))
        self.space_ND = nn.Parameter(torch.empty(grid[0] * grid[1], width))

    def reset(self) -> None:
        """Fills both tables with sines and cosines."""
        width = self.time_TD.shape[1]
        rows, columns = torch.meshgrid(torch.arange(self.grid[0]), torch.arange(self.grid[1]), indexing="ij")
        with torch.no_grad():
            self.time_TD.copy_(sine_cosine(torch.arange(len(self.time_TD)), width))
            halves = [sine_cosine(axis.flatten(), width // 2) for axis in (rows, columns)]
            self.space_ND.copy_(torch.cat(halves, dim=1))

    def forward(self, num_frames: int, grid: tuple[int, int]) -> Tensor:
        """Positions (T, N, D) for any number of frames and any grid (patches high, wide)."""
        return self.time(num_frames)[:, None] + self.space(grid)[None]

    def time(self, num_frames: int) -> Tensor:
        """One embedding a frame (T, D); interpolated where the number is not the trained one."""
        if num_frames == len(self.time_TD):
            return self.time_TD
        return F.interpolate(self.time_TD.T[None], size=num_frames, mode="linear")[0].T

    def space(self, grid: tuple[int, int]) -> Tensor:
        """One embedding a patch (N, D); interpolated where the grid is not the trained one."""
        if grid == self.grid:
            return self.space_ND
        image = self.space_ND.T.unflatten(1, self.grid)[None]
        return F.interpolate(image, size=grid, mode="bicubic").flatten(2)[0].T


def sine_cosine(places: Tensor, width: int) -> Tensor:
    """Sine-cosine embedding (len(places), width) with wavelengths from 2π to 20,000π; `width` must be even."""
    half = width // 2
    angles = places[:, None].float() * torch.exp(-math.log(10_000) * torch.arange(half) / half)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def init_weights(module: nn.Module) -> None:
    """Xavier-uniform Linear and convolution weights, zero biases, unit norms: every parameter of `module` is set."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Conv2d):
            nn.init.xavier_uniform_(part.weight.view(part.weight.shape[0], -1))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
        elif isinstance(part, Positions | Residual):
            part.reset()
