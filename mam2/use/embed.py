"""Features along videos: one vector for each sliding window, by a frozen encoder, in a Parquet file.

B windows, T frames, F numbers.
"""

from __future__ import annotations

import glob
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mam2 import distributed
from mam2.config import UserError
from mam2.data.catalog import Catalog, Item, read_catalog
from mam2.data.clips import Data, middle_clip, opened
from mam2.data.windows import Planned, Window, WindowLoader, clips_of
from mam2.files import segment_of
from mam2.model.encoder import EncoderConfig
from mam2.train.run import locked
from mam2.use.embedder import WINDOWS_AT_ONCE, Embed, Embedder, load_embedder
from mam2.use.features_file import (
    Parts,
    check_identity,
    files_of,
    known_windows,
    merge,
    next_session,
    open_features,
    parts_folder,
    parts_of,
)

log = logging.getLogger("mam2")
PART_SECONDS = 15.0  # of work are lost at most where the process is killed


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What `embed_file` did.

    Attributes:
        num_windows: rows in the file.
        num_new: those that were computed now.
        num_videos: videos that were asked for.
        bad: path and reason of those of which something was left out.
    """

    num_windows: int
    num_new: int
    num_videos: int
    bad: dict[str, str]


def embed(source: str | Path, videos: str | Path, out: str | Path = "", *, config: Embed | None = None) -> pa.Table:
    """The features of videos, a row for each window: path, start, end (seconds), fps, label, embedding, and the file's
    size and time of change.

    Args:
        source: what `load_encoder` takes, such as a run's folder.
        videos: a folder of videos at any depth, a CSV with path, or a video file.
        out: a .parquet file to keep them in; one that is there is completed. Empty keeps nothing.
        config: windows, pooling and the rest; the defaults if None.

    Raises:
        UserError: no encoder, no usable videos, or a file with other features.
    """
    if out:
        embed_file(source, videos, Path(out), config=config or Embed())
        return pq.read_table(out)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "features.parquet"
        embed_file(source, videos, file, config=config or Embed())
        return pq.read_table(file)


def read_clip(
    path: str | Path,
    config: EncoderConfig,
    *,
    start: float | None = None,
    end: float | None = None,
    stride_frames: int = 4,
) -> Tensor:
    """The clip of a video that an encoder is tested on: uint8 (T, 3, S, S), for `encoder(clip[None])`.

    It has the frames and the resize that training and testing use; the crop is the centre square.

    Args:
        path: a video file or a folder of frames; `long.mp4#t=12,20` is a segment.
        config: the encoder's, for T and S.
        start: seconds from the first frame; the middle of the video if None.
        end: of the window that the frames are taken from, seconds; by default it holds T frames `stride_frames` apart.
        stride_frames: distance between neighbouring frames; less where the video is too short for it.

    Raises:
        UserError: a video that can't be decoded, or that ends before `start`.
    """
    data = Data(stride_frames=stride_frames)
    if start is None and end is None:
        return middle_clip(path, data, num_frames=config.frames, size=config.size)
    with opened(str(path), data, size=config.size) as video:
        there = video.num_frames - video.num_missing
        first = video.frame_at(start or 0.0)
        last = min(there, first + config.frames * stride_frames if end is None else video.frame_at(end))
        if first >= last:
            raise UserError(
                f"{path} has no frames from {start or 0:g} to {'its end' if end is None else f'{end:g}'} seconds; it "
                f"lasts {video.time_of(there):.3f}. Give a start before the end of the video, and an end after it."
            )
        return clips_of(video, [(first, last)], data, num_frames=config.frames, size=config.size)[0]


def embed_file(source: str | Path, videos: str | Path, out: Path, *, config: Embed) -> Embedded:
    """Embeds videos into a features file, which is completed if it is there; see `embed`.

    Rows of unchanged files (path, size, time of change) are not computed again, also after a kill in the middle. Of
    several processes each computes a part of the windows.

    Raises:
        UserError: see `embed`.
    """
    if out.suffix != ".parquet":
        raise UserError(f"Features can't be written to {out}; accepted is a file that ends in .parquet.")
    catalog = catalog_of(str(videos), config)
    embedder = load_embedder(str(source), config)
    for file in files_of(out):
        check_identity(file, embedder.maker.identity)
    with _only_writer(out):
        return _embed_all(catalog, embedder, out)


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
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


def _embed_all(catalog: Catalog, embedder: Embedder, out: Path) -> Embedded:
    first = distributed.rank() == 0
    planned, bad = _look(embedder, [item.path for item in catalog.items])
    versions = {of.path: of.version for of in planned}
    known = known_windows(out, versions)
    session = next_session(out)
    distributed.barrier()  # all have looked before any writes
    todo = [(of, window) for of in planned for window in of.windows if (of.path, window.start, window.end) not in known]
    rank, count = distributed.rank(), distributed.world_size()
    own = todo[len(todo) * rank // count : len(todo) * (rank + 1) // count]  # neighbours, so that a video stays whole
    labels = {item.path: catalog.classes[item.label] for item in catalog.items if item.label is not None}
    num_new, left_out = _embed_own(embedder, own, Parts(out, embedder.maker, session=session, rank=rank), labels)
    found = distributed.gather((num_new, left_out))
    num_new = sum(number for number, _ in found)
    bad |= {path: reason for _, of_rank in found for path, reason in of_rank.items()}
    num_windows = 0
    if first:
        if not out.exists() and not parts_of(out):
            reasons = "".join(f"\n  {reason}" for reason in list(bad.values())[:5])
            raise UserError(f"None of the {len(catalog.items)} videos can be used. The first reasons:{reasons}")
        if parts_of(out) or labels or not out.exists():
            num_windows = merge(out, embedder.maker, versions=versions, labels=labels)
        else:
            with open_features(out) as parquet:
                num_windows = parquet.metadata.num_rows
    distributed.barrier()
    return Embedded(num_windows=num_windows, num_new=num_new, num_videos=len(catalog.items), bad=bad)


def catalog_of(videos: str, config: Embed) -> Catalog:
    """The videos that are asked for: those of a folder or a list, or a single one; each once, with absolute paths.

    Raises:
        UserError: there are none.
    """
    if os.path.isfile(segment_of(videos)[0]) and not videos.lower().endswith(".csv"):
        if config.labelled:
            raise UserError(f"{videos} is a video, which has no label. Leave --labelled out, or give class folders.")
        return Catalog(items=(Item(path=os.path.abspath(videos), label=None),), classes=())
    catalog = read_catalog(
        videos,
        labelled=config.labelled,
        split=config.split,
        path_column=config.path_column,
        label_column=config.label_column,
    )
    items = {path: replace(item, path=path) for item in catalog.items for path in [os.path.abspath(item.path)]}
    return replace(catalog, items=tuple(items.values()))


def _look(embedder: Embedder, paths: Sequence[str]) -> tuple[list[Planned], dict[str, str]]:
    """The windows of all videos, and the reasons of those that can't be used; the processes share the looking."""
    rank, count = distributed.rank(), distributed.world_size()
    own = paths[len(paths) * rank // count : len(paths) * (rank + 1) // count]
    with _progress() as progress:
        results = list(progress.track(embedder.plan(own), total=len(own), description="looking at videos"))
    planned = []
    bad = dict[str, str]()
    for result in (result for part in distributed.gather(results) for result in part):
        if isinstance(result, tuple):
            bad[result[0]] = result[1]
        elif not _is_utf8(result.path):
            bad[result.path] = f"{result.path} has a name that is not UTF-8, which Parquet can't hold. Rename it."
        else:
            planned.append(result)
    if rank == 0:
        for reason in bad.values():
            log.warning("Left out: %s", reason)
        if num_short := sum(of.is_short for of in planned):
            log.info(
                f"{num_short} of {len(planned)} videos are shorter than a window of {embedder.maker.identity.window}: "
                "each is one window, whose frames are closer together."
            )
    return planned, bad


def _embed_own(
    embedder: Embedder, windows: Sequence[tuple[Planned, Window]], parts: Parts, labels: Mapping[str, str]
) -> tuple[int, dict[str, str]]:
    """Writes the rows of this process's windows; their number, and the reasons of windows that were left out."""
    identity = embedder.maker.identity
    loader = WindowLoader(
        [(video.path, window) for video, window in windows],
        embedder.data,
        num_frames=identity.frames,
        size=identity.size,
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
            parts.write(columns, torch.cat([embedding_BF for _, embedding_BF in waiting]))
            waiting.clear()

    num_written = 0
    written = time.monotonic()
    with _progress() as progress:
        task = progress.add_task("embedding", total=len(windows), visible=len(windows) > 0)
        try:
            for places, embedding_BF in embedder.embed(loader):
                num_written += len(places)
                waiting.append((places, embedding_BF))
                progress.advance(task, len(places))
                if time.monotonic() - written >= PART_SECONDS:
                    write()
                    written = time.monotonic()
        finally:  # also after Ctrl-C
            write()
    return num_written, loader.bad


def _progress() -> Progress:
    """A progress bar, on one of the processes."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=distributed.rank() != 0)


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
