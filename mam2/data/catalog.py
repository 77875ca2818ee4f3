"""Catalogs of videos, with labels or without, from a folder or a CSV file."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mam2.config import UserError, did_you_mean, seed_of
from mam2.data.csv_list import CsvRow, read_rows
from mam2.data.labels import LabelKind, LabelSetting, are_numbers, classes_of, kind_of, numbers_of, several_of
from mam2.data.shape import Listing
from mam2.data.video.segment_path import segment_of

log = logging.getLogger("mam2")

VIDEO_SUFFIXES = (
    *(".3gp", ".asf", ".avi", ".flv", ".m4v", ".mkv", ".mov"),
    *(".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
"""The file names taken for videos, in lower case."""

SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val", "test": "test"}
"""The words for splits in lists and in the names of folders, and what they mean."""

_SHOTS = 0x5407  # keeps the seeds of few_shot apart from others


@dataclass(frozen=True, kw_only=True)
class Item:
    """One video, or a segment of one: its path and, in a labelled data set, the number of its class.

    Attributes:
        group: of videos that belong together and must not be in both training and test; empty where none is said.
        target: where a video has several classes, a 1 or 0 for each; where the label is a number, that; else empty.
    """

    path: str
    label: int | None
    group: str = ""
    target: tuple[float, ...] = ()

    @property
    def class_number(self) -> int:
        """The number of the class, -1 if there is none."""
        return -1 if self.label is None else self.label


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """The videos of a data set, in an order that is the same on every machine.

    Attributes:
        items: the videos.
        classes: the names of the classes; `Item.label` counts in them. Empty where there are no labels; the name of the
            column where they are numbers.
        kind: of the labels; only "classes" fills `Item.label`, the others `Item.target`.
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

    Args:
        listing: its root, one of
            a folder of videos at any depth (not labelled);
            a folder with one sub-folder of videos for each class (labelled);
            a CSV file whose first line names the columns: `path` (absolute, or from the CSV's folder), `label` (not
            needed if not labelled), `split`, and `start` and `end`, seconds, for a segment of a video. Others are
            ignored, and a line of the log names them.
            Its split: the rows of a CSV to take, by the word in their column `split`; needed where several splits are
            in it. The classes are those of the whole CSV, so that a class has the same number in each split.
        labelled: whether every video must have a label; if not, labels are not read.
        classes: the names of the classes that a model already knows, in its order; no others are accepted.
        kind: kind of the labels: "classes", one each; "multilabel", several with ; or | between them, or none;
            "regression", a number; or "auto", by their looks. Those of a folder are classes.

    Labels of a CSV are names, or the classes' numbers from 0: one or the other for the whole list.

    Raises:
        UserError: there is no such root, there are no videos, or a video, a label or a split is missing, unknown or
            ambiguous.
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
        return _of_class_folders(rows, classes) if labelled else _without_labels(rows)
    if root.suffix.lower() != ".csv" or not root.is_file():
        found = "is neither a folder nor a .csv" if root.exists() else "does not exist"
        raise UserError(f"{root} {found}. Accepted: a folder of videos, or a .csv with the columns path and label.")
    needed = ("path", "label") if labelled else ("path",)
    all_rows = read_rows(root, needed=needed, listing=listing)
    rows = _of_split(all_rows, split, csv_path=root)
    if kind == "auto":
        kind = kind_of(all_rows, csv_path=root) if labelled else "classes"
    _check_rows(rows, labelled=labelled, csv_path=root, can_be_empty=kind == "multilabel")
    if not labelled:
        return _without_labels(rows)
    if kind == "multilabel":
        known, targets = several_of(rows, all_rows, classes, csv_path=root)
        return _with_targets(rows, targets, classes=known, kind=kind)
    if kind == "regression":
        return _with_targets(rows, numbers_of(rows), classes=(listing.label_column,), kind=kind)
    return _of_classes(rows, all_rows, classes, csv_path=root)


def _without_labels(rows: list[CsvRow]) -> Catalog:
    return Catalog(items=tuple(Item(path=row.path, label=None, group=row.group) for row in rows), classes=())


def _of_class_folders(rows: list[CsvRow], classes: Sequence[str] | None) -> Catalog:
    """The catalog of a folder per class; a folder's name is a name, be it 2019."""
    known = tuple(sorted({row.label for row in rows})) if classes is None else tuple(classes)
    return _with_names(rows, known)


