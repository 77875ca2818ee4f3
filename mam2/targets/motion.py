"""The motion target: RGB difference (Sec. 2.2, Eq. 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from mam2.targets.pixels import patchify


def rgb_difference(clip_BTCHW: Tensor, patch_size: int, *, unit_scale: bool) -> Tensor:
    """Differences of neighbouring frames, as patches.

    Paper: the difference of frame t and t-1, and a loss over all but the last frame; here: the token of frame t
    predicts X[t+1] - X[t], and the last frame has no target (docs/decisions.md, 4).

    Args:
        clip_BTCHW: RGB in [0, 1].
        patch_size: P, pixels.
        unit_scale: divide by the clip's own standard deviation, so that predicting zero costs a loss of 1 whatever
            the video's contrast and speed; else raw differences in [-1, 1], the paper's plain target.

    Returns:
        (B, T-1, N, C·P·P).
    """
    difference = clip_BTCHW[:, 1:] - clip_BTCHW[:, :-1]
    if unit_scale:
        # One grey level is the floor: a still clip's noise is not blown up to the size of motion.
        difference = difference / motion_scale(clip_BTCHW)[:, None, None, None, None]
    return patchify(difference, patch_size)


def motion_scale(clip_BTCHW: Tensor) -> Tensor:
    """Standard deviation (B,) of a clip's RGB differences about zero, at least one grey level."""
    difference = clip_BTCHW[:, 1:] - clip_BTCHW[:, :-1]
    return difference.square().mean(dim=(1, 2, 3, 4)).sqrt().clamp(min=1 / 255)


def constant_predictor_loss(motion_BTND: Tensor) -> Tensor:
    """The loss of predicting zero motion everywhere: what a model that has learned anything must beat."""
    return motion_BTND.square().mean(dtype=torch.float32)
