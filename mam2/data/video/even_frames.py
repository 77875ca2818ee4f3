"""Evenly spaced frames that can be read one by one: the base of JPEG folders and .npy files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from mam2.data.video.index import check_indices, frame_at, time_of
from mam2.data.video.source import VideoSource


class EvenFrames(VideoSource):
    """A `VideoSource` of evenly spaced frames; a subclass sets the attributes and defines `read`."""

    def read(self, index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Reads one frame: RGB, uint8 (height, width, 3), upright."""
        raise NotImplementedError

    def frames(self, indices: Sequence[int]) -> torch.Tensor:
        check_indices(self, sorted(indices))
        decoded = {index: self.read(index) for index in set(indices)}
        return torch.from_numpy(np.stack([decoded[index] for index in indices])).permute(0, 3, 1, 2)

    def frame_at(self, seconds: float) -> int:
        return frame_at(seconds, fps=self.fps, num_frames=self.num_frames, path=self.path)

    def time_of(self, index: int) -> float:
        return time_of(index, fps=self.fps, path=self.path)

    def each(self) -> Iterator[torch.Tensor]:
        yield from (torch.from_numpy(self.read(index)).permute(2, 0, 1) for index in range(self.num_frames))
