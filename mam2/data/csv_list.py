"""Rows of a data set's CSV: a video, or a segment of one, each."""

from __future__ import annotations

import csv
import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mam2 import distributed
from mam2.config import UserError
from mam2.data.shape import Listing
from mam2.data.video.segment_path import segment_ending

log = logging.getLogger("mam2")
_COLUMNS = ("path", "label", "split", "start", "end", "group")
_OF_MANIFESTS = ("frames", "fps", "width", "height")  # `mam2 prepare` writes them for people


@dataclass(frozen=True, kw_only=True)
class CsvRow:
    """Video as it was found, with its label still in words.

    Attributes:
        path: as found; in a CSV, from the CSV's folder. That of a segment ends with `#t=START,END`.
        label, split: words of the list; may be empty.
        place: file and line, for messages.
        group: name of videos that belong together, such as those of one speaker; may be empty.
    """

    path: str
    label: str
    split: str
    place: str
    group: str = ""


def read_rows(csv_path: Path, *, needed: Sequence[str], listing: Listing | None = None) -> list[CsvRow]:
    """Reads the videos that a CSV lists, which may be missing.

    Args:
        csv_path: the file.
        needed: columns that it must have; in each line, only `path` must not be empty.
        listing: other names of its columns; the usual ones if None.

    Raises:
        UserError: a column or a path is missing, no videos are listed, or the file can't be read.
    """
    names = listing or Listing(root=csv_path)
    rows = []
    try:
        with csv_path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            found = [name.strip() for name in reader.fieldnames or ()]
            called = {names.path_column: "path", names.label_column: "label", **{name: name for name in _COLUMNS[2:]}}
            reader.fieldnames = [called.get(name, f"other {name}") for name in found]
            for column in needed:
                if column not in reader.fieldnames:
                    name = {"path": names.path_column, "label": names.label_column}[column]
                    raise UserError(
                        f"{csv_path} has no column {name!r}; its first line is {','.join(found)!r}. Write "
                        f"{','.join(needed)} as the first line, or name the column: --data.{column}-column NAME."
                    )
            _say_ignored(csv_path, tuple(name for name in found if name not in (*called, *_OF_MANIFESTS)))
            for record in reader:
                path, label, split, start, end, group = ((record.get(name) or "").strip() for name in _COLUMNS)
                place = f"{csv_path}, line {reader.line_num}"
                if not any((path, label, split)):
                    continue  # a line of commas
                if not path:
                    raise UserError(f"{place} has no path. Write one, or remove the line.")
                path = str(csv_path.parent / path) + _segment(start, end, place)  # an absolute path replaces the folder
                rows.append(CsvRow(path=path, label=label, split=split, place=place, group=group))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{csv_path} can't be read: {error}. Save it as comma-separated UTF-8.") from error
    if not rows:
        raise UserError(f"{csv_path} lists no videos. Write one on each line after the first.")
    return rows


def _segment(start: str, end: str, place: str) -> str:
    """Ending of a path that names a segment; empty for the whole video."""
    if not start and not end:
        return ""
    try:
        from_, to = float(start or 0), float(end or "inf")
    except ValueError:
        from_ = to = math.nan
    if not 0 <= from_ < to:
        raise UserError(
            f"{place} has start {start!r} and end {end!r}; accepted are seconds, the end after the start, or nothing."
        )
    return segment_ending(from_, to)


@functools.cache
def _say_ignored(csv_path: Path, columns: tuple[str, ...]) -> None:
    """Logs the columns of a list that are not used, once."""
    if columns and distributed.rank() == 0:
        log.info(f"{csv_path}: columns that are ignored: {', '.join(columns)}.")
