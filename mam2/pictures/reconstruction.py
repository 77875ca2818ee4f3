"""Reconstructions of frames by a small VQ tokenizer, drawn. F frames, C channels, H W, N patches per frame."""

from __future__ import annotations

from pathlib import Path

import torch

from mam2.config import UserError
from mam2.data.clips import Data, middle_clip
from mam2.patches import to_float
from mam2.pictures.canvas import FrameRow, enlarge, page_of_rows, zoom_to
from mam2.targets.tokenizers.vq import load_vq


def show_reconstruction(file: str | Path, videos: list[str], out: str | Path, *, size: int) -> None:
    """Draws the middle frames of at most 6 videos and a small VQ tokenizer's reconstructions of them, as a PNG.

    Raises:
        UserError: no tokenizer, or none of the videos can be read.
    """
    tokenizer = load_vq(file)
    frames = []
    for video in videos[:: max(1, len(videos) // 6)]:  # evenly spaced: neighbours are of one class
        try:
            frames.append(middle_clip(video, Data(), num_frames=1, size=size)[0])
        except UserError:  # damaged: training has reported it
            continue
        if len(frames) == 6:
            break
    if not frames:
        raise UserError("None of the videos can be read, so there is nothing to draw.")
    frames_FCHW = to_float(torch.stack(frames))
    codes_FN = tokenizer(frames_FCHW)
    grid = (size // tokenizer.patch_size,) * 2
    drawn_FCHW = tokenizer.decode(codes_FN, grid=grid)
    zoom = zoom_to(frames_FCHW, 128)
    error = torch.nn.functional.mse_loss(drawn_FCHW, frames_FCHW).item()
    rows = [
        FrameRow(name="Frames", description="one of each video", frames_TCHW=enlarge(frames_FCHW, zoom)),
        FrameRow(
            name="From their codes",
            description=f"{tokenizer.num_codes} codes, {grid[0]} × {grid[1]} per frame; squared error {error:.4f}",
            frames_TCHW=enlarge(drawn_FCHW, zoom),
        ),
    ]
    page_of_rows(rows, list(range(len(frames))), title=Path(file).name, footer=[]).save(out)
