"""Views of videos for testing. T frames, C = 3 channels, H = W = size pixels, V views."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from mam2.config import UserError
from mam2.data.bad_videos import BadVideos
from mam2.data.catalog import Catalog, Item
from mam2.data.clips import Data, VideoViews, views_of
from mam2.data.shape import ClipShape
from mam2.data.workers import parallel


@dataclass(frozen=True, kw_only=True)
class Views:
    """All the views that one video is tested on.

    Attributes:
        views_VTCHW: uint8 (clips * crops, T, 3, H, W); the crops of a clip follow one another.
        label: the video's class, -1 if it has none.
        index: the video's place in the catalog.
        seconds: the video's length; NaN where nothing tells.
    """

    views_VTCHW: torch.Tensor
    label: int
    index: int
    seconds: float = math.nan


class ViewLoader:
    """The test views of videos: `clips` windows evenly spaced in time, `crops` squares along the long side.

    Each video is decoded once for all its views. The processes share the videos, each video once. A damaged video
    yields nothing and is kept in `bad`. Short videos are never refused.

    Args:
        catalog: the videos.
        data: `stride_frames`, and how to decode; the rest is for training.
        shape: frames per view, and pixels of both its sides.
        clips: windows per video; 1 takes the centre.
        crops: squares per window; 1 takes the centre.
        rank: this process takes every `world_size`-th video, from number `rank`.
        world_size: the number of processes.

    Attributes:
        bad: the unusable videos that this process met so far.
        quarantined: those of them that ended or stalled the process that decoded them.

    Raises:
        UserError: fewer than one clip or crop; while iterating, too many unusable videos.
    """

    def __init__(
        self,
        catalog: Catalog,
        data: Data,
        shape: ClipShape,
        *,
        clips: int,
        crops: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if clips < 1 or crops < 1:
            raise UserError(f"A test with {clips} clips and {crops} crops; both must be at least 1.")
        num_videos = len({item.path for item in catalog.items})  # a list may hold a video several times
        self.bad = BadVideos(num_videos=num_videos, max_share=data.max_bad_share)
        self._indices = range(rank, len(catalog.items), world_size)
        self._set = _ViewSet(catalog.items, data, shape, clips, crops)
        self.quarantined = self._set.quarantined

    def __iter__(self) -> Iterator[Views]:
        data = self._set.data
        made = parallel(self._set, self._indices, num_workers=data.num_workers, timeout_seconds=data.timeout_seconds)
        for views, bad in made:
            self.bad.add(bad)
            if views is not None:
                yield views


@dataclass(frozen=True)
class _ViewSet:
    """index -> the video's views (None if it is unusable), and the reason by its path."""

    items: Sequence[Item]
    data: Data
    shape: ClipShape
    clips: int
    crops: int
    quarantined: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, index: int) -> tuple[Views | None, dict[str, str]]:
        item = self.items[index]
        try:
            if item.path in self.quarantined:
                raise UserError(self.quarantined[item.path])
            views_VTCHW, seconds = self._views(item.path)
        except UserError as error:
            return None, {item.path: str(error)}
        return Views(views_VTCHW=views_VTCHW, label=item.class_number, index=index, seconds=seconds), {}

    def _views(self, path: str) -> VideoViews:
        return views_of(path, self.data, self.shape, clips=self.clips, crops=self.crops)

    def paths(self, index: int) -> list[str]:
        return [self.items[index].path]

    def decode(self, path: str) -> None:
        with contextlib.suppress(UserError):
            self._views(path)
