"""The parts of the demo's page as HTML: predictions, class probabilities along a video, windows that are alike."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch
from markupsafe import Markup, escape
from torch import Tensor

from mam2.config import printable
from mam2.data.labels import LabelKind
from mam2.pictures.canvas import FrameRow, zoom_to
from mam2.pictures.hits import Card, clock, moving, shown
from mam2.pictures.prediction import FPS, Prediction, footer, prediction_rows, sheet_of
from mam2.use.sliding_windows import VideoVectors

SHORT_SIDE = 160  # pixels of a card's frames, at least
MAX_CLASSES = 6  # with bars
CSS = """
.mam2 { overflow-wrap: anywhere; }
.mam2 h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .4rem; }
.mam2 h2 { font-size: 1.2rem; margin: .6rem 0; }
.mam2 h3 { font-size: 1rem; margin: .8rem 0 .4rem; }
.mam2 p { margin: .4rem 0; }
.mam2 ul { padding-left: 1.2rem; list-style: disc; }
.mam2 summary { cursor: pointer; margin: .6rem 0; }
.mam2 .small, .mam2 figcaption { opacity: .8; font-size: .88rem; line-height: 1.4; }
.mam2 .cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 1rem; }
.mam2 figure { margin: 0; }
.mam2 figure img { width: 100%; border-radius: 4px; display: block; margin: 0 0 .3rem; }
.mam2 .wide { overflow-x: auto; }
.mam2 .wide img { max-width: none; }
.mam2 .problem { border-left: 4px solid #d9822b; background: var(--background-fill-secondary); padding: .6rem .8rem; }
.mam2 .timeline { display: grid; grid-template-columns: minmax(5rem, 12rem) 4.5rem 1fr; gap: .5rem .8rem;
                  align-items: end; }
.mam2 .mean { text-align: right; font-variant-numeric: tabular-nums; }
.mam2 .strip { display: flex; height: 2.6rem; gap: 1px; background: var(--background-fill-secondary); }
.mam2 .strip i { flex: 1; display: flex; align-items: end; }
.mam2 .strip b { flex: 1; background: #1f6fb4; }
.mam2 .axis { grid-column: 3; display: flex; justify-content: space-between; font-size: .88rem; }
.mam2 table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
.mam2 th, .mam2 td { padding: .2rem .7rem .2rem 0; text-align: right; white-space: nowrap; }
@media (max-width: 640px) {
  .mam2 .timeline { grid-template-columns: 1fr auto; }
  .mam2 .strip, .mam2 .axis { grid-column: 1 / -1; }
}
"""


def part(name: str, *values: object) -> str:
    """A macro of the template, with its values."""
    template = Path(__file__).with_name("demo.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    macro: Any = getattr(environment.from_string(template).module, name)
    return f'<div class="mam2">{macro(*values)}</div>'


def without_folder(page: str, path: str) -> str:
    """HTML in which a file is named without the folder that it lies in."""
    return page.replace(str(escape(printable(f"{os.path.dirname(path)}{os.sep}"))), "")


def header(title: str, about: str) -> str:
    """The head of the page."""
    return part("header", printable(title), printable(about))


def hint(*, can_choose: bool) -> str:
    """What stands on the page before there is a video."""
    return part("hint", can_choose)


def problem(words: str) -> str:
    """What stands in place of a part that can't be shown."""
    return part("problem", printable(words))


def missing(lines: Sequence[str]) -> str:
    """What the page can't show, and what would show it."""
    marked = [Markup(re.sub("`(.*?)`", r"<code>\1</code>", str(escape(printable(line))))) for line in lines]
    return part("missing", marked) if lines else ""


def predictions(prediction: Prediction, *, title: str) -> str:
    """The rows of a contact sheet as moving pictures; and the sheet, behind a click."""
    rows = prediction_rows(prediction, zoom_to(prediction.clip_TCHW, SHORT_SIDE))
    num_frames = len(prediction.clip_TCHW)
    cards = [
        {"picture": _moving(row, num_frames), "problem": "", "name": row.name, "words": row.description, "small": ""}
        for row in rows
    ]
    about = [f"The clip is from the middle of the video, shown at {FPS} frames per second.", *footer(prediction)]
    if prediction.agreement_TN is not None and prediction.masked_TN.any():
        share = prediction.agreement_TN[prediction.masked_TN].float().mean().item()
        about.append(f"Codes right in this clip: {share:.1%}.")
    sheet = moving(sheet_of(prediction, title=title).pixels()[None], seconds=1, quality=80)
    masked = bool(prediction.masked_TN.any())
    heading = "What the model sees, and what it predicts" if masked else "What the encoder attends to"
    return part("cards", heading, [("", cards)], [printable(words) for words in about], sheet)


def _moving(row: FrameRow, num_frames: int) -> str:
    """A row's frames; where the last one has none, as for motion, an empty one keeps it in step with the others."""
    empty_TCHW = torch.full((num_frames - len(row.frames_TCHW), *row.frames_TCHW.shape[1:]), 0.9)
    frames_TCHW = torch.cat([row.frames_TCHW, empty_TCHW])
    return moving((frames_TCHW.clamp(0, 1) * 255).round().byte(), seconds=1 / FPS, quality=85)


def neighbours(found: Sequence[tuple[str, Sequence[Card]]], *, about: str) -> str:
    """Rows of windows, moving, with a name for each row."""
    rows = [(name, [_card(card) for card in cards]) for name, cards in found]
    return part("cards", "Windows that are most like it", rows, [printable(about)], "")


def _card(card: Card) -> dict[str, str]:
    seen = shown(card)
    return {
        "picture": seen["picture"],
        "problem": seen["problem"].replace(f"{printable(os.path.dirname(card.path))}{os.sep}", ""),
        "name": seen["words"] or seen["when"],
        "words": seen["name"],
        "small": seen["when"] if seen["words"] else "",
    }


def timeline(line: VideoVectors, classes: Sequence[str], kind: LabelKind) -> str:
    """Bars for the classes that are most probable somewhere, and a table of all numbers."""
    spans = [(clock(window.start), clock(window.end)) for window in line.windows]
    mean_K = line.vector_BF.mean(dim=0)
    names = [printable(name) for name in classes]
    if kind == "regression":
        about = [f"Predicted for the whole video: {mean_K[0].item():.4g}, the mean of its windows.", *_about(line)]
        rows = [[*span, f"{score:.4g}"] for span, [score] in zip(spans, line.vector_BF.tolist(), strict=True)]
        return part("timeline", "The number along the video", [], "", "", about, ["from", "to", "number"], rows)
    order = _most_probable(line.vector_BF)
    bars = [(names[k], f"{mean_K[k].item():.1%}", (100 * line.vector_BF[:, k]).tolist()) for k in order[:MAX_CLASSES]]
    about = ["The height of a bar is the probability in that window, 0 to 100%; the number is the mean of all windows."]
    if len(names) > len(bars):
        about.append(f"Of {len(names)} classes, the {len(bars)} that are most probable in any window.")
    if kind == "multilabel":
        about.append("A video can have several classes, so the probabilities do not sum to 100%.")
    rows = [
        [*span, *(f"{row[k]:.1%}" for k in order)] for span, row in zip(spans, line.vector_BF.tolist(), strict=True)
    ]
    columns = ["from", "to", *(names[k] for k in order)]
    start, end = spans[0][0], spans[-1][1]
    return part("timeline", "Classes along the video", bars, start, end, [*about, *_about(line)], columns, rows)


def _most_probable(scores_WK: Tensor) -> list[int]:
    """The classes: first those that are most probable somewhere, by their mean; then the others, likewise."""
    mean_K, peak_K = scores_WK.mean(dim=0), scores_WK.max(dim=0).values
    by_peak = peak_K.argsort(descending=True, stable=True).tolist()
    first, rest = by_peak[:MAX_CLASSES], by_peak[MAX_CLASSES:]
    return [k for some in (first, rest) for k in sorted(some, key=lambda k: -mean_K[k].item())]


def _about(line: VideoVectors) -> list[str]:
    """What was looked at, and what was left out."""
    first = line.windows[0]
    words = [f"Each window lasts {first.end - first.start:.2g} seconds."]
    if line.is_short:
        words = ["The video is shorter than a clip of the training: it is one window, with its frames closer together."]
    if line.num_windows > len(line.windows) and not line.problem:
        words.append(f"{len(line.windows)} of its {line.num_windows} windows were looked at, spread evenly.")
    return words + ([f"Left out: {printable(line.problem)}"] if line.problem else [])
