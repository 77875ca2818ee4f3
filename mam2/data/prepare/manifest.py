"""Manifest of a data set: its videos with labels and splits, and a report of missing and damaged ones (Table 6).

Every video is opened once; its contents are kept in a journal next to the manifest.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from mam2.config import UserError, check, did_you_mean, printable
from mam2.data.benchmarks import BENCHMARKS, Benchmark
from mam2.data.catalog import VIDEO_SUFFIXES
from mam2.data.prepare.find import FoundVideos, Wanted, find_labelled, find_listed, find_own
from mam2.data.prepare.inspect import VideoInfo, inspect_videos, relative_to, writing
from mam2.data.prepare.label_tools import TOOLS
from mam2.data.prepare.labelled import seconds_of
from mam2.data.prepare.official_lists import read_lists
from mam2.data.video.index import frame_at
from mam2.data.video.segment_path import segment_ending
from mam2.files import write_text

COLUMNS = ("path", "label", "frames", "fps", "width", "height", "split")
"""First line of a manifest. `read_catalog` reads it; a path that is not absolute starts from the manifest."""

_CLIP_FRAMES = 16  # App. B
_NUM_SHOWN = 5
_FAR_FROM_TABLE_6 = 0.1


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Number of videos with a problem, and the first of them in words."""

    count: int
    first: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SplitCount:
    """Counts of one split.

    Attributes:
        split: "train", "val", or another word of the user's own CSV.
        listed: videos that the lists name; in a folder without lists, those found.
        written: videos in the manifest.
        table6: videos by the paper's Table 6, rounded; None for the user's own data.
        mean_seconds: average length of the manifest's videos that state their frame rate; 0 if none does.
    """

    split: str
    listed: int
    written: int
    table6: int | None
    mean_seconds: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """Findings of `prepare`. Missing, unreadable and extra videos are not in the manifest.

    Attributes:
        manifest: the CSV.
        splits: counts of each split, train first.
        num_classes: classes of the lists, or labels found.
        missing: listed, but not found.
        unreadable: found, but damaged.
        extra: found, but in none of the benchmark's lists.
        short: fewer than 16 frames; the loader can handle them.
        duplicates: the same content as another video of the manifest, those across two splits first.
        num_read: videos opened this time; the others were known from the journal.
        notes: sentences on counts far from Table 6, and on stretches with several labels.
    """

    manifest: Path
    splits: tuple[SplitCount, ...]
    num_classes: int
    missing: Problem
    unreadable: Problem
    extra: Problem
    short: Problem
    duplicates: Problem
    num_read: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Data set to check and to list in a manifest.

    Attributes:
        name: "k400", "ssv2", "ucf101", "hmdb51"; "folder" for one's own videos; "label_studio" or "cvat" for one's own
            with the labels of that tool.
        root: folder of the videos. Those of a benchmark are found by their names, in class folders or not, even with
            another ending. One's own can be a folder (with train and val folders or not, with a folder for each class
            or not), or a .csv with the columns path and, optionally, label, split, start and end (seconds). For a
            tool's labels: the folder in which the videos are found by their names, or the one video.
        split: official split of UCF101 and HMDB51, 1 to 3.
        annotations: folder of the official lists; by default looked for in `root`. For a tool: its export (.json or
            .xml), or a folder of exports.
        control: name of the Label Studio control whose labels to take; empty where there is one.
        label_fps: frames per second by which the tool counted; 0 takes each video's own.
        out: the manifest, a .csv; by default named after the data set, in `root`, where a relative path keeps its
            meaning when the folder is moved.
        num_workers: processes that open videos; 0 does it in this process.
        timeout_seconds: a video that keeps a process longer counts as unreadable, as one that ends it does.
        max_missing_share: share of the listed videos that may be missing or unreadable.
    """

    name: str
    root: Path
    split: int = 1
    annotations: Path | None = None
    control: str = ""
    label_fps: Annotated[float, Ge(0)] = 0.0
    out: Path | None = None
    num_workers: Annotated[int, Ge(0)] = 2
    timeout_seconds: Annotated[int, Ge(1)] = 120
    max_missing_share: Annotated[float, Ge(0), Le(1)] = 0.05


def prepare(config: Prepare) -> Report:
    """Checks videos against a benchmark's official lists, opens each of them, and writes the manifest.

    Raises:
        UserError: a setting outside its range, lists that are missing or wrong, no videos, too many of them missing,
            or a manifest that can't be written. Results until then are kept.
    """
    _check_arguments(config)
    manifest = _manifest_path(config)
    journal = manifest.with_name(f"{config.name}.journal.jsonl")
    found = _find(config)
    _check_share(found, [], config)
    opened, num_read = inspect_videos(
        [video.path for video in found.videos],
        journal,
        num_workers=config.num_workers,
        timeout_seconds=config.timeout_seconds,
    )
    checked = [_stretch(video, opened[video.path], config.label_fps) for video in found.videos]
    unreadable = [info for _, info in checked if isinstance(info, str)]
    readable = [(video, info) for video, info in checked if isinstance(info, VideoInfo)]
    _check_share(found, unreadable, config)
    _write_manifest(readable, manifest, journal)
    benchmark = BENCHMARKS.get(config.name)
    splits = _count(found, readable, benchmark)
    return Report(
        manifest=manifest,
        splits=splits,
        num_classes=found.num_classes,
        missing=_problem(found.missing),
        unreadable=_problem(unreadable),
        extra=_problem(found.extra),
        short=_problem([f"{v.path} ({info.frames} frames)" for v, info in readable if info.frames < _CLIP_FRAMES]),
        duplicates=_problem(_duplicates(readable)),
        num_read=num_read,
        notes=found.notes + _notes(splits, found.num_classes, benchmark),
    )


def _check_arguments(config: Prepare) -> None:
    check(config, "")
    name = config.name
    root = Path(config.root)
    if name not in (*BENCHMARKS, *TOOLS, "folder"):
        known = [*BENCHMARKS, *TOOLS, "folder"]
        raise UserError(f"{name!r} is no data set that prepare knows. {did_you_mean(name, known)}")
    if name not in BENCHMARKS and config.split != 1:
        raise UserError(f"The split is {config.split}; only UCF101 and HMDB51 have more than one. Leave it out.")
    if name not in TOOLS and (config.control or config.label_fps):
        raise UserError(f"A control and label_fps are of {' and '.join(TOOLS)}; {name} has none. Leave them out.")
    files = {"folder": (".csv",), **dict.fromkeys(TOOLS, VIDEO_SUFFIXES)}.get(name, ())
    if not root.is_dir() and not (root.is_file() and root.suffix.lower() in files):
        accepted = "a folder of videos" + (", or a .csv with the column path" if name == "folder" else "")
        accepted += ", or the one video that the labels are of" if name in TOOLS else ""
        raise UserError(f"{root} {'is no such thing' if root.exists() else 'does not exist'}. Accepted: {accepted}.")


def _manifest_path(config: Prepare) -> Path:
    name = config.name
    root = Path(config.root)
    if config.out is not None:
        manifest = Path(config.out)
    elif name in BENCHMARKS and BENCHMARKS[name].num_splits > 1:
        manifest = root / f"{name}_split{config.split}.csv"
    else:
        ending = "manifest.csv" if name == "folder" else f"{name}.csv"
        manifest = root / ending if root.is_dir() else root.with_name(f"{root.stem}_{ending}")
    if manifest.suffix.lower() != ".csv" or manifest.is_dir() or manifest.absolute() == root.absolute():
        raise UserError(f"The manifest can't be {manifest}. Give a new file whose name ends in .csv as `out`.")
    return manifest


def _find(config: Prepare) -> FoundVideos:
    root = Path(config.root)
    if config.name == "folder":
        return find_own(root)
    if config.name in TOOLS:
        return find_labelled(config.name, root, config.annotations, config.control)
    annotations = root if config.annotations is None else Path(config.annotations)
    return find_listed(read_lists(config.name, annotations, split=config.split), root)


def _stretch(video: Wanted, info: VideoInfo | str, label_fps: float) -> tuple[Wanted, VideoInfo | str]:
    """Labelled stretch of a video as a video of its own, or the reason why it has none; others as they are."""
    if video.frames is None or isinstance(info, str):
        return video, info
    if not info.fps:
        return video, f"{video.path} does not say how many frames it has per second, so no stretch of it can be found"
    start, end = seconds_of(video.frames, label_fps or info.fps)
    first, last = (frame_at(seconds, fps=info.fps, num_frames=info.frames, path=video.path) for seconds in (start, end))
    if last <= first:
        return video, f"{video.path} has {info.frames} frames; frame {video.frames[0]} is labelled, counted from 0"
    stretch = replace(info, frames=last - first, digest=f"{info.digest} {first} {last}")
    return replace(video, path=video.path + segment_ending(start, end)), stretch


def _check_share(found: FoundVideos, unreadable: Sequence[str], config: Prepare) -> None:
    num_listed = sum(found.listed.values())
    num_lost = len(found.missing) + len(unreadable)
    if num_lost == num_listed or num_lost > config.max_missing_share * num_listed:
        first = "; ".join(_problem([*found.missing, *unreadable]).first).rstrip(".")
        raise UserError(
            f"{len(found.missing)} of the {num_listed} listed videos are missing from {config.root}, and "
            f"{len(unreadable)} can't be read ({num_lost / num_listed:.1%}); the first: {first}. At most "
            f"{config.max_missing_share:.1%} may be. Fetch them, or allow more with max_missing_share."
        )


def _write_manifest(readable: Sequence[tuple[Wanted, VideoInfo]], manifest: Path, journal: Path) -> None:
    """Writes the manifest whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for video, info in readable:
        path = relative_to(video.path, manifest.parent)
        writer.writerow((path, video.label, info.frames, f"{info.fps:.6g}", info.width, info.height, video.split))
    with writing(manifest, journal):
        write_text(manifest, text.getvalue())


