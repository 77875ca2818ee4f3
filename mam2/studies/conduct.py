"""Conducts a study: each cell is pre-trained, fine-tuned, probed and tested under one protocol.

Every cell, budget and seed is a job with ordinary run folders of its own: a killed study resumes, finished jobs are not
repeated, and jobs can be spread over processes, GPUs or a cluster's array.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from mam2.config import UserError, to_json
from mam2.device import cpu_name
from mam2.distributed import end_with_parent
from mam2.files import parse_json, write_text
from mam2.recipes.scales import LAPTOP
from mam2.studies.jobs import Step, result_of, run_step, steps_of
from mam2.studies.protocol import Protocol, Stopped, check_cells, prepare_protocol, pretraining_of
from mam2.studies.study import Job, Study, StudySettings, jobs_of
from mam2.studies.summary import summarised

log = logging.getLogger("mam2")
SETTINGS = "settings.json"
LEFT_BEFORE = {"frames", "speed", "videos"}
"""Folders that a study which was refused leaves, and the quickstart's rendered videos."""


def run_study(
    name: str, study: Study, settings: StudySettings, out: str | Path, *, jobs: int = 1, shard: tuple[int, int] = (0, 1)
) -> dict[str, Any] | None:
    """Runs a study, or the rest of one, and writes study.json.

    Args:
        name: name of the study, for messages.
        study: the cells.
        settings: data, scale, budget, seeds.
        out: a new folder, or that of the same study.
        jobs: number of processes.
        shard: part of the jobs, see `dealt`. The last shard to end writes the whole study.json.

    Returns:
        The contents of study.json; None if SIGTERM ended it early, and the same call resumes it.

    Raises:
        UserError: data that can't be compared on, a budget too small for one step, another study in `out`.
    """
    out = Path(out)
    check_cells(study, settings)
    check_study_folder(name, settings, out)
    protocol = prepare_protocol(study, settings, out)
    todo = dealt(jobs_of(study, settings), shard)
    try:
        for job in todo:
            if not job.cell.scratch:
                pretraining_of(job, protocol)  # or fail before hours of training
        write_text(out / SETTINGS, json.dumps(_identity(name, settings), indent=2))
        # A second thread makes models of a laptop's scales slower, not faster.
        threads = 1 if settings.scale in LAPTOP else max(1, torch.get_num_threads() // jobs)
        if jobs == 1:
            _one_by_one(steps_of(todo), protocol, threads)
        else:
            _side_by_side(steps_of(todo), protocol, threads, jobs)
    except Stopped:
        return None
    report = collect(name, protocol)
    write_text(out / "study.json", json.dumps(report, indent=2))
    return report


def dealt(jobs: list[Job], shard: tuple[int, int]) -> list[Job]:
    """Every n-th job from number i, for shard (i, n); jobs that share a pre-training count as one."""
    groups = list(dict.fromkeys(job.encoder_folder for job in jobs))
    mine = set(groups[shard[0] :: shard[1]])
    return [job for job in jobs if job.encoder_folder in mine]


def _one_by_one(steps: list[Step], protocol: Protocol, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for step in steps:
            log.info(f"{step}.")
            run_step(step, protocol)
    finally:
        torch.set_num_threads(before)


def _side_by_side(steps: list[Step], protocol: Protocol, threads: int, jobs: int) -> None:
    """Runs steps in processes; a job waits for the pre-training that it shares.

    A process has no further step waiting, so that one that is asked to end does so after the step at hand.
    """
    waiting = list(steps)
    running: dict[Future[None], Step] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(threads,)) as pool:
        try:
            while waiting or running:
                while len(running) < jobs and (step := _next(waiting, list(running.values()))):
                    waiting.remove(step)
                    running[pool.submit(run_step, step, protocol)] = step
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    step = running.pop(future)
                    future.result()
                    log.info(f"Done: {step}.")
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()  # a training finishes its step, saves and ends
            raise


def _next(waiting: list[Step], running: list[Step]) -> Step | None:
    """The first step whose pre-training is not still to be done."""
    open_folders = {step.job.encoder_folder for step in [*waiting, *running] if step.pretrains_only}
    ready = (step for step in waiting if step.pretrains_only or step.job.encoder_folder not in open_folders)
    return next(ready, None)


def _begin(threads: int) -> None:
    end_with_parent()
    torch.set_num_threads(threads)
    logging.getLogger("mam2").setLevel(logging.ERROR)


def _identity(name: str, settings: StudySettings) -> dict[str, Any]:
    """The contents of settings.json."""
    return {"study": name, **to_json(settings)}


def check_study_folder(name: str, settings: StudySettings, out: Path) -> None:
    """Raises UserError unless a folder is new, or this study's: more seeds and other finetune_epochs may follow."""
    file = out / SETTINGS
    wanted = _identity(name, settings)
    if file.exists():
        # A setting newer than the folder has its default, but pooling: heads averaged over all before it was one.
        found = to_json(StudySettings()) | {"pooling": "all"} | parse_json(file.read_text())
        different = [key for key in wanted if found.get(key) != wanted[key]]
        seeds = found.get("seeds", [])
        grown = wanted["seeds"][: len(seeds)] == seeds
        if not grown or set(different) - {"seeds", "finetune_epochs"}:
            changes = "; ".join(f"{key} {found.get(key)!r} (now {wanted[key]!r})" for key in different)
            raise UserError(f"{out} holds a study with other settings: {changes}. Give another --out.")
    elif out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - LEFT_BEFORE):
        raise UserError(f"{out} exists and is no study's folder. Give another --out.")


def collect(name: str, protocol: Protocol) -> dict[str, Any]:
    """The contents of study.json so far: all jobs, and a summary of each cell and share."""
    study, settings = protocol.study, protocol.settings
    found = [result for job in jobs_of(study, settings) if (result := result_of(job, protocol))]
    return {
        "study": name,
        "title": study.title,
        "settings": to_json(settings),
        "machine": machine(),
        "num_classes": protocol.videos.num_classes,
        "jobs": found,
        "cells": summarised(study, settings, found),
    }


def machine() -> dict[str, Any]:
    """The machine that the results are measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {"cpu": cpu_name(), "cores": os.cpu_count(), "gpu": gpu, "torch": torch.__version__}
