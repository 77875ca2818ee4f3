"""Crops and flips of whole clips: one draw for all frames, uint8 in and out.

T frames, C = 3 channels, H W pixels, S pixels on each side of the crop.
"""

from __future__ import annotations

import math
import random

import torch
from torchvision.transforms.v2 import functional as F

_SCALES = (1.0, 0.875, 0.75, 0.66)
# (down, right) in quarters of the room beside the crop: corners and centre, then the places half-way between.
_OFFSETS = (
    *((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)),
    *((0, 2), (2, 0), (2, 4), (4, 2), (1, 1), (1, 3), (3, 1), (3, 3)),
)


def multi_scale_crop(clip_TCHW: torch.Tensor, *, size: int, rng: random.Random) -> torch.Tensor:
    """The crop of pre-training, resized to a square (Table 7, MultiScaleCrop).

    Height and width are each a share of the short side (1, 0.875, 0.75 or 0.66; the two at most neighbours in
    this list, so that the aspect stays near 1), or `size` itself where that is less than 3 pixels away and
    fits; the place is one of 13.

    Args:
        clip_TCHW: uint8 (T, 3, H, W).
        size: S, pixels.
        rng: draws the crop.

    Returns:
        uint8 (T, 3, S, S).
    """
    height, width = clip_TCHW.shape[-2:]
    short_side = min(height, width)
    sides = [max(1, int(short_side * scale)) for scale in _SCALES]
    sides = [size if abs(side - size) < 3 and size <= short_side else side for side in sides]
    crop_height, crop_width = rng.choice(
        [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    )
    down, right = rng.choice(_OFFSETS)
    top, left = down * ((height - crop_height) // 4), right * ((width - crop_width) // 4)
    return _resized_crop(clip_TCHW, top, left, crop_height, crop_width, size)


def random_resized_crop(
    clip_TCHW: torch.Tensor,
    *,
    size: int,
    rng: random.Random,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> torch.Tensor:
    """The crop of fine-tuning: a random area and aspect ratio, resized to a square.

    Args:
        clip_TCHW: uint8 (T, 3, H, W).
        size: S, pixels.
        rng: draws the crop.
        area: smallest and largest share of the frame's area.
        ratio: smallest and largest width / height; drawn evenly in its logarithm.

    Returns:
        uint8 (T, 3, S, S).
    """
    height, width = clip_TCHW.shape[-2:]
    for _ in range(10):
        crop_area = height * width * rng.uniform(*area)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_height, crop_width = round(math.sqrt(crop_area / aspect)), round(math.sqrt(crop_area * aspect))
        if 0 < crop_height <= height and 0 < crop_width <= width:
            top, left = rng.randint(0, height - crop_height), rng.randint(0, width - crop_width)
            return _resized_crop(clip_TCHW, top, left, crop_height, crop_width, size)
    # A very long or tall frame: the largest central crop with an accepted ratio.
    crop_height, crop_width = min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return _resized_crop(clip_TCHW, top, left, crop_height, crop_width, size)


def flip(clip_TCHW: torch.Tensor, rng: random.Random, p: float = 0.5) -> torch.Tensor:
    """Mirrors the whole clip left to right with probability `p`."""
    return F.horizontal_flip(clip_TCHW) if rng.random() < p else clip_TCHW


def test_crops(clip_TCHW: torch.Tensor, *, size: int, crops: int) -> list[torch.Tensor]:
    """The crops a clip is tested on: the short side is resized, the long side cut into squares.

    Args:
        clip_TCHW: uint8 (T, 3, H, W).
        size: S, pixels; what the short side becomes.
        crops: how many squares, evenly spaced from one end of the long side to the other; 1 takes the centre.

    Returns:
        `crops` tensors, uint8 (T, 3, S, S).
    """
    clip_TCHW = F.resize(clip_TCHW, [size], antialias=True)
    height, width = clip_TCHW.shape[-2:]
    room = max(height, width) - size
    offsets = [room // 2] if crops == 1 else [round(i * room / (crops - 1)) for i in range(crops)]
    if height > width:
        return [clip_TCHW[..., offset : offset + size, :] for offset in offsets]
    return [clip_TCHW[..., offset : offset + size] for offset in offsets]


def _resized_crop(clip_TCHW: torch.Tensor, top: int, left: int, height: int, width: int, size: int) -> torch.Tensor:
    return F.resized_crop(clip_TCHW, top, left, height, width, [size, size], antialias=True)
