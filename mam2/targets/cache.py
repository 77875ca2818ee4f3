"""Codes kept on disk, for training that draws from a fixed set of clips: a tokenizer then sees each clip once.

B clips, T frames, N patches per frame.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import zlib
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mam2.config import UserError

log = logging.getLogger("mam2")
MOST_CODES = 2**16  # two bytes each


class TokenCache:
    """The codes of numbered clips, in one file of rows of the same size; any number of processes may share it.

    A row is its checksum and two bytes per code. A row that was never written, or only in part, does not fit its
    checksum and counts as absent: a kill leaves nothing to repair. The file's name is a hash of `identity`, all that
    the codes depend on, and of the number and `shape` (T, N) of clips; a .json next to it holds the same in words.

    Raises:
        UserError: the disk is too small for all clips, or the folder can't be written.
    """

    def __init__(self, folder: Path, *, identity: dict[str, Any], num_clips: int, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._num_bytes = row_bytes(shape)
        self._writes = True
        text = json.dumps(identity | {"num_clips": num_clips, "shape": shape}, indent=2, sort_keys=True)
        self.file = folder / f"{sha256(text.encode()).hexdigest()[:16]}.tokens"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file.with_suffix(".json").write_text(text + "\n")
            self._descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"The token cache can't be kept in {folder}: {error}. Give another --targets.cache."
            ) from error
        there = os.fstat(self._descriptor).st_blocks * 512
        self.num_bytes = num_clips * self._num_bytes
        free = shutil.disk_usage(folder).free
        if self.num_bytes - there > free:
            raise UserError(
                f"A token cache of {num_clips:,} clips takes {self.num_bytes / 2**30:.1f} GiB; {folder} has "
                f"{free / 2**30:.1f} GiB left. Use another --targets.cache, or fewer --data.fixed-clips."
            )

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, clip_B: Tensor) -> tuple[Tensor, Tensor]:
        """The codes of clips int64 (B, T, N), zeros for those that are absent, and which are there: bool (B,)."""
        codes = np.zeros((len(clip_B), *self.shape), dtype=np.int64)
        found = []
        for place, clip in enumerate(clip_B.tolist()):
            try:
                row = os.pread(self._descriptor, self._num_bytes, clip * self._num_bytes)
            except OSError:  # as good as absent
                row = b""
            found.append(len(row) == self._num_bytes and int.from_bytes(row[:4], "little") == _checksum(row[4:], clip))
            if found[-1]:
                codes[place] = np.frombuffer(row[4:], dtype="<u2").reshape(self.shape)
        return torch.from_numpy(codes), torch.tensor(found, dtype=torch.bool)

    def write(self, clip_B: Tensor, codes_BTN: Tensor) -> None:
        """Keeps the codes of clips. Where the disk is full, the rest is left out, with a warning."""
        rows = codes_BTN.cpu().numpy().astype("<u2")
        for clip, row in zip(clip_B.tolist(), rows, strict=True):
            data = row.tobytes()
            try:
                if self._writes:
                    whole = _checksum(data, clip).to_bytes(4, "little") + data
                    os.pwrite(self._descriptor, whole, clip * self._num_bytes)
            except OSError as error:
                self._writes = False
                log.warning(f"The token cache {self.file} can't be written any more: {error}. Training continues.")


def row_bytes(shape: tuple[int, int]) -> int:
    """Bytes of a clip's (T, N) codes on the disk."""
    return 4 + 2 * math.prod(shape)


def _checksum(data: bytes, clip: int) -> int:
    return zlib.crc32(data, clip & 0xFFFFFFFF)
