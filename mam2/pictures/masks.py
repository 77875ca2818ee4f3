"""Masks drawn over a clip (Fig. 3)."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.colors import to_rgb
from torch import Tensor

from mam2.config import UserError
from mam2.data.clips import Data, middle_clip
from mam2.data.synthetic import render
from mam2.masks import MASKS, MaskConfig
from mam2.patches import to_float
from mam2.pictures.canvas import RED, FrameRow, enlarge, frames_shown, page_of_rows, patch_mask, zoom_to
from mam2.pictures.predict import masked_patches


def mask_figure(
    masks: list[tuple[str, Tensor]],
    clip_TCHW: Tensor,
    grid: tuple[int, int],
    path: Path | str,
    *,
    max_frames: int = 4,
) -> None:
    """Draws masks over a clip as a PNG, a row each below the raw frames; masked patches are tinted red (Fig. 3).

    Args:
        masks: a name and a mask, bool (T, N), for each row.
        clip_TCHW: float in [0, 1].
        grid: patches high, patches wide; their product is N.
        path: the file to write.
        max_frames: as many frames at most, evenly spaced.

    Raises:
        UserError: a mask that does not fit the clip, or `max_frames` below 1.
    """
    shown, zoom = frames_shown(len(clip_TCHW), max_frames), zoom_to(clip_TCHW, 128)
    frames_TCHW = enlarge(clip_TCHW, zoom)
    red_3HW = torch.tensor(to_rgb(RED))[:, None, None]
    rows = [FrameRow(name="Input", description=f"a clip of {len(clip_TCHW)} frames", frames_TCHW=frames_TCHW)]
    for name, masked_TN in masks:
        if masked_TN.dtype != torch.bool or masked_TN.shape != (len(clip_TCHW), grid[0] * grid[1]):
            raise UserError(
                f"The mask {name!r} is {masked_TN.dtype}, of shape {tuple(masked_TN.shape)}; give a bool mask of "
                f"shape {(len(clip_TCHW), grid[0] * grid[1])}: the clip's frames by the patches of `grid`."
            )
        masked_T1HW = patch_mask(masked_TN, grid, (frames_TCHW.shape[-2], frames_TCHW.shape[-1]))
        tinted_TCHW = torch.where(masked_T1HW, 0.4 * frames_TCHW + 0.6 * red_3HW, frames_TCHW)
        share = f"{masked_TN.float().mean():.0%} masked"
        rows.append(FrameRow(name=name, description=share, frames_TCHW=tinted_TCHW))
    page_of_rows(rows, shown, title="", footer=["Masked patches are tinted red."]).save(path)


def show_masks(video: str | Path | None, out: str | Path, *, ratio: float = 0.75, seed: int = 0) -> None:
    """Draws every kind of mask over 16 frames of a video, 14 × 14 patches, as a PNG (Fig. 3); None renders a video.

    Raises:
        UserError: no video, or an impossible ratio.
    """
    if video is None:
        clip_TCHW = render("approach", seed=0, num_frames=16, size=224)
    else:
        clip_TCHW = middle_clip(video, Data(), num_frames=16, size=224)
    grid, masks = (14, 14), []
    for kind in MASKS:
        mask = MaskConfig(kind=kind, ratio=ratio)(16, grid, sample_B=torch.tensor([0]), seed=seed)
        masks.append((kind, masked_patches(mask, 196)))
    mask_figure(masks, to_float(clip_TCHW), grid, out)
