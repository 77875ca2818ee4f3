"""Batches of clips for training, and views of videos for testing.

What a training sample looks like depends on the seed, the step and the position in the batch only: not on the
number of workers or processes, nor on where the run was resumed.

B clips, T frames, C = 3 channels, H = W = size pixels, V views.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import typing
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset

from mam2.config import UserError, seed_of
from mam2.data import sampling, transforms
from mam2.data.catalog import Catalog, Item
from mam2.data.decode import Video

_LOG = logging.getLogger("mam2")
_SHUFFLE, _SAMPLE = 0, 1  # keep the seeds of the two kinds of draw apart


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which videos, and how clips are made of them.

    Attributes:
        root: a folder of videos at any depth, a folder with a sub-folder a class, or a .csv with path,label.
        stride_frames: the distance between neighbouring frames of a clip (App. B).
        augment: the crop: "multi_scale_crop" for pre-training, "random_resized_crop" for fine-tuning.
        flip: mirror half of the clips; not where left and right matter, as in Something-Something V2.
        short: what to do with a video too short for the clip: "shrink" brings the clip's frames closer
            together, "repeat" repeats the last frame, "skip" does without the video.
        num_workers: processes that decode; 0 decodes in the training process.
        max_bad_share: damaged or too short videos that are replaced by others, as a share of all; one is
            always forgiven unless this is 0. More end the run.

    Raises:
        UserError: a value outside its range.
    """

    root: str = ""
    stride_frames: int = 4
    augment: Literal["multi_scale_crop", "random_resized_crop"] = "multi_scale_crop"
    flip: bool = True
    short: sampling.Short = "shrink"
    num_workers: int = 2
    max_bad_share: float = 0.05

    def __post_init__(self) -> None:
        for name, least in (("stride_frames", 1), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise UserError(f"data.{name} is {getattr(self, name)}; it must be at least {least}.")
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(f"data.max_bad_share is {self.max_bad_share}; a share of all videos is 0 to 1.")
        hints = typing.get_type_hints(Data)
        for name in ("augment", "short"):
            accepted = typing.get_args(hints[name])
            if getattr(self, name) not in accepted:
                raise UserError(f"data.{name} is {getattr(self, name)!r}; accepted: {', '.join(accepted)}.")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One process's part of a training batch.

    Attributes:
        clip_BTCHW: uint8 (B, T, 3, H, W).
        label_B: int64 (B,), -1 where there is no label.
        sample_B: int64 (B,), the sample's number in the whole run: step * batch_size + position in the batch.
    """

    clip_BTCHW: torch.Tensor
    label_B: torch.Tensor
    sample_B: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(
            clip_BTCHW=self.clip_BTCHW.to(device, non_blocking=True),
            label_B=self.label_B.to(device, non_blocking=True),
            sample_B=self.sample_B,
        )

    def part(self, start: int, end: int) -> Batch:
        """Samples start .. end - 1."""
        return Batch(
            clip_BTCHW=self.clip_BTCHW[start:end],
            label_B=self.label_B[start:end],
            sample_B=self.sample_B[start:end],
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
        self._steps = range(start_step, num_steps)
        local = batch_size // world_size
        positions = range(rank * local, (rank + 1) * local)
        self._set = _TrainSet(catalog.items, data, num_frames, size, batch_size, positions, seed)

    def __iter__(self) -> Iterator[Batch]:
        for batch, bad in _parallel(self._set, self._steps, self._set.data.num_workers):
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
        bad: path and reason of the unusable videos that this process met so far.

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
        self._set = _ViewSet(catalog.items, data, num_frames, size, clips, crops)

    def __iter__(self) -> Iterator[Views]:
        for views, bad in _parallel(self._set, self._indices, self._set.data.num_workers):
            _report(bad, self.bad, len(self._set.items), self._set.data)
            if views is not None:
                yield views


@dataclass(frozen=True)
class _TrainSet(Dataset):
    """step -> this process's batch (None if a place stays empty), and the unusable videos met on the way."""

    items: Sequence[Item]
    data: Data
    num_frames: int
    size: int
    batch_size: int
    positions: range
    seed: int

    def __getitem__(self, step: int) -> tuple[Batch | None, dict[str, str]]:
        clips, labels, bad = [], [], dict[str, str]()
        for position in self.positions:
            item, clip_TCHW = self._sample(step, position, bad)
            if clip_TCHW is None:
                return None, bad
            clips.append(clip_TCHW.contiguous())  # crops keep the decoder's layout, channels last
            labels.append(_label(item))
        samples = [step * self.batch_size + position for position in self.positions]
        batch = Batch(clip_BTCHW=torch.stack(clips), label_B=torch.tensor(labels), sample_B=torch.tensor(samples))
        return batch, bad

    def _sample(self, step: int, position: int, bad: dict[str, str]) -> tuple[Item, torch.Tensor | None]:
        num_videos = len(self.items)
        # One video more than are forgiven: where all of them are unusable, the run ends.
        for attempt in range(min(num_videos, _num_forgiven(num_videos, self.data) + 1)):
            numbers = {"num_videos": num_videos, "batch_size": self.batch_size, "seed": self.seed}
            item = self.items[video_of(step, position, attempt=attempt, **numbers)]
            try:
                rng = random.Random(seed_of(self.seed, _SAMPLE, step, position))
                return item, _train_clip(item.path, self.data, self.num_frames, self.size, rng)
            except UserError as error:
                bad[item.path] = str(error)
        return item, None


@dataclass(frozen=True)
class _ViewSet(Dataset):
    """index -> the video's views (None if it is unusable), and the reason by its path."""

    items: Sequence[Item]
    data: Data
    num_frames: int
    size: int
    clips: int
    crops: int

    def __getitem__(self, index: int) -> tuple[Views | None, dict[str, str]]:
        item, frames, stride_frames = self.items[index], self.num_frames, self.data.stride_frames
        try:
            with Video(item.path) as video:
                windows = sampling.views(
                    video.num_frames, clip_frames=frames, stride_frames=stride_frames, clips=self.clips
                )
                frames_TCHW = video.frames([i for window in windows for i in window])
        except UserError as error:
            return None, {item.path: str(error)}
        crops = transforms.test_crops(frames_TCHW, size=self.size, crops=self.crops)
        # Each crop holds the frames of all clips; the clip becomes the outer, the crop the inner dimension.
        views_VTCHW = torch.stack([crop.unflatten(0, (self.clips, frames)) for crop in crops], 1).flatten(0, 1)
        return Views(views_VTCHW=views_VTCHW.contiguous(), label=_label(item), index=index), {}


def _train_clip(path: str, data: Data, num_frames: int, size: int, rng: random.Random) -> torch.Tensor:
    with Video(path) as video:
        indices = sampling.dense(
            video.num_frames,
            clip_frames=num_frames,
            stride_frames=data.stride_frames,
            rng=rng,
            short=data.short,
            path=path,
        )
        clip_TCHW = video.frames(indices)
    if data.augment == "multi_scale_crop":
        clip_TCHW = transforms.multi_scale_crop(clip_TCHW, size=size, rng=rng)
    else:  # Table 8's RandAugment belongs before this crop, its random erasing after the flip
        clip_TCHW = transforms.random_resized_crop(clip_TCHW, size=size, rng=rng)
    return transforms.flip(clip_TCHW, rng) if data.flip else clip_TCHW


def _label(item: Item) -> int:
    return -1 if item.label is None else item.label


@functools.lru_cache(maxsize=4)
def _shuffled(num_videos: int, seed: int, epoch: int, pass_in_epoch: int) -> list[int]:
    order = list(range(num_videos))
    random.Random(seed_of(seed, _SHUFFLE, epoch, pass_in_epoch)).shuffle(order)
    return order


def _parallel(dataset: Dataset, indices: range, num_workers: int) -> Iterator[Any]:
    """dataset[i] for all indices, in order, made by `num_workers` processes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores
        loader = DataLoader(
            dataset,
            batch_size=None,  # an item is a whole batch already
            sampler=indices,
            num_workers=num_workers,
            collate_fn=_unchanged,
            worker_init_fn=_own_process_group,
            generator=torch.Generator(),  # or else the loader would draw from the run's own random numbers
        )
        results = iter(loader)
    yield from results


def _own_process_group(worker: int) -> None:
    """Signals to the trainer's process group (torchrun, Ctrl-C) must not kill its workers while it still saves.
    They end when the trainer does."""
    os.setpgrp()


def _unchanged(result: Any) -> Any:
    return result


def _num_forgiven(num_videos: int, data: Data) -> int:
    return max(1, int(data.max_bad_share * num_videos)) if data.max_bad_share > 0 else 0


def _report(new_bad: dict[str, str], bad: dict[str, str], num_videos: int, data: Data) -> None:
    """Logs and keeps unusable videos; raises UserError if there are too many."""
    for path, reason in new_bad.items():
        if path not in bad:
            bad[path] = reason
            _LOG.warning("Left out: %s", reason)
    num_forgiven = _num_forgiven(num_videos, data)
    if len(bad) > num_forgiven or len(bad) == num_videos:
        reasons = "".join(f"\n  {reason}" for reason in list(bad.values())[:5])
        raise UserError(
            f"{len(bad)} of {num_videos} videos can't be used; data.max_bad_share = {data.max_bad_share:g} "
            f"forgives {num_forgiven}. Mend or remove them, or raise --data.max-bad-share. "
            f"The first {min(5, len(bad))}:{reasons}"
        )
