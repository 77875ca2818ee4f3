"""The page of `mam2 predict --timeline`: the scores of labels along videos, above frames of them.

B windows in the order of time, K labels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mam2.config import UserError, printable
from mam2.data.labels import LabelKind
from mam2.data.video.open import open_video
from mam2.pictures.hits import check_page, clock, moving
from mam2.pictures.page import write_html

MAX_VIDEOS = 100
MAX_LABELS = 8  # shown of a video
MAX_COLUMNS = 1000  # of a chart; of more windows, neighbours are drawn together
NUM_FRAMES = 8
SHORT_SIDE = 96  # pixels
WIDTH, HEIGHT = 1000, 100  # of a chart, in units of its own
COLORS = (
    *("#1f6fb4", "#d9822b", "#2a9d6f", "#b5468f", "#7a5cc2", "#c23b3b", "#5b8a1c", "#1596a8"),
    *("#a0722a", "#5a6b7b"),
)
GREY = "#c3cad1"
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
"""Seconds between marks of the axis of time."""


@dataclass(frozen=True, kw_only=True)
class Track:
    """The scores along a video.

    Attributes:
        path: of the video.
        spans: start and end of each window, seconds.
        score_BK: float32.
    """

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
    """Writes one HTML file that holds its pictures and has no links or scripts: it opens without a server.

    Args:
        file: to write.
        tracks: one for each video; the first MAX_VIDEOS are shown.
        paths: of all the videos.
        classes: the K names.
        kind: of the labels: probabilities, or numbers.
        about: a line of plain text on what was done.
        facts, commands: see `write_html`.

    Raises:
        UserError: another ending than .html.
    """
    check_page(file)
    color_of = dict[int, str]()
    videos = [_shown(track, classes, kind, color_of) for track in itertools.islice(tracks, MAX_VIDEOS)]
    if len(paths) > len(videos):
        about += f" The first {len(videos)} of {len(paths)} videos."
    values = {"about": printable(about), "kind": kind, "videos": videos, "width": WIDTH, "height": HEIGHT}
    write_html(file, "timeline", values, title=title_of(paths), facts=facts, commands=commands)


def title_of(paths: Sequence[str]) -> str:
    """The page's title: the names of the first videos, and how many others there are."""
    names = [Path(path).name for path in paths[:3]]
    others = len(paths) - len(names)
    return f"Labels along {', '.join(names)}" + (f" and {others} other{'s' if others > 1 else ''}" if others else "")


