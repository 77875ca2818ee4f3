"""A table of finished runs: those that differ in their seeds only make a line."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mam2.config import UserError
from mam2.files import parse_json
from mam2.pictures.report import read_log
from mam2.studies.summary import interval, percent
from mam2.train.run import read_run


def compared(runs: Sequence[Path]) -> list[list[str]]:
    """The lines of the table as text, the first with the names of the columns.

    Raises:
        UserError: no run, or one that is not tested.
    """
    if not runs:
        raise UserError("Name the runs to compare: mam2 compare RUN [RUN ...].")
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        found = _result(run)
        groups.setdefault(found["same"], []).append(found)
    first = next(iter(groups.values()))
    reference = [found["top1"] for found in first]
    lines = [["run", "starts from", "seeds", "top-1", "sd", "difference", "top-5", "minutes"]]
    for group in groups.values():
        top1 = [found["top1"] for found in group]
        sd = percent(statistics.stdev(top1), None) if len(top1) > 1 else "-"
        difference = "-"
        if group is not first:
            by_seed = {found["seed"]: found["top1"] for found in first}
            pairs = [found["top1"] - by_seed[found["seed"]] for found in group if found["seed"] in by_seed]
            mean = statistics.fmean(top1) - statistics.fmean(reference)
            is_paired = len(pairs) == len(group)
            difference = percent(
                statistics.fmean(pairs) if is_paired else mean, interval(pairs) if is_paired else None, signed=True
            )
        lines.append(
            [
                group[0]["name"],
                group[0]["init"],
                ", ".join(str(found["seed"]) for found in group),
                percent(statistics.fmean(top1), None),
                sd,
                difference,
                percent(statistics.fmean(found["top5"] for found in group), None),
                f"{statistics.fmean(found['minutes'] for found in group):.1f}",
            ]
        )
    return lines


def _result(run: Path) -> dict[str, Any]:
    record = read_run(run)
    file = run / "evaluate.json"
    if record["kind"] != "finetune" or not file.exists():
        raise UserError(f"{run} is not tested. Run `mam2 evaluate {run} --data.root TEST` first.")
    report, config = parse_json(file.read_text(encoding="utf-8")), record["config"]
    init, seed = config["init"], config["loop"]["seed"]
    if "top1" not in report:
        raise UserError(f"{run} has no top-1: its labels are {report.get('labels')}. Compare runs of classes.")
    start = _pretraining(init)
    same = {**config, "init": start or init, "loop": {**config["loop"], "seed": 0}}
    clips = config["loop"]["batch_size"] * config["data"]["repeats"]
    rows = [row for row in read_log(run / "log.jsonl") if row.get("clips_per_second")]
    seconds = statistics.median(clips / row["clips_per_second"] for row in rows) * (rows[-1]["step"] + 1) if rows else 0
    return {
        "name": run.name,
        "init": init if init == "scratch" else Path(init).name or init,
        "seed": seed,
        "top1": report["top1"],
        "top5": report["top5"],
        "minutes": seconds / 60,
        "same": json.dumps(same, sort_keys=True),
    }


def _pretraining(init: str) -> Any:
    """The configuration of the pre-training but for its seed; None where `init` is no run."""
    if init == "scratch" or not (Path(init) / "run.json").exists():
        return None
    config = read_run(Path(init))["config"]
    return {**config, "loop": {**config["loop"], "seed": 0}}
