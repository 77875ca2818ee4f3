"""A canvas for pictures of frames (`Page`), rows of frames (`FrameRow`), and pages of such rows.

Every picture is a matplotlib `Figure` of its own (no pyplot state); frames are laid on it pixel for pixel.
Letters: T frames, n frames shown, C channels, H W, N patches per frame, K classes.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mam2.config import printable
from mam2.files import written_whole

BLUE, ORANGE, RED, INK, MUTED = "#1f6fb4", "#d9822b", "#e0241b", "#1c2733", "#66727f"


# --- pixels -------------------------------------------------------------------------------------------------


def patch_mask(mask_TN: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Values over patches, in row-major order, as (T, 1, H, W) over pixels; `size` is (H, W)."""
    (high, wide), (height, width) = grid, size
    mask = mask_TN.reshape(-1, 1, high, wide)
    return mask.repeat_interleave(height // high, 2).repeat_interleave(width // wide, 3)


def keep_patches(frames_TCHW: Tensor, keep_TN: Tensor, grid: tuple[int, int], *, fill: Tensor | float) -> Tensor:
    """The frames on the patches of `keep_TN`, `fill` (a number, or an image (H, W)) on all others."""
    keep_T1HW = patch_mask(keep_TN, grid, (frames_TCHW.shape[-2], frames_TCHW.shape[-1]))
    return torch.where(keep_T1HW, frames_TCHW, torch.as_tensor(fill, dtype=frames_TCHW.dtype))


def enlarge(frames_TCHW: Tensor, zoom: int) -> Tensor:
    """Each pixel `zoom` times as high and wide: patches of a tiny frame stay sharp."""
    return frames_TCHW.float().repeat_interleave(zoom, -2).repeat_interleave(zoom, -1)


def zoom_to(clip_TCHW: Tensor, side: int) -> int:
    """The smallest whole zoom that makes the shorter side of a frame at least `side` pixels."""
    return max(1, math.ceil(side / min(clip_TCHW.shape[-2:])))


def frames_shown(num_frames: int, max_frames: int) -> list[int]:
    """At most `max_frames`, evenly spaced; where some are dropped, so is the last, which has no motion."""
    if num_frames <= max_frames:
        return list(range(num_frames))
    return torch.linspace(0, max(num_frames - 2, 0), max_frames).round().int().tolist()


# --- pages of frames ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameRow:
    """One row of a page of frames.

    Attributes:
        name: the row's title.
        description: a line or two on how to read it.
        frames_TCHW: (T, 3, H, W) in [0, 1]; T-1 frames where the last has none, as for motion.
        captions: one for each frame, or none.
        legend_CHW: a small picture next to the name, or none.
    """

    name: str
    description: str
    frames_TCHW: Tensor
    captions: tuple[str, ...] = ()
    legend_CHW: Tensor | None = None


class Page:
    """A white canvas with pictures and texts on it. Places are pixels from the left and from the top.

    Args:
        width: pixels.
        height: pixels.
        text: how many times as large as usual texts are.
    """

    def __init__(self, width: int, height: int, *, text: float) -> None:
        self.canvas_CHW = torch.ones(3, height, width)
        self.text = text
        dpi = 128  # a power of two divides exactly: a pixel of the canvas is a pixel of the picture
        from matplotlib.figure import Figure  # it takes a third of a second

        self.figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi)

    def paste(self, x: int, y: int, picture_CHW: Tensor) -> None:
        """Lays a picture (3, h, w) in [0, 1] with its top left corner at (x, y)."""
        _, height, width = picture_CHW.shape
        self.canvas_CHW[:, y : y + height, x : x + width] = picture_CHW.clamp(0, 1)

    def write(self, x: float, y: float, words: str, *, ha: str = "left", va: str = "top", bold: float = 0) -> None:
        """Writes in ink and `bold` points high, else small and muted; ha and va as matplotlib has them."""
        _, height, width = self.canvas_CHW.shape
        self.figure.text(
            x / width,
            1 - y / height,
            printable(words),
            ha=ha,
            va=va,
            size=(bold or 6.7) * self.text,
            weight="bold" if bold else "normal",
            color=INK if bold else MUTED,
            parse_math=False,
        )

    def place(self, x: int, y: int, row: FrameRow, t: int) -> None:
        """Lays frame `t` of a row with its top left corner at (x, y), or words if it is missing."""
        if t < len(row.frames_TCHW):
            self.paste(x, y, row.frames_TCHW[t])
            return
        height, width = row.frames_TCHW.shape[-2:]
        self.write(x + width / 2, y + height / 2, "last frame:\nno next one", ha="center", va="center")

    def pixels(self) -> Tensor:
        """The page as uint8 (3, height, width)."""
        self.figure.figimage((self.canvas_CHW * 255).round().byte().permute(1, 2, 0).numpy())
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(self.figure)
        canvas.draw()
        return torch.from_numpy(np.array(canvas.buffer_rgba())[..., :3]).permute(2, 0, 1)

    def save(self, path: Path | str) -> None:
        """Writes the page as a PNG, and the folder it lies in."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as part:
            Image.fromarray(self.pixels().permute(1, 2, 0).contiguous().numpy()).save(part, format="PNG")


def wrap_words(words: str, width: float, *, bold: float = 0) -> str:
    """The words in lines of at most about `width` pixels, as `Page.write` writes them at text 1."""
    return "\n".join(textwrap.wrap(words, max(1, int(width / (1.12 * bold if bold else 7)))))


def page_of_rows(rows: list[FrameRow], shown: list[int], *, title: str, footer: list[str], tubelet: int = 1) -> Page:
    """Rows of frames of one size below each other, a column for each frame of `shown`.

    Their names stand on the left, their captions under them, the footer's paragraphs at the bottom. The rows' frames
    are every `tubelet`-th of the clip, and numbered as in the clip.
    """
    height, width = rows[0].frames_TCHW.shape[-2:]
    text = min(max(height / 150, 1.0), 1.5)  # text grows with the panels
    gap, label_width, line = 6, round(215 * text), round(19 * text)
    total_width = label_width + len(shown) * (width + gap)
    title = wrap_words(title, (total_width - 16) / text, bold=9.5)
    footer_text = "\n".join(wrap_words(words, (total_width - 16) / text) for words in footer)
    tops = [line * (title.count("\n") + (2 if title else 1)) + 12]
    for row in rows:
        tops.append(tops[-1] + height + gap + (line if row.captions else 0))
    total_height = tops.pop() + line * (footer_text.count("\n") + 1) + 2
    page = Page(total_width, total_height, text=text)
    page.write(8, 8, title, bold=9.5)
    page.write(8, total_height - 8, footer_text, va="bottom")
    for y, row in zip(tops, rows, strict=True):
        room = label_width - 16
        if row.legend_CHW is not None:
            _, legend_height, legend_width = row.legend_CHW.shape
            page.paste(label_width - 12 - legend_width, y + (height - legend_height) // 2, row.legend_CHW)
            room -= legend_width + 12
        page.write(8, y + height / 2 - 4, wrap_words(row.name, room / text, bold=8.6), va="bottom", bold=8.6)
        page.write(8, y + height / 2 + 4, wrap_words(row.description, room / text))
        for column, t in enumerate(shown):
            x = label_width + column * (width + gap)
            page.place(x, y, row, t)
            if row.captions:
                page.write(x + width / 2, y + height + line / 2 + 1, row.captions[t], ha="center", va="center")
    for column, t in enumerate(shown):
        centre = label_width + column * (width + gap) + width / 2
        page.write(centre, tops[0] - line / 2, f"frame {t * tubelet + 1}", ha="center", va="center")
    return page
