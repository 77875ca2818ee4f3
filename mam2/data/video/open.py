"""Opens a video: a file by a backend, or a folder of JPEG frames."""

from __future__ import annotations

import os
import typing
from pathlib import Path

from mam2.config import UserError
from mam2.data.video.jpeg_folder import JpegFolder
from mam2.data.video.pyav import PyAVVideo
from mam2.data.video.source import Backend, VideoSource
from mam2.data.video.torchcodec import TorchcodecVideo


def open_video(path: str | Path, *, backend: Backend = "pyav") -> VideoSource:
    """Opens a video file with a backend, or a folder of frames if the path is a folder.

    Raises:
        VideoError: nothing there, no video, or one that is damaged from the start.
        UserError: an unknown backend, or one that can't be loaded.
    """
    if backend not in typing.get_args(Backend):
        raise UserError(f"The backend of a video is {backend!r}; accepted: {', '.join(typing.get_args(Backend))}.")
    if os.path.isdir(path):
        return JpegFolder(path)
    return TorchcodecVideo(path) if backend == "torchcodec" else PyAVVideo(path)
