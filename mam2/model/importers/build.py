"""A published ViT as our encoder: copied, inflated to video where it is of images, and nothing passed over in silence.

T frames or tubelets, N patches per frame, P prefix tokens, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from mam2.config import UserError, check
from mam2.files import check_finite, check_tensors, shapes_of
from mam2.model.attention import AttentionKind
from mam2.model.blocks import Activation
from mam2.model.encoder import EncoderConfig, Origin, VideoEncoder
from mam2.model.importers.names import KNOWN, listed, named, refuse_gated
from mam2.model.positions import SPACE_BASE, PositionKind
from mam2.model.weights import copy_encoder, is_resampled
from mam2.patches import IMAGENET_MEAN, IMAGENET_STD

Triple = tuple[float, float, float]
HEADS = {192: 3, 384: 6, 512: 8, 768: 12, 1024: 16, 1280: 16}
"""Attention heads of the published ViTs by their width; a state dict does not tell."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What tensors do not tell of their encoder.

    Attributes:
        width: numbers per token, where the source tells them too; 0 where it does not.
        num_heads: attention heads; 0 is what ViTs of its width have.
        norm_eps: of every LayerNorm.
        activation: of the MLPs.
        mean, std: of the pixels in [0, 1] that it was trained on, red, green, blue.
        frames: of a video encoder's clips.
        size: side of its pictures, pixels, where no table of positions tells.
        positions: of a video encoder without a table in its file; of an image encoder "rotary_space" or none.
        origin: where it comes from.
        assumed: what had to be assumed, in words.
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
    """How an encoder of images becomes one of video; for one of video, its clips' new sizes.

    Attributes:
        frames: frames per clip; 0 is 16 for an encoder of images, its own for one of video. Positions are interpolated.
        size: height and width of a clip, pixels; 0 is its own.
        tubelet: frames that a patch spans, for an encoder of images.
        kernel: what a tubelet's patch kernel is: "mean" of the frames' patches, or that of its "center" frame.
        attention: "factorised", which begins as the image encoder frame by frame; or "joint".
    """

    frames: Annotated[int, Ge(0)] = 0
    size: Annotated[int, Ge(0)] = 0
    tubelet: Annotated[int, Ge(1)] = 1
    kernel: Literal["mean", "center"] = "mean"
    attention: AttentionKind = "factorised"

    def __post_init__(self) -> None:
        check(self, "")


@dataclass(frozen=True)
class Imported:
    """An encoder made of a published one, in eval mode, and what became of each tensor, in lines."""

    encoder: VideoEncoder
    notes: list[str]


