"""Vectors along videos: computed window by window, by all processes, and kept in parts until they become a file.

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
from mam2.use.embedder import WINDOWS_AT_ONCE, Embedder
from mam2.use.features_file import (
    Parts,
    known_windows,
    matrix_of,
    next_session,
    parts_folder,
    parts_of,
    rows_of,
    values_of,
)

log = logging.getLogger("mam2")
PART_SECONDS = 15.0  # of work are lost at most where the process is killed


@dataclass(frozen=True, kw_only=True)
class Completed:
    """What `complete` did, of all processes.

    Attributes:
        planned: the videos that can be used, with all their windows.
        num_new: windows that were computed now.
        bad: path and reason of videos of which something was left out.
    """

    planned: list[Planned]
    num_new: int
    bad: dict[str, str]

    @property
    def versions(self) -> dict[str, tuple[int, int]]:
        """Size and time of change of each video."""
        return {of.path: of.version for of in self.planned}


@contextmanager
def only_writer_of(out: Path) -> Iterator[None]:
    """Keeps other processes from writing the same file, on rank 0; removes half-written files of one that was
    killed, and at the end the folder of parts if none are left."""
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
    """Computes the windows of videos that are not there yet, into parts; of several processes each some of them.

    Args:
        embedder: makes the vectors.
        paths: of the videos.
        out: the file whose parts they are; `only_writer_of` it must be held.
        known: files whose rows are not computed again.
        labels: of videos by path, written beside the vectors.
        doing: a word for the progress bar.
    """
    planned, bad = _look(embedder, paths)
    there = known_windows(known, {of.path: of.version for of in planned})
    session = next_session(out)
    distributed.barrier()  # all have looked before any writes
    todo = [(of, window) for of in planned for window in of.windows if (of.path, window.start, window.end) not in there]
    rank, count = distributed.rank(), distributed.world_size()
    own = todo[len(todo) * rank // count : len(todo) * (rank + 1) // count]  # neighbours, so that a video stays whole
    parts = Parts(out, embedder.provenance, session=session, rank=rank)
    num_new, left_out = _compute(embedder, own, parts, labels or {}, doing=doing)
    found = distributed.gather((num_new, left_out))
    return Completed(
        planned=planned,
        num_new=sum(number for number, _ in found),
        bad=bad | {path: reason for _, of_rank in found for path, reason in of_rank.items()},
    )


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the parts of a file hold of a video.

    Attributes:
        path: of the video.
        windows: those that are there, in order.
        places: of each the part, and the number of the row in it.
    """

    path: str
    windows: tuple[Window, ...]
    places: tuple[tuple[Path, int], ...]


def found_along(out: Path, planned: Sequence[Planned]) -> list[Found]:
    """What the parts of a file hold of videos, in their order; those of which there is nothing are left out."""
    versions = {of.path: of.version for of in planned}
    places = dict[tuple[str, float, float], tuple[Path, int]]()
    for part in parts_of(out):
        keys = ["path", "start", "end", "size_bytes", "mtime_ns"]
        rows = (row for batch in rows_of(part, keys) for row in values_of(batch, keys))
        for number, (path, start, end, *version) in enumerate(rows):
            if versions.get(path) == tuple(version):
                places.setdefault((path, start, end), (part, number))
    found = []
    for of in planned:
        there = [(window, place) for window in of.windows if (place := places.get((of.path, window.start, window.end)))]
        if there:
            windows, of_windows = zip(*there, strict=True)
            found.append(Found(path=of.path, windows=windows, places=of_windows))
    return found


def vectors_along(found: Iterable[Found]) -> Iterator[tuple[Found, Tensor]]:
    """Each video with the vectors of its windows, float32 (B, F); those of one video are in memory at a time."""

    @lru_cache(maxsize=2)  # neighbours lie together
    def vectors_in(part: Path) -> Tensor:
        return torch.cat([matrix_of(batch["embedding"]) for batch in rows_of(part, ["embedding"])])

    for of in found:
        yield of, torch.stack([vectors_in(part)[number] for part, number in of.places])


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoVectors:
    """Vectors of one video's windows, in memory.

    Attributes:
        path: absolute path of the video.
        windows: windows that decode, in order.
        vector_BF: a vector for each of them, float32.
        num_windows: windows that the video has; more than were computed, if it is long.
        is_short: the whole video is shorter than one window.
        problem: the reason why a part of it is left out; empty if none is.
    """

    path: str
    windows: tuple[Window, ...]
    vector_BF: Tensor
    num_windows: int
    is_short: bool
    problem: str


def vectors_of_video(embedder: Embedder, video: str | Path, *, max_windows: int | None = None) -> VideoVectors:
    """The vectors of a video's windows; with more than `max_windows`, of so many, spread evenly.

    Raises:
        UserError: a video that can't be used.
    """
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
    """Why a path can't be written into a file of rows; empty if it can."""
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
    """The windows of all videos, and the reasons of those that can't be used; the processes share the looking."""
    rank, count = distributed.rank(), distributed.world_size()
    own = paths[len(paths) * rank // count : len(paths) * (rank + 1) // count]
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
    if rank == 0:
        for reason in bad.values():
            log.warning("Left out: %s", reason)
        if num_short := sum(of.is_short for of in planned):
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
    """Writes the rows of this process's windows; their number, and the reasons of windows that were left out."""
    identity = embedder.provenance.identity
    loader = WindowLoader(
        [(video.path, window) for video, window in windows],
        embedder.data,
        ClipShape.of(identity),
        batch_size=WINDOWS_AT_ONCE,
    )
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
