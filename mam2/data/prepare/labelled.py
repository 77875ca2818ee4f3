"""Labelled stretches of videos, as labelling tools export them, and the videos that they name."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mam2.config import UserError
from mam2.data.catalog import SPLIT_WORDS


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Video, or a stretch of its frames, with a label.

    Attributes:
        video: name in the export, perhaps a path of another machine.
        label: name of the class.
        frames: first frame, from 0, and the one after the last; None for the whole video.
        split: "train", "val", or another word that the export gives.
        place: file and line or task in which it was found, for messages.
    """

    video: str
    label: str
    frames: tuple[int, int] | None
    split: str
    place: str


def split_of(word: object) -> str:
    """Split that an export's word names; train without one."""
    text = str(word or "").strip()
    return SPLIT_WORDS.get(text.lower(), text) or "train"


class VideoFinder:
    """Finder of the videos that exports name, by as much of the path as both have in common.

    Args:
        root: folder of the videos, or the one labelled video.
        paths: videos in that folder, from there.
    """

    def __init__(self, root: Path, paths: Iterable[Path]) -> None:
        self._root = root
        self._by_name = defaultdict[str, list[Path]](list)
        for path in paths:
            self._by_name[path.name].append(path)
            self._by_name[path.stem].append(path)

    def find(self, labelled: Labelled) -> str:
        """Path of the labelled video; empty if it is not found. Raises UserError if the export names no video, or
        several could be meant."""
        if self._root.is_file():
            return str(self._root)
        if not labelled.video:
            raise UserError(
                f"{labelled.place}: the export names no video, as those of a CVAT job do not. Give the video itself as "
                "root, or export the task."
            )
        parts = PurePosixPath(labelled.video).parts
        upload = re.sub(r"^[0-9a-f]{8}-", "", parts[-1])  # Label Studio's prefix of an upload
        for name in dict.fromkeys((parts[-1], upload, PurePosixPath(parts[-1]).stem, PurePosixPath(upload).stem)):
            found = self._by_name.get(name, [])
            common = [_num_common(path.parts[:-1], parts[:-1]) for path in found]
            best = [path for path, number in zip(found, common, strict=True) if number == max(common)]
            if len(best) > 1:
                raise UserError(
                    f"{labelled.place}: {labelled.video} can be {self._root / best[0]} or {self._root / best[1]}. Give "
                    "a root that holds one of them, or rename one."
                )
            if best:
                return str(self._root / best[0])
        return ""


def _num_common(parts: tuple[str, ...], others: tuple[str, ...]) -> int:
    """Number of folders that two paths have in common, from the videos upwards."""
    pairs = zip(reversed(parts), reversed(others), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def seconds_of(frames: tuple[int, int], fps: float) -> tuple[float, float]:
    """Seconds at which frames numbered at a rate start and end. They lie half-way between frames, so that time stamps
    that a file rounds do not move a frame across."""
    start, end = frames
    return max(0.0, (start - 0.5) / fps), (end - 0.5) / fps
