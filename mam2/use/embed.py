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
from mam2.data.clips import Data, middle_clip
from mam2.data.shape import ClipShape
from mam2.data.windows import clip_between
from mam2.model.encoder import EncoderConfig
from mam2.use.embedder import Embed, Embedder, load_embedder
from mam2.use.features_file import check_identity, files_of, merge, open_features, parts_of
from mam2.use.sliding_windows import complete, none_usable, only_writer_of


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What `embed_file` did.

    Attributes:
        num_windows: rows in the file.
        num_new: those that were computed now.
        num_videos: videos that were asked for.
        bad: path and reason of those of which something was left out.
    """

    num_windows: int
    num_new: int
    num_videos: int
    bad: dict[str, str]


def embed(source: str | Path, videos: str | Path, out: str | Path = "", *, config: Embed | None = None) -> pa.Table:
    """The features of videos, a row for each window: path, start, end (seconds), fps, label, embedding, and the file's
    size and time of change.

    Args:
        source: what `load_encoder` takes, such as a run's folder.
        videos: a folder of videos at any depth, a CSV with path, or a video file.
        out: a .parquet file to keep them in; one that is there is completed. Empty keeps nothing.
        config: windows, pooling and the rest; the defaults if None.

    Raises:
        UserError: no encoder, no usable videos, or a file with other features.
    """
    if out:
        embed_file(source, videos, Path(out), config=config or Embed())
        return pq.read_table(out)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "features.parquet"
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
    """The clip of a video that an encoder is tested on: uint8 (T, 3, S, S), for `encoder(clip[None])`.

    It has the frames and the resize that training and testing use; the crop is the centre square.

    Args:
        path: a video file or a folder of frames; `long.mp4#t=12,20` is a segment.
        config: the encoder's, for T and S.
        start: seconds from the first frame; the middle of the video if None.
        end: of the window that the frames are taken from, seconds; by default it holds T frames `stride_frames` apart.
        stride_frames: distance between neighbouring frames; less where the video is too short for it.

    Raises:
        UserError: a video that can't be decoded, or that ends before `start`.
    """
    data, shape = Data(stride_frames=stride_frames), ClipShape.of(config)
    if start is None and end is None:
        return middle_clip(path, data, shape)
    return clip_between(str(path), data, shape, start=start or 0.0, end=end)


def embed_file(source: str | Path, videos: str | Path, out: Path, *, config: Embed) -> Embedded:
    """Embeds videos into a features file, which is completed if it is there; see `embed`.

    Rows of unchanged files (path, size, time of change) are not computed again, also after a kill in the middle. Of
    several processes each computes a part of the windows.

    Raises:
        UserError: see `embed`.
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
    """The videos that are asked for: those of a folder or a list, or a single one; each once, with absolute paths.

    Raises:
        UserError: there are none.
    """
    single = only_video(videos)
    if single and config.labelled:
        raise UserError(f"{videos} is a video, which has no label. Leave --labelled out, or give class folders.")
    catalog = single or read_catalog(config.listing(videos), labelled=config.labelled)
    items = {path: replace(item, path=path) for item in catalog.items for path in [os.path.abspath(item.path)]}
    return replace(catalog, items=tuple(items.values()))
