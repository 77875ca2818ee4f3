"""Search of similar windows in a features file: by an example, or for near-duplicates; exact, by cosine.

N windows, Q windows of the query, F numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from mam2.config import UserError
from mam2.data.video.segment_path import segment_of
from mam2.device import local_device
from mam2.progress import progress
from mam2.use.embedder import Embedder, load_embedder_of
from mam2.use.features_file import PLACE, Place, matrix_of, read_provenance, rows_of
from mam2.use.lance import search_table
from mam2.use.sliding_windows import vectors_of_video

log = logging.getLogger("mam2")
BLOCK = 2048  # windows compared with as many others at once
MAX_PAIRS = 10_000


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A window that is similar to the query.

    Attributes:
        score: cosine with the most similar window of the query.
        found: the window.
        query: the most similar window of the query.
    """

    score: float
    found: Place
    query: Place


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two similar windows.

    Attributes:
        score: cosine of their embeddings.
        one, other: the windows.
    """

    score: float
    one: Place
    other: Place


@dataclass(frozen=True, kw_only=True)
class Query:
    """The windows of a query, in order; `x_QF` holds their embeddings, of length 1."""

    path: str
    windows: tuple[Place, ...]
    x_QF: Tensor


def search(
    features: str | Path, query: str | Path, *, top_k: int = 10, encoder: str | Path = "", lancedb: str | Path = ""
) -> list[Hit]:
    """The windows most similar to a video, the best first. Windows of the query's own file are left out.

    The score of a window is its best cosine with any window of the query.

    Args:
        features: a file that `embed` wrote.
        query: a video; `long.mp4#t=12,20` is a segment of one.
        top_k: number of windows.
        encoder: present place of the encoder that made the file; by default the stated one.
        lancedb: a folder for an embedded LanceDB table of the file's rows, which is written if missing and searched
            instead. Large tables get an index, which may miss some windows.

    Raises:
        UserError: no features file, another encoder, or a query shorter than a window.
    """
    if top_k < 1:
        raise UserError(f"top_k is {top_k}; at least 1 window is needed.")
    file = Path(features)
    provenance = read_provenance(file)
    example = embed_query(str(query), load_embedder_of(provenance, file, source=str(encoder)))
    if lancedb:
        best = search_table(Path(lancedb), file, example.x_QF, path=example.path, top_k=top_k)
    else:
        best = search_file(file, example.x_QF, path=example.path, top_k=top_k)
    return [Hit(score=score, found=found, query=example.windows[which]) for score, found, which in best]


def embed_query(path: str, embedder: Embedder, *, max_windows: int | None = None) -> Query:
    """The embeddings of a query's windows; of `max_windows` spread evenly if it has more.

    Raises:
        UserError: a video that can't be used, or that is shorter than a window.
    """
    found = vectors_of_video(embedder, path, max_windows=max_windows)
    if found.is_short:
        [whole] = found.windows
        raise UserError(
            f"{found.path} has {whole.last} frames, {whole.end:.3g} seconds: the query is shorter than a window of the "
            f"features, {embedder.provenance.identity.window}. Give a longer one, or embed the videos again with a "
            "shorter --window."
        )
    return Query(
        path=found.path,
        windows=tuple(Place(path=found.path, start=window.start, end=window.end) for window in found.windows),
        x_QF=F.normalize(found.vector_BF, dim=1),
    )


def search_file(file: Path, x_QF: Tensor, *, path: str, top_k: int) -> list[tuple[float, Place, int]]:
    """Score, window, and number of the query's window, the best first; windows of the file of `path` are left out."""
    device = local_device()
    x_QF = x_QF.to(device)
    best_K = torch.empty(0)
    row_K = which_K = torch.empty(0, dtype=torch.int64)
    num_seen = 0
    for batch in rows_of(file, ["path", "embedding"]):
        cosine_NQ = F.normalize(matrix_of(batch["embedding"]).to(device), dim=1) @ x_QF.T
        score_N, which_N = (x.cpu() for x in cosine_NQ.max(dim=1))
        own_N = torch.from_numpy(is_of_file(batch["path"], path).to_numpy(zero_copy_only=False).copy())
        score_N[own_N] = -torch.inf
        best_K = torch.cat([best_K, score_N])
        row_K = torch.cat([row_K, num_seen + torch.arange(len(batch))])
        which_K = torch.cat([which_K, which_N])
        best_K, kept = best_K.topk(min(top_k, len(best_K)))
        row_K, which_K = row_K[kept], which_K[kept]
        num_seen += len(batch)
    there_K = best_K > -torch.inf
    places = places_of(file, row_K[there_K].tolist())
    return list(zip(best_K[there_K].clamp(max=1).tolist(), places, which_K[there_K].tolist(), strict=True))


