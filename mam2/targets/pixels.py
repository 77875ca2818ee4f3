"""Pixels as appearance targets: of a tubelet's first frame (ST-MAE), or of all its frames (VideoMAE).

B clips, T tubelets of U frames, C channels, H W pixels, N patches per frame, P patch side, K numbers of a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mam2.patches import normalise_patches, patchify

ST_MAE_STD = 0.225
"""ST-MAE divides pixels by this before it normalises patches: what is added to a variance is small in the dark too."""


def pixels(clip_BTUCHW: Tensor, patch_size: int) -> Tensor:
    """Pixels of each tubelet's first frame, each patch to mean 0 and variance 1 (ST-MAE): (B, T, N, 3·P²)."""
    return normalise_patches(patchify(clip_BTUCHW[:, :, 0] / ST_MAE_STD, patch_size))


def pixels_of_tubelets(clip_BTUCHW: Tensor, patch_size: int) -> Tensor:
    """Pixels of all frames of a tubelet, each channel to mean 0 and deviation 1 over the tubelet (VideoMAE).

    Returns:
        (B, T, N, 3·U·P²); a token's numbers run over channel, frame, row, column.
    """
    x = patchify(clip_BTUCHW, patch_size).unflatten(-1, (3, -1))  # B, T, U, N, C, P²
    x = x.permute(0, 1, 3, 4, 2, 5).flatten(4)  # B, T, N, C, U·P²
    std, mean = torch.std_mean(x, dim=-1, keepdim=True)
    return ((x - mean) / (std + 1e-6)).flatten(3)


def num_pixels(patch_size: int, tubelet: int) -> int:
    """K of `pixels`."""
    return 3 * patch_size**2


def num_pixels_of_tubelets(patch_size: int, tubelet: int) -> int:
    """K of `pixels_of_tubelets`."""
    return 3 * tubelet * patch_size**2
