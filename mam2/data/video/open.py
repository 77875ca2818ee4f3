"""Opens a video: a file by a backend, a folder of JPEG frames, or decoded frames in a .npy file."""

from __future__ import annotations

import math
import os
import typing
from pathlib import Path

from mam2.config import UserError
from mam2.data.video.frame_file import SUFFIX, FrameFile
from mam2.data.video.jpeg_folder import JpegFolder
from mam2.data.video.pyav import PyAVVideo
from mam2.data.video.segment import Segment
from mam2.data.video.segment_path import segment_of
from mam2.data.video.source import Backend, VideoSource
from mam2.data.video.torchcodec import TorchcodecVideo


def open_video(path: str | Path, *, backend: Backend = "pyav", short_side: int = 0) -> VideoSource:
    """Opens a video file with a backend, a folder of JPEG frames, or a .npy file.

    Args:
        path: file or folder; with `#t=START,END` (seconds) at its end, that segment.
        backend: decoder of files.
        short_side: pixels; larger frames are scaled down to it while they are decoded. 0 leaves them as they are.

    Raises:
        VideoError: nothing there, no video, or one that is damaged from the start.
        UserError: an unknown backend, or one that can't be loaded.
    """
    if backend not in typing.get_args(Backend):
        raise UserError(f"The backend of a video is {backend!r}; accepted: {', '.join(typing.get_args(Backend))}.")
    file, start, end = segment_of(str(path))
    source: VideoSource
    if os.path.isdir(file):
        source = JpegFolder(file, short_side=short_side)
    elif file.endswith(SUFFIX):
        source = FrameFile(file)
    else:
        source = (TorchcodecVideo if backend == "torchcodec" else PyAVVideo)(file, short_side=short_side)
    return source if (start, end) == (0, math.inf) else Segment(source, start=start, end=end, path=str(path))
