"""Scores of labels along videos: a figure of each video, and the page of `mam2 predict --timeline`.

B windows in the order of time, K labels.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import plotly.graph_objects as go
import torch
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots
from torch import Tensor

from mam2.config import UserError, printable
from mam2.data.labels import LabelKind
from mam2.data.video.open import open_video
from mam2.pictures.canvas import INK
from mam2.pictures.charts import COLORS, figure_html, shorten
from mam2.pictures.hits import check_page, clock, data_address, webp
from mam2.pictures.page import write_html

MAX_VIDEOS = 100
MAX_LABELS = 8  # shown per video
MAX_COLUMNS = 1000  # of a figure; of more windows, neighbours are drawn together
NUM_FRAMES = 8
FILM_SHORT_SIDE = 96  # pixels
GREY = "#c3cad1"


@dataclass(frozen=True, kw_only=True)
class Track:
    """The scores along a video: start and end of each window in seconds, and probabilities or numbers, float32."""

    path: str
    spans: Sequence[tuple[float, float]]
    score_BK: Tensor


def write_timeline(
    file: Path,
    tracks: Iterable[Track],
    *,
    paths: Sequence[str],
    classes: Sequence[str],
    kind: LabelKind,
    about: str,
    facts: Mapping[str, str],
    commands: Sequence[str],
) -> None:
    """Writes one HTML file with its pictures and scripts, without links: it opens without a server.

    Args:
        tracks: scores, one for each video; the first MAX_VIDEOS are shown.
        paths: paths of all videos.
        classes: the K names.
        about: a line of plain text on the source of the scores.
        facts, commands: see `write_html`.

    Raises:
        UserError: another ending than .html.
    """
    check_page(file)
    color_of = dict[int, str]()
    videos = [_section(track, classes, kind, color_of) for track in itertools.islice(tracks, MAX_VIDEOS)]
    if len(paths) > len(videos):
        about += f" The first {len(videos)} of {len(paths)} videos."
    values = {"about": printable(about), "kind": kind, "videos": videos, "plotly": Markup(get_plotlyjs())}
    write_html(file, "timeline", values, title=title_of(paths), facts=facts, commands=commands)


def title_of(paths: Sequence[str]) -> str:
    """The page's title: the names of the first videos, and how many others there are."""
    names = [Path(path).name for path in paths[:3]]
    others = len(paths) - len(names)
    return f"Labels along {', '.join(names)}" + (f" and {others} other{'s' if others > 1 else ''}" if others else "")


def _section(track: Track, classes: Sequence[str], kind: LabelKind, color_of: dict[int, str]) -> dict[str, object]:
    """The template's values for one video."""
    seconds = max(end for _, end in track.spans)
    figure = scores_figure(track.spans, track.score_BK, classes, kind, color_of)
    return {
        "name": printable(Path(track.path).name),
        "path": printable(track.path),
        "length": clock(seconds),
        "num_windows": len(track.spans),
        "every": windows_per_column(len(track.spans)),
        "num_others": max(0, len(classes) - MAX_LABELS),
        "frames": film(track.path, seconds=seconds),
        "figure": figure_html(figure),
    }


