"""What a run looks like: contact sheets of predictions, loss curves and confusion matrices.

Every picture is a matplotlib `Figure` of its own (no pyplot state). Nothing here runs a model: an objective
makes a `Prediction`, this file draws it; `mam2.report` puts the pictures on a page. Letters: T frames,
C channels, H W, N patches a frame, K classes.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mam2.config import UserError

BLUE, ORANGE, INK, MUTED = "#1f6fb4", "#d9822b", "#1c2733", "#66727f"
# (key in log.jsonl, its title, whether a smoothed line is drawn over it)
CURVES = (
    ("loss", "loss, total", True),
    ("appearance", "loss, appearance", True),
    ("motion", "loss, motion", True),
    ("alignment", "loss, alignment", True),
    ("feature_std", "standard deviation of features", False),
    ("effective_rank", "effective rank of features", False),
    ("lr", "learning rate", False),  # smoothing would round its peak off
    ("clips_per_second", "clips a second", True),
    ("data_seconds", "seconds a step waits for data", True),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What a model predicts for one clip, on the CPU. Made by an objective.

    Attributes:
        clip_TCHW: float in [0, 1], the input.
        masked_N: bool, the tube mask over the N patches of a frame, the same in every frame.
        grid: patches high, patches wide; their product is N.
        appearance_TCHW: float in [0, 1], the predicted appearance, valid on masked patches only; None where
            the tokenizer has no decoder.
        agreement_TN: bool, predicted code = true code; meaningful on masked patches only.
        motion_TCHW: float (T-1, 3, H, W), the predicted RGB difference of pixels in [0, 1], valid on
            masked patches only.
        true_motion_TCHW: float (T-1, 3, H, W), X_{t+1} - X_t, everywhere.

    Raises:
        UserError: shapes that do not fit each other.
    """

    clip_TCHW: Tensor
    masked_N: Tensor
    grid: tuple[int, int]
    appearance_TCHW: Tensor | None
    agreement_TN: Tensor
    motion_TCHW: Tensor
    true_motion_TCHW: Tensor

    def __post_init__(self) -> None:
        num_frames, channels, height, width = self.clip_TCHW.shape
        high, wide = self.grid
        if height % high or width % wide:
            raise UserError(f"A frame of {height}x{width} cannot be cut into {high}x{wide} equal patches. Mend `grid`.")
        motion_shape = (num_frames - 1, channels, height, width)
        for name, shape in {
            "masked_N": (high * wide,),
            "appearance_TCHW": tuple(self.clip_TCHW.shape),
            "agreement_TN": (num_frames, high * wide),
            "motion_TCHW": motion_shape,
            "true_motion_TCHW": motion_shape,
        }.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise UserError(
                    f"Prediction.{name} has shape {tuple(value.shape)}; the clip and `grid` ask for {shape}."
                )


# --- pixels -------------------------------------------------------------------------------------------------


