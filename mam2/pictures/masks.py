"""Masks drawn over a clip (Fig. 3). T frames, N patches per frame."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mam2.data.clips import Data, middle_clip
from mam2.data.shape import ClipShape
from mam2.data.synthetic import render
from mam2.masks import MASKS, Mask, MaskConfig, put
from mam2.patches import to_float
from mam2.pictures.canvas import RED, FrameRow, enlarge, frames_shown, page_of_rows, patch_mask, zoom_to
from mam2.pictures.page import video_title


def masked_patches(mask: Mask, num_patches: int) -> Tensor:
    """The mask of one clip as bool (T, N), True where masked."""
    ones_BTM1 = torch.ones_like(mask.masked_BTM, dtype=torch.bool)[..., None]
    return put(ones_BTM1, mask.masked_BTM, num_patches)[0, ..., 0].cpu()


def mask_figure(
    masks: dict[str, Tensor], clip_TCHW: Tensor, grid: tuple[int, int], path: Path | str, *, title: str
) -> None:
    """Draws masks over at most 4 frames of a clip as a PNG, a row each below the raw frames (Fig. 3).

    `masks` are bool (T, N) by name, drawn in red; the clip is float in [0, 1]; `grid` is patches high, patches wide.
    """
    frames_TCHW = enlarge(clip_TCHW, zoom_to(clip_TCHW, 128))
    from matplotlib.colors import to_rgb

    red_3HW = torch.tensor(to_rgb(RED))[:, None, None]
    rows = [FrameRow(name="Input", description=f"a clip of {len(clip_TCHW)} frames", frames_TCHW=frames_TCHW)]
    for name, masked_TN in masks.items():
        masked_T1HW = patch_mask(masked_TN, grid, (frames_TCHW.shape[-2], frames_TCHW.shape[-1]))
        tinted_TCHW = torch.where(masked_T1HW, 0.4 * frames_TCHW + 0.6 * red_3HW, frames_TCHW)
        share = f"{masked_TN.float().mean():.0%} masked"
        rows.append(FrameRow(name=name, description=share, frames_TCHW=tinted_TCHW))
    shown = frames_shown(len(clip_TCHW), 4)
    page_of_rows(rows, shown, title=title, footer=["Masked patches are tinted red."]).save(path)


def show_masks(video: str | Path | None, out: str | Path, *, ratio: float, seed: int) -> None:
    """Draws every kind of mask over 16 frames of a video, or of a rendered one, 14 × 14 patches, as a PNG (Fig. 3).

    Raises:
        UserError: no video, or an impossible ratio.
    """
    title = video_title(video) if video else "A rendered video: approach"
    if video is None:
        clip_TCHW = render("approach", seed=0, num_frames=16, size=224)
    else:
        clip_TCHW = middle_clip(video, Data(), ClipShape(16, 224))
    grid = (14, 14)
    masks = {}
    for kind in MASKS:
        mask = MaskConfig(kind=kind, ratio=ratio)(16, grid, sample_B=torch.tensor([0]), seed=seed)
        masks[kind] = masked_patches(mask, 196)
    mask_figure(masks, to_float(clip_TCHW), grid, out, title=title)
