"""Frames to patches and back, and ImageNet's statistics.

Patches are numbered row by row; the numbers of a patch run over channel, row, column.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mam2.config import UserError


def to_float(clip: Tensor) -> Tensor:
    """RGB in [0, 1] as float32, from uint8 in [0, 255] or floats in [0, 1].

    Raises:
        UserError: other types, or floats far from [0, 1], which is checked on a CPU only.
    """
    if clip.dtype == torch.uint8:
        return clip.float() / 255
    if not clip.is_floating_point():
        raise UserError(f"Frames are {clip.dtype}; accepted: uint8 from 0 to 255, or floats from 0 to 1.")
    if clip.device.type == "cpu" and clip.numel() and not torch.compiler.is_compiling():
        low, high = (value.item() for value in clip.aminmax())
        if low < -0.5 or high > 1.5:  # resizing overshoots a little
            raise UserError(
                f"Frames are {clip.dtype} from {low:.2f} to {high:.2f}; accepted: floats from 0 to 1, not normalised, "
                "or uint8 from 0 to 255."
            )
    return clip.float()


DIFFERENCE_STD = 0.03
"""Standard deviation of RGB differences between frames 3 apart of a speaking face, for RGB in [0, 1]."""


def scaled_differences(clip_BTCHW: Tensor) -> Tensor:
    """RGB difference of each frame to the next, over `DIFFERENCE_STD`, same shape; 0 for the last frame."""
    difference_BTCHW = torch.zeros_like(clip_BTCHW)
    difference_BTCHW[:, :-1] = (clip_BTCHW[:, 1:] - clip_BTCHW[:, :-1]) / DIFFERENCE_STD
    return difference_BTCHW


def patchify(frames_FCHW: Tensor, patch_size: int) -> Tensor:
    """(..., C, H, W) to patches (..., N, C·P·P)."""
    *lead, channels, height, width = frames_FCHW.shape
    rows, columns = height // patch_size, width // patch_size
    x = frames_FCHW.reshape(*lead, channels, rows, patch_size, columns, patch_size)
    x = x.movedim((-4, -2), (-5, -4))  # ..., rows, columns, C, P, P
    return x.reshape(*lead, rows * columns, channels * patch_size**2)


def unpatchify(patches_FND: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`: patches (..., N, C·P·P) of a grid (rows, columns) to (..., C, H, W)."""
    *lead, _, size = patches_FND.shape
    rows, columns = grid
    channels = size // patch_size**2
    x = patches_FND.reshape(*lead, rows, columns, channels, patch_size, patch_size)
    x = x.movedim((-5, -4), (-4, -2))  # ..., C, rows, P, columns, P
    return x.reshape(*lead, channels, rows * patch_size, columns * patch_size)


def rescaled(frames_FCHW: Tensor, scale: float) -> Tensor:
    """Frames whose sides are `scale` times as long: bilinear, averaging where they shrink."""
    if scale == 1:
        return frames_FCHW
    size = [round(side * scale) for side in frames_FCHW.shape[2:]]
    return F.interpolate(frames_FCHW, size, mode="bilinear", antialias=True)


def normalise_patches(patches_ND: Tensor) -> Tensor:
    """Each patch (..., D) minus its mean, over its standard deviation, as in MAE; flat patches become 0."""
    var, mean = torch.var_mean(patches_ND, dim=-1, keepdim=True)
    return (patches_ND - mean) / (var + 1e-6).sqrt()


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