def patch_mask(mask_N: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """A mask over patches, in row-major order, as a bool mask (H, W) over pixels; `size` is (H, W)."""
    (high, wide), (height, width) = grid, size
    return mask_N.reshape(grid).repeat_interleave(height // high, 0).repeat_interleave(width // wide, 1)


def keep_patches(frames_TCHW: Tensor, keep_N: Tensor, grid: tuple[int, int], *, fill: Tensor | float) -> Tensor:
    """The frames on the patches of `keep_N`, `fill` (a number, or an image (H, W)) on all others."""
    keep_HW = patch_mask(keep_N, grid, (frames_TCHW.shape[-2], frames_TCHW.shape[-1]))
    return torch.where(keep_HW, frames_TCHW, torch.as_tensor(fill, dtype=frames_TCHW.dtype))


def paint_mask(frames_TCHW: Tensor, masked_N: Tensor, grid: tuple[int, int]) -> Tensor:
    """The frames with masked patches in mid grey: what the encoder is given, and what it is not."""
    return keep_patches(frames_TCHW, ~masked_N, grid, fill=0.5)


def hatching(size: tuple[int, int]) -> Tensor:
    """A dark striped image (H, W) that stands for `left out`, so that no one takes it for a prediction."""
    height, width = size
    stripe = (torch.arange(height)[:, None] + torch.arange(width)) % 8 < 2
    return torch.where(stripe, 0.42, 0.12)


def motion_scale(true_motion_TCHW: Tensor) -> float:
    """The difference drawn in full colour: the 99th percentile of the pixels that move, at least 0.02.

    The largest difference would let one hard edge fade the rest; the percentile of all pixels is zero where a
    small object moves before a still background.
    """
    moving = true_motion_TCHW.abs().flatten()
    moving = moving[moving > 1 / 255]
    if len(moving) == 0:
        return 0.02
    return max(moving.kthvalue(math.ceil(0.99 * len(moving))).values.item(), 0.02)


def motion_to_rgb(motion_TCHW: Tensor, scale: float) -> Tensor:
    """RGB differences as colours in [0, 1]: -scale is 0, no motion is mid grey 0.5, +scale is 1."""
    return (0.5 + motion_TCHW / (2 * scale)).clamp(0, 1)


def agreement_to_rgb(agreement_TN: Tensor, masked_N: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(T, 3, H, W): blue where the predicted code is right, orange where wrong, hatching where visible."""
    hit, miss = (torch.tensor(to_rgb(colour))[:, None, None] for colour in (BLUE, ORANGE))
    hits = [patch_mask(hit_N, grid, size) for hit_N in agreement_TN]
    frames_TCHW = torch.stack([torch.where(hit_HW, hit, miss) for hit_HW in hits])
    return keep_patches(frames_TCHW, masked_N, grid, fill=hatching(size))


def frames_shown(num_frames: int, max_frames: int) -> list[int]:
    """At most `max_frames`, evenly spaced; where some are dropped, so is the last, which has no motion."""
    if num_frames <= max_frames:
        return list(range(num_frames))
    return torch.linspace(0, max(num_frames - 2, 0), max_frames).round().int().tolist()


# --- figures ------------------------------------------------------------------------------------------------


def sheet_rows(prediction: Prediction, shown: list[int], zoom: int) -> list[tuple[str, str, Tensor]]:
    """The rows of a contact sheet: a name, a description and the frames `shown`, (n, 3, H, W) in [0, 1].

    Frames are enlarged `zoom` times, by whole pixels: patches of a tiny frame stay sharp. The motion rows
    lack the clip's last frame, which has no next one.
    """
    p, masked_N, grid = prediction, prediction.masked_N, prediction.grid

    def zoomed(frames_TCHW: Tensor) -> Tensor:
        frames_TCHW = frames_TCHW[[t for t in shown if t < len(frames_TCHW)]]
        return frames_TCHW.float().repeat_interleave(zoom, -2).repeat_interleave(zoom, -1)

    clip_TCHW = zoomed(p.clip_TCHW)
    size = (clip_TCHW.shape[-2], clip_TCHW.shape[-1])
    if p.appearance_TCHW is None:
        name, description = "Predicted codes", "blue right, orange wrong;\nvisible patches left out"
        third = agreement_to_rgb(p.agreement_TN[shown], masked_N, grid, size)
    else:
        name, description = "Predicted appearance", "masked patches only;\nvisible patches left out"
        third = keep_patches(zoomed(p.appearance_TCHW), masked_N, grid, fill=hatching(size))
    scale = motion_scale(p.true_motion_TCHW)
    true_motion = motion_to_rgb(zoomed(p.true_motion_TCHW), scale)
    motion = motion_to_rgb(keep_patches(zoomed(p.motion_TCHW), masked_N, grid, fill=0.0), scale)
    share = f"{masked_N.float().mean():.0%} masked;\nmasked patches grey"
    span = f"next frame minus this one;\ngrey: 0, full colour: ±{scale:.2f}"
    rows = [
        ("Input", f"a clip of {len(p.clip_TCHW)} frames", clip_TCHW),
        ("Input with mask", share, paint_mask(clip_TCHW, masked_N, grid)),
        (name, description, third),
        ("True motion", span, true_motion),
        ("Predicted motion", f"same scale, ±{scale:.2f};\nvisible patches left at 0", motion),
    ]
    return [(name, description, frames.clamp(0, 1)) for name, description, frames in rows]


def contact_sheet(prediction: Prediction, path: Path | str, *, title: str = "", max_frames: int = 8) -> None:
    """Draws a clip as a PNG: input, mask, predicted appearance, true and predicted motion; a column a frame.

    Predictions stand on masked patches only. Visible patches are hatched (appearance) or left at zero
    (motion), never filled in from the input. Where there is no appearance, its row shows which codes were
    predicted rightly. True and predicted motion share one scale, taken from the true motion.

    Raises:
        UserError: `max_frames` below 1.
    """
    if max_frames < 1:
        raise UserError(f"max_frames is {max_frames}; a contact sheet needs at least one frame.")
    masked_N, num_frames = prediction.masked_N, len(prediction.clip_TCHW)
    shown = frames_shown(num_frames, max_frames)
    zoom = max(1, math.ceil(128 / min(prediction.clip_TCHW.shape[-2:])))
    rows = sheet_rows(prediction, shown, zoom)
    height, width = rows[0][2].shape[-2:]

    text = min(max(height / 150, 1.0), 1.5)  # text grows with the panels
    gap, label_width, line = 6, round(215 * text), round(19 * text)
    total_width = label_width + len(shown) * (width + gap)
    titles = textwrap.wrap(title, int(total_width / (11 * text)))
    footer = textwrap.wrap(
        "Predictions are the model's own, on masked patches; visible patches are left out, not filled in "
        "from the input. Codes right: the share of masked patches whose code is predicted rightly.",
        int(total_width / (6.5 * text)),
    )
    top = line * (len(titles) + 1) + 12
    tops = [top + row * (height + gap) + (line if row > 2 else 0) for row in range(len(rows))]
    total_height = tops[-1] + height + line * (len(footer) + 1)
    canvas_CHW = torch.ones(3, total_height, total_width)
    for y, (_, _, frames_TCHW) in zip(tops, rows, strict=True):
        for column, frame_CHW in enumerate(frames_TCHW):
            x = label_width + column * (width + gap)
            canvas_CHW[:, y : y + height, x : x + width] = frame_CHW

    dpi = 128  # a power of two divides exactly: a pixel of the canvas is a pixel of the PNG
    figure = Figure(figsize=(total_width / dpi, total_height / dpi), dpi=dpi)
    figure.figimage((canvas_CHW * 255).round().byte().permute(1, 2, 0).numpy())

    def write(x: float, y: float, words: str, ha: str = "center", va: str = "center", bold: float = 0) -> None:
        figure.text(
            x / total_width,
            1 - y / total_height,
            words,
            ha=ha,
            va=va,
            size=(bold or 6.7) * text,
            weight="bold" if bold else "normal",
            color=INK if bold else MUTED,
            parse_math=False,
        )

    write(8, 8, "\n".join(titles), ha="left", va="top", bold=9.5)
    write(8, total_height - 8, "\n".join(footer), ha="left", va="bottom")
    for y, (name, description, _) in zip(tops, rows, strict=True):
        write(8, y + height / 2 - 4, name, ha="left", va="bottom", bold=8.6)
        write(8, y + height / 2 + 4, description, ha="left", va="top")
    for column, t in enumerate(shown):
        centre = label_width + column * (width + gap) + width / 2
        write(centre, tops[0] - line / 2, f"frame {t + 1}")
        if masked_N.any():
            right = prediction.agreement_TN[t][masked_N].float().mean()
            write(centre, tops[2] + height + line / 2 + 1, f"{right:.0%} of codes right")
        if t == num_frames - 1:
            for y in tops[3:]:
                write(centre, y + height / 2, "last frame:\nno next one")
    _save(figure, path)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """A centred running mean over `window` values, over fewer at both ends: it lags behind nothing."""
    window = min(window, len(values))
    ones = np.ones(window)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def loss_curves(rows: list[dict[str, Any]], path_or_figure: Path | str | Figure) -> None:
    """Draws the losses by part, the features' health and the speed against the step, one small picture each.

    Args:
        rows: the lines of log.jsonl. A key may be absent. Of two rows of one step, as a resume leaves
            them, the later counts.
        path_or_figure: a file to write, or a figure to draw into.
    """
    figure = path_or_figure if isinstance(path_or_figure, Figure) else Figure(dpi=150)
    found = []
    for key, label, smoothed in CURVES:
        by_step = {row["step"]: row[key] for row in rows if "step" in row and row.get(key) is not None}
        points = np.array(sorted((s, v) for s, v in by_step.items() if math.isfinite(v)))
        if len(points):
            found.append((label, smoothed, points))
    num_lines = max(1, math.ceil(len(found) / 3))
    figure.set_size_inches(10.5, 2.3 * num_lines + 0.4)
    figure.set_layout_engine("constrained")
    if not found:
        figure.text(0.5, 0.5, "nothing logged yet", ha="center", va="center", color=MUTED)
    for index, (label, smoothed, points) in enumerate(found):
        axes = figure.add_subplot(num_lines, min(3, len(found)), index + 1)
        steps, values = points.T
        window = len(values) // 25 if smoothed else 1
        if window >= 3:
            axes.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.8)
            axes.plot(steps, smooth(values, window), color=BLUE, linewidth=1.8)
        else:
            axes.plot(steps, values, color=BLUE, linewidth=1.5, marker="o" if len(values) < 3 else None)
        axes.set_title(label, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("step", fontsize=9, color=MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        plain_axes(axes)
    if not isinstance(path_or_figure, Figure):
        _save(figure, path_or_figure)


def confusion_picture(confusion: Tensor, classes: list[str], path: Path | str, *, title: str) -> None:
    """Draws a confusion matrix as a PNG; each row is divided by its sum, an empty row stays zero.

    Args:
        confusion: counts (K, K), row = true class, column = predicted class; written in for K <= 20.
        classes: the K names.

    Raises:
        UserError: a matrix that is not K by K.
    """
    num_classes = len(classes)
    if tuple(confusion.shape) != (num_classes, num_classes):
        raise UserError(f"The confusion matrix has shape {tuple(confusion.shape)}, for {num_classes} class names.")
    shares = confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    side = min(max(0.42 * num_classes, 3.5), 12)
    figure = Figure(figsize=(side + 2, side + 1.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares.float().numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    every = math.ceil(num_classes / 40)
    ticks = list(range(0, num_classes, every))
    names = [shorten(classes[k], 26) for k in ticks]
    axes.set_xticks(ticks, names, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=8, parse_math=False)
    if num_classes <= 20:
        for row, column in confusion.nonzero().tolist():
            colour = "white" if shares[row, column] > 0.55 else INK
            count = f"{confusion[row, column].item():g}"
            axes.text(column, row, count, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xlabel("predicted" + (f" (one name in {every} is written)" if every > 1 else ""), color=MUTED)
    axes.set_ylabel("true", color=MUTED)
    axes.set_title(title, loc="left", fontsize=11, color=INK, parse_math=False)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.6)
    _save(figure, path)


def shorten(name: str, length: int) -> str:
    """The name, its end cut off and marked where it is longer than `length`."""
    return name if len(name) <= length else name[: length - 1] + "…"


def plain_axes(axes: Any) -> None:
    """Axes without a box, in muted grey, behind what is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b8c0c8")
    axes.tick_params(labelsize=9, colors=MUTED)
    axes.set_axisbelow(True)


def _save(figure: Figure, path: Path | str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=figure.dpi, facecolor="white")
