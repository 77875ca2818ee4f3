"""Crops, flips, RandAugment and erasing of whole clips: one draw for all frames, uint8 in and out.

T frames, C = 3 channels, H W pixels, S pixels on each side of the crop.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from mam2.patches import IMAGENET_MEAN, IMAGENET_STD

MEAN_C11 = 255 * torch.tensor(IMAGENET_MEAN).view(3, 1, 1)  # in pixel units
STD_C11 = 255 * torch.tensor(IMAGENET_STD).view(3, 1, 1)
GREY_C11 = MEAN_C11.round()
MAGNITUDE_STD = 0.5  # of RandAugment, "mstd0.5"
PROBABILITY = 0.5  # that an operation of RandAugment is applied
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
    return resized_crop(clip_TCHW, top, left, crop_height, crop_width, size)


CROP_AREA = (0.08, 1.0)  # shares of the frame
CROP_RATIO = (3 / 4, 4 / 3)  # width / height


def random_resized_crop(clip_TCHW: torch.Tensor, *, size: int, rng: random.Random) -> torch.Tensor:
    """The crop of fine-tuning, resized to a square: 8 to 100 % of the frame, 3:4 to 4:3, evenly in the logarithm.

    Args:
        clip_TCHW: uint8 (T, 3, H, W).
        size: S, pixels.
        rng: draws the crop.

    Returns:
        uint8 (T, 3, S, S).
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
    return F.horizontal_flip(clip_TCHW) if rng.random() < 0.5 else clip_TCHW


def rand_augment(
    clip_TCHW: torch.Tensor,
    *,
    rng: random.Random,
    magnitude: float = 9.0,
    num_ops: int = 2,
) -> torch.Tensor:
    """RandAugment of Table 8, "(9, 0.5)": timm's rand-m9-mstd0.5-inc1, one draw for all frames.

    `num_ops` times one of 15 operations is drawn (the same may come twice) and applied with probability `prob`, at a
    magnitude of its own that is drawn around `magnitude` and clipped to 0 .. 10; how strong 10 is stands in
    `RAND_AUGMENT`. Contrast and equalisation measure each frame by itself. VideoMAE's rand-m7-n4-mstd0.5-inc1 is
    `magnitude=7, num_ops=4`.

    Args:
        clip_TCHW: uint8 (T, 3, H, W); its time grows with H · W, so a large video is best made smaller first.
        rng: draws the operations, their magnitudes and directions.
        magnitude: the mean magnitude, 0 .. 10.
        num_ops: how many operations are drawn.

    Returns:
        uint8 (T, 3, H, W), channels last in memory, which the crop that follows reads fastest; the clip itself where
        nothing is applied.
    """
    ops, augmented_TCHW = list(RAND_AUGMENT.values()), clip_TCHW
    for _ in range(num_ops):
        op = rng.choice(ops)
        if rng.random() < PROBABILITY:
            share = min(1.0, max(0.0, rng.gauss(magnitude, MAGNITUDE_STD) / 10))
            augmented_TCHW = op(augmented_TCHW.contiguous(), share, rng)
    if augmented_TCHW is clip_TCHW:
        return clip_TCHW
    return augmented_TCHW.contiguous(memory_format=torch.channels_last)


