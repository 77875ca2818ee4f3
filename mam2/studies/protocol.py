"""The protocol that all jobs of a study share: its data sets, and the settings of each pre-training and fine-tuning."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from mam2 import cost
from mam2.config import Duration, UserError
from mam2.data.catalog import read_catalog
from mam2.data.clips import Data
from mam2.data.loader import steps_per_epoch
from mam2.data.shape import Listing
from mam2.model.load import read_encoder_config
from mam2.recipes import get_recipe
from mam2.recipes.scales import LAPTOP, scaled_finetune, with_duration
from mam2.studies.budget import Budget, parse_budget, seconds_per_step
from mam2.studies.frames import shared_frames
from mam2.studies.study import Cell, Job, Study, StudySettings, changed
from mam2.train.finetune import Finetune, as_pretrained
from mam2.train.pretrain import Pretrain, pretrain


@dataclass(frozen=True)
class Videos:
    """The data sets of a study: lists of frames that are decoded already."""

    unlabelled: str
    train: str
    test: str
    num_unlabelled: int
    num_classes: int


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A study that is ready to run in the folder `out`."""

    study: Study
    settings: StudySettings
    videos: Videos
    out: Path

    @property
    def budget(self) -> Budget | None:
        """Length of a pre-training with the whole budget; None for the recipe's own."""
        if self.settings.budget or self.settings.scale in LAPTOP:
            return parse_budget(self.settings.budget or self.study.budget)
        return None

    @property
    def finetune_epochs(self) -> float:
        """Length of fine-tuning."""
        return self.settings.finetune_epochs or tuning_recipe(self).loop.duration.value


class Stopped(Exception):
    """SIGTERM ended a run: all is saved, and the same command resumes it."""


def finish(is_done: bool) -> None:
    """Raises Stopped unless a training is done."""
    if not is_done:
        raise Stopped


def check_cells(study: Study, settings: StudySettings) -> None:
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
    if settings.budget:
        parse_budget(settings.budget)


def prepare_protocol(study: Study, settings: StudySettings, out: Path) -> Protocol:
    """Reads, checks and decodes the three data sets.

    Raises:
        UserError: fewer than two classes, other classes in the test set, videos or groups in both.
    """
    unlabelled = read_catalog(Listing(root=settings.unlabelled, split=settings.unlabelled_split), labelled=False)
    train = read_catalog(Listing(root=settings.train, split=settings.train_split), labelled=True)
    test = read_catalog(Listing(root=settings.test, split=settings.test_split), labelled=True)
    if len(train.classes) < 2:
        raise UserError(f"{settings.train} has one class, {train.classes[0]}; a study needs two at least.")
    if missing := sorted(set(train.classes) ^ set(test.classes)):
        raise UserError(
            f"Classes of only one of {settings.train} and {settings.test}: {', '.join(missing[:5])}. Both need all."
        )
    _keep_apart("video", *({os.path.realpath(item.path) for item in part.items} for part in (train, test)))
    _keep_apart("group", *({item.group for item in part.items} - {""} for part in (train, test)))
    size = max(recipe_of(cell, settings).encoder.size for cell in study.cells)
    lists = {
        name: str(shared_frames(catalog, out / "frames", size=size, name=name))
        for name, catalog in (("unlabelled", unlabelled), ("train", train), ("test", test))
    }
    videos = Videos(**lists, num_unlabelled=len(unlabelled.items), num_classes=len(train.classes))
    return Protocol(study=study, settings=settings, videos=videos, out=out)


def _keep_apart(kind: str, train: set[str], test: set[str]) -> None:
    if both := train & test:
        raise UserError(
            f"{len(both)} {kind}s are in both train and test, such as {min(both)}: results would be too high. Keep a "
            f"{kind} in one of them."
        )


def recipe_of(cell: Cell, settings: StudySettings) -> Pretrain:
    """The cell's pre-training at the study's scale, with the sizes of the encoder that the study is given."""
    config = cell.config(settings.scale)
    return replace(config, encoder=read_encoder_config(settings.init)) if settings.init else config


def data_of(data: Data, settings: StudySettings) -> Data:
    """The recipe's data settings for a study's videos."""
    stride = data.stride_frames
    if settings.stride_frames:
        stride = max(1, round(stride * settings.stride_frames / Data().stride_frames))
    flip = data.flip if settings.flip == "recipe" else settings.flip == "on"
    num_workers = 0 if settings.scale in LAPTOP else data.num_workers
    return replace(data, stride_frames=stride, flip=flip, num_workers=num_workers)


def pretraining_of(job: Job, protocol: Protocol) -> Pretrain:
    """The pre-training of a job; UserError for a budget too small for one step."""
    settings, videos = protocol.settings, protocol.videos
    config = recipe_of(job.cell, settings)
    data = replace(data_of(config.data, settings), root=videos.unlabelled)
    config = replace(config, data=data, loop=replace(config.loop, seed=job.encoder_seed))
    if job.cell.starts:
        config = replace(config, init=settings.init)
    if protocol.budget is None:
        return with_duration(config, Duration(config.loop.duration.value * job.share, config.loop.duration.unit))
    spent = protocol.budget.share(job.share)
    batch = config.loop.batch_size
    steps = spent.steps(
        steps_per_epoch=steps_per_epoch(videos.num_unlabelled, batch),
        tflop_per_step=cost.remembered(config).tflop * batch * config.data.repeats if spent.unit == "TFLOP" else 0.0,
        seconds_per_step=_measured_speed(config, job, protocol.out) if spent.unit == "minutes" else 0.0,
    )
    save_every = Duration(max(1, steps // 4), "steps")
    config = with_duration(config, Duration(steps, "steps"))
    return replace(config, loop=replace(config.loop, save_every=save_every))


def _measured_speed(config: Pretrain, job: Job, out: Path) -> float:
    """Seconds per step of a short run of the cell, measured once for all seeds and shares."""
    folder = out / "speed" / job.folder.split("/")[0]
    if not (folder / "encoder.safetensors").exists():
        loop = replace(config.loop, duration=Duration(40, "steps"), save_every=Duration(40, "steps"), log_every=10)
        finish(pretrain(replace(config, loop=loop), folder))
    return seconds_per_step(folder, config.loop.batch_size * config.data.repeats)


def tuning_recipe(protocol: Protocol) -> Finetune:
    """The study's fine-tuning at its scale."""
    recipe = cast(Finetune, get_recipe(protocol.study.finetune, Finetune))
    return changed(scaled_finetune(recipe, protocol.settings.scale), protocol.study.finetune_changes)


def tuning_of(job: Job, protocol: Protocol, init: str) -> Finetune:
    """The fine-tuning of a job, the same for all cells but for the encoder."""
    settings = protocol.settings
    recipe = tuning_recipe(protocol)
    pretraining = recipe_of(job.cell, settings)
    if init == "scratch":
        config = replace(recipe, encoder=replace(pretraining.encoder, drop_path=recipe.encoder.drop_path))
        stride = data_of(pretraining.data, settings).stride_frames
    else:
        config = as_pretrained(recipe, init)
        stride = config.data.stride_frames
    data = replace(data_of(config.data, settings), root=protocol.videos.train, stride_frames=stride)
    epochs = protocol.finetune_epochs
    warmup = Duration(config.optim.warmup.value * epochs / config.loop.duration.value, "epochs")
    return replace(
        config,
        init=init,
        data=data,
        optim=replace(config.optim, warmup=warmup),
        loop=replace(config.loop, seed=job.seed, duration=Duration(epochs, "epochs")),
        shots=settings.shots,
        pooling=config.pooling if settings.pooling == "recipe" else settings.pooling,
    )
