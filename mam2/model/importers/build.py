"""A published ViT as our encoder: copied, inflated to video where it is of images, and no tensor passed over."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mam2.config import UserError
from mam2.files import check_finite, check_tensors, shapes_of
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.importers.facts import Facts, Inflation, config_of_tensors
from mam2.model.importers.inflate import inflated, place_block, place_positions
from mam2.model.importers.names import listed, named, refuse_gated
from mam2.model.importers.tensors import Tensors, folded
from mam2.model.weights import copy_encoder, is_resampled
from mam2.patches import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class Imported:
    """An encoder made of a published one, in eval mode, and notes on the fate of each tensor."""

    encoder: VideoEncoder
    notes: list[str]


def build_encoder(found: dict[str, Tensor], facts: Facts, inflation: Inflation) -> Imported:
    """The encoder of a published checkpoint, from its tensors under their own names.

    UserError for tensors that are unknown, missing, left over or not finite, and for sizes that do not fit.
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
    ready = with_clip_shape(encoder, made_for, source=source)
    return Imported(ready.encoder, notes + ready.notes)


def with_clip_shape(encoder: VideoEncoder, inflation: Inflation, *, source: str) -> Imported:
    """An encoder of video for clips of the wanted frames and size; UserError for other tubelets or attention."""
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
    """Notes on copied and on new weights, one per line."""
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
        notes.append(f"computed, as they are fixed: positions ({config.positions})")
    if (facts.mean, facts.std) != (IMAGENET_MEAN, IMAGENET_STD):
        notes.append(f"folded into the patch kernel: pixels of mean {facts.mean} and deviation {facts.std}")
    return notes
