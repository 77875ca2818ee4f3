"""Search in an embedded LanceDB table of a features file, for files too large to read for each query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from mam2.config import UserError
from mam2.data.video.segment_path import segment_of
from mam2.use.features_file import PLACE, Place, open_features, rows_of

TABLE = "windows"
STAMP = b"mam2 file"
"""Key of a table's metadata that names the version of the features file."""
INDEXED_FROM = 100_000  # rows; fewer are read through, which misses none
INDEX_PARTS = 50  # parts of the index that are searched


def search_table(folder: Path, file: Path, x_QF: Tensor, *, path: str, top_k: int) -> list[tuple[float, Place, int]]:
    """Score, window, and number of the query's window, the best first; see `search`."""
    table = open_table(folder, file)
    escaped = segment_of(path)[0].replace("'", "''")
    others = f"path != '{escaped}' AND NOT starts_with(path, '{escaped}#t=')"
    best = dict[tuple[str, float, float], tuple[float, Place, int]]()
    for number, x_F in enumerate(x_QF):
        found = table.search(x_F.numpy(), vector_column_name="embedding").distance_type("cosine")
        found = found.where(others, prefilter=True).nprobes(INDEX_PARTS).limit(top_k).select([*PLACE, "_distance"])
        for row in found.to_list():
            score = min(1.0, 1 - row.pop("_distance"))
            place = Place(**row)
            key = (place.path, place.start, place.end)
            if key not in best or score > best[key][0]:
                best[key] = (score, place, number)
    return sorted(best.values(), key=lambda row: -row[0])[:top_k]


def open_table(folder: Path, file: Path) -> Any:
    """The table of a features file, written if missing or outdated; raises UserError without LanceDB."""
    try:
        import lancedb
        from lancedb.index import IvfFlat
    except ImportError as error:
        raise UserError(
            f"--lancedb needs the package {error.name}. Install it: pip install 'mam2[lancedb]'; or leave the option "
            "out: the search is then exact, and reads the whole file."
        ) from error
    status = file.stat()
    with open_features(file) as parquet:
        schema = parquet.schema_arrow
    stamp = f"{file.absolute()} {status.st_size} {status.st_mtime_ns}".encode()
    schema = schema.with_metadata({**schema.metadata, STAMP: stamp})
    database = lancedb.connect(folder)
    is_there = TABLE in database.list_tables().tables
    if is_there:
        table = database.open_table(TABLE)
        if (table.schema.metadata or {}).get(STAMP) == stamp:
            return table
    batches = (batch.cast(schema) for batch in rows_of(file))
    reader = pa.RecordBatchReader.from_batches(schema, batches)
    mode = "overwrite" if is_there else "create"
    table = database.create_table(TABLE, data=reader, schema=schema, mode=mode)
    if table.count_rows() >= INDEXED_FROM:
        table.create_index("embedding", config=IvfFlat(distance_type="cosine"))
    return table
