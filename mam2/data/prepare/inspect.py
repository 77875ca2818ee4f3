"""Inspection of videos: each is opened once and noted in a journal, so that a killed run resumes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, cast

from mam2.config import UserError, printable
from mam2.data.video.jpeg_folder import read_meta
from mam2.data.video.open import open_video
from mam2.data.video.segment_path import segment_of
from mam2.data.workers import parallel_map
from mam2.files import parse_json
from mam2.progress import progress


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """Contents of a video, and its file's size and time, by which a change is noticed."""

    size_bytes: int
    mtime_ns: int
    frames: int
    fps: float
    width: int
    height: int
    digest: str


def inspect_videos(
    paths: Sequence[str], journal: Path, *, num_workers: int, timeout_seconds: int
) -> tuple[dict[str, VideoInfo | str], int]:
    """Opens videos, in `num_workers` processes (0: in this one), and draws a progress bar.

    Args:
        paths: the videos.
        journal: file that keeps the answers. A video whose size and time are those of its line is not opened again.
        num_workers: processes.
        timeout_seconds: a video that keeps a process longer counts as unreadable, as one that ends it does.

    Returns:
        Contents of each path's video, or a sentence on why it can't be read; and the number of opened videos.

    Raises:
        UserError: the journal can't be written. What was read until then is kept.
    """
    known = _read_journal(journal)
    opened = dict[str, VideoInfo | str]()
    todo = list[str]()
    for path in dict.fromkeys(paths):
        name = relative_to(path, journal.parent)
        try:
            status = os.stat(segment_of(path)[0])
        except OSError as error:  # a link to nowhere
            opened[path] = f"{printable(path)} can't be read: {error.strerror}. Fix or remove it."
            continue
        info = known.get(name)
        if name != name.strip() or name != name.encode("utf-8", "replace").decode():
            reason = "its name begins or ends with a blank, or is not UTF-8"
            opened[path] = f"{printable(path)} can't be listed: {reason}. Rename it."
        elif info and (info.size_bytes, info.mtime_ns) == (status.st_size, status.st_mtime_ns):
            opened[path] = info
        else:
            todo.append(path)
    results = parallel_map(inspect_video, todo, num_workers=num_workers, timeout_seconds=timeout_seconds)
    with _open_journal(journal) as file, closing(results) as found_of:
        pairs = zip(todo, found_of, strict=True)
        for path, found in progress(pairs, title="Reading videos", total=len(todo)):
            opened[path] = str(found) if isinstance(found, UserError) else found
            if isinstance(found, VideoInfo):  # the others may be fixed, and are few
                line = json.dumps({"path": relative_to(path, journal.parent), **asdict(found)})
                with writing(journal, journal):
                    file.write(line.encode() + b"\n")
    return opened, len(todo)


def _open_journal(journal: Path) -> BinaryIO:
    with writing(journal, journal):
        journal.parent.mkdir(parents=True, exist_ok=True)
        file = cast(BinaryIO, journal.open("ab+", buffering=0))  # each line is in the file at once
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # the last line was cut short by a kill
                file.write(b"\n")
        return file


def _read_journal(journal: Path) -> dict[str, VideoInfo]:
    known = {}
    for line in journal.read_bytes().splitlines() if journal.is_file() else ():
        try:
            fields = parse_json(line.decode())
            name = fields.pop("path")
            known[name] = VideoInfo(**fields)
        except (ValueError, KeyError, TypeError, AttributeError):  # a line cut short by a kill
            continue
    return known


def inspect_video(path: str) -> VideoInfo:
    """Opens a video and decodes its last frame. Raises UserError if that fails."""
    try:
        name, start, end = segment_of(path)
        status = os.stat(name)
        with open_video(path) as video:
            video.frames([video.num_frames - 1])
        if os.path.isdir(name):  # made of a file that it names, or else known by its size and time
            source = read_meta(name).get("source", {})
            digest = source.get("sha256") or f"{name} {status.st_size} {status.st_mtime_ns}"
        else:
            with open(name, "rb") as file:
                digest = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}. Fix or remove it.") from error
    return VideoInfo(
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        frames=video.num_frames,
        fps=video.fps or 0.0,
        width=video.width,
        height=video.height,
        digest=digest if path == name else f"{digest} {start:g} {end:g}",
    )


@contextmanager
def writing(target: Path, journal: Path) -> Iterator[None]:
    """Turns errors of writing a file into advice."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{target} can't be written: {error.strerror or error}. Make room there, or give a place that can be "
            f"written as `out`, and run again; what was read is kept in {journal}."
        ) from error


def relative_to(path: str, folder: Path) -> str:
    """Path as the manifest and the journal have it: from their folder if it lies in there, else absolute."""
    return os.path.abspath(path).removeprefix(os.path.join(os.path.abspath(folder), ""))
