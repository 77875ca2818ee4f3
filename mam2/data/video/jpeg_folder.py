"""Folder of JPEG files as a video, read at any place without decoding what lies before it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from mam2.config import UserError
from mam2.data.video.even_frames import EvenFrames
from mam2.data.video.index import MAX_PIXELS, VideoError, reason_of, scaled_down
from mam2.files import parse_json

FRAME_SUFFIXES = (".jpg", ".jpeg")
"""Endings of the files taken for frames, in lower case."""

META = "meta.json"
"""File about a folder's frames: `fps`, `count`, and how they were made."""


class JpegFolder(EvenFrames):
    """Folder of JPEG frames; a `VideoSource`.

    The frames are sorted by the last number in their names: 1.jpg, img_00002.jpeg, clip7_3.jpg. Gaps in the numbers are
    accepted, as some tools keep one frame in five, unless meta.json states another `count`. `fps` is that of meta.json.
    All frames must have the height and width of the first.

    Raises:
        VideoError: no such folder, no frames in it, or names that give them no order.
    """

    def __init__(self, folder: str | Path, *, short_side: int = 0) -> None:
        self.path = str(folder)
        self._names = _sorted_names(self.path)
        meta = read_meta(self.path)
        self.num_frames = len(self._names)
        self.fps = meta.get("fps")
        if meta.get("count", self.num_frames) != self.num_frames:
            there = f"its {META} promises {meta['count']} frames, but {self.num_frames} are there"
            raise VideoError(_message(self.path, there))
        with self._opened(0) as image:  # reads no pixels
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            self._stored = image.size
            width, height = image.size[::-1] if turned else image.size
        self.height, self.width = scaled_down(height, width, short_side)
        self._is_scaled = (height, width) != (self.height, self.width)

    def read(self, index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        with self._opened(index) as image:
            stored = image.size
            if self._is_scaled:
                image.draft("RGB", (min(self.width, self.height),) * 2)  # its decoder scales by 2, 4 or 8 at no cost
            upright = ImageOps.exif_transpose(image).convert("RGB")
            found, first = (stored, self._stored) if self._is_scaled else (upright.size, (self.width, self.height))
            if found != first:
                size = f"{found[0]} × {found[1]} pixels, the first {first[0]} × {first[1]}"
                raise VideoError(_message(self.path, f"{self._names[index]} has {size}"))
            if self._is_scaled:
                upright = upright.resize((self.width, self.height), Image.Resampling.BILINEAR)
        return np.array(upright)

    @contextmanager
    def _opened(self, index: int) -> Iterator[Image.Image]:
        try:
            with Image.open(os.path.join(self.path, self._names[index]), formats=["JPEG"]) as image:
                if math.prod(image.size) > MAX_PIXELS:
                    raise ValueError(f"it is said to have {image.width} × {image.height} pixels")
                yield image
        except UserError:
            raise
        except Exception as error:  # Pillow raises errors of many kinds
            reason = reason_of(error).split(" '")[0]
            raise VideoError(_message(self.path, f"{self._names[index]}: {reason}")) from error


def _sorted_names(folder: str) -> list[str]:
    try:
        names = [name for name in os.listdir(folder) if name.lower().endswith(FRAME_SUFFIXES) and name[0] != "."]
    except OSError as error:
        raise VideoError(_message(folder, error.strerror or str(error))) from error
    if not names:
        raise VideoError(_message(folder, f"it holds no frames (numbered files ending in {', '.join(FRAME_SUFFIXES)})"))
    by_number: dict[int, str] = {}
    for name in sorted(names):
        digits = re.findall(r"[0-9]+", name.rsplit(".", 1)[0])
        if not digits:
            raise VideoError(_message(folder, f"{name} has no number that would give it a place"))
        if (other := by_number.setdefault(int(digits[-1]), name)) != name:
            raise VideoError(_message(folder, f"{other} and {name} have the same number"))
    return [by_number[number] for number in sorted(by_number)]


def read_meta(folder: str) -> dict[str, Any]:
    """Contents of a folder's meta.json; empty without one. Raises VideoError if it is damaged, or of another kind."""
    try:
        meta = parse_json(Path(folder, META).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise VideoError(_message(folder, f"its {META} can't be read ({error})")) from error
    checks: dict[str, Callable[[Any], bool]] = {
        "fps": lambda fps: fps is None or (isinstance(fps, int | float) and 0 < fps < math.inf),
        "count": lambda count: isinstance(count, int),
        "source": lambda source: isinstance(source, dict),
    }
    for name, is_good in checks.items():
        if not isinstance(meta, dict) or (name in meta and not is_good(meta[name])):
            found = f"{name} is {meta[name]!r}" if isinstance(meta, dict) else f"it is {meta!r:.40}"
            raise VideoError(_message(folder, f"its {META} is of another kind: {found}"))
    return meta


def _message(folder: str, reason: str) -> str:
    return f"{folder} can't be read as frames: {reason}. Write the folder again or remove it."
