"""The manifest of a data set: which listed videos are there, missing or damaged (Table 6), and with which labels.

Every video is opened once; its contents are kept in a journal beside the manifest.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mam2.config import UserError, did_you_mean
from mam2.data.catalog import SPLIT_WORDS, VIDEO_SUFFIXES, split_folders, video_paths
from mam2.data.csv_list import read_rows
from mam2.data.labels import SEPARATORS
from mam2.data.prepare.inspect import VideoInfo, inspect_videos, relative_to, shown, writing
from mam2.data.prepare.label_tools import TOOLS, read_exports
from mam2.data.prepare.labelled import VideoFinder, seconds_of
from mam2.data.prepare.official_lists import BENCHMARKS, Benchmark, Lists, read_lists, same_name
from mam2.data.video.index import frame_at
from mam2.files import segment_ending, segment_of, write_text

COLUMNS = ("path", "label", "frames", "fps", "width", "height", "split")
"""The first line of a manifest. `read_catalog` reads it; a path that is not absolute starts from the manifest."""

SEPARATOR = SEPARATORS[0]
_CLIP_FRAMES = 16  # App. B
_NUM_SHOWN = 5
_FAR_FROM_TABLE_6 = 0.1


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Number of videos that have it, and the first of them in words."""

    count: int
    first: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SplitCount:
    """The counts of one split.

    Attributes:
        split: "train", "val", or another word of the user's own CSV.
        listed: videos that the lists name; in a folder without lists, those found.
        written: videos in the manifest.
        table6: videos by the paper's Table 6, rounded; None for the user's own data.
        mean_seconds: of the videos in the manifest that state their frame rate; 0 if none does.
    """

    split: str
    listed: int
    written: int
    table6: int | None
    mean_seconds: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """The findings of `prepare`.

    Attributes:
        manifest: the CSV that it wrote.
        splits: each split in numbers, train first.
        num_classes: classes that the lists have, or the labels found.
        missing: listed, but not there; not in the manifest.
        unreadable: there, but damaged; not in the manifest.
        extra: there, but in none of the benchmark's lists; not in the manifest.
        short: fewer than 16 frames; in the manifest, since the loader can handle them.
        duplicates: the same content as another video of the manifest, those across two splits first; in the manifest.
        num_read: videos opened this time; the others were known from the journal.
        notes: sentences on what is far from Table 6, and on several labels of a stretch.
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


def prepare(
    name: str,
    root: str | Path,
    *,
    split: int = 1,
    annotations: str | Path | None = None,
    control: str = "",
    label_fps: float = 0.0,
    out: str | Path | None = None,
    num_workers: int = 2,
    timeout_seconds: int = 120,
    max_missing_share: float = 0.05,
) -> Report:
    """Checks videos against a benchmark's official lists, opens each of them, and writes the manifest.

    Args:
        name: "k400", "ssv2", "ucf101", "hmdb51"; "folder" for one's own videos; "label_studio" or "cvat" for one's own
            with the labels of that tool.
        root: the folder of the videos. Those of a benchmark are found by their names, in class folders or not, with
            another ending after re-encoding too. Of one's own: a folder (with train and val folders or not, with a
            folder for each class or not), or a .csv with the columns path and, optionally, label, split, start and end
            (seconds). Of a tool's labels: the folder in which the videos are found by their names, or the one video.
        split: which of the official splits of UCF101 and HMDB51, 1 to 3.
        annotations: the folder of the official lists; None looks for them in `root`. Of a tool: its export (.json or
            .xml), or a folder of exports.
        control: of Label Studio: the name of the control whose labels to take; needed where several are used.
        label_fps: frames per second by which the tool counted; 0 takes each video's own.
        out: the manifest, a .csv; None names it after the benchmark and puts it in `root`, where a relative path keeps
            its meaning when the folder is moved.
        num_workers: processes that open videos; 0 does it in this process.
        timeout_seconds: a video that keeps a process longer counts as unreadable, as one that ends it does.
        max_missing_share: how many of the listed videos may be missing or unreadable, 0 to 1.

    Raises:
        UserError: an argument outside its range, lists that are missing or wrong, no videos, too many of them missing,
            or a manifest that can't be written. Results until then are kept.
    """
    root = Path(root)
    _check_arguments(name, root, split, num_workers, timeout_seconds, max_missing_share)
    if name not in TOOLS and (control or label_fps):
        raise UserError(f"A control and label_fps are of {' and '.join(TOOLS)}; {name} has none. Leave them out.")
    if not 0 <= label_fps < math.inf:
        raise UserError(f"label_fps is {label_fps}; accepted: frames per second, or 0 for each video's own.")
    manifest = _manifest_path(name, root, split, out)
    if name == "folder":
        found = _find_own(root)
    elif name in TOOLS:
        found = _find_labelled(name, root, annotations, control)
    else:
        lists = read_lists(name, Path(annotations) if annotations is not None else root, split=split)
        found = _match(lists, root)
    _check_share(found, [], root, max_missing_share)
    journal = manifest.with_name(f"{name}.journal.jsonl")
    opened, num_read = inspect_videos(
        [video.path for video in found.videos], journal, num_workers=num_workers, timeout_seconds=timeout_seconds
    )
    checked = [_stretch(video, opened[video.path], label_fps) for video in found.videos]
    unreadable = [info for _, info in checked if isinstance(info, str)]
    readable = [(video, info) for video, info in checked if isinstance(info, VideoInfo)]
    _check_share(found, unreadable, root, max_missing_share)
    _write_manifest(readable, manifest, journal)
    splits = _count(found, readable, BENCHMARKS.get(name))
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
        notes=found.notes + _notes(splits, found.num_classes, BENCHMARKS.get(name)),
    )


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """A video to be in the manifest, or the stretch of its frames (first, end) that a tool labelled."""

    path: str
    label: str
    split: str
    frames: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The videos to be in the manifest and the names of others; `listed` counts by split."""

    videos: list[_Wanted]
    missing: list[str]
    extra: list[str]
    listed: dict[str, int]
    num_classes: int
    notes: tuple[str, ...] = ()


