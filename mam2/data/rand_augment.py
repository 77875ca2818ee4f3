"""RandAugment of whole clips: one draw for all frames, uint8 in and out.

It has a file of its own because it needs torchvision, whose import takes seconds.

T frames, C = 3 channels, H W pixels.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from mam2.data.transforms import MEAN_C11

GREY_C11 = MEAN_C11.round()
MAGNITUDE_STD = 0.5  # "mstd0.5"
PROBABILITY = 0.5  # probability that an operation is applied


def rand_augment(
    clip_TCHW: torch.Tensor, *, rng: random.Random, magnitude: float = 9.0, num_ops: int = 2
) -> torch.Tensor:
    """RandAugment of Table 8, "(9, 0.5)": timm's rand-m9-mstd0.5-inc1, one draw for all frames.

    `num_ops` times one of 15 operations is drawn (the same may come twice) and applied with probability 0.5, at a
    magnitude of its own that is drawn around `magnitude` and clipped to 0 .. 10; `RAND_AUGMENT` says how strong 10 is.
    Contrast and equalisation measure each frame by itself. VideoMAE's rand-m7-n4-mstd0.5-inc1 is `magnitude=7,
    num_ops=4`. The time grows with H · W.

    Returns:
        uint8 (T, 3, H, W), channels last in memory, which the crop that follows reads fastest; the clip itself where
        nothing is applied.
    """
    ops = list(RAND_AUGMENT.values())
    augmented_TCHW = clip_TCHW
    for _ in range(num_ops):
        op = rng.choice(ops)
        if rng.random() < PROBABILITY:
            share = min(1.0, max(0.0, rng.gauss(magnitude, MAGNITUDE_STD) / 10))
            augmented_TCHW = op(augmented_TCHW.contiguous(), share, rng)
    if augmented_TCHW is clip_TCHW:
        return clip_TCHW
    return augmented_TCHW.contiguous(memory_format=torch.channels_last)


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
