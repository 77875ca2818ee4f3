"""Video files whose frames are found by their index: the base of the decoders."""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import torch

from mam2.data.video.index import check_indices, frame_at, read_index, scaled_down, time_of, video_errors
from mam2.data.video.source import VideoSource


class IndexedVideo(VideoSource):
    """A `VideoSource` of a video file; a subclass defines `decode` and `each`. Raises VideoError if the file is absent,
    no video, or damaged from the start."""

    def __init__(self, path: str | Path, *, short_side: int = 0) -> None:
        self.path = str(path)
        with video_errors(self.path):
            status = os.stat(self.path)
            self._index = read_index(self.path, status.st_size, status.st_mtime_ns)
        self.num_frames = self._index.num_frames
        self.num_missing = self._index.num_missing
        self.fps = self._index.fps
        self.height, self.width = scaled_down(*self._index.upright, short_side)

    def decode(self, wanted: list[int]) -> torch.Tensor:
        """Frames at sorted indices that are all different: uint8 (len(wanted), 3, height, width)."""
        raise NotImplementedError

    def frames(self, indices: Sequence[int]) -> torch.Tensor:
        wanted = sorted(set(indices))
        check_indices(self, wanted)
        clip_TCHW = self.decode(wanted)
        return clip_TCHW if list(indices) == wanted else clip_TCHW[[bisect_left(wanted, i) for i in indices]]

    def frame_at(self, seconds: float) -> int:
        pts = self._index.pts
        if pts is None or math.isinf(seconds):
            return frame_at(seconds, fps=self.fps, num_frames=self.num_frames, path=self.path)
        return bisect_left(pts, pts[0] + seconds / self._index.tick_seconds - 1e-3)

    def time_of(self, index: int) -> float:
        pts = self._index.pts
        if pts is None:
            return time_of(index, fps=self.fps, path=self.path)
        shown = min(index, len(pts) - 1)
        seconds = (pts[shown] - pts[0]) * self._index.tick_seconds
        return seconds + (time_of(index - shown, fps=self.fps, path=self.path) if index > shown else 0.0)
