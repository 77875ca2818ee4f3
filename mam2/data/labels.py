"""Labels of a CSV: one class per video, by name or by number from 0; several classes; or numbers."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mam2.config import UserError, did_you_mean
from mam2.data.csv_list import CsvRow

LabelKind = Literal["classes", "multilabel", "regression"]
"""Kind of a video's label: one class; several classes or none; a number."""

LabelSetting = Literal["auto", "classes", "multilabel", "regression"]
"""A LabelKind, or "auto", which takes it from the labels."""

log = logging.getLogger("mam2")
SEPARATORS = ";|"
"""Signs between the classes of a multilabel video."""


def label_kind(rows: list[CsvRow], *, csv_path: Path) -> LabelKind:
    """Kind of a list's labels by their looks; a line of the log says it if it is not one class each.

    "multilabel" if a label holds one of SEPARATORS; "regression" if all are numbers and one is not whole, as whole ones
    are classes' numbers or names.
    """
    if row := next((row for row in rows if set(SEPARATORS) & set(row.label)), None):
        log.info(f"{csv_path}: videos have several classes each, such as {row.label!r}; --labels classes takes one.")
        return "multilabel"
    values = [_value(row.label) for row in rows]
    if any(value is not None and value != int(value) for value in values) and None not in values:
        log.info(f"{csv_path}: the labels are numbers, such as {rows[0].label}; --labels classes takes them for names.")
        return "regression"
    return "classes"


def several_of(
    rows: list[CsvRow], all_rows: list[CsvRow], classes: Sequence[str] | None, *, csv_path: Path
) -> tuple[tuple[str, ...], list[tuple[float, ...]]]:
    """Classes of a multilabel list, and for each of `rows` a 1 or 0 for each class.

    Args:
        rows: videos of one split.
        all_rows: videos of the whole list.
        classes: classes that a model knows; None takes those of `all_rows`.
        csv_path: the list, for messages.

    Raises:
        UserError: a class that is not known, or no class.
    """
    known = tuple(sorted({part for row in all_rows for part in _parts(row)}) if classes is None else classes)
    if not known:
        raise UserError(f"{csv_path} names no class at all. Write them into its labels, as in run;jump.")
    number_of = {name: number for number, name in enumerate(known)}
    targets = []
    for row in rows:
        target = [0.0] * len(known)
        for part in _parts(row):
            if part not in number_of:
                raise UserError(f"{row.place}: {part!r} is not a known class. {did_you_mean(part, number_of)}")
            target[number_of[part]] = 1.0
        targets.append(tuple(target))
    if none := sum(not any(target) for target in targets):
        log.info(f"{csv_path}: {none} of {len(rows)} videos have no label: they count as none of the classes.")
    return known, targets


def numbers_of(rows: list[CsvRow]) -> list[tuple[float, ...]]:
    """Label of each video as a number. Raises UserError for other labels."""
    targets = list[tuple[float, ...]]()
    for row in rows:
        value = _value(row.label)
        if value is None:
            raise UserError(f"{row.place}: the label {row.label!r:.60} is no number, as the others are. Correct it.")
        targets.append((value,))
    return targets


def _parts(row: CsvRow) -> list[str]:
    return [part.strip() for part in re.split(f"[{SEPARATORS}]", row.label) if part.strip()]


def _value(label: str) -> float | None:
    try:
        value = float(label)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def classes_of(rows: list[CsvRow], *, csv_path: Path) -> tuple[tuple[str, ...], bool]:
    """Classes of a list that no model has seen yet; True if its labels are the classes' numbers.

    They are if all are numbers that count from 0, with not many more classes than videos. Numbers that begin elsewhere
    are names: years, ids, classes called 1, 2, 3.
    """
    labels = {row.label: row for row in rows if row.label}  # a test split may have none
    by_number = {number: label for label in labels if (number := _number(label)) is not None}
    if not by_number:
        return tuple(sorted(labels)), False
    if len(by_number) < len(labels):
        name = next(label for label in labels if _number(label) is None)
        digits = next(iter(by_number.values()))
        raise UserError(
            f"{csv_path} mixes numbers and names as labels: {labels[digits].place} has {digits!r}, "
            f"{labels[name].place} has {name!r}. Write names only, or the numbers of classes, from 0."
        )
    names = tuple(by_number[number] for number in sorted(by_number))
    if min(by_number) > 0:
        log.info(
            f"{csv_path}: the labels, {_listed(names)}, are numbers that do not count from 0; they are read as the "
            f"names of {len(names)} classes."
        )
        return names, False
    num_classes = max(by_number) + 1
    if num_classes > max(len(rows), 2 * len(names)):
        row = labels[names[-1]]
        raise UserError(
            f"{csv_path} has {len(rows)} videos with {len(names)} different numbers as labels, the largest in "
            f"{row.place}: {row.label:.40}. As numbers of classes they would be of {num_classes:.6g} classes; as "
            f"names, of {len(names)}. Write names that are no numbers, or correct that line."
        )
    if num_classes > len(names):
        log.warning(
            f"{csv_path}: the labels are read as the numbers of {num_classes} classes, of which "
            f"{num_classes - len(names)} have no video. If they are names, write names that are no numbers."
        )
    return tuple(map(str, range(num_classes))), True


def are_numbers(rows: list[CsvRow], classes: tuple[str, ...], *, csv_path: Path) -> bool:
    """True if the labels of a list are the numbers of a model's classes, False if they are names. Raises UserError if
    both can be meant and differ, or the list mixes them."""
    number_of = {name: number for number, name in enumerate(classes)}
    names = [row for row in rows if row.label in number_of]
    numbers = [row for row in rows if (found := _number(row.label)) is not None and found < len(classes)]
    if len(names) == len(rows):
        other = next((row for row in rows if _number(row.label) != number_of[row.label]), None)
        if other is None or len(numbers) < len(rows):
            return False
        raise UserError(
            f"{csv_path} can be read in two ways: {other.place} has {other.label!r}, which is the name of class "
            f"{number_of[other.label]}, and the number of the class {classes[int(other.label)]!r}. Give a folder with "
            "a sub-folder per class, whose names are always names, or a list that holds a label for which one reading "
            "fails."
        )
    if len(numbers) == len(rows):
        return True
    strange = next((row for row in rows if row not in names and row not in numbers), None)
    if strange is None:
        name = next(row for row in rows if row not in numbers)
        number = next(row for row in rows if row not in names)
        raise UserError(
            f"{csv_path} mixes names and numbers of classes: {name.place} has {name.label!r}, {number.place} has "
            f"{number.label!r}. Write one or the other: names {_listed(classes)}, or 0 to {len(classes) - 1}."
        )
    raise UserError(
        f"{strange.place}: {repr(strange.label)[:60]} is not a known class. {did_you_mean(strange.label, number_of)} "
        f"Or write numbers from 0 to {len(classes) - 1} throughout."
    )


def _number(label: str) -> int | None:
    """Number that a label is; None for a name. Endless digits are a number too large for anything."""
    return (int(label) if len(label) < 19 else 10**19) if label.isdecimal() else None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 6 else f"{', '.join(names[:3])}, ..., {names[-1]}"
