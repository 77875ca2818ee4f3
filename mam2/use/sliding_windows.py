"""Vectors of sliding windows: all processes compute them, and parts keep them until they become a file.

B windows, F numbers.
"""

from __future__ import annotations

import glob
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mam2 import distributed
from mam2.config import UserError
from mam2.data.shape import ClipShape
from mam2.data.windows import Planned, Window, WindowLoader, evenly
from mam2.progress import progress
from mam2.train.run import locked
from mam2.use import features_file
from mam2.use.embedder import WINDOWS_AT_ONCE, Embedder
from mam2.use.features_file import Parts, parts_folder, parts_of

log = logging.getLogger("mam2")
PART_SECONDS = 15.0  # the most work that a kill loses


@dataclass(frozen=True, kw_only=True)
class Completed:
    """Result of `complete`: usable videos with all their windows, number of new ones, left-out videos with reasons."""

    planned: list[Planned]
    num_new: int
    bad: dict[str, str]

    @property
    def versions(self) -> dict[str, tuple[int, int]]:
        """Size and time of change of each video."""
        return {video.path: video.version for video in self.planned}


@contextmanager
def only_writer_of(out: Path) -> Iterator[None]:
    """Locks the output on rank 0 and removes what a killed process left half-written; at the end, the folder of parts
    if it is empty."""
    if distributed.rank() > 0:
        yield
        return
    folder = parts_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        for rest in (*out.parent.glob(f"{glob.escape(out.name)}.*.part"), *folder.glob("*.part")):
            rest.unlink()
        try:
            yield
        finally:
            if not parts_of(out):
                shutil.rmtree(folder, ignore_errors=True)


def complete(
    embedder: Embedder,
    paths: Sequence[str],
    out: Path,
    *,
    known: Sequence[Path],
    labels: Mapping[str, str] | None = None,
    doing: str,
) -> Completed:
    """Computes the missing windows of videos into parts; several processes share them.

    Args:
        embedder: makes the vectors.
        paths: paths of the videos.
        out: the file that the parts are for; `only_writer_of` must hold it.
        known: files whose rows are not computed again.
        labels: labels of videos by path, written with the vectors.
        doing: a word for the progress bar.
    """
    planned, bad = _look(embedder, paths)
    there = features_file.known_windows(known, {video.path: video.version for video in planned})
    session = features_file.next_session(out)
    distributed.barrier()  # all have looked before any writes
    todo = [
        (video, window)
        for video in planned
        for window in video.windows
        if (video.path, window.start, window.end) not in there
    ]
    parts = Parts(out, embedder.provenance, session=session, rank=distributed.rank())
    num_new, left_out = _compute(embedder, todo[_own_part(len(todo))], parts, labels or {}, doing=doing)
    for _, reasons in (found := distributed.gather((num_new, left_out))):
        bad |= reasons
    return Completed(planned=planned, num_new=sum(number for number, _ in found), bad=bad)


