"""The three kinds of transformer block, and how blocks are compiled and recomputed (Sec. 2.1, Table 9).

B clips, T frames, V patches per frame (visible or masked ones), D width, S any sequence length.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._triton import has_triton
from torch.utils.checkpoint import checkpoint as activation_checkpoint

from mam2.model.attention import AttentionKind, CrossAttention, Rotation, SelfAttention
from mam2.model.positions import FullPositions, Positions, SequencePositions, SpaceRotaryPositions

NORM_EPS = 1e-6

Start = Literal["xavier", "local"]
"""Initial weights: Xavier-uniform; or the same but for attention to tokens at near positions and no motion."""


@runtime_checkable
class StartsLocal(Protocol):
    """A part whose initial weights differ where the start is local: `start_local` fills them in place."""

    def start_local(self) -> None: ...


Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
"""GELU; its approximation by a tanh (some SigLIP); x · sigmoid(1.702 x) (OpenAI's CLIP)."""


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x), OpenAI's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def layer_norm(width: int, eps: float = NORM_EPS) -> nn.LayerNorm:
    """LayerNorm with the epsilon of this family of ViTs."""
    return nn.LayerNorm(width, eps=eps)


def mlp(width: int, *, ratio: float = 4.0, activation: Activation = "gelu") -> nn.Sequential:
    """Linear, activation, Linear; `ratio` times as wide inside (Table 9: GELU, four times)."""
    inside = round(ratio * width)
    act = {"gelu": nn.GELU(), "gelu_tanh": nn.GELU(approximate="tanh"), "quick_gelu": QuickGELU()}[activation]
    return nn.Sequential(nn.Linear(width, inside), act, nn.Linear(inside, width))


class Residual(nn.Module):
    """Layer scale and drop path of a branch before it is added to the stream; each is optional."""

    def __init__(self, width: int, *, layer_scale: float, drop_path: float) -> None:
        super().__init__()
        self.initial_scale = layer_scale
        self.scale_D = nn.Parameter(torch.empty(width)) if layer_scale else None
        self.drop_path = drop_path

    def reset(self) -> None:
        """Sets the scale to its initial value."""
        if self.scale_D is not None:
            nn.init.constant_(self.scale_D, self.initial_scale)

    def forward(self, branch: Tensor) -> Tensor:
        scaled = branch if self.scale_D is None else branch * self.scale_D
        if not self.training or self.drop_path == 0:
            return scaled
        kept = 1 - self.drop_path
        keep_B = scaled.new_empty(len(scaled), *[1] * (scaled.ndim - 1)).bernoulli_(kept)  # whole clips
        return scaled * keep_B.div_(kept)


class LearnedToken(nn.Module):
    """A learned vector (D,) in place of a token: a mask query, a [CLS] token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value_D = nn.Parameter(torch.empty(width))


class LearnedTokens(nn.Module):
    """Learned vectors (P, D) before the patches of each frame: [CLS] and registers."""

    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        self.value_PD = nn.Parameter(torch.empty(num_tokens, width))


@dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """Options of a block, for published encoders; the defaults are the paper's. `EncoderConfig` explains them."""

    layer_scale: float = 0.0
    drop_path: float = 0.0
    norm_eps: float = NORM_EPS
    mlp_ratio: float = 4.0
    activation: Activation = "gelu"
    prefix_tokens: int = 0
    prefix_per: Literal["frame", "clip"] = "frame"

    def norm(self, width: int) -> nn.LayerNorm:
        return layer_norm(width, self.norm_eps)

    def mlp(self, width: int) -> nn.Sequential:
        return mlp(width, ratio=self.mlp_ratio, activation=self.activation)

    def residual(self, width: int) -> Residual:
        return Residual(width, layer_scale=self.layer_scale, drop_path=self.drop_path)


PLAIN = BlockOptions()


class SpaceTimeBlock(nn.Module):
    """Factorised space-time block: temporal attention, spatial attention, MLP; each pre-norm with a residual.

    Prefix tokens, [CLS] and registers, stand first in each frame; they take part in all but the temporal attention.

    Paper: as TimeSformer's divided attention; here: without its `temporal_fc` and CLS token, which is Table 9 and
    gives Table 3's sizes (docs/decisions.md, 2).
    """

    def __init__(self, width: int, num_heads: int, options: BlockOptions = PLAIN) -> None:
        super().__init__()
        self.num_prefix = options.prefix_tokens
        self.shares_prefix = options.prefix_tokens > 0 and options.prefix_per == "clip"
        self.norm_time = options.norm(width)
        self.time = SelfAttention(width, num_heads)
        self.norm_space = options.norm(width)
        self.space = SelfAttention(width, num_heads)
        self.norm_mlp = options.norm(width)
        self.mlp = options.mlp(width)
        self.add_time, self.add_space, self.add_mlp = (options.residual(width) for _ in range(3))

    def forward(self, x_BTVD: Tensor, rotation: Rotation | None = None) -> Tensor:
        x_BTVD = self.through_time(x_BTVD)
        added_BTVD = self.add_space(self.space(self.norm_space(x_BTVD), rotation))
        if self.shares_prefix:
            added_BTVD = self.averaged(added_BTVD)
        x_BTVD = x_BTVD + added_BTVD
        return x_BTVD + self.add_mlp(self.mlp(self.norm_mlp(x_BTVD)))

    def through_time(self, x_BTVD: Tensor) -> Tensor:
        patches_BTVD = x_BTVD[:, :, self.num_prefix :]
        x_BVTD = self.norm_time(patches_BTVD).transpose(1, 2)
        patches_BTVD = patches_BTVD + self.add_time(self.time(x_BVTD).transpose(1, 2))
        if not self.num_prefix:
            return patches_BTVD
        return torch.cat([x_BTVD[:, :, : self.num_prefix], patches_BTVD], dim=2)

    def averaged(self, x_BTVD: Tensor) -> Tensor:
        """Tokens whose prefix tokens are averaged over the frames: they stay one per clip (TimeSformer)."""
        prefix_BTPD = x_BTVD[:, :, : self.num_prefix]
        patches_BTVD = x_BTVD[:, :, self.num_prefix :]
        return torch.cat([prefix_BTPD.mean(dim=1, keepdim=True).expand_as(prefix_BTPD), patches_BTVD], dim=2)

    def received(self, x_BTVD: Tensor, rotation: Rotation | None = None) -> Tensor:
        """Spatial attention that each token gets in its frame, (B, T, V)."""
        return self.space.received(self.norm_space(self.through_time(x_BTVD)), rotation)


