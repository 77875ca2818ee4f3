"""Extraction of videos to folders of JPEG frames, which decode at random places without a seek (App. B)."""

from __future__ import annotations

import contextlib
import csv
import glob
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Le
from PIL import Image

from mam2.config import UserError, check
from mam2.data.csv_list import CsvRow, read_rows
from mam2.data.prepare.inspect import relative_to
from mam2.data.video.index import VideoError, scaled_down
from mam2.data.video.jpeg_folder import META, JpegFolder, read_meta
from mam2.data.video.open import open_video
from mam2.data.video.segment_path import segment_of
from mam2.data.video.source import VideoSource
from mam2.data.workers import QuarantinedError, parallel_map
from mam2.files import written_whole
from mam2.progress import progress

log = logging.getLogger("mam2")

_BLOCK_BYTES = 4096  # a file takes a multiple of this of a disk
_NUM_SAMPLES = 5  # frames per video that the estimate of the disk's space reads
_NUM_VIDEOS = 12  # videos that the estimate reads


@dataclass(frozen=True, kw_only=True)
class Extract:
    """Frames to extract from videos.

    Attributes:
        frames: folder to extract all frames of a manifest to, one folder per video, with a manifest of their own; by
            default none are extracted.
        short_side: pixels to which the shorter side is reduced, 256 or 320 as a rule; smaller videos keep their size.
        quality: quality of the JPEG files, 1 to 100.

    Raises:
        UserError: a value outside its range.
    """

    frames: Path | None = None
    short_side: Annotated[int, Ge(1)] = 256
    quality: Annotated[int, Ge(1), Le(100)] = 90

    def __post_init__(self) -> None:
        check(self, "")


_USUAL = Extract()


def write_frames(video_path: str | Path, folder: str | Path, config: Extract = _USUAL) -> JpegFolder:
    """Writes all frames of a video into a folder: 000000.jpg, 000001.jpg, ..., and meta.json.

    The folder appears complete or not at all. One that was made from the same file in the same way is kept. A killed
    run leaves a hidden `.NAME.*.partial` next to it, which the next run for this folder removes.

    Args:
        video_path: the video.
        folder: the new folder; its parents are made.
        config: size and quality of the frames.

    Raises:
        VideoError: the video, or one of its frames, does not decode.
        UserError: the folder holds something else, or can't be written.
    """
    folder = Path(folder)
    with open_video(video_path) as video:
        meta = _meta_of(video, config)
        if _is_written(folder, meta):
            return JpegFolder(folder)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(
                prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent, ignore_cleanup_errors=True
            ) as temporary:
                partial = Path(temporary) / "frames"
                partial.mkdir()
                for index, frame_CHW in enumerate(video.each()):
                    (partial / f"{index:06d}.jpg").write_bytes(_jpeg(frame_CHW, config))
                (partial / META).write_text(json.dumps(meta, indent=1) + "\n", "utf-8")
                partial.rename(folder)
        except OSError as error:
            if not _is_written(folder, meta):  # or else another process was faster
                raise UserError(
                    f"{folder} can't be written: {error.strerror or error}. Nothing of it is kept; make room or name "
                    f"another folder, and run it again."
                ) from error
    for left_over in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):
        shutil.rmtree(left_over, ignore_errors=True)
    return JpegFolder(folder)


