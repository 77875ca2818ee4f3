"""The face of a source of frames: a video file, or a folder of JPEG frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol, Self

from torch import Tensor

Backend = Literal["pyav", "torchcodec"]
"""Decoders of video files."""


class VideoSource(Protocol):
    """An open video; a context manager that closes it.

    Attributes:
        path: path of the file or folder.
        num_frames: number of frames.
        num_missing: number of frames at the end that the file has lost; asking for one is an error.
        fps: frames per second on average; None where the source does not say.
        height, width: pixels, upright.
    """

    path: str
    num_frames: int
    num_missing: int
    fps: float | None
    height: int
    width: int

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def frames(self, indices: Sequence[int]) -> Tensor:
        """The frames at `indices`, in the order asked; repeats are allowed.

        Returns:
            RGB, uint8 (len(indices), 3, height, width); the channels lie last in memory, as decoded.

        Raises:
            VideoError: a frame that the video promises does not decode, or is damaged.
            IndexError: an index outside 0 .. num_frames - 1.
        """

    def frame_at(self, seconds: float) -> int:
        """The number of the first frame that is shown at this time, counted from the first frame, or later.

        Raises:
            VideoError: the times of frames are not known.
        """

    def time_of(self, index: int) -> float:
        """Seconds from the first frame to the moment when a frame is shown; for `num_frames`, to the end of the last.

        Raises:
            VideoError: the times of frames are not known.
        """

    def each(self) -> Iterator[Tensor]:
        """All frames one after another, in one pass and with the memory of one: RGB, uint8 (3, height, width).

        Raises:
            VideoError: a frame that does not decode.
        """
