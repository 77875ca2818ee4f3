"""The HTML report of a run: scores over seeds, loss curves, pictures and facts, in one file.

The pictures themselves are drawn by `mam2.pictures.canvas`; the page is laid out in `report.html.jinja`.
"""

from __future__ import annotations

import base64
import io
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from mam2.config import UserError
from mam2.files import parse_json, write_text
from mam2.pictures.canvas import BLUE, INK, MUTED, ORANGE
from mam2.pictures.charts import loss_curves, plain_axes, shorten


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One line of the report's table: `values` holds top-1 in [0, 1], one for each seed.

    Raises:
        UserError: no value, or one outside [0, 1].
    """

    name: str
    values: tuple[float, ...]
    note: str

    def __post_init__(self) -> None:
        if not self.values or not all(0 <= value <= 1 for value in self.values):
            raise UserError(
                f"The scores of {self.name!r} are {self.values}; give top-1 in [0, 1], at least one. "
                "Divide percentages by 100."
            )


def read_log(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a log.jsonl. A last line that was cut off, as a killed run leaves it, is dropped.

    Raises:
        UserError: any other line that is no JSON object.
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").rstrip().split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number < len(lines):
            raise UserError(f"{path}, line {number}, is no JSON object: {line[:60]!r}. Fix or delete that line.")
    return rows


def mean_and_spread(values: tuple[float, ...]) -> str:
    """Percent: `61.2 ± 0.8`, mean ± sample standard deviation of values in [0, 1]; for one, the mean."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def _score_dots(scores: list[ScoreRow], chance: float) -> Figure:
    """Dot plot of the scores: a row each, a dot per seed, a bar at the mean; chance as a dashed line."""
    figure = Figure(figsize=(7.5, 0.42 * len(scores) + 1.0), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for row, score in enumerate(scores):
        percent = [100 * value for value in score.values]
        axes.plot(percent, [row] * len(percent), "o", color=BLUE, alpha=0.55, markersize=8, markeredgewidth=0)
        axes.plot([statistics.mean(percent)] * 2, [row - 0.3, row + 0.3], color=INK, linewidth=2)
    axes.axvline(100 * chance, color=ORANGE, linestyle="--", linewidth=1.5)
    above = (100 * chance, 1.0)
    axes.annotate(" chance", above, xycoords=axes.get_xaxis_transform(), color=ORANGE, fontsize=9, va="bottom")
    names = [shorten(score.name, 44) for score in scores]
    axes.set_yticks(range(len(scores)), names, parse_math=False)
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.set_xlabel("top-1, % (dot: one seed; bar: mean)", fontsize=9, color=MUTED)
    axes.grid(axis="x", color="#e4e8ec")
    plain_axes(axes)
    return figure


def write_report(
    path: Path | str,
    *,
    title: str,
    summary_html: str,
    scores: list[ScoreRow],
    curves: list[tuple[str, list[dict[str, Any]]]],
    sheets: list[tuple[str, Path]],
    facts: dict[str, str],
    chance: float,
) -> None:
    """Writes one HTML file that contains its pictures and has no links or scripts: it opens without a server.

    Args:
        path: the file to write.
        title: plain text, as are all texts but the next.
        summary_html: HTML, inserted as it is: escape whatever comes from users.
        scores: top-1 by run and seed; a table (mean ± sample standard deviation, every seed) and a dot plot.
        curves: a name and the rows of a log.jsonl for each run.
        sheets: a caption and a PNG for each contact sheet or confusion matrix.
        facts: settings, machine, seconds; a table of two columns.
        chance: top-1 of guessing, in [0, 1], drawn into the dot plot.

    Raises:
        UserError: a picture that is absent or no PNG.
    """
    table = [
        {
            "name": score.name,
            "top1": mean_and_spread(score.values),
            "num_seeds": len(score.values),
            "seeds": ", ".join(f"{100 * value:.1f}" for value in score.values),
            "note": score.note,
        }
        for score in scores
    ]
    template = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(template).render(
        title=title,
        summary=Markup(summary_html),
        scores=table,
        chance=f"{100 * chance:.1f}",
        dots=_embedded(_score_dots(scores, chance)) if scores else None,
        curves=[(name, _embedded(loss_curves(rows))) for name, rows in curves],
        sheets=[(caption, _embedded(picture)) for caption, picture in sheets],
        facts=facts,
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(Path(path), page)


def _embedded(picture: Figure | Path) -> str:
    """A figure, or a PNG file, as a data: address."""
    if isinstance(picture, Figure):
        buffer = io.BytesIO()
        picture.savefig(buffer, format="png", dpi=picture.dpi, facecolor="white")
        content = buffer.getvalue()
    else:
        if picture.suffix.lower() != ".png" or not picture.is_file():
            raise UserError(f"{picture} is no picture that a report can show. Give an existing .png file.")
        content = picture.read_bytes()
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
