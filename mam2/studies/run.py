"""Runs a study: each cell is pre-trained, fine-tuned, probed and tested under one protocol.

Every cell, budget and seed is a job with ordinary run folders of its own: a killed study resumes, finished jobs are not
repeated, and jobs can be spread over processes, GPUs or a cluster's array.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mam2 import cost
from mam2.config import Duration, UserError
from mam2.data.catalog import Catalog, read_catalog
from mam2.data.clips import Data
from mam2.data.loader import steps_per_epoch
from mam2.device import cpu_name
from mam2.distributed import end_with_parent
from mam2.files import parse_json, write_text
from mam2.model.load import read_encoder_config
from mam2.model.weights import save_encoder
from mam2.probe.probe import Probe, probe_encoder
from mam2.recipes import get_recipe
from mam2.recipes.scales import LAPTOP, scaled_finetune, with_duration
from mam2.studies.budget import Budget, parse_budget
from mam2.studies.frames import shared_frames
from mam2.studies.study import PROBES, Cell, Job, Settings, Study, jobs_of
from mam2.studies.summary import summarised
from mam2.train.finetune import Finetune, as_pretrained, finetune
from mam2.train.pretrain import Pretrain, build, pretrain
from mam2.train.run import InUse, locked, read_log
from mam2.use.evaluate_run import evaluate_run

log = logging.getLogger("mam2")
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Videos:
    """The data sets of a study: lists of frames that are decoded already."""

    unlabelled: str
    train: str
    test: str
    num_unlabelled: int
    num_classes: int


def run_study(
    name: str, study: Study, settings: Settings, out: str | Path, *, jobs: int = 1, shard: tuple[int, int] = (0, 1)
) -> dict[str, Any]:
    """Runs a study, or what is left of it, and writes study.json.

    Args:
        name: of the study, for messages.
        study: the cells.
        settings: data, scale, budget, seeds.
        out: a new folder, or that of the same study.
        jobs: processes that work side by side.
        shard: (i, n) runs every n-th job, from number i; the last to end writes the whole study.json.

    Returns:
        The contents of study.json.

    Raises:
        UserError: data that can't be compared on, a budget too small for one step, another study in `out`.
    """
    out = Path(out)
    check_cells(study, settings)
    identity = {"study": name, **_plain(settings)}
    check_folder(out, identity)
    budget = parse_budget(settings.budget or study.budget) if settings.budget or settings.scale in LAPTOP else None
    videos = prepare(settings, study, out)
    todo = jobs_of(study, settings)[shard[0] :: shard[1]]
    for job in todo:
        if not job.cell.scratch:
            plan(job, settings, budget, videos, out)  # or fail before hours of training
    write_text(out / SETTINGS, json.dumps(identity, indent=2))
    work = partial(run_job, study=study, settings=settings, budget=budget, videos=videos, out=out)
    # A second thread makes models of a laptop's scales slower, not faster.
    threads = 1 if settings.scale in LAPTOP else max(1, torch.get_num_threads() // jobs)
    if jobs == 1:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        for job in todo:
            log.info(f"{job.cell.name}, {job.share:g} of the budget, seed {job.seed}.")
            work(job)
        torch.set_num_threads(before)
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(threads,)) as pool:
            for job, _ in zip(todo, pool.map(work, todo), strict=True):
                log.info(f"Done: {job.cell.name}, {job.share:g} of the budget, seed {job.seed}.")
    report = collect(name, study, settings, videos, out)
    write_text(out / "study.json", json.dumps(report, indent=2))
    return report


def _plain(settings: Settings) -> dict[str, Any]:
    """The settings as a JSON file has them."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return plain


def _begin(threads: int) -> None:
    end_with_parent()
    torch.set_num_threads(threads)
    logging.getLogger("mam2").setLevel(logging.ERROR)


def check_cells(study: Study, settings: Settings) -> None:
    """Raises UserError for settings that the study can't use."""
    if not settings.seeds:
        raise UserError("A study needs a seed: --seeds 0 1 2.")
    starts = any(cell.starts for cell in study.cells)
    if starts and not settings.init:
        raise UserError(
            "This study starts from an encoder: give --init, a run's folder, an encoder.safetensors file or a published"
            " encoder's name."
        )
    if settings.init and not starts:
        raise UserError(f"{study.title!r} starts from no encoder. Leave --init out, or take `mam2 study adapt`.")
    if not settings.tests:
        raise UserError("A study needs a test: --tests finetune linear ridge knn.")


