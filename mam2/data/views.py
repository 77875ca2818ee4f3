"""Views of videos for testing. T frames, C = 3 channels, H = W = size pixels, V views."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from mam2.config import UserError
from mam2.data.bad_videos import BadVideos
from mam2.data.catalog import Catalog
from mam2.data.clips import Data, views_of
from mam2.data.shape import ClipShape
from mam2.data.workers import VideoByVideo, parallel


@dataclass(frozen=True, kw_only=True)
class Views:
    """All the views that one video is tested on.

    Attributes:
        views_VTCHW: uint8 (clips * crops, T, 3, H, W); the crops of a clip follow one another.
        label: the video's class, -1 if it has none.
        index: the video's place in the catalog.
        seconds: the video's length; NaN if unknown.
    """

    views_VTCHW: torch.Tensor
    label: int
    index: int
    seconds: float = math.nan


class ViewLoader:
    """Loader of videos' test views: `clips` windows evenly spaced in time, `crops` squares along the long side.

    Each video is decoded once, by one process. A damaged one yields nothing; short ones are never refused.

    Args:
        catalog: the videos.
        data: `stride_frames`, and how to decode; the rest is for training.
        shape: frames per view, and pixels of both its sides.
        clips: windows per video; 1 takes the centre.
        crops: squares per window; 1 takes the centre.
        rank: this process takes every `world_size`-th video, from number `rank`.
        world_size: number of processes.

    Attributes:
        bad: unusable videos that this process met so far.
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
        paths = [item.path for item in catalog.items]
        self.bad = BadVideos(num_videos=len(set(paths)), max_share=data.max_bad_share)  # a list may repeat a video
        self._items = catalog.items
        self._data = data
        self._indices = range(rank, len(paths), world_size)
        self._set = VideoByVideo(partial(views_of, data=data, shape=shape, clips=clips, crops=crops), paths)
        self.quarantined = self._set.quarantined

    def __iter__(self) -> Iterator[Views]:
        data = self._data
        made = parallel(self._set, self._indices, num_workers=data.num_workers, timeout_seconds=data.timeout_seconds)
        for index, found in zip(self._indices, made, strict=True):
            item = self._items[index]
            if isinstance(found, UserError):
                self.bad.add({item.path: str(found)})
            else:
                views_VTCHW, seconds = found
                yield Views(views_VTCHW=views_VTCHW, label=item.class_number, index=index, seconds=seconds)