def _problem(names: Sequence[str]) -> Problem:
    return Problem(count=len(names), first=tuple(printable(name) for name in names[:_NUM_SHOWN]))


def _duplicates(readable: Sequence[tuple[Wanted, VideoInfo]]) -> list[str]:
    first = dict[str, Wanted]()
    across = list[str]()
    within = list[str]()
    for video, info in readable:
        other = first.setdefault(info.digest, video)
        if other is not video:
            same = within if other.split == video.split else across
            same.append(f"{video.path} ({video.split}) is {other.path} ({other.split})")
    return across + within


def _count(
    found: FoundVideos, readable: Sequence[tuple[Wanted, VideoInfo]], benchmark: Benchmark | None
) -> tuple[SplitCount, ...]:
    table6 = {"train": benchmark.num_train, "val": benchmark.num_val} if benchmark else {}
    counts = []
    for split in sorted(found.listed, key=lambda split: (split != "train", split)):
        infos = [info for video, info in readable if video.split == split]
        seconds = [info.frames / info.fps for info in infos if info.fps]
        mean = sum(seconds) / max(1, len(seconds))
        listed = found.listed[split]
        counts.append(
            SplitCount(split=split, listed=listed, written=len(infos), table6=table6.get(split), mean_seconds=mean)
        )
    return tuple(counts)


def _notes(splits: Sequence[SplitCount], num_classes: int, benchmark: Benchmark | None) -> tuple[str, ...]:
    if benchmark is None:
        return ()
    notes = [
        f"{count.split}: {count.written} videos; Table 6 has about {count.table6} for {benchmark.title}."
        for count in splits
        if count.table6 and abs(count.written - count.table6) > _FAR_FROM_TABLE_6 * count.table6
    ]
    if num_classes != benchmark.num_classes:
        notes.append(f"The lists hold {num_classes} classes; {benchmark.title} has {benchmark.num_classes}.")
    return tuple(notes)
