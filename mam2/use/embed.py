"""Features along videos: one vector for each sliding window, by a frozen encoder, in a Parquet file.

B windows, T frames, F numbers.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from mam2 import distributed
from mam2.config import UserError
from mam2.data.catalog import Catalog, only_video, read_catalog
from mam2.data.clips import Data
from mam2.data.shape import ClipShape
from mam2.model.encoder import EncoderConfig
from mam2.trained import clip_of
from mam2.use.embedder import Embed, Embedder, load_embedder
from mam2.use.features_file import check_identity, files_of, merge, open_features, parts_of
from mam2.use.sliding_windows import complete, none_usable, only_writer_of


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Result of `embed_file`: rows in the file, new ones, videos in the request, and left-out videos with reasons."""

    num_windows: int
    num_new: int
    num_videos: int
    bad: dict[str, str]


def embed(source: str | Path, videos: str | Path, out: str | Path = "", *, config: Embed | None = None) -> pa.Table:
    """The features of videos, a row for each window: path, start, end (seconds), fps, label, embedding, and the file's
    size and time of change.

    Args:
        source: a source of `load_encoder`, such as a run's folder.
        videos: a folder of videos at any depth, a CSV with path, or a video file.
        out: a .parquet file to keep them in; an existing one is completed. Empty keeps nothing.
        config: settings; the defaults if None.

    Raises:
        UserError: no encoder, no usable videos, or a file with other features.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(out or f"{folder}/features.parquet")
        embed_file(source, videos, file, config=config or Embed())
        return pq.read_table(file)


def read_clip(
    path: str | Path,
    config: EncoderConfig,
    *,
    start: float | None = None,
    end: float | None = None,
    stride_frames: int = 4,
) -> Tensor:
    """A clip of a video as in testing, the centre square: uint8 (T, 3, S, S), for `encoder(clip[None])`.

    Args:
        path: a video file or a folder of frames; `long.mp4#t=12,20` is a segment.
        config: configuration of the encoder, for T and S.
        start: seconds from the first frame; the middle of the video if None.
        end: end of the window that holds the frames, seconds; by default T frames `stride_frames` apart fit into it.
        stride_frames: distance between neighbouring frames; less if the video is too short for it.

    Raises:
        UserError: a video that can't be decoded, or that ends before `start`.
    """
    return clip_of(path, Data(stride_frames=stride_frames), ClipShape.of(config), start=start, end=end)


def embed_file(source: str | Path, videos: str | Path, out: Path, *, config: Embed) -> Embedded:
    """Embeds videos into a features file, or completes it, also after a kill; several processes share the work.

    Rows of unchanged videos (path, size, time of change) are not computed again. See `embed`.
    """
    if out.suffix != ".parquet":
        raise UserError(f"Features can't be written to {out}; accepted is a file that ends in .parquet.")
    catalog = videos_to_embed(str(videos), config)
    embedder = load_embedder(str(source), config)
    for file in files_of(out):
        check_identity(file, embedder.provenance.identity)
    with only_writer_of(out):
        return _embed_all(catalog, embedder, out)


def _embed_all(catalog: Catalog, embedder: Embedder, out: Path) -> Embedded:
    paths = [item.path for item in catalog.items]
    labels = {item.path: catalog.classes[item.label] for item in catalog.items if item.label is not None}
    done = complete(embedder, paths, out, known=files_of(out), labels=labels, doing="embedding")
    num_windows = 0
    if distributed.rank() == 0:
        if not out.exists() and not parts_of(out):
            raise none_usable(done, len(paths))
        if parts_of(out) or labels or not out.exists():
            num_windows = merge(out, embedder.provenance, versions=done.versions, labels=labels)
        else:
            with open_features(out) as parquet:
                num_windows = parquet.metadata.num_rows
    distributed.barrier()
    return Embedded(num_windows=num_windows, num_new=done.num_new, num_videos=len(paths), bad=done.bad)


def videos_to_embed(videos: str, config: Embed) -> Catalog:
    """The videos of a folder or a list, or one video: each once, with absolute paths; raises UserError without any."""
    single = only_video(videos)
    if single and config.labelled:
        raise UserError(f"{videos} is a video, which has no label. Leave --labelled out, or give class folders.")
    catalog = single or read_catalog(config.listing(videos), labelled=config.labelled)
    absolute = [replace(item, path=os.path.abspath(item.path)) for item in catalog.items]
    items = {item.path: item for item in absolute}
    return replace(catalog, items=tuple(items.values()))