def _of_classes(
    rows: list[CsvRow], all_rows: list[CsvRow], classes: Sequence[str] | None, *, csv_path: Path
) -> Catalog:
    """The catalog of a CSV with one class per video, by name or by number."""
    if classes is None:
        known, numbers = classes_of(all_rows, csv_path=csv_path)
    else:
        known = tuple(classes)
        numbers = are_numbers(rows, known, csv_path=csv_path)
    if not numbers:
        return _with_names(rows, known)
    items = [Item(path=row.path, label=int(row.label), group=row.group) for row in rows]
    return Catalog(items=tuple(items), classes=known)


def _with_names(rows: list[CsvRow], classes: tuple[str, ...]) -> Catalog:
    number_of = {name: number for number, name in enumerate(classes)}
    items = []
    for row in rows:
        if row.label not in number_of:
            raise UserError(f"{row.place}: {row.label!r} is not a known class. {did_you_mean(row.label, number_of)}")
        items.append(Item(path=row.path, label=number_of[row.label], group=row.group))
    return Catalog(items=tuple(items), classes=classes)


def only_video(path: str) -> Catalog | None:
    """The catalog of a single video file, without a label; None if it is a folder or a list, or not there."""
    if os.path.isfile(segment_of(path)[0]) and not path.lower().endswith(".csv"):
        return Catalog(items=(Item(path=path, label=None),), classes=())
    return None


def _with_targets(
    rows: list[CsvRow], targets: list[tuple[float, ...]], *, classes: tuple[str, ...], kind: LabelKind
) -> Catalog:
    items = [
        Item(path=row.path, label=None, group=row.group, target=target)
        for row, target in zip(rows, targets, strict=True)
    ]
    return Catalog(items=tuple(items), classes=classes, kind=kind)


def few_shot(catalog: Catalog, *, shots: int, seed: int) -> Catalog:
    """`shots` videos of each class, drawn by the seed; the whole catalog if that is 0.

    Raises:
        UserError: a class with fewer videos.
    """
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
    """The videos in a folder at any depth, as paths from there, in an order that is the same on every machine.

    Raises:
        UserError: there are none.
    """
    paths = []
    followed = {os.path.realpath(root)}
    for folder, subfolders, files in os.walk(root, followlinks=True):  # data sets are often links to a larger disk
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".") and not _leads_back(os.path.join(folder, name), followed)
        ]
        for name in files:
            if name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith("."):
                paths.append((Path(folder) / name).relative_to(root))
    if not paths:
        raise UserError(f"{root} holds no videos. Accepted: files ending in {', '.join(VIDEO_SUFFIXES)}, at any depth.")
    return sorted(paths, key=Path.as_posix)


def _leads_back(place: str, followed: set[str]) -> bool:
    """Whether a folder is a link into, or around, those that are followed already; if not, it is one of them now."""
    if not os.path.islink(place):
        return False
    target = os.path.realpath(place)
    back = any(os.path.commonpath((target, other)) in (target, other) for other in followed)
    if back:
        log.warning(f"{place} is a link to {target}, which is read already: it is not followed.")
    followed.add(target)
    return back


def split_folders(paths: Sequence[Path]) -> list[str]:
    """The top folders of videos if all of them are called as splits are, such as train and val; else none."""
    folders = sorted({path.parts[0] for path in paths})
    return folders if all(folder.lower() in SPLIT_WORDS for folder in folders) else []


def _read_folder(root: Path, *, labelled: bool) -> list[CsvRow]:
    paths = video_paths(root)
    if labelled:
        flat = [path for path in paths if len(path.parts) == 1]
        if flat:
            raise UserError(
                f"{root / flat[0]} has no label ({len(flat)} such videos): labels are the names of "
                "folders. Move the videos to one folder for each class, or give a .csv with "
                "path,label."
            )
        folders = split_folders(paths)
        if folders:
            raise UserError(
                f"{root} holds the folders {', '.join(folders)}: these look like splits, not classes. "
                f"Give one of them, such as {root / folders[0]}."
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
    files = ((row, segment_of(row.path)[0]) for row in rows)
    absent = [f"{row.place}: {file} does not exist" for row, file in files if not os.path.exists(file)]
    if absent:
        raise UserError(
            f"{absent[0]} ({len(absent)} of {len(rows)} videos are missing). "
            f"Paths must be absolute, or start from {csv_path.parent.absolute()}."
        )
