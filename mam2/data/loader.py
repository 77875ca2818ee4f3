"""Batches of clips for training.

A training sample depends on the seed, the step and the position in the batch only: not on the number of workers or
processes, nor on where the run was resumed.

B clips, T frames, C = 3 channels, H = W = size pixels.
"""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from mam2 import distributed
from mam2.config import UserError, seed_of
from mam2.data.bad_videos import BadVideos
from mam2.data.catalog import Catalog, Item
from mam2.data.clips import Data, image_clips, train_clips
from mam2.data.shape import ClipShape
from mam2.data.video.still import image_paths
from mam2.data.workers import parallel
from mam2.device import send

log = logging.getLogger("mam2")
_SHUFFLE, _SAMPLE, _FIXED, _IMAGE = range(4)  # keep the seeds of the kinds of draw apart


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One process's part of a training batch; with repeated augmentation a video's clips are neighbours.

    Attributes:
        clip_BTCHW: uint8 (B, T, 3, H, W).
        label_B: int64 (B,), -1 without a label; float32 (B, K) for several classes, (B, 1) for numbers.
        sample_B: int64 (B,), the clip's number in the whole run: (step * batch_size + position in the batch) *
            repeats + which of the repeats.
        fixed_B: int64 (B,), the clip's number among the fixed ones: (the video's place * fixed_clips + which of them)
            * repeats + which of the repeats; None where each clip is drawn again.
    """

    clip_BTCHW: torch.Tensor
    label_B: torch.Tensor
    sample_B: torch.Tensor
    fixed_B: torch.Tensor | None = None

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.label_B)

    def to(self, device: torch.device) -> Batch:
        """Sends clips and labels to a device; the numbers stay on the host."""
        return replace(self, clip_BTCHW=send(self.clip_BTCHW, device), label_B=send(self.label_B, device))

    def part(self, index: int, *, of: int) -> Batch:
        """Part `index` of the batch in `of` equal parts."""
        size = len(self) // of
        part = slice(index * size, (index + 1) * size)
        return Batch(
            clip_BTCHW=self.clip_BTCHW[part],
            label_B=self.label_B[part],
            sample_B=self.sample_B[part],
            fixed_B=None if self.fixed_B is None else self.fixed_B[part],
        )


def steps_per_epoch(num_videos: int, batch_size: int) -> int:
    """Number of full batches in one pass over the videos, at least 1."""
    return max(1, num_videos // batch_size)


def video_of(step: int, position: int, *, num_videos: int, batch_size: int, seed: int, attempt: int = 0) -> int:
    """Number of the video at a position of the whole batch of a step.

    Each epoch has its own shuffle, and its last incomplete batch is left out. Where a batch is larger than
    the data set, the videos are shuffled and drawn again until it is full.

    Args:
        step: counts from 0 over the whole run.
        position: 0 .. batch_size - 1.
        num_videos: size of the data set.
        batch_size: samples per step, over all processes.
        seed: the run's seed.
        attempt: unusable videos drawn for this sample so far; the next of the shuffle replaces each.
    """
    epoch, step_in_epoch = divmod(step, steps_per_epoch(num_videos, batch_size))
    pass_in_epoch, place = divmod(step_in_epoch * batch_size + position, num_videos)
    return _shuffled(num_videos, seed, epoch, pass_in_epoch)[(place + attempt) % num_videos]


class TrainLoader:
    """Loader of one process's training batches, from step `start_step` up to, not including, `num_steps`.

    A damaged or too short video is replaced by another.

    Args:
        catalog: the videos.
        data: how clips are made of them.
        shape: frames per clip, and pixels of both sides of the crop.
        batch_size: samples per step, over all processes.
        seed: all that is random follows from it.
        num_steps: the length of the whole run, counted from step 0.
        rank: this process yields part `rank` of `world_size` equal parts of each batch.
        world_size: number of processes.
        start_step: first step.

    Attributes:
        steps_per_epoch: full batches in one pass over the videos, at least 1.
        num_steps: length of the whole run.
        bad: unusable videos that this process met so far.

    Raises:
        UserError: no videos, or a batch that does not divide by the processes; while iterating, too many
            unusable videos.
    """

    def __init__(
        self,
        catalog: Catalog,
        data: Data,
        shape: ClipShape,
        *,
        batch_size: int,
        seed: int,
        num_steps: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
    ) -> None:
        if not catalog.items:
            raise UserError("The catalog lists no videos; at least one is needed.")
        if batch_size < 1 or batch_size % world_size:
            raise UserError(
                f"The batch size is {batch_size}; it must be a positive multiple of the number of processes, "
                f"{world_size}."
            )
        self.steps_per_epoch = steps_per_epoch(len(catalog.items), batch_size)
        self.num_steps = num_steps
        images = [Item(path=path, label=None) for path in image_paths(data.images)] if data.images else []
        items = (*catalog.items, *images)
        num_paths = len({item.path for item in items})  # a list may hold a video several times
        self.bad = BadVideos(num_videos=num_paths, max_share=data.max_bad_share)
        self._steps = range(start_step, num_steps)
        local = batch_size // world_size
        positions = range(rank * local, (rank + 1) * local)
        num_attempts = self.bad.num_forgiven + 1
        num_videos = len(catalog.items)
        self._set = _TrainSet(items, num_videos, data, shape, batch_size, positions, seed, num_attempts)

    def count_bad(self) -> int:
        """Number of unusable videos that all processes met so far; every process must call it. Raises UserError for
        more than `data.max_bad_share` forgives."""
        return len(self.bad.of_all_processes())

    def __iter__(self) -> Iterator[Batch]:
        data = self._set.data
        made = parallel(self._set, self._steps, num_workers=data.num_workers, timeout_seconds=data.timeout_seconds)
        num_drawn = num_shrunk = 0
        for step, (batch, bad, shrunk) in zip(self._steps, made, strict=True):
            self.bad.add(bad)
            yield batch
            num_drawn += len(self._set.positions)
            num_shrunk += shrunk
            is_epoch = step + 1 == min(self.steps_per_epoch, self.num_steps)
            if is_epoch and num_shrunk > num_drawn / 2 and distributed.rank() == 0:
                log.warning(
                    f"{num_shrunk / num_drawn:.0%} of the videos are too short for {self._set.shape.frames} frames "
                    f"{data.stride_frames} apart: their clips' frames are closer together (--data.short shrink)."
                )


@dataclass(frozen=True)
class _TrainSet:
    """Steps -> this process's batch (None if a place stays empty), the unusable videos met, and the number of videos
    too short for their stride."""

    items: Sequence[Item]  # the videos, then the images
    num_videos: int
    data: Data
    shape: ClipShape
    batch_size: int
    positions: range
    seed: int
    num_attempts: int  # videos tried, one more than are forgiven: where all of them are unusable, the run ends
    quarantined: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, step: int) -> tuple[Batch | None, dict[str, str], int]:
        bad = dict[str, str]()
        clips = list[torch.Tensor]()
        labels = list[int | tuple[float, ...]]()
        samples = list[int]()
        fixed = list[int]()
        num_shrunk = 0
        repeats = self.data.repeats
        for position in self.positions:
            item, which, of_video, shrunk = self._sample(step, position, bad)
            if not of_video:
                return None, bad, num_shrunk
            num_shrunk += shrunk
            clips += of_video
            labels += [item.target or item.class_number] * repeats
            first = (step * self.batch_size + position) * repeats
            samples += range(first, first + repeats)
            fixed += range(which * repeats, which * repeats + repeats)
        batch = Batch(
            clip_BTCHW=torch.stack(clips),
            label_B=torch.tensor(labels),
            sample_B=torch.tensor(samples),
            fixed_B=torch.tensor(fixed) if self.data.fixed_clips else None,
        )
        return batch, bad, num_shrunk

    def _sample(self, step: int, position: int, bad: dict[str, str]) -> tuple[Item, int, list[torch.Tensor], bool]:
        """Video, number among the fixed clips, clips; True if the video was too short for the stride."""
        failed = set[str]()
        for attempt in range(len(self.items)):
            place = self._place(step, position, attempt)
            item = self.items[place]
            if item.path in failed:
                continue
            if len(failed) == self.num_attempts:
                break
            try:
                if item.path in self.quarantined:
                    raise UserError(self.quarantined[item.path])
                rng = random.Random(seed_of(self.seed, _SAMPLE, step, position))
                which = 0
                if self.data.fixed_clips:
                    which = place * self.data.fixed_clips + rng.randrange(self.data.fixed_clips)
                    rng = random.Random(seed_of(self.seed, _FIXED, which))
                make = image_clips if place >= self.num_videos else train_clips
                return item, which, *make(item.path, self.data, self.shape, rng=rng)
            except UserError as error:
                bad[item.path] = str(error)
                failed.add(item.path)
        return item, 0, [], False

    def _place(self, step: int, position: int, attempt: int = 0) -> int:
        draw = functools.partial(video_of, step, position, batch_size=self.batch_size, attempt=attempt)
        num_images = len(self.items) - self.num_videos
        if num_images and random.Random(seed_of(self.seed, _IMAGE, step, position)).random() < self.data.image_share:
            return self.num_videos + draw(num_videos=num_images, seed=seed_of(self.seed, _IMAGE))
        return draw(num_videos=self.num_videos, seed=self.seed)

    def paths(self, step: int) -> list[str]:
        return [self.items[self._place(step, position)].path for position in self.positions]

    def decode(self, path: str) -> object:
        return train_clips(path, self.data, self.shape, rng=random.Random(0))


@functools.lru_cache(maxsize=4)
def _shuffled(num_videos: int, seed: int, epoch: int, pass_in_epoch: int) -> list[int]:
    order = list(range(num_videos))
    random.Random(seed_of(seed, _SHUFFLE, epoch, pass_in_epoch)).shuffle(order)
    return order
