"""Mixup and cutmix of a batch of clips, with their soft targets (Table 8).

B clips, T frames, C = 3 channels, H W pixels, K classes.
"""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F

from mam2.config import UserError

SWITCH = 0.5  # probability of cutmix where both are on (Table 8)


def mix(
    clip_BTCHW: torch.Tensor,
    label_B: torch.Tensor,
    *,
    num_classes: int,
    rng: random.Random,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    smoothing: float = 0.1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixes each clip with its partner, the clip at the same place from the batch's other end.

    Mixup adds λ of a clip and 1 - λ of its partner; cutmix writes a box of the partner over the clip, the same box in
    all frames. A batch gets one of the two and one λ.

    With repeated augmentation the copies of a video are neighbours, so that partners are of different videos, but for
    the middle one of an odd number; that one, like the middle of an odd batch, is mixed with its own kind and keeps
    its label. A batch of one clip stays as it is.

    Args:
        clip_BTCHW: (B, T, 3, H, W), floats in [0, 1] or normalised, or uint8; not changed in place.
        label_B: int64 (B,), 0 .. K - 1; or float (B, K), targets that are mixed as they are.
        num_classes: K.
        rng: draws the kind, λ and the box.
        mixup: λ ~ Beta(mixup, mixup); 0 turns mixup off.
        cutmix: λ ~ Beta(cutmix, cutmix), then corrected to the share of the frame outside the box; 0 turns cutmix off.
        smoothing: share of every int64 label that is spread evenly over all classes.

    Returns:
        clip: float32 (B, T, 3, H, W), in [0, 1] if uint8 was given.
        target_BK: float32 (B, K), rows sum to 1: λ of the smoothed label and 1 - λ of the partner's.

    Raises:
        UserError: a setting outside its range.
    """
    settings = (("mixup", mixup, math.inf), ("cutmix", cutmix, math.inf), ("smoothing", smoothing, 1))
    for name, value, most in settings:
        if not 0 <= value <= most:
            accepted = "from 0 (off) up" if most == math.inf else "from 0 to 1"
            raise UserError(f"{name} is {value}; it must be {accepted}.")
    height, width = clip_BTCHW.shape[-2:]
    clip_BTCHW = clip_BTCHW / 255 if clip_BTCHW.dtype == torch.uint8 else clip_BTCHW.float()
    kept = 1.0
    if cutmix > 0 and (mixup == 0 or rng.random() < SWITCH):
        top, bottom, left, right = box_of(height, width, rng.betavariate(cutmix, cutmix), rng)
        clip_BTCHW, source_BTCHW = clip_BTCHW.clone(), clip_BTCHW
        clip_BTCHW[..., top:bottom, left:right] = source_BTCHW[..., top:bottom, left:right].flip(0)
        # λ is what the clip kept: the frame's edge may have cut the box.
        kept = 1 - (bottom - top) * (right - left) / (height * width)
    elif mixup > 0:
        kept = rng.betavariate(mixup, mixup)
        clip_BTCHW = clip_BTCHW.flip(0).lerp_(clip_BTCHW, kept)
    if label_B.is_floating_point():
        target_BK = label_B
    else:
        target_BK = F.one_hot(label_B, num_classes) * (1 - smoothing) + smoothing / num_classes
    return clip_BTCHW, kept * target_BK + (1 - kept) * target_BK.flip(0)


def box_of(height: int, width: int, kept: float, rng: random.Random) -> tuple[int, int, int, int]:
    """Edges (top, bottom, left, right) of a box that leaves about `kept` of the frame: with the frame's aspect, its
    centre anywhere, cut off at the frame's edge."""
    box_height, box_width = (int(side * math.sqrt(1 - kept)) for side in (height, width))
    top = rng.randrange(height) - box_height // 2
    left = rng.randrange(width) - box_width // 2
    return max(0, top), min(height, top + box_height), max(0, left), min(width, left + box_width)
