"""Start of pre-training and fine-tuning: the newest checkpoint, and the batches after it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from mam2 import distributed
from mam2.data.catalog import Catalog
from mam2.data.clips import Data
from mam2.data.loader import Batch, TrainLoader, steps_per_epoch
from mam2.data.shape import ClipShape
from mam2.device import autocast_dtype, local_device
from mam2.model.encoder import EncoderConfig
from mam2.train import checkpoint
from mam2.train.engine import Loop, Training
from mam2.train.optim import Optim


class TrainConfig(Protocol):
    """The parts of a recipe that every training has."""

    @property
    def data(self) -> Data: ...

    @property
    def encoder(self) -> EncoderConfig: ...

    @property
    def optim(self) -> Optim: ...

    @property
    def loop(self) -> Loop: ...


def begin(
    config: TrainConfig,
    catalog: Catalog,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    folder: Path,
    title: str,
) -> Training[Batch]:
    """The training of a run, from the newest checkpoint in its folder or from step 0.

    Raises:
        UserError: a checkpoint that is damaged or of another architecture, or no videos.
    """
    start = checkpoint.load(folder, model, optimizer)
    return Training(
        model=model,
        loader=train_loader(config, catalog, start_step=start),
        optimizer=optimizer,
        loop=config.loop,
        optim=config.optim,
        start_step=start,
        folder=folder,
        title=title,
        dtype=autocast_dtype(config.loop.precision, local_device(), width=config.encoder.width),
    )


def train_loader(config: TrainConfig, catalog: Catalog, *, start_step: int) -> TrainLoader:
    """The batches of this process, from `start_step` to the end of the run."""
    loop = config.loop
    return TrainLoader(
        catalog,
        config.data,
        ClipShape.of(config.encoder),
        batch_size=loop.batch_size,
        num_steps=loop.duration.steps(steps_per_epoch(len(catalog.items), loop.batch_size)),
        seed=loop.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        start_step=start_step,
    )
