"""The page of a run, finished or not: progress, health, curves, pictures and cost."""

from __future__ import annotations

import logging
import statistics
from html import escape
from pathlib import Path
from typing import Any

from mam2 import cost
from mam2.config import UserError, to_json
from mam2.data.catalog import read_catalog
from mam2.data.loader import steps_per_epoch
from mam2.losses import BASELINE
from mam2.pictures.charts import SMOOTHED, curves_of
from mam2.pictures.page import command_line, video_title
from mam2.pictures.prediction import Prediction
from mam2.pictures.score_page import write_report
from mam2.train import checkpoint
from mam2.train.finetune import Finetune
from mam2.train.logs import COLLAPSED_STD, LEARNED_NOTHING
from mam2.train.pretrain import Pretrain
from mam2.train.run import read_log, read_run
from mam2.trained import open_model
from mam2.use.hidden_patches import predict_middle
from mam2.use.show import config_of_run

log = logging.getLogger("mam2")
LAST = 20
"""Lines of the log that the health is judged by."""


def write_run_page(run: str | Path, out: str | Path | None = None, *, video: str | Path = "") -> Path:
    """Writes the page of a pre-training or fine-tuning, finished or not, into one HTML file, and returns its path.

    Args:
        run: folder of the run.
        out: the file; report.html in the folder by default.
        video: video for the predictions of a pre-training that has saved; by default one of its own, if present.

    Raises:
        UserError: no run's folder, or a damaged one.
    """
    folder = Path(run)
    record = read_run(folder)
    config = config_of_run(folder)
    log_file = folder / "log.jsonl"
    rows = read_log(log_file) if log_file.exists() else []
    num_steps = config.loop.duration.steps(steps_per_epoch(int(record["num_videos"]), config.loop.batch_size))
    done = max((row["step"] for row in rows), default=0)
    file = Path(out or folder / "report.html")
    words = [f"Step {done:,} of {num_steps:,}.", *health(rows, batch_size=config.loop.batch_size * config.data.repeats)]
    write_report(
        file,
        title=f"{'Pre-training' if isinstance(config, Pretrain) else 'Fine-tuning'}: {folder.name}",
        summary_html="".join(f"<p>{escape(line)}</p>" for line in words),
        scores=[],
        charts=[("Curves", SMOOTHED, curves)] if (curves := curves_of(rows)) else [],
        sheets=sheets_of(config, folder, video),
        facts=facts(folder, record, config, rows, done=done, num_steps=num_steps),
        commands=next_commands(folder, config),
        chance=0.0,
    )
    return file


def health(rows: list[dict[str, Any]], *, batch_size: int) -> list[str]:
    """The health of a run by its log, in sentences with advice."""
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
    for name in sorted({key.removesuffix(BASELINE) for row in last for key in row if key.endswith(BASELINE)}):
        ratio = statistics.fmean(row[name] / max(row[name + BASELINE], 1e-12) for row in last if name + BASELINE in row)
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


def sheets_of(config: Pretrain | Finetune, folder: Path, video: str | Path) -> list[tuple[str, Prediction]]:
    """The name of a video and a pre-training's prediction for it; nothing if nothing can be drawn."""
    if not isinstance(config, Pretrain) or not checkpoint.checkpoints(folder):
        return []
    try:
        path = video or read_catalog(config.data.listing, labelled=False).items[0].path
        return [(video_title(path), predict_middle(open_model(folder, whole=True), path, seed=0))]
    except UserError as error:  # the videos have moved: a page without a picture is one
        if video:
            raise
        log.warning(f"No picture: {error}")
        return []


def next_commands(folder: Path, config: Pretrain | Finetune) -> list[str]:
    """Command lines that use a finished run."""
    if isinstance(config, Pretrain):
        tuned = f"{folder}_tuned"
        return [
            command_line(["finetune", "finetune_tiny"], {"init": folder, "data.root": "LABELLED", "out": tuned}),
            command_line(["show", folder, "VIDEO"], {"out": "sheet.png"}),
            command_line(["embed", folder, "VIDEOS"], {"out": "features.parquet"}),
        ]
    along = {"out": "labels.csv", "window": "2 s", "timeline": "timeline.html"}
    return [
        command_line(["evaluate", folder], {"data.root": "TEST"}),
        command_line(["predict", folder, "VIDEOS"], along),
    ]


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
    loop = config.loop
    encoder = config.encoder
    found = {
        "run": str(folder),
        "videos": f"{record['num_videos']:,} in {config.data.root}",
        "encoder": f"width {encoder.width}, {encoder.depth} blocks, {encoder.attention} attention",
        "clips": f"{encoder.frames} frames of {encoder.size}²",
        "length": f"{loop.duration}, batches of {loop.batch_size}",
        "seed": str(loop.seed),
        "this page again": command_line(["report", folder], {}),
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