def is_of_file(paths: pa.Array, path: str) -> pa.Array:
    """True for each path in the same file as `path`, whatever the segments."""
    file = segment_of(path)[0]
    return pc.or_(pc.equal(paths, file), pc.starts_with(paths, f"{file}#t="))


def places_of(file: Path, rows: Sequence[int]) -> list[Place]:
    """The windows of some rows."""
    if not rows:
        return []
    table = pa.Table.from_batches(list(rows_of(file, PLACE)))
    return [Place(**row) for row in table.take(pa.array(rows, pa.int64())).to_pylist()]


def near_duplicates(features: str | Path, *, threshold: float = 0.95, max_pairs: int = MAX_PAIRS) -> list[Pair]:
    """The pairs of windows in a file whose cosine reaches a threshold, the most similar first.

    Windows of one video that overlap in time do not count. Every window is compared with every other: the work grows
    with the square of their number. The embeddings are held in memory.

    Args:
        features: a file that `embed` wrote.
        threshold: least cosine of a pair.
        max_pairs: keeps only this many, most similar first, with a warning.

    Raises:
        UserError: no features file, or a threshold outside -1 .. 1.
    """
    if not -1 <= threshold <= 1:
        raise UserError(f"The threshold is {threshold}; accepted are cosines from -1 to 1.")
    file = Path(features)
    read_provenance(file)
    batches = list(rows_of(file, ["embedding"]))
    if not batches:
        return []
    x_NF = F.normalize(torch.cat([matrix_of(batch["embedding"]) for batch in batches]), dim=1)
    table = pq.read_table(file, columns=PLACE)
    when_N3 = _when(table)
    num_pairs = 0
    score_P = torch.empty(0)
    pair_P2 = torch.empty(0, 2, dtype=torch.int64)
    blocks = torch.arange(len(x_NF)).split(BLOCK)
    compared = list(combinations_with_replacement(range(len(blocks)), 2))
    for i, j in progress(compared, title="comparing", total=len(compared), hidden=len(compared) == 1):
        found_P2 = _alike(x_NF, when_N3, blocks[i], blocks[j], threshold=threshold)
        num_pairs += len(found_P2)
        pair_P2 = torch.cat([pair_P2, found_P2])
        score_P = torch.cat([score_P, (x_NF[found_P2[:, 0]] * x_NF[found_P2[:, 1]]).sum(dim=1)])
        if len(score_P) > max_pairs:
            score_P, kept = score_P.topk(max_pairs)
            pair_P2 = pair_P2[kept]
    score_P, order = score_P.sort(descending=True, stable=True)
    total = len(x_NF) * (len(x_NF) - 1) // 2
    if num_pairs > max_pairs:
        log.warning(
            f"{num_pairs} of {total} pairs of windows reach {threshold:g}; the {max_pairs} most alike are kept. Raise "
            "the threshold."
        )
    rows = pair_P2[order]
    places = [[Place(**row) for row in table.take(rows[:, side].numpy()).to_pylist()] for side in (0, 1)]
    return [
        Pair(score=min(1.0, score), one=one, other=other)
        for score, one, other in zip(score_P.tolist(), *places, strict=True)
    ]


def _alike(x_NF: Tensor, when_N3: Tensor, some: Tensor, others: Tensor, *, threshold: float) -> Tensor:
    """Pairs of similar rows (P, 2), the first before the second, that do not overlap in one file."""
    device = local_device()
    cosine_SO = x_NF[some].to(device) @ x_NF[others].to(device).T
    pair_P2 = (cosine_SO >= threshold - 1e-6).nonzero().cpu()  # of equal vectors it may be a hair below 1
    pair_P2 = torch.stack([some[pair_P2[:, 0]], others[pair_P2[:, 1]]], dim=1)
    pair_P2 = pair_P2[pair_P2[:, 0] < pair_P2[:, 1]]
    (file_P, start_P, end_P), (file2_P, start2_P, end2_P) = (when_N3[pair_P2[:, side]].unbind(1) for side in (0, 1))
    overlap_P = (file_P == file2_P) & (start_P < end2_P) & (start2_P < end_P)
    return pair_P2[~overlap_P]


def _when(table: pa.Table) -> Tensor:
    """Each window's file, as a number, and its start and end in it, seconds; double (N, 3)."""
    numbers = dict[str, int]()
    rows = []
    for path, start, end in zip(*(table[name].to_pylist() for name in ("path", "start", "end")), strict=True):
        file, offset, _ = segment_of(path)
        rows.append((numbers.setdefault(file, len(numbers)), offset + start, offset + end))
    return torch.tensor(rows, dtype=torch.float64)
