"""Charts: loss curves and confusion matrices."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mam2.config import UserError, printable
from mam2.files import written_whole
from mam2.pictures.canvas import BLUE, INK, MUTED, ORANGE

# (key in log.jsonl, its title, whether a smoothed line is drawn over it)
CURVES = (
    ("loss", "loss, total", True),
    ("appearance", "loss, appearance", True),
    ("motion", "loss, motion", True),
    ("alignment", "loss, alignment", True),
    ("probe_ridge", "online probe, ridge, top-1", False),
    ("probe_knn", "online probe, neighbours, top-1", False),
    ("rank_me", "RankMe", False),
    ("feature_std", "standard deviation of features", False),
    ("effective_rank", "effective rank of features", False),
    ("lr", "learning rate", False),  # smoothing would round its peak off
    ("clips_per_second", "clips per second", True),
    ("data_seconds", "seconds per step waiting for data", True),
)

OF_NONE = "_of_none"
"""Ends the key of what a loss would be if none were predicted; it is drawn beside that loss."""


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """A centred running mean over `window` values, over fewer at both ends: it lags behind nothing."""
    window = min(window, len(values))
    ones = np.ones(window)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def loss_curves(rows: list[dict[str, Any]]) -> Figure:
    """Losses by part, the features' health and the speed against the step, one small chart each.

    Args:
        rows: the lines of log.jsonl. A key may be absent. Of two rows of one step, as a resume leaves them, the later
            counts.
    """
    figure = Figure(dpi=150)
    found = []
    for key, label, smoothed in CURVES:
        by_step = {row["step"]: row[key] for row in rows if "step" in row and row.get(key) is not None}
        points = np.array(sorted((s, v) for s, v in by_step.items() if math.isfinite(v)))
        if len(points):
            nones = [row[key + OF_NONE] for row in rows if math.isfinite(row.get(key + OF_NONE, math.nan))]
            found.append((label, smoothed, points, float(np.mean(nones)) if nones else None))
    num_lines = max(1, math.ceil(len(found) / 3))
    figure.set_size_inches(10.5, 2.3 * num_lines + 0.4)
    figure.set_layout_engine("constrained")
    if not found:
        figure.text(0.5, 0.5, "nothing logged yet", ha="center", va="center", color=MUTED)
    for index, (label, smoothed, points, none) in enumerate(found):
        axes = figure.add_subplot(num_lines, min(3, len(found)), index + 1)
        steps, values = points.T
        window = len(values) // 25 if smoothed else 1
        if window >= 3:
            axes.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.8)
            axes.plot(steps, smooth(values, window), color=BLUE, linewidth=1.8)
        else:
            axes.plot(steps, values, color=BLUE, linewidth=1.5, marker="o" if len(values) < 3 else None)
        if none is not None:
            axes.axhline(none, color=ORANGE, linestyle=":", linewidth=1.2)
            axes.annotate("none predicted", (0, none), color=ORANGE, fontsize=8, va="bottom")
        axes.set_title(label, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("step", fontsize=9, color=MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        plain_axes(axes)
    return figure


def confusion_picture(confusion: Tensor, classes: list[str], path: Path | str, *, title: str) -> None:
    """Draws a confusion matrix as a PNG; each row is divided by its sum, an empty row stays zero. K classes.

    Args:
        confusion: counts (K, K), row = true class, column = predicted class; their numbers are printed for K <= 20.
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
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        figure.savefig(part, format="png", dpi=figure.dpi, facecolor="white")


def shorten(name: str, length: int) -> str:
    """The name, printable, cut to `length` characters, the last of them an ellipsis, if it is longer."""
    name = printable(name)
    return name if len(name) <= length else name[: length - 1] + "…"


def plain_axes(axes: Any) -> None:
    """Removes the axes' box and draws them in muted grey, behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b8c0c8")
    axes.tick_params(labelsize=9, colors=MUTED)
    axes.set_axisbelow(True)
