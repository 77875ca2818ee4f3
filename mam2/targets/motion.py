"""RGB difference, the motion target of MAM² (Sec. 2.2, Eq. 3), and clip order, an alternative to it (Table 1f)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from mam2.config import seed_of


def rgb_difference(clip_BTCHW: Tensor) -> Tensor:
    """Differences of neighbouring frames: (B, T-1, 3, H, W), in [-1, 1] for RGB in [0, 1].

    Paper: the difference of frame t and t-1, and a loss over all but the last frame; here: the token of frame t
    predicts X[t+1] - X[t], and the last frame has no target (docs/decisions.md, 4).
    """
    return clip_BTCHW[:, 1:] - clip_BTCHW[:, :-1]


def clip_scale(motion_BTCHW: Tensor, *, least: float) -> Tensor:
    """Root mean square (B, 1, 1, 1, 1) of each clip's motion, but at least `least`: noise is not blown up."""
    return motion_BTCHW.square().mean(dim=(1, 2, 3, 4), keepdim=True).sqrt().clamp(min=least)


def clip_order(num_patches: int, *, sample_B: Tensor, seed: int) -> Tensor:
    """Clip order targets: the tubes whose halves in time are swapped, int64 (B, N), 0 or 1, half of them.

    Args:
        num_patches: N.
        sample_B: int64 (B,), each clip's number in the whole run.
        seed: the run's seed.
    """
    rows = []
    for sample in sample_B.tolist():
        generator = Generator().manual_seed(seed_of(seed, sample, 0x0DE2))
        rows.append(torch.randint(2, (num_patches,), generator=generator))
    return torch.stack(rows)
