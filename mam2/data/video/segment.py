"""Segment of a long video as a video of its own, `long.mp4#t=12.5,20`: from 12.5 seconds up to 20."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from mam2.data.video.index import VideoError, check_indices
from mam2.data.video.source import VideoSource

_AT_ONCE = 16  # frames, in one pass over all of them


class Segment(VideoSource):
    """Frames of a source that are shown from `start` up to, not including, `end`, seconds from its first frame. Raises
    VideoError if no frame is shown then."""

    def __init__(self, source: VideoSource, *, start: float, end: float, path: str) -> None:
        self._source = source
        self._start = start
        self._first = source.frame_at(start)
        last = source.frame_at(end)
        self.path = path
        self.num_frames = last - self._first
        self.num_missing = max(0, last - max(self._first, source.num_frames - source.num_missing))
        self.fps = source.fps
        self.height, self.width = source.height, source.width
        if self.num_frames < 1:
            seconds = f", {source.num_frames / source.fps:.1f} seconds" if source.fps else ""
            raise VideoError(
                f"{path} holds no frame: its video has {source.num_frames} frames{seconds}. Correct start and end."
            )

    def __exit__(self, *error: object) -> None:
        self._source.__exit__(*error)

    def frames(self, indices: Sequence[int]) -> torch.Tensor:
        check_indices(self, sorted(indices))
        return self._source.frames([self._first + index for index in indices])

    def each(self) -> Iterator[torch.Tensor]:
        for first in range(0, self.num_frames, _AT_ONCE):
            yield from self.frames(range(first, min(first + _AT_ONCE, self.num_frames)))

    def frame_at(self, seconds: float) -> int:
        return min(max(self._source.frame_at(self._start + seconds) - self._first, 0), self.num_frames)

    def time_of(self, index: int) -> float:
        return self._source.time_of(self._first + index) - self._start
