"""Features of a frozen encoder for every view of every video, computed once and kept on disk.

N videos, V views of a video, T frames, S squares that a frame's patches are averaged over, D width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from mam2 import distributed
from mam2.config import to_json
from mam2.data.bad_videos import BadVideos
from mam2.data.catalog import Catalog
from mam2.data.clips import Data
from mam2.data.shape import ClipShape
from mam2.data.video.segment_path import fingerprint
from mam2.data.views import ViewLoader, Views
from mam2.device import PROBED_AT_ONCE, local_device
from mam2.files import digest, read_tensors, write_tensors
from mam2.model.encoder import VideoEncoder
from mam2.model.pooling import average_squares
from mam2.progress import progress

VIDEOS_PER_FILE = 256  # an interrupted extraction resumes after the last whole file


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of a data set.

    Attributes:
        x_NVTSD: float32 with S = 1 for linear and knn, float16 for attentive.
        label_N: int64, the classes.
        index_N: int64, each video's place in the catalog, sorted.
        bad: path and reason of videos that could not be used.
    """

    x_NVTSD: Tensor
    label_N: Tensor
    index_N: Tensor
    bad: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """Settings of an extraction.

    Attributes:
        data: settings for reading videos.
        clips, crops: views per video.
        squares: squares per side of a frame, each the mean of its patches; S is squares².
        dtype: autocast dtype; None computes in fp32.
    """

    data: Data
    clips: int
    crops: int
    squares: int
    dtype: torch.dtype | None

    @property
    def key(self) -> tuple[object, ...]:
        """The settings that change features."""
        data = self.data
        reading = (data.sampling, data.stride_frames, data.decode_short_side)
        return (self.clips, self.crops, *reading, self.squares, str(self.dtype), VIDEOS_PER_FILE)


def extract(
    encoder: VideoEncoder, catalog: Catalog, settings: Extraction, folder: Path, *, title: str = "features"
) -> Features:
    """Features of a data set, computed once: those that `folder` already holds are read.

    Their key is a digest of the encoder's weights, the videos (path, size, time of change) and the settings; labels can
    change. A file is made again next time if a decoding process died or hung meanwhile: the fault can be passing.

    Args:
        encoder: a frozen encoder; used on the device of this process.
        catalog: the videos.
        settings: views, pooling and precision.
        folder: folder that keeps the features of all extractions.
        title: title of the progress bar.

    Raises:
        UserError: too many unusable videos.
    """
    files = fingerprint(item.path for item in catalog.items)
    config = to_json(dataclasses.replace(encoder.config, drop_path=0.0))
    key = hashlib.sha256(repr((config, digest(encoder.state_dict()), files, settings.key)).encode()).hexdigest()[:16]
    place = folder / key
    place.mkdir(parents=True, exist_ok=True)
    num_videos = len(catalog.items)
    num_parts = -(-num_videos // VIDEOS_PER_FILE)
    files_of_parts = [place / f"{part:05d}.safetensors" for part in range(num_parts)]
    missing = [part for part, file in enumerate(files_of_parts) if not file.exists()]
    distributed.barrier()  # all have looked before any writes
    encoder = encoder.to(local_device()).eval()
    doubtful = []
    for part in missing[distributed.rank() :: distributed.world_size()]:
        loader = ViewLoader(
            catalog,
            settings.data,
            ClipShape.of(encoder.config),
            clips=settings.clips,
            crops=settings.crops,
            rank=part,
            world_size=num_parts,
        )
        shown = progress(loader, title=f"{title} {part + 1}/{num_parts}", total=len(range(part, num_videos, num_parts)))
        write_tensors(files_of_parts[part], _encode(encoder, shown, settings), {"bad": json.dumps(loader.bad.reasons)})
        doubtful += [files_of_parts[part]] if loader.quarantined else []
    distributed.barrier()
    features = _read(files_of_parts, catalog, settings.data)
    distributed.barrier()  # all have read before any removes
    for file in doubtful:
        file.unlink()
    return features


@torch.no_grad()
def _encode(encoder: VideoEncoder, videos: Iterator[Views], settings: Extraction) -> dict[str, Tensor]:
    """The tensors of one file: features (N, V, T, S, D) and the videos' places in the catalog."""
    config = encoder.config
    squares = settings.squares
    dtype = settings.dtype
    num_views = settings.clips * settings.crops
    device = next(encoder.parameters()).device
    kept = torch.float32 if squares == 1 else torch.float16
    rows = [torch.empty(0, num_views, config.tubelets, squares**2, config.width, dtype=kept)]
    places = []
    while some := list(islice(videos, max(1, PROBED_AT_ONCE // num_views))):
        for part_BTCHW in torch.cat([video.views_VTCHW for video in some]).split(PROBED_AT_ONCE):
            with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                features_BTND = encoder(part_BTCHW.to(device))
            rows.append(average_squares(features_BTND.float(), config.grid, squares).to("cpu", kept))
        places += [video.index for video in some]
    x_NVTSD = torch.cat(rows[1:]).unflatten(0, (-1, num_views)) if places else rows[0]
    return {"x_NVTSD": x_NVTSD, "index_N": torch.tensor(places, dtype=torch.int64)}


def _read(files: list[Path], catalog: Catalog, data: Data) -> Features:
    label_N = torch.tensor([-1 if item.label is None else item.label for item in catalog.items])
    found_N = torch.zeros(len(label_N), dtype=torch.bool)
    bad: dict[str, str] = {}
    x_NVTSD = torch.empty(0)
    for file in files:
        tensors, metadata = read_tensors(file)
        if not len(x_NVTSD):
            x_NVTSD = tensors["x_NVTSD"].new_empty(len(label_N), *tensors["x_NVTSD"].shape[1:])
        x_NVTSD[tensors["index_N"]] = tensors["x_NVTSD"]
        found_N[tensors["index_N"]] = True
        bad |= json.loads(metadata["bad"])
    BadVideos(num_videos=len(label_N), max_share=data.max_bad_share, reasons=bad).check()
    x_NVTSD = x_NVTSD if found_N.all() else x_NVTSD[found_N]
    return Features(x_NVTSD=x_NVTSD, label_N=label_N[found_N], index_N=found_N.nonzero()[:, 0], bad=bad)