def check_folder(out: Path, identity: dict[str, Any]) -> None:
    """Raises UserError unless a folder is new, or this study's: more seeds and other finetune_epochs may follow."""
    file = out / SETTINGS
    if file.exists():
        # A setting newer than the folder has its default, but pooling: heads averaged over all before it was one.
        theirs = _plain(Settings()) | {"pooling": "all"} | parse_json(file.read_text())
        different = [key for key in identity if theirs.get(key) != identity[key]]
        seeds = theirs.get("seeds", [])
        grown = identity["seeds"][: len(seeds)] == seeds
        if not grown or set(different) - {"seeds", "finetune_epochs"}:
            found = "; ".join(f"{key} {theirs.get(key)!r} (now {identity[key]!r})" for key in different)
            raise UserError(f"{out} holds a study with other settings: {found}. Give another --out.")
    elif out.exists() and {path.name for path in out.iterdir()} - {"frames", "speed"}:  # left by one that was refused
        raise UserError(f"{out} exists and is no study's folder. Give another --out.")


def prepare(settings: Settings, study: Study, out: Path) -> Videos:
    """Reads the three data sets, checks that they can be compared on, and shares their decoded frames.

    Raises:
        UserError: fewer than two classes, other classes in the test set, videos or groups in both.
    """
    unlabelled = _catalog(settings.unlabelled, settings.unlabelled_split, labelled=False)
    train = _catalog(settings.train, settings.train_split, labelled=True)
    test = _catalog(settings.test, settings.test_split, labelled=True)
    if len(train.classes) < 2:
        raise UserError(f"{settings.train} has one class, {train.classes[0]}; a study needs two at least.")
    if missing := sorted(set(train.classes) ^ set(test.classes)):
        raise UserError(
            f"Classes of only one of {settings.train} and {settings.test}: {', '.join(missing[:5])}. Both need all."
        )
    _keep_apart("video", *({os.path.realpath(item.path) for item in of.items} for of in (train, test)))
    _keep_apart("group", *({item.group for item in of.items} - {""} for of in (train, test)))
    size = max(_recipe(cell, settings).encoder.size for cell in study.cells)
    lists = {
        name: str(shared_frames(catalog, out / "frames", size=size, name=name))
        for name, catalog in (("unlabelled", unlabelled), ("train", train), ("test", test))
    }
    return Videos(**lists, num_unlabelled=len(unlabelled.items), num_classes=len(train.classes))


def _keep_apart(what: str, train: set[str], test: set[str]) -> None:
    if both := train & test:
        raise UserError(
            f"{len(both)} {what}s are in both train and test, such as {min(both)}: results would be too high. Keep a "
            f"{what} in one of them."
        )


def _catalog(root: str, split: str, *, labelled: bool) -> Catalog:
    return read_catalog(Data(root=root, split=split).listing, labelled=labelled)


