"""Batches of clips for training, and views of videos for testing.

What a training sample looks like depends on the seed, the step and the position in the batch only: not on the
number of workers or processes, nor on where the run was resumed.

B clips, T frames, C = 3 channels, H = W = size pixels, V views.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mam2 import distributed
from mam2.config import UserError, seed_of
from mam2.data.catalog import Catalog, Item
from mam2.data.clips import Data, train_clips, views_of
from mam2.data.workers import parallel
from mam2.device import send

_LOG = logging.getLogger("mam2")
_SHUFFLE, _SAMPLE, _FIXED = 0, 1, 2  # keep the seeds of the kinds of draw apart


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One process's part of a training batch; with repeated augmentation a video's clips are neighbours.

    Attributes:
        clip_BTCHW: uint8 (B, T, 3, H, W).
        label_B: int64 (B,), -1 where there is no label.
        sample_B: int64 (B,), the clip's number in the whole run: (step * batch_size + position in the batch) *
            repeats + which of the repeats.
        fixed_B: int64 (B,), the clip's number among the fixed ones: (the video's place * fixed_clips + which of them)
            * repeats + which of the repeats; None where each clip is drawn anew.
    """

    clip_BTCHW: torch.Tensor
    label_B: torch.Tensor
    sample_B: torch.Tensor
    fixed_B: torch.Tensor | None = None

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.label_B)

    def to(self, device: torch.device) -> Batch:
        """The same batch with clips and labels on another device; the numbers stay on the host."""
        return Batch(
            clip_BTCHW=send(self.clip_BTCHW, device),
            label_B=send(self.label_B, device),
            sample_B=self.sample_B,
            fixed_B=self.fixed_B,
        )

    def part(self, index: int, *, of: int) -> Batch:
        """Part `index` of the batch in `of` equal parts."""
        size = len(self.label_B) // of
        start, end = index * size, (index + 1) * size
        return Batch(
            clip_BTCHW=self.clip_BTCHW[start:end],
            label_B=self.label_B[start:end],
            sample_B=self.sample_B[start:end],
            fixed_B=None if self.fixed_B is None else self.fixed_B[start:end],
        )


@dataclass(frozen=True, kw_only=True)
class Views:
    """All the views that one video is tested on.

    Attributes:
        views_VTCHW: uint8 (clips * crops, T, 3, H, W); the crops of a clip follow one another.
        label: the video's class, -1 if it has none.
        index: the video's place in the catalog.
    """

    views_VTCHW: torch.Tensor
    label: int
    index: int


