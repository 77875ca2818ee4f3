"""Search for the videos of a manifest: by a benchmark's official lists, in one's own folder, or by a tool's labels."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from mam2.config import UserError
from mam2.data.catalog import SPLIT_WORDS, split_folders, video_paths
from mam2.data.csv_list import read_rows
from mam2.data.labels import SEPARATORS
from mam2.data.prepare.label_tools import TOOLS, read_exports
from mam2.data.prepare.labelled import VideoFinder, split_of
from mam2.data.prepare.official_lists import Lists, same_name
from mam2.data.video.segment_path import segment_of

SEPARATOR = SEPARATORS[0]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Video to be in the manifest, or the stretch of its frames (first, end) that a tool labelled."""

    path: str
    label: str
    split: str
    frames: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class FoundVideos:
    """Videos to be in the manifest, and the others by name.

    Attributes:
        videos: listed and found.
        missing: listed, but not found.
        extra: found, but not listed.
        listed: number of listed videos, by split.
        num_classes: number of classes that the lists or labels have.
        notes: sentences for the report.
    """

    videos: list[Wanted]
    missing: list[str]
    extra: list[str]
    listed: dict[str, int]
    num_classes: int
    notes: tuple[str, ...] = ()


def find_listed(lists: Lists, root: Path) -> FoundVideos:
    """Finds listed videos by name. One in the folder of another class is not the one that is listed."""
    paths = defaultdict[str, list[Path]](list)
    for path in video_paths(root):
        paths[same_name(path.stem)].append(path)
    classes = {_folder_name(label) for label in lists.classes}
    videos = list[Wanted]()
    missing = list[str]()
    used = set[Path]()
    listed = {"train": 0, "val": 0}
    for video in lists.videos:
        own = _folder_name(video.label)
        unused = [path for stem in video.stems for path in paths.get(stem, ()) if path not in used]
        others = classes - {own} if video.label else set[str]()
        possible = [path for path in unused if _folder_name(path.parent.name) not in others]
        best = sorted(possible, key=lambda path: _folder_name(path.parent.name) != own)[:1]
        used.update(best)
        if video.split:
            listed[video.split] += 1
            missing += [] if best else [f"{video.label}/{video.stems[0]}"]
            videos += [Wanted(path=str(root / path), label=video.label, split=video.split) for path in best]
    extra = sorted(str(root / path) for same in paths.values() for path in same if path not in used)
    return FoundVideos(videos=videos, missing=missing, extra=extra, listed=listed, num_classes=len(lists.classes))


def _folder_name(text: str) -> str:
    return text.replace("_", " ").casefold()


def find_own(root: Path) -> FoundVideos:
    """Finds the videos of a folder, labelled and split by its sub-folders, or those of a CSV."""
    if root.is_dir():
        paths = video_paths(root)
        depth = 1 if split_folders(paths) else 0
        videos = [
            Wanted(
                path=str(root / path),
                label=path.parts[depth] if len(path.parts) > depth + 1 else "",
                split=SPLIT_WORDS[path.parts[0].lower()] if depth else "train",
            )
            for path in paths
        ]
    else:
        rows = read_rows(root, needed=("path",))
        videos = [Wanted(path=row.path, label=row.label, split=split_of(row.split)) for row in rows]
    there = [video for video in videos if os.path.exists(segment_of(video.path)[0])]
    return FoundVideos(
        videos=there,
        missing=[video.path for video in videos if not os.path.exists(segment_of(video.path)[0])],
        extra=[],
        listed=dict(sorted(Counter(video.split for video in videos).items())),
        num_classes=len({video.label for video in videos} - {""}),
    )


def find_labelled(tool: str, root: Path, annotations: str | Path | None, control: str) -> FoundVideos:
    """Finds the videos, or stretches of them, that a tool's export labels; several labels of the same frames are one
    line."""
    if annotations is None:
        raise UserError(f"No export of {tool} is given. Give the file as annotations, a {TOOLS[tool]}.")
    found = read_exports(tool, Path(annotations), control=control)
    finder = VideoFinder(root, video_paths(root) if root.is_dir() else ())
    missing = list[str]()
    listed = Counter[str]()
    stretches = dict[tuple[str, tuple[int, int] | None], Wanted]()
    for one in found:
        path = finder.find(one)
        video = stretches.get((path, one.frames))
        if not path:
            missing.append(f"{one.video} ({one.place})")
            listed[one.split] += 1
        elif video is None:
            stretches[path, one.frames] = Wanted(path=path, label=one.label, split=one.split, frames=one.frames)
            listed[one.split] += 1
        elif one.label not in video.label.split(SEPARATOR):
            stretches[path, one.frames] = replace(video, label=f"{video.label}{SEPARATOR}{one.label}")
    several = [video.label for video in stretches.values() if SEPARATOR in video.label]
    return FoundVideos(
        videos=list(stretches.values()),
        missing=missing,
        extra=[],
        listed=dict(sorted(listed.items())),
        num_classes=len({one.label for one in found}),
        notes=(f"{len(several):,} lines have several labels, such as {several[0]!r}.",) if several else (),
    )
