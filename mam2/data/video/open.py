"""Opens a video: a file by a backend, or a folder of JPEG frames."""

from __future__ import annotations

import os
from pathlib import Path

from mam2.data.video.jpeg_folder import Frames
from mam2.data.video.pyav import Video
from mam2.data.video.source import Backend


def open_video(path: str | Path, *, backend: Backend = "pyav") -> Video | Frames:
    """Opens a video file with a backend, or a folder of frames if the path is a folder."""
    return Frames(path) if os.path.isdir(path) else Video(path, backend=backend)
