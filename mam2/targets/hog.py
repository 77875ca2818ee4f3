"""Histograms of oriented gradients (HOG), an appearance target: MaskFeat's.

B clips, T tubelets of U frames, C channels, H W pixels, N patches per frame, P patch side, K numbers of a patch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mam2.config import UserError
from mam2.patches import patchify

HOG_CELL = 8
"""Side of a HOG cell, pixels; a smaller patch is one cell."""
HOG_BINS = 9


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


def num_hog(patch_size: int, tubelet: int) -> int:
    """K of `hog`; UserError for patches that are no whole cells."""
    cell = min(HOG_CELL, patch_size)
    if patch_size % cell:
        raise UserError(
            f"HOG has cells of {cell} pixels; encoder.patch_size {patch_size} is no multiple of it. Use another "
            "patch size, or another --targets.appearance."
        )
    return 3 * HOG_BINS * (patch_size // cell) ** 2
