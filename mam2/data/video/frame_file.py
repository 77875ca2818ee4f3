"""Decoded frames in a .npy file, read through a memory map: uint8 (T, H, W, 3). Studies share them among their runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch

from mam2.data.video.index import VideoError, check_indices, frame_at, time_of
from mam2.data.video.source import VideoSource
from mam2.files import first_line, written_whole

SUFFIX = ".npy"


class FrameFile:
    """A source of frames that are decoded already; see `VideoSource`.

    Raises:
        VideoError: no array of frames.
    """

    num_missing = 0
    fps: float | None = None

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._frames = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise VideoError(f"{path} holds no frames: {first_line(error)}. Remove it.") from error
        if self._frames.ndim != 4 or self._frames.shape[3] != 3 or self._frames.dtype != np.uint8:
            found = f"{self._frames.dtype} {self._frames.shape}"
            raise VideoError(f"{path} is an array {found}; frames are uint8 (T, H, W, 3). Remove it.")
        self.num_frames, self.height, self.width, _ = self._frames.shape

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def frames(self, indices: Sequence[int]) -> torch.Tensor:
        """See `VideoSource.frames`."""
        check_indices(self, sorted(indices))
        return torch.from_numpy(self._frames[list(indices)]).permute(0, 3, 1, 2)

    def frame_at(self, seconds: float) -> int:
        """See `VideoSource.frame_at`."""
        return frame_at(seconds, fps=self.fps, num_frames=self.num_frames, path=self.path)

    def time_of(self, index: int) -> float:
        """See `VideoSource.time_of`."""
        return time_of(index, fps=self.fps, path=self.path)

    def each(self) -> Iterator[torch.Tensor]:
        """See `VideoSource.each`."""
        yield from (torch.from_numpy(frame.copy()).permute(2, 0, 1) for frame in self._frames)


def write_frames(video: VideoSource, file: Path) -> None:
    """Writes all frames of a video.

    Raises:
        VideoError: a frame that does not decode.
    """
    frames = np.stack([frame.permute(1, 2, 0).numpy() for frame in video.each()])
    with written_whole(file) as part, part.open("wb") as opened:
        np.save(opened, frames)
