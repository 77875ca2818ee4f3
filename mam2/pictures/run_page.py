"""The page of a run: how far it is, whether it is healthy, its curves, pictures and cost; also while it runs."""

from __future__ import annotations

import logging
import math
import statistics
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from mam2 import __version__, cost
from mam2.config import UserError, from_json, to_json
from mam2.data.clips import catalog_of
from mam2.data.loader import steps_per_epoch
from mam2.pictures.canvas import BLUE, ORANGE
from mam2.pictures.charts import CURVES, OF_NONE
from mam2.pictures.predict import show
from mam2.pictures.report import read_log, write_report
from mam2.train import checkpoint
from mam2.train.finetune import Finetune
from mam2.train.logs import COLLAPSED_STD, LEARNED_NOTHING
from mam2.train.pretrain import Pretrain
from mam2.train.run import read_run

log = logging.getLogger("mam2")
KINDS: dict[str, type[Pretrain] | type[Finetune]] = {"pretrain": Pretrain, "finetune": Finetune}
LAST = 20
"""Lines of the log that the health is judged by."""


def write_run_page(run: str | Path, out: str | Path | None = None, *, video: str | Path = "") -> Path:
    """Writes the page of a pre-training or fine-tuning, finished or not, into one HTML file.

    Args:
        run: its folder.
        out: the file; report.html in the folder by default.
        video: what is drawn of a pre-training, once it has saved; by default one of its own videos, if they are there.

    Returns:
        The file.

    Raises:
        UserError: no run's folder, or one that is damaged.
    """
    folder = Path(run)
    record = read_run(folder)
    if record["kind"] not in KINDS:
        raise UserError(f"{folder} is a run of the kind {record['kind']!r}; accepted: {', '.join(KINDS)}.")
    config = from_json(KINDS[record["kind"]], record["config"])
    log_file = folder / "log.jsonl"
    rows = read_log(log_file) if log_file.exists() else []
    num_steps = config.loop.duration.steps(steps_per_epoch(int(record["num_videos"]), config.loop.batch_size))
    done = max((row["step"] for row in rows), default=0)
    drawn = picture(folder, config, video)
    file = Path(out or folder / "report.html")
    words = [f"Step {done:,} of {num_steps:,}.", *health(rows, batch_size=config.loop.batch_size * config.data.repeats)]
    write_report(
        file,
        title=f"{'Pre-training' if isinstance(config, Pretrain) else 'Fine-tuning'}: {folder.name}",
        summary_html="".join(f"<p>{escape(line)}</p>" for line in words) + curves_html(rows),
        scores=[],
        curves=[],
        sheets=[("Predictions for the hidden patches of a video", drawn)] if drawn else [],
        facts=facts(folder, record, config, rows, done=done, num_steps=num_steps),
        chance=0.0,
    )
    return file


def health(rows: list[dict[str, Any]], *, batch_size: int) -> list[str]:
    """What the log says of a run's health, in sentences, each with what to try."""
    trained = [row for row in rows if "loss" in row]
    if not trained:
        return ["Nothing is logged yet."]
    found = []
    last = trained[-LAST:]
    if (std := last[-1].get("feature_std", 1.0)) < COLLAPSED_STD:
        found.append(
            f"The features have collapsed: their standard deviation between clips is {std:.4f}. Lower --optim.base-lr, "
            "or, for MAM², raise --objective.alignment-ramp."
        )
    for name in sorted({key.removesuffix(OF_NONE) for row in last for key in row if key.endswith(OF_NONE)}):
        ratio = statistics.fmean(row[name] / max(row[name + OF_NONE], 1e-12) for row in last if name + OF_NONE in row)
        state = "nothing of it is learned yet" if ratio > LEARNED_NOTHING else "it is being learned"
        found.append(f"The {name} loss is {ratio:.3f} times that of predicting none: {state}.")
    looks = [row for row in rows if "probe_ridge" in row]
    if looks:
        best = max(looks, key=lambda row: row["probe_ridge"])
        found.append(
            f"Online probe: {looks[-1]['probe_ridge']:.3f} at step {looks[-1]['step']:,}; the best, "
            f"{best['probe_ridge']:.3f} at step {best['step']:,}, is kept as encoder_best.safetensors."
        )
    waits = [row["data_seconds"] * row["clips_per_second"] for row in last if row.get("clips_per_second")]
    if waits and statistics.median(waits) > 0.5 * batch_size:
        found.append("More than half of a step is waiting for videos. Raise --data.num-workers.")
    return found or ["Nothing conspicuous."]


