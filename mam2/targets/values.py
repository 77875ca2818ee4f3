"""Appearance targets that are numbers, not codes: pixels (MAE, VideoMAE) and HOG (MaskFeat).

B clips, T tubelets of U frames, C channels, H W pixels, N patches per frame, P patch side, K numbers of a patch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mam2.config import UserError
from mam2.patches import normalise_patches, patchify

ST_MAE_STD = 0.225
"""ST-MAE divides pixels by this before it normalises patches: what is added to a variance is small in the dark too."""
HOG_CELL = 8
"""Side of a HOG cell, pixels; a smaller patch is one cell."""
HOG_BINS = 9


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


def hog(clip_BTUCHW: Tensor, patch_size: int) -> Tensor:
    """Histograms of oriented gradients of each tubelet's first frame (MaskFeat).

    Per channel: Sobel gradients, their angle in 9 bins over half a turn, their length summed in cells of 8 × 8 pixels,
    or of P × P where P is smaller; the 9 numbers of a cell have length 1.

    Returns:
        (B, T, N, 27·(P / 8)²), 108 for a patch of 16², 27 for one of 8² or less; a token's numbers run over channel,
        bin, row and column of cell.
    """
    frames_BTCHW = clip_BTUCHW[:, :, 0]
    x_F1HW = frames_BTCHW.flatten(0, 2)[:, None]
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], device=x_F1HW.device)
    x_F1HW = F.pad(x_F1HW, (1, 1, 1, 1), mode="reflect")
    across_F1HW, down_F1HW = F.conv2d(x_F1HW, torch.stack([kernel, kernel.T])[:, None]).split(1, dim=1)
    length_F1HW = torch.hypot(across_F1HW, down_F1HW)
    turn_F1HW = torch.atan2(across_F1HW, down_F1HW) / math.pi * HOG_BINS
    bin_F1HW = turn_F1HW.floor().long() % HOG_BINS
    votes_FKHW = torch.zeros_like(length_F1HW).expand(-1, HOG_BINS, -1, -1).scatter(1, bin_F1HW, length_F1HW)
    cell = min(HOG_CELL, patch_size)
    cells_FKhw = F.normalize(F.avg_pool2d(votes_FKHW, cell), dim=1)  # a sum but for a factor
    return patchify(cells_FKhw.unflatten(0, frames_BTCHW.shape[:3]).flatten(2, 3), patch_size // cell)


def num_pixels(patch_size: int, tubelet: int) -> int:
    """K of `pixels`."""
    return 3 * patch_size**2


def num_pixels_of_tubelets(patch_size: int, tubelet: int) -> int:
    """K of `pixels_of_tubelets`."""
    return 3 * tubelet * patch_size**2


def num_hog(patch_size: int, tubelet: int) -> int:
    """K of `hog`; UserError for patches that are no whole cells."""
    cell = min(HOG_CELL, patch_size)
    if patch_size % cell:
        raise UserError(
            f"HOG has cells of {cell} pixels; encoder.patch_size {patch_size} is no multiple of it. Use another "
            "patch size, or another --targets.appearance."
        )
    return 3 * HOG_BINS * (patch_size // cell) ** 2
