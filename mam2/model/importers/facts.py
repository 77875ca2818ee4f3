"""Facts of a published encoder, the clips that it is to see, and the EncoderConfig that its tensors tell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge
from torch import Tensor

from mam2.config import UserError, check
from mam2.model.attention import AttentionKind
from mam2.model.blocks import Activation
from mam2.model.encoder import EncoderConfig, Origin
from mam2.model.positions import PositionKind
from mam2.patches import IMAGENET_MEAN, IMAGENET_STD

Triple = tuple[float, float, float]
HEADS = {192: 3, 384: 6, 512: 8, 768: 12, 1024: 16, 1280: 16}
"""Attention heads of the published ViTs by their width; a state dict does not tell."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts that tensors do not show of their encoder.

    Attributes:
        width: numbers per token; 0 where the source does not state them.
        num_heads: attention heads; 0 is the usual number for its width.
        norm_eps: epsilon of every LayerNorm.
        activation: activation of the MLPs.
        mean, std: statistics of its training pixels in [0, 1]: red, green, blue.
        frames: frames per clip of a video encoder.
        size: side of its pictures, pixels, where no table of positions tells.
        positions: positions of a video encoder without a table; for an image encoder only "rotary_space" counts.
        origin: its source and licence.
        assumed: assumptions, in words.
    """

    width: int = 0
    num_heads: int = 0
    norm_eps: float = 1e-6
    activation: Activation = "gelu"
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    frames: int = 16
    size: int = 224
    positions: PositionKind = "sequence"
    origin: Origin
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Inflation:
    """Inflation of an encoder of images to one of video; for one of video, the new sizes of its clips.

    Attributes:
        frames: frames per clip; 0 is 16 for an encoder of images, its own for one of video. Positions are interpolated.
        size: height and width of a clip, pixels; 0 is the encoder's own.
        tubelet: frames that a patch spans, for an encoder of images.
        kernel: patch kernel of a tubelet: the "mean" over its frames, or its "center" frame alone.
        attention: "factorised", which begins as the image encoder frame by frame; or "joint".
    """

    frames: Annotated[int, Ge(0)] = 0
    size: Annotated[int, Ge(0)] = 0
    tubelet: Annotated[int, Ge(1)] = 1
    kernel: Literal["mean", "center"] = "mean"
    attention: AttentionKind = "factorised"

    def __post_init__(self) -> None:
        check(self, "")


@dataclass(frozen=True, kw_only=True)
class Stated:
    """Facts that a user states where a published encoder's source does not.

    Attributes:
        file: file of the weights of timm:NAME; empty downloads them.
        num_heads: number of attention heads; 0 takes the source's own, or the usual one for its width.
        pixel_mean: mean of the pixels in [0, 1] that it was trained on, R G B; by default the source's.
        pixel_std: standard deviation of those pixels, R G B; by default the source's.
        licence: licence of the weights; empty takes the source's.
    """

    file: str = ""
    num_heads: Annotated[int, Ge(0)] = 0
    pixel_mean: Triple | None = None
    pixel_std: Triple | None = None
    licence: str = ""


def config_of_tensors(
    found: dict[str, Tensor], kernel: Tensor, facts: Facts, inflation: Inflation, *, divided: bool
) -> EncoderConfig:
    """The sizes that the tensors tell."""
    source = facts.origin.source
    width = kernel.shape[0]
    patch_size = kernel.shape[-1]
    if kernel.ndim not in (4, 5) or kernel.shape[1] != 3 or kernel.shape[-2] != patch_size:
        raise UserError(f"{source} has a patch kernel of {tuple(kernel.shape)}; accepted: (D, 3, [T,] P, P).")
    if facts.width not in (0, width):
        raise UserError(
            f"{source} has {facts.width} numbers per token, the weights have {width}. Give the weights of that model."
        )
    num_heads = facts.num_heads or HEADS.get(width, 0)
    if not num_heads:
        raise UserError(f"{source} does not state its number of attention heads. Give --num-heads.")
    depth = 1 + max((int(name.split(".")[1]) for name in found if name.startswith("blocks.")), default=-1)
    size = facts.size
    num_prefix = sum(found[name].numel() // width for name in ("cls_token", "reg_token") if name in found)
    positions: PositionKind = "separable"
    frames = max(inflation.frames or 16, inflation.tubelet)
    if kernel.ndim == 5:
        positions = "full" if "pos_embed" in found else facts.positions
        frames = facts.frames
    elif "time_embed" in found:
        frames = found["time_embed"].shape[-2]
    if "pos_embed" in found and kernel.ndim == 4:
        size = side_of(found["pos_embed"], num_prefix, source=source) * patch_size
    elif kernel.ndim == 4 and facts.positions == "rotary_space":
        positions = "rotary_space"
    elif kernel.ndim == 4:
        raise UserError(
            f"{source} has no table of positions, and is no DINOv3: other rotary and relative ones of images are not "
            "known."
        )
    return EncoderConfig(
        width=width,
        depth=depth,
        num_heads=num_heads,
        frames=frames,
        size=size,
        patch_size=patch_size,
        tubelet=kernel.shape[2] if kernel.ndim == 5 else inflation.tubelet,
        attention="joint" if kernel.ndim == 5 else inflation.attention,
        positions=positions,
        layer_scale=1.0 if "blocks.0.ls1.gamma" in found else 0.0,
        prefix_tokens=num_prefix,
        prefix_per="clip" if divided and num_prefix else "frame",
        pre_norm="norm_pre.weight" in found,
        norm_eps=facts.norm_eps,
        mlp_ratio=len(found["blocks.0.mlp.fc1.weight"]) / width if "blocks.0.mlp.fc1.weight" in found else 4.0,
        activation=facts.activation,
    )


def side_of(table: Tensor, num_prefix: int, *, source: str) -> int:
    """Patches along a side of a square table of positions, which may hold those of prefix tokens too."""
    places = table.shape[-2]
    sides = {n: math.isqrt(places - n) for n in (0, 1, num_prefix) if n <= num_prefix and n < places}
    side = next((side for n, side in sides.items() if side * side == places - n), 0)
    if not side:
        raise UserError(f"{source} has {places} positions, which are no square of patches. Accepted: square pictures.")
    return side