def steps_per_epoch(num_videos: int, batch_size: int) -> int:
    """Full batches in one pass over the videos, at least 1."""
    return max(1, num_videos // batch_size)


def video_of(step: int, position: int, *, num_videos: int, batch_size: int, seed: int, attempt: int = 0) -> int:
    """The video from which the sample at `position` of the whole batch of `step` is made.

    Each epoch has its own shuffle, and its last incomplete batch is left out. Where a batch is larger than
    the data set, the videos are shuffled and drawn again until it is full.

    Args:
        step: counts from 0 over the whole run.
        position: 0 .. batch_size - 1.
        num_videos: the size of the data set.
        batch_size: samples a step, over all processes.
        seed: the run's.
        attempt: how many videos drawn for this sample were unusable; each gives way to the next of the
            shuffle.
    """
    epoch, step_in_epoch = divmod(step, steps_per_epoch(num_videos, batch_size))
    pass_in_epoch, place = divmod(step_in_epoch * batch_size + position, num_videos)
    return _shuffled(num_videos, seed, epoch, pass_in_epoch)[(place + attempt) % num_videos]


class TrainLoader:
    """The training batches of one process, from step `start_step` up to, not including, `num_steps`.

    A damaged or too short video is replaced by another, reported once through the log, and kept in `bad`.

    Args:
        catalog: the videos.
        data: how clips are made of them.
        num_frames: frames a clip.
        size: pixels, both sides of the crop.
        batch_size: samples a step, over all processes.
        seed: all that is random follows from it.
        num_steps: the length of the whole run, counted from step 0.
        rank: this process yields part `rank` of `world_size` equal parts of each batch.
        world_size: the number of processes.
        start_step: where to begin.

    Attributes:
        steps_per_epoch: full batches in one pass over the videos, at least 1.
        num_steps: the length of the whole run.
        data, num_videos: the settings, and how many videos there are.
        bad: path and reason of the unusable videos that this process met so far.

    Raises:
        UserError: no videos, or a batch that does not divide by the processes; while iterating, too many
            unusable videos.
    """

    def __init__(
        self,
        catalog: Catalog,
        data: Data,
        *,
        num_frames: int,
        size: int,
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
        self.bad: dict[str, str] = {}
        self.data, self.num_videos = data, len(catalog.items)
        self._steps = range(start_step, num_steps)
        local = batch_size // world_size
        positions = range(rank * local, (rank + 1) * local)
        self._set = _TrainSet(catalog.items, data, num_frames, size, batch_size, positions, seed)

    def count_bad(self) -> int:
        """Unusable videos that all processes met so far; every process must call it.

        Raises:
            UserError: there are more than `data.max_bad_share` forgives.
        """
        bad = {path: why for found in distributed.gather(self.bad) for path, why in found.items()}
        check_bad(bad, self.num_videos, self.data)
        return len(bad)

    def __iter__(self) -> Iterator[Batch]:
        for batch, bad in _results(self._set, self._steps):
            _report(bad, self.bad, len(self._set.items), self._set.data)
            yield batch


class ViewLoader:
    """The test views of videos: `clips` windows evenly spaced in time, `crops` squares along the long side.

    Each video is decoded once for all its views. The processes share the videos out, each video once. A
    damaged video yields nothing; it is reported and kept in `bad`. Short videos are never refused.

    Args:
        catalog: the videos.
        data: `stride_frames`, and how to decode; the rest is for training.
        num_frames: frames a view.
        size: pixels, both sides of a view.
        clips: windows a video; 1 takes the centre.
        crops: squares a window; 1 takes the centre.
        rank: this process takes every `world_size`-th video, from number `rank`.
        world_size: the number of processes.

    Attributes:
        data: the settings.
        bad: path and reason of the unusable videos that this process met so far.
        quarantined: those of them that ended or stalled the process that decoded them.

    Raises:
        UserError: fewer than one clip or crop; while iterating, too many unusable videos.
    """

    def __init__(
        self,
        catalog: Catalog,
        data: Data,
        *,
        num_frames: int,
        size: int,
        clips: int,
        crops: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if clips < 1 or crops < 1:
            raise UserError(f"A test with {clips} clips and {crops} crops; both must be at least 1.")
        self.bad: dict[str, str] = {}
        self._indices = range(rank, len(catalog.items), world_size)
        self.data = data
        self._set = _ViewSet(catalog.items, data, num_frames, size, clips, crops)
        self.quarantined = self._set.quarantined

    def __iter__(self) -> Iterator[Views]:
        for views, bad in _results(self._set, self._indices):
            _report(bad, self.bad, len(self._set.items), self._set.data)
            if views is not None:
                yield views


@dataclass(frozen=True)
class _TrainSet:
    """step -> this process's batch (None if a place stays empty), and the unusable videos met on the way."""

    items: Sequence[Item]
    data: Data
    num_frames: int
    size: int
    batch_size: int
    positions: range
    seed: int
    quarantined: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, step: int) -> tuple[Batch | None, dict[str, str]]:
        clips, bad = list[torch.Tensor](), dict[str, str]()
        labels, samples, fixed = list[int](), list[int](), list[int]()
        repeats = self.data.repeats
        for position in self.positions:
            item, which, of_video = self._sample(step, position, bad)
            if not of_video:
                return None, bad
            clips += of_video
            labels += [_label(item)] * repeats
            first = (step * self.batch_size + position) * repeats
            samples += range(first, first + repeats)
            fixed += range(which * repeats, which * repeats + repeats)
        batch = Batch(
            clip_BTCHW=torch.stack(clips),
            label_B=torch.tensor(labels),
            sample_B=torch.tensor(samples),
            fixed_B=torch.tensor(fixed) if self.data.fixed_clips else None,
        )
        return batch, bad

    def _sample(self, step: int, position: int, bad: dict[str, str]) -> tuple[Item, int, list[torch.Tensor]]:
        """The video, which of the fixed clips it is, and its clips."""
        num_videos = len(self.items)
        # One video more than are forgiven: where all of them are unusable, the run ends.
        for attempt in range(min(num_videos, _num_forgiven(num_videos, self.data) + 1)):
            place = self._place(step, position, attempt)
            item = self.items[place]
            try:
                if item.path in self.quarantined:
                    raise UserError(self.quarantined[item.path])
                rng, which = random.Random(seed_of(self.seed, _SAMPLE, step, position)), 0
                if self.data.fixed_clips:
                    which = place * self.data.fixed_clips + rng.randrange(self.data.fixed_clips)
                    rng = random.Random(seed_of(self.seed, _FIXED, which))
                clips = train_clips(item.path, self.data, num_frames=self.num_frames, size=self.size, rng=rng)
                return item, which, clips
            except UserError as error:
                bad[item.path] = str(error)
        return item, 0, []

    def _place(self, step: int, position: int, attempt: int = 0) -> int:
        numbers = {"num_videos": len(self.items), "batch_size": self.batch_size, "seed": self.seed}
        return video_of(step, position, attempt=attempt, **numbers)

    def paths(self, step: int) -> list[str]:
        return [self.items[self._place(step, position)].path for position in self.positions]

    def decode(self, path: str) -> None:
        with contextlib.suppress(UserError):
            train_clips(path, self.data, num_frames=self.num_frames, size=self.size, rng=random.Random(0))


@dataclass(frozen=True)
class _ViewSet:
    """index -> the video's views (None if it is unusable), and the reason by its path."""

    items: Sequence[Item]
    data: Data
    num_frames: int
    size: int
    clips: int
    crops: int
    quarantined: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, index: int) -> tuple[Views | None, dict[str, str]]:
        item = self.items[index]
        try:
            if item.path in self.quarantined:
                raise UserError(self.quarantined[item.path])
            views_VTCHW = self._views(item.path)
        except UserError as error:
            return None, {item.path: str(error)}
        return Views(views_VTCHW=views_VTCHW, label=_label(item), index=index), {}

    def _views(self, path: str) -> torch.Tensor:
        sizes = {"num_frames": self.num_frames, "size": self.size}
        return views_of(path, self.data, clips=self.clips, crops=self.crops, **sizes)

    def paths(self, index: int) -> list[str]:
        return [self.items[index].path]

    def decode(self, path: str) -> None:
        with contextlib.suppress(UserError):
            self._views(path)


def _label(item: Item) -> int:
    return -1 if item.label is None else item.label


@functools.lru_cache(maxsize=4)
def _shuffled(num_videos: int, seed: int, epoch: int, pass_in_epoch: int) -> list[int]:
    order = list(range(num_videos))
    random.Random(seed_of(seed, _SHUFFLE, epoch, pass_in_epoch)).shuffle(order)
    return order


def _results(videos: _TrainSet | _ViewSet, indices: range) -> Iterator[Any]:
    data = videos.data
    return parallel(videos, indices, num_workers=data.num_workers, timeout_seconds=data.timeout_seconds)


def _num_forgiven(num_videos: int, data: Data) -> int:
    return max(1, int(data.max_bad_share * num_videos)) if data.max_bad_share > 0 else 0


def _report(new_bad: dict[str, str], bad: dict[str, str], num_videos: int, data: Data) -> None:
    """Logs and keeps unusable videos; raises UserError if there are too many."""
    for path, reason in new_bad.items():
        if path not in bad:
            bad[path] = reason
            _LOG.warning("Left out: %s", reason)
    check_bad(bad, num_videos, data)


def check_bad(bad: dict[str, str], num_videos: int, data: Data) -> None:
    """Raises UserError if more videos are unusable than `data.max_bad_share` forgives; `bad` is of all processes."""
    num_forgiven = _num_forgiven(num_videos, data)
    if len(bad) > num_forgiven or len(bad) == num_videos:
        reasons = "".join(f"\n  {reason}" for reason in list(bad.values())[:5])
        raise UserError(
            f"{len(bad)} of {num_videos} videos can't be used; data.max_bad_share = {data.max_bad_share:g} "
            f"forgives {num_forgiven}. Mend or remove them, or raise --data.max-bad-share. "
            f"The first {min(5, len(bad))}:{reasons}"
        )
