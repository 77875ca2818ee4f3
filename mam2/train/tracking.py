"""Trackers of a run's metrics: trackio, Weights & Biases, MLflow."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mam2.config import UserError
from mam2.files import flat, parse_json

TrackerName = Literal["", "trackio", "wandb", "mlflow"]
PROJECT = "mam2"


@dataclass(frozen=True)
class Tracking:
    """A tracker's run: `log(numbers, step)`, and `end()`."""

    log: Callable[[dict[str, float], int], Any]
    end: Callable[[], Any]


def begin_tracking(name: TrackerName, folder: Path) -> Tracking:
    """Begins or resumes the tracker's run of a run folder, with its name and its settings, in the project "mam2".

    Raises:
        UserError: the tracker is not installed.
    """
    try:
        tracker = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"loop.track is {name!r}, which is not installed: pip install {name}.") from error
    record = folder / "run.json"
    config = parse_json(record.read_text(encoding="utf-8"))["config"] if record.exists() else {}
    identity = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]
    if name == "mlflow":
        tracker.set_experiment(PROJECT)
        found = tracker.search_runs(
            experiment_names=[PROJECT], filter_string=f"tags.folder = '{identity}'", output_format="list"
        )
        tracker.start_run(run_id=found[0].info.run_id if found else None, run_name=folder.name)
        if not found:
            tracker.set_tag("folder", identity)
            tracker.log_params({name: str(value)[:500] for name, value in flat(config).items()})
        return Tracking(lambda numbers, step: tracker.log_metrics(numbers, step=step), tracker.end_run)
    settings: dict[str, Any] = {"project": PROJECT, "name": folder.name, "config": flat(config), "resume": "allow"}
    if name == "wandb":
        settings |= {"id": identity, "dir": str(folder)}
    tracker.init(**settings)
    return Tracking(lambda numbers, step: tracker.log(numbers, step=step), tracker.finish)