def random_erasing(
    clip_TCHW: torch.Tensor,
    *,
    rng: random.Random,
    prob: float = 0.25,
) -> torch.Tensor:
    """Overwrites one box, the same in all frames ("cube"), as VideoMAE's fine-tuning does; Table 8 has none.

    The box gets noise that differs from frame to frame: of mean 0 and variance 1 after ImageNet normalisation.

    The box takes 0.02 .. 1/3 of the frame and is 0.3 .. 1/0.3 times as high as wide; one that does not fit is drawn
    again, up to 10 times.

    Args:
        clip_TCHW: uint8 (T, 3, H, W).
        rng: draws whether, where and what.
        prob: how likely a box is erased.

    Returns:
        As the clip; the clip itself where nothing is erased, never changed in place.
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


def resized_crop(clip_TCHW: torch.Tensor, top: int, left: int, height: int, width: int, size: int) -> torch.Tensor:
    return F.resized_crop(clip_TCHW, top, left, height, width, [size, size], antialias=True)


def _signed(value: float, rng: random.Random) -> float:
    return value if rng.random() < 0.5 else -value


def _factor(share: float, rng: random.Random) -> float:
    """Factor of colour, contrast, brightness or sharpness: 1 changes nothing."""
    return 1 + _signed(0.9 * share, rng)


def _solarize(clip_TCHW: torch.Tensor, threshold: int) -> torch.Tensor:
    """Inverts values from the threshold up; torchvision refuses the 256 of share 0, which inverts none."""
    return clip_TCHW if threshold > 255 else F.solarize(clip_TCHW, threshold)


def _solarize_add(clip_TCHW: torch.Tensor, added: int) -> torch.Tensor:
    """Makes the darker half of the values brighter."""
    return torch.where(clip_TCHW < 128, clip_TCHW.clamp(max=255 - added) + added, clip_TCHW)


def _sharpness(clip_TCHW: torch.Tensor, factor: float) -> torch.Tensor:
    return F.adjust_sharpness(clip_TCHW.contiguous(memory_format=torch.channels_last), factor)  # ten times as fast


def _rotate(clip_TCHW: torch.Tensor, degrees: float) -> torch.Tensor:
    return _on_grey(clip_TCHW, lambda x: F.rotate(x, degrees, InterpolationMode.BILINEAR))


def _shear(clip_TCHW: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """Moves row i to the left by x · i pixels, column i up by y · i pixels; the top left corner stays."""
    degrees = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    bilinear = InterpolationMode.BILINEAR
    return _on_grey(clip_TCHW, lambda clip: F.affine(clip, 0, [0, 0], 1, degrees, bilinear, center=[0, 0]))


def _on_grey(clip_TCHW: torch.Tensor, warp: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Warps a clip so that grey comes in from outside: torchvision's `fill` gives the same, but slower."""
    warped_TCHW = warp(clip_TCHW - GREY_C11).add_(GREY_C11 + 0.5)  # half a step more, so that the cast rounds
    return warped_TCHW.to(torch.uint8)


def _translate(clip_TCHW: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """Moves the picture to the right and down by shares of its size, to the nearest pixel; grey comes in."""
    height, width = clip_TCHW.shape[-2:]
    right, down = round(x * width), round(y * height)
    moved_TCHW = GREY_C11.to(torch.uint8).expand(clip_TCHW.shape).contiguous()
    moved_TCHW[..., max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)] = clip_TCHW[
        ..., max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)
    ]
    return moved_TCHW


# Operations of RandAugment: `share` is the magnitude / 10. All grow with the magnitude ("inc1").
RAND_AUGMENT: dict[str, Callable[[torch.Tensor, float, random.Random], torch.Tensor]] = {
    "auto_contrast": lambda clip, share, rng: F.autocontrast(clip),
    "equalize": lambda clip, share, rng: F.equalize(clip),
    "invert": lambda clip, share, rng: F.invert(clip),
    "rotate": lambda clip, share, rng: _rotate(clip, _signed(30 * share, rng)),
    # At magnitude 10 timm keeps no bit, which leaves a black clip; here: at least one.
    "posterize": lambda clip, share, rng: F.posterize(clip, max(1, 4 - int(4 * share))),
    "solarize": lambda clip, share, rng: _solarize(clip, 256 - int(256 * share)),
    "solarize_add": lambda clip, share, rng: _solarize_add(clip, int(110 * share)),
    "colour": lambda clip, share, rng: F.adjust_saturation(clip, _factor(share, rng)),
    "contrast": lambda clip, share, rng: F.adjust_contrast(clip, _factor(share, rng)),
    "brightness": lambda clip, share, rng: F.adjust_brightness(clip, _factor(share, rng)),
    "sharpness": lambda clip, share, rng: _sharpness(clip, _factor(share, rng)),
    "shear_x": lambda clip, share, rng: _shear(clip, _signed(0.3 * share, rng), 0),
    "shear_y": lambda clip, share, rng: _shear(clip, 0, _signed(0.3 * share, rng)),
    "translate_x": lambda clip, share, rng: _translate(clip, _signed(0.45 * share, rng), 0),
    "translate_y": lambda clip, share, rng: _translate(clip, 0, _signed(0.45 * share, rng)),
}


def erased_box(height: int, width: int, rng: random.Random) -> tuple[int, int, int, int] | None:
    """(top, left, height, width) of a box to erase; None where ten draws did not fit."""
    for _ in range(10):
        area = rng.uniform(0.02, 1 / 3) * height * width
        aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_height < height and 0 < box_width < width:
            return rng.randint(0, height - box_height), rng.randint(0, width - box_width), box_height, box_width
    return None
