"""Interface of an open video: a file, a folder of JPEG frames, or decoded frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol, Self

from torch import Tensor

Backend = Literal["pyav", "torchcodec"]
"""Decoders of video files."""


class VideoSource(Protocol):
    """Open video; a context manager that closes it.

    Attributes:
        path: file or folder.
        num_frames: number of frames.
        num_missing: frames at the end that the file has lost; asking for one is an error.
        fps: frames per second on average; None where the source does not say.
        height, width: pixels, upright.
    """

    path: str
    num_frames: int
    num_missing: int = 0
    fps: float | None
    height: int
    width: int

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Closes what is open."""
        return

    def frames(self, indices: Sequence[int]) -> Tensor:
        """Frames at `indices`, in the order asked; repeats are allowed.

        Returns:
            RGB, uint8 (len(indices), 3, height, width); the channels lie last in memory, as decoded.

        Raises:
            VideoError: a frame is lost, damaged, or does not decode.
            IndexError: an index outside 0 .. num_frames - 1.
        """
        raise NotImplementedError

    def frame_at(self, seconds: float) -> int:
        """Number of the first frame shown at this time, counted from the first frame, or later. Raises VideoError if
        the times of frames are not known."""
        raise NotImplementedError

    def time_of(self, index: int) -> float:
        """Seconds from the first frame until a frame is shown; for `num_frames`, until the end of the last. Raises
        VideoError if the times of frames are not known."""
        raise NotImplementedError

    def each(self) -> Iterator[Tensor]:
        """All frames in one pass, with the memory of one: RGB, uint8 (3, height, width). Raises VideoError if a frame
        does not decode."""
        raise NotImplementedError
