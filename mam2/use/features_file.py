"""The features file of `mam2 embed`: a Parquet table with a row for each window, and the encoder's identity.

Finished rows are written as parts into a folder next to it, FILE.parts; at the end they and the old rows become one new
file, which replaces the old one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mam2.config import UserError, check, from_json, to_json
from mam2.data.clips import Sampling
from mam2.files import first_line, parse_json, written_whole

METADATA = b"mam2"
"""The key of the file's metadata that holds the identity and the encoder's place, as JSON."""
PLACE = ["path", "start", "end", "label"]
KEY = ["path", "start", "end", "size_bytes", "mtime_ns"]
"""Columns that identify a window of one version of a video."""
ROWS_AT_ONCE = 16384
Pool = Literal["mean", "frames", "attentive"]
Precision = Literal["float16", "float32"]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Identity of features: only features with the same one can be compared.

    Attributes:
        encoder: digest of the encoder's configuration and weights.
        pool: pooling of a clip's features into one vector.
        head: digest of the attentive head or the classifier's head; empty without one.
        window, hop: lengths of the sliding windows and of their distance.
        frames, size: frames of a clip, and pixels of its sides.
        embedding_dim: numbers per embedding, F.
        dtype: storage type of the embeddings.
        sampling, decode_short_side: as in `Data`.
    """

    encoder: str
    pool: Pool
    head: str = ""
    window: str
    hop: str
    frames: int
    size: int
    embedding_dim: int
    dtype: Precision
    sampling: Sampling
    decode_short_side: int

    def __post_init__(self) -> None:
        check(self, "")

    def __str__(self) -> str:
        head = f" (head {self.head[:12]})" if self.head else ""
        return (
            f"encoder {self.encoder[:12]}, pool {self.pool}{head}, windows of {self.window} every {self.hop}, "
            f"{self.frames} frames of {self.size}² ({self.sampling}, decoded at {self.decode_short_side}), "
            f"{self.embedding_dim} numbers in {self.dtype}"
        )


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Origin of features: their identity, and the places of the encoder and the attentive head."""

    identity: Identity
    source: str
    probe: str = ""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A window of a video.

    Attributes:
        path: path of the video.
        start, end: seconds from its first frame.
        label: class of the video; None without labels.
    """

    path: str
    start: float
    end: float
    label: str | None = None


