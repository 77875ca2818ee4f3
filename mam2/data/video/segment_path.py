"""Paths of videos that may name a segment, `long.mp4#t=12.5,20`: reading and writing them, a hash of their files."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable


def segment_of(path: str) -> tuple[str, float, float]:
    """File that a path names, and the seconds at which its segment starts and ends.

    A path may end as web addresses of media do: `long.mp4#t=12.5,20`, `long.mp4#t=12.5`, `long.mp4#t=,20`. Without
    that, or if a file has this name, it is the whole file: 0 and infinity.
    """
    found = re.fullmatch(r"(.+)#t=([0-9.]*)(?:,([0-9.]+))?", path, re.DOTALL)
    if not found or os.path.lexists(path):
        return path, 0.0, math.inf
    try:
        return found[1], float(found[2] or 0), float(found[3] or math.inf)
    except ValueError:  # 1.2.3
        return path, 0.0, math.inf


def segment_ending(start: float, end: float) -> str:
    """Ending of a path that names a segment, in seconds: `#t=12.5,20`; with an `end` of infinity, `#t=12.5`."""
    times = [f"{time:.6f}".rstrip("0").rstrip(".") for time in (start, end) if not math.isinf(time)]
    return f"#t={','.join(times)}"


def fingerprint(paths: Iterable[str]) -> str:
    """Hash of files' paths, sizes and times of change: other files, or changed ones, give another."""
    found = []
    for path in paths:
        status = os.stat(segment_of(path)[0])
        found.append((path, status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(found).encode()).hexdigest()
