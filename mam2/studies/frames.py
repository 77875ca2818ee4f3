"""Frames that the runs of a study share: decoded once, at the study's size, and read through memory maps."""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path

from mam2.config import UserError
from mam2.data.bad_videos import BadVideos
from mam2.data.catalog import Catalog
from mam2.data.clips import Data
from mam2.data.video.frame_file import SUFFIX, write_frame_file
from mam2.data.video.open import open_video
from mam2.files import write_text
from mam2.progress import progress
from mam2.studies.summary import as_csv

log = logging.getLogger("mam2")
MARGIN = 256 / 224
"""The short side of shared frames over that of a clip, as usual in testing."""


def shared_frames(catalog: Catalog, folder: Path, *, size: int, name: str) -> Path:
    """Decodes all videos of a catalog, those that are not there yet, and lists them.

    If the frames would take more than half of the free disk, the list names the videos themselves.

    Args:
        catalog: the videos.
        folder: place of frames and lists; several catalogs may share it.
        size: size of clips, in pixels.
        name: name of the list.

    Returns:
        A CSV with path and, in a labelled catalog, label, the class's name.

    Raises:
        UserError: too many damaged videos.
    """
    folder.mkdir(parents=True, exist_ok=True)
    short_side = round(size * MARGIN)
    bad = BadVideos(num_videos=len({item.path for item in catalog.items}), max_share=Data().max_bad_share)
    files = dict[str, Path]()
    written = 0
    num_videos = len(catalog.items)
    for item in progress(catalog.items, title=f"frames, {name}", total=num_videos, hidden=num_videos < 50):
        if item.path in files or item.path in bad.reasons:
            continue
        key = hashlib.sha256(f"{item.path} {short_side}".encode()).hexdigest()[:20]
        file = folder / f"{key}{SUFFIX}"
        if not file.exists():
            try:
                with open_video(item.path, short_side=short_side) as video:
                    write_frame_file(video, file)
            except UserError as error:
                bad.add({item.path: str(error)})
                continue
            written += file.stat().st_size
        files[item.path] = file
        needed = written / len(files) * len(catalog.items)
        if len(files) == 20 and needed > shutil.disk_usage(folder).free / 2:
            log.warning(f"Frames of {name} would take {needed / 2**30:.0f} GiB: each run decodes the videos itself.")
            files = {other.path: Path(other.path).absolute() for other in catalog.items}
            break
    lines = [["path", *["label"] * bool(catalog.classes)]]
    for item in catalog.items:
        if item.path in files:
            label = [catalog.classes[item.class_number]] if catalog.classes else []
            lines.append([str(files[item.path].absolute()), *label])
    path = folder / f"{name}.csv"
    write_text(path, as_csv(lines))
    return path