def scores_figure(
    spans: Sequence[tuple[float, float]],
    score_BK: Tensor,
    classes: Sequence[str],
    kind: LabelKind,
    color_of: dict[int, str],
) -> go.Figure:
    """Scores along a video: a strip of the most probable label, and a chart for each of up to MAX_LABELS labels.

    `color_of` holds the colours of the labels for all figures of a page; new labels are added to it.
    """
    columns = columns_of(spans)
    labels = labels_shown(score_BK, columns, kind)
    for label in labels:
        color_of.setdefault(label, COLORS[len(color_of) % len(COLORS)])
    every = windows_per_column(len(columns))
    groups = [columns[i : i + every] for i in range(0, len(columns), every)]
    columns = [(group[0][0], group[-1][1]) for group in groups]
    drawn_BK = torch.stack([group.amax(dim=0) for group in score_BK.split(every)])
    names = [html.escape(shorten(name, 32)) for name in classes]  # plotly reads tags
    charts = []
    if kind == "classes":
        best = drawn_BK.argmax(dim=1).tolist()
        strip = _bars(columns, [1.0] * len(best), [color_of[k] if k in labels else GREY for k in best])
        charts.append(("Most probable", strip.update(hovertext=[names[k] for k in best], hoverinfo="x+text")))
    for k in labels:
        peak = int(score_BK[:, k].argmax())
        low, high = score_BK[:, k].min().item(), score_BK[peak, k].item()
        words = f"{low:.4g} to {high:.4g}" if kind == "regression" else f"up to {high:.2f} at {clock(spans[peak][0])}"
        draw = _line if kind == "regression" else _bars
        chart = draw(columns, drawn_BK[:, k].tolist(), [color_of[k]] * len(columns))
        charts.append((f"{names[k]}: {words}", chart))
    titles, traces = zip(*charts, strict=True)
    rows = len(charts)
    figure = make_subplots(rows, 1, shared_xaxes=True, vertical_spacing=0.4 / rows, subplot_titles=titles)
    figure.add_traces(traces, rows=list(range(1, rows + 1)), cols=[1] * rows)
    figure.update_layout(template="plotly_white", height=260 if kind == "regression" else 74 * rows + 60, bargap=0)
    figure.update_layout(font={"size": 14, "color": INK}, margin={"l": 0, "r": 0, "t": 30, "b": 30}, showlegend=False)
    figure.update_annotations(x=0, xanchor="left", font_size=14)
    seconds = spans[-1][1]
    clocks = "%-H:%M:%S" if seconds >= 3600 else "%-M:%S" if seconds >= 4 else "%-M:%S.%1f"
    figure.update_xaxes(range=[_date(0), _date(seconds)], nticks=5, tickformat=clocks, hoverformat="%-H:%M:%S.%1f")
    figure.update_yaxes(fixedrange=True, nticks=3, hoverformat=".4g")
    return figure if kind == "regression" else figure.update_yaxes(range=[0, 1], showticklabels=False)


def _bars(columns: Sequence[tuple[float, float]], heights: list[float], colors: list[str]) -> go.Bar:
    """A bar for each column."""
    starts = [_date(start) for start, _ in columns]
    milliseconds = [1000 * (end - start) for start, end in columns]
    marker = {"color": colors, "line_width": 0}
    return go.Bar(x=starts, y=heights, width=milliseconds, offset=0, marker=marker, hoverinfo="x+y")


def _line(columns: Sequence[tuple[float, float]], heights: list[float], colors: list[str]) -> go.Scatter:
    """A line through the middles of the columns."""
    middles = [_date((start + end) / 2) for start, end in columns]
    return go.Scatter(x=middles, y=heights, mode="lines+markers", line_color=colors[0], hoverinfo="x+y")


def _date(seconds: float) -> str:
    """A time of a video as a date of plotly's, which it shows as a clock does."""
    return (datetime(2000, 1, 1) + timedelta(seconds=seconds)).isoformat()


def windows_per_column(num_windows: int) -> int:
    """Number of neighbouring windows that are drawn as one, with the highest of their scores."""
    return math.ceil(num_windows / MAX_COLUMNS)


def columns_of(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Start and end of each window as drawn, seconds: neighbours that overlap share the time that both have."""
    middles = [(start + end) / 2 for (_, end), (start, _) in itertools.pairwise(spans)]
    borders = [-math.inf, *middles, math.inf]
    return [
        (max(start, left), min(end, right))
        for (start, end), (left, right) in zip(spans, itertools.pairwise(borders), strict=True)
    ]


def labels_shown(score_BK: Tensor, columns: Sequence[tuple[float, float]], kind: LabelKind) -> list[int]:
    """Indices of the labels to show, at most MAX_LABELS: exclusive classes by the time that they are the most probable,
    then all by their highest score."""
    seconds_K = torch.zeros(score_BK.shape[1])
    if kind == "classes":
        seconds_B = torch.tensor([end - start for start, end in columns], dtype=torch.float32)
        seconds_K.index_add_(0, score_BK.argmax(dim=1), seconds_B)
    peak_K = score_BK.amax(dim=0)
    order = sorted(range(score_BK.shape[1]), key=lambda k: (-seconds_K[k].item(), -peak_K[k].item()))
    return order[:MAX_LABELS]


def film(path: str, *, seconds: float) -> list[str]:
    """Evenly spaced frames of a video, as data: addresses; none where it can no longer be decoded."""
    times = [(number + 0.5) / NUM_FRAMES * seconds for number in range(NUM_FRAMES)]
    try:
        with open_video(path, short_side=FILM_SHORT_SIDE) as video:
            last = video.num_frames - video.num_missing - 1
            frames_TCHW = video.frames([min(last, video.frame_at(time)) for time in times])
    except (UserError, OSError):
        return []
    return [data_address(webp(frame_CHW[None], seconds=1)) for frame_CHW in frames_TCHW]