def _check_arguments(
    name: str, root: Path, split: int, num_workers: int, timeout_seconds: int, max_missing_share: float
) -> None:
    if name not in (*BENCHMARKS, *TOOLS, "folder"):
        known = [*BENCHMARKS, *TOOLS, "folder"]
        raise UserError(f"{name!r} is no data set that prepare knows. {did_you_mean(name, known)}")
    if name not in BENCHMARKS and split != 1:
        raise UserError(f"The split is {split}; only UCF101 and HMDB51 have more than one. Leave it out.")
    if num_workers < 0 or timeout_seconds < 1:
        raise UserError(
            f"num_workers is {num_workers} and timeout_seconds {timeout_seconds}; they must be at least 0 and 1."
        )
    if not 0 <= max_missing_share <= 1:
        raise UserError(f"max_missing_share is {max_missing_share}; a share is 0 to 1.")
    files = {"folder": (".csv",), **dict.fromkeys(TOOLS, VIDEO_SUFFIXES)}.get(name, ())
    if not root.is_dir() and not (root.is_file() and root.suffix.lower() in files):
        accepted = "a folder of videos" + (", or a .csv with the column path" if name == "folder" else "")
        accepted += ", or the one video that the labels are of" if name in TOOLS else ""
        raise UserError(f"{root} {'is no such thing' if root.exists() else 'does not exist'}. Accepted: {accepted}.")


def _manifest_path(name: str, root: Path, split: int, out: str | Path | None) -> Path:
    if out is not None:
        manifest = Path(out)
    elif name == "folder":
        manifest = root / "manifest.csv" if root.is_dir() else root.with_name(f"{root.stem}_manifest.csv")
    elif name in TOOLS:
        manifest = root / f"{name}.csv" if root.is_dir() else root.with_name(f"{root.stem}_{name}.csv")
    else:
        manifest = root / (f"{name}_split{split}.csv" if BENCHMARKS[name].num_splits > 1 else f"{name}.csv")
    if manifest.suffix.lower() != ".csv" or manifest.is_dir() or manifest.absolute() == root.absolute():
        raise UserError(f"The manifest can't be {manifest}. Give a new file whose name ends in .csv as `out`.")
    return manifest


def _match(lists: Lists, root: Path) -> _Found:
    """Finds listed videos by name. One in the folder of another class is not the one that is listed."""
    paths = defaultdict[str, list[Path]](list)
    for path in video_paths(root):
        paths[same_name(path.stem)].append(path)
    classes = {_folder_name(label) for label in lists.classes}
    videos = list[_Wanted]()
    missing = list[str]()
    used = set[Path]()
    listed = {"train": 0, "val": 0}
    for video in lists.videos:
        own = _folder_name(video.label)
        ranked = []
        for path in (path for stem in video.stems for path in paths.get(stem, ()) if path not in used):
            folder = _folder_name(path.parent.name)
            if folder == own or folder not in classes or not video.label:
                ranked.append((folder != own, path))
        best = [path for _, path in sorted(ranked, key=lambda pair: pair[0])[:1]]
        used.update(best)
        if video.split:
            listed[video.split] += 1
            missing += [] if best else [f"{video.label}/{video.stems[0]}"]
            videos += [_Wanted(path=str(root / path), label=video.label, split=video.split) for path in best]
    extra = sorted(str(root / path) for same in paths.values() for path in same if path not in used)
    return _Found(videos=videos, missing=missing, extra=extra, listed=listed, num_classes=len(lists.classes))


def _folder_name(text: str) -> str:
    return text.replace("_", " ").casefold()