class JointBlock(nn.Module):
    """Joint space-time block: attention among all tokens of a clip, MLP; as in ViT, VideoMAE and ST-MAE."""

    def __init__(self, width: int, num_heads: int, options: BlockOptions = PLAIN) -> None:
        super().__init__()
        self.norm_joint = options.norm(width)
        self.joint = SelfAttention(width, num_heads)
        self.norm_mlp = options.norm(width)
        self.mlp = options.mlp(width)
        self.add_joint, self.add_mlp = (options.residual(width) for _ in range(2))

    def forward(self, x_BTVD: Tensor, rotation: Rotation | None = None) -> Tensor:
        x_BSD = self.norm_joint(x_BTVD).flatten(1, 2)
        x_BTVD = x_BTVD + self.add_joint(self.joint(x_BSD, rotation).view(x_BTVD.shape))
        return x_BTVD + self.add_mlp(self.mlp(self.norm_mlp(x_BTVD)))

    def received(self, x_BTVD: Tensor, rotation: Rotation | None = None) -> Tensor:
        """Share that each token gets of the attention to its frame, (B, T, V)."""
        received_BS = self.joint.received(self.norm_joint(x_BTVD).flatten(1, 2), rotation)
        received_BTV = received_BS.view(x_BTVD.shape[:3])
        return received_BTV / received_BTV.sum(dim=2, keepdim=True)


BLOCKS: dict[AttentionKind, type[SpaceTimeBlock | JointBlock]] = {"factorised": SpaceTimeBlock, "joint": JointBlock}


class CrossBlock(nn.Module):
    """Regressor block: queries gather from visible tokens, then an MLP (as CAE's, with plain pre-norm residuals).

    Positions are added to queries and keys, not to values, again in every block.
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


def init_weights(module: nn.Module, start: Start = "xavier") -> None:
    """Initialises every parameter of `module`: Xavier-uniform Linear and convolution weights, zero biases, unit norms,
    then learned tokens from a normal distribution of standard deviation 0.02.

    With a "local" start, queries and keys have the same weights, separable positions short wavelengths, and motion
    heads zeros. Tensors without storage are left alone: computing theirs imports torch._dynamo, which takes seconds.
    """
    if any(parameter.is_meta for parameter in module.parameters()):
        return
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(part.weight.flatten(1))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
        elif isinstance(part, Positions | FullPositions | SpaceRotaryPositions):
            part.reset(local=start == "local")
        elif isinstance(part, SequencePositions | Residual):
            part.reset()
    for part in module.modules():
        if isinstance(part, LearnedToken | LearnedTokens):
            for tokens in part.parameters():
                nn.init.trunc_normal_(tokens, std=0.02)
        elif isinstance(part, StartsLocal) and start == "local":
            part.start_local()


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """All transformer blocks of a model."""
    return [part for part in model.modules() if isinstance(part, SpaceTimeBlock | JointBlock | CrossBlock)]


def can_compile(device: torch.device) -> bool:
    """True on a GPU with all that torch.compile needs. On CPUs it works but is not faster (docs/log/speed.md)."""
    return device.type == "cuda" and has_triton() and any(map(shutil.which, ("cc", "gcc", "clang")))


def compile_blocks(model: nn.Module) -> None:
    """Compiles the forward pass of each block when it is first called; the weights keep their names.

    Call it after `recompute_blocks`, so that the recomputation is compiled too: a backward pass runs in a thread of its
    own, which would compile again under limits of its own.
    """
    blocks = blocks_of(model)
    # Blocks share their code, but drop path and gradient flow make some differ: never fall back for these.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(blocks))
    torch._dynamo.config.optimize_ddp = False  # it would cut blocks into pieces to send gradients earlier
    for block in blocks:
        block.forward = torch.compile(block.forward, dynamic=False)


def recompute_blocks(model: nn.Module) -> None:
    """Recomputes the inner values of each block in the backward pass; the weights keep their names."""
    for block in blocks_of(model):
        block.forward = partial(activation_checkpoint, block.forward, use_reentrant=False)
