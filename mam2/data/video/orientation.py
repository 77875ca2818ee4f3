"""Orientation of a file's frames, by which they are turned and mirrored: its display matrix, as ffplay reads it."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Orientation:
    """One of the eight ways to lay a frame: rows and columns exchanged, and then each of them reversed or not."""

    transposed: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False

    @property
    def mirrored(self) -> bool:
        """True if no turn alone leads there."""
        return (self.transposed + self.rows_reversed + self.columns_reversed) % 2 == 1

    def upright(self, x: Tensor) -> Tensor:
        """Frames (..., height, width) as they are shown."""
        x = x.transpose(-2, -1) if self.transposed else x
        x = x.flip(-2) if self.rows_reversed else x
        return x.flip(-1) if self.columns_reversed else x


def orientation_of(display_matrix: bytes | None) -> Orientation:
    """Orientation that a display matrix asks for: nine 32-bit integers as FFmpeg hands them on, or None. Zeros, and
    angles other than quarter turns, are ignored."""
    if display_matrix is None or len(display_matrix) != 36:
        return Orientation()
    a, b, _, c, d, *_ = struct.unpack("=9i", display_matrix)
    if (a, c) == (0, 0) or (b, d) == (0, 0):
        return Orientation()
    degrees = math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c))) % 360
    quarter = round(degrees / 90)
    if abs(degrees - 90 * quarter) >= 0.5:
        return Orientation()
    match quarter % 4:
        case 0:
            return Orientation(rows_reversed=d < 0)
        case 1:
            return Orientation(transposed=True, columns_reversed=c <= 0)
        case 2:
            return Orientation(rows_reversed=d < 0, columns_reversed=a < 0)
        case _:
            return Orientation(transposed=True, rows_reversed=True, columns_reversed=c < 0)
