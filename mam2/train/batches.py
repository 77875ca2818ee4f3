"""The training batches of a run for this process."""

from __future__ import annotations

from mam2 import distributed
from mam2.data.catalog import Catalog
from mam2.data.clips import Data
from mam2.data.loader import TrainLoader, steps_per_epoch
from mam2.data.shape import ClipShape
from mam2.model.encoder import EncoderConfig
from mam2.train.engine import Loop


def train_loader(catalog: Catalog, data: Data, encoder: EncoderConfig, loop: Loop, *, start_step: int) -> TrainLoader:
    """The batches of a run for this process, from `start_step` to the run's end."""
    return TrainLoader(
        catalog,
        data,
        ClipShape.of(encoder),
        batch_size=loop.batch_size,
        num_steps=loop.duration.steps(steps_per_epoch(len(catalog.items), loop.batch_size)),
        seed=loop.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        start_step=start_step,
    )
