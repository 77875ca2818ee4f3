"""The jobs of a study: pre-train, fine-tune, probe and test one cell with one seed, in ordinary run folders.

A job that was interrupted resumes; its result.json says that it is done.
"""

from __future__ import annotations

import contextlib
import json
import logging
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from mam2 import cost
from mam2.config import UserError, from_json
from mam2.data.loader import steps_per_epoch
from mam2.files import parse_json, write_text
from mam2.model.weights import save_encoder
from mam2.probe.probe import Probe, probe_encoder
from mam2.studies.budget import seconds_per_step
from mam2.studies.protocol import Protocol, Stopped, data_of, finish, pretraining_of, recipe_of, tuning_of
from mam2.studies.study import Job, ProbeKind
from mam2.train.finetune import finetune
from mam2.train.pretrain import build, pretrain
from mam2.train.run import InUse, locked, read_log
from mam2.use.evaluate_run import evaluate_run

log = logging.getLogger("mam2")


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Cost of all steps of a pre-training, in seconds at the median speed; zero where nothing is pre-trained."""

    steps: int = 0
    epochs: float = 0.0
    tflop: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """Work of one process: a job, or the pre-training alone that several jobs share."""

    job: Job
    pretrains_only: bool = False

    def __str__(self) -> str:
        return f"{self.job.cell.name}, pre-training" if self.pretrains_only else str(self.job)


def steps_of(jobs: list[Job]) -> list[Step]:
    """The jobs as steps, after the pre-trainings that they share."""
    shared = {job.encoder_folder: job for job in jobs if job.shared_seed is not None}
    return [*(Step(job=job, pretrains_only=True) for job in shared.values()), *(Step(job=job) for job in jobs)]


def run_step(step: Step, protocol: Protocol) -> None:
    """Runs a step, unless it is done. A failure is written down, in a job's result.json; other steps continue.

    Raises:
        Stopped: SIGTERM ended it early.
    """
    job = step.job
    folder = protocol.out / "runs" / (job.encoder_folder if step.pretrains_only else job.folder)
    found = None if step.pretrains_only else result_of(job, protocol)
    if found and "error" not in found:
        return
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"cell": job.cell.name, "share": job.share, "seed": job.seed}
    try:
        # Progress bars go to a file.
        with locked(folder), (folder / "output.txt").open("a") as output, contextlib.redirect_stderr(output):
            try:
                result |= asdict(_pretrained(job, protocol)) if step.pretrains_only else _measured(job, protocol)
            except Stopped:
                raise
            except Exception as error:
                log.exception(str(step))
                result["error"] = str(error) or type(error).__name__
            if not step.pretrains_only:
                write_text(folder / "result.json", json.dumps(result, indent=2))
    except InUse as error:
        log.warning(f"Left to another process: {error}")


def result_of(job: Job, protocol: Protocol) -> dict[str, Any] | None:
    """A job's result.json; None if there is none, or if its encoder was fine-tuned for another length."""
    file = protocol.out / "runs" / job.folder / "result.json"
    if not file.exists():
        return None
    found: dict[str, Any] = parse_json(file.read_text())
    wanted = protocol.finetune_epochs if "finetune" in protocol.settings.tests else None
    return found if "error" in found or found.get("finetune_epochs") == wanted else None


def _measured(job: Job, protocol: Protocol) -> dict[str, Any]:
    """A job's cost, and top-1 in each test."""
    init = "scratch"
    spent = Spent()
    if not job.cell.scratch:
        spent = _shared(job, protocol) if job.shared_seed is not None else _pretrained(job, protocol)
        init = str(protocol.out / "runs" / job.encoder_folder / "pretrain")
    elif job.cell.starts:
        init = protocol.settings.init
    result: dict[str, Any] = asdict(spent)
    if "finetune" in protocol.settings.tests:
        result |= _tuned(job, protocol, init)
    kinds = [kind for kind in get_args(ProbeKind) if kind in protocol.settings.tests]
    return result | (_probed(job, protocol, init, kinds) if kinds else {})


def _pretrained(job: Job, protocol: Protocol) -> Spent:
    """Pre-trains the encoder of a job, unless that is done; its cost, which is kept in pretrain.json."""
    folder = protocol.out / "runs" / job.encoder_folder / "pretrain"
    config = pretraining_of(job, protocol)
    finish(pretrain(config, folder))
    per_epoch = steps_per_epoch(protocol.videos.num_unlabelled, config.loop.batch_size)
    steps = config.loop.duration.steps(per_epoch)
    num_clips = config.loop.batch_size * config.data.repeats
    spent = Spent(
        steps=steps,
        epochs=steps / per_epoch,
        tflop=cost.remembered(config).tflop * steps * num_clips,
        seconds=seconds_per_step(folder, num_clips) * steps,
    )
    write_text(_cost_file(job, protocol), json.dumps(asdict(spent), indent=2))
    return spent


def _shared(job: Job, protocol: Protocol) -> Spent:
    """The cost of a pre-training that an earlier step has done, which no job opens again while others read it.

    Raises:
        UserError: it is not done.
    """
    file = _cost_file(job, protocol)
    if not file.exists():
        raise UserError(f"Its pre-training is not done: see {file.parent / 'output.txt'}.")
    return from_json(Spent, parse_json(file.read_text()))


def _cost_file(job: Job, protocol: Protocol) -> Path:
    return protocol.out / "runs" / job.encoder_folder / "pretrain.json"


def _tuned(job: Job, protocol: Protocol, init: str) -> dict[str, float]:
    """Fine-tunes and tests: top-1 and, where clips are not mixed, the accuracy on training clips at the end."""
    config = tuning_of(job, protocol, init)
    folder = protocol.out / "runs" / job.folder / f"finetune_{protocol.finetune_epochs:g}"
    finish(finetune(config, folder))
    found, _ = evaluate_run(folder, protocol.videos.test)
    if found.target_BK is not None:
        raise UserError("A study compares top-1. Give videos of one class each to train and test on.")
    result = {"finetune_epochs": protocol.finetune_epochs, "finetune": found.top(1)}
    if not config.mixup and not config.cutmix:
        rows = read_log(folder / "log.jsonl")
        last_tenth = rows[-max(1, len(rows) // 10) :]
        result["training_accuracy"] = statistics.fmean(row["accuracy"] for row in last_tenth)
    return result


def _probed(job: Job, protocol: Protocol, init: str, kinds: list[ProbeKind]) -> dict[str, float]:
    """Top-1 of probes by their kinds; from scratch, those of the encoder with its random weights."""
    settings, videos = protocol.settings, protocol.videos
    folder = protocol.out / "runs" / job.folder
    config = recipe_of(job.cell, settings)
    if init == "scratch":
        init = str(folder / "untrained.safetensors")
        save_encoder(Path(init), build(replace(config, loop=replace(config.loop, seed=job.seed))).encoder)
    result: dict[str, float] = {}
    for kind in kinds:
        probe = Probe(
            encoder=init, train=videos.train, test=videos.test, kind=kind, baseline=False, shots=settings.shots,
            stride_frames=data_of(config.data, settings).stride_frames, seed=job.seed, num_workers=0,
        )  # fmt: skip
        result[kind] = probe_encoder(probe, folder / "probe")["top1"]
    return result