def schema_of(provenance: Provenance) -> pa.Schema:
    """The columns of a features file."""
    number = pa.float16() if provenance.identity.dtype == "float16" else pa.float32()
    columns = [
        ("path", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("fps", pa.float64()),
        ("label", pa.string()),
        ("embedding", pa.list_(number, provenance.identity.embedding_dim)),
        ("size_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
    ]
    return pa.schema(columns, metadata={METADATA: json.dumps(to_json(provenance)).encode()})


def read_provenance(file: Path) -> Provenance:
    """The provenance in a features file; raises UserError for a missing, damaged or foreign file."""
    with open_features(file) as parquet:
        found = (parquet.schema_arrow.metadata or {}).get(METADATA)
    if found is None:
        raise UserError(f"{file} is a Parquet file, but not of features. Give one that `mam2 embed` wrote.")
    try:
        return from_json(Provenance, parse_json(found.decode()))
    except ValueError as error:
        raise UserError(f"{file} is damaged: the identity in it can't be used ({first_line(error)}).") from error


def open_features(file: Path) -> pq.ParquetFile:
    """A Parquet file, open for reading; raises UserError for a missing or damaged one."""
    if not file.is_file():
        raise UserError(f"{file} does not exist. Write it first: mam2 embed RUN VIDEOS --out {file}.")
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is no Parquet file, or damaged ({first_line(error)}).") from error


def rows_of(file: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a file, in batches; raises UserError for a missing or damaged one."""
    try:
        with open_features(file) as parquet:
            yield from parquet.iter_batches(ROWS_AT_ONCE, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is damaged ({first_line(error)}). Remove it, and embed the videos again.") from error


def matrix_of(column: pa.Array | pa.ChunkedArray) -> Tensor:
    """A column of embeddings, such as `table["embedding"]`, as float32 (rows, numbers)."""
    if isinstance(column, pa.ChunkedArray):
        return torch.cat([matrix_of(chunk) for chunk in column.chunks])
    values = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return torch.from_numpy(values).view(len(column), -1)


def check_identity(file: Path, here: Identity) -> None:
    """Raises UserError, with both identities, if a file holds other features than the wanted ones."""
    there = read_provenance(file).identity
    if there != here:
        names = [field.name for field in fields(Identity)]
        differing = [name for name in names if getattr(there, name) != getattr(here, name)]
        raise UserError(
            f"{file} holds other features: {', '.join(differing)} differ. There: {there}. Here: {here}. Give the "
            "encoder and the options that it was made with, or another file."
        )


class Parts:
    """Writer of one process's rows of a features file: each part is written whole or not at all.

    Args:
        out: the features file.
        provenance: provenance of the features.
        session: a number larger than that of any existing part.
        rank: rank of this process.
    """

    def __init__(self, out: Path, provenance: Provenance, *, session: int, rank: int) -> None:
        self._schema = schema_of(provenance)
        self._start = f"{session:06d}-{rank:05d}"
        self._folder = parts_folder(out)
        self._num_written = 0

    def write(self, columns: Mapping[str, list[Any]], embedding_RD: Tensor) -> None:
        """Writes rows as a part; `columns` are all but the embeddings."""
        kind = self._schema.field("embedding").type
        if embedding_RD.abs().max() > torch.finfo(torch.float16).max and kind.value_type == pa.float16():
            raise UserError("Features are too large for float16. Use --dtype float32.")
        numbers = embedding_RD.numpy().astype(kind.value_type.to_pandas_dtype())
        values = pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), type=kind)
        table = pa.table({**columns, "embedding": values}, schema=self._schema)
        file = self._folder / f"{self._start}-{self._num_written:08d}.parquet"
        with written_whole(file) as part:
            pq.write_table(table, part)
        self._num_written += 1


def parts_folder(out: Path) -> Path:
    """The folder of a features file's parts."""
    return out.with_name(f"{out.name}.parts")


def parts_of(out: Path) -> list[Path]:
    """The parts of a features file, in their order."""
    return sorted(parts_folder(out).glob("*.parquet"))


def files_of(out: Path) -> list[Path]:
    """The features file, if it is there, and its parts."""
    return ([out] if out.exists() else []) + parts_of(out)


def next_session(out: Path) -> int:
    """The next session number, larger than that of any existing part."""
    return max((int(part.name.partition("-")[0]) for part in parts_of(out)), default=-1) + 1


def known_windows(files: Sequence[Path], versions: Mapping[str, tuple[int, int]]) -> set[tuple[str, float, float]]:
    """Path, start and end of the rows in `files` of the videos and versions (size, time of change) in `versions`."""
    rows = (row for file in files for row in keys_of(file))
    return {(path, start, end) for path, start, end, *version in rows if versions.get(path) == tuple(version)}


def keys_of(file: Path) -> Iterator[tuple[Any, ...]]:
    """The `KEY` of each row."""
    for batch in rows_of(file, KEY):
        yield from rows_in(batch, KEY)


def merge(
    out: Path, provenance: Provenance, *, versions: Mapping[str, tuple[int, int]], labels: Mapping[str, str]
) -> int:
    """Makes one file of the old rows and the parts, and removes the parts.

    Args:
        out: the features file.
        provenance: provenance of the features.
        versions: size and time of change of videos; rows of other versions are dropped, rows of other videos kept.
        labels: labels of videos by path, which replace those in the file.

    Returns:
        The number of rows.
    """
    schema = schema_of(provenance)
    plain = [name for name in schema.names if name != "embedding"]
    seen = set[tuple[str, float, float]]()

    def is_kept(path: str, start: float, end: float, *version: int) -> bool:
        if versions.get(path, version) != version or (path, start, end) in seen:
            return False
        seen.add((path, start, end))
        return True

    with written_whole(out) as part, pq.ParquetWriter(part, schema, use_dictionary=plain, compression="zstd") as writer:
        for batch in (batch for file in files_of(out) for batch in rows_of(file)):
            kept = [is_kept(*row) for row in rows_in(batch, KEY)]
            named = [labels.get(path, label) for path, label in rows_in(batch, ["path", "label"])]
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            columns["label"] = pa.array(named, pa.string())
            writer.write_batch(pa.record_batch(columns, schema=schema).filter(pa.array(kept)))
    shutil.rmtree(parts_folder(out), ignore_errors=True)
    return len(seen)


def rows_in(batch: pa.RecordBatch, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The rows of some columns."""
    return zip(*(batch[name].to_pylist() for name in columns), strict=True)
