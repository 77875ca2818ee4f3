"""Frames at given indices from a video file, with torchcodec."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mam2.config import UserError
from mam2.data.transforms import resized
from mam2.data.video.index import VideoError, check_indices
from mam2.data.video.indexed import IndexedVideo

_AT_ONCE = 4  # frames in memory as large as they are stored


class TorchcodecVideo(IndexedVideo):
    """Video file, open for reading; a `VideoSource`.

    Frames are those of PyAV up to rounding in colours; files whose times or counts torchcodec reads otherwise are
    refused.

    Raises:
        VideoError: the file is absent, no video, damaged from the start, or read otherwise by torchcodec.
        UserError: torchcodec can't be loaded.
    """

    def __init__(self, path: str | Path, *, short_side: int = 0) -> None:
        super().__init__(path, short_side=short_side)
        self._decoder = self._open()

    def __exit__(self, *error: object) -> None:
        self._decoder = None

    def decode(self, wanted: list[int]) -> torch.Tensor:
        """Decodes a few frames at a time, as `IndexedVideo.decode`."""
        parts = [self._frames(wanted[first : first + _AT_ONCE]) for first in range(0, len(wanted), _AT_ONCE)]
        return torch.cat(parts)

    def each(self) -> Iterator[torch.Tensor]:
        check_indices(self, range(self.num_frames))
        yield from (self._frames([index])[0] for index in range(self.num_frames))

    def _open(self) -> Any:
        """Opens torchcodec's decoder, and checks that its frames are those of the index."""
        try:
            decoder = importlib.import_module("torchcodec.decoders").VideoDecoder
        except (ImportError, OSError, RuntimeError) as error:  # its libraries are loaded when it is imported
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"The backend torchcodec can't be loaded: {reason}. Install torchcodec, a version for torch "
                f"{torch.__version__}, and FFmpeg's shared libraries; or use the backend pyav."
            ) from error
        try:
            opened = decoder(f"file:{self.path}", num_ffmpeg_threads=1, seek_mode="exact")
        except (RuntimeError, ValueError) as error:
            raise self._error(f"fails ({str(error).strip().splitlines()[0]})") from error
        if self._index.orientation.mirrored:
            raise self._error("does not mirror the frames")
        if self._index.pts is None or opened.metadata.num_frames != self.num_frames - self.num_missing:
            raise self._error(f"counts {opened.metadata.num_frames} frames where {self.num_frames} decode")
        return opened

    def _frames(self, wanted: list[int]) -> torch.Tensor:
        assert self._index.pts is not None
        try:
            batch = self._decoder.get_frames_at(wanted)
        except (RuntimeError, IndexError) as error:
            raise self._error(f"fails ({str(error).strip().splitlines()[0]})") from error
        for index, seconds in zip(wanted, batch.pts_seconds.tolist(), strict=True):
            expected = self._index.pts[index] * self._index.tick_seconds
            if abs(seconds - expected) > 1e-4:
                raise self._error(f"finds frame {index} at {seconds:g} s where {expected:g} s is expected")
        return resized(batch.data, self.height, self.width)

    def _error(self, reason: str) -> VideoError:
        return VideoError(f"torchcodec {reason} in {self.path}. Use the backend pyav for this file.")
