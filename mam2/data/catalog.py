"""What a data set is: a list of videos, with labels or without, from a folder or a CSV file."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mam2.config import UserError, did_you_mean
from mam2.data.decode import VIDEO_SUFFIXES

_SPLITS = {"train", "val", "valid", "validation", "test"}


@dataclass(frozen=True, kw_only=True)
class Item:
    """One video: its path and, in a labelled data set, the number of its class."""

    path: str
    label: int | None


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """The videos of a data set, in an order that is the same on every machine.

    Attributes:
        items: the videos.
        classes: the names of the classes; `Item.label` counts in them. Empty where there are no labels.
    """

    items: tuple[Item, ...]
    classes: tuple[str, ...]


def read_catalog(root: str | Path, *, labelled: bool, classes: Sequence[str] | None = None) -> Catalog:
    """Lists the videos of a data set.

    Args:
        root: one of
            a folder of videos at any depth (not labelled);
            a folder with one sub-folder of videos for each class (labelled);
            a CSV file whose first line names the columns: `path` (absolute, or from the CSV's folder) and
            `label` (a name, or a class number from 0; not needed if not labelled). Others are ignored.
        labelled: whether every video must have a label; if not, labels are not read.
        classes: the names of the classes that a model already knows, in its order; no others are accepted.

    Raises:
        UserError: there is no such root, there are no videos, or a video or a label is missing or unknown.
    """
    if not str(root):
        raise UserError("data.root is empty. Accepted: a folder of videos, or a .csv with the columns path and label.")
    root = Path(root)
    if root.is_dir():
        rows = _read_folder(root, labelled=labelled)
    elif root.suffix.lower() == ".csv" and root.is_file():
        rows = _read_csv(root, labelled=labelled)
    else:
        found = "is neither a folder nor a .csv" if root.exists() else "does not exist"
        raise UserError(f"{root} {found}. Accepted: a folder of videos, or a .csv with the columns path and label.")
    if not labelled:
        return Catalog(items=tuple(Item(path=row.path, label=None) for row in rows), classes=())
    known = tuple(classes) if classes is not None else _classes_of(rows)
    number_of = {name: number for number, name in enumerate(known)}
    items = tuple(Item(path=row.path, label=_label_number(row, number_of)) for row in rows)
    return Catalog(items=items, classes=known)


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A video as it was found, with its label still in words."""

    path: str
    label: str
    place: str  # where the label was found, for messages


def _read_folder(root: Path, *, labelled: bool) -> list[_Row]:
    paths = []
    for folder, subfolders, files in os.walk(root, followlinks=True):  # data sets are often links to a larger disk
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith("."):
                paths.append((Path(folder) / name).relative_to(root))
    if not paths:
        raise UserError(f"{root} holds no videos. Accepted: files ending in {', '.join(VIDEO_SUFFIXES)}, at any depth.")
    paths.sort(key=Path.as_posix)
    if labelled:
        flat = [path for path in paths if len(path.parts) == 1]
        if flat:
            raise UserError(
                f"{root / flat[0]} has no label ({len(flat)} such videos): labels are the names of "
                "folders. Move the videos to one folder for each class, or give a .csv with "
                "path,label."
            )
        folders = sorted({path.parts[0] for path in paths})
        if _SPLITS.issuperset(folder.lower() for folder in folders):
            raise UserError(
                f"{root} holds the folders {', '.join(folders)}: these look like splits, not classes. "
                f"Give one of them, such as {root / folders[0]}."
            )
    return [_Row(path=str(root / path), label=path.parts[0], place=str(root / path)) for path in paths]


def _read_csv(csv_path: Path, *, labelled: bool) -> list[_Row]:
    needed = ("path", "label") if labelled else ("path",)
    rows, absent = [], []
    try:
        with csv_path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            for column in needed:
                if column not in reader.fieldnames:
                    raise UserError(
                        f"{csv_path} has no column {column!r}; its first line is "
                        f"{','.join(reader.fieldnames)!r}. Write {','.join(needed)} as the first line."
                    )
            for record in reader:
                place = f"{csv_path}, line {reader.line_num}"
                for column in needed:
                    if not (record[column] or "").strip():
                        raise UserError(f"{place} has no {column}. Write one, or remove the line.")
                path = csv_path.parent / record["path"].strip()  # an absolute path replaces the folder
                if not path.is_file():
                    absent.append(f"{place}: {path} does not exist")
                rows.append(_Row(path=str(path), label=record["label"].strip() if labelled else "", place=place))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{csv_path} can't be read: {error}. Save it as comma-separated UTF-8.") from error
    if absent:
        raise UserError(
            f"{absent[0]} ({len(absent)} of {len(rows)} videos are missing). "
            f"Paths must be absolute, or start from {csv_path.parent}."
        )
    if not rows:
        raise UserError(f"{csv_path} lists no videos. Write one on each line after the first.")
    return rows


def _classes_of(rows: list[_Row]) -> tuple[str, ...]:
    """The classes of rows whose labels are names, sorted; or, if all are numbers, '0' up to the largest."""
    numbers = [_class_number(row.label) for row in rows]
    if None in numbers:
        return tuple(sorted({row.label for row in rows}))
    return tuple(str(i) for i in range(1 + max(number for number in numbers if number is not None)))


def _label_number(row: _Row, number_of: dict[str, int]) -> int:
    if row.label in number_of:
        return number_of[row.label]
    number = _class_number(row.label)
    if number is not None and number < len(number_of):
        return number
    raise UserError(f"{row.place}: {row.label!r} is not a known class. {did_you_mean(row.label, number_of)}")


def _class_number(label: str) -> int | None:
    return int(label) if label.isdecimal() else None
