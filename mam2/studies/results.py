"""Results of finished runs, as `mam2 compare` takes them: fine-tunings that are tested, probes, pre-trainings."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mam2 import cost
from mam2.config import RENAMED_WORDS, UserError, from_json, to_json
from mam2.data.loader import steps_per_epoch
from mam2.files import read_object
from mam2.probe.probe import Probe
from mam2.studies.budget import seconds_per_step
from mam2.train.finetune import Finetune
from mam2.train.pretrain import Pretrain
from mam2.train.run import read_log, read_run

# By the kind of labels, the columns of a test and their names in evaluate.json.
TESTED = {
    "classes": {"top-1": "top1", "top-5": "top5"},
    "multilabel": {"mAP": "map"},
    "regression": {"R²": "r2", "mean error": "mae"},
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """Figures and cost of a finished run.

    Attributes:
        run: its folder; for a probe, its file.
        kind: kind of the run, in words.
        judged: test set of its figures, in words; empty without figures.
        start: start of its encoder; for a probe, the encoder.
        settings: words that are equal for runs that differ in seeds only, also in that of their pre-training.
        seed: its own seed.
        start_seed: seed of its pre-training; None without one.
        figures: measured figures by column.
        cost: cost by column.
    """

    run: Path
    kind: str
    judged: str
    start: str
    settings: str
    seed: int
    start_seed: int | None
    figures: dict[str, float]
    cost: dict[str, float]


def read_results(run: Path) -> list[Result]:
    """The results of a folder of a fine-tuning, a pre-training or probes, or of the file of one probe.

    Raises:
        UserError: something else, or a run that is not finished or not tested.
    """
    if (run / "run.json").is_file():
        record = read_run(run)
        return [_of_finetuning(run, record) if record["kind"] == "finetune" else _of_pretraining(run, record)]
    probes = [run] if run.is_file() and run.match("probe_*.json") else sorted(run.glob("probe_*.json"))
    if not probes:
        raise UserError(
            f"{run} is no finished run: it has neither run.json nor a probe_KIND.json. Give the --out of a `mam2 "
            "pretrain`, `mam2 finetune` or `mam2 probe`."
        )
    return [_of_probe(file) for file in probes]


def _of_finetuning(run: Path, record: dict[str, Any]) -> Result:
    file = run / "evaluate.json"
    if not file.exists():
        raise UserError(f"{run} is not tested. Run `mam2 evaluate {run} --data.root TEST` first.")
    report = read_object(file, {"num_videos": int, "bad_videos": dict})
    config = from_json(Finetune, record["config"])
    kind = report.get("labels", "classes")
    labels = RENAMED_WORDS.get(kind, kind)
    figures = {column: report[name] for column, name in TESTED[labels].items() if report[name] is not None}
    # Unusable videos differ from run to run; the whole test set does not.
    judged = f"tested on {report['num_videos'] + len(report['bad_videos'])} videos"
    if "per_class" in report:
        judged += f" of {len(report['per_class'])} classes"
    return Result(
        run=run,
        kind=f"a fine-tuning on {'several labels' if labels == 'multilabel' else labels}",
        judged=judged,
        start=_name_of(config.init),
        settings=json.dumps(_without_seeds(to_json(config)), sort_keys=True),
        seed=config.loop.seed,
        start_seed=_start_of(config.init)[1],
        figures=figures,
        cost=_minutes(run, config, _log_of(run)),
    )


def _of_probe(file: Path) -> Result:
    report = read_object(file, {"config": dict, "top1": float, "per_class": dict, "num_train": int})
    config = from_json(Probe, report["config"])
    start, start_seed = _start_of(config.encoder)
    figures = {column: report[name] for column, name in TESTED["classes"].items()}
    if report["baseline"]:
        figures["untrained"] = report["baseline"]["top1"]
    return Result(
        run=file,
        kind=f"a {config.kind} probe",
        judged=f"tested on {report['num_videos']} videos of {len(report['per_class'])} classes",
        start=_name_of(config.encoder),
        settings=json.dumps({**to_json(config), "encoder": start, "seed": 0}, sort_keys=True),
        seed=config.seed,
        start_seed=start_seed,
        figures=figures,
        cost={"labelled videos": report["num_train"]},
    )


def _of_pretraining(run: Path, record: dict[str, Any]) -> Result:
    """Its losses are left out: those of different objectives can't be compared."""
    config = from_json(Pretrain, record["config"])
    rows = _log_of(run)
    per_epoch = steps_per_epoch(record["num_videos"], config.loop.batch_size)
    steps = config.loop.duration.steps(per_epoch)
    done = max((row["step"] for row in rows), default=0)
    if done < steps:
        raise UserError(
            f"{run} is at step {done} of {steps}. Wait for its end, or resume it by the same `mam2 pretrain` command."
        )
    spent: dict[str, float] = {"steps": steps, "epochs": steps / per_epoch, **_minutes(run, config, rows)}
    # Counting a teacher's operations needs its sizes, for which it may have to be downloaded.
    if not config.has_teacher or Path(config.targets.file).exists():
        spent["TFLOP"] = cost.remembered(config).tflop * config.loop.batch_size * config.data.repeats * steps
    watch = config.watch
    looks = [row for row in rows if "probe_ridge" in row]
    figures: dict[str, float] = {}
    if looks:  # the last stands first: the more looks, the higher is the best of them by chance
        for column, name in (("ridge", "probe_ridge"), ("k-NN", "probe_knn")):
            figures[f"{column}, last"] = looks[-1][name]
            figures[f"{column}, best"] = max(row[name] for row in looks)
    shots = f", {watch.shots} of a class" if watch.shots else ""
    return Result(
        run=run,
        kind="a pre-training",
        judged=f"watched on {os.path.realpath(watch.labelled)}{shots}" if looks else "",
        start=_name_of(config.init),
        settings=json.dumps(_without_seeds(to_json(config)), sort_keys=True),
        seed=config.loop.seed,
        start_seed=_start_of(config.init)[1],
        figures=figures,
        cost=spent,
    )


def _log_of(run: Path) -> list[dict[str, Any]]:
    file = run / "log.jsonl"
    return read_log(file) if file.exists() else []


def _minutes(run: Path, config: Finetune | Pretrain, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Minutes of training at its median speed, without testing; empty if nothing is logged."""
    num_clips = config.loop.batch_size * config.data.repeats
    steps = max((row["step"] for row in rows), default=0)
    return {"minutes": seconds_per_step(run, num_clips) * steps / 60} if steps else {}


def _name_of(source: str) -> str:
    return "scratch" if source in ("", "scratch") else Path(source).name


def _without_seeds(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a training without its seed, and without that of its pre-training."""
    return {**config, "init": _start_of(config["init"])[0], "loop": {**config["loop"], "seed": 0}}


def _start_of(source: str) -> tuple[Any, int | None]:
    """The pre-training of an encoder without its seed, and that seed; the source itself if no run lies there."""
    file = Path(source)
    folder = file if file.is_dir() else file.parent
    if source in ("", "scratch") or not file.exists() or not (folder / "run.json").exists():
        return source, None
    config = read_run(folder)["config"]
    return [_without_seeds(config), "encoder.safetensors" if file.is_dir() else file.name], config["loop"]["seed"]
