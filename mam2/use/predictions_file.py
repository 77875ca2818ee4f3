"""The file of `mam2 predict`: rows of path, start, end, label and score, as .jsonl, .csv or .parquet."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mam2.config import UserError
from mam2.files import written_whole
from mam2.use.features_file import METADATA

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("label", pa.string()),
        ("score", pa.float64()),
    ]
)
ROWS_PER_GROUP = 65536


@dataclass(frozen=True)
class PredictedLabel:
    """A predicted label of a video or of a window.

    Attributes:
        path: path of the video.
        start, end: seconds from the first frame of what `path` names; `end` is None if unknown.
        label: name of the class, or of the column in regression.
        score: probability, averaged over the views of a whole video; the number in regression.
    """

    path: str
    start: float
    end: float | None
    label: str
    score: float


def write_predictions(predictions: Iterable[PredictedLabel], out: Path) -> None:
    """Writes a row for each prediction, whole or not at all; replaces an existing file."""
    check_format(out)
    rows = ((row.path, row.start, row.end, row.label, float(f"{row.score:.6g}")) for row in predictions)
    named = (dict(zip(SCHEMA.names, row, strict=True)) for row in rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(out) as part:
        if out.suffix == ".parquet":
            with pq.ParquetWriter(part, SCHEMA, compression="zstd") as writer:
                while some := list(itertools.islice(named, ROWS_PER_GROUP)):
                    writer.write_table(pa.Table.from_pylist(some, schema=SCHEMA))
            return
        with part.open("w", encoding="utf-8", newline="") as file:
            if out.suffix == ".csv":
                csv.writer(file, lineterminator="\n").writerows(itertools.chain([SCHEMA.names], rows))
            else:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in named)


def check_format(out: Path) -> None:
    """Raises UserError unless the ending is accepted; a features file is not replaced."""
    accepted = (".csv", ".jsonl", ".parquet")
    if out.suffix not in accepted:
        raise UserError(f"Predictions can't be written to {out}; accepted are files ending in {', '.join(accepted)}.")
    if out.suffix == ".parquet" and out.is_file():
        with contextlib.suppress(pa.ArrowException, OSError):  # what can't be read is replaced
            if METADATA in (pq.read_schema(out).metadata or {}):
                raise UserError(f"{out} holds the features of `mam2 embed`. Give predictions another file.")