def plan(job: Job, settings: Settings, budget: Budget | None, videos: Videos, out: Path) -> Pretrain:
    """The pre-training of a job.

    Raises:
        UserError: a budget too small for one step.
    """
    config = _recipe(job.cell, settings)
    data = replace(_data(config.data, settings), root=videos.unlabelled)
    config = replace(config, data=data, loop=replace(config.loop, seed=job.seed))
    if job.cell.starts:
        config = replace(config, init=settings.init)
    batch = config.loop.batch_size
    per_epoch = steps_per_epoch(videos.num_unlabelled, batch)
    if budget is None:
        return with_duration(config, Duration(config.loop.duration.value * job.share, config.loop.duration.unit))
    spent = budget.share(job.share)
    steps = spent.steps(
        steps_per_epoch=per_epoch,
        tflop_per_step=cost.remembered(config).tflop * batch * config.data.repeats if spent.unit == "TFLOP" else 0.0,
        seconds_per_step=_seconds_per_step(config, job, out) if spent.unit == "minutes" else 0.0,
    )
    save_every = Duration(max(1, steps // 4), "steps")
    config = with_duration(config, Duration(steps, "steps"))
    return replace(config, loop=replace(config.loop, save_every=save_every))


def _recipe(cell: Cell, settings: Settings) -> Pretrain:
    """The cell's pre-training at the study's scale; with the sizes of the encoder that the study is given, if any."""
    config = cell.config(settings.scale)
    return replace(config, encoder=read_encoder_config(settings.init)) if settings.init else config


def _data(data: Data, settings: Settings) -> Data:
    """The recipe's data settings for a study's videos."""
    stride = data.stride_frames
    if settings.stride_frames:
        stride = max(1, round(stride * settings.stride_frames / Data().stride_frames))
    flip = data.flip if settings.flip == "recipe" else settings.flip == "on"
    return replace(
        data, stride_frames=stride, flip=flip, num_workers=0 if settings.scale in LAPTOP else data.num_workers
    )


def _seconds_per_step(config: Pretrain, job: Job, out: Path) -> float:
    """Of a short run of the cell, measured once for all seeds and shares."""
    folder = out / "speed" / job.folder.split("/")[0]
    if not (folder / "encoder.safetensors").exists():
        loop = replace(config.loop, duration=Duration(40, "steps"), save_every=Duration(40, "steps"), log_every=10)
        _finish(pretrain(replace(config, loop=loop), folder))
    return seconds_per_step(folder, config.loop.batch_size * config.data.repeats)


def seconds_per_step(run: Path, num_clips: int) -> float:
    """The median over the log of a pre-training whose steps have so many clips, without its first line."""
    rows = read_log(run / "log.jsonl")
    speeds = [row["clips_per_second"] for row in rows if row.get("clips_per_second")]
    return num_clips / statistics.median(speeds[1:] or speeds)


def run_job(
    job: Job, *, study: Study, settings: Settings, budget: Budget | None, videos: Videos, out: Path
) -> dict[str, Any]:
    """Runs a job, unless it is done, and writes its result.json. A failure is written down; the others continue."""
    folder = out / "runs" / job.folder
    file = folder / "result.json"
    found = _result_in(file, study, settings)
    if found and "error" not in found:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"cell": job.cell.name, "share": job.share, "seed": job.seed}
    try:
        with locked(folder), _own_output(folder / "output.txt"):
            try:
                result |= _measured(job, study, settings, budget, videos, out)
            except Exception as error:
                log.exception(f"{job.cell.name}, seed {job.seed}")
                result["error"] = str(error) or type(error).__name__
            write_text(file, json.dumps(result, indent=2))
    except InUse as error:
        log.warning(f"Left to another process: {error}")
    return result


def _result_in(file: Path, study: Study, settings: Settings) -> dict[str, Any] | None:
    """A job's result.json; None if there is none, or if its encoder was fine-tuned for another length."""
    if not file.exists():
        return None
    found: dict[str, Any] = parse_json(file.read_text())
    asked = _length(study, settings) if "finetune" in settings.tests else None
    return found if "error" in found or found.get("finetune_epochs") == asked else None


@contextlib.contextmanager
def _own_output(file: Path) -> Iterator[None]:
    """Progress bars go to a file."""
    with file.open("a") as output, contextlib.redirect_stderr(output):
        yield


def _measured(
    job: Job, study: Study, settings: Settings, budget: Budget | None, videos: Videos, out: Path
) -> dict[str, Any]:
    folder, cell = out / "runs" / job.folder, job.cell
    config = _recipe(cell, settings)
    result: dict[str, Any] = {"steps": 0, "epochs": 0.0, "tflop": 0.0, "seconds": 0.0}
    init = probed = settings.init if cell.scratch and cell.starts else "scratch"
    if not cell.scratch:
        config = plan(job, settings, budget, videos, out)
        _finish(pretrain(config, folder / "pretrain"))
        init = probed = str(folder / "pretrain")
        per_epoch = steps_per_epoch(videos.num_unlabelled, config.loop.batch_size)
        steps = config.loop.duration.steps(per_epoch)
        num_clips = config.loop.batch_size * config.data.repeats
        result = {
            "steps": steps,
            "epochs": steps / per_epoch,
            "tflop": cost.remembered(config).tflop * steps * num_clips,
            "seconds": seconds_per_step(folder / "pretrain", num_clips) * steps,
        }
    elif init == "scratch":
        probed = str(folder / "untrained.safetensors")
        save_encoder(Path(probed), build(replace(config, loop=replace(config.loop, seed=job.seed))).encoder)
    if "finetune" in settings.tests:
        result["finetune_epochs"] = _length(study, settings)
        tuned = folder / f"finetune_{result['finetune_epochs']:g}"
        tuning = _tuning(study, settings, config, init, videos, job.seed)
        _finish(finetune(tuning, tuned))
        found, _ = evaluate_run(tuned, videos.test)
        if found.target_BK is not None:
            raise UserError("A study compares top-1. Give videos of one class each to train and test on.")
        result["finetune"] = found.top(1)
        if not tuning.mixup and not tuning.cutmix:
            result["training_accuracy"] = _training_accuracy(tuned)
    for kind in PROBES:
        if kind in settings.tests:
            probe = Probe(
                encoder=probed, train=videos.train, test=videos.test, kind=kind, baseline=False, shots=settings.shots,
                stride_frames=_data(config.data, settings).stride_frames, seed=job.seed, num_workers=0,
            )  # fmt: skip
            result[kind] = probe_encoder(probe, folder / "probe")["top1"]
    return result


def _training_accuracy(run: Path) -> float:
    """The mean accuracy of a fine-tuning's own batches over the last tenth of its log."""
    rows = read_log(run / "log.jsonl")
    return statistics.fmean(row["accuracy"] for row in rows[-max(1, len(rows) // 10) :])


def _finish(is_done: bool) -> None:
    if not is_done:
        raise SystemExit(143)  # SIGTERM: all is saved, and the same command resumes


def _tuning(study: Study, settings: Settings, pretraining: Pretrain, init: str, videos: Videos, seed: int) -> Finetune:
    """The fine-tuning of a cell, the same for all but for the encoder."""
    config = _tuning_recipe(study, settings)
    encoder = replace(pretraining.encoder, drop_path=config.encoder.drop_path)
    config = replace(config, encoder=encoder) if init == "scratch" else as_pretrained(config, init)
    data = replace(_data(config.data, settings), root=videos.train)
    if init == "scratch":
        data = replace(data, stride_frames=_data(pretraining.data, settings).stride_frames)
    else:
        data = replace(data, stride_frames=config.data.stride_frames)
    epochs = _length(study, settings)
    warmup = Duration(config.optim.warmup.value * epochs / config.loop.duration.value, "epochs")
    loop = replace(config.loop, seed=seed, duration=Duration(epochs, "epochs"))
    optim = replace(config.optim, warmup=warmup)
    pooling = config.pooling if settings.pooling == "recipe" else settings.pooling
    return replace(config, init=init, data=data, optim=optim, loop=loop, shots=settings.shots, pooling=pooling)


def _tuning_recipe(study: Study, settings: Settings) -> Finetune:
    recipe = get_recipe(study.finetune, Finetune)
    assert isinstance(recipe, Finetune)
    return scaled_finetune(recipe, settings.scale)


def _length(study: Study, settings: Settings) -> float:
    """Epochs of fine-tuning."""
    return settings.finetune_epochs or _tuning_recipe(study, settings).loop.duration.value


def collect(name: str, study: Study, settings: Settings, videos: Videos, out: Path) -> dict[str, Any]:
    """The results that there are, as in study.json: all jobs, and for each cell and share their summary."""
    found = []
    for job in jobs_of(study, settings):
        if result := _result_in(out / "runs" / job.folder / "result.json", study, settings):
            found.append(result)
    return {
        "study": name,
        "title": study.title,
        "settings": asdict(settings),
        "machine": machine(),
        "num_classes": videos.num_classes,
        "jobs": found,
        "cells": summarised(study, settings, found),
    }


def machine() -> dict[str, Any]:
    """What the results were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {"cpu": cpu_name(), "cores": os.cpu_count(), "gpu": gpu, "torch": torch.__version__}