def curves_html(rows: list[dict[str, Any]]) -> str:
    """The curves of a log as interactive charts, beside or below each other: HTML that needs no network."""
    charts: list[str] = []
    for key, title, _ in CURVES:
        if not (points := points_of(rows, key)):
            continue
        figure = go.Figure(layout={"title": {"text": title, "font": {"size": 13}}, "template": "plotly_white"})
        figure.update_layout(height=240, showlegend=False, margin={"l": 45, "r": 10, "t": 40, "b": 30})
        add_line(figure, points, name=title, line={"color": BLUE, "width": 1.5})
        if none := points_of(rows, key + OF_NONE):
            add_line(figure, none, name="of predicting none", line={"color": ORANGE, "width": 1.2, "dash": "dot"})
        settings = {"responsive": True, "displayModeBar": False}
        charts.append(figure.to_html(full_html=False, include_plotlyjs=not charts, config=settings))
    style = "display:grid;grid-template-columns:repeat(auto-fill,minmax(280px,1fr));gap:.5rem"
    cells = "".join(f'<div style="min-width:0">{chart}</div>' for chart in charts)
    return f'<h2>Curves</h2><div style="{style}">{cells}</div>' if charts else ""


def add_line(figure: go.Figure, points: list[tuple[float, float]], *, name: str, line: dict[str, Any]) -> None:
    """Adds a curve of (step, value)."""
    steps, values = zip(*points, strict=True)
    figure.add_trace(go.Scatter(x=steps, y=values, mode="lines", name=name, line=line))


def points_of(rows: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of a key of the log, sorted; of two lines of one step, the later counts."""
    found = {row["step"]: row[key] for row in rows if isinstance(row.get(key), int | float)}
    return sorted((step, value) for step, value in found.items() if math.isfinite(value))


def picture(folder: Path, config: Pretrain | Finetune, video: str | Path) -> Path | None:
    """A contact sheet of a pre-training's predictions in the run's folder; None where there is nothing to draw."""
    if not isinstance(config, Pretrain) or not checkpoint.checkpoints(folder):
        return None
    file = folder / "prediction.png"
    try:
        show(folder, video or catalog_of(config.data, labelled=False).items[0].path, file)
    except UserError as error:  # the videos have moved: a page without a picture is one
        if video:
            raise
        log.warning(f"No picture: {error}")
        return None
    return file


def facts(
    folder: Path,
    record: dict[str, Any],
    config: Pretrain | Finetune,
    rows: list[dict[str, Any]],
    *,
    done: int,
    num_steps: int,
) -> dict[str, str]:
    """Settings and costs, in words."""
    loop, encoder = config.loop, config.encoder
    found = {
        "run": str(folder),
        "videos": f"{record['num_videos']:,} in {config.data.root}",
        "encoder": f"width {encoder.width}, {encoder.depth} blocks, {encoder.attention} attention",
        "clips": f"{encoder.frames} frames of {encoder.size}²",
        "length": f"{loop.duration}, batches of {loop.batch_size}",
        "seed": str(loop.seed),
        "mam2": __version__,
    }
    speeds = [row["clips_per_second"] for row in rows if row.get("clips_per_second")]
    if speeds:
        seconds = loop.batch_size * config.data.repeats / statistics.median(speeds[1:] or speeds)
        found["speed"] = f"{statistics.median(speeds):.1f} clips per second"
        found["time so far"] = hours(seconds * done)
        found["time to come"] = hours(seconds * (num_steps - done))
    if isinstance(config, Pretrain):
        tflop = cost.remembered(config).tflop * loop.batch_size * config.data.repeats
        found["operations so far, to come"] = f"{tflop * done:,.1f}, {tflop * (num_steps - done):,.1f} TFLOP"
    if bad := max((row.get("bad_videos", 0) for row in rows), default=0):
        found["unusable videos"] = f"{bad:.0f}"
    defaults = to_json(type(config)())
    for part, fields in to_json(config).items():
        if isinstance(fields, dict) and part != "encoder":
            changed = [f"{k} {v}" for k, v in fields.items() if k != "root" and v != (defaults.get(part) or {}).get(k)]
            if changed:
                found[f"{part}, other than the default"] = ", ".join(changed)
    return found


def hours(seconds: float) -> str:
    """A length of time in the unit that fits."""
    return f"{seconds / 3600:.1f} hours" if seconds >= 5400 else f"{seconds / 60:.1f} minutes"