def _find_own(root: Path) -> _Found:
    if root.is_dir():
        paths = video_paths(root)
        depth = 1 if split_folders(paths) else 0
        videos = [
            _Wanted(
                path=str(root / path),
                label=path.parts[depth] if len(path.parts) > depth + 1 else "",
                split=SPLIT_WORDS[path.parts[0].lower()] if depth else "train",
            )
            for path in paths
        ]
    else:
        rows = read_rows(root, needed=("path",))
        splits = [SPLIT_WORDS.get(row.split.lower(), row.split) or "train" for row in rows]
        videos = [_Wanted(path=r.path, label=r.label, split=s) for r, s in zip(rows, splits, strict=True)]
    there = [video for video in videos if os.path.exists(segment_of(video.path)[0])]
    return _Found(
        videos=there,
        missing=[video.path for video in videos if not os.path.exists(segment_of(video.path)[0])],
        extra=[],
        listed={split: sum(video.split == split for video in videos) for split in sorted({v.split for v in videos})},
        num_classes=len({video.label for video in videos} - {""}),
    )


def _find_labelled(tool: str, root: Path, annotations: str | Path | None, control: str) -> _Found:
    """The videos, or stretches of them, that a tool's export gives labels; several of the same frames are one line."""
    if annotations is None:
        raise UserError(f"No export of {tool} is given. Give the file as annotations, a {TOOLS[tool]}.")
    found = read_exports(tool, Path(annotations), control=control)
    finder = VideoFinder(root, video_paths(root) if root.is_dir() else ())
    missing = list[str]()
    listed = Counter[str]()
    stretches = dict[tuple[str, tuple[int, int] | None], _Wanted]()
    for one in found:
        path = finder.find(one)
        video = stretches.get((path, one.frames))
        if not path:
            missing.append(f"{one.video} ({one.place})")
            listed[one.split] += 1
        elif video is None:
            stretches[path, one.frames] = _Wanted(path=path, label=one.label, split=one.split, frames=one.frames)
            listed[one.split] += 1
        elif one.label not in video.label.split(SEPARATOR):
            stretches[path, one.frames] = replace(video, label=f"{video.label}{SEPARATOR}{one.label}")
    several = [video.label for video in stretches.values() if SEPARATOR in video.label]
    return _Found(
        videos=list(stretches.values()),
        missing=missing,
        extra=[],
        listed=dict(sorted(listed.items())),
        num_classes=len({one.label for one in found}),
        notes=(f"{len(several):,} lines have several labels, such as {several[0]!r}.",) if several else (),
    )


def _stretch(video: _Wanted, info: VideoInfo | str, label_fps: float) -> tuple[_Wanted, VideoInfo | str]:
    """The stretch of a video that is labelled, as a video of its own, or why there is none; others as they are."""
    if video.frames is None or isinstance(info, str):
        return video, info
    if not info.fps:
        return video, f"{video.path} does not say how many frames it has per second, so no stretch of it can be found"
    start, end = seconds_of(video.frames, label_fps or info.fps)
    first, last = (frame_at(seconds, fps=info.fps, num_frames=info.frames, path=video.path) for seconds in (start, end))
    if last <= first:
        return video, f"{video.path} has {info.frames} frames; frame {video.frames[0]} is labelled, counted from 0"
    ending = segment_ending(start, end)
    stretch = replace(info, frames=last - first, digest=f"{info.digest} {first} {last}")
    return replace(video, path=f"{video.path}{ending}"), stretch


def _check_share(found: _Found, unreadable: Sequence[str], root: Path, max_missing_share: float) -> None:
    num_listed = sum(found.listed.values())
    num_lost = len(found.missing) + len(unreadable)
    if num_lost == num_listed or num_lost > max_missing_share * num_listed:
        first = _problem([*found.missing, *unreadable])
        raise UserError(
            f"{len(found.missing)} of the {num_listed} listed videos are missing from {root}, and {len(unreadable)} "
            f"can't be read ({num_lost / num_listed:.1%}); the first: {'; '.join(first.first).rstrip('.')}. At most "
            f"{max_missing_share:.1%} may be. Fetch them, or allow more with max_missing_share."
        )


def _write_manifest(readable: Sequence[tuple[_Wanted, VideoInfo]], manifest: Path, journal: Path) -> None:
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
    return Problem(count=len(names), first=tuple(shown(name) for name in names[:_NUM_SHOWN]))


def _duplicates(readable: Sequence[tuple[_Wanted, VideoInfo]]) -> list[str]:
    first = dict[str, _Wanted]()
    across = list[str]()
    within = list[str]()
    for video, info in readable:
        other = first.setdefault(info.digest, video)
        if other is not video:
            same = within if other.split == video.split else across
            same.append(f"{video.path} ({video.split}) is {other.path} ({other.split})")
    return across + within


def _count(
    found: _Found, readable: Sequence[tuple[_Wanted, VideoInfo]], benchmark: Benchmark | None
) -> tuple[SplitCount, ...]:
    table6 = {"train": benchmark.num_train, "val": benchmark.num_val} if benchmark else {}
    counts = []
    for split in sorted(found.listed, key=lambda split: (split != "train", split)):
        infos = [info for video, info in readable if video.split == split]
        seconds = [info.frames / info.fps for info in infos if info.fps]
        counts.append(
            SplitCount(
                split=split,
                listed=found.listed[split],
                written=len(infos),
                table6=table6.get(split),
                mean_seconds=sum(seconds) / len(seconds) if seconds else 0.0,
            )
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
