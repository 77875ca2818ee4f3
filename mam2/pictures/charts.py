"""Charts: loss curves and confusion matrices."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup
from torch import Tensor

from mam2.config import UserError, printable
from mam2.files import written_whole
from mam2.losses import BASELINE
from mam2.pictures.canvas import BLUE, INK, MUTED, ORANGE

COLORS = (
    *("#1f6fb4", "#d9822b", "#2a9d6f", "#b5468f", "#7a5cc2", "#c23b3b", "#5b8a1c", "#1596a8"),
    *("#a0722a", "#5a6b7b"),
)
"""Colours of series."""

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

SMOOTHED = "Dark: running mean. Pale: every logged step."
"""Caption for the curves of a long run."""


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """A centred running mean over `window` values, over fewer at both ends: it lags behind nothing."""
    window = min(window, len(values))
    ones = np.ones(window)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def curves_of(rows: list[dict[str, Any]]) -> list[go.Figure]:
    """Losses by part, the features' health and the speed against the step, a chart each, of the lines of log.jsonl."""
    found = []
    for key, title, smoothed in CURVES:
        if not (points := points_of(rows, key)):
            continue
        figure = chart(title)
        none = points_of(rows, key + BASELINE)
        steps, values = zip(*points, strict=True)
        window = len(values) // 25 if smoothed else 1
        if window >= 3:
            add_line(figure, points, name="every step logged", color=BLUE, opacity=0.25)
            points = list(zip(steps, smooth(np.array(values), window).tolist(), strict=True))
        add_line(figure, points, name="of this model", color=BLUE, in_legend=bool(none))
        if none:
            words = f"of predicting no {key}"
            add_line(figure, none, name=words, color=ORANGE, dash="dot", in_legend=True)
            figure.update_layout(margin_t=78, height=300)
        found.append(figure)
    return found


def chart(title: str, *, below: str = "step") -> go.Figure:
    """An empty chart for a page, wide or narrow: its texts keep their size."""
    figure = go.Figure(layout={"title": {"text": title, "x": 0, "y": 0.97, "font": {"size": 15}}})
    figure.update_layout(template="plotly_white", height=260, font={"size": 14, "color": INK}, showlegend=True)
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"})
    figure.update_layout(margin={"l": 10, "r": 15, "t": 45, "b": 10})
    figure.update_xaxes(title={"text": below, "standoff": 5}, nticks=5)
    figure.update_yaxes(nticks=6)
    return figure


def figure_html(figure: go.Figure) -> Markup:
    """A figure in a page that holds plotly's script."""
    settings = {"responsive": True, "displayModeBar": False}
    return Markup(figure.to_html(full_html=False, include_plotlyjs=False, config=settings))


def add_line(
    figure: go.Figure,
    points: list[tuple[float, float]],
    *,
    name: str,
    color: str,
    opacity: float = 1.0,
    dash: str = "solid",
    in_legend: bool = False,
) -> None:
    """Adds a curve of (x, y)."""
    x, y = zip(*points, strict=True)
    mode = "lines" if len(points) > 2 else "lines+markers"
    line = {"color": color, "width": 1.8, "dash": dash}
    figure.add_trace(go.Scatter(x=x, y=y, mode=mode, name=name, line=line, opacity=opacity, showlegend=in_legend))


def points_of(rows: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of a key of the log, sorted; of two lines of one step, the later counts."""
    found = {row["step"]: row[key] for row in rows if "step" in row and isinstance(row.get(key), int | float)}
    return sorted((step, value) for step, value in found.items() if math.isfinite(value))


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
    from matplotlib.figure import Figure  # it takes a third of a second

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
