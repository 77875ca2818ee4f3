"""The HTML report of scores over seeds, charts, predictions and facts, in one file; see `score_page.html.jinja`."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from torch import Tensor

from mam2.config import UserError, printable
from mam2.pictures.canvas import frames_shown, zoom_to
from mam2.pictures.charts import figure_html
from mam2.pictures.hits import data_address, webp
from mam2.pictures.page import write_html
from mam2.pictures.prediction import Prediction, footer, prediction_rows


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


def mean_and_spread(values: tuple[float, ...]) -> str:
    """Percent: `61.2 ± 0.8`, mean ± sample standard deviation of values in [0, 1]; for one, the mean."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def write_report(
    path: Path | str,
    *,
    title: str,
    summary_html: str,
    scores: list[ScoreRow],
    charts: list[tuple[str, str, list[go.Figure]]],
    sheets: list[tuple[str, Prediction]],
    facts: dict[str, str],
    commands: list[str],
    chance: float,
) -> None:
    """Writes one HTML file that contains its pictures and scripts and has no links: it opens without a server.

    Args:
        path: the file to write.
        title: plain text, as are all texts but two.
        summary_html: HTML, inserted as it is: escape whatever comes from users.
        scores: top-1 by run and seed; a table (mean ± sample standard deviation, every seed) and dots.
        charts: a heading, a line of HTML on how to read them, and the charts.
        sheets: the name of a video, and what was predicted for it.
        facts, commands: see `write_html`.
        chance: top-1 of guessing, in [0, 1].
    """
    percents = [100 * value for score in scores for value in score.values]
    low = 10 * math.floor(min([100 * chance, *percents]) / 10)
    high = max(low + 10, 10 * math.ceil(max([100 * chance, *percents]) / 10))

    def place(share: float) -> float:
        return round(100 * (100 * share - low) / (high - low), 2)

    table = [
        {
            "name": score.name,
            "top1": mean_and_spread(score.values),
            "num_seeds": len(score.values),
            "seeds": ", ".join(f"{100 * value:.1f}" for value in score.values),
            "note": score.note,
            "places": [place(value) for value in score.values],
            "mean_at": place(statistics.mean(score.values)),
        }
        for score in scores
    ]
    values = {
        "summary": Markup(summary_html),
        "scores": table,
        "chance": f"{100 * chance:.1f}",
        "chance_at": place(chance),
        "ticks": [f"{low + k * (high - low) / 4:g}" for k in range(5)],
        "plotly": Markup(get_plotlyjs()) if charts else "",
        "charts": [(heading, Markup(note), [figure_html(figure) for figure in some]) for heading, note, some in charts],
        "sheets": [_sheet(name, prediction) for name, prediction in sheets],
    }
    write_html(Path(path), "score_page", values, title=title, facts=facts, commands=commands)


def _sheet(title: str, prediction: Prediction) -> dict[str, object]:
    """The template's values for a prediction: the rows of its contact sheet, whose texts a narrow page can wrap."""
    num_frames = len(prediction.clip_TCHW)
    numbers = tuple(f"frame {t * prediction.tubelet + 1}" for t in range(num_frames))
    rows = []
    for row in prediction_rows(prediction, zoom_to(prediction.clip_TCHW, 128)):
        captions = row.captions or (numbers if row.name == "Input" else ("",) * num_frames)
        frames = [
            (_picture(row.frames_TCHW[t]), captions[t]) if t < len(row.frames_TCHW) else ("", "last frame: no next one")
            for t in frames_shown(num_frames, 8)
        ]
        legend = "" if row.legend_CHW is None else _picture(row.legend_CHW)
        rows.append({"name": row.name, "description": row.description, "legend": legend, "frames": frames})
    return {"title": printable(title), "rows": rows, "footer": [printable(words) for words in footer(prediction)]}


def _picture(frame_CHW: Tensor) -> str:
    """A frame in [0, 1] as a data: address."""
    return data_address(webp((frame_CHW.clamp(0, 1) * 255).round().byte()[None], seconds=1, quality=85))
