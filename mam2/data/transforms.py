"""Crops, flips and erasing of whole clips: one draw for all frames, uint8 in and out.

T frames, C = 3 channels, H W pixels, S pixels on each side of the crop.
"""

from __future__ import annotations

import math
import platform
import random

import torch
from torch.nn import functional as F

from mam2.patches import IMAGENET_MEAN, IMAGENET_STD

MEAN_C11 = 255 * torch.tensor(IMAGENET_MEAN).view(3, 1, 1)  # in pixel units
STD_C11 = 255 * torch.tensor(IMAGENET_STD).view(3, 1, 1)
_SCALES = (1.0, 0.875, 0.75, 0.66)
# (down, right) in quarters of the room around the crop: corners and centre, then the places half-way between.
_OFFSETS = (
    *((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)),
    *((0, 2), (2, 0), (2, 4), (4, 2), (1, 1), (1, 3), (3, 1), (3, 3)),
)


def multi_scale_crop(clip_TCHW: torch.Tensor, *, size: int, rng: random.Random) -> torch.Tensor:
    """Crop of pre-training, resized to a square (Table 7, MultiScaleCrop): uint8 (T, 3, H, W) -> (T, 3, S, S).

    Height and width are each a share of the short side (1, 0.875, 0.75 or 0.66; the two at most neighbours in this
    list, so that the aspect stays near 1), or `size` itself where that is less than 3 pixels away and fits; the place
    is one of 13. S is `size`, pixels.
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
    return resized_crop(clip_TCHW, top, left, crop_height, crop_width, size)


CROP_AREA = (0.08, 1.0)  # shares of the frame
CROP_RATIO = (3 / 4, 4 / 3)  # width / height


def random_resized_crop(clip_TCHW: torch.Tensor, *, size: int, rng: random.Random) -> torch.Tensor:
    """Crop of fine-tuning, resized to a square: 8 to 100 % of the frame, 3:4 to 4:3, evenly in the logarithm.

    uint8 (T, 3, H, W) -> (T, 3, S, S); S is `size`, pixels.
    """
    height, width = clip_TCHW.shape[-2:]
    for _ in range(10):
        crop_area = height * width * rng.uniform(*CROP_AREA)
        aspect = math.exp(rng.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        crop_height, crop_width = round(math.sqrt(crop_area / aspect)), round(math.sqrt(crop_area * aspect))
        if 0 < crop_height <= height and 0 < crop_width <= width:
            top, left = rng.randint(0, height - crop_height), rng.randint(0, width - crop_width)
            return resized_crop(clip_TCHW, top, left, crop_height, crop_width, size)
    # A very long or tall frame: the largest central crop with an accepted ratio.
    crop_height, crop_width = min(height, round(width / CROP_RATIO[0])), min(width, round(height * CROP_RATIO[1]))
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return resized_crop(clip_TCHW, top, left, crop_height, crop_width, size)


def flip(clip_TCHW: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Mirrors the whole clip left to right with probability 0.5."""
    return clip_TCHW.flip(-1) if rng.random() < 0.5 else clip_TCHW


def random_erasing(clip_TCHW: torch.Tensor, *, rng: random.Random, prob: float = 0.25) -> torch.Tensor:
    """Overwrites one box, the same in all frames ("cube"), as VideoMAE's fine-tuning does; Table 8 has none.

    The box gets noise that differs from frame to frame, with mean 0 and variance 1 after ImageNet normalisation. It
    takes 0.02 .. 1/3 of the frame and is 0.3 .. 1/0.3 times as high as wide; one that does not fit is drawn again, up
    to 10 times. The given clip, uint8 (T, 3, H, W), is never changed.
    """
    box = erased_box(clip_TCHW.shape[-2], clip_TCHW.shape[-1], rng) if rng.random() < prob else None
    if box is None:
        return clip_TCHW
    top, left, height, width = box
    shape = (*clip_TCHW.shape[:2], height, width)
    noise_TChw = torch.randn(shape, generator=torch.Generator().manual_seed(rng.getrandbits(63)))
    noise_TChw = (noise_TChw * STD_C11 + MEAN_C11).round_().clamp_(0, 255)
    erased_TCHW = clip_TCHW.clone()
    erased_TCHW[..., top : top + height, left : left + width] = noise_TChw.to(clip_TCHW)
    return erased_TCHW


def test_crops(clip_TCHW: torch.Tensor, *, size: int, crops: int) -> list[torch.Tensor]:
    """Test crops of a clip: the short side is resized, the long side cut into squares.

    Args:
        clip_TCHW: uint8 (T, 3, H, W).
        size: S, pixels to which the short side is resized.
        crops: number of squares, evenly spaced from one end of the long side to the other; 1 takes the centre.

    Returns:
        `crops` tensors, uint8 (T, 3, S, S).
    """
    height, width = clip_TCHW.shape[-2:]
    short_side = min(height, width)
    clip_TCHW = resized(clip_TCHW, int(size * height / short_side), int(size * width / short_side))
    height, width = clip_TCHW.shape[-2:]
    room = max(height, width) - size
    offsets = [room // 2] if crops == 1 else [round(i * room / (crops - 1)) for i in range(crops)]
    if height > width:
        return [clip_TCHW[..., offset : offset + size, :] for offset in offsets]
    return [clip_TCHW[..., offset : offset + size] for offset in offsets]


def resized_crop(clip_TCHW: torch.Tensor, top: int, left: int, height: int, width: int, size: int) -> torch.Tensor:
    """A rectangle of each frame, resized to a square: uint8 (T, 3, S, S)."""
    return resized(clip_TCHW[..., top : top + height, left : left + width], size, size)


def resized(clip_TCHW: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Frames of another size by antialiased bilinear interpolation, to the bit as torchvision's `resize` gives them.

    It is written out here because importing torchvision takes longer than embedding a video.

    Args:
        clip_TCHW: uint8 (T, 3, H, W).
        height, width: pixels.

    Returns:
        uint8 (T, 3, height, width); the clip itself if it has that size.
    """
    if clip_TCHW.shape[-2:] == (height, width):
        return clip_TCHW
    # A single frame in channels-last order keeps that order, and is not packed again, only if its strides say so.
    if len(clip_TCHW) == 1 and clip_TCHW.is_contiguous(memory_format=torch.channels_last):
        clip_TCHW = clip_TCHW.as_strided(clip_TCHW.shape, (clip_TCHW.numel(), *clip_TCHW.stride()[1:]))
    exact = clip_TCHW if _resizes_bytes() and clip_TCHW.device.type == "cpu" else clip_TCHW.float()
    made = F.interpolate(exact, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
    return made if made.dtype == torch.uint8 else made.round_().to(torch.uint8)


def _resizes_bytes() -> bool:
    """True on processors that resize bytes as they are, which is faster but rounds twice, as torchvision does there."""
    vectors = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return vectors or platform.machine() in ("aarch64", "arm64")


def erased_box(height: int, width: int, rng: random.Random) -> tuple[int, int, int, int] | None:
    """Box to erase (top, left, height, width); None where ten draws did not fit."""
    for _ in range(10):
        area = rng.uniform(0.02, 1 / 3) * height * width
        aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_height < height and 0 < box_width < width:
            return rng.randint(0, height - box_height), rng.randint(0, width - box_width), box_height, box_width
    return None