class Tensors:
    """The tensors of an encoder under timm's names; each is taken once, and what is left over is an error."""

    def __init__(self, tensors: dict[str, Tensor], source: str) -> None:
        self.left = dict(tensors)
        self.source = source
        self.zero: list[str] = []  # names of biases that are not there, and are zero

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def take(self, name: str) -> Tensor:
        """A tensor, in float32; UserError if it is not there."""
        if name not in self.left:
            raise UserError(f"{self.source} has no {name}, which a plain ViT has. Known are {KNOWN}.")
        return self.left.pop(name).float()

    def take_bias(self, name: str, width: int) -> Tensor:
        """A bias that some encoders do without: zeros, noted, where it is not there."""
        if name in self:
            return self.take(name)
        self.zero.append(name)
        return torch.zeros(width)

    def take_both(self, name: str) -> tuple[Tensor, Tensor]:
        """Weight and bias of a layer."""
        return self.take(f"{name}.weight"), self.take(f"{name}.bias")

    def take_qkv(self, name: str) -> tuple[Tensor, Tensor]:
        """Weight and bias of queries, keys and values, stored together or apart."""
        parts = [f"{name}.{part}" for part in ("q", "k", "v")]
        together = f"{name}.qkv.weight" in self
        weight = self.take(f"{name}.qkv.weight") if together else torch.cat([self.take(f"{x}.weight") for x in parts])
        if f"{name}.qkv.bias" in self:
            bias = self.take(f"{name}.qkv.bias")
            # DINOv3's original: zeros where a bias of keys would be.
            return weight, bias * self.take(f"{name}.qkv.bias_mask") if f"{name}.qkv.bias_mask" in self else bias
        return weight, torch.cat([self.take_bias(f"{x}.bias", len(weight) // 3) for x in parts])

    def finish(self) -> None:
        """UserError if a tensor is left over."""
        if self.left:
            raise UserError(
                f"{self.source} holds {listed(self.left)}, which no known encoder has: without them it would be "
                f"another. Known are {KNOWN}."
            )


def build(found: dict[str, Tensor], facts: Facts, inflation: Inflation) -> Imported:
    """The encoder of a published checkpoint.

    Args:
        found: its tensors under their own names.
        facts: what they do not tell.
        inflation: the clips that it is to see.

    Raises:
        UserError: no known encoder, tensors that are missing, left over or not finite, sizes that do not fit.
    """
    source = facts.origin.source
    names = named(found, source=source)
    refuse_gated(names.tensors, source=source)
    check_finite(names.tensors, file=source)
    notes = [f"assumed: {words}" for words in facts.assumed]
    for reason, left_out in names.left_out.items():
        notes.append(f"left out, {reason}: {listed(left_out)} ({len(left_out)} tensors)")
    tensors = Tensors(names.tensors, source)
    made: dict[str, Tensor] = {}
    kernel = tensors.take("patch_embed.proj.weight")
    divided = any(".temporal_attn." in name for name in names.tensors)
    of_video = kernel.ndim == 5 or divided
    config = config_of_tensors(names.tensors, kernel, facts, inflation, divided=divided)
    # Patches: the kernel over one frame or a tubelet's, and the source's pixel statistics folded into it.
    bias = tensors.take_bias("patch_embed.proj.bias", len(kernel))
    made["patch_embed.weight"], made["patch_embed.bias"] = folded(
        inflated(kernel, inflation), bias, facts, tubelet=config.tubelet
    )
    # Positions and prefix tokens.
    place_positions(made, tensors, config)
    # Blocks.
    if config.pre_norm:
        made["pre_norm.weight"], made["pre_norm.bias"] = tensors.take_both("norm_pre")
    for i in range(config.depth):
        place_block(made, tensors, i, config, divided=divided)
    if "norm.weight" in tensors:
        made["norm.weight"], made["norm.bias"] = tensors.take_both("norm")
    else:
        made |= {"norm.weight": torch.ones(config.width), "norm.bias": torch.zeros(config.width)}
        notes.append("new, as the file has none: the final norm")
    tensors.finish()
    encoder = VideoEncoder(config, origin=facts.origin)
    check_tensors(made, shapes_of(encoder), where=f"{source} does not fit together")
    encoder.load_state_dict(made)
    notes += describe(config, facts, inflation, of_video=of_video)
    if tensors.zero:
        notes.append(f"zero, as the file has none: {listed(tensors.zero)} ({len(tensors.zero)} tensors)")
    made_for = inflation if of_video else Inflation(size=inflation.size)
    ready = resized(encoder, made_for, source=source)
    return Imported(ready.encoder, notes + ready.notes)


def config_of_tensors(
    found: dict[str, Tensor], kernel: Tensor, facts: Facts, inflation: Inflation, *, divided: bool
) -> EncoderConfig:
    """The sizes that the tensors tell."""
    source = facts.origin.source
    width, patch_size = kernel.shape[0], kernel.shape[-1]
    if kernel.ndim not in (4, 5) or kernel.shape[1] != 3 or kernel.shape[-2] != patch_size:
        raise UserError(f"{source} has a patch kernel of {tuple(kernel.shape)}; accepted: (D, 3, [T,] P, P).")
    if facts.width not in (0, width):
        raise UserError(
            f"{source} has {facts.width} numbers per token, the weights have {width}. Give the weights of that model."
        )
    num_heads = facts.num_heads or HEADS.get(width, 0)
    if not num_heads:
        raise UserError(f"{source} does not tell its number of attention heads. Give --num-heads.")
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
    """Patches along a side of the square that a table of positions is for; it may hold those of prefix tokens too."""
    places = table.shape[-2]
    sides = {n: math.isqrt(places - n) for n in (0, 1, num_prefix) if n <= num_prefix and n < places}
    side = next((side for n, side in sides.items() if side * side == places - n), 0)
    if not side:
        raise UserError(f"{source} has {places} positions, which are no square of patches. Accepted: square pictures.")
    return side


def inflated(kernel: Tensor, inflation: Inflation) -> Tensor:
    """The patch kernel over the frames of a tubelet, as channels of a picture: (D, T·3, P, P)."""
    if kernel.ndim == 5:
        return kernel.transpose(1, 2).flatten(1, 2)
    tubelet = inflation.tubelet
    shares = torch.full((tubelet,), 1 / tubelet)
    if inflation.kernel == "center":
        shares = torch.zeros(tubelet)
        shares[tubelet // 2] = 1.0
    return torch.cat([share * kernel for share in shares], dim=1)


def folded(kernel: Tensor, bias: Tensor, facts: Facts, *, tubelet: int) -> tuple[Tensor, Tensor]:
    """Kernel and bias for pixels of our statistics, which do what the source's do for pixels of its own.

    With x = (p - m) / s for a pixel p: x_source = x_ours · s_ours / s_source + (m_ours - m_source) / s_source.
    """
    ours_mean, ours_std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    mean, std = torch.tensor(facts.mean), torch.tensor(facts.std)
    if torch.equal(mean, ours_mean) and torch.equal(std, ours_std):
        return kernel, bias
    shift_C = ((ours_mean - mean) / std).repeat(tubelet)
    scale_C = (ours_std / std).repeat(tubelet)
    return kernel * scale_C[:, None, None], bias + torch.einsum("dcij,c->d", kernel, shift_C)


def place_positions(made: dict[str, Tensor], tensors: Tensors, config: EncoderConfig) -> None:
    """Positions, and prefix tokens with theirs added."""
    prefix = [tensors.take(name).reshape(-1, config.width) for name in ("cls_token", "reg_token") if name in tensors]
    prefix_PD = torch.cat(prefix) if prefix else None
    if "pos_embed" in tensors:
        table = tensors.take("pos_embed").reshape(-1, config.width)
        if config.positions == "full":
            made["positions.table_TND"] = table.unflatten(0, (config.tubelets, -1))
        else:
            num_patches = config.grid[0] * config.grid[1]
            extra = len(table) - num_patches
            if extra:
                assert prefix_PD is not None, "their number is that of the prefix tokens"
                prefix_PD = torch.cat([prefix_PD[:extra] + table[:extra], prefix_PD[extra:]])
            made["positions.space_ND"] = table[extra:]
            made["positions.time_TD"] = (
                tensors.take("time_embed").reshape(-1, config.width)
                if "time_embed" in tensors
                else torch.zeros(config.tubelets, config.width)
            )
    if config.positions == "rotary_space":
        made["positions.time_TD"] = torch.zeros(config.tubelets, config.width)
        if "rope_embed.periods" in tensors:
            check_periods(tensors.take("rope_embed.periods"), config, source=tensors.source)
    if prefix_PD is not None:
        made["prefix.value_PD"] = prefix_PD


def check_periods(periods: Tensor, config: EncoderConfig, *, source: str) -> None:
    """UserError unless the periods of rotary positions in DINOv3's original, which are rounded, are those we make."""
    part = config.width // config.num_heads // 4
    expected = SPACE_BASE ** (torch.arange(part) / part)
    if periods.shape != expected.shape or not torch.allclose(periods, expected, rtol=0.01):
        raise UserError(
            f"{source} has rotary positions of other periods than DINOv3's for {config.num_heads} heads. Accepted: "
            f"{part} of them, from 1 on towards {SPACE_BASE:g}. Give --num-heads if there are more or fewer heads."
        )


def paired(layer: tuple[Tensor, Tensor], num_heads: int, *, back: bool = False) -> tuple[Tensor, Tensor]:
    """Weight and bias of queries, keys and values, whose queries and keys have pairs of channels side by side.

    DINOv3 turns channel i of a head with channel i + d/2, we with its neighbour. Attention is the same.

    Args:
        layer: weight and bias, with queries, keys and values one after the other.
        num_heads: attention heads.
        back: from our order to DINOv3's.
    """
    queries, keys, values = torch.arange(len(layer[0])).chunk(3)
    halves = (-1, 2) if back else (2, -1)
    order = [part.unflatten(0, (num_heads, *halves)).transpose(1, 2).flatten() for part in (queries, keys)]
    order_O = torch.cat([*order, values])
    return layer[0][order_O], layer[1][order_O]


def place_block(made: dict[str, Tensor], tensors: Tensors, i: int, config: EncoderConfig, *, divided: bool) -> None:
    """One block. An image encoder's temporal attention is a copy of the spatial one, whose output is zero."""
    theirs, ours = f"blocks.{i}", f"blocks.{i}"
    attention = "joint" if config.attention == "joint" else "space"

    def put(name: str, layer: tuple[Tensor, Tensor]) -> None:
        made[f"{ours}.{name}.weight"], made[f"{ours}.{name}.bias"] = layer

    norm, qkv, out = (
        tensors.take_both(f"{theirs}.norm1"),
        tensors.take_qkv(f"{theirs}.attn"),
        tensors.take_both(f"{theirs}.attn.proj"),
    )
    if config.positions == "rotary_space":
        qkv = paired(qkv, config.num_heads)
    put(f"norm_{attention}", norm)
    put(f"{attention}.qkv", qkv)
    put(f"{attention}.out", out)
    put("norm_mlp", tensors.take_both(f"{theirs}.norm2"))
    put("mlp.0", tensors.take_both(f"{theirs}.mlp.fc1"))
    put("mlp.2", tensors.take_both(f"{theirs}.mlp.fc2"))
    if divided:
        put("norm_time", tensors.take_both(f"{theirs}.temporal_norm1"))
        put("time.qkv", tensors.take_qkv(f"{theirs}.temporal_attn"))
        weight, bias = tensors.take_both(f"{theirs}.temporal_attn.proj")
        fc_weight, fc_bias = tensors.take_both(f"{theirs}.temporal_fc")
        put("time.out", (fc_weight @ weight, fc_weight @ bias + fc_bias))
    elif attention == "space":
        put("norm_time", norm)
        put("time.qkv", qkv)
        put("time.out", (torch.zeros_like(out[0]), torch.zeros_like(out[1])))
    if config.layer_scale:
        made[f"{ours}.add_{attention}.scale_D"] = tensors.take(f"{theirs}.ls1.gamma")
        made[f"{ours}.add_mlp.scale_D"] = tensors.take(f"{theirs}.ls2.gamma")
        if attention == "space":
            made[f"{ours}.add_time.scale_D"] = torch.ones(config.width)


def resized(encoder: VideoEncoder, inflation: Inflation, *, source: str) -> Imported:
    """An encoder of video for clips of the wanted frames and size.

    Raises:
        UserError: tubelets or attention are asked for, which it has.
    """
    if inflation.tubelet > 1 or inflation.attention != "factorised":
        raise UserError(
            f"{source} is an encoder of video, whose tubelets and attention are its own. Leave --tubelet and "
            "--attention out."
        )
    config = encoder.config
    wanted = replace(config, frames=inflation.frames or config.frames, size=inflation.size or config.size)
    if wanted == config:
        return Imported(encoder.eval(), [])
    target = VideoEncoder(wanted, origin=encoder.origin)
    copy_encoder(encoder, target, source)
    how = "interpolated" if is_resampled(config, wanted) else "made for other clips"
    return Imported(target.eval(), [f"{how}: positions, now {wanted.frames} frames of {wanted.size}²"])


def describe(config: EncoderConfig, facts: Facts, inflation: Inflation, *, of_video: bool) -> list[str]:
    """What was copied and what is new, in lines."""
    notes = [
        f"copied: {config.depth} blocks of width {config.width} with {config.num_heads} heads, patches of "
        f"{config.patch_size}², {config.prefix_tokens} prefix tokens"
    ]
    if not of_video and config.attention == "factorised":
        notes.append(
            "new: temporal attention, a copy of the spatial one with an output of zero; time positions, zero. The "
            "encoder begins as the image model, frame by frame"
        )
    elif not of_video:
        notes.append("new: attention among all frames, with the weights for one; time positions, zero")
    if not of_video and config.tubelet > 1:
        notes.append(f"inflated: the patch kernel over {config.tubelet} frames ({inflation.kernel})")
    if of_video and config.positions in ("sequence", "rotary"):
        notes.append(f"made anew, as they are fixed: positions ({config.positions})")
    if (facts.mean, facts.std) != (IMAGENET_MEAN, IMAGENET_STD):
        notes.append(f"folded into the patch kernel: pixels of mean {facts.mean} and deviation {facts.std}")
    return notes
