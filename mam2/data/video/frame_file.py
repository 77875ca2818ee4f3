"""Decoded frames in a .npy file, read through a memory map: uint8 (T, H, W, 3). The runs of a study share it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mam2.data.video.even_frames import EvenFrames
from mam2.data.video.index import VideoError
from mam2.data.video.source import VideoSource
from mam2.files import first_line, written_whole

SUFFIX = ".npy"


class FrameFile(EvenFrames):
    """Decoded frames; a `VideoSource`. Raises VideoError for a file without an array of frames."""

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

    def read(self, index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.array(self._frames[index])


def write_frame_file(video: VideoSource, file: Path) -> None:
    """Writes all frames of a video. Raises VideoError if one does not decode."""
    frames = np.stack([frame.permute(1, 2, 0).numpy() for frame in video.each()])
    with written_whole(file) as part, part.open("wb") as opened:
        np.save(opened, frames)
