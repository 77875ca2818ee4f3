"""Catalogs of videos, with labels or without, from a folder or a CSV file."""

from __future__ import annotations

import itertools
import logging
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mam2.config import UserError, did_you_mean, seed_of
from mam2.data.csv_list import CsvRow, read_rows
from mam2.data.labels import LabelKind, LabelSetting, are_numbers, classes_of, label_kind, numbers_of, several_of
from mam2.data.shape import Listing
from mam2.data.video.segment_path import segment_of

log = logging.getLogger("mam2")

VIDEO_SUFFIXES = (
    *(".3gp", ".asf", ".avi", ".flv", ".m4v", ".mkv", ".mov"),
    *(".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
"""Endings of the files taken for videos, in lower case."""

SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val", "test": "test"}
"""Meanings of the words for splits in lists and in names of folders."""

_SHOTS = 0x5407  # keeps the seeds of few_shot apart from others


@dataclass(frozen=True, kw_only=True)
class Item:
    """One video, or a segment of one.

    Attributes:
        path: file or folder, or a segment of it.
        label: number of the class; None without one.
        group: name of a group whose videos must not be in both training and test; may be empty.
        target: a 1 or 0 for each class of a multilabel video; the number that is the label; else empty.
    """

    path: str
    label: int | None
    group: str = ""
    target: tuple[float, ...] = ()

    @property
    def class_number(self) -> int:
        """Number of the class, -1 without one."""
        return -1 if self.label is None else self.label


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """Videos of a data set, in an order that is the same on every machine.

    Attributes:
        items: the videos.
        classes: names of the classes, in which `Item.label` counts; empty without labels; for regression, the name of
            the column.
        kind: kind of the labels; only "classes" fills `Item.label`, the others `Item.target`.
    """

    items: tuple[Item, ...]
    classes: tuple[str, ...]
    kind: LabelKind = "classes"


def read_catalog(
    listing: Listing,
    *,
    labelled: bool,
    classes: Sequence[str] | None = None,
    kind: LabelSetting = "classes",
) -> Catalog:
    """Lists the videos of a data set.

    The root of a listing is one of
        a folder of videos at any depth (not labelled);
        a folder with one sub-folder of videos for each class (labelled);
        a CSV file whose first line names the columns: `path` (absolute, or from the CSV's folder), `label` (not needed
        if not labelled), `split`, `group`, and `start` and `end`, seconds, for a segment of a video. Others are
        ignored, and a line of the log names them. Labels are names, or the classes' numbers from 0: one or the other
        for the whole list.
    The split of a listing is needed where a CSV has several. The classes are those of the whole CSV, so that a class
    has the same number in each split.

    Args:
        listing: root, split and columns.
        labelled: every video must have a label; if not, labels are not read.
        classes: names of the classes that a model already knows, in its order; no others are accepted.
        kind: kind of the labels: "classes", one each; "multilabel", several with ; or | between them, or none;
            "regression", a number; or "auto", by their looks. Those of a folder are classes.

    Raises:
        UserError: no such root, no videos, or a video, a label or a split that is missing, unknown or ambiguous.
    """
    split = listing.split
    if not str(listing.root):
        raise UserError("data.root is empty. Accepted: a folder of videos, or a .csv with the columns path and label.")
    root = Path(listing.root)
    if root.is_dir():
        if split:
            raise UserError(
                f"{root} is a folder and has no split {split!r}. Give {root / split}, or a .csv with a split."
            )
        if kind not in ("auto", "classes"):
            raise UserError(f"{root} is a folder: its labels are classes, not {kind}. Give a .csv with path and label.")
        rows = _read_folder(root, labelled=labelled)
        if not labelled:
            return _catalog(rows)
        known = tuple(sorted({row.label for row in rows}) if classes is None else classes)
        return _catalog(rows, labels=_numbers_of_names(rows, known), classes=known)  # a name is one, be it 2019
    if root.suffix.lower() != ".csv" or not root.is_file():
        found = "is neither a folder nor a .csv" if root.exists() else "does not exist"
        raise UserError(f"{root} {found}. Accepted: a folder of videos, or a .csv with the columns path and label.")
    needed = ("path", "label") if labelled else ("path",)
    all_rows = read_rows(root, needed=needed, listing=listing)
    rows = _of_split(all_rows, split, csv_path=root)
    if kind == "auto":
        kind = label_kind(all_rows, csv_path=root) if labelled else "classes"
    _check_rows(rows, labelled=labelled, csv_path=root, can_be_empty=kind == "multilabel")
    if not labelled:
        return _catalog(rows)
    if kind == "multilabel":
        known, targets = several_of(rows, all_rows, classes, csv_path=root)
        return _catalog(rows, targets=targets, classes=known, kind=kind)
    if kind == "regression":
        return _catalog(rows, targets=numbers_of(rows), classes=(listing.label_column,), kind=kind)
    if classes is None:
        known, numbers = classes_of(all_rows, csv_path=root)
    else:
        known = tuple(classes)
        numbers = are_numbers(rows, known, csv_path=root)
    labels = [int(row.label) for row in rows] if numbers else _numbers_of_names(rows, known)
    return _catalog(rows, labels=labels, classes=known)


def _catalog(
    rows: list[CsvRow],
    *,
    labels: Iterable[int | None] = itertools.repeat(None),
    targets: Iterable[tuple[float, ...]] = itertools.repeat(()),
    classes: tuple[str, ...] = (),
    kind: LabelKind = "classes",
) -> Catalog:
    items = [
        Item(path=row.path, label=label, group=row.group, target=target)
        for row, label, target in zip(rows, labels, targets, strict=False)
    ]
    return Catalog(items=tuple(items), classes=classes, kind=kind)


def _numbers_of_names(rows: list[CsvRow], classes: tuple[str, ...]) -> list[int]:
    number_of = {name: number for number, name in enumerate(classes)}
    for row in rows:
        if row.label not in number_of:
            raise UserError(f"{row.place}: {row.label!r} is not a known class. {did_you_mean(row.label, number_of)}")
    return [number_of[row.label] for row in rows]


def only_video(path: str) -> Catalog | None:
    """Catalog of a single video file, without a label; None for a folder, a list, or a path to nothing."""
    if os.path.isfile(segment_of(path)[0]) and not path.lower().endswith(".csv"):
        return Catalog(items=(Item(path=path, label=None),), classes=())
    return None


def few_shot(catalog: Catalog, *, shots: int, seed: int) -> Catalog:
    """Draws `shots` videos of each class by the seed; 0 keeps the whole catalog. Raises UserError for a class with
    fewer."""
    if not shots:
        return catalog
    if catalog.kind != "classes":
        raise UserError(f"{shots} shots are videos per class, but the labels are {catalog.kind}. Leave shots out.")
    drawn = []
    for label, name in enumerate(catalog.classes):
        items = [item for item in catalog.items if item.label == label]
        if len(items) < shots:
            raise UserError(
                f"There are {len(items)} training videos of class {name!r}; {shots} shots need as many. Lower --shots "
                "or leave the class out."
            )
        drawn += random.Random(seed_of(seed, _SHOTS, label)).sample(items, shots)
    return Catalog(items=tuple(drawn), classes=catalog.classes)


def video_paths(root: Path) -> list[Path]:
    """Paths of the videos in a folder at any depth, from there, in the same order on every machine. Raises UserError if
    it holds none."""
    paths = []
    followed = {os.path.realpath(root)}
    for folder, subfolders, files in os.walk(root, followlinks=True):  # data sets are often links to a larger disk
        visible = [name for name in subfolders if not name.startswith(".")]
        subfolders[:] = [name for name in visible if not _leads_back(os.path.join(folder, name), followed)]
        for name in files:
            if name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith("."):
                paths.append((Path(folder) / name).relative_to(root))
    if not paths:
        raise UserError(f"{root} holds no videos. Accepted: files ending in {', '.join(VIDEO_SUFFIXES)}, at any depth.")
    return sorted(paths, key=Path.as_posix)


def _leads_back(place: str, followed: set[str]) -> bool:
    """True for a link into, or around, folders that are followed already; if not, it is one of them now."""
    if not os.path.islink(place):
        return False
    target = os.path.realpath(place)
    back = any(os.path.commonpath((target, other)) in (target, other) for other in followed)
    if back:
        log.warning(f"{place} is a link to {target}, which is read already: it is not followed.")
    followed.add(target)
    return back


def split_folders(paths: Sequence[Path]) -> list[str]:
    """Top folders of videos, if all have names of splits, such as train and val; else none."""
    folders = sorted({path.parts[0] for path in paths})
    return folders if all(folder.lower() in SPLIT_WORDS for folder in folders) else []


def _read_folder(root: Path, *, labelled: bool) -> list[CsvRow]:
    paths = video_paths(root)
    if labelled:
        flat = [path for path in paths if len(path.parts) == 1]
        if flat:
            raise UserError(
                f"{root / flat[0]} has no label ({len(flat)} such videos): labels are the names of folders. Move the "
                "videos to one folder for each class, or give a .csv with path,label."
            )
        folders = split_folders(paths)
        if folders:
            raise UserError(
                f"{root} holds the folders {', '.join(folders)}: these look like splits, not classes. Give one of "
                f"them, such as {root / folders[0]}."
            )
    return [CsvRow(path=str(root / path), label=path.parts[0], split="", place=str(root / path)) for path in paths]


def _of_split(rows: list[CsvRow], split: str, *, csv_path: Path) -> list[CsvRow]:
    splits = sorted({row.split for row in rows})
    if splits == [""]:
        if split:
            raise UserError(f"{csv_path} has no splits, but {split!r} was named. Name none, or add a column split.")
        return rows
    if "" in splits:
        place = next(row.place for row in rows if not row.split)
        raise UserError(f"{place} has no split; others have {', '.join(splits[1:])}. Write one on every line.")
    if not split and len(splits) > 1:
        raise UserError(f"{csv_path} holds the splits {', '.join(splits)}. Name one of them, such as {splits[0]}.")
    if split and split not in splits:
        raise UserError(f"{csv_path} has no split {split!r}. {did_you_mean(split, splits)}")
    return [row for row in rows if split in ("", row.split)]


def _check_rows(rows: list[CsvRow], *, labelled: bool, csv_path: Path, can_be_empty: bool) -> None:
    first = dict[str, CsvRow]()
    for row in rows if labelled else ():
        if row.label.lower() in ("", "nan") and not (can_be_empty and not row.label):
            found = f"the label {row.label!r}, which is how programs write none" if row.label else "no label"
            raise UserError(f"{row.place} has {found}. Write one, or remove the line.")
        other = first.setdefault(os.path.normpath(row.path), row)
        if other.label != row.label:
            raise UserError(
                f"{row.path} has two labels: {other.label!r} in {other.place}, and {row.label!r} in {row.place}. "
                "Remove one of the lines; for parts of a video with labels of their own, add the columns start and end."
            )
    files = [(row.place, segment_of(row.path)[0]) for row in rows]
    absent = [f"{place}: {file} does not exist" for place, file in files if not os.path.exists(file)]
    if absent:
        raise UserError(
            f"{absent[0]} ({len(absent)} of {len(rows)} videos are missing). "
            f"Paths must be absolute, or start from {csv_path.parent.absolute()}."
        )