def _shown(track: Track, classes: Sequence[str], kind: LabelKind, color_of: dict[int, str]) -> dict[str, object]:
    """What the template shows of a video; `color_of` remembers the labels' colours from one to the next."""
    seconds = max(end for _, end in track.spans)
    columns = columns_of(track.spans)
    numbers = labels_shown(track.score_BK, columns, kind)
    for number in numbers:
        color_of.setdefault(number, COLORS[len(color_of) % len(COLORS)])
    low, high = (track.score_BK.min().item(), track.score_BK.max().item()) if kind == "regression" else (0.0, 1.0)
    every = -(-len(columns) // MAX_COLUMNS)
    columns = [(some[0][0], some[-1][1]) for some in (columns[i : i + every] for i in range(0, len(columns), every))]
    drawn_BK = torch.stack([some.amax(dim=0) for some in track.score_BK.split(every)])
    rows = []
    for number in numbers:
        score_B = track.score_BK[:, number]
        peak = int(score_B.argmax())
        rows.append(
            {
                "name": printable(classes[number]),
                "color": color_of[number],
                "words": f"{low:.4g} to {high:.4g}" if kind == "regression" else f"up to {score_B[peak].item():.2f}",
                "when": f"highest at {clock(track.spans[peak][0])} to {clock(track.spans[peak][1])}",
                "boxes": boxes_of(columns, drawn_BK[:, number], seconds=seconds, low=low, high=high),
            }
        )
    named = {number: (printable(classes[number]), color_of[number]) for number in numbers}
    return {
        "name": printable(Path(track.path).name),
        "path": printable(track.path),
        "length": clock(seconds),
        "num_windows": len(track.spans),
        "every": every,
        "best": stretches_of(columns, drawn_BK.argmax(dim=1).tolist(), named, seconds) if kind == "classes" else [],
        "rows": rows,
        "num_others": track.score_BK.shape[1] - len(rows),
        "ticks": ticks(seconds),
        "frames": film(track.path, seconds=seconds),
    }


def columns_of(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """From when to when each window is drawn: neighbours that overlap share that time."""
    middles = [(start + end) / 2 for (_, end), (start, _) in itertools.pairwise(spans)]
    borders = [-math.inf, *middles, math.inf]
    return [
        (max(start, left), min(end, right))
        for (start, end), (left, right) in zip(spans, itertools.pairwise(borders), strict=True)
    ]


def labels_shown(score_BK: Tensor, columns: Sequence[tuple[float, float]], kind: LabelKind) -> list[int]:
    """The numbers of the labels to show, at most MAX_LABELS: first those that are the most probable for the longest,
    where a window has one; then those with the highest scores."""
    seconds_K = torch.zeros(score_BK.shape[1])
    if kind == "classes":
        seconds_B = torch.tensor([end - start for start, end in columns], dtype=torch.float32)
        seconds_K.index_add_(0, score_BK.argmax(dim=1), seconds_B)
    peak_K = score_BK.amax(dim=0)
    order = sorted(range(score_BK.shape[1]), key=lambda k: (-seconds_K[k].item(), -peak_K[k].item()))
    return order[:MAX_LABELS]


def boxes_of(
    columns: Sequence[tuple[float, float]], score_B: Tensor, *, seconds: float, low: float, high: float
) -> list[tuple[float, float, float, float]]:
    """The boxes of a chart: x, y, width and height; one unit high at least, which tells a low score from none."""
    boxes = []
    for (start, end), score in zip(columns, score_B.tolist(), strict=True):
        share = (score - low) / (high - low) if high > low else 0.5
        tall = max(1.0, share * HEIGHT)
        boxes.append((_x(start, seconds), round(HEIGHT - tall, 1), _x(end - start, seconds), round(tall, 1)))
    return boxes


def stretches_of(
    columns: Sequence[tuple[float, float]], best: Sequence[int], named: Mapping[int, tuple[str, str]], seconds: float
) -> list[tuple[float, float, str, str]]:
    """The stretches of the most probable label: x, width, colour and words; grey where the label is not shown."""
    stretches: list[tuple[int, float, float]] = []
    for number, (start, end) in zip(best, columns, strict=True):
        if stretches and stretches[-1][0] == number and stretches[-1][2] >= start:
            stretches[-1] = (number, stretches[-1][1], end)
        else:
            stretches.append((number, start, end))
    found = []
    for number, start, end in stretches:
        name, color = named.get(number, ("another label", GREY))
        found.append((_x(start, seconds), _x(end - start, seconds), color, f"{name}, {clock(start)} to {clock(end)}"))
    return found


def _x(time: float, seconds: float) -> float:
    return round(time / seconds * WIDTH, 2)


def ticks(seconds: float) -> list[tuple[float, str]]:
    """Marks of the axis of time, five at most: the place in percent, and the time."""
    step = next((step for step in TICKS if seconds / step <= 4), seconds / 4)
    times = [number * step for number in range(int(seconds / step) + 1)]
    return [(round(100 * time / seconds, 2), clock(time) if step < 1 else clock(time)[:-2]) for time in times]


def film(path: str, *, seconds: float) -> list[str]:
    """Frames of a video, evenly spaced, as data: addresses; none where it can't be decoded any more."""
    times = [(number + 0.5) / NUM_FRAMES * seconds for number in range(NUM_FRAMES)]
    try:
        with open_video(path, short_side=SHORT_SIDE) as video:
            last = video.num_frames - video.num_missing - 1
            frames_TCHW = video.frames([min(last, video.frame_at(time)) for time in times])
    except (UserError, OSError):
        return []
    return [moving(frame_CHW[None], seconds=1) for frame_CHW in frames_TCHW]