def estimate_bytes(video_path: str | Path, config: Extract = _USUAL) -> int:
    """Estimates from a few frames the bytes that `write_frames` will take of the disk. Raises VideoError if the video,
    or one of those frames, does not decode."""
    with open_video(video_path) as video:
        num_samples = min(_NUM_SAMPLES, video.num_frames)
        indices = [(2 * i + 1) * video.num_frames // (2 * num_samples) for i in range(num_samples)]
        sizes = [len(_jpeg(frame_CHW, config)) for frame_CHW in video.frames(indices)]
    blocks = sum(-(-size // _BLOCK_BYTES) for size in sizes)
    return (blocks * video.num_frames // num_samples + 1) * _BLOCK_BYTES


@dataclass(frozen=True)
class Extracted:
    """Result of `write_all_frames`.

    Attributes:
        manifest: CSV of the frame folders, with the labels and splits of the videos.
        num_videos: number of videos in the manifest.
        bad: path and reason of videos that could not be extracted.
        estimated_bytes: expected size of all videos' frames.
    """

    manifest: Path
    num_videos: int
    bad: dict[str, str]
    estimated_bytes: int


def write_all_frames(
    manifest: str | Path,
    config: Extract,
    *,
    num_workers: int = 2,
    timeout_seconds: int = 3600,
    max_bad_share: float = 0.05,
) -> Extracted:
    """Extracts the frames of all videos of a manifest, as the paper does before pre-training (App. B).

    Frames of an interrupted run are kept. The new manifest is `frames.csv` in the folder of frames; each of its paths
    is a folder of JPEG files.

    Args:
        manifest: a CSV with the columns path and, optionally, label and split, as `mam2 prepare` writes it.
        config: the folder, and the size and quality of the frames.
        num_workers: processes; 0 does it in this one.
        timeout_seconds: a video that keeps a process longer is left out, as one that ends it is.
        max_bad_share: share of the videos that may fail.

    Raises:
        UserError: a wrong manifest, too little room on the disk, no video that can be extracted, or a full disk.
    """
    if config.frames is None:
        raise UserError("There is no folder for the frames. Name a new one as `frames`.")
    manifest = Path(manifest)
    folder = Path(config.frames)
    rows = read_rows(manifest, needed=("path",))
    places = {row.path: folder / _folder_of(relative_to(row.path, manifest.parent)) for row in rows}
    missing = [row.path for row in rows if not places[row.path].exists()]
    estimated = _check_room(missing, folder, config, num_videos=len(rows))
    bad = _extract_all(rows, places, config, num_workers=num_workers, timeout_seconds=timeout_seconds)
    made = [row for row in rows if row.path not in bad]
    for reason in list(bad.values())[:5]:
        log.warning("Left out: %s", reason)
    if not made or len(bad) > max_bad_share * len(rows):
        raise UserError(
            f"{len(bad)} of {len(rows)} videos can't be extracted; at most {max_bad_share:.1%} may be. The first: "
            f"{next(iter(bad.values()))} What was extracted is kept."
        )
    with written_whole(folder / "frames.csv") as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        writer.writerows((places[row.path].name, row.label, row.split) for row in made)
    return Extracted(folder / "frames.csv", len(made), bad, estimated)


def _check_room(paths: list[str], folder: Path, config: Extract, *, num_videos: int) -> int:
    """Estimated bytes of the frames of these videos; UserError if the folder's disk has less room."""
    sizes = []
    for path in paths[:: max(1, len(paths) // _NUM_VIDEOS)]:
        with contextlib.suppress(UserError):
            sizes.append(estimate_bytes(path, config))
    estimated = sum(sizes) * len(paths) // max(1, len(sizes))
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    log.info(
        f"{len(paths)} of {num_videos} videos to extract: about {estimated / 1e9:.2f} GB, {free / 1e9:.1f} GB free."
    )
    if estimated > free:
        raise UserError(
            f"The frames of {len(paths)} videos take about {estimated / 1e9:.1f} GB, and {folder} has "
            f"{free / 1e9:.1f} GB free. Make room, or use a smaller --short-side or --quality."
        )
    return estimated


def _extract_all(
    rows: list[CsvRow], places: dict[str, Path], config: Extract, *, num_workers: int, timeout_seconds: int
) -> dict[str, str]:
    """Extracts the frames of all videos; the reasons of those that can't be, by path."""
    paths = [row.path for row in rows]
    bad = dict[str, str]()
    extract = partial(_extract_one, places=places, config=config)
    results = parallel_map(extract, paths, num_workers=num_workers, timeout_seconds=timeout_seconds)
    with closing(results):
        jobs = zip(paths, results, strict=True)
        for path, found in progress(jobs, title="extracting", total=len(rows)):
            if isinstance(found, VideoError | QuarantinedError):
                bad[path] = str(found)
            elif isinstance(found, UserError):
                raise found
    return bad


def _folder_of(path: str) -> str:
    """Name of a video's folder: the video's, cut if it is long, and a hash of its path, so that no two are alike."""
    digest = hashlib.blake2b(os.fsencode(path), digest_size=6).hexdigest()
    stem = Path(segment_of(path)[0]).stem.encode("utf-8", "replace")[:80].decode("utf-8", "ignore").strip(" .")
    return f"{stem}_{digest}"


def _extract_one(path: str, *, places: dict[str, Path], config: Extract) -> None:
    write_frames(path, places[path], config)


def _jpeg(frame_CHW: torch.Tensor, config: Extract) -> bytes:
    """Encodes a frame, uint8 (3, H, W), as a JPEG file, scaled down to the short side."""
    image = Image.fromarray(np.ascontiguousarray(frame_CHW.permute(1, 2, 0).numpy()))
    size = scaled_down(image.width, image.height, config.short_side)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)  # which Pillow widens against aliasing
    file = io.BytesIO()
    image.save(file, "JPEG", quality=config.quality)
    return file.getvalue()


def _meta_of(video: VideoSource, config: Extract) -> dict[str, Any]:
    try:
        name, start, end = segment_of(video.path)
        with open(name, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size_bytes = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise VideoError(f"{video.path} can't be read: {error.strerror or error}.") from error
    source = {"name": Path(video.path).name, "height": video.height, "width": video.width}
    source |= {"bytes": size_bytes, "sha256": digest if name == video.path else f"{digest} {start:g} {end:g}"}
    made = {"fps": video.fps, "count": video.num_frames, "short_side": config.short_side, "quality": config.quality}
    return made | {"source": source}


def _is_written(folder: Path, meta: dict[str, Any]) -> bool:
    """True if the folder was made from this source in this way, False if it is absent or empty. Raises UserError for
    any other folder."""
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return False
    found = read_meta(str(folder)) if folder.is_dir() else {}
    if found.get("source", {}).get("sha256") != meta["source"]["sha256"]:
        other = "something else than the frames of this video"
    elif any(found.get(name) != meta[name] for name in ("short_side", "quality")):
        other = f"its frames with short_side {found.get('short_side')} and quality {found.get('quality')}"
    else:
        return True
    raise UserError(f"{folder} is there already and holds {other}. Remove it or name another folder.")