def _own_part(num_items: int) -> slice:
    """This process's share of a list: neighbours, so that a video stays whole."""
    rank, count = distributed.rank(), distributed.world_size()
    return slice(num_items * rank // count, num_items * (rank + 1) // count)


@dataclass(frozen=True, kw_only=True)
class Found:
    """Windows of a video in the parts of a file, in order, with the part and the row number of each."""

    path: str
    windows: tuple[Window, ...]
    places: tuple[tuple[Path, int], ...]


def found_along(out: Path, planned: Sequence[Planned]) -> list[Found]:
    """Windows of videos in the parts of a file, in the videos' order; videos without any are left out."""
    versions = {video.path: video.version for video in planned}
    places = dict[tuple[str, float, float], tuple[Path, int]]()
    for part in parts_of(out):
        for number, (path, start, end, *version) in enumerate(features_file.keys_of(part)):
            if versions.get(path) == tuple(version):
                places.setdefault((path, start, end), (part, number))
    found = []
    for video in planned:
        there = [window for window in video.windows if (video.path, window.start, window.end) in places]
        if there:
            rows = tuple(places[video.path, window.start, window.end] for window in there)
            found.append(Found(path=video.path, windows=tuple(there), places=rows))
    return found


def vectors_along(found: Iterable[Found]) -> Iterator[tuple[Found, Tensor]]:
    """Each video with the vectors of its windows, float32 (B, F); one video is in memory at a time."""

    @lru_cache(maxsize=2)  # neighbours lie together
    def vectors_in(part: Path) -> Tensor:
        batches = features_file.rows_of(part, ["embedding"])
        return torch.cat([features_file.matrix_of(batch["embedding"]) for batch in batches])

    for video in found:
        yield video, torch.stack([vectors_in(part)[number] for part, number in video.places])


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoVectors:
    """Vectors of one video's windows, in memory.

    Attributes:
        path: absolute path of the video.
        windows: windows that decode, in order.
        vector_BF: float32 vectors of the windows.
        num_windows: number of windows in the video; more than were computed, if it is long.
        is_short: true if the whole video is shorter than one window.
        problem: reason why a part of it is left out; empty without one.
    """

    path: str
    windows: tuple[Window, ...]
    vector_BF: Tensor
    num_windows: int
    is_short: bool
    problem: str


def vectors_of_video(embedder: Embedder, video: str | Path, *, max_windows: int | None = None) -> VideoVectors:
    """Vectors of a video's windows, of at most `max_windows` spread evenly; raises UserError for an unusable video."""
    path = os.path.abspath(video)
    [planned] = embedder.plan([path])
    if not isinstance(planned, Planned):
        raise UserError(planned[1])
    windows = planned.windows if max_windows is None else evenly(planned.windows, max_windows)
    shape = ClipShape.of(embedder.provenance.identity)
    asked = [(path, window) for window in windows]
    loader = WindowLoader(asked, embedder.data, shape, batch_size=WINDOWS_AT_ONCE)
    found = list(embedder.embed(loader))
    if not found:
        raise UserError(loader.bad[path])
    return VideoVectors(
        path=path,
        windows=tuple(windows[place] for places, _ in found for place in places),
        vector_BF=torch.cat([vector_BF for _, vector_BF in found]),
        num_windows=len(planned.windows),
        is_short=planned.is_short,
        problem=loader.bad.get(path, ""),
    )


def not_writable(path: str) -> str:
    """The reason why a path can't be written into a file of rows; empty if it can."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return f"{path} has a name that is not UTF-8, which can't be written. Rename it."
    return ""


def none_usable(done: Completed, num_videos: int) -> UserError:
    """The error that no window of any video could be used."""
    reasons = "".join(f"\n  {reason}" for reason in list(done.bad.values())[:5])
    return UserError(f"None of the {num_videos} videos can be used. The first reasons:{reasons}")


def _look(embedder: Embedder, paths: Sequence[str]) -> tuple[list[Planned], dict[str, str]]:
    """The windows of all videos, and path and reason of unusable ones; the processes share the work."""
    own = paths[_own_part(len(paths))]
    results = list(progress(embedder.plan(own), title="looking at videos", total=len(own)))
    planned = []
    bad = dict[str, str]()
    for result in (result for part in distributed.gather(results) for result in part):
        if isinstance(result, tuple):
            bad[result[0]] = result[1]
        elif reason := not_writable(result.path):
            bad[result.path] = reason
        else:
            planned.append(result)
    if distributed.rank() == 0:
        for reason in bad.values():
            log.warning("Left out: %s", reason)
        if num_short := sum(video.is_short for video in planned):
            window = embedder.provenance.identity.window
            log.info(
                f"{num_short} of {len(planned)} videos are shorter than a window of {window}: "
                "each is one window, whose frames are closer together."
            )
    return planned, bad


def _compute(
    embedder: Embedder,
    windows: Sequence[tuple[Planned, Window]],
    parts: Parts,
    labels: Mapping[str, str],
    *,
    doing: str,
) -> tuple[int, dict[str, str]]:
    """Writes the rows of this process's windows; their number, and path and reason of what was left out."""
    shape = ClipShape.of(embedder.provenance.identity)
    asked = [(video.path, window) for video, window in windows]
    loader = WindowLoader(asked, embedder.data, shape, batch_size=WINDOWS_AT_ONCE)
    waiting: list[tuple[tuple[int, ...], Tensor]] = []

    def write() -> None:
        if waiting:
            found = [windows[place] for places, _ in waiting for place in places]
            columns: dict[str, list[Any]] = {
                "path": [video.path for video, _ in found],
                "start": [window.start for _, window in found],
                "end": [window.end for _, window in found],
                "fps": [video.fps for video, _ in found],
                "label": [labels.get(video.path) for video, _ in found],
                "size_bytes": [video.version[0] for video, _ in found],
                "mtime_ns": [video.version[1] for video, _ in found],
            }
            parts.write(columns, torch.cat([vector_BF for _, vector_BF in waiting]))
            waiting.clear()

    num_written = 0
    written = time.monotonic()
    batches = progress(
        embedder.embed(loader), title=doing, total=len(windows), hidden=not windows, size=lambda batch: len(batch[0])
    )
    try:
        for places, vector_BF in batches:
            num_written += len(places)
            waiting.append((places, vector_BF))
            if time.monotonic() - written >= PART_SECONDS:
                write()
                written = time.monotonic()
    finally:  # also after Ctrl-C
        write()
    return num_written, loader.bad
